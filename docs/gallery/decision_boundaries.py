"""
Decision boundaries next to scikit-learn's
==========================================

``MLPClassifier`` of fastopt has the same arguments as that of scikit-learn. With the same ``random_state``,
both have the same decision boundaries, because their training steps agree up to rounding.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_circles, make_classification, make_moons
from sklearn.neural_network import MLPClassifier as Original
from sklearn.preprocessing import StandardScaler

from fastopt.sklearn import MLPClassifier

DATA = {
    "moons": make_moons(200, noise=0.25, random_state=0),
    "circles": make_circles(200, noise=0.15, factor=0.5, random_state=0),
    "linear": make_classification(200, 2, n_redundant=0, n_clusters_per_class=1, random_state=4),
}
grid = np.stack(np.meshgrid(np.linspace(-3, 3, 100), np.linspace(-3, 3, 100)), axis=-1)
PALE = {"levels": np.linspace(0, 1, 11), "cmap": "RdBu_r", "vmin": -0.7, "vmax": 1.7}

figure, axes = plt.subplots(3, 2, figsize=(7.0, 8.6), sharex=True, sharey=True)
for row, (name, (X, y)) in zip(axes, DATA.items(), strict=True):
    X, probabilities = StandardScaler().fit_transform(X), []
    for panel, Classifier in zip(row, (Original, MLPClassifier), strict=True):
        start = time.perf_counter()
        model = Classifier((50,), learning_rate_init=0.01, max_iter=1000, random_state=0).fit(X, y)
        milliseconds = 1000 * (time.perf_counter() - start)
        probabilities.append(model.predict_proba(grid.reshape(-1, 2))[:, 1].reshape(100, 100))
        panel.contourf(*grid.transpose(2, 0, 1), probabilities[-1], **PALE).set_rasterized(True)
        for label, color, class_name in ((0, "#0072B2", "class 0"), (1, "#D55E00", "class 1")):
            panel.scatter(*X[y == label].T, s=14, color=color, label=class_name)
        library = Classifier.__module__.partition(".")[0]
        panel.set(xlim=(-3, 3), ylim=(-3, 3), xticks=(-2, 0, 2), yticks=(-2, 0, 2))
        panel.set_title(f"{name}: {library}, {milliseconds:.0f} ms")
        panel.grid(visible=False)
    print(f"{name}: largest difference of probabilities {abs(probabilities[0] - probabilities[1]).max():.0e}")
figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=2)
plt.show()

# %%
# :doc:`/scikit-learn` describes the estimators and measures their speed with larger networks.
