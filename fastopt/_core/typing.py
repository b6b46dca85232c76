"""Types that annotations share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastopt._core.rows import Rows

T_co = TypeVar("T_co", covariant=True)


class SequenceNotStr(Protocol[T_co]):
    """A list or a tuple: any sequence except str, whose elements are str again."""

    def __getitem__(self, index: int, /) -> T_co: ...
    def __contains__(self, value: object, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[T_co]: ...
    def __reversed__(self) -> Iterator[T_co]: ...
    @property
    def count(self) -> object: ...  # dicts and arrays do not have it


Array: TypeAlias = NDArray[np.floating[Any]]
AnyArray: TypeAlias = NDArray[Any]

# An array, or arrays in nested lists, tuples and dicts; gradients may also be `Rows` or None.
Nesting: TypeAlias = "Array | SequenceNotStr[Nesting] | Mapping[Any, Nesting]"
Gradients: TypeAlias = "Array | Rows | SequenceNotStr[Gradients] | Mapping[Any, Gradients] | None"


class NestingInGroups(Protocol):
    """Parameters in groups that keep their nesting, see `fastopt.param_groups`."""

    params: Any
    groups: tuple[dict[str, Any], ...]
    group_of: tuple[int, ...]


# Parameters of an optimizer: a nesting, a list of groups, or the result of `fastopt.param_groups`; also an
# iterator over one of the first two.
Params: TypeAlias = (
    "Array | SequenceNotStr[Nesting | Mapping[str, Any]] | Mapping[Any, Nesting] | NestingInGroups"
    " | Iterator[Nesting | Mapping[str, Any]] | ValuesView[Nesting]"
)
# A nesting with indices in place of the arrays, see `pytree`.
TreeDef: TypeAlias = "int | tuple[TreeDef, ...] | dict[Any, TreeDef]"

Number: TypeAlias = float | np.floating[Any] | np.integer[Any]
# The value for a number of finished steps.
Schedule: TypeAlias = Callable[[int], float]
FloatOrSchedule: TypeAlias = Number | Schedule
Pair: TypeAlias = tuple[FloatOrSchedule, FloatOrSchedule]
Triple: TypeAlias = tuple[FloatOrSchedule, FloatOrSchedule, FloatOrSchedule]

Convention: TypeAlias = Literal["torch", "article", "keras", "sklearn", "optax"]
Adjustment: TypeAlias = Literal["original", "match_rms_adamw"]
Sparse: TypeAlias = Literal["lazy", "exact", "dense"]
Rounding: TypeAlias = Literal["stochastic", "nearest"]
MasterWeights: TypeAlias = Literal["split"]
StateDtype: TypeAlias = Literal["float32", "bfloat16", "int8"]


class Partition(Protocol):
    """The part of all parameters that one of several processes updates.

    Attributes
    ----------
    origins : list of int
        Index of the first element of each array in its parameter.
    sizes : list of int
        Elements of each parameter.
    """

    origins: list[int]
    sizes: list[int]

    def gather_sums(self, sums: Array, counts: list[int]) -> tuple[Array, list[int]]:
        """Return the sums over all blocks of gradients, and the number of blocks of each parameter.

        `sums` and `counts` are those of this part. The blocks are in the order of the parameters.
        """
        ...

    def all(self, value: bool) -> bool:
        """Whether the value is true for all parts."""
        ...


# Class attributes of a rule, see `Rule`.
States: TypeAlias = Mapping[str, tuple[str, ...]]
Conventions: TypeAlias = Mapping[str, Mapping[str, Any]]
Bounds: TypeAlias = Sequence[Any]
Ranges: TypeAlias = dict[str, Bounds]
Choices: TypeAlias = Mapping[str, tuple[object, ...]]
ScalarState: TypeAlias = dict[str, float]
SparseModes: TypeAlias = tuple[Sparse, ...]


class Options(TypedDict, total=False):
    """Keyword arguments of all optimizers, in addition to the hyperparameters."""

    ema: FloatOrSchedule | None
    lookahead: tuple[int, Number] | None
    accumulate: int
    centralize: bool
    unit_clip: Number | None
    independent_weight_decay: FloatOrSchedule
    skip_nonfinite: bool
    sparse: Sparse | None
    rounding: Rounding
    seed: int
    state_dtype: StateDtype
    block_size: int
    master_weights: MasterWeights | None


class StepOptions(TypedDict, total=False):
    """Keyword arguments of `step` that change the gradients."""

    max_norm: Number | None
    clip_value: Number | None
    grad_scale: Number | None
