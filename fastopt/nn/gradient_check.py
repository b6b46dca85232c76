"""Checks a net's gradients against differences of its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from fastopt.nn.mlp import MLP

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastopt._core.typing import Array
    from fastopt.nn.typing import Net, Samples

    _Step = Callable[..., tuple[SupportsFloat, Sequence[Any]]]

__all__ = ["check_gradients"]


def check_gradients(
    net: Net, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None, *, eps: float = 1e-6
) -> float:
    """Return how far the gradients of a net are from central differences of its loss.

    Every parameter is moved by ``eps`` up and down, so this is for small nets and few rows.

    Parameters
    ----------
    net : object
        `fastopt.MLP`, or anything with ``params``, a list of layers, each a list of arrays, and
        ``train_step(X, y) -> (loss, grads)``; float64, or the differences are too coarse. It is left
        as it was.
    X, y, sample_weight : array_like
        As `train_step` takes them.
    eps : float, default 1e-6

    Returns
    -------
    float
        Largest ``|g - d| / max(1, |d|)`` over all parameters, of the gradient g and the difference
        ``d = (loss(p + eps) - loss(p - eps)) / (2 eps)``.

    Raises
    ------
    TypeError
        If a parameter is not float64.

    Notes
    -----
    Where a loss or an activation has a kink, such as relu at 0, differences across it are no
    gradients. Dropout is drawn the same in each evaluation.

    Examples
    --------
    >>> net = fastopt.MLP([4, 3, 2], activation="tanh", dtype="float64", seed=0)
    >>> fastopt.nn.check_gradients(net, X, y) < 1e-7
    True
    """
    for i, layer in enumerate(net.params):
        for j, array in enumerate(layer):
            if array.dtype != np.float64:
                raise TypeError(f"params[{i}][{j}]: expected float64, got {array.dtype}")
    args = (X, y) if sample_weight is None else (X, y, sample_weight)
    step = _repeatable(net)
    _, grads = step(*args)
    if getattr(net, "grads_reversed", True):
        grads = grads[::-1]
    grads = [[np.array(array) for array in layer] for layer in grads]
    worst = 0.0
    for layer, layer_grads in zip(net.params, grads, strict=True):
        for array, gradient in zip(layer, layer_grads, strict=True):
            for place in np.ndindex(array.shape):
                difference = _difference(step, args, array, place, eps)
                distance = abs(gradient[place] - difference) / max(1.0, abs(difference))
                worst = max(worst, float(distance))
    return worst


def _difference(
    step: _Step, args: tuple[Any, ...], array: Array, place: tuple[int, ...], eps: float
) -> float:
    value = array[place]
    try:
        array[place] = value + eps
        above, _ = step(*args)
        array[place] = value - eps
        below, _ = step(*args)
    finally:
        array[place] = value
    return (float(above) - float(below)) / (2.0 * eps)


def _repeatable(net: Net) -> _Step:
    """Return the net's `train_step`, without what one step leaves behind for the next."""
    if not isinstance(net, MLP):
        return net.train_step

    def step(*args: Any) -> tuple[SupportsFloat, Sequence[Any]]:
        drawn = net._pass.step
        running = [[array.copy() for array in pair] for pair in net.running]
        try:
            return net.train_step(*args)
        finally:
            net._pass.step = drawn
            for pair, saved in zip(net.running, running, strict=True):
                for array, old in zip(pair, saved, strict=True):
                    array[...] = old

    return step
