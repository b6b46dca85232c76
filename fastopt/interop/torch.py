"""State of `torch.optim` optimizers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastopt.interop import state_dict as sd

# Classes of torch.optim, and a key by which to tell their groups from those of the classes further down.
# Hyperparameters and state arrays have the same names as in fastopt.
_DISTINCT_KEYS = {
    "Muon": "ns_coefficients", "Adafactor": "beta2_decay", "Rprop": "etas", "ASGD": "lambd",
    "Adagrad": "lr_decay", "Adadelta": "rho", "RMSprop": "centered", "SGD": "dampening",
    "NAdam": "momentum_decay", "AdamW": "amsgrad", "Adam": "amsgrad", "RAdam": "decoupled_weight_decay",
    "Adamax": "weight_decay", "SparseAdam": "betas",
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
        group; all parameters of a group must have the same one. SGD and Muon do not count steps in torch: the
        count is 1 if there is state, so set `steps` of the optimizer if a schedule depends on it.
        ``SparseAdam`` becomes Adam with ``convention="keras"``.

    Notes
    -----
    ASGD computes the step size from ``lr`` at the start of a step; torch computes it at the end of the
    previous step. The two differ in the first step after ``lr`` has changed.
    """
    sd.check_keys("state_dict", state_dict, ("state", "param_groups"))
    torch_name = _infer_name(state_dict["param_groups"], optimizer)
    name, convention = _local_name(torch_name)
    states: list[sd.StateArrays] = []
    groups = []
    for group in state_dict["param_groups"]:
        first = len(states)
        scalars: list[tuple[int, float]] = []
        for k, key in enumerate(group["params"], first):
            state = state_dict["state"].get(key, {})
            states.append({
                n: sd.to_array(value, f"state_dict['state'][{k}]['{n}']")
                for n, value in state.items()
                if n not in _SCALARS and value is not None
            })
            scalars.append(_scalars(torch_name, state, states[k]))
            if scalars[-1] != scalars[0]:
                raise ValueError(
                    f"state_dict['state'][{k}]: expected {scalars[0][0]} steps like parameter {first} of the"
                    f" same group, got {scalars[-1][0]}; put the two parameters into separate groups"
                )
        steps, mu_product = scalars[0] if scalars else (0, 1.0)
        values = {n: _to_python(value) for n, value in group.items()}
        index = list(range(first, len(states)))
        groups.append(sd.make_group(name, convention, values, index, steps, mu_product))
    return sd.make_state_dict(name, groups, states)


def to_torch(optimizer: sd.OptimizerOrState, name: str | None = None) -> dict[str, Any]:
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
    """
    torch = sd.import_library("torch", "torch")
    saved = sd.read_state_dict(optimizer, _DISTINCT_KEYS)
    local = saved["optimizer"]
    torch_name: str = name or local
    expected, convention = _local_name(torch_name)
    if local != expected:
        raise ValueError(f"name: expected the class of torch.optim for {local}, got {torch_name!r}")
    cls = getattr(torch.optim, torch_name, None)
    if cls is None:
        raise ValueError(f"optimizer: torch {torch.__version__} has no {torch_name}")
    state, groups = {}, []
    for group in saved["groups"]:
        shared = inspect.signature(cls).parameters.keys() & group.keys() - {"params"}
        sd.refuse_unsupported(local, convention, group, shared, f"torch.optim.{torch_name}")
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
        sd.check_keys("state_dict['param_groups']", group, ("params", "lr"))
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


def _scalars(torch_name: str, state: Mapping[str, Any], arrays: sd.StateArrays) -> tuple[int, float]:
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
