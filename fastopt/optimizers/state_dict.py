"""State dicts: the saved state of an optimizer, and the check of a state before it is loaded.

Format 2. Every value is a plain number, string or array::

    {"version": 2, "optimizer": "Adam", "steps": 10, "skipped_steps": 0,
     "groups": [{"lr": 0.1, ..., "params": ["W", "b"], "schedules": {}}],
     "state": {"W": {"step": 10, "scalars": {...}, "exp_avg": array, ...}, "b": ...},
     "ema": {"W": array, ...}, "lookahead": {"W": array, ...},
     "accumulated": {"micro_batches": 1, "sums": {"W": array, ...}, "weights": {...}, "counts": {...}}}

A state array that is stored with fewer bits is a dict ``{"encoding": "signed8", "stored": array, "scales":
array, "block_size": 256, "shape": [...], "strides": [...]}``, see `fastopt._core.encoded`.

A parameter without state arrays has no state yet, and None in place of a copy (``ema``, ``lookahead``) means
that the parameter was not yet copied. ``scalars`` is there if the update rule has a scalar state. An integer
in place of a key is the position of the parameter, for the states of other libraries. Format 1 had lists in
the order of the parameters, and the step count of a group as the step ``start`` at which it was added.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter, deque
from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.encoded import Encoded
from fastopt._core.step_table import NEW_COPIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from fastopt._core.step_table import StepCounter
    from fastopt._core.typing import TreeDef
    from fastopt.optimizers.groups import Group, ParamGroups
    from fastopt.optimizers.options.accumulation import Accumulator
    from fastopt.optimizers.state import State, StateArrays

VERSION = 2
MAX_STEPS = 2**63 - 1  # counts are 64-bit integers
COPIES = ("ema", "lookahead")  # option buffers that are copies of the parameters


# --- Keys --------------------------------------------------------------------------------------------


def param_keys(params: ParamGroups) -> list[str]:
    """Return the key of each parameter: its path in the nesting of its group, such as ``"encoder.0.W"``.

    The order of a dict and the group do not matter. If several groups have the same path, the index of the
    group precedes it: ``"1:encoder.0.W"``.
    """
    trees: Any = params.treedef if params.grouped else [params.treedef]
    names = [(i, name) for i, tree in enumerate(trees) for name in _names(tree)]
    counts = Counter(name for _, name in names)
    keys = [
        f"{i}:{name}" if counts[name] > 1 or name.startswith(f"{i}:") else name for i, name in names
    ]
    if len(set(keys)) < len(keys):
        (repeated, _), *_ = Counter(keys).most_common(1)
        raise ValueError(f"params: expected a different path for each parameter, got {repeated!r} repeatedly")
    return keys


def param_name(key: str, group: int) -> str:
    """Return the path that a key of a parameter of this group stands for."""
    return key.removeprefix(f"{group}:")


def _names(tree: TreeDef) -> list[str]:
    """Return the path of each parameter of a group, with brackets where dots are ambiguous."""
    paths = list(_paths(tree, ()))
    dotted = [".".join(map(str, path)) for path in paths]
    counts = Counter(dotted)
    return [
        name if counts[name] == 1 else "".join(f"[{item!r}]" for item in path)
        for name, path in zip(dotted, paths, strict=True)
    ]


def _paths(tree: TreeDef, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(tree, int):
        yield path
        return
    for item, inner in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _paths(inner, (*path, item))


# --- Saving ------------------------------------------------------------------------------------------


def export_state(
    optimizer: str, counter: StepCounter, params: ParamGroups, arrays: StateArrays,
    accumulator: Accumulator | None,
) -> dict[str, Any]:
    """Return the state dict of an optimizer, see `Optimizer.state_dict`."""
    keys = param_keys(params)
    result: dict[str, Any] = {
        "version": VERSION,
        "optimizer": optimizer,
        "steps": counter.steps,
        "skipped_steps": counter.skipped_steps,
        "groups": [
            _export_group(group, [keys[k] for k in indices])
            for group, indices in zip(params.groups, params.indices(), strict=True)
        ],
        "state": {key: _export_param(state) for key, state in zip(keys, arrays.states, strict=True)},
    }
    for name in COPIES:
        if name in arrays.buffers:
            result[name] = {
                key: None if flags & NEW_COPIES else copied.copy()
                for key, copied, flags in zip(keys, arrays.buffers[name], arrays.flags, strict=True)
            }
    if accumulator is not None:
        count = accumulator.count
        used = list(zip(keys, range(len(keys)), strict=True)) if count else []
        result["accumulated"] = {
            "micro_batches": count,
            "sums": {key: accumulator.sums[k].copy() for key, k in used},
            "weights": {key: float(accumulator.weights[k]) for key, k in used},
            "counts": {key: int(accumulator.counts[k]) for key, k in used},
        }
    return result


def _export_param(state: State) -> dict[str, Any]:
    entry: dict[str, Any] = {"step": state.steps}
    if not state.is_new:
        if scalars := state.scalars:
            entry["scalars"] = dict(scalars)
        for name, array in state.stored.items():
            entry[name] = array.export() if isinstance(array, Encoded) else array.copy()
    return entry


def _export_group(group: Group, keys: list[str]) -> dict[str, Any]:
    schedules: dict[str, Any] = {}
    entry: dict[str, Any] = {}
    for name, value in group.hyperparameters().items():
        scheduled = dict(_schedules(name, value))
        if scheduled:
            schedules |= scheduled
        else:
            entry[name] = value
    for name, schedule in schedules.items():
        schedules[name] = copy.deepcopy(schedule.state_dict()) if hasattr(schedule, "state_dict") else {}
    return entry | {"params": keys, "schedules": schedules}


def _schedules(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the schedules of a hyperparameter by name: ``lr``, ``betas[0]``."""
    if not isinstance(value, tuple):
        if callable(value):
            yield name, value
        return
    yield from ((f"{name}[{i}]", number) for i, number in enumerate(value) if callable(number))


# --- Format 1 ----------------------------------------------------------------------------------------


def upgrade(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict of format 1 in format 2, with positions in place of keys."""
    check_keys("state_dict", saved, ("optimizer", "steps", "skipped_steps", "groups", "state"))
    steps = check_steps("state_dict['steps']", saved["steps"])
    check_length("state_dict['state']", saved["state"])
    check_length("state_dict['groups']", saved["groups"])
    groups: list[dict[str, Any]] = []
    entries: dict[int, dict[str, Any]] = {}
    for i, group in enumerate(saved["groups"]):
        name = f"state_dict['groups'][{i}]"
        check_keys(name, group, ("params", "start", "schedules"))
        start = check_steps(f"{name}['start']", group["start"], steps)
        check_length(f"{name}['params']", group["params"])
        check_keys(f"{name}['schedules']", group["schedules"], ())
        groups.append({n: value for n, value in group.items() if n not in ("start", "numbers")})
        for k in group["params"]:
            if k in entries or k not in range(len(saved["state"])):
                raise ValueError(f"{name}['params']: expected the index of a parameter, got {k!r}")
            check_keys(f"state_dict['state'][{k}]", saved["state"][k], ())
            scalars = {"scalars": group["numbers"]} if group.get("numbers") else {}
            entries[k] = {"step": steps - start, **scalars, **saved["state"][k]}
    result = {n: value for n, value in saved.items() if n != "micro_batches"}
    result |= {"groups": groups, "state": entries}
    for name in COPIES:
        if name in saved:
            check_length(f"state_dict['{name}']", saved[name])
            result[name] = dict(enumerate(saved[name]))
    if "accumulated" in saved:
        count = check_steps("state_dict['micro_batches']", saved.get("micro_batches"))
        if count:
            raise ValueError(
                "state_dict['micro_batches']: expected 0 in a state dict without version, which does not "
                f"contain the number of gradients per step, got {count}"
            )
        result["accumulated"] = {"micro_batches": 0, "sums": {}, "weights": {}, "counts": {}}
    return result


def with_groups(saved: Mapping[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a state dict with the groups of another one, so that their hyperparameters are loaded."""
    return {**(saved if "version" in saved else upgrade(saved)), "groups": groups}


# --- Checks ------------------------------------------------------------------------------------------


def check_scalar_state(name: str, value: Any, expected: Mapping[str, float]) -> None:
    check_keys(name, value, expected)
    for n in expected:
        check_scalar(f"{name}['{n}']", value[n])


def check_scalar(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):  # NaN is a valid value
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def check_keys(name: str, value: Any, keys: Iterable[str]) -> None:
    if not isinstance(value, Mapping) or not value.keys() >= set(keys):
        expected = f" with the keys {', '.join(keys)}" if keys else ""
        actual = list(value) if isinstance(value, Mapping) else type(value).__name__
        raise ValueError(f"{name}: expected a dict{expected}, got {actual}")


def check_length(name: str, value: Any, length: int | None = None) -> None:
    if not isinstance(value, (list, tuple)) or (length is not None and len(value) != length):
        actual = len(value) if isinstance(value, (list, tuple)) else type(value).__name__
        raise ValueError(f"{name}: expected a list{'' if length is None else f' of {length}'}, got {actual}")


def check_steps(name: str, value: Any, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"{name}: expected a non-negative integer, got {value!r}")
    count = int(value)
    if count > MAX_STEPS:
        raise ValueError(f"{name}: expected at most {MAX_STEPS}, got {count}")
    if most is not None and count > most:
        raise ValueError(f"{name}: expected at most {most}, the steps of the optimizer, got {count}")
    return count


def check_like(name: str, value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if problem := mismatch(value, dtype, shape):
        raise ValueError(f"{name}: {problem}")


def mismatch(value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    """Return how an array differs from one of this dtype and shape; "" if it does not."""
    if isinstance(value, (np.ndarray, Encoded)) and value.dtype == dtype and value.shape == shape:
        return ""
    actual = f"{value.dtype} of shape {value.shape}" if hasattr(value, "shape") else type(value).__name__
    return f"expected {dtype} of shape {shape}, got {actual}"


def call_all(calls: Sequence[Callable[[], object]]) -> None:
    """Call functions that are implemented in C. No signal is handled before the last of them has returned."""
    deque(map(operator.call, calls), maxlen=0)
