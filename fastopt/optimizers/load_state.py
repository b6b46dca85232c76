"""The check of a state dict against an optimizer, before anything is loaded."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastopt._core.encoded import Encoded, from_export
from fastopt._core.formats import computing_dtype, decode
from fastopt._core.step_table import NEW_COPIES, NEW_STATE
from fastopt._core.validation import check_float
from fastopt.optimizers.hyperparameters import Hyperparameters, is_schedule
from fastopt.optimizers.state import LOW_BITS, Scalars, has_low_bits, memory_of
from fastopt.optimizers.state_dict import (
    COPIES,
    VERSION,
    call_all,
    check_keys,
    check_length,
    check_scalar,
    check_steps,
    mismatch,
    param_keys,
    param_name,
    upgrade,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from fastopt._core.step_table import StepCounter
    from fastopt._core.typing import AnyArray, Array, ScalarState
    from fastopt.optimizers.groups import Group, ParamGroups
    from fastopt.optimizers.options.accumulation import Accumulator
    from fastopt.optimizers.options.storage import Storage
    from fastopt.optimizers.rule import Rule
    from fastopt.optimizers.state import StateArrays

_KEYS = ("version", "optimizer", "steps", "skipped_steps", "groups", "state")


class IncompatibleKeys(NamedTuple):
    """Differences between a state dict and an optimizer; all lists are empty if there are none.

    Attributes
    ----------
    missing_keys : list of str
        Entries that the optimizer has and the state dict does not, such as ``state['W']`` or ``ema``. They
        are left unchanged.
    unexpected_keys : list of str
        Entries that the state dict has and the optimizer does not.
    mismatched_keys : list of str
        Entries that both have in a different form, with the difference: ``state['W']['exp_avg']: expected
        float32 of shape (3,), got float32 of shape (4,)``. Those of the optimizer are left unchanged.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]
    mismatched_keys: list[str]


class LoadedState(NamedTuple):
    """State of one parameter."""

    step: int
    is_new: bool
    scalars: ScalarState
    arrays: dict[str, Array | Encoded]


class LoadedSums(NamedTuple):
    """Accumulated gradients: their number, and for each parameter sum, weight and count."""

    micro_batches: int
    sums: list[Array | None]
    weights: list[float]
    counts: list[int]


@dataclass
class Loaded:
    """What an optimizer can take from a state dict.

    Attributes
    ----------
    steps, skipped_steps : int
    taken : list of dict
        Of each group, the hyperparameters that it takes over.
    hyperparameters : list of Hyperparameters
        Of each parameter, those that it has then.
    kernels : list of str
        Of each parameter, for these hyperparameters.
    schedules : list of (schedule, state)
    states : list of LoadedState or None
        Of each parameter; None if it keeps its state.
    copies : dict of str to list of ndarray or None
        Option buffers that are copies of the parameters, by option; None if there is no copy.
    accumulated : LoadedSums or None
        None to keep the sums of the optimizer.
    incompatible : IncompatibleKeys
    """

    steps: int
    skipped_steps: int
    taken: list[dict[str, Any]] = field(default_factory=list)
    hyperparameters: list[Hyperparameters] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    schedules: list[tuple[Any, Any]] = field(default_factory=list)
    states: list[LoadedState | None] = field(default_factory=list)
    copies: dict[str, list[Array | None]] = field(default_factory=dict)
    accumulated: LoadedSums | None = None
    incompatible: IncompatibleKeys = field(default_factory=lambda: IncompatibleKeys([], [], []))

    def check_complete(self, optimizer: str) -> None:
        """Raise a ValueError with all parts that do not fit, unless everything fits."""
        if any(self.incompatible):
            kinds = zip(("missing", "unexpected", "different"), self.incompatible, strict=True)
            lists = "; ".join(f"{kind}: {_shorten(names)}" for kind, names in kinds if names)
            raise ValueError(
                f"state_dict: expected the state of this {optimizer}, got one with other parts; {lists}; "
                "strict=False loads what fits"
            )

    def calls(
        self, params: ParamGroups, counter: StepCounter, arrays: StateArrays, accumulator: Accumulator | None
    ) -> list[Callable[[], object]]:
        """Return the calls for `call_all` that set everything, apart from schedules."""
        calls: list[Callable[[], object]] = [
            partial(dict.update, group.data, taken)
            for group, taken in zip(params.groups, self.taken, strict=True)
        ]
        stored = itertools.chain(*(state.stored.values() for state in arrays.states))
        own = itertools.chain(memory_of(stored), *arrays.buffers.values())
        blocks = {id(a.base): a.base for a in own if a.base is not None}.values()

        def assign(array: AnyArray, value: Any) -> None:
            if isinstance(value, np.ndarray) and any(np.may_share_memory(value, block) for block in blocks):
                value = value.copy()
            calls.append(partial(operator.setitem, array, ..., value))

        counts, flags = arrays.counts.copy(), arrays.flags.copy()
        shared = self._shared_scalars(params.rule, counter)
        for k, (state, loaded) in enumerate(zip(arrays.states, self.states, strict=True)):
            if shared is not None:
                calls.append(partial(dict.update, vars(state), {"scalars_cell": shared}))
            if loaded is None:
                continue
            for name, array in state.stored.items():
                value: Any = loaded.arrays.get(name, params.rule.init_value(name, self.hyperparameters[k]))
                if isinstance(array, Encoded):
                    for target, part in zip(array.arrays(), array.convert(value), strict=True):
                        assign(target, part)
                else:
                    assign(array, value.read() if isinstance(value, Encoded) else value)
            if shared is None:
                scalars = Scalars(params.rule.SCALAR_STATE | loaded.scalars)
                calls.append(partial(dict.update, vars(state), {"scalars_cell": scalars}))
            copies = {name: values[k] for name, values in self.copies.items() if values[k] is not None}
            if copies:      # one that is missing begins at the parameter
                for name in arrays.buffers.keys() & set(COPIES):
                    assign(arrays.buffers[name][k], copies.get(name, decode(params.arrays[k])))
            counts[k] = loaded.step
            flags[k] = (NEW_STATE if loaded.is_new else 0) | (0 if copies else NEW_COPIES)
        if accumulator is not None and (sums := self.accumulated) is not None:
            for array, value in zip(accumulator.sums, sums.sums, strict=True):
                assign(array, 0.0 if value is None else value)
            assign(accumulator.weights, np.array(sums.weights))
            assign(accumulator.counts, np.array(sums.counts))
            calls.append(partial(setattr, accumulator.counter, "steps", sums.micro_batches))
        assign(arrays.counts, counts)
        assign(arrays.flags, flags)
        calls.append(partial(setattr, counter, "steps", self.steps))
        calls.append(partial(setattr, counter, "skipped_steps", self.skipped_steps))
        return calls

    def _shared_scalars(self, rule: type[Rule], counter: StepCounter) -> Scalars | None:
        """Scalars that all parameters share; None if each has its own or nothing was loaded."""
        if not rule.SHARED_SCALARS or self.states.count(None) == len(self.states):
            return None
        found = [state.scalars for state in self.states if state is not None and not state.is_new]
        if any(repr(scalars) != repr(found[0]) for scalars in found):
            raise ValueError("state_dict['state']: expected the same scalars for all parameters")
        return Scalars(rule.SCALAR_STATE | (found[0] if found else {}), counter)


def load_all(calls: Sequence[Callable[[], object]], schedules: Sequence[tuple[Any, Any]]) -> None:
    """Load the states of schedules and make the calls; if anything raises, nothing has changed."""
    before = [(schedule, copy.deepcopy(schedule.state_dict())) for schedule, _ in schedules]
    is_done = {"is_done": False}
    calls = [*calls, partial(dict.update, is_done, {"is_done": True})]
    try:
        for schedule, state in schedules:
            schedule.load_state_dict(state)
        call_all(calls)
    except BaseException:
        if not is_done["is_done"]:
            for schedule, state in before:
                schedule.load_state_dict(state)
        raise


def _shorten(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class StateReader:
    """Reads a state dict for one optimizer.

    Parameters
    ----------
    optimizer : str
        Name of the optimizer's class.
    params : ParamGroups
    buffers : collection of str
        Names of its option buffers.
    storage : Storage
        How its arrays are stored.
    """

    def __init__(
        self, optimizer: str, params: ParamGroups, buffers: Collection[str], storage: Storage
    ) -> None:
        self.storage = storage
        self.optimizer, self.params, self.rule, self.buffers = optimizer, params, params.rule, buffers
        self.keys = param_keys(params)

    def read(self, state_dict: Any) -> Loaded:
        """Return what the optimizer can take.

        Raises a ValueError or TypeError if the state dict is that of another optimizer or has an impossible
        value.
        """
        saved = self._normalize(state_dict)
        steps = check_steps("state_dict['steps']", saved["steps"])
        skipped_steps = check_steps("state_dict['skipped_steps']", saved["skipped_steps"])
        self.loaded = Loaded(steps, skipped_steps)
        self.missing, self.unexpected, self.mismatched = self.loaded.incompatible
        self.saved_key, self.saved_group = self._match(saved["groups"])
        self._read_groups(saved["groups"])
        self._read_states(saved["state"])
        self._read_options(saved)
        self.unexpected += sorted(map(str, saved.keys() - {*_KEYS, *COPIES, "accumulated"}))
        return self.loaded

    # --- Keys ---

    def _normalize(self, state_dict: Any) -> dict[str, Any]:
        """Return a state dict in format 2 with the optimizer's keys in place of positions."""
        saved: dict[str, Any] = state_dict
        check_keys("state_dict", saved, ("optimizer", "groups"))
        if saved["optimizer"] != self.optimizer:
            raise ValueError(
                f"state_dict: expected one of {self.optimizer}, got one of {saved['optimizer']}"
            )
        self.version = saved.get("version", 1)
        if isinstance(self.version, bool) or self.version not in (1, VERSION):
            raise ValueError(f"state_dict['version']: expected 1 or {VERSION}, got {self.version!r}")
        saved = upgrade(saved) if self.version == 1 else dict(saved)
        check_keys("state_dict", saved, _KEYS[self.version == 1 :])
        check_length("state_dict['groups']", saved["groups"])
        groups = []
        for i, group in enumerate(saved["groups"]):
            name = f"state_dict['groups'][{i}]"
            check_keys(name, group, ("params", "schedules"))
            check_length(f"{name}['params']", group["params"])
            check_keys(f"{name}['schedules']", group["schedules"], ())
            groups.append({**group, "params": [self._key(name, key) for key in group["params"]]})
        saved["groups"] = groups
        for name in ("state", *COPIES):
            if name in saved:
                saved[name] = self._rename(f"state_dict['{name}']", saved[name])
        return saved

    def _rename(self, name: str, entries: Any) -> dict[str, Any]:
        check_keys(name, entries, ())
        return {self._key(name, key): value for key, value in entries.items()}

    def _key(self, name: str, key: Any) -> str:
        """Return the key of a parameter that is given by its key or its position."""
        if isinstance(key, str):
            return key
        if isinstance(key, bool) or not isinstance(key, Integral):
            raise ValueError(f"{name}: expected keys of parameters, got {key!r}")
        k = int(key)
        return self.keys[k] if 0 <= k < len(self.keys) else f"[{k}]"

    def _match(self, groups: list[dict[str, Any]]) -> tuple[list[str | None], dict[str, int]]:
        """Return the saved key of each parameter, None if it is missing, and the group of each saved key."""
        group_of: dict[str, int] = {}
        for i, group in enumerate(groups):
            for key in group["params"]:
                if key in group_of:
                    raise ValueError(f"state_dict['groups'][{i}]['params']: {key!r} is there twice")
                group_of[key] = i
        # A key has its group only if another group has the same path, which may have changed.
        by_name = {(i, param_name(key, i)): key for key, i in group_of.items()}
        matched = [
            key if key in group_of else by_name.get((i, param_name(key, i)))
            for key, i in zip(self.keys, self.params.group_of, strict=True)
        ]
        taken = set(matched)
        matched = [
            None if saved != key and saved in self.keys else saved
            for saved, key in zip(matched, self.keys, strict=True)
        ]
        self.unexpected += [f"state[{key!r}]" for key in group_of if key not in taken]
        return matched, group_of

    # --- Parts ---

    def _read_groups(self, saved: list[dict[str, Any]]) -> None:
        used = set()
        hps: list[Hyperparameters] = []
        for i, (group, indices) in enumerate(zip(self.params.groups, self.params.indices(), strict=True)):
            keys = [self.saved_key[k] for k in indices]
            sources = {self.saved_group[key] for key in keys if key is not None}
            is_empty = not keys and i < len(saved) and not saved[i]["params"]
            source = i if i in sources or is_empty else None
            if source is None and len(sources) == 1:
                (source,) = sources
            taken: dict[str, Any] = {}
            if source is None:
                self.missing.append(f"groups[{i}]")
            else:
                used.add(source)
                taken = self._read_group(i, group, saved[source])
            hp = Hyperparameters(group.hyperparameters() | taken)
            self.rule.check(hp)
            self.loaded.taken.append(taken)
            hps.append(hp)
        self.rule.check_groups(hps)
        self.loaded.hyperparameters = [hps[i] for i in self.params.group_of]
        self.loaded.kernels = [
            self.rule.kernel_for(hp, array)
            for hp, array in zip(self.loaded.hyperparameters, self.params.arrays, strict=True)
        ]
        self.unexpected += [f"groups[{i}]" for i in range(len(saved)) if i not in used]

    def _read_group(self, i: int, group: Group, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return the hyperparameters that a group takes over.

        One that the state dict does not have keeps its value: it may be newer than the state dict.
        """
        path, local = f"groups[{i}]", group.hyperparameters()
        saved_schedules = saved["schedules"]
        was_scheduled = {name.partition("[")[0] for name in saved_schedules}
        taken = {}
        for name, value in local.items():
            if name in saved:
                if is_schedule(saved[name]):
                    raise TypeError(f"state_dict['{path}']['{name}']: expected a number, got a schedule")
                checked = self.rule.check_hyperparameter(name, saved[name])
                if not is_schedule(value):
                    taken[name] = checked
            elif name in was_scheduled and not is_schedule(value):
                self.mismatched.append(f"{path}['{name}']: expected a number, got a schedule")
        known = local.keys() | {"params", "schedules"}
        self.unexpected += [f"{path}[{name!r}]" for name in saved if name not in known]
        own = dict(group.stateful_schedules())
        for name, state in saved_schedules.items():
            if name in own:
                self._check_schedule(f"{path}['schedules']['{name}']", own[name], state)
            elif state:
                self.unexpected.append(f"{path}['schedules'][{name!r}]")
        return taken

    def _check_schedule(self, path: str, schedule: Any, state: Any) -> None:
        """Load the state of a schedule into a copy of it."""
        try:
            copy.deepcopy(schedule).load_state_dict(state)
        except Exception as error:
            self.mismatched.append(f"{path}: {type(schedule).__name__} does not take it: {error}")
        else:
            self.loaded.schedules.append((schedule, state))

    def _read_states(self, saved: Mapping[str, Any]) -> None:
        for k, key in enumerate(self.saved_key):
            if key is None or key not in saved:
                self.missing.append(f"state[{self.keys[k]!r}]")
                self.loaded.states.append(None)
            else:
                self.loaded.states.append(self._read_state(k, saved[key]))
        self.unexpected += [f"state[{key!r}]" for key in saved if key not in self.saved_group]

    def _read_state(self, k: int, saved: Any) -> LoadedState | None:
        path, array = f"state[{self.keys[k]!r}]", self.params.arrays[k]
        name = f"state_dict['state'][{self.keys[k]!r}]"
        check_keys(name, saved, ("step",))
        step = check_steps(f"{name}['step']", saved["step"], self.loaded.steps)
        arrays = {n: value for n, value in saved.items() if n not in ("step", "scalars")}
        scalars = saved.get("scalars", {})
        check_keys(f"{name}['scalars']", scalars, ())
        shapes = self.rule.state_shapes(self.loaded.kernels[k], array)
        if has_low_bits(array, self.storage):
            shapes |= {LOW_BITS: array.shape}
        if not arrays and (not step or (shapes and self.version > 1)):
            return LoadedState(step, True, {}, {})
        before = len(self.mismatched)
        for n in self.rule.SCALAR_STATE:
            if n not in scalars:
                self.missing.append(f"{path}['scalars']['{n}']")
        self.unexpected += [f"{path}['scalars'][{n!r}]" for n in scalars if n not in self.rule.SCALAR_STATE]
        numbers = {
            n: check_scalar(f"{name}['scalars']['{n}']", value)
            for n, value in scalars.items()
            if n in self.rule.SCALAR_STATE
        }
        for n, shape in shapes.items():
            if n not in arrays:
                self.missing.append(f"{path}['{n}']")
                continue
            if isinstance(arrays[n], Mapping):
                arrays[n] = from_export(f"{name}['{n}']", arrays[n])
            dtype = np.dtype(np.uint16) if n == LOW_BITS else computing_dtype(array.dtype)
            if problem := mismatch(arrays[n], dtype, shape):
                self.mismatched.append(f"{path}['{n}']: {problem}")
        self.unexpected += [f"{path}[{n!r}]" for n in arrays if n not in shapes]
        if len(self.mismatched) > before:
            return None
        return LoadedState(step, False, numbers, {n: arrays[n] for n in shapes if n in arrays})

    def _read_options(self, saved: Mapping[str, Any]) -> None:
        for name in COPIES:
            if name in saved and name in self.buffers:
                self.loaded.copies[name] = self._read_arrays(name, saved[name])
            elif name in saved:
                self.unexpected.append(name)
            elif name in self.buffers:
                self.missing.append(name)
        if "accumulated" in saved:
            self._read_accumulated(saved["accumulated"])
        elif "accumulated" in self.buffers:
            self.loaded.accumulated = self._no_sums()

    def _read_arrays(self, path: str, saved: Mapping[str, Any]) -> list[Array | None]:
        """Return the array of each parameter; None if there is none that fits."""
        values: list[Array | None] = []
        for key, saved_key, array in zip(self.keys, self.saved_key, self.params.arrays, strict=True):
            value = None if saved_key is None else saved.get(saved_key)
            if saved_key not in saved:
                self.missing.append(f"{path}[{key!r}]")
            elif value is not None and (
                problem := mismatch(value, computing_dtype(array.dtype), array.shape)
            ):
                self.mismatched.append(f"{path}[{key!r}]: {problem}")
                value = None
            values.append(value)
        self.unexpected += [f"{path}[{key!r}]" for key in saved if key not in self.saved_group]
        return values

    def _no_sums(self) -> LoadedSums:
        n = len(self.keys)
        return LoadedSums(0, [None] * n, [0.0] * n, [0] * n)

    def _read_accumulated(self, saved: Any) -> None:
        name = "state_dict['accumulated']"
        check_keys(name, saved, ("micro_batches", "sums", "weights", "counts"))
        micro_batches = check_steps(f"{name}['micro_batches']", saved["micro_batches"])
        if "accumulated" not in self.buffers:
            if micro_batches:
                self.unexpected.append("accumulated")
            return
        if not micro_batches:
            self.loaded.accumulated = self._no_sums()
            return
        renamed = {n: self._rename(f"{name}['{n}']", saved[n]) for n in ("sums", "weights", "counts")}
        sums = self._read_arrays("accumulated['sums']", renamed["sums"])
        weights, counts = [], []
        for key, value in zip(self.saved_key, sums, strict=True):
            weight: Any = 0.0
            count: Any = 0
            if key is not None and value is not None:
                weight, count = renamed["weights"].get(key), renamed["counts"].get(key)
            weights.append(check_float(f"{name}['weights'][{key!r}]", weight, 0.0))
            counts.append(check_steps(f"{name}['counts'][{key!r}]", count, micro_batches))
        self.loaded.accumulated = LoadedSums(micro_batches, sums, weights, counts)
