"""Compare the MLPs of scikit-learn and fastopt: scores over seeds, and times; the tables of
docs/scikit-learn.md.

A seed determines the split into training and test samples, the initial weights and the order of the
samples. Half of the samples are for testing. Scores are those of the estimators: accuracy, or R2. Times are
medians of seven fits, the contenders in turn. Set OPENBLAS_NUM_THREADS=1.
"""

import time
import warnings
from statistics import fmean, median, stdev

import numpy as np
import sklearn
import sklearn.neural_network as reference
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale

import fastopt
import fastopt.sklearn
from fastopt.cli.options import positive_int

TASKS = {
    "digits": ("MLPClassifier", load_digits),
    "breast cancer": ("MLPClassifier", load_breast_cancer),
    "diabetes": ("MLPRegressor", load_diabetes),
}
SOLVERS = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.02},
    "lbfgs": {"solver": "lbfgs", "alpha": 1.0},
}
NETS = [([64, 100, 10], 200), ([784, 256, 128, 10], 128), ([784, 256, 128, 10], 32)]


def measure(module, kind, data, params, seed):
    """Return the score and the seconds of a fit."""
    X, y = data(return_X_y=True)
    y = scale(y) if kind == "MLPRegressor" else y
    X, X_test, y, y_test = train_test_split(scale(X), y, test_size=0.5, random_state=seed)
    model = getattr(module, kind)(random_state=seed, max_iter=100, **params)
    start = time.perf_counter()
    model.fit(X, y)
    return model.score(X_test, y_test), time.perf_counter() - start


def time_fits(module, dtype, widths, batch):
    """Return the milliseconds per epoch of 2560 random samples."""
    rng = np.random.default_rng(0)
    X, y = rng.random((2560, widths[0])).astype(dtype), rng.integers(widths[-1], size=2560)
    model = module.MLPClassifier(widths[1:-1], batch_size=batch, max_iter=2, random_state=0)
    start = time.perf_counter()
    model.fit(X, y)
    return (time.perf_counter() - start) * 1e3 / 2


def compare_times():
    """Print the time of an epoch with scikit-learn, with scikit-learn patched, and with fastopt."""
    print("\n| net | batch | type | scikit-learn | after `patch()` | fastopt |")
    print("|---|---|---|---|---|---|")
    for widths, batch in NETS:
        for dtype in ("float64", "float32"):
            times = []
            for _ in range(7):
                own = time_fits(reference, dtype, widths, batch)
                fastopt.sklearn.patch()
                patched = time_fits(reference, dtype, widths, batch)
                fastopt.sklearn.unpatch()
                times.append((own, patched, time_fits(fastopt.sklearn, dtype, widths, batch)))
            cells = " | ".join(f"{median(column):.0f} ms" for column in zip(*times, strict=True))
            print(f"| {'-'.join(map(str, widths))} | {batch} | {dtype} | {cells} |", flush=True)


def compare_scores(seeds):
    """Print the scores of all data sets and solvers."""
    print(f"scikit-learn {sklearn.__version__}, fastopt {fastopt.__version__}, {seeds} seeds\n")
    print("| data | solver | scikit-learn | fastopt | largest difference | times faster |")
    print("|---|---|---|---|---|---|")
    for name, (kind, data) in TASKS.items():
        for solver, params in SOLVERS.items():
            pairs = [
                [measure(module, kind, data, params, seed) for module in (reference, fastopt.sklearn)]
                for seed in range(seeds)
            ]
            columns = [[pair[i][0] for pair in pairs] for i in (0, 1)]
            means = [f"{fmean(scores):.4f} ± {stdev(scores):.4f}" for scores in columns]
            worst = max(abs(a[0] - b[0]) for a, b in pairs)
            ratio = median(a[1] / b[1] for a, b in pairs)
            print(f"| {name} | {solver} | {means[0]} | {means[1]} | {worst:.1g} | {ratio:.1f} |", flush=True)


def add_options(command):
    command.add_argument("--seeds", type=positive_int, default=10, metavar="N", help="(default: %(default)s)")


def run(options):
    warnings.simplefilter("ignore", ConvergenceWarning)
    compare_scores(options.seeds)
    compare_times()
