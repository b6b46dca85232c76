"""Sensitivity of four optimizers to the learning rate: the table of the ADADELTA paper.

A network with hidden layers of 500 and 300 tanh units is trained for six epochs in minibatches of 100 with
SGD, momentum, AdaGrad and ADADELTA, for learning rates from 1 to 0.0001 and always from the same initial
weights. The table shows the test error in percent. M. D. Zeiler, "ADADELTA: an adaptive learning rate
method", 2012.

    python examples/optimizer_table.py fashion-mnist --plot table.svg

Without a data folder it uses the packaged digits. The plot needs matplotlib.
"""

import argparse
import time

import numpy as np

import fastopt
from fastopt.nn.data import load, load_digits, train_test_split

OPTIMIZERS = {
    "SGD": lambda params, lr: fastopt.SGD(params, lr=lr),
    "Momentum": lambda params, lr: fastopt.SGD(params, lr=lr, momentum=0.9),
    "AdaGrad": lambda params, lr: fastopt.Adagrad(params, lr=lr),
    "ADADELTA": lambda params, lr: fastopt.Adadelta(params, lr=lr, rho=0.95),
}
RATES = (1.0, 0.1, 0.01, 0.001, 0.0001)


def read(folder):
    if folder is not None:
        data = load(folder)
        return data.X_train, data.X_test, data.y_train, data.y_test
    return train_test_split(*load_digits())


def error(optimizer, lr, data, epochs):
    """Return the test error in percent, or NaN if training diverged."""
    X_train, X_test, y_train, y_test = data
    net = fastopt.MLP(
        [X_train.shape[1], 500, 300, y_train.max() + 1], activation="tanh", loss="cross_entropy", seed=0
    )
    trainer = fastopt.Trainer(net, optimizer(net.params, lr), [fastopt.callbacks.TerminateOnNaN()])
    trainer.fit(X_train, y_train, batch_size=100, epochs=epochs, verbose=0, seed=0, training_accuracy=False)
    if not all(np.isfinite(array).all() for layer in net.params for array in layer):
        return np.nan
    return 100.0 * (net.predict(X_test) != y_test).mean()


def draw(table, path):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    image = axes.imshow(table.T, cmap="viridis_r", aspect="auto", vmax=50)
    axes.grid(visible=False)
    axes.set_xticks(range(len(RATES)), [f"{lr:g}" for lr in RATES])
    axes.set_yticks(range(len(OPTIMIZERS)), list(OPTIMIZERS))
    axes.set_xlabel("Learning rate")
    for (i, j), value in np.ndenumerate(table):
        color = "white" if value > 30 else "black"
        axes.text(i, j, f"{value:.1f}", ha="center", va="center", color=color)
    figure.colorbar(image, label="Test error (%)", extend="max")
    figure.savefig(path)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", help="folder of IDX files, .npz file or CSV file")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args()

    data = read(args.data)
    start = time.perf_counter()
    print(f"{'Learning rate':<14}" + "".join(f"{name:>11}" for name in OPTIMIZERS))
    table = []
    for lr in RATES:
        table.append([error(optimizer, lr, data, args.epochs) for optimizer in OPTIMIZERS.values()])
        print(f"{lr:<14g}" + "".join(f"{value:>10.2f}%" for value in table[-1]), flush=True)
    print(f"{len(RATES) * len(OPTIMIZERS)} training runs in {time.perf_counter() - start:.0f} seconds")
    if args.plot:
        draw(np.array(table), args.plot)


if __name__ == "__main__":
    main()
