"""What nets and the trainer take, for type checkers.

Nothing here is needed to run: a net or an optimizer of one's own just has these methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, SupportsFloat, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from fastopt._core.typing import Array, SequenceNotStr

__all__ = [
    "Activation", "ClassWeight", "FloatType", "Initializer", "Layers", "Logs", "Loss", "LossName", "Mode",
    "Net", "Norm", "Samples", "SparseRows", "Stepper", "Validation",
]


class Net(Protocol):
    """What `fastopt.Trainer` trains: `fastopt.MLP`, or a net of one's own.

    It may have more: ``grads_reversed``, false where gradients come in the order of `params`;
    ``evaluate(X, y) -> float``; ``state_dict`` and ``load_state_dict``; and a third argument of `train_step`,
    the weights of the rows.
    """

    @property
    def params(self) -> SequenceNotStr[SequenceNotStr[Array]]:
        """Layers, each a list of arrays, which an optimizer updates in place."""
        ...

    def train_step(self, X: Any, y: Any, /) -> tuple[SupportsFloat, Sequence[Any]]:
        """Return the loss of a batch and its gradients, nested as `params`."""
        ...

    def predict(self, X: Any, /) -> ArrayLike:
        """Return a label or the values of each row."""
        ...


class Stepper(Protocol):
    """A fastopt optimizer, or anything with ``step(grads)``."""

    @property
    def step(self) -> Callable[..., object]:
        """Called with the gradients, and with `max_norm` and `clip_value` where the trainer has them."""
        ...


class SparseRows(Protocol):
    """A sparse matrix or array of SciPy's."""

    def tocsr(self) -> Any:
        """Return it in CSR format."""
        ...


Activation: TypeAlias = Literal[
    "relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "logistic", "identity"
]
LossName: TypeAlias = Literal[
    "cross_entropy", "binary_cross_entropy", "mse", "squared_error", "huber", "quantile", "poisson"
]
Loss: TypeAlias = Literal["auto"] | LossName
Initializer: TypeAlias = Literal["he", "glorot"]
Norm: TypeAlias = Literal["batch", "layer"] | None
FloatType: TypeAlias = (
    Literal["float32", "float64"] | type[np.float32] | type[np.float64] | np.dtype[np.floating[Any]]
)
# Which direction of a number is better.
Mode: TypeAlias = Literal["auto", "min", "max"]

Layers: TypeAlias = list[list[Array]]
Samples: TypeAlias = ArrayLike | SparseRows
Validation: TypeAlias = tuple[Samples, ArrayLike] | tuple[Samples, ArrayLike, ArrayLike | None]
ClassWeight: TypeAlias = Mapping[Any, float] | Literal["balanced"]
# The numbers of an epoch or of a batch, by name.
Logs: TypeAlias = dict[str, float]
