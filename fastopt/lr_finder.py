"""The learning-rate range test."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastopt._core.validation import check_float, check_int
from fastopt.nn.callbacks.base import Callback
from fastopt.nn.trainer import Trainer

if TYPE_CHECKING:
    from _typeshed import StrPath
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from fastopt.nn.typing import ClassWeight, Logs, Net, Samples, Stepper

__all__ = ["LRFind", "lr_find"]


@dataclass(frozen=True, repr=False)
class LRFind:
    """Result of a learning-rate range test.

    Attributes
    ----------
    lr : ndarray of float64, shape (steps,)
        Learning rates in increasing order.
    loss : ndarray of float64, shape (steps,)
        Loss of each batch, before the step with that learning rate.
    smoothed : ndarray of float64, shape (steps,)
        Moving average of the losses, see `lr_find`.
    suggestion : float or None
        Learning rate at which the loss decreases fastest; None if it never decreases.
    """

    lr: NDArray[np.float64]
    loss: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    suggestion: float | None

    def __repr__(self) -> str:
        suggestion = "no suggestion" if self.suggestion is None else f"suggestion {self.suggestion:.2g}"
        return f"LRFind({len(self.lr)} steps from {self.lr[0]:.2g} to {self.lr[-1]:.2g}: {suggestion})"

    def plot(self, path: StrPath | None = None) -> Figure:
        """Plot the losses against the learning rates with `fastopt.plots.plot_lr_find`.

        Parameters
        ----------
        path : str or path-like, optional
            File for the figure, in the format of its suffix.
        """
        from fastopt.plots import plot_lr_find

        return plot_lr_find(self, path)


def lr_find(
    net: Net, opt: Stepper, X: Samples, y: ArrayLike, batch_size: int = 32, *, start_lr: float = 1e-7,
    end_lr: float = 10.0, steps: int = 200, smoothing: float = 0.9, divergence: float = 4.0,
    seed: int | None = None, sample_weight: ArrayLike | None = None, class_weight: ClassWeight | None = None,
    max_norm: float | None = None, clip_value: float | None = None,
) -> LRFind:
    """Train for a few steps with increasing learning rates and find where the loss decreases fastest.

    Copies of the model and the optimizer are trained; the originals are unchanged.

    Parameters
    ----------
    net, opt, X, y, batch_size, sample_weight, class_weight, max_norm, clip_value
        As for `fastopt.Trainer` and its `fit`. `copy.deepcopy` must be able to copy `net` and `opt`. The
        optimizer must have ``groups``; all of them get the same learning rate, which replaces a schedule.
    start_lr, end_lr : float
        Range of the learning rate, ``0 < start_lr < end_lr``.
    steps : int, default 200
        Number of learning rates, at least 10. Each is used for one step, over as many epochs as needed.
    smoothing : float, default 0.9
        Decay rate of the moving average of the loss, at least 0 and below 1.
    divergence : float, default 4.0
        The test stops when the average exceeds this multiple of its minimum, or the loss is not finite.
        At least 1.
    seed : int, optional
        Seed of the shuffling.

    Returns
    -------
    LRFind
        The attributes ``lr``, ``loss``, ``smoothed`` and ``suggestion``, and the method ``plot(path)``.

    Notes
    -----
    Step ``i`` of ``n`` has the learning rate ``start_lr * (end_lr / start_lr) ** (i / (n - 1))``. With
    ``b = smoothing``, the average is bias-corrected as in Adam::

        m[i] = b * m[i-1] + (1 - b) * loss[i];    smoothed[i] = m[i] / (1 - b ** (i + 1))

    The suggestion is the ``lr[k]`` with the most negative slope ``d smoothed / d log(lr)`` (central
    differences), from ``k = steps / 10``, where the average contains enough losses, up to the minimum of
    the average.

    References
    ----------
    L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3. The
    exponential range, the smoothing and the point of steepest descent follow fastai (J. Howard and
    S. Gugger).

    Examples
    --------
    >>> result = fastopt.lr_find(net, opt, X, y, seed=0)
    >>> result.plot("lr.png")
    >>> opt.groups[0]["lr"] = result.suggestion
    """
    steps = check_int("steps", steps, 10)
    start_lr, end_lr = check_float("start_lr", start_lr), check_float("end_lr", end_lr)
    if not 0.0 < start_lr < end_lr:
        raise ValueError(f"start_lr: expected 0 < start_lr < end_lr, got {start_lr!r} and {end_lr!r}")
    rates = start_lr * (end_lr / start_lr) ** (np.arange(steps) / (steps - 1))
    smoothing = check_float("smoothing", smoothing, 0.0, 1.0)
    sweep = _Sweep(rates, smoothing, check_float("divergence", divergence, 1.0))
    if not getattr(opt, "groups", None):
        raise TypeError(f"opt: expected an object with 'groups', got {type(opt).__name__}")
    net, opt = copy.deepcopy((net, opt))
    trainer = Trainer(net, opt, [sweep], max_norm=max_norm, clip_value=clip_value)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        # The number of epochs is an upper bound: the callback stops training.
        history = trainer.fit(
            X, y, batch_size, steps, verbose=0, seed=seed, sample_weight=sample_weight,
            class_weight=class_weight, training_accuracy=False,
        )
    if history.interrupted:
        raise KeyboardInterrupt
    return sweep.result()


class _Sweep(Callback):
    """Set the learning rate of each step and record the losses."""

    def __init__(self, rates: NDArray[np.float64], smoothing: float, divergence: float) -> None:
        self._rates, self._smoothing, self._divergence = rates, smoothing, divergence
        self._average = 0.0
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
        self._average = b * self._average + (1.0 - b) * loss
        self._loss.append(loss)
        self._smoothed.append(self._average / (1.0 - b ** len(self._loss)))
        # A multiple of a minimum below zero would be smaller than the minimum.
        diverged = self._smoothed[-1] > self._divergence * min(self._smoothed) > 0.0
        self.trainer.stop_training = diverged or len(self._loss) == len(self._rates)

    def result(self) -> LRFind:
        lr, smoothed = self._rates[: len(self._loss)], np.array(self._smoothed)
        suggestion = _steepest(lr, smoothed, len(self._rates) // 10)
        return LRFind(lr, np.array(self._loss), smoothed, suggestion)


def _steepest(lr: NDArray[np.float64], smoothed: NDArray[np.float64], first: int) -> float | None:
    """Return the learning rate, from index `first`, at which the average decreases fastest, or None."""
    last = int(np.argmin(smoothed))
    if last < max(first, 1):
        return None
    slope = np.gradient(smoothed, np.log(lr))[first : last + 1]
    steepest = int(np.argmin(slope))
    return float(lr[first + steepest]) if slope[steepest] < 0.0 else None
