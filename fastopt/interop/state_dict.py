"""State dicts of fastopt, built from and checked for the state of other libraries.

Tables have the names of the other library per name in fastopt. A minus sign before the name of a state array
means that the other library stores it with the opposite sign.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from fastopt._core.encoded import from_export
from fastopt._core.validation import DTYPES
from fastopt.optimizers.api import BY_NAME, Optimizer
from fastopt.optimizers.state_dict import VERSION, check_steps, upgrade

OptimizerOrState: TypeAlias = Optimizer | Mapping[str, Any]     # an optimizer, or its state_dict
StateArrays: TypeAlias = dict[str, np.ndarray]                  # of one parameter
Names: TypeAlias = Mapping[str, Any]            # of hyperparameters; a pair of names for a pair of values
Table: TypeAlias = Mapping[str, tuple[str, Names, Mapping[str, str]]]   # class, hyperparameters, state arrays


def import_library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this needs {package}: pip install {package}") from error


def check_keys(path: str, value: Any, keys: Iterable[str]) -> None:
    if not isinstance(value, Mapping) or not value.keys() >= set(keys):
        actual = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise TypeError(f"{path}: expected a dict with the keys {', '.join(keys)}, got {actual}")


def check_shapes(path: str, arrays: Sequence[Any], entries: Sequence[Mapping[str, Any]]) -> None:
    """Check that the arrays of another library have the shapes of the state arrays."""
    if len(arrays) != len(entries):
        raise ValueError(f"{path}: expected {len(entries)} as the optimizer has, got {len(arrays)}")
    for k, (array, entry) in enumerate(zip(arrays, entries, strict=True)):
        for value in arrays_of(entry).values():
            if tuple(array.shape) != value.shape:
                raise ValueError(f"{path}[{k}]: expected shape {value.shape}, got {tuple(array.shape)}")


def refuse_unsupported(
    name: str, convention: str, group: Mapping[str, Any], supported: Collection[str], target: str
) -> None:
    """Raise if a hyperparameter that the target does not have differs from its default."""
    for hyperparameter, default in with_defaults(name, convention, {}).items():
        if hyperparameter not in supported and group[hyperparameter] != default:
            raise ValueError(
                f"{hyperparameter}: expected {default!r}, as {target} has it, got {group[hyperparameter]!r}"
            )


def to_array(value: Any, path: str) -> np.ndarray:
    """Return a copy of an array or tensor of float32 or float64."""
    try:
        array = np.array(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    except TypeError as error:      # NumPy does not have the dtype
        raise TypeError(f"{path}: expected float32 or float64, got {value.dtype}") from error
    if array.dtype not in DTYPES:
        raise TypeError(f"{path}: expected float32 or float64, got {array.dtype}")
    return array


def match_sign(name: str, array: np.ndarray) -> np.ndarray:
    """Return a copy of `array`, negated if the other library stores it with the opposite sign."""
    return np.array(-array if name.startswith("-") else array)


def rename_from(values: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Return hyperparameters of another library under fastopt's names."""
    return {
        local: tuple(values[n] for n in foreign) if isinstance(foreign, tuple) else values[foreign]
        for local, foreign in names.items()
    }


def rename_to(group: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Return hyperparameters of a group under the names of another library."""
    renamed: dict[str, Any] = {}
    for local, foreign in names.items():
        if isinstance(foreign, tuple):
            renamed |= dict(zip(foreign, group[local], strict=True))
        else:
            renamed[foreign] = group[local]
    return renamed


def _template(name: str, convention: str, values: Mapping[str, Any]) -> Optimizer:
    """Return an optimizer of one element, with the given hyperparameters; names that it lacks are ignored."""
    cls = BY_NAME[name.lower()]
    options: dict[str, Any] = {"convention": convention} if len(cls.RULE.CONVENTIONS) > 1 else {}
    opt: Optimizer = cls(np.zeros((1, 1)), **options)
    used = opt.groups[0].keys() & values.keys() - {"params", "convention"}
    return cls(np.zeros((1, 1)), **options, **{n: values[n] for n in used}) if used else opt


def with_defaults(name: str, convention: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return all hyperparameters of an optimizer: the given values, checked, and the defaults."""
    group = _template(name, convention, values).groups[0]
    return {n: value for n, value in group.items() if n != "params"}


def array_names(name: str, group: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of a table for the state arrays that an optimizer has with these hyperparameters."""
    state = _template(name, group.get("convention", "torch"), group).state[0]
    return {local: table[local] for local in state}


def make_group(name: str, convention: str, values: Mapping[str, Any], index: list[int]) -> dict[str, Any]:
    """Return a group of the parameters at the positions `index`."""
    return {**with_defaults(name, convention, values), "params": index, "schedules": {}}


def make_entry(
    name: str, steps: int, arrays: Mapping[str, np.ndarray], mu_product: float = 1.0
) -> dict[str, Any]:
    """Return the state of a parameter; `mu_product` is that of NAdam's momentum coefficients."""
    scalars = {"scalars": {"mu_product": mu_product}} if name == "NAdam" and (steps or arrays) else {}
    return {"step": steps, **scalars, **arrays}


def make_state_dict(name: str, groups: list[dict[str, Any]], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a state dict of parameters that are given by their positions."""
    steps = max((entry["step"] for entry in entries), default=0)
    return {
        "version": VERSION, "optimizer": name, "steps": steps, "skipped_steps": 0, "groups": groups,
        "state": dict(enumerate(entries)),
    }


def make_single_group(
    name: str, convention: str, values: Mapping[str, Any], n_params: int, arrays: Mapping[str, Sequence[Any]],
    table: Mapping[str, str], steps: int, mu_product: float = 1.0,
) -> dict[str, Any]:
    """Return a state dict with one group; `arrays` has the arrays of all parameters per name in fastopt."""
    group = make_group(name, convention, values, list(range(n_params)))
    states: list[StateArrays] = [{} for _ in range(n_params)]
    for local, foreign in array_names(name, group, table).items():
        for k, state in enumerate(states):
            state[local] = match_sign(foreign, to_array(arrays[local][k], f"{foreign}[{k}]"))
    entries = [make_entry(name, steps, state, mu_product) for state in states]
    return make_state_dict(name, [group], entries)


def to_count(path: str, value: Any) -> int:
    """Return the step count of another library, which may be a float, as an int."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    return check_steps(path, number)


def read_state_dict(optimizer: OptimizerOrState, supported: Iterable[str]) -> dict[str, Any]:
    """Return the state dict of a supported optimizer, with schedules evaluated at the next step."""
    if not isinstance(optimizer, Optimizer):
        check_keys("optimizer", optimizer, ("optimizer", "steps", "groups", "state"))
        saved = dict(optimizer) if "version" in optimizer else upgrade(optimizer)
    else:
        saved = optimizer.state_dict()
        for entry, group in zip(saved["groups"], optimizer.groups, strict=True):
            entry |= group.evaluate_schedules(optimizer.steps)
        # A parameter without state is saved without its arrays, which have their initial values.
        for entry, state in zip(saved["state"].values(), optimizer.state, strict=True):
            entry |= {n: array.copy() for n, array in state.items()}
    name = saved["optimizer"]
    known = [cls.__name__ for cls in BY_NAME.values()]
    supported = [n for n in supported if n in known]
    if name not in supported:
        raise ValueError(f"optimizer: expected one of {', '.join(supported)}, got {name}")
    for i, group in enumerate(saved["groups"]):
        path = f"optimizer['groups'][{i}]"
        check_keys(path, group, ("params",))
        missing = sorted(with_defaults(name, "torch", {}).keys() - group.keys())
        if missing:
            remedy = "if it is scheduled, pass the optimizer itself"
            raise ValueError(f"{path}: expected {missing[0]}, got none; {remedy}")
        for key in group["params"]:
            check_keys(f"optimizer['state'][{key!r}]", saved["state"].get(key), ("step",))
    for option in ("ema", "lookahead", "accumulated"):
        if option in saved:
            raise ValueError(f"optimizer: expected no {option}, which other libraries do not support")
    return saved


def read_single_group(
    optimizer: OptimizerOrState, convention: str, supported: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a state dict and its only group, which must have the given convention."""
    saved = read_state_dict(optimizer, supported)
    if len(saved["groups"]) != 1:
        raise ValueError(f"optimizer: expected one group, got {len(saved['groups'])}")
    (group,) = saved["groups"]
    actual = group.get("convention", "torch")
    if actual != convention:
        raise ValueError(f"convention: expected {convention!r}, got {actual!r}; set it in opt.groups[0]")
    return saved, group


def entries_of(saved: Mapping[str, Any], group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the states of the parameters of a group, in their order."""
    return [saved["state"][key] for key in group["params"]]


def arrays_of(entry: Mapping[str, Any]) -> StateArrays:
    """Return the arrays of the state of a parameter, those that are stored with fewer bits as float32."""
    if "low_bits" in entry:
        raise ValueError(
            "optimizer: cannot convert the low 16 bits of master_weights='split'; use parameters of float32"
        )
    return {
        name: np.array(from_export(name, value).read()) if isinstance(value, Mapping) else value
        for name, value in entry.items() if name not in ("step", "scalars")
    }


def shared_scalars(entries: Sequence[Mapping[str, Any]], target: str) -> tuple[int, dict[str, float]]:
    """Return the step count and scalars of all parameters, which must be the same."""
    for name in ("step", "scalars"):
        values = [entry.get(name, {}) for entry in entries]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"optimizer: expected the same {name} for all parameters, as in {target}, got {values[0]} "
                f"and {next(value for value in values if value != values[0])}"
            )
    return int(entries[0]["step"]), entries[0].get("scalars", {})
