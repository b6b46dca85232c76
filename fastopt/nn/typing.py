"""Types of models, data and callbacks, for type checkers.

Nothing here is needed at run time: a custom model or optimizer only has to have these methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, SupportsFloat, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastopt._core.typing import Array, SequenceNotStr


class Net(Protocol):
    """A model that `fastopt.Trainer` can train: `fastopt.MLP`, or a custom one.

    Optional: ``grads_reversed``, false if gradients come in the order of `params`;
    ``evaluate(X, y) -> float``; ``state_dict`` and ``load_state_dict``; and a third argument of
    `train_step`, the sample weights.
    """

    @property
    def params(self) -> SequenceNotStr[SequenceNotStr[Array]]:
        """Layers, each a list of arrays, which an optimizer updates in place."""

    def train_step(self, X: Any, y: Any, /) -> tuple[SupportsFloat, Sequence[Any]]:
        """Return the loss of a batch and its gradients, nested as `params`."""

    def predict(self, X: Any, /) -> ArrayLike:
        """Return the label or the values of each sample."""


class Stepper(Protocol):
    """A fastopt optimizer, or any object with ``step(grads)``."""

    @property
    def step(self) -> Callable[..., object]:
        """Called with the gradients and, if the trainer has them, `max_norm` and `clip_value`."""


class SparseMatrix(Protocol):
    """A sparse matrix or array of SciPy."""

    def tocsr(self) -> Any: ...


class LRFindResult(Protocol):
    """The attributes of `fastopt.lr_finder.LRFind`."""

    @property
    def lr(self) -> NDArray[np.float64]: ...
    @property
    def loss(self) -> NDArray[np.float64]: ...
    @property
    def smoothed(self) -> NDArray[np.float64]: ...
    @property
    def suggestion(self) -> float | None: ...


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
# Whether a smaller or a larger value of a metric is better.
Mode: TypeAlias = Literal["auto", "min", "max"]

# The arguments `header` and `task` of the readers of data sets.
Header: TypeAlias = bool | Literal["auto"]
Task: TypeAlias = Literal["auto", "classification", "regression"]

Layers: TypeAlias = list[list[Array]]
Samples: TypeAlias = ArrayLike | SparseMatrix
Validation: TypeAlias = tuple[Samples, ArrayLike] | tuple[Samples, ArrayLike, ArrayLike | None]
ClassWeight: TypeAlias = Mapping[Any, float] | Literal["balanced"]
# The metrics of an epoch or of a batch, by name.
Logs: TypeAlias = dict[str, float]
