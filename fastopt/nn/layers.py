"""The activations, normalizations and initializers of the layers of :class:`fastopt.MLP`.

The compiled module `layers.pyx` implements the activations and normalizations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastopt.nn.typing import Activation, Initializer, Norm

__all__ = ["ACTIVATIONS", "INITIALIZERS", "NORMS"]

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
