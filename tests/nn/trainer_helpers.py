"""Models and callbacks that record what the trainer does."""

import functools

import numpy as np

import fastopt
from fastopt.callbacks import Callback
from fastopt.nn import MLP, Trainer, data


class LinearNet:
    """A linear model as a user writes it, which ignores sample weights."""

    grads_reversed = False

    def __init__(self):
        self.params = [[np.zeros((5, 3), np.float32), np.zeros(3, np.float32)]]

    def train_step(self, X, y, weight=None):
        (W, b), = self.params
        error = X @ W + b - np.eye(3, dtype=np.float32)[y]
        return float((error**2).mean()), [[X.T @ error, error.sum(axis=0)]]

    def predict(self, X):
        (W, b), = self.params
        return (X @ W + b).argmax(axis=1)


class RecordingNet:
    """A minimal model that records its batches and predicts the last column."""

    def __init__(self):
        self.params = [[np.zeros(2)], [], [np.zeros((1, 3)), np.zeros(3)]]
        self.batches = []

    def train_step(self, X, y):
        self.batches.append((X.copy(), y.copy()))
        grads = [[np.full(p.shape, i + 1.0) for p in layer] for i, layer in enumerate(self.params)]
        return np.float64(len(self.batches)), grads[::-1]

    def predict(self, X):
        return X.reshape(len(X), -1)[:, -1].astype(int)


class Recorder(Callback):
    """Record every hook that is called."""

    def __init__(self):
        self.events = []

    def on_train_begin(self, logs):
        self.events.append(("train_begin", dict(logs)))

    def on_epoch_begin(self, epoch, logs):
        self.events.append(("epoch_begin", epoch))

    def on_train_batch_end(self, batch, logs):
        self.events.append(("batch_end", batch, logs["loss"]))

    def on_epoch_end(self, epoch, logs):
        self.events.append(("epoch_end", epoch, dict(logs)))

    def on_train_end(self, logs):
        self.events.append(("train_end", dict(logs)))


class Interrupt(Callback):
    """Raise KeyboardInterrupt after a number of batches."""

    def __init__(self, batches):
        self.left = batches

    def on_train_batch_end(self, batch, logs):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def flat(layers):
    return [array for layer in layers for array in layer]


def rows(n):
    """Return n distinct samples and their labels, which equal the last column."""
    X = np.stack([np.arange(n) + 0.5, np.arange(n)], axis=1)
    return X, np.arange(n)


def digits_trainer(opt=fastopt.Adam, callbacks=(), loss="auto", **options):
    net = MLP([64, 32, 10], seed=0, loss=loss)
    return Trainer(net, opt(net.params, **options), callbacks)


@functools.cache
def split_digits():
    """Return training samples, their labels, and validation data."""
    X_train, X_test, y_train, y_test = data.train_test_split(*data.load_digits())
    return X_train, y_train, (X_test, y_test)
