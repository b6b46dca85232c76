"""State of optax transformations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fastopt._core.pytree import flatten, item
from fastopt._core.typing import TreeDef
from fastopt.interop import state_dict as sd
from fastopt.optimizers import Optimizer

_MOMENTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}
# Fields of optax's named tuples for the state arrays of fastopt.
_FIELDS: dict[str, dict[str, str]] = {
    "SGD": {"momentum_buffer": "trace"},
    "Adagrad": {"sum": "sum_of_squares"},
    "Adadelta": {"square_avg": "e_g", "acc_delta": "e_x"},
    "RMSprop": {"square_avg": "nu", "grad_avg": "mu", "momentum_buffer": "-trace"},
    "Adam": {**_MOMENTS, "max_exp_avg_sq": "nu_max"},
    "AdamW": {**_MOMENTS, "max_exp_avg_sq": "nu_max"},
    "Adamax": {"exp_avg": "mu", "exp_inf": "nu"},
    "NAdam": _MOMENTS,
    "RAdam": _MOMENTS,
    "LAMB": _MOMENTS,
    "Lion": {"exp_avg": "mu"},
    "AdaBelief": {"exp_avg": "mu", "exp_avg_var": "nu"},
    "Yogi": _MOMENTS,
    "ADOPT": _MOMENTS,
    "AdEMAMix": {"exp_avg_fast": "m1", "exp_avg_slow": "m2", "exp_avg_sq": "nu"},
    "LARS": {"momentum_buffer": "-trace"},
}
_COUNTS = ("count", "count_m2", "gradient_step")
_INNER_STATES = ("inner_state", "inner_opt_state")


def from_optax(state: Any, optimizer: Optimizer) -> dict[str, Any]:
    """Convert the state of an optax transformation for `load_state_dict` of a fastopt optimizer.

    An optax state holds neither the name nor the hyperparameters of the optimizer; they are taken from
    `optimizer`, which is to load the result.

    Parameters
    ----------
    state : nested tuples
        The result of ``init`` or ``update`` of a transformation such as ``optax.adam(...)``.
    optimizer : Optimizer
        A fastopt optimizer with one group, with the same nesting of parameters as in optax, and with
        ``convention="optax"`` if it has conventions.

    Returns
    -------
    dict
        State dict. ``steps`` is 0 if the optax state has no ``count``, as for SGD.
    """
    saved, group, fields, treedef = _read_both(optimizer, state)
    name, steps = saved["optimizer"], _read_count(fields)
    arrays: list[sd.StateArrays] = [{} for _ in group["params"]]
    for local, foreign, leaves in _match_arrays(fields, treedef, _names(name, group)):
        for own, leaf in zip(arrays, leaves, strict=True):
            own[local] = sd.match_sign(foreign, leaf)
    mu_product = _mu_product(group, steps) if name == "NAdam" else 1.0
    entries = [sd.make_entry(name, steps, own, mu_product) for own in arrays]
    return saved | {"steps": steps, "state": dict(zip(group["params"], entries, strict=True))}


def to_optax(optimizer: Optimizer, state: Any) -> Any:
    """Convert the state of an optimizer to the state of an optax transformation.

    Parameters
    ----------
    optimizer : Optimizer
        A fastopt optimizer with one group, with the same nesting of parameters as in optax, and with
        ``convention="optax"`` if it has conventions.
    state : nested tuples
        A state of the transformation with the structure of the result, such as its ``init(params)``.

    Returns
    -------
    nested tuples
        A new state.
    """
    jnp = sd.import_library("jax.numpy", "optax")
    saved, group, fields, treedef = _read_both(optimizer, state)
    name, entries, new = saved["optimizer"], sd.entries_of(saved, group), {}
    steps, scalars = sd.shared_scalars(entries, "optax")
    if scalars and not math.isclose(scalars["mu_product"], _mu_product(group, steps), rel_tol=1e-6):
        raise ValueError("betas: expected values that were constant from the first step on, as in optax")
    for local, foreign, leaves in _match_arrays(fields, treedef, _names(name, group)):
        field = foreign.lstrip("-")
        sd.check_shapes(field, leaves, [{local: entry[local]} for entry in entries])
        arrays = [jnp.asarray(sd.match_sign(foreign, entry[local])) for entry in entries]
        new[field] = _unflatten_like(fields[field], treedef, arrays)
    counts = {n: jnp.asarray(steps, value.dtype) for n, value in fields.items() if n in _COUNTS}
    return _replace_fields(state, new | counts)


def _read_both(optimizer: Any, state: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], TreeDef]:
    """Return the state dict of an optimizer, its group, the fields of an optax state, and the nesting."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected a fastopt optimizer, got {type(optimizer).__name__}")
    has_optax = "optax" in type(optimizer).RULE.CONVENTIONS
    saved, group = sd.read_single_group(optimizer, "optax" if has_optax else "torch", _FIELDS)
    if optimizer.groups[0]["params"] is not optimizer.params:
        raise ValueError("optimizer: expected parameters without groups, got one group")
    if not isinstance(state, tuple):
        raise TypeError(f"state: expected an optax state, which is a tuple, got {type(state).__name__}")
    names = [foreign.lstrip("-") for foreign in _names(saved["optimizer"], group).values()]
    fields = _read_fields(saved["optimizer"], state, names)
    return saved, group, fields, flatten(optimizer.params)[0]


def _names(name: str, group: Mapping[str, Any]) -> dict[str, str]:
    """Return the name in optax of each state array."""
    return sd.array_names(name, group, _FIELDS[name])


def _mu_product(group: Mapping[str, Any], steps: int) -> float:
    product: float = group["betas"][0] ** steps
    return product


def _read_count(fields: Mapping[str, Any]) -> int:
    """Return the number of steps that a state has counted; 0 if it counts none."""
    return next((sd.to_count(f"state: {n}", np.asarray(fields[n])) for n in _COUNTS if n in fields), 0)


def _read_fields(name: str, state: Any, arrays: list[str]) -> dict[str, Any]:
    """Return the fields of the named tuples in an optax state: the `arrays` of the optimizer, and counts.

    Raises ValueError if the state has anything else, or if its parts are in another order.
    """
    found: dict[str, Any] = {}
    order: list[str] = []
    unknown: list[str] = []
    counts: set[int] = set()
    for kind, field, value in _fields(state):
        if field in arrays and field not in found:
            order.append(field)
            found[field] = value
        elif field in _COUNTS:
            counts.add(sd.to_count(f"state: {field}", np.asarray(value)))
            found[field] = value
        elif field == "mini_step":
            if np.asarray(value) != 0:
                raise ValueError(
                    f"state: expected no accumulated gradients, got mini_step {value}; convert it after a "
                    "step"
                )
        elif not (field == "acc_grads" or (field == "skip_state" and isinstance(value, tuple) and not value)):
            unknown.append(f"{kind} with {field}")
    missing = [field for field in arrays if field not in found]
    if missing:
        raise ValueError(f"state: expected a field {missing[0]}, got {', '.join(found) or 'none'}")
    if unknown:
        raise ValueError(
            f"state: expected the state of {name} alone, got a {unknown[0]}; if nothing else is needed, "
            f"convert the state of {name} that it contains"
        )
    if len(counts) > 1:
        raise ValueError(f"state: expected one number of steps, got {sorted(counts)}")
    # A trace before the scaling of RMSprop is a different optimizer from one after it.
    if "trace" in order and order[-1] != "trace":
        raise ValueError(f"state: expected the trace after {order[-1]}, as {name} has it, got it before")
    return found


def _fields(state: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield the type, name and value of all fields of the named tuples in nested tuples.

    Fields whose value is a state are not yielded, but their fields are.
    """
    if not isinstance(state, tuple):
        raise ValueError(f"state: expected tuples of optax, got {type(state).__name__}")
    for name, value in zip(getattr(state, "_fields", [None] * len(state)), state, strict=True):
        if name is None or name in _INNER_STATES:
            yield from _fields(value)
        else:
            yield type(state).__name__, name, value


def _match_arrays(
    fields: Mapping[str, Any], treedef: TreeDef, names: Mapping[str, str]
) -> Iterator[tuple[str, str, list[np.ndarray]]]:
    """Yield the name of each state array in fastopt and in optax, and its values in optax."""
    for local, foreign in names.items():
        field = foreign.lstrip("-")
        yield local, foreign, _leaves(fields[field], treedef, field)


def _replace_fields(state: Any, new: Mapping[str, Any]) -> Any:
    """Return nested tuples in which some fields have new values."""
    if not isinstance(state, tuple):
        return state
    names = getattr(state, "_fields", [None] * len(state))
    inner = [new[n] if n in new else _replace_fields(v, new) for n, v in zip(names, state, strict=True)]
    return type(state)(*inner) if hasattr(state, "_fields") else tuple(inner)


def _leaves(tree: Any, treedef: TreeDef, path: str) -> list[np.ndarray]:
    """Return the arrays of a tree with the nesting of the parameters, in the order of the parameters."""
    if isinstance(treedef, int):
        return [sd.to_array(tree, path)]
    if _keys(tree) != _keys(treedef):
        raise ValueError(f"{path}: expected the nesting of the parameters, got {type(tree).__name__}")
    inner = treedef.items() if isinstance(treedef, dict) else enumerate(treedef)
    return [leaf for key, child in inner for leaf in _leaves(tree[key], child, path + item(key))]


def _keys(tree: Any) -> set[Any] | int | None:
    """Return the keys of a dict, or the length of a list or tuple."""
    if isinstance(tree, dict):
        return set(tree)
    return len(tree) if isinstance(tree, (list, tuple)) else None


def _unflatten_like(tree: Any, treedef: TreeDef, arrays: list[Any]) -> Any:
    """Return a tree of the same containers with other arrays."""
    if isinstance(treedef, int):
        return arrays[treedef]
    if isinstance(treedef, dict):
        return {key: _unflatten_like(tree[key], child, arrays) for key, child in treedef.items()}
    children = zip(tree, treedef, strict=True)
    return type(tree)(_unflatten_like(inner, child, arrays) for inner, child in children)
