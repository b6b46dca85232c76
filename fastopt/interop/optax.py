"""State of optax transformations."""

from __future__ import annotations

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


def from_optax(state: Any, optimizer: Optimizer) -> dict[str, Any]:
    """Convert the state of an optax transformation for `load_state_dict` of a fastopt optimizer.

    An optax state holds neither the name nor the hyperparameters of the optimizer; they are taken from the
    optimizer that is to load the result.

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
    count = next((int(np.asarray(value)) for n, value in fields.items() if n.startswith("count")), 0)
    saved["state"] = [{} for _ in group["params"]]
    for local, foreign, leaves in _match_arrays(saved["optimizer"], group, fields, treedef):
        for state_arrays, leaf in zip(saved["state"], leaves, strict=True):
            state_arrays[local] = sd.match_sign(foreign, leaf)
    saved["steps"], group["start"] = count, 0
    if saved["optimizer"] == "NAdam":
        group["numbers"] = {"mu_product": group["betas"][0] ** count}
    return saved


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
    steps, new = saved["steps"] - group["start"], {}
    for local, foreign, leaves in _match_arrays(saved["optimizer"], group, fields, treedef):
        field = foreign.lstrip("-")
        sd.check_shapes(field, leaves, [{local: arrays[local]} for arrays in saved["state"]])
        arrays = [jnp.asarray(sd.match_sign(foreign, arrays[local])) for arrays in saved["state"]]
        new[field] = _unflatten_like(fields[field], treedef, arrays)
    counts = {n: jnp.asarray(steps, value.dtype) for n, value in fields.items() if n.startswith("count")}
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
    return saved, group, dict(_fields(state)), flatten(optimizer.params)[0]


def _match_arrays(
    name: str, group: Mapping[str, Any], fields: Mapping[str, Any], treedef: TreeDef
) -> Iterator[tuple[str, str, list[np.ndarray]]]:
    """Yield the name of each state array in fastopt and in optax, and its values in optax."""
    for local, foreign in sd.array_names(name, group, _FIELDS[name]).items():
        field = foreign.lstrip("-")
        if field not in fields:
            raise ValueError(f"state: expected a field {field}, got {', '.join(fields)}")
        yield local, foreign, _leaves(fields[field], treedef, field)


def _fields(state: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and values of all fields of the named tuples in nested tuples."""
    if isinstance(state, tuple):
        yield from zip(getattr(state, "_fields", ()), state, strict=False)
        for inner in state:
            yield from _fields(inner)


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
