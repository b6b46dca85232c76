"""State of the parameters: where it lies, and whether a saved one fits."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.runtime import address
from fastopt.optimizers.groups import Hyperparameters, check_hyperparameter, is_schedule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import ArrayLike

    from fastopt._core.typing import Array
    from fastopt.optimizers.base import Optimizer
    from fastopt.optimizers.groups import Group

_ALIGN = 64  # bytes: a cache line, and the widest register
_PAGE = 4096  # bytes after which addresses look alike to the first-level cache
_LARGE = 1 << 16  # bytes from which on an array's place in its page matters more than a page's waste


class State(Mapping[str, "Array"]):
    """One parameter's state arrays by name, of which there are as many as its rule has.

    What is set is copied into the array.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __setitem__(self, name: str, value: ArrayLike) -> None:
        if name not in self._arrays:
            raise ValueError(f"{name}: no such state here, expected one of {', '.join(self._arrays)}")
        array, value = self[name], np.asarray(value)
        if value.shape != array.shape:
            raise ValueError(f"{name}: expected shape {array.shape}, got {value.shape}")
        array[...] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return repr(self._arrays)


def carve(arrays: list[Array], shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[list[Array]]:
    """Cut, for each array, others of its dtype and these shapes out of one new arena of zeros.

    Every one begins on a cache line. NumPy asks for huge pages for large blocks, so one block is also
    the way to get them. Streams at the same place of their pages get into each other's way: large
    arrays begin a quarter of a page further on than the one before.
    """
    sizes = [[math.prod(shape) * a.itemsize for shape in s] for a, s in zip(arrays, shapes, strict=True)]
    arena = np.zeros(sum(map(_room, itertools.chain(*sizes))) + _ALIGN, np.uint8)
    base = address(arena)
    start = -base % _ALIGN
    carved = []
    for array, own_shapes, own_sizes in zip(arrays, shapes, sizes, strict=True):
        views = []
        for k, (shape, size) in enumerate(zip(own_shapes, own_sizes, strict=True)):
            first = start
            if size >= _LARGE:
                wanted = address(array) // _ALIGN * _ALIGN + (k + 1) * (_PAGE // 4)
                first += (wanted - base - start) % _PAGE
            views.append(arena[first : first + size].view(array.dtype).reshape(shape))
            start += _room(size)
        carved.append(views)
    return carved


def _room(size: int) -> int:
    """Bytes of the arena that an array of `size` bytes may take."""
    return -(-size // _ALIGN) * _ALIGN + (_PAGE if size >= _LARGE else 0)


# --- Saved state ------------------------------------------------------------------------------


def check_state_dict(optimizer: Optimizer, saved: Any) -> tuple[list[dict[str, Any]], list[tuple[Any, Any]]]:
    """Refuse a `state_dict` that does not fit.

    Returns
    -------
    values : list of dict
        For each group the hyperparameters that it takes over.
    schedules : list of pair
        Schedules that have a state, and the state they take over.
    """
    _check_keys("state_dict", saved, ("optimizer", "steps", "skipped_steps", "groups", "state"))
    if saved["optimizer"] != type(optimizer).__name__:
        raise ValueError(
            f"state_dict: expected one of {type(optimizer).__name__}, got one of {saved['optimizer']}"
        )
    check_steps("state_dict['steps']", saved["steps"])
    check_steps("state_dict['skipped_steps']", saved["skipped_steps"])
    _check_length("state_dict['groups']", saved["groups"], len(optimizer.groups))
    values, schedules, rules, begun = [], [], [], []
    for i, (group, places) in enumerate(optimizer.places()):
        name, found = f"state_dict['groups'][{i}]", saved["groups"][i]
        _check_keys(name, found, ("params", "start", "schedules"))
        if found["params"] != places:
            raise ValueError(f"{name}: expected the parameters {places}, got {found['params']}")
        check_steps(f"{name}['start']", found["start"])
        mine = group.hyperparameters()
        taken = {
            n: check_hyperparameter(n, found[n], type(optimizer))
            for n, value in mine.items()
            if n in found and not is_schedule(value)
        }
        h = Hyperparameters(mine | taken)
        optimizer.check(h)
        rules += [optimizer.rule_of(h, optimizer._arrays[k]) for k in places]
        begun += [found["start"] < saved["steps"]] * len(places)
        values.append(taken)
        check_numbers(f"{name}['numbers']", found.get("numbers", {}), optimizer.NUMBERS)
        schedules += _check_schedules(f"{name}['schedules']", group, found["schedules"])
    _check_arrays(optimizer, saved, rules, begun)
    return values, schedules


def _check_arrays(optimizer: Optimizer, saved: Any, rules: list[str], begun: list[bool]) -> None:
    params = optimizer._arrays
    _check_length("state_dict['state']", saved["state"], len(params))
    for k, (array, rule) in enumerate(zip(params, rules, strict=True)):
        name, found, layout = f"state_dict['state'][{k}]", saved["state"][k], optimizer.layout(rule, array)
        if not begun[k] and found == {}:
            continue
        if not isinstance(found, Mapping) or sorted(found) != sorted(layout):
            found = list(found) if isinstance(found, Mapping) else found
            raise ValueError(f"{name}: expected the arrays {list(layout)} of the rule {rule}, got {found}")
        for n, shape in layout.items():
            check_like(f"{name}['{n}']", found[n], array.dtype, shape)
    for name in ("ema", "lookahead", "accumulated"):
        found = saved.get(name, [])
        _check_length(f"state_dict['{name}']", found, len(optimizer._kept.get(name, [])))
        for k, array in enumerate(found):
            check_like(f"state_dict['{name}'][{k}]", array, params[k].dtype, params[k].shape)
    if "accumulated" in optimizer._kept:
        name, most = "state_dict['micro_batches']", optimizer._micro_batches
        if (count := check_steps(name, saved.get("micro_batches"))) >= most:
            raise ValueError(f"{name}: expected less than accumulate={most}, got {count}")


def check_numbers(name: str, found: Any, expected: Mapping[str, float]) -> None:
    _check_keys(name, found, expected)
    for n in expected:
        if isinstance(found[n], bool) or not isinstance(found[n], Real):     # a NaN is one
            raise TypeError(f"{name}['{n}']: expected a number, got {found[n]!r}")


def stateful(group: Group) -> Iterator[tuple[str, Any]]:
    """The schedules of a group that have a state of their own, by name: ``lr``, ``betas[0]``."""
    for name, value in group.hyperparameters().items():
        several = isinstance(value, tuple)
        for i, number in enumerate(value if several else [value]):
            if hasattr(number, "state_dict"):
                yield (f"{name}[{i}]" if several else name), number


def _check_schedules(name: str, group: Group, saved: Any) -> list[tuple[Any, Any]]:
    """Pairs of a group's schedules and the states they take over; tried on copies first."""
    pairs = [(schedule, saved[n]) for n, schedule in stateful(group) if n in saved]
    for schedule, state in pairs:
        try:
            copy.deepcopy(schedule).load_state_dict(state)
        except Exception as error:
            raise ValueError(f"{name}: {type(schedule).__name__} does not take it: {error}") from error
    return pairs


def _check_keys(name: str, value: Any, keys: Iterable[str]) -> None:
    if not isinstance(value, Mapping) or not value.keys() >= set(keys):
        raise ValueError(f"{name}: expected a dict with the keys {', '.join(keys)}")


def _check_length(name: str, value: Any, length: int) -> None:
    if not isinstance(value, (list, tuple)) or len(value) != length:
        found = len(value) if isinstance(value, (list, tuple)) else type(value).__name__
        raise ValueError(f"{name}: expected a list of {length}, got {found}")


def check_steps(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"{name}: expected a whole number from 0 on, got {value!r}")
    return int(value)


def check_like(name: str, value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
        found = f"{value.dtype} of shape {value.shape}" if hasattr(value, "shape") else type(value)
        raise ValueError(f"{name}: expected {dtype} of shape {shape}, got {found}")
