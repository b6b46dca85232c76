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

_MIN_LOSSES = 6     # from which a fall is fitted
_MIN_RATIO = 7.0    # F statistic of the fit


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
        Learning rate at which the loss has fallen by two thirds of its decrease; None if it does not fall by
        more than its noise.
    """

    lr: NDArray[np.float64]
    loss: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    suggestion: float | None

    def __repr__(self) -> str:
        suggestion = "no suggestion" if self.suggestion is None else f"suggestion {self.suggestion:.2g}"
        return f"LRFind({len(self.lr)} steps from {self.lr[0]:.2g} to {self.lr[-1]:.2g}: {suggestion})"

    def plot(self, path: StrPath | None = None, *, title: str = "") -> Figure:
        """Plot the losses against the learning rates with `fastopt.plots.plot_lr_find`.

        Parameters
        ----------
        path : str or path-like, optional
            File for the figure, in the format of its suffix.
        title : str, default ""
            Title of the figure.
        """
        from fastopt.plots import plot_lr_find

        return plot_lr_find(self, path, title=title)


def lr_find(
    net: Net, opt: Stepper, X: Samples, y: ArrayLike, batch_size: int = 32, *, start_lr: float = 1e-7,
    end_lr: float = 10.0, steps: int = 200, smoothing: float = 0.9, divergence: float = 4.0,
    seed: int | None = None, sample_weight: ArrayLike | None = None, class_weight: ClassWeight | None = None,
    max_norm: float | None = None, clip_value: float | None = None,
) -> LRFind:
    """Train for a few steps with increasing learning rates and find where the loss decreases.

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

    The suggestion comes from the losses themselves, up to the minimum of their mean over ``steps / 8``
    steps. A curve that is constant, falls linearly in ``log(lr)`` and is constant again is fitted to them by
    least squares. The suggestion is the learning rate at two thirds of the falling part, on the logarithmic
    scale. It is None unless the fit explains the losses much better than a constant: the F statistic must
    exceed 7, which losses that are only noise reach in fewer than one of a thousand tests.

    References
    ----------
    L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3. The
    exponential range and the smoothing follow fastai (J. Howard and S. Gugger).

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
        loss = np.array(self._loss)
        return LRFind(lr, loss, smoothed, _suggest(lr, loss, len(self._rates)))


def _suggest(lr: NDArray[np.float64], loss: NDArray[np.float64], steps: int) -> float | None:
    """Return the learning rate at which two thirds of the decrease of the loss are reached; see `lr_find`."""
    window = max(steps // 8, 3)
    if len(loss) < window:
        return None
    means = np.convolve(loss, np.full(window, 1.0 / window), "valid")
    n = int(np.argmin(means)) + window // 2 + 1     # the losses after it rise
    y = loss[:n] - loss[:n].mean()
    if n < _MIN_LOSSES:
        return None
    # Of the curve r[x] = clip((x - i) / (j - i), 0, 1): the sum, the sum of squares and the product with y.
    i, j = np.triu_indices(n, max(steps // 40, 2))
    length = (j - i).astype(np.float64)
    total = (length - 1.0) / 2.0 + (n - j)
    squares = (length - 1.0) * (2.0 * length - 1.0) / (6.0 * length) + (n - j)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    moments = np.concatenate([[0.0], np.cumsum(np.arange(n) * y)])
    product = ((moments[j] - moments[i + 1]) - i * (sums[j] - sums[i + 1])) / length + (sums[n] - sums[j])
    gain = np.where(product < 0.0, product**2 / (squares - total**2 / n), 0.0)
    best = int(np.argmax(gain))
    residual = max(float(y @ y - gain[best]), 0.0)
    # A ratio of variances: three parameters describe the fall.
    if gain[best] / 3.0 <= _MIN_RATIO * residual / (n - 4):
        return None
    return float(lr[round(i[best] + 2.0 / 3.0 * length[best])])
