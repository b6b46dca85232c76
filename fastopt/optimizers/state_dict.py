"""State dicts: what an optimizer saves, and the validation of what it loads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.optimizers.hyperparameters import Hyperparameters, is_schedule

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastopt._core.typing import Array
    from fastopt.optimizers.groups import Group
    from fastopt.optimizers.options.accumulation import Accumulator
    from fastopt.optimizers.rule import Rule
    from fastopt.optimizers.state import State


def export_state(
    optimizer: str, steps: int, skipped_steps: int, groups: Sequence[tuple[Group, list[int]]],
    states: Sequence[State], buffers: Mapping[str, Sequence[Array]], accumulator: Accumulator | None,
) -> dict[str, Any]:
    """Return the state dict of an optimizer, see `Optimizer.state_dict`."""
    entries = []
    for group, indices in groups:
        items = group.hyperparameters().items()
        entry = {name: value for name, value in items if not is_schedule(value)}
        entry |= {"params": indices, "start": steps - states[indices[0]].steps if indices else 0}
        entry["schedules"] = {name: s.state_dict() for name, s in group.stateful_schedules()}
        if group.rule.SCALAR_STATE:
            entry["numbers"] = dict(group.scalar_state)
        entries.append(entry)
    result = {
        "optimizer": optimizer,
        "steps": steps,
        "skipped_steps": skipped_steps,
        "groups": entries,
        "state": [{name: array.copy() for name, array in state.items()} for state in states],
    }
    result |= {name: [array.copy() for array in arrays] for name, arrays in buffers.items()}
    return result if accumulator is None else result | {"micro_batches": accumulator.count}


def check_state_dict(
    saved: Any, optimizer: str, rule: type[Rule], groups: Sequence[tuple[Group, list[int]]],
    arrays: Sequence[Array], buffers: Mapping[str, Sequence[Array]], micro_batches: int,
) -> tuple[list[dict[str, Any]], list[tuple[Any, Any]]]:
    """Raise unless `saved` is the state of such an optimizer.

    Parameters
    ----------
    saved
        The state dict.
    optimizer : str
        Name of the optimizer's class.
    rule : type
    groups : sequence of (Group, list of int)
        The groups and the indices of their parameters.
    arrays : sequence of ndarray
        Parameters.
    buffers : dict of str to sequence of ndarray
        Option buffers.
    micro_batches : int
        Gradients per accumulated step.

    Returns
    -------
    values : list of dict
        Hyperparameters that each group takes over.
    schedules : list of (schedule, state)
        Schedules of the groups and the states that they take over.
    """
    _check_keys("state_dict", saved, ("optimizer", "steps", "skipped_steps", "groups", "state"))
    if saved["optimizer"] != optimizer:
        raise ValueError(f"state_dict: expected one of {optimizer}, got one of {saved['optimizer']}")
    check_steps("state_dict['steps']", saved["steps"])
    check_steps("state_dict['skipped_steps']", saved["skipped_steps"])
    _check_length("state_dict['groups']", saved["groups"], len(groups))
    values, schedules = [], []
    expected: dict[int, tuple[str, bool]] = {}
    for i, (group, indices) in enumerate(groups):
        name, foreign = f"state_dict['groups'][{i}]", saved["groups"][i]
        _check_keys(name, foreign, ("params", "start", "schedules"))
        if foreign["params"] != indices:
            raise ValueError(f"{name}: expected the parameters {indices}, got {foreign['params']}")
        check_steps(f"{name}['start']", foreign["start"])
        local = group.hyperparameters()
        taken = {
            n: rule.check_hyperparameter(n, foreign[n])
            for n, value in local.items()
            if n in foreign and not is_schedule(value)
        }
        hp = Hyperparameters(local | taken)
        rule.check(hp)
        values.append(taken)
        check_scalar_state(f"{name}['numbers']", foreign.get("numbers", {}), rule.SCALAR_STATE)
        schedules += _check_schedules(f"{name}['schedules']", group, foreign["schedules"])
        has_stepped = foreign["start"] < saved["steps"]
        expected |= {k: (rule.kernel_for(hp, arrays[k]), has_stepped) for k in indices}
    _check_length("state_dict['state']", saved["state"], len(arrays))
    for k, (kernel, has_stepped) in sorted(expected.items()):
        if has_stepped or saved["state"][k] != {}:
            _check_state(k, saved["state"][k], rule, kernel, arrays[k])
    _check_buffers(saved, arrays, buffers, micro_batches)
    return values, schedules


def _check_state(k: int, state: Any, rule: type[Rule], kernel: str, array: Array) -> None:
    name, shapes = f"state_dict['state'][{k}]", rule.state_shapes(kernel, array)
    if not isinstance(state, Mapping) or sorted(state) != sorted(shapes):
        actual = list(state) if isinstance(state, Mapping) else state
        raise ValueError(f"{name}: expected the arrays {list(shapes)} of the kernel {kernel}, got {actual}")
    for n, shape in shapes.items():
        check_like(f"{name}['{n}']", state[n], array.dtype, shape)


def _check_buffers(
    saved: Any, arrays: Sequence[Array], buffers: Mapping[str, Sequence[Array]], micro_batches: int
) -> None:
    for name in ("ema", "lookahead", "accumulated"):
        foreign = saved.get(name, [])
        _check_length(f"state_dict['{name}']", foreign, len(buffers.get(name, [])))
        for k, (value, array) in enumerate(zip(foreign, arrays, strict=False)):
            check_like(f"state_dict['{name}'][{k}]", value, array.dtype, array.shape)
    if "accumulated" in buffers:
        name = "state_dict['micro_batches']"
        if (count := check_steps(name, saved.get("micro_batches"))) >= micro_batches:
            raise ValueError(f"{name}: expected less than accumulate={micro_batches}, got {count}")


def check_scalar_state(name: str, value: Any, expected: Mapping[str, float]) -> None:
    _check_keys(name, value, expected)
    for n in expected:
        if isinstance(value[n], bool) or not isinstance(value[n], Real):  # NaN is a valid value
            raise TypeError(f"{name}['{n}']: expected a number, got {value[n]!r}")


def _check_schedules(name: str, group: Group, saved: Any) -> list[tuple[Any, Any]]:
    """Pairs of a schedule and its state, after loading the state into a copy of the schedule."""
    pairs = [(schedule, saved[n]) for n, schedule in group.stateful_schedules() if n in saved]
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
        actual = len(value) if isinstance(value, (list, tuple)) else type(value).__name__
        raise ValueError(f"{name}: expected a list of {length}, got {actual}")


def check_steps(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"{name}: expected a non-negative integer, got {value!r}")
    return int(value)


def check_like(name: str, value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
        actual = f"{value.dtype} of shape {value.shape}" if hasattr(value, "shape") else type(value)
        raise ValueError(f"{name}: expected {dtype} of shape {shape}, got {actual}")
