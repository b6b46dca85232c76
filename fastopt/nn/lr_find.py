"""The learning-rate range test: which learning rate to train with."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastopt._core.validation import check_float, check_int
from fastopt.nn.callbacks import Callback
from fastopt.nn.trainer import Trainer

if TYPE_CHECKING:
    from _typeshed import StrPath
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from fastopt.nn.typing import ClassWeight, Logs, Net, Samples, Stepper

__all__ = ["LRFind", "lr_find"]


@dataclass(frozen=True, repr=False)
class LRFind:
    """What a range test has found.

    Attributes
    ----------
    lr : ndarray of float64, shape (steps,)
        Learning rates in the order in which they were tried, rising.
    loss : ndarray of float64, shape (steps,)
        Loss of each batch, before the step with that learning rate.
    smoothed : ndarray of float64, shape (steps,)
        Their moving average, see `lr_find`.
    suggestion : float or None
        The learning rate at which the loss falls fastest; None if it never falls.
    """

    lr: NDArray[np.float64]
    loss: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    suggestion: float | None

    def __repr__(self) -> str:
        suggestion = "no suggestion" if self.suggestion is None else f"suggestion {self.suggestion:.2g}"
        return f"LRFind({len(self.lr)} steps from {self.lr[0]:.2g} to {self.lr[-1]:.2g}: {suggestion})"

    def plot(self, path: StrPath | None = None) -> Figure:
        """Draw the losses against the learning rates: `fastopt.plots.plot_lr_find`.

        Parameters
        ----------
        path : str or path-like, optional
            Write the figure there, in the format of the suffix.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from fastopt.plots import plot_lr_find

        return plot_lr_find(self, path)


def lr_find(
    net: Net,
    opt: Stepper,
    X: Samples,
    y: ArrayLike,
    batch_size: int = 32,
    *,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    steps: int = 200,
    smoothing: float = 0.9,
    divergence: float = 4.0,
    seed: int | None = None,
    sample_weight: ArrayLike | None = None,
    class_weight: ClassWeight | None = None,
    max_norm: float | None = None,
    clip_value: float | None = None,
) -> LRFind:
    """Train for a few steps with ever larger learning rates, and see where the loss falls fastest.

    A copy of net and optimizer is trained: the ones given stay as they are.

    Parameters
    ----------
    net, opt, X, y, batch_size, sample_weight, class_weight, max_norm, clip_value
        As for `fastopt.Trainer` and its `fit`. Net and optimizer must be such as `copy.deepcopy`
        copies; the optimizer needs ``groups``, all of which get the same learning rate, in place of a
        schedule, too.
    start_lr, end_lr : float
        The range, ``0 < start_lr < end_lr``.
    steps : int, default 200
        Learning rates to try, at least 10; a step each, through as many epochs as it takes.
    smoothing : float, default 0.9
        Weight of the past in the moving average of the loss, from 0 to below 1.
    divergence : float, default 4.0
        Stop where the average is this many times its least value; above 1. A loss that is not finite
        ends the test in any case.
    seed : int, optional
        Of the shuffling.

    Returns
    -------
    LRFind
        With ``lr``, ``loss``, ``smoothed``, ``suggestion`` and ``plot(path)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind, or the very first loss is not finite.

    Notes
    -----
    Step ``i`` of ``n`` has the learning rate ``start_lr * (end_lr / start_lr) ** (i / (n - 1))``. With
    ``b = smoothing``, the average is that of Adam, free of the bias of its start::

        m[i] = b * m[i-1] + (1 - b) * loss[i];    smoothed[i] = m[i] / (1 - b ** (i + 1))

    The suggestion is ``lr[k]`` with the least slope ``d smoothed / d log(lr)`` (central differences)
    among the ``k`` from ``steps / 10`` on, where the average is one of many losses, up to that of the
    least average.

    References
    ----------
    L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3. The
    exponential range, the smoothing and the point of steepest descent are those that J. Howard and
    S. Gugger made known with fastai.

    Examples
    --------
    >>> found = fastopt.lr_find(net, opt, X, y, seed=0)
    >>> found.plot("lr.png")
    >>> opt.groups[0]["lr"] = found.suggestion
    """
    steps = check_int("steps", steps, 10)
    sweep = _Sweep(
        _rates(start_lr, end_lr, steps),
        _between("smoothing", smoothing, 0.0, 1.0),
        _between("divergence", divergence, 1.0, math.inf),
    )
    if not getattr(opt, "groups", None):
        raise TypeError(f"opt must have 'groups', but a {type(opt).__name__} has not")
    net, opt = copy.deepcopy((net, opt))
    trainer = Trainer(net, opt, [sweep], max_norm=max_norm, clip_value=clip_value)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        history = trainer.fit(
            X,
            y,
            batch_size,
            epochs=steps,  # more than enough: the sweep ends it
            verbose=0,
            seed=seed,
            sample_weight=sample_weight,
            class_weight=class_weight,
            training_accuracy=False,
        )
    if history.interrupted:
        raise KeyboardInterrupt
    return sweep.result()


class _Sweep(Callback):
    """Sets the learning rate of each step, and writes down the losses."""

    def __init__(self, rates: NDArray[np.float64], smoothing: float, divergence: float) -> None:
        self._rates = rates
        self._smoothing = smoothing
        self._divergence = divergence
        self._mean = 0.0
        self._loss: list[float] = []
        self._smoothed: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        for group in self.trainer.opt.groups:
            group["lr"] = self._rates[len(self._loss)]

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        loss, b = logs["loss"], self._smoothing
        if not math.isfinite(loss):
            if not self._loss:
                raise ValueError(f"net: expected a finite loss of the first batch, got {loss}")
            self.trainer.stop_training = True
            return
        self._mean = b * self._mean + (1.0 - b) * loss
        self._loss.append(loss)
        self._smoothed.append(self._mean / (1.0 - b ** len(self._loss)))
        # A least average below zero has no multiple to compare with.
        diverged = self._smoothed[-1] > self._divergence * min(self._smoothed) > 0.0
        self.trainer.stop_training = diverged or len(self._loss) == len(self._rates)

    def result(self) -> LRFind:
        """Return what was found."""
        n = len(self._loss)
        lr, smoothed = self._rates[:n], np.array(self._smoothed)
        suggestion = _steepest(lr, smoothed, len(self._rates) // 10)
        return LRFind(lr, np.array(self._loss), smoothed, suggestion)


def _steepest(lr: NDArray[np.float64], smoothed: NDArray[np.float64], first: int) -> float | None:
    """Return the learning rate from place `first` on at which the average falls fastest, or None."""
    last = int(np.argmin(smoothed))
    if last < max(first, 1):
        return None
    slope = np.gradient(smoothed, np.log(lr))[first : last + 1]
    steepest = int(np.argmin(slope))
    return float(lr[first + steepest]) if slope[steepest] < 0.0 else None


def _rates(start_lr: float, end_lr: float, steps: int) -> NDArray[np.float64]:
    start_lr, end_lr = check_float("start_lr", start_lr), check_float("end_lr", end_lr)
    if not 0.0 < start_lr < end_lr:
        raise ValueError(f"start_lr: expected 0 < start_lr < end_lr, got {start_lr!r} and {end_lr!r}")
    return start_lr * (end_lr / start_lr) ** (np.arange(steps) / (steps - 1))


def _between(name: str, value: float, low: float, high: float) -> float:
    value = check_float(name, value)
    if not low <= value < high:
        raise ValueError(f"{name}: expected a number in [{low:g}, {high:g}), got {value!r}")
    return value
