"""The activations, normalizations, initializers and losses of :class:`fastopt.MLP`.

The compiled module `layers.pyx` implements them, apart from the initializers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastopt._core.typing import AnyArray, Array
    from fastopt.nn.typing import Activation, Initializer, LossName, Norm

__all__ = ["ACTIVATIONS", "INITIALIZERS", "LOSSES", "NORMS", "loss_for"]

#: The initializer that ``init="auto"`` selects for a layer before each activation.
ACTIVATIONS: dict[Activation, Initializer] = {
    "identity": "glorot",
    "relu": "he",
    "leaky_relu": "he",
    "elu": "he",
    "gelu": "he",
    "gelu_tanh": "he",
    "silu": "he",
    "tanh": "glorot",
    "sigmoid": "glorot",
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


class CrossEntropy:
    """Softmax cross-entropy of integer class labels, ``logsumexp(z) - z[y]``."""

    kernel = "cross_entropy"
    factor: float = 1.0

    @staticmethod
    def targets(y: AnyArray, shape: tuple[int, int], dtype: np.dtype[Any]) -> AnyArray:
        """Return checked labels, int64 of shape ``(n,)``."""
        _check_labels(y)
        if y.ndim != 1:
            raise ValueError(f"y: expected one label per sample, shape ({shape[0]},), got {y.shape}")
        if y.min() < 0 or y.max() >= shape[1]:
            raise ValueError(
                f"y: expected labels from 0 to {shape[1] - 1}, as the model has {shape[1]} outputs, "
                f"got {y.min()} to {y.max()}"
            )
        return np.ascontiguousarray(y, np.int64)

    @staticmethod
    def probabilities(z: Array) -> Array:
        """Return the softmax of the logits, shape ``(n, classes)``."""
        p: Array = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return p

    @staticmethod
    def predictions(z: Array) -> AnyArray:
        """Return the most probable class of each sample, int64, shape ``(n,)``."""
        labels: AnyArray = z.argmax(axis=1)
        return labels.astype(np.int64, copy=False)


class BinaryCrossEntropy:
    """Sigmoid cross-entropy of 0/1 labels, one or many per sample: ``log(1 + exp(z)) - y z``."""

    kernel = "binary_cross_entropy"
    factor: float = 1.0

    @staticmethod
    def targets(y: AnyArray, shape: tuple[int, int], dtype: np.dtype[Any]) -> AnyArray:
        """Return checked labels in the dtype of the model, shape ``(n, outputs)``."""
        _check_labels(y)
        y = _check_shape(y, shape)
        if y.min() < 0 or y.max() > 1:
            raise ValueError(f"y: expected labels 0 and 1, got {y.min()} to {y.max()}")
        return np.ascontiguousarray(y, dtype)

    @staticmethod
    def probabilities(z: Array) -> Array:
        """Return the sigmoid, ``(n, outputs)``; for a single output ``(n, 2)``, the columns of 0 and of 1."""
        if z.shape[1] == 1:
            z = np.concatenate([-z, z], axis=1)
        with np.errstate(over="ignore"):  # exp overflows where the probability is 0
            return 1 / (1 + np.exp(-z))

    @staticmethod
    def predictions(z: Array) -> AnyArray:
        """Return 0/1 labels, int64, shape ``(n, outputs)``, or ``(n,)`` for a single output."""
        labels = (z > 0).astype(np.int64)
        return labels[:, 0] if z.shape[1] == 1 else labels


class SquaredError:
    """Half the squared error, ``(z - y)^2 / 2``, as in scikit-learn."""

    kernel = "squared_error"
    factor: float = 1.0

    @staticmethod
    def targets(y: AnyArray, shape: tuple[int, int], dtype: np.dtype[Any]) -> AnyArray:
        """Return checked values in the dtype of the model, shape ``(n, outputs)``."""
        if y.dtype.kind not in "iubf":
            raise ValueError(f"y: expected real numbers, got {y.dtype}")
        y = np.ascontiguousarray(_check_shape(y, shape), dtype)
        if not np.isfinite(y).all():
            raise ValueError(f"y: expected finite numbers in {dtype}, got NaN or Inf")
        return y

    @staticmethod
    def probabilities(z: Array) -> Array:
        """Raise, because a regression has no probabilities."""
        raise ValueError("predict_proba needs a classifier, but the loss is that of a regression")

    @staticmethod
    def predictions(z: Array) -> AnyArray:
        """Return a copy of the outputs, shape ``(n, outputs)``, or ``(n,)`` for a single output."""
        return z[:, 0].copy() if z.shape[1] == 1 else z.copy()


class MeanSquaredError(SquaredError):
    """Squared error, ``(z - y)^2``."""

    factor: float = 2.0


class Huber(SquaredError):
    """``e^2 / 2`` up to an error e of ``delta``, ``delta (|e| - delta / 2)`` beyond (Huber 1964)."""

    kernel = "huber"


class Quantile(SquaredError):
    """``q (y - z)`` below the target, ``(1 - q)(z - y)`` above it (Koenker & Bassett 1978)."""

    kernel = "quantile"


class Poisson(SquaredError):
    """``exp(z) - y z``: negative log-likelihood of counts whose mean is ``exp(z)``."""

    kernel = "poisson"

    @staticmethod
    def targets(y: AnyArray, shape: tuple[int, int], dtype: np.dtype[Any]) -> AnyArray:
        """Return checked counts in the dtype of the model, shape ``(n, outputs)``."""
        y = SquaredError.targets(y, shape, dtype)
        if y.min() < 0:
            raise ValueError(f"y: expected values of at least 0 for the loss 'poisson', got {y.min()}")
        return y

    @staticmethod
    def predictions(z: Array) -> AnyArray:
        """Return the expected counts, shape ``(n, outputs)``, or ``(n,)`` for a single output."""
        return SquaredError.predictions(np.exp(z))


LOSSES: dict[LossName, type[CrossEntropy | BinaryCrossEntropy | SquaredError]] = {
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "mse": MeanSquaredError,
    "squared_error": SquaredError,
    "huber": Huber,
    "quantile": Quantile,
    "poisson": Poisson,
}


def loss_for(y: AnyArray, outputs: int) -> LossName:
    """Return the name of the loss that ``loss="auto"`` selects for the targets `y`."""
    if y.dtype.kind == "f":
        return "mse"
    if y.dtype.kind not in "iub":
        raise ValueError(f"y: expected integer or boolean labels or real values, got {y.dtype}")
    return "binary_cross_entropy" if y.ndim == 2 or outputs == 1 else "cross_entropy"


def _check_labels(y: AnyArray) -> None:
    if y.dtype.kind not in "iub":
        raise ValueError(f"y: expected integer or boolean labels for this loss, got {y.dtype}")


def _check_shape(y: AnyArray, shape: tuple[int, int]) -> AnyArray:
    """Return `y` in `shape`; targets of a single output may also have the shape ``(n,)``."""
    if y.shape == shape or (shape[1] == 1 and y.shape == shape[:1]):
        return y.reshape(shape)
    single = f" or {shape[:1]}" if shape[1] == 1 else ""
    raise ValueError(f"y: expected the shape {shape}{single}, got {y.shape}")
