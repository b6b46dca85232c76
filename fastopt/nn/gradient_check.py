"""Checks a model's gradients against finite differences of its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat

import numpy as np

from fastopt.nn.gradients import GradientOrder, leaves
from fastopt.nn.mlp import MLP

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastopt.nn.typing import Net, Samples

    _TrainStep = Callable[..., tuple[SupportsFloat, Sequence[Any]]]


def check_gradients(
    net: Net, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None, *, eps: float | None = None
) -> float:
    """Return the largest difference between a model's gradients and central differences of its loss.

    The loss is evaluated twice per parameter, so use small models and few samples.

    Parameters
    ----------
    net : object
        A model as for `fastopt.Trainer`. It is left unchanged. Use float64 parameters for an exact check:
        with float32 the loss is rounded, and differences of up to about 1e-2 are to be expected.
    X, y, sample_weight : array_like
        Arguments of `train_step`.
    eps : float, default 1e-6 for float64 and 1e-3 for float32
        Step of the differences.

    Returns
    -------
    float
        Maximum of ``|g - d| / max(1, |d|)`` over all parameters, where ``g`` is the gradient and
        ``d = (loss(p + eps) - loss(p - eps)) / (2 eps)`` is the difference.

    Notes
    -----
    Where a loss or an activation is not differentiable, such as relu at 0, differences do not
    approximate a gradient. Dropout uses the same mask in each evaluation.

    Examples
    --------
    >>> net = fastopt.MLP([4, 3, 2], activation="tanh", dtype="float64", seed=0)
    >>> fastopt.nn.check_gradients(net, X, y) < 1e-7
    True
    """
    args = (X, y) if sample_weight is None else (X, y, sample_weight)
    train_step = _repeatable_step(net)
    _, grads = train_step(*args)
    params = list(leaves(net.params))
    gradients = [0.0 if g is None else np.array(g) for g in leaves(GradientOrder(net, strict=True)(grads))]
    worst = 0.0
    for array, given in zip(params, gradients, strict=True):
        if array.dtype.kind != "f":
            raise TypeError(f"params: expected arrays of floats, got {array.dtype}")
        step = eps or (1e-6 if array.dtype.itemsize > 4 else 1e-3)
        gradient = np.broadcast_to(given, array.shape)
        for index in np.ndindex(array.shape):
            value = array[index]
            try:
                array[index] = value + step
                distance = float(array[index])
                above, _ = train_step(*args)
                array[index] = value - step
                distance -= float(array[index])
                below, _ = train_step(*args)
            finally:
                array[index] = value
            difference = (float(above) - float(below)) / distance
            worst = max(worst, float(abs(gradient[index] - difference) / max(1.0, abs(difference))))
    return worst


def _repeatable_step(net: Net) -> _TrainStep:
    """Return the model's `train_step`; for an MLP, one that restores dropout and running averages."""
    if not isinstance(net, MLP):
        return net.train_step

    def train_step(*args: Any) -> tuple[SupportsFloat, Sequence[Any]]:
        dropout_step = net.dropout_step
        running = [[array.copy() for array in pair] for pair in net.running]
        try:
            return net.train_step(*args)
        finally:
            net.dropout_step = dropout_step
            for pair, saved_pair in zip(net.running, running, strict=True):
                for array, saved in zip(pair, saved_pair, strict=True):
                    array[...] = saved

    return train_step
