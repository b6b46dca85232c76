"""A model with given validation losses, its trainer, and readers of files, for tests of callbacks."""

import csv
import functools

import numpy as np

import fastopt
from fastopt.nn import Trainer
from fastopt.nn.data import load_digits, read_arrays

X, Y = np.zeros((4, 1)), np.zeros(4)


class CountingNet:
    """A model whose only weight counts the steps, with given validation losses."""

    def __init__(self, val_losses=()):
        self.params = [[np.zeros(1)], []]
        self.val_losses = list(val_losses)
        self.evaluated = []

    def train_step(self, X, y):
        return 1.0, [[], [np.full(1, -1.0)]]

    def predict(self, X):
        return np.zeros(len(X))

    def evaluate(self, X, y):
        self.evaluated.append(self.weight)
        return self.val_losses[len(self.evaluated) - 1]

    @property
    def weight(self):
        return float(self.params[0][0][0])


def make_trainer(val_losses, *callbacks, lr=1.0, **options):
    """Return a trainer with these validation losses, one per epoch; an epoch of `run` is one step."""
    net = CountingNet(val_losses)
    return Trainer(net, fastopt.SGD(net.params, lr=lr, **options), callbacks)


def run(trainer, epochs=None, **options):
    epochs = len(trainer.net.val_losses) if epochs is None else epochs
    return trainer.fit(X, Y, 4, epochs, (X, Y), verbose=0, **options)


@functools.cache
def small_digits():
    """Return 400 training samples, their labels, and 200 samples of validation data."""
    X, y = load_digits()
    return X[:400].astype(np.float32), y[:400], (X[400:600].astype(np.float32), y[400:600])


def without_seconds(history):
    return {name: values for name, values in history.history.items() if name != "seconds"}


def read_table(path, separator=","):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=separator))


def saved_weight(path):
    """Return the weight of a `CountingNet` in a file."""
    return float(read_arrays(path)["params[0][0]"][0])
