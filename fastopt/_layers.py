"""Updates of lists of layers, as in `fastopt.solver`: one compiled call, or the same lines in NumPy.

A list of layers has arrays, or lists of arrays. An update accepts what the lines ::

    v[i] = mu * v[i] + learning_rate * g[i]
    p[i] -= v[i]

accept, and gives their result in place. Arrays that the kernels cannot take, such as those with gaps or of
another dtype, are updated by these lines themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds

from fastopt import functional
from fastopt._core.direct import KernelCall, contains_objects
from fastopt._core.validation import DTYPES, is_masked
from fastopt.optimizers.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from fastopt._core.typing import AnyArray
    from fastopt.optimizers import Optimizer

    # From the gradient, the state, the number of the step and the hyperparameters: what is subtracted from
    # the parameter, and the new state.
    Lines: TypeAlias = Callable[..., tuple[AnyArray, tuple[AnyArray, ...]]]


class LayerUpdate:
    """An update of all arrays of a list of layers.

    Parameters
    ----------
    optimizer : type
        Optimizer with the same formula.
    kernel : str
        Its elementwise kernel.
    lines : callable
        The formula in NumPy: ``lines(g, *states, t, **hyperparameters)`` returns what is subtracted from the
        parameter, and a tuple with the new state arrays.
    **fixed
        Hyperparameters that differ from the defaults of `optimizer`.
    """

    def __init__(self, optimizer: type[Optimizer], kernel: str, lines: Lines, **fixed: Any) -> None:
        self._rule, self._kernel, self._lines = optimizer.RULE, kernel, lines
        # Floats, and what they determine.
        self._latest: tuple[dict[str, float], Hyperparameters, KernelCall] | None = None
        self._defaults = functional.default_hyperparameters(optimizer, {"convention": "article", **fixed})

    def __call__(
        self, params: Any, grads: Any, states: Mapping[str, Any], values: dict[str, float], t: int,
        is_reversed: bool = True,
    ) -> None:
        """Take a step.

        Parameters
        ----------
        params, grads : list of layers
        states : dict of str to list of layers
            State, by name.
        values : dict of str to float
            Checked hyperparameters; ``beta1`` and ``beta2`` are the pair ``betas`` of the optimizer.
        t : int
            Number of the step, 1 for the first.
        is_reversed : bool
            Whether `grads` starts with the last layer.
        """
        latest = self._latest       # read once, because another thread may replace it
        if latest is None or latest[1].is_new != (t == 1) or not contains_objects(values, latest[0]):
            hp = Hyperparameters(self._defaults | values)
            if "beta1" in values:
                hp.betas = values["beta1"], values["beta2"]
            call = functional.kernel_call(self._rule, hp, self._kernel, t, {})
            self._latest = latest = values, hp, call
        _, hp, call = latest
        scalars = self._rule.step_scalars(hp, t)
        if call.update_layers(scalars, params, grads, tuple(states.values()), is_reversed):
            return
        entries = match_layers(params, grads, states, is_reversed)
        _check_distinct(entries, list(states))
        arrays = [_as_plain_array(entry.param) for entry in entries]
        converted = [_converted(entry.grad, p) for entry, p in zip(entries, arrays, strict=True)]
        flat_states = tuple([entry.states[k] for entry in entries] for k in range(len(states)))
        if all(g is not None for g in converted) and call.update_layers(
            scalars, arrays, converted, flat_states, False
        ):
            return
        self._run_lines(entries, values, t)

    def _run_lines(self, entries: list[Entry], values: dict[str, float], t: int) -> None:
        """Compute everything, check that it can be stored, and store it."""
        shared = _overlapping([array for x in entries for array in (x.param, x.grad, *x.states)])
        results = []
        for entry in entries:
            g = np.asarray(entry.grad) if not is_masked(entry.grad) else entry.grad
            if g.dtype.kind in "biu":
                g = g.astype(np.float64)
            try:
                change, new_states = self._lines(g, *entry.states, t=t, **values)
                new_states = tuple(map(np.asanyarray, new_states))
            except TypeError as error:
                raise TypeError(f"{entry.grad_name}: expected numbers, got {g.dtype}") from error
            _check_storable(entry, np.asanyarray(change), new_states, shared)
            results.append((change, new_states))
        for entry, (change, new_states) in zip(entries, results, strict=True):
            entry.layer.subtract(change)
            for place, new in zip(entry.state_places, new_states, strict=True):
                place.store(new, shared)


class Place:
    """An item of a list, or the list of layers itself: where an array or a number is kept."""

    def __init__(self, container: Any, key: int, name: str) -> None:
        self.container, self.key, self.name = container, key, name

    @property
    def value(self) -> Any:
        return self.container[self.key]

    def subtract(self, change: AnyArray) -> None:
        """Subtract in place; a number is replaced."""
        before = value = self.value
        value -= change
        if value is not before:
            self.container[self.key] = value

    def fits(self, new: AnyArray, shared: set[int]) -> bool:
        """Whether this is an array with memory of its own that can take the values of `new`."""
        old = self.value
        return (
            isinstance(old, np.ndarray) and id(old) not in shared and old.flags.writeable
            and old.shape == new.shape and np.can_cast(new.dtype, old.dtype, "same_kind")
            and is_masked(old) == is_masked(new)
        )

    def store(self, new: AnyArray, shared: set[int]) -> None:
        """Copy into the array where that is possible; otherwise replace it, as the lines do."""
        if self.fits(new, shared):
            self.value[...] = new
        else:
            self.container[self.key] = new


class Entry(NamedTuple):
    """A parameter with its gradient and its state."""

    layer: Place
    param: Any
    grad: Any
    grad_name: str
    states: list[Any]
    state_places: list[Place]


def match_layers(
    params: Any, grads: Any, states: Mapping[str, Any], is_reversed: bool
) -> list[Entry]:
    """Return an entry per parameter, or raise if the nestings, shapes or types do not fit.

    Messages use the index in `grads` as it was passed.
    """
    check_list(params, "params", None, "layers", "")
    n = len(params)
    for name, tree in (("grads", grads), *states.items()):
        check_list(tree, name, n, "layers", "params")
    entries: list[Entry] = []
    for i in range(n):
        j = n - 1 - i if is_reversed else i
        trees = [("params", params, i), ("grads", grads, j)]
        trees += [(name, tree, i) for name, tree in states.items()]
        if isinstance(params[i], (list, tuple)):
            for name, tree, k in trees[1:]:
                check_list(tree[k], f"{name}[{k}]", len(params[i]), "arrays", f"params[{i}]")
            for m in range(len(params[i])):
                places = [Place(tree[k], m, f"{name}[{k}][{m}]") for name, tree, k in trees]
                entries.append(_checked_entry(*places))
        else:
            entries.append(_checked_entry(*(Place(tree, k, f"{name}[{k}]") for name, tree, k in trees)))
    return entries


def _checked_entry(param: Place, grad: Place, *states: Place) -> Entry:
    p, g = param.value, grad.value
    if not isinstance(p, np.ndarray):
        if not isinstance(p, (int, float, complex, np.number)):
            raise TypeError(f"{param.name}: expected an array or a number, got {type(p).__name__}")
    elif p.dtype.kind not in "fcO":
        raise TypeError(f"{param.name}: expected an array of floats, got {p.dtype}")
    elif not p.flags.writeable:
        raise ValueError(f"{param.name}: expected a writeable array, got a read-only one")
    values = [g, *(place.value for place in states)]
    for place, value in zip((grad, *states), values, strict=True):
        if value is None or isinstance(value, (list, tuple, dict, str)):
            raise TypeError(f"{place.name}: expected an array or a number, got {type(value).__name__}")
        shape = np.shape(value)
        if not _broadcasts(shape, np.shape(p)):
            raise ValueError(
                f"{place.name}: expected shape {np.shape(p)} or one that can be broadcast to it, as in "
                f"{param.name}, got {shape}"
            )
    return Entry(param, p, g, grad.name, values[1:], list(states))


def check_list(value: Any, where: str, length: int | None, items: str, like: str) -> None:
    """Raise unless `value` is a list or a tuple of this length."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{where}: expected a list of {items}, got {type(value).__name__}")
    if length is not None and len(value) != length:
        raise ValueError(f"{where}: expected {length} {items}, as in {like}, got {len(value)}")


def _check_distinct(entries: list[Entry], names: list[str]) -> None:
    """Raise if two state arrays of a parameter share memory."""
    for entry in entries:
        arrays = [array for array in entry.states if isinstance(array, np.ndarray)]
        if len(arrays) > 1 and np.may_share_memory(arrays[0], arrays[1]):
            raise ValueError(f"{names[1]}: expected arrays of its own, got one that is also in {names[0]}")


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of one shape can be broadcast to another one."""
    return len(shape) <= len(to) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False)
    )


def _as_plain_array(value: Any) -> Any:
    """View a memory map or a matrix as an array; return anything else as it is."""
    is_subclass = isinstance(value, np.ndarray) and type(value) is not np.ndarray and not is_masked(value)
    return np.asarray(value) if is_subclass else value


def _converted(grad: Any, p: Any) -> AnyArray | None:
    """Return a gradient as the kernels take it for a parameter, or None if that is not possible."""
    if not isinstance(p, np.ndarray) or p.dtype not in DTYPES or is_masked(grad):
        return None
    g = np.asarray(grad)
    if g.dtype.kind not in "biuf":
        return None
    if g.dtype == p.dtype and g.shape == p.shape and g.strides == p.strides:
        return g
    converted = np.empty_like(p)
    try:
        with np.errstate(over="raise"):     # a product with the learning rate may be in the range
            np.copyto(converted, g, casting="unsafe")
    except FloatingPointError:
        return None
    return converted


def _overlapping(arrays: Sequence[Any]) -> set[int]:
    """Return the identities of the arrays that may share memory with another one."""
    ranges = sorted((*byte_bounds(a), id(a)) for a in arrays if isinstance(a, np.ndarray) and a.size)
    shared: set[int] = set()
    last_end, last = 0, 0
    for start, end, array in ranges:
        if start < last_end:
            shared |= {array, last}
        if end > last_end:
            last_end, last = end, array
    return shared


def _check_storable(
    entry: Entry, change: AnyArray, new_states: tuple[AnyArray, ...], shared: set[int]
) -> None:
    """Raise if the results of a parameter cannot be stored."""
    p = np.asanyarray(entry.param)
    if not np.can_cast(change.dtype, p.dtype, "same_kind"):
        raise TypeError(
            f"{entry.grad_name}: expected numbers that can be subtracted from {p.dtype}, got {change.dtype}"
        )
    places = [(place, new) for place, new in zip(entry.state_places, new_states, strict=True)]
    replaced = [place for place, new in places if not place.fits(new, shared)]
    if not isinstance(entry.param, np.ndarray):
        replaced.append(entry.layer)
    for place in replaced:
        if not isinstance(place.container, list):
            raise TypeError(
                f"{place.name}: expected an array of its own that can be updated in place, or an item of a "
                f"list, which can be replaced, got one of a {type(place.container).__name__}"
            )
