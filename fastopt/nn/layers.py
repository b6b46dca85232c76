"""Activations, losses and initializers of :class:`fastopt.MLP`, as plain NumPy functions.

Everything works in place on preallocated buffers, so that a training step allocates nothing larger
than one column of the batch. An activation is a pair of functions:

``forward(z, a)``
    Writes the activation of ``z`` into ``a``.
``backward(z, a, delta)``
    Multiplies ``delta``, the gradient with respect to the activation, by the derivative. ``z`` and
    ``a`` are what `forward` left and are not needed afterwards: they serve as scratch space.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["ACTIVATIONS", "INITIALIZERS", "LOSSES", "Activation", "sigmoid"]

LEAKY_SLOPE = 0.01


# --- Activations -----------------------------------------------------------------------------


def sigmoid(z, out):
    """Write ``1 / (1 + exp(-z))`` into `out` (which may be `z`), without overflow.

    The exponent is bounded so that neither `exp` overflows nor its reciprocal is denormal: results
    are never smaller than the smallest normal number, and accurate to a few ULP above it.
    """
    np.negative(z, out=out)
    np.minimum(out, -math.log(4.0 * np.finfo(out.dtype).tiny), out=out)
    np.exp(out, out=out)
    out += 1.0
    return np.reciprocal(out, out=out)


def _identity(z, a):
    """Leave the pre-activation as it is: identity works in place."""


def _identity_backward(z, a, delta):
    """Multiply by a derivative of one."""


def _relu(z, a):
    np.maximum(z, 0.0, out=a)


def _relu_backward(z, a, delta):
    np.greater(a, 0.0, out=a)
    delta *= a


def _leaky_relu(z, a):
    np.multiply(z, LEAKY_SLOPE, out=a)
    np.maximum(z, a, out=a)


def _leaky_relu_backward(z, a, delta):
    np.greater(a, 0.0, out=a)
    a *= 1.0 - LEAKY_SLOPE
    a += LEAKY_SLOPE
    delta *= a


def _elu(z, a):
    np.minimum(z, 0.0, out=a)
    np.expm1(a, out=a)
    np.maximum(z, 0.0, out=z)
    a += z


def _elu_backward(z, a, delta):
    np.minimum(a, 0.0, out=a)  # exp(z) = a + 1 on the negative side
    a += 1.0
    delta *= a


def _tanh(z, a):
    np.tanh(z, out=a)


def _tanh_backward(z, a, delta):
    np.square(a, out=a)
    np.subtract(1.0, a, out=a)
    delta *= a


def _sigmoid_backward(z, a, delta):
    delta *= a
    np.subtract(1.0, a, out=a)
    delta *= a


def _silu(z, a):
    sigmoid(z, a)
    a *= z


def _silu_backward(z, a, delta):
    # s + a (1 - s) = 1 - (1 - s)(1 - a), which needs no third buffer.
    sigmoid(z, z)
    np.subtract(1.0, z, out=z)
    np.subtract(1.0, a, out=a)
    a *= z
    np.subtract(1.0, a, out=a)
    delta *= a


_GELU_LINEAR = math.sqrt(2.0 / math.pi)
_GELU_CUBIC = 0.044715


def _gelu_argument(z, out):
    """Write ``u = sqrt(2 / pi) (z + 0.044715 z^3)`` into `out`."""
    np.square(z, out=out)
    out *= _GELU_CUBIC
    out += 1.0
    out *= z
    out *= _GELU_LINEAR


def _gelu(z, a):
    _gelu_argument(z, a)
    np.tanh(a, out=a)
    a += 1.0
    a *= z
    a *= 0.5


def _gelu_backward(z, a, delta):
    # With t = tanh(u) the derivative is (1 + t)(1 + (1 - t) z u') / 2, and z u' = 3 u - 2 c z.
    _gelu_argument(z, a)
    z *= -2.0 / 3.0 * _GELU_LINEAR
    z += a
    z *= 3.0
    np.tanh(a, out=a)
    np.subtract(1.0, a, out=a)
    z *= a
    z += 1.0
    np.subtract(2.0, a, out=a)
    z *= a
    z *= 0.5
    delta *= z


@dataclass(frozen=True)
class Activation:
    """An elementwise nonlinearity.

    Attributes
    ----------
    forward, backward : callable
        See the module's docstring.
    init : {"he", "glorot"}
        The initializer that ``init="auto"`` takes for a layer followed by this activation.
    in_place : bool
        Whether `forward` may write into its input, which holds where `backward` needs only ``a``
        and `forward` reads ``z`` once. It saves a buffer and half of the memory traffic.
    """

    forward: Callable
    backward: Callable
    init: str
    in_place: bool


ACTIVATIONS = {
    "identity": Activation(_identity, _identity_backward, "glorot", in_place=True),
    "relu": Activation(_relu, _relu_backward, "he", in_place=True),
    "leaky_relu": Activation(_leaky_relu, _leaky_relu_backward, "he", in_place=False),
    "elu": Activation(_elu, _elu_backward, "he", in_place=False),
    "gelu": Activation(_gelu, _gelu_backward, "he", in_place=False),
    "silu": Activation(_silu, _silu_backward, "he", in_place=False),
    "tanh": Activation(_tanh, _tanh_backward, "glorot", in_place=True),
    "sigmoid": Activation(sigmoid, _sigmoid_backward, "glorot", in_place=True),
}


# --- Initializers ----------------------------------------------------------------------------


def _he(rng, fan_in, fan_out):
    """Normal with variance ``2 / fan_in`` (He et al. 2015)."""
    return rng.normal(0.0, math.sqrt(2.0 / fan_in), (fan_in, fan_out))


def _glorot(rng, fan_in, fan_out):
    """Uniform with variance ``2 / (fan_in + fan_out)`` (Glorot & Bengio 2010)."""
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    return rng.uniform(-limit, limit, (fan_in, fan_out))


INITIALIZERS = {"he": _he, "glorot": _glorot}


# --- Losses ----------------------------------------------------------------------------------


def _require_labels(y):
    if y.dtype.kind not in "iub":
        raise ValueError(f"y must hold integer or boolean labels for this loss, got {y.dtype}")


def _require_shape(y, shape):
    """Return `y` as `shape`; a single output may come as ``(n,)`` or as ``(n, 1)``."""
    if y.shape == shape or (shape[1] == 1 and y.shape == shape[:1]):
        return y.reshape(shape)
    single = f" or {shape[:1]}" if shape[1] == 1 else ""
    raise ValueError(f"y must have the shape {shape}{single}, got {y.shape}")


class CrossEntropy:
    """Softmax cross-entropy of integer class labels: ``mean(logsumexp(z) - z[y])``."""

    @staticmethod
    def targets(y, shape, dtype):
        """Return the labels, shape ``(n,)``, once they are known to be classes of the net."""
        _require_labels(y)
        if y.ndim != 1:
            raise ValueError(f"y must hold one label a row, shape ({shape[0]},), got {y.shape}")
        if y.min() < 0 or y.max() >= shape[1]:
            raise ValueError(
                f"y must hold labels from 0 to {shape[1] - 1} (the net has {shape[1]} outputs), "
                f"got {y.min()} to {y.max()}"
            )
        return y.astype(np.intp, copy=False)

    @staticmethod
    def value(z, y, delta):
        """Return the loss; leave in `delta` its gradient with respect to the logits `z`."""
        n = len(y)
        rows = np.arange(n)
        z -= z.max(axis=1, keepdims=True)
        np.exp(z, out=delta)
        total = delta.sum(axis=1, keepdims=True)
        loss = float(np.log(total).sum() - z[rows, y].sum()) / n
        total *= n
        delta /= total
        delta[rows, y] -= 1.0 / n
        return loss

    @staticmethod
    def probabilities(z):
        """Return the softmax of the logits, shape ``(n, classes)``."""
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return p

    @staticmethod
    def predictions(z):
        """Return the most probable class of each row, int64, shape ``(n,)``."""
        return z.argmax(axis=1).astype(np.int64, copy=False)


class BinaryCrossEntropy:
    """Sigmoid cross-entropy of 0/1 labels, one or many a row.

    With ``s = (1 - 2 y) z`` the loss is ``mean(log(1 + exp(s)))``, over rows and outputs alike.
    """

    @staticmethod
    def targets(y, shape, dtype):
        """Return the signs ``1 - 2 y``, shape ``(n, outputs)``."""
        _require_labels(y)
        y = _require_shape(y, shape)
        if y.min() < 0 or y.max() > 1:
            raise ValueError(f"y must hold labels 0 and 1, got {y.min()} to {y.max()}")
        return np.subtract(1.0, np.multiply(y, 2.0, dtype=dtype))

    @staticmethod
    def value(z, sign, delta):
        """Return the loss; leave in `delta` its gradient with respect to the logits `z`."""
        z *= sign
        sigmoid(z, delta)
        delta *= sign
        delta /= z.size
        np.logaddexp(0.0, z, out=z)
        return float(z.sum()) / z.size

    @staticmethod
    def probabilities(z):
        """Return ``(n, outputs)``; for a single output ``(n, 2)``, the columns of 0 and of 1."""
        if z.shape[1] == 1:
            z = np.concatenate([-z, z], axis=1)
        return sigmoid(z, np.empty_like(z))

    @staticmethod
    def predictions(z):
        """Return 0/1 labels, int64, shape ``(n, outputs)``, or ``(n,)`` for a single output."""
        labels = (z > 0).astype(np.int64)
        return labels[:, 0] if z.shape[1] == 1 else labels


class MeanSquaredError:
    """Mean squared error ``mean((z - y)^2)``, over rows and outputs alike."""

    @staticmethod
    def targets(y, shape, dtype):
        """Return the values in the net's dtype, shape ``(n, outputs)``."""
        if y.dtype.kind not in "iubf":
            raise ValueError(f"y must hold real numbers, got {y.dtype}")
        y = _require_shape(y, shape).astype(dtype, copy=False)
        if not np.isfinite(y).all():
            raise ValueError(f"y must be finite in {dtype}, got NaN or Inf")
        return y

    @staticmethod
    def value(z, y, delta):
        """Return the loss; leave in `delta` its gradient with respect to the outputs `z`."""
        np.subtract(z, y, out=delta)
        loss = float(np.vdot(delta, delta)) / delta.size
        delta *= 2.0 / delta.size
        return loss

    @staticmethod
    def probabilities(z):
        """Refuse: values are not probabilities."""
        raise ValueError("predict_proba needs a classifier, but the loss is 'mse'")

    @staticmethod
    def predictions(z):
        """Return a copy of the outputs, shape ``(n, outputs)``, or ``(n,)`` for a single output."""
        return z[:, 0].copy() if z.shape[1] == 1 else z.copy()


LOSSES = {
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy": BinaryCrossEntropy,
    "mse": MeanSquaredError,
}
