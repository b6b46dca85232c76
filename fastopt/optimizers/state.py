"""State of the parameters: arrays, step counts and scalars; and the buffers of options."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from fastopt._core.arena import alloc_views
from fastopt._core.encoded import Encoded
from fastopt._core.formats import BFLOAT16, FLOAT32, computing_dtype, decode, join_split
from fastopt._core.step_table import NEW_COPIES, NEW_STATE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TypeAlias

    from numpy.typing import ArrayLike, NDArray

    from fastopt._core.arena import View
    from fastopt._core.step_table import StepCounter
    from fastopt._core.typing import AnyArray, Array, ScalarState
    from fastopt.optimizers.hyperparameters import Hyperparameters
    from fastopt.optimizers.options.storage import Storage
    from fastopt.optimizers.rule import Rule

    Stored: TypeAlias = "Array | Encoded"


LOW_BITS = "low_bits"   # state array with the low 16 bits of a parameter of bfloat16


class Scalars:
    """Scalars that a rule carries from step to step, before and after the coming step.

    Which of the two hold follows from the number of steps, so an interrupted step leaves no trace.

    Parameters
    ----------
    values : dict of float
    counter : StepCounter, optional
        If the scalars are shared by all parameters, the counter of the optimizer; else the step counts of
        the parameters apply.
    """

    def __init__(self, values: ScalarState, counter: StepCounter | None = None) -> None:
        self.before = self.after = values
        self.step = 0
        self.counter = counter

    def current(self, count: int) -> ScalarState:
        """Values after `count` steps."""
        return self.after if count >= self.step else self.before

    def advance(self, step: int, after: ScalarState) -> None:
        """Set the values that hold once `step` steps have been taken."""
        self.before = self.current(step - 1)
        self.step = step
        self.after = after


class State(Mapping[str, "Array"]):
    """State arrays of one parameter by name. An assigned value is copied into the array.

    An array that is stored with fewer bits is read as a read-only float32 copy.

    Attributes
    ----------
    stored : dict
        The arrays as they are stored.
    """

    scalars_cell: Scalars

    def __init__(
        self, stored: Mapping[str, Stored], counts: NDArray[np.int64], flags: NDArray[np.uint8], index: int
    ) -> None:
        self.stored, self._counts, self._flags, self._index = stored, counts, flags, index

    @property
    def steps(self) -> int:
        """Number of steps that the parameter has taken."""
        return int(self._counts[self._index])

    @property
    def is_new(self) -> bool:
        """Whether the arrays have their initial values."""
        return bool(self._flags[self._index] & NEW_STATE)

    @property
    def scalars(self) -> ScalarState:
        """Scalars that the update rule carries from step to step."""
        counter = self.scalars_cell.counter
        return self.scalars_cell.current(self.steps if counter is None else counter.steps)

    def __getitem__(self, name: str) -> Array:
        array = self.stored[name]
        return array.read() if isinstance(array, Encoded) else array

    def __setitem__(self, name: str, value: ArrayLike) -> None:
        if name not in self.stored:
            raise ValueError(f"{name}: unknown state array, expected one of {', '.join(self.stored)}")
        array, value = self.stored[name], np.asarray(value)
        if value.shape != array.shape:
            raise ValueError(f"{name}: expected shape {array.shape}, got {value.shape}")
        assign(array, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __repr__(self) -> str:
        return repr(dict(self))

    def kernel_arrays(self) -> list[Stored]:
        """The arrays of the update rule as they are stored."""
        arrays = dict(self.stored)
        arrays.pop(LOW_BITS, None)
        return list(arrays.values())

    def low_bits(self) -> AnyArray | None:
        """The low 16 bits of a parameter of bfloat16, if the state contains them."""
        array: Any = self.stored.get(LOW_BITS)
        return cast("AnyArray | None", array)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.stored.values())


class StateLayout:
    """Shapes and dtypes of the arrays that the state of a parameter consists of.

    Parameters of the same shape, dtype and kernel may have it in common.

    Attributes
    ----------
    shapes : dict of tuple
        Shape of each state array of the rule.
    encodings : dict of str
        Encoding of each of them; "" for those that are not `Encoded`.
    views : dict of list
        What `alloc_views` has to allocate for each state array.
    has_noise : bool
        Whether a step rounds the parameter or its state stochastically.
    """

    def __init__(self, rule: type[Rule], kernel: str, array: Array, storage: Storage) -> None:
        self.storage, self.shape = storage, array.shape
        self.dtype = computing_dtype(array.dtype)
        self.shapes = shapes = rule.state_shapes(kernel, array)
        self.encodings = dict.fromkeys(shapes, "")
        if storage.state_dtype != "float32" and array.size:
            kinds = rule.state_kinds(kernel)
            self.encodings = {n: storage.encoding(kinds.get(n), array.size) for n in shapes}
        # State of the shape of its parameter also has its memory layout. `compute_update` works in C order.
        self.views: dict[str, list[View]] = {}
        for name, shape in shapes.items():
            if encoding := self.encodings[name]:
                is_bf16 = encoding == "bfloat16"
                n_scales = 0 if is_bf16 else -(-array.size // storage.block_size)
                dtype = np.dtype(np.uint16 if is_bf16 else np.uint8)
                self.views[name] = [((array.size,), dtype), ((n_scales,), FLOAT32)]
            else:
                is_like = shape == array.shape and kernel not in rule.PRECOMPUTED
                self.views[name] = [(None if is_like else shape, self.dtype)]
        if has_low_bits(array, storage):
            self.views[LOW_BITS] = [(None, np.dtype(np.uint16))]
        self.has_noise = any(self.encodings.values()) or (
            array.itemsize == 2 and LOW_BITS not in self.views and not storage.to_nearest
        )

    def make(self, name: str, param: Array, views: Iterator[AnyArray]) -> Stored:
        """Return a state array of a parameter, made of the next of the views that were allocated."""
        array, encoding = next(views), self.encodings.get(name)
        if not encoding:
            return array
        return Encoded(encoding, array, next(views), self.storage.block_size, param)


def state_layouts(
    rule: type[Rule], kernels: Sequence[str], arrays: Sequence[Array], storage: Storage
) -> list[StateLayout]:
    """Return the layout of the state of each parameter."""
    known: dict[object, StateLayout] = {}
    result = []
    for kernel, array in zip(kernels, arrays, strict=True):
        key = kernel, array.dtype, array.shape
        if key not in known:
            known[key] = StateLayout(rule, kernel, array, storage)
        result.append(known[key])
    return result


class StateArrays(NamedTuple):
    """Everything that an optimizer keeps for its parameters.

    Attributes
    ----------
    states : tuple of State
    buffers : dict of str to list of ndarray
        Buffers of options, by name.
    counts : ndarray of int64
        Number of steps that each parameter has taken.
    flags : ndarray of uint8
        Sum of `NEW_STATE` and `NEW_COPIES`, for each parameter.
    """

    states: tuple[State, ...]
    buffers: dict[str, list[Array]]
    counts: NDArray[np.int64]
    flags: NDArray[np.uint8]


def assign(array: Stored, value: Stored | ArrayLike) -> None:
    """Copy a value, or another state array, into a state array."""
    if isinstance(array, Encoded):
        array.assign(value)
    else:
        array[...] = value.read() if isinstance(value, Encoded) else value


def has_low_bits(array: Array, storage: Storage) -> bool:
    """Whether the state of a parameter contains its low 16 bits."""
    return storage.is_split and array.dtype == BFLOAT16


def values_of(array: Array, state: State) -> AnyArray:
    """Values of a parameter in its computing dtype, with the low 16 bits that its state may contain."""
    low = state.low_bits()
    return decode(array) if low is None else join_split(array, low)


def reset_copies(rule: type[Rule], hp: Hyperparameters, array: Array, state: State) -> None:
    """Set the low bits of a parameter to zero, and its copies in the state to the present value."""
    if LOW_BITS in state:
        state[LOW_BITS][...] = 0
    if not state.is_new:
        rule.reset_copies(hp, decode(array), state)


def memory_of(arrays: Iterable[Stored]) -> Iterator[AnyArray]:
    """The arrays that state arrays consist of."""
    for array in arrays:
        if isinstance(array, Encoded):
            yield from array.arrays()
        else:
            yield array


def allocate(
    rule: type[Rule], arrays: list[Array], kernels: Sequence[str], hps: Sequence[Hyperparameters],
    buffer_names: Sequence[str], counter: StepCounter, storage: Storage, old: StateArrays | None = None,
) -> StateArrays:
    """Allocate the state arrays and option buffers of all parameters.

    Parameters
    ----------
    rule : type
    arrays : list of ndarray
        Parameters.
    kernels, hps : sequence
        Kernel and hyperparameters of each parameter.
    buffer_names : sequence of str
        Option buffers; each has the shape of its parameter.
    counter : StepCounter
    storage : Storage
        How the arrays are stored.
    old : StateArrays, optional
        State of the first of these parameters, which is copied where names and shapes agree.
    """
    counts, flags = np.zeros(len(arrays), np.int64), np.full(len(arrays), NEW_STATE | NEW_COPIES, np.uint8)
    layouts = state_layouts(rule, kernels, arrays, storage)
    views = alloc_views(arrays, [
        [*chain(*layout.views.values()), *[(None, layout.dtype)] * len(buffer_names)] for layout in layouts
    ])
    states = tuple(
        State({name: layout.make(name, array, own) for name in layout.views}, counts, flags, k)
        for k, (layout, array, own) in enumerate(zip(layouts, arrays, map(iter, views), strict=True))
    )
    old_states = old.states if old is not None else ()
    shared = Scalars(dict(rule.SCALAR_STATE), counter)
    if rule.SHARED_SCALARS and old_states:
        shared = old_states[0].scalars_cell
    for k, (state, hp) in enumerate(zip(states, hps, strict=True)):
        before: Mapping[str, Stored] = old_states[k].stored if k < len(old_states) else {}
        kept = 0
        for name, array in state.stored.items():
            if name in before and before[name].shape == array.shape:
                assign(array, before[name])
                kept += 1
            elif initial := rule.init_value(name, hp):
                assign(array, initial)
        scalars = dict(rule.SCALAR_STATE)
        if old is not None and k < len(old_states):
            is_new = bool(state) and not kept
            counts[k], flags[k] = old.counts[k], old.flags[k] | (NEW_STATE if is_new else 0)
            scalars = dict(old_states[k].scalars)
        state.scalars_cell = Scalars(scalars) if scalars and not rule.SHARED_SCALARS else shared
    old_buffers: Mapping[str, Any] = old.buffers if old is not None else {}
    buffers = {}
    for i, name in enumerate(buffer_names):
        buffers[name] = [own_views[i - len(buffer_names)] for own_views in views]
        start = [*old_buffers.get(name, [])]
        if name != "accumulated":  # the others are copies of the parameters
            start += map(decode, arrays[len(start) :])
        for buffer, value in zip(buffers[name], start, strict=False):
            buffer[...] = value
    return StateArrays(states, buffers, counts, flags)
