"""The loop around a net and an optimizer."""

from __future__ import annotations

import math
import sys
import time

import numpy as np

from fastopt._checks import samples, whole
from fastopt.nn.callbacks import Callback
from fastopt.nn.metrics import accuracy

__all__ = ["History", "Trainer"]


class History:
    """What each epoch of a training gave.

    Attributes
    ----------
    epoch : list of int
        Numbers of the finished epochs, from 0.
    history : dict of list of float
        One entry an epoch, NaN where an epoch had no such number:

        ``"loss"``: mean training loss, taken while the net was learning;
        ``"val_loss"``: loss of the validation data, if the net has `evaluate`;
        ``"accuracy"``, ``"val_accuracy"``: share of rows predicted right after the epoch, where
        predictions are labels;
        ``"lr"``: learning rate of the epoch's last step, of the optimizer's first group;
        ``"seconds"``: wall-clock time of the epoch's training steps, evaluation not counted.
    interrupted : bool
        Whether Ctrl-C ended the last `Trainer.fit`.
    """

    def __init__(self):
        self.epoch = []
        self.history = {}
        self.interrupted = False

    def __repr__(self):
        return f"History({len(self.epoch)} epochs: {', '.join(self.history)})"

    def record(self, epoch, logs):
        """Add an epoch's numbers.

        Parameters
        ----------
        epoch : int
        logs : dict of float
        """
        for name in logs:
            self.history.setdefault(name, [math.nan] * len(self.epoch))
        for name, values in self.history.items():
            values.append(logs.get(name, math.nan))
        self.epoch.append(epoch)

    def last(self):
        """Return the numbers of the last epoch, a dict; an empty one before the first."""
        return {name: values[-1] for name, values in self.history.items()}


class Trainer:
    """Trains a net with an optimizer, in minibatches drawn anew each epoch.

    Parameters
    ----------
    net : object
        `fastopt.MLP`, or anything with ``params``, a list of layers, each a list of arrays (it may
        be empty); ``train_step(X, y) -> (loss, grads)``; and ``predict(X)``. Gradients are taken to
        come in reverse layer order unless ``net.grads_reversed`` is false. If the net has
        ``evaluate(X, y) -> float``, that gives the validation loss.
    opt : object
        A fastopt optimizer of ``net.params``, or anything with ``step(grads)``.
    callbacks : iterable of Callback, default ()

    Attributes
    ----------
    net, opt, callbacks
        As given.
    history : History
        Of all calls of `fit`.
    stop_training : bool
        Set it, from a callback, to end the training after the present batch.

    Examples
    --------
    >>> net = fastopt.MLP([64, 32, 10], seed=0)
    >>> trainer = fastopt.Trainer(net, fastopt.Adam(net.params))
    >>> history = trainer.fit(X, y, epochs=10, validation_data=(X_test, y_test), seed=0)
    >>> history.history["val_accuracy"][-1]
    """

    def __init__(self, net, opt, callbacks=()):
        for name in ("params", "train_step", "predict"):
            if not hasattr(net, name):
                raise TypeError(f"net must have {name!r}, but a {type(net).__name__} has not")
        if not hasattr(opt, "step"):
            raise TypeError(f"opt must have 'step', but a {type(opt).__name__} has not")
        self.net = net
        self.opt = opt
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be Callback objects, got {callback!r}")
        self.history = History()
        self.stop_training = False
        self._rng = self._seed = None

    def fit(
        self,
        X,
        y,
        batch_size=32,
        epochs=1,
        validation_data=None,
        verbose=1,
        shuffle=True,
        seed=None,
        *,
        training_accuracy=True,
    ):
        """Train for a number of epochs; called again, go on where it stopped.

        The optimizer keeps its state, epochs are numbered on, and so is the order of the rows:
        two calls of one epoch each do what one call of two epochs does.

        Parameters
        ----------
        X : array_like, shape (n, ...)
        y : array_like, shape (n, ...)
        batch_size : int, default 32
            The last batch of an epoch may be smaller.
        epochs : int, default 1
            How many more.
        validation_data : (X, y), optional
            Evaluated after each epoch.
        verbose : int, default 1
            0 prints nothing. Otherwise each epoch prints a line to standard output, and shows a
            progress bar while it lasts if that is a terminal and tqdm is installed
            (``pip install 'fastopt[progress]'``).
        shuffle : bool, default True
            False takes the rows in their order, without copying them.
        seed : int, optional
            Of the shuffling. Given again, it does not start the shuffling anew; another one does.
        training_accuracy : bool, default True
            Whether to predict the training data after each epoch; False saves the time it takes.

        Returns
        -------
        History
            The trainer's `history`, with all epochs so far. Ctrl-C ends the training early, keeps
            what is learned, and sets ``history.interrupted``.

        Raises
        ------
        TypeError, ValueError
            If an argument is of the wrong kind; nothing is trained then.

        Notes
        -----
        Where a hyperparameter of the optimizer is a schedule with a method ``report(value)``, it is
        told the validation loss after each epoch, or the training loss where there is none.
        """
        X, y = samples("X", X, "y", y)
        batch_size = whole("batch_size", batch_size, 1)
        epochs = whole("epochs", epochs, 0)
        validation = _check_validation(validation_data, X)
        if self._rng is None or (seed is not None and seed != self._seed):
            self._rng, self._seed = np.random.default_rng(seed), seed

        history = self.history
        history.interrupted = self.stop_training = False
        batches = _Batches(X, y, batch_size, self._rng if shuffle else None)
        first = len(history.epoch)
        for callback in self.callbacks:
            callback.trainer = self
        try:
            self._call("on_train_begin", {})
            for epoch in range(first, first + epochs):
                self._call("on_epoch_begin", epoch, {})
                logs = self._run_epoch(epoch, batches, verbose)
                logs |= self._evaluate(X, y, validation, training_accuracy)
                history.record(epoch, logs)
                if verbose:
                    print(f"Epoch {epoch + 1}\n{format_logs(logs)}", flush=True)
                _report_to_schedules(self.opt, logs.get("val_loss", logs["loss"]))
                self._call("on_epoch_end", epoch, logs)
                if self.stop_training:
                    break
        except KeyboardInterrupt:
            history.interrupted = True
            if verbose:
                done = len(history.epoch)
                print(f"Interrupted after {done} epochs: the net keeps what it has learned.")
        self._call("on_train_end", history.last())
        return history

    def _run_epoch(self, epoch, batches, verbose):
        """Take a step for each batch; return the epoch's loss, learning rate and seconds."""
        net, opt = self.net, self.opt
        hooks = [
            callback.on_train_batch_end
            for callback in self.callbacks
            if type(callback).on_train_batch_end is not Callback.on_train_batch_end
        ]
        reverse = getattr(net, "grads_reversed", True)
        total = rows = 0
        start = time.perf_counter()
        for number, (X, y) in enumerate(_with_progress(batches, epoch, verbose)):
            loss, grads = net.train_step(X, y)
            opt.step(grads[::-1] if reverse else grads)
            total += float(loss) * len(X)
            rows += len(X)
            for hook in hooks:
                hook(number, {"loss": float(loss)})
            if self.stop_training:
                break
        seconds = time.perf_counter() - start
        return {"loss": total / rows, **_learning_rate(opt), "seconds": seconds}

    def _evaluate(self, X, y, validation, training_accuracy):
        logs = {}
        if training_accuracy:
            logs |= self._accuracy("accuracy", X, y)
        if validation is not None:
            logs |= self._accuracy("val_accuracy", *validation)
            if hasattr(self.net, "evaluate"):
                logs["val_loss"] = float(self.net.evaluate(*validation))
        return logs

    def _accuracy(self, name, X, y):
        """Return ``{name: accuracy}``, or nothing where predictions are values, not labels."""
        if y.dtype.kind in "fc":
            return {}
        predicted = np.asarray(self.net.predict(X))
        if predicted.dtype.kind in "fc" or predicted.size != y.size:
            return {}
        return {name: accuracy(y, predicted.reshape(y.shape))}

    def _call(self, hook, *args):
        for callback in self.callbacks:
            getattr(callback, hook)(*args)


class _Batches:
    """The minibatches of an epoch, gathered into buffers that every batch reuses.

    Each iteration is an epoch. Without a random generator batches are views in the given order.
    """

    def __init__(self, X, y, batch_size, rng):
        self._data = X, y
        self._batch_size = batch_size
        self._rng = rng
        self._order = None
        if rng is not None:
            rows = min(batch_size, len(X))
            self._buffers = [np.empty((rows, *a.shape[1:]), a.dtype) for a in self._data]

    def __len__(self):
        return -(-len(self._data[0]) // self._batch_size)

    def __iter__(self):
        n = len(self._data[0])
        if self._rng is not None:
            self._order = self._rng.permutation(n)
        for start in range(0, n, self._batch_size):
            yield self._batch(start, min(start + self._batch_size, n))

    def _batch(self, start, stop):
        if self._rng is None:
            return [array[start:stop] for array in self._data]
        rows = self._order[start:stop]
        # mode="clip" because "raise" makes take() buffer its output; the rows are all in range.
        return [
            array.take(rows, axis=0, out=buffer[: len(rows)], mode="clip")
            for array, buffer in zip(self._data, self._buffers, strict=True)
        ]


def _with_progress(batches, epoch, verbose):
    """Return `batches`, behind a progress bar on a terminal that has tqdm."""
    if not verbose or not (sys.stdout.isatty() and sys.stderr.isatty()):
        return batches
    try:
        from tqdm import tqdm
    except ImportError:
        return batches
    return tqdm(batches, desc=f"Epoch {epoch + 1}", unit="batch", leave=False)


def format_logs(logs):
    """Return the line about an epoch, as the article prints it."""
    test = "accuracy" if "val_accuracy" in logs else "loss"
    names = {"loss": "Loss", "accuracy": "Training Accuracy", f"val_{test}": f"Test {test.title()}"}
    return " | ".join(f"{text} = {logs[name]:.4f}" for name, text in names.items() if name in logs)


def _learning_rate(opt):
    """Return ``{"lr": value}`` of the last step, or nothing where the optimizer does not tell."""
    groups = getattr(opt, "groups", None)
    if not groups or "lr" not in groups[0]:
        return {}
    lr = groups[0]["lr"]
    return {"lr": float(lr(max(opt.steps - 1, 0)) if callable(lr) else lr)}


def _report_to_schedules(opt, value):
    """Tell `value` to every schedule that wants it, once each."""
    numbers = []
    for group in getattr(opt, "groups", ()):
        for name, hyperparameter in group.items():
            if name != "params":
                numbers += hyperparameter if isinstance(hyperparameter, tuple) else [hyperparameter]
    for schedule in {id(number): number for number in numbers}.values():
        if hasattr(schedule, "report"):
            schedule.report(value)


def _check_validation(data, X):
    if data is None:
        return None
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise ValueError(f"validation_data must be a pair (X, y), got {type(data).__name__}")
    pair = samples("validation_data[0]", data[0], "validation_data[1]", data[1])
    if pair[0].shape[1:] != X.shape[1:]:
        raise ValueError(
            f"validation_data[0] must have rows of the shape {X.shape[1:]}, got {pair[0].shape[1:]}"
        )
    return pair
