"""State of `torch.optim` optimizers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastopt.interop import state_dict as sd
from fastopt.interop.torch_names import (
    CONSTANTS,
    DISTINCT_KEYS,
    FLAGS,
    SCALARS,
    WITHOUT_STEP_COUNT,
    asgd_scalars,
)

# Keys of groups that do not change a step; the last ones are those of torch's learning rate schedulers.
_IGNORED_OPTIONS = {
    *FLAGS, "name", "param_names",
    "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr",
}


def from_torch(state_dict: Mapping[str, Any], optimizer: str | None = None) -> dict[str, Any]:
    """Convert the state dict of a torch optimizer for `load_state_dict` of a fastopt optimizer.

    The function does not import torch.

    Parameters
    ----------
    state_dict : dict
        The result of ``state_dict()`` of an optimizer of ``torch.optim``.
    optimizer : str, optional
        Name of the optimizer's class. It is inferred from the groups, except for ``Adam`` and ``AdamW``
        before torch 2.7, whose state dicts cannot be told apart.

    Returns
    -------
    dict
        State dict with the same groups, order of parameters and step counts. ``steps`` is the largest step
        count. SGD and Muon do not count steps in torch: the count is 1 if there is state, so set `steps` of
        the optimizer if a schedule depends on it. ``SparseAdam`` becomes Adam with ``convention="keras"``.

    Notes
    -----
    ASGD computes the step size from ``lr`` at the start of a step; torch computes it at the end of the
    previous step. The two differ in the first step after ``lr`` has changed.
    """
    sd.check_keys("state_dict", state_dict, ("state", "param_groups"))
    torch_name = _infer_name(state_dict["param_groups"], optimizer)
    name, convention = _local_name(torch_name)
    entries: list[dict[str, Any]] = []
    groups = []
    used = set()
    for i, group in enumerate(state_dict["param_groups"]):
        values = {n: _to_python(value) for n, value in group.items()}
        index = list(range(len(entries), len(entries) + len(group["params"])))
        groups.append(sd.make_group(name, convention, values, index))
        unknown = group.keys() - groups[-1].keys() - _IGNORED_OPTIONS
        unknown -= CONSTANTS.get(torch_name, {}).keys()     # which `_infer_name` has read
        if unknown:
            raise ValueError(
                f"state_dict['param_groups'][{i}]: expected options of torch.optim.{torch_name}, got "
                f"{min(unknown, key=str)!r}; delete it if it does not change the steps"
            )
        for k, key in zip(index, group["params"], strict=True):
            path, state = f"state_dict['state'][{k}]", state_dict["state"].get(key, {})
            used.add(key)
            arrays = {
                n: sd.to_array(value, f"{path}['{n}']")
                for n, value in state.items()
                if n not in SCALARS and value is not None
            }
            entries.append(sd.make_entry(name, *_scalars(path, torch_name, state, arrays)))
    unused = state_dict["state"].keys() - used
    if unused:
        raise ValueError(
            f"state_dict['state']: expected parameters of the groups, got {min(unused, key=str)!r}"
        )
    return sd.make_state_dict(name, groups, entries)


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
    saved = sd.read_state_dict(optimizer, DISTINCT_KEYS)
    local = saved["optimizer"]
    torch_name: str = name or local
    expected, convention = _local_name(torch_name)
    if local != expected:
        raise ValueError(f"name: expected the class of torch.optim for {local}, got {torch_name!r}")
    cls = getattr(torch.optim, torch_name, None)
    if cls is None:
        raise ValueError(f"optimizer: torch {torch.__version__} has no {torch_name}")
    state, groups, count = {}, [], 0
    for group in saved["groups"]:
        shared = inspect.signature(cls).parameters.keys() & group.keys() - {"params"}
        sd.refuse_unsupported(local, convention, group, shared, f"torch.optim.{torch_name}")
        values = {n: int(group[n]) if n == "ns_steps" else group[n] for n in shared}
        template = cls([torch.zeros(1, 1)], **values).state_dict()["param_groups"][0]
        index = list(range(count, count + len(group["params"])))
        count += len(index)
        groups.append(template | {"params": index})
        for k, entry in zip(index, sd.entries_of(saved, group), strict=True):
            arrays = sd.arrays_of(entry)
            if torch_name == "Adagrad":     # has state before the first step
                if not arrays:
                    raise ValueError(
                        f"state[{k}]: expected arrays, which Adagrad of torch has before the first step; "
                        "pass the optimizer itself"
                    )
            elif not entry["step"]:
                continue
            state[k] = {n: torch.from_numpy(np.array(a)) for n, a in arrays.items()}
            state[k] |= _torch_scalars(torch, torch_name, group, entry)
            if torch_name == "Muon" and "momentum_buffer" not in state[k]:
                raise ValueError(f"state[{k}]: expected a matrix, as torch.optim.Muon requires")
    return {"state": state, "param_groups": groups}


def _infer_name(groups: Iterable[Mapping[str, Any]], optimizer: str | None) -> str:
    """Return the name of the class of torch.optim from the keys of its groups, or the given name."""
    if optimizer is not None and optimizer not in DISTINCT_KEYS:
        raise ValueError(f"optimizer: expected one of {', '.join(DISTINCT_KEYS)}, got {optimizer!r}")
    names = set()
    for group in groups:
        sd.check_keys("state_dict['param_groups']", group, ("params", "lr"))
        name = optimizer or next((n for n, key in DISTINCT_KEYS.items() if key in group), None)
        if name is None:
            raise ValueError(
                f"state_dict: expected one of {', '.join(DISTINCT_KEYS)} of torch.optim, "
                f"got groups with {', '.join(map(str, group))}"
            )
        if name in ("Adam", "AdamW"):
            if optimizer is None and "decoupled_weight_decay" not in group:
                raise ValueError(
                    "optimizer: expected 'Adam' or 'AdamW', because this state_dict fits both, got None"
                )
            actual = "AdamW" if group.get("decoupled_weight_decay", name == "AdamW") else "Adam"
            if optimizer is not None and actual != optimizer:
                raise ValueError(f"optimizer: expected {actual!r} for this state_dict, got {optimizer!r}")
            name = actual
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


def _scalars(
    path: str, torch_name: str, state: Mapping[str, Any], arrays: sd.StateArrays
) -> tuple[int, sd.StateArrays, float]:
    """Return the step count of a parameter, its arrays, and NAdam's product of momentum coefficients."""
    steps = int(bool(arrays)) if torch_name in WITHOUT_STEP_COUNT else state.get("step", 0)
    return sd.to_count(f"{path}['step']", steps), arrays, float(_to_python(state.get("mu_product", 1.0)))


def _torch_scalars(
    torch: Any, torch_name: str, group: Mapping[str, Any], entry: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the scalar state of a parameter."""
    steps = entry["step"]
    if torch_name in WITHOUT_STEP_COUNT:
        return {}
    if torch_name == "SparseAdam":
        return {"step": steps}
    scalars = {}
    if torch_name == "NAdam":
        scalars["mu_product"] = entry["scalars"]["mu_product"]
    if torch_name == "ASGD":
        scalars = asgd_scalars(group, steps)
    scalars = {n: torch.tensor(value, dtype=torch.float64) for n, value in scalars.items()}
    return {"step": torch.tensor(float(steps)), **scalars}      # torch's default dtype, as torch has it
