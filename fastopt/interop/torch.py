"""State of `torch.optim` optimizers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastopt.interop.state_dict import (
    OptimizerOrState,
    StateArrays,
    check_keys,
    import_library,
    make_group,
    make_state_dict,
    read_state_dict,
    refuse_unsupported,
    to_array,
)

__all__ = ["from_torch", "to_torch"]

# Classes of torch.optim, and a key by which to tell their groups from those of the classes further down.
# Hyperparameters and state arrays have the same names as in fastopt.
_DISTINCT_KEYS = {
    "Muon": "ns_coefficients",
    "Adafactor": "beta2_decay",
    "Rprop": "etas",
    "ASGD": "lambd",
    "Adagrad": "lr_decay",
    "Adadelta": "rho",
    "RMSprop": "centered",
    "SGD": "dampening",
    "NAdam": "momentum_decay",
    "AdamW": "amsgrad",
    "Adam": "amsgrad",
    "RAdam": "decoupled_weight_decay",
    "Adamax": "weight_decay",
    "SparseAdam": "betas",
}
_SCALARS = ("step", "mu_product", "eta", "mu")
_WITHOUT_STEP_COUNT = ("SGD", "Muon")


def from_torch(state_dict: Mapping[str, Any], optimizer: str | None = None) -> dict[str, Any]:
    """Convert the state dict of a torch optimizer for `load_state_dict` of a fastopt optimizer.

    torch need not be installed if the tensors are in memory.

    Parameters
    ----------
    state_dict : dict
        The result of ``state_dict()`` of an optimizer of ``torch.optim``.
    optimizer : str, optional
        Name of the optimizer's class. It is inferred from the groups, except for ``Adam`` and ``AdamW``
        before torch 2.7, whose state dicts are alike.

    Returns
    -------
    dict
        State dict with the same groups and order of parameters. ``steps`` is the largest step count of a
        group. SGD and Muon do not count steps in torch: the count is 1 if there is state, so set `steps` of
        the optimizer if a schedule depends on it. ``SparseAdam`` becomes Adam with
        ``convention="keras"``.

    Raises
    ------
    TypeError, ValueError
        If `state_dict` is not a state dict of torch, if fastopt does not have the optimizer, if arrays are
        neither float32 nor float64, or if parameters of one group have different step counts.

    Notes
    -----
    ASGD computes the step size from ``lr`` at the start of a step; torch computes it at the end of the
    previous step. The two differ in the first step after ``lr`` has changed.
    """
    check_keys("state_dict", state_dict, ("state", "param_groups"))
    torch_name = _infer_name(state_dict["param_groups"], optimizer)
    name, convention = _local_name(torch_name)
    states: list[StateArrays] = []
    groups = []
    for group in state_dict["param_groups"]:
        foreign = [state_dict["state"].get(key, {}) for key in group["params"]]
        index = list(range(len(states), len(states) + len(foreign)))
        for k, state in zip(index, foreign, strict=True):
            states.append({
                n: to_array(value, f"state_dict['state'][{k}]['{n}']")
                for n, value in state.items()
                if n not in _SCALARS and value is not None
            })
        scalars = {k: _scalars(torch_name, state, states[k]) for k, state in zip(index, foreign, strict=True)}
        steps, mu_product = next(iter(scalars.values()), (0, 1.0))
        for k, other in scalars.items():
            if other != (steps, mu_product):
                raise ValueError(
                    f"state_dict['state'][{k}]: expected {steps} steps like parameter {index[0]} of the"
                    f" same group, got {other[0]}; put the two parameters into separate groups"
                )
        values = {n: _to_python(value) for n, value in group.items()}
        groups.append(make_group(name, convention, values, index, steps, mu_product))
    return make_state_dict(name, groups, states)


def to_torch(optimizer: OptimizerOrState, name: str | None = None) -> dict[str, Any]:
    """Convert the state of an optimizer for `load_state_dict` of the same optimizer in torch.

    Parameters
    ----------
    optimizer : Optimizer or dict
        A fastopt optimizer or its `state_dict`.
    name : str, optional
        Name of the class in ``torch.optim``, by default the same as in fastopt. Pass "SparseAdam" for Adam
        with ``convention="keras"``.

    Returns
    -------
    dict
        State dict with tensors. Options that only torch has, such as ``foreach``, have torch's defaults.

    Raises
    ------
    ImportError
        If torch is not installed.
    TypeError, ValueError
        If torch does not have the optimizer, or does not support one of its options.
    """
    torch = import_library("torch", "torch")
    saved = read_state_dict(optimizer, _DISTINCT_KEYS)
    torch_name: str = name or saved["optimizer"]
    local_name, convention = _local_name(torch_name)
    if saved["optimizer"] != local_name:
        raise ValueError(
            f"name: expected the class of torch.optim for {saved['optimizer']}, got {torch_name!r}"
        )
    cls = getattr(torch.optim, torch_name, None)
    if cls is None:
        raise ValueError(f"optimizer: torch {torch.__version__} has no {torch_name}")
    state, groups = {}, []
    for group in saved["groups"]:
        shared = inspect.signature(cls).parameters.keys() & group.keys() - {"params"}
        refuse_unsupported(local_name, convention, group, shared, f"torch.optim.{torch_name}")
        values = {n: int(group[n]) if n == "ns_steps" else group[n] for n in shared}
        template = cls([torch.zeros(1, 1)], **values).state_dict()["param_groups"][0]
        groups.append(template | {"params": list(group["params"])})
        steps = saved["steps"] - group["start"]
        if not steps and torch_name != "Adagrad":   # only Adagrad has state before the first step
            continue
        for k in group["params"]:
            state[k] = {n: torch.from_numpy(np.array(a)) for n, a in saved["state"][k].items()}
            state[k] |= _torch_scalars(torch, torch_name, group, steps)
            if torch_name == "Muon" and "momentum_buffer" not in state[k]:
                raise ValueError(f"state[{k}]: expected a matrix, as torch.optim.Muon requires")
    return {"state": state, "param_groups": groups}


def _infer_name(groups: Iterable[Mapping[str, Any]], optimizer: str | None) -> str:
    """Return the name of the class of torch.optim from the keys of its groups, or the given name."""
    if optimizer is not None and optimizer not in _DISTINCT_KEYS:
        raise ValueError(f"optimizer: expected one of {', '.join(_DISTINCT_KEYS)}, got {optimizer!r}")
    names = set()
    for group in groups:
        check_keys("state_dict['param_groups']", group, ("params", "lr"))
        name = optimizer or next((n for n, key in _DISTINCT_KEYS.items() if key in group), None)
        if name is None:
            raise ValueError(
                f"state_dict: expected one of {', '.join(_DISTINCT_KEYS)} of torch.optim, "
                f"got groups with {', '.join(map(str, group))}"
            )
        if name == "AdamW" and optimizer is None:
            if "decoupled_weight_decay" not in group:
                raise ValueError(
                    "optimizer: expected 'Adam' or 'AdamW', because this state_dict fits both, got None"
                )
            name = "AdamW" if group["decoupled_weight_decay"] else "Adam"
        names.add(name)
    if len(names) != 1:
        raise ValueError(f"state_dict: expected groups of one optimizer, got {sorted(names)}")
    return names.pop()


def _local_name(torch_name: str) -> tuple[str, str]:
    """Return the name and convention in fastopt of a class of torch.optim."""
    return ("Adam", "keras") if torch_name == "SparseAdam" else (torch_name, "torch")


def _to_python(value: Any) -> Any:
    """Convert a scalar tensor, or a tuple of them, to Python numbers."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_to_python, value))
    return value.item() if hasattr(value, "item") else value


def _scalars(torch_name: str, state: Mapping[str, Any], arrays: StateArrays) -> tuple[int, float]:
    """Return the step count of a parameter and NAdam's product of momentum coefficients."""
    steps = bool(arrays) if torch_name in _WITHOUT_STEP_COUNT else _to_python(state.get("step", 0))
    return int(steps), float(_to_python(state.get("mu_product", 1.0)))


def _torch_scalars(torch: Any, torch_name: str, group: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return the scalar state of a parameter."""
    if torch_name in _WITHOUT_STEP_COUNT:
        return {}
    if torch_name == "SparseAdam":
        return {"step": steps}
    scalars = {}
    if torch_name == "NAdam":
        scalars["mu_product"] = group["numbers"]["mu_product"]
    if torch_name == "ASGD":
        scalars["eta"] = group["lr"] / (1.0 + group["lambd"] * group["lr"] * steps) ** group["alpha"]
        scalars["mu"] = 1.0 / max(1.0, steps - group["t0"])
    scalars = {n: torch.tensor(value, dtype=torch.float64) for n, value in scalars.items()}
    return {"step": torch.tensor(float(steps)), **scalars}      # torch's default dtype, as torch has it
