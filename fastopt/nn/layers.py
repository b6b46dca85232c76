"""The activations, normalizations, initializers and losses of :class:`fastopt.MLP`.

The compiled module `layers.pyx` implements them, apart from the initializers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastopt._core.typing import AnyArray, Array
    from fastopt.nn.typing import Activation, Initializer, LossName, Norm

#: The initializer that ``init="auto"`` selects for a layer before each activation.
ACTIVATIONS: dict[Activation, Initializer] = {
    "identity": "glorot", "relu": "he", "leaky_relu": "he", "elu": "he", "gelu": "he", "gelu_tanh": "he",
    "silu": "he", "tanh": "glorot", "sigmoid": "glorot",
}

NORMS: tuple[Norm, ...] = (None, "batch", "layer")


def _he(rng: np.random.Generator, fan_in: int, fan_out: int) -> NDArray[np.float64]:
    """Normal with variance ``2 / fan_in`` (He et al. 2015)."""
    return rng.normal(0.0, math.sqrt(2.0 / fan_in), (fan_in, fan_out))


def _glorot(rng: np.random.Generator, fan_in: int, fan_out: int) -> NDArray[np.float64]:
    """Uniform with variance ``2 / (fan_in + fan_out)`` (Glorot & Bengio 2010)."""
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    return rng.uniform(-limit, limit, (fan_in, fan_out))


INITIALIZERS: dict[Initializer, Callable[[np.random.Generator, int, int], NDArray[np.float64]]] = {
    "he": _he, "glorot": _glorot
}


class LossSpec(NamedTuple):
    """A loss of the outputs ``z``, which have the shape ``(n, outputs)``."""

    kernel: str  # its name in the compiled module
    factor: float  # of the kernel's values
    targets: Callable[[AnyArray, tuple[int, int], np.dtype[Any]], AnyArray]  # checks targets for `z`
    predictions: Callable[[Array], AnyArray]
    probabilities: Callable[[Array], Array] | None = None


def _class_targets(y: AnyArray, shape: tuple[int, int], dtype: np.dtype[Any]) -> AnyArray:
    if y.ndim != 1:
        remedy = "; convert one-hot targets with y.argmax(axis=1)" if y.shape == shape else ""
        raise ValueError(
            f"y: expected one label per sample, shape ({shape[0]},), got {y.dtype} of shape {y.shape}{remedy}"
        )
    _check_labels(y)
    if y.min() < 0 or y.max() >= shape[1]:
        raise ValueError(
            f"y: expected labels from 0 to {shape[1] - 1}, as the model has {shape[1]} outputs, "
            f"got {y.min()} to {y.max()}"
        )
    return np.ascontiguousarray(y, np.int64)


def _binary_targets(y: AnyArray, shape: tuple[int, int], dtype: np.dtype[Any]) -> AnyArray:
    _check_labels(y)
    y = _check_shape(y, shape)
    if y.min() < 0 or y.max() > 1:
        raise ValueError(f"y: expected labels 0 and 1, got {y.min()} to {y.max()}")
    return np.ascontiguousarray(y, dtype)


def _real_targets(y: AnyArray, shape: tuple[int, int], dtype: np.dtype[Any]) -> AnyArray:
    if y.dtype.kind not in "iubf":
        raise ValueError(f"y: expected real numbers, got {y.dtype}")
    y = np.ascontiguousarray(_check_shape(y, shape), dtype)
    if not np.isfinite(y).all():
        raise ValueError(f"y: expected finite numbers in {dtype}, got NaN or Inf")
    return y


def _counts(y: AnyArray, shape: tuple[int, int], dtype: np.dtype[Any]) -> AnyArray:
    y = _real_targets(y, shape, dtype)
    if y.min() < 0:
        raise ValueError(f"y: expected values of at least 0 for the loss 'poisson', got {y.min()}")
    return y


def _check_labels(y: AnyArray) -> None:
    if y.dtype.kind not in "iub":
        remedy = "; convert class labels with y.astype(int)" if y.dtype.kind == "f" else ""
        raise ValueError(f"y: expected integer or boolean labels for this loss, got {y.dtype}{remedy}")


def _check_shape(y: AnyArray, shape: tuple[int, int]) -> AnyArray:
    """Return `y` in `shape`; targets of a single output may also have the shape ``(n,)``."""
    if y.shape == shape or (shape[1] == 1 and y.shape == shape[:1]):
        return y.reshape(shape)
    single = f" or {shape[:1]}" if shape[1] == 1 else ""
    remedy = ""
    if y.dtype.kind == "f" and y.shape == shape[:1]:
        remedy = "; floating-point targets are values: convert class labels with y.astype(int)"
    raise ValueError(f"y: expected the shape {shape}{single}, got {y.dtype} of shape {y.shape}{remedy}")


def _softmax(z: Array) -> Array:
    p: Array = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p


def _sigmoid(z: Array) -> Array:
    """Return the sigmoid, ``(n, outputs)``; for a single output ``(n, 2)``, the columns of 0 and of 1."""
    if z.shape[1] == 1:
        z = np.concatenate([-z, z], axis=1)
    with np.errstate(over="ignore"):  # exp overflows where the probability is 0
        return 1 / (1 + np.exp(-z))


def _largest(z: Array) -> AnyArray:
    labels: AnyArray = z.argmax(axis=1)
    return labels.astype(np.int64, copy=False)


def _positive(z: Array) -> AnyArray:
    return _squeeze((z > 0).astype(np.int64))


def _values(z: Array) -> AnyArray:
    return _squeeze(z).copy()


def _exp(z: Array) -> AnyArray:
    return _squeeze(np.exp(z))


def _squeeze(z: AnyArray) -> AnyArray:
    return z[:, 0] if z.shape[1] == 1 else z


#: The formulas are in the docstring of `fastopt.MLP`.
LOSSES: dict[LossName, LossSpec] = {
    "cross_entropy": LossSpec("cross_entropy", 1.0, _class_targets, _largest, _softmax),
    "binary_cross_entropy": LossSpec("binary_cross_entropy", 1.0, _binary_targets, _positive, _sigmoid),
    "mse": LossSpec("squared_error", 2.0, _real_targets, _values),
    "squared_error": LossSpec("squared_error", 1.0, _real_targets, _values),
    "huber": LossSpec("huber", 1.0, _real_targets, _values),  # Huber 1964
    "quantile": LossSpec("quantile", 1.0, _real_targets, _values),  # Koenker & Bassett 1978
    "poisson": LossSpec("poisson", 1.0, _counts, _exp),  # negative log-likelihood, up to a constant
}


def loss_for(y: AnyArray, outputs: int) -> LossName:
    """Return the name of the loss that ``loss="auto"`` selects for the targets `y`."""
    if y.dtype.kind == "f":
        return "mse"
    if y.dtype.kind not in "iub":
        raise ValueError(f"y: expected integer or boolean labels or real values, got {y.dtype}")
    return "binary_cross_entropy" if y.ndim == 2 or outputs == 1 else "cross_entropy"
