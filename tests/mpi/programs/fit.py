"""Fit models with `Trainer` on several ranks, and write what every rank then has: ``fit.py DIRECTORY``."""

import sys
from pathlib import Path

import numpy as np

import fastopt
from fastopt import callbacks, mpi, schedules


class SoftmaxRegression:
    """A model that is no MLP: its batches are copied, and it is evaluated on one rank."""

    grads_reversed = False

    def __init__(self, inputs, classes):
        self.params = [[np.zeros((inputs, classes)), np.zeros(classes)]]

    def train_step(self, X, y, weight=None):
        weight = np.ones(len(y)) if weight is None else weight
        weight = weight / weight.sum()
        z = X @ self.params[0][0] + self.params[0][1]
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        rows = np.arange(len(y))
        loss = -(weight * np.log(p[rows, y])).sum()
        p[rows, y] -= 1.0
        p *= weight[:, None]
        return loss, [[X.T @ p, p.sum(axis=0)]]

    def predict(self, X):
        return (X @ self.params[0][0] + self.params[0][1]).argmax(axis=1)


def data(n=203, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 12)).astype(np.float32)
    return X, (X[:, :5] + 0.5 * rng.normal(size=(n, 5))).argmax(axis=1)


def trainer(net, opt, *args, sharded=False, **options):
    return fastopt.Trainer(net, mpi.DistributedOptimizer(opt, sharded=sharded), *args, **options)


def dropout_and_penalty(directory, sharded=False):
    net = fastopt.MLP([12, 24, 16, 5], dropout=0.3, l2=1e-3, label_smoothing=0.1, seed=1)
    run = trainer(net, fastopt.Adam(net.params, lr=1e-2), max_norm=0.5, sharded=sharded)
    run.fit(*data(), batch_size=50, epochs=3, validation_data=data(1500, 1), seed=2, class_weight="balanced")
    return run


def sharded_dropout_and_penalty(directory):
    return dropout_and_penalty(directory, sharded=True)


def batch_norm_and_averages(directory):
    net = fastopt.MLP([12, 24, 16, 5], norm=["batch", "layer"], seed=1)
    opt = fastopt.AdamW(net.params, lr=schedules.Cosine(1e-2, steps=15), ema=0.9)
    run = trainer(net, opt, [callbacks.SwapEMAWeights(swap_on_epoch=True)])
    run.fit(*data(), batch_size=50, epochs=3, validation_data=data(100, 1), seed=2)
    return run


def fewer_samples_than_ranks(directory):
    net = fastopt.MLP([12, 8, 5], seed=1)
    run = trainer(net, fastopt.SGD(net.params, lr=0.1, momentum=0.9))
    run.fit(*data(7), batch_size=3, epochs=2, seed=2)
    return run


def callbacks_decide_alike(directory):
    net = fastopt.MLP([12, 24, 5], seed=1)
    stop = callbacks.EarlyStopping(patience=3, restore_best_weights=True)
    plateau = callbacks.ReduceLROnPlateau(patience=1)
    files = [callbacks.CSVLogger(directory / "log.csv"), callbacks.ModelCheckpoint(directory / "best.npz")]
    run = trainer(net, fastopt.Adam(net.params, lr=0.1), [plateau, stop, *files])
    run.fit(*data(), batch_size=50, epochs=40, validation_data=data(100, 1), seed=2)
    assert run.history.stopped_by == "EarlyStopping"
    return run


def custom_model_with_weights(directory):
    net = SoftmaxRegression(12, 5)
    run = trainer(net, fastopt.Adagrad(net.params, lr=0.1))
    X, y = data()
    weight = np.arange(len(y)) % 3
    weight[:60] = 0
    run.fit(X, y, batch_size=20, epochs=3, validation_data=data(100, 1), shuffle=False, sample_weight=weight)
    return run


def accumulated(directory):
    net = fastopt.MLP([12, 8, 1], seed=1, dtype="float64")
    run = trainer(net, fastopt.RMSprop(net.params, accumulate=2))
    X, y = data()
    run.fit(X, y.astype(float), batch_size=40, epochs=2, seed=2)
    return run


def resumed_in_an_epoch(directory, sharded=False):
    """Ends after a few batches; another run continues from the file, which rank 0 reads."""
    def make():
        net = fastopt.MLP([12, 16, 5], dropout=0.2, norm="batch", seed=1)
        backup = callbacks.BackupAndRestore(directory / "b", 1)
        return trainer(net, fastopt.Adam(net.params, ema=0.9), [Stop(), backup], sharded=sharded)

    class Stop(callbacks.Callback):
        def on_train_batch_end(self, batch, logs):
            if batch == 2:
                raise RuntimeError

    run = make()
    try:
        run.fit(*data(), batch_size=50, epochs=2, seed=2)
        raise AssertionError
    except RuntimeError:
        run = make()
    run.callbacks[0].on_train_batch_end = lambda batch, logs: None
    run.fit(*data(), batch_size=50, epochs=2, seed=2)
    assert mpi.rank() or not (directory / "b").exists()
    return run


def sharded_and_resumed(directory):
    return resumed_in_an_epoch(directory, sharded=True)


def leaves(tree):
    if not isinstance(tree, (dict, list, tuple)):
        return [tree] if isinstance(tree, np.ndarray) else []
    return [leaf for inner in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(inner)]


CASES = (
    dropout_and_penalty, sharded_dropout_and_penalty, batch_norm_and_averages, fewer_samples_than_ranks,
    callbacks_decide_alike, custom_model_with_weights, accumulated, resumed_in_an_epoch, sharded_and_resumed,
)


def main(directory):
    fastopt.set_num_threads(1)
    for case in CASES:
        run = case(directory)
        state = run.state_dict()
        arrays = {f"net.{name}": array for name, array in state["net"].items()}
        arrays |= {f"history.{k}": np.array(v) for k, v in state["history"].items() if k != "seconds"}
        arrays |= {f"opt.{i}": np.asarray(value) for i, value in enumerate(leaves(state["opt"]))}
        np.savez(directory / f"{case.__name__}-{mpi.rank()}.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
