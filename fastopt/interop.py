"""States of optimizers in other libraries, so that a run can move between them in its middle.

::

    opt.load_state_dict(fastopt.interop.from_torch(torch_opt.state_dict()))
    torch_opt.load_state_dict(fastopt.interop.to_torch(opt))

What crosses over is the state of the rule, the number of steps, and the hyperparameters as they are at the
coming step: a schedule stays behind. The parameters are the caller's to copy, in the same order and with the
same shapes. What the other side has no place for is an error; nothing is left out in silence.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from fastopt import optimizers
from fastopt._core.pytree import DTYPES, item
from fastopt.optimizers import Optimizer
from fastopt.optimizers.groups import Group, Hyperparameters

__all__ = [
    "from_keras",
    "from_optax",
    "from_sklearn",
    "from_torch",
    "to_keras",
    "to_optax",
    "to_sklearn",
    "to_torch",
]

Source = Optimizer | Mapping[str, Any]      # an optimizer, or its state_dict
States = dict[str, np.ndarray]
Names = Mapping[str, Any]       # names elsewhere, or pairs of them, by ours

# What a group of torch's rule has and those of the rules below it have not; names of numbers and states are
# the same here and there. SparseAdam is a rule of its own there, and the dialect "keras" of Adam here.
_TORCH = {
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
_TORCH_SCALARS = ("step", "mu_product", "eta", "mu")
_TORCH_UNCOUNTED = ("SGD", "Muon")

# Names of numbers and of states by ours; a minus before those that are kept with the other sign.
_BETAS = {"betas": ("beta_1", "beta_2"), "eps": "epsilon"}
_KERAS: dict[str, tuple[str, Names, dict[str, str]]] = {
    "SGD": ("SGD", {"momentum": "momentum", "nesterov": "nesterov"}, {"momentum_buffer": "-momentum"}),
    "RMSprop": (
        "RMSprop",
        {"alpha": "rho", "momentum": "momentum", "eps": "epsilon", "centered": "centered"},
        {"square_avg": "velocity", "grad_avg": "average_gradient", "momentum_buffer": "momentum"},
    ),
    "Adagrad": (
        "Adagrad",
        {"initial_accumulator_value": "initial_accumulator_value", "eps": "epsilon"},
        {"sum": "accumulator"},
    ),
    "Adadelta": (
        "Adadelta",
        {"rho": "rho", "eps": "epsilon"},
        {"square_avg": "accumulated_grad", "acc_delta": "accumulated_delta_var"},
    ),
    **{
        name: (
            name,
            {**_BETAS, "amsgrad": "amsgrad"},
            {"exp_avg": "momentum", "exp_avg_sq": "velocity", "max_exp_avg_sq": "velocity_hat"},
        )
        for name in ("Adam", "AdamW")
    },
    "Adamax": ("Adamax", _BETAS, {"exp_avg": "momentum", "exp_inf": "norm"}),
    "NAdam": ("Nadam", _BETAS, {"exp_avg": "momentum", "exp_avg_sq": "velocity"}),
    "Lion": ("Lion", {"betas": ("beta_1", "beta_2")}, {"exp_avg": "momentum"}),
    "FTRL": (
        "Ftrl",
        {
            "l1": "l1_regularization_strength", "l2": "l2_regularization_strength", "beta": "beta",
            "initial_accumulator_value": "initial_accumulator_value",
        },
        {"accumulator": "accumulator", "linear": "linear"},
    ),
    "LAMB": ("Lamb", _BETAS, {"exp_avg": "momentum", "exp_avg_sq": "velocity"}),
}
_SKLEARN: dict[str, tuple[str, Names, dict[str, str]]] = {
    "SGD": (
        "SGDOptimizer",
        {"lr": "learning_rate", "momentum": "momentum", "nesterov": "nesterov"},
        {"momentum_buffer": "-velocities"},
    ),
    "Adam": (
        "AdamOptimizer",
        {"lr": "learning_rate_init", **_BETAS},
        {"exp_avg": "ms", "exp_avg_sq": "vs"},
    ),
}
_MOMENTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}
_OPTAX: dict[str, dict[str, str]] = {
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


# --- torch -------------------------------------------------------------------------------------------


def from_torch(state_dict: Mapping[str, Any], optimizer: str | None = None) -> dict[str, Any]:
    """The state of an optimizer of torch, for `load_state_dict` of the same rule here.

    Does not need torch, if the tensors are in memory.

    Parameters
    ----------
    state_dict : dict
        What ``state_dict()`` of an optimizer of ``torch.optim`` returned.
    optimizer : str, optional
        Name of its class, where the groups do not tell: torch before 2.7 saves ``Adam`` and ``AdamW`` alike.

    Returns
    -------
    dict
        With the groups, and the order of the parameters, as they are there. ``steps`` is that of the group
        that has taken most; those of rules that do not count (SGD, Muon) are 1 once there is a state, so set
        `steps` of the optimizer if a schedule depends on it. ``SparseAdam`` becomes Adam in the dialect
        "keras".

    Raises
    ------
    TypeError, ValueError
        If it is no such dict, or of a rule that is not here; if arrays are neither float32 nor float64; if
        parameters of one group have taken different numbers of steps, which here step together.

    Notes
    -----
    ASGD's rate of a step is computed from ``lr`` at its beginning here, after the step before in torch: they
    differ in the one step after ``lr`` was changed.
    """
    _expect_keys("state_dict", state_dict, ("state", "param_groups"))
    name = _name_of(state_dict["param_groups"], optimizer)
    rule, convention = _here(name)
    states: list[States] = []
    groups = []
    for group in state_dict["param_groups"]:
        found = [state_dict["state"].get(key, {}) for key in group["params"]]
        places = list(range(len(states), len(states) + len(found)))
        for k, state in zip(places, found, strict=True):
            states.append({
                n: _array(value, f"state_dict['state'][{k}]['{n}']")
                for n, value in state.items()
                if n not in _TORCH_SCALARS and value is not None
            })
        alike = {k: _position(name, state, states[k]) for k, state in zip(places, found, strict=True)}
        steps, product = next(iter(alike.values()), (0, 1.0))
        for k, other in alike.items():
            if other != (steps, product):
                raise ValueError(
                    f"state_dict['state'][{k}]: expected {steps} steps as of parameter {places[0]} of the"
                    f" same group, got {other[0]}; a group steps as one here: make two groups of it"
                )
        numbers = {n: _plain(value) for n, value in group.items()}
        groups.append(_group(rule, convention, numbers, places, steps, product))
    return _saved(rule, groups, states)


def to_torch(optimizer: Source, name: str | None = None) -> dict[str, Any]:
    """The state of an optimizer, for `load_state_dict` of torch's optimizer of the same rule.

    Parameters
    ----------
    optimizer : Optimizer or dict
        The optimizer here, or its `state_dict`.
    name : str, optional
        The class in ``torch.optim``, where it is not named as here: "SparseAdam", for Adam in the dialect
        "keras".

    Returns
    -------
    dict
        With tensors. Switches that are torch's own, such as ``foreach``, are as torch has them by default.

    Raises
    ------
    ImportError
        If torch is not installed.
    TypeError, ValueError
        If torch does not have the rule, or no place for an option or for what is kept beside the state.
    """
    torch = _library("torch", "torch")
    saved = _read(optimizer, _TORCH)
    called: str = name or saved["optimizer"]
    rule, convention = _here(called)
    if saved["optimizer"] != rule:
        raise ValueError(f"name: expected the class of torch.optim for {saved['optimizer']}, got {called!r}")
    kind = getattr(torch.optim, called, None)
    if kind is None:
        raise ValueError(f"optimizer: torch {torch.__version__} has no {called}")
    state, groups = {}, []
    for group in saved["groups"]:
        names = inspect.signature(kind).parameters.keys() & group.keys() - {"params"}
        _refuse_set(rule, convention, group, names, f"torch.optim.{called}")
        numbers = {n: int(group[n]) if n == "ns_steps" else group[n] for n in names}
        made = kind([torch.zeros(1, 1)], **numbers).state_dict()["param_groups"][0]
        groups.append(made | {"params": list(group["params"])})
        steps = saved["steps"] - group["start"]
        for k in group["params"] if steps or called == "Adagrad" else ():     # which has its state at once
            state[k] = {n: torch.from_numpy(np.array(a)) for n, a in saved["state"][k].items()}
            state[k] |= _torch_scalars(torch, called, group, steps)
            if called == "Muon" and "momentum_buffer" not in state[k]:
                raise ValueError(f"state[{k}]: expected matrices, which are all that Muon of torch takes")
    return {"state": state, "param_groups": groups}


def _name_of(groups: Iterable[Mapping[str, Any]], given: str | None) -> str:
    """The class of torch.optim that groups are of."""
    if given is not None and given not in _TORCH:
        raise ValueError(f"optimizer: expected one of {', '.join(_TORCH)}, got {given!r}")
    names = set()
    for group in groups:
        _expect_keys("state_dict['param_groups']", group, ("params", "lr"))
        name = given or next((n for n, telling in _TORCH.items() if telling in group), None)
        if name is None:
            raise ValueError(
                f"state_dict: expected one of {', '.join(_TORCH)} of torch.optim, "
                f"got groups with {', '.join(map(str, group))}"
            )
        if name == "AdamW" and given is None:
            if "decoupled_weight_decay" not in group:
                raise ValueError("optimizer: expected 'Adam' or 'AdamW', which this state_dict does not tell")
            name = "AdamW" if group["decoupled_weight_decay"] else "Adam"
        names.add(name)
    if len(names) != 1:
        raise ValueError(f"state_dict: expected groups of one rule, got {sorted(names)}")
    return names.pop()


def _here(name: str) -> tuple[str, str]:
    """The rule here, and its dialect, that torch's class is."""
    return ("Adam", "keras") if name == "SparseAdam" else (name, "torch")


def _position(name: str, state: Mapping[str, Any], arrays: States) -> tuple[int, float]:
    """Steps that a parameter of torch has taken, and NAdam's product."""
    steps = int(bool(arrays)) if name in _TORCH_UNCOUNTED else int(_plain(state.get("step", 0)))
    return steps, float(_plain(state.get("mu_product", 1.0)))


def _torch_scalars(torch: Any, name: str, group: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """What torch keeps beside the arrays of a parameter."""
    if name in _TORCH_UNCOUNTED:
        return {}
    if name == "SparseAdam":
        return {"step": steps}
    scalars = {}
    if name == "NAdam":
        scalars["mu_product"] = group["numbers"]["mu_product"]
    if name == "ASGD":
        scalars["eta"] = group["lr"] / (1.0 + group["lambd"] * group["lr"] * steps) ** group["alpha"]
        scalars["mu"] = 1.0 / max(1.0, steps - group["t0"])
    scalars = {n: torch.tensor(value, dtype=torch.float64) for n, value in scalars.items()}
    return {"step": torch.tensor(float(steps)), **scalars}      # in torch's default dtype, as there


# --- keras -------------------------------------------------------------------------------------------


def from_keras(optimizer: Any) -> dict[str, Any]:
    """The state of an optimizer of keras 3, for `load_state_dict` of the same rule here.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
        Built, as it is after the first step.

    Returns
    -------
    dict
        Of one group in the dialect "keras", with the parameters in the order of the variables there.

    Raises
    ------
    TypeError, ValueError
        If it is no such optimizer, or of a rule or with an option that is not here.
    """
    if not all(hasattr(optimizer, name) for name in ("get_config", "variables", "built")):
        raise TypeError(f"optimizer: expected one of keras.optimizers, got {type(optimizer).__name__}")
    theirs = type(optimizer).__name__
    rule = next((ours for ours, (name, *_) in _KERAS.items() if name == theirs), None)
    if rule is None:
        known = ", ".join(name for name, *_ in _KERAS.values())
        raise ValueError(f"optimizer: expected one of {known} of keras.optimizers, got {theirs}")
    if not optimizer.built:
        raise ValueError("optimizer: expected it built, as it is after a step, or by .build(variables)")
    _, names, slots = _KERAS[rule]
    names = {"lr": "learning_rate", "weight_decay": "weight_decay", **names}
    config = optimizer.get_config() | {"learning_rate": float(optimizer.learning_rate)}
    _refuse_unknown(type(optimizer), config, names)
    if any(getattr(optimizer, f"_exclude_from_weight_decay{end}", None) for end in ("", "_pattern")):
        raise ValueError("optimizer: expected weight decay of all variables, got some that are excluded")
    numbers = _renamed(config, names)
    numbers["weight_decay"] = numbers["weight_decay"] or 0.0
    places = list(range(len(optimizer._trainable_variables)))
    variables = [(v.name, v.numpy()) for v in optimizer.variables]
    columns = {
        name: [array for theirs, array in variables if theirs.endswith("_" + slot.lstrip("-"))]
        for name, slot in slots.items()
    }
    product = float(variables[-1][1]) if rule == "NAdam" else 1.0
    group = _group(rule, "keras", numbers, places, int(variables[0][1]), product)
    return _saved(rule, [group], _states(rule, group, columns, slots))


def to_keras(optimizer: Source, variables: Iterable[Any]) -> Any:
    """An optimizer of keras 3 that goes on where one here stands.

    Parameters
    ----------
    optimizer : Optimizer or dict
        The optimizer here, in the dialect "keras" and with one group, or its `state_dict`.
    variables : list of keras.Variable
        What it is to train, in the order of the parameters here: ``model.trainable_variables``.

    Returns
    -------
    keras.optimizers.Optimizer
        Built for `variables`.

    Raises
    ------
    ImportError
        If keras is not installed.
    TypeError, ValueError
        If keras does not have the rule, or no place for an option or for what is kept beside the state, or
        if the variables do not fit.
    """
    keras = _library("keras", "keras")
    saved, group = _one_group(optimizer, "keras", _KERAS)
    rule, variables = saved["optimizer"], list(variables)
    theirs, names, slots = _KERAS[rule]
    names = {"lr": "learning_rate", "weight_decay": "weight_decay", **names}
    fixed = _numbers(rule, "keras", {}).keys() - names.keys()
    _refuse_set(rule, "keras", group, group.keys() - fixed, f"keras.optimizers.{theirs}")
    _check_shapes("variables", variables, saved["state"])
    made = getattr(keras.optimizers, theirs)(**_named(group, names))
    made.build(variables)
    made.iterations.assign(saved["steps"] - group["start"])
    for ours, slot in slots.items():
        taken = [v for v in made.variables if v.name.endswith("_" + slot.lstrip("-"))]
        for variable, state in zip(taken, saved["state"], strict=False):
            variable.assign(_signed(slot, state[ours]))
    if rule == "NAdam":
        made.variables[-1].assign(group["numbers"]["mu_product"])
    return made


def _refuse_unknown(kind: type, config: Mapping[str, Any], names: Names) -> None:
    """Refuse options of keras that have no counterpart, and are not as they begin."""
    known = {"name", *_flat(names.values())}
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in config and name not in known and config[name] != parameter.default:
            raise ValueError(
                f"optimizer: expected {name}={parameter.default!r}, for which there is no place here, "
                f"got {config[name]!r}"
            )


# --- scikit-learn ------------------------------------------------------------------------------------


def from_sklearn(estimator: Any) -> dict[str, Any]:
    """The state of scikit-learn's optimizer, for `load_state_dict` of the same rule here.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor or their `_optimizer`
        Of scikit-learn, and fitted with the solver "adam" or "sgd".

    Returns
    -------
    dict
        Of one group in the dialect "sklearn", with the parameters in the order
        ``estimator.coefs_ + estimator.intercepts_``. SGD does not count its steps.

    Raises
    ------
    TypeError, ValueError
        If there is no such optimizer.
    """
    optimizer = getattr(estimator, "_optimizer", estimator)
    rule = "Adam" if hasattr(optimizer, "ms") else "SGD"
    _, names, slots = _SKLEARN[rule]
    held = dict(vars(optimizer)) if hasattr(optimizer, "__dict__") else {}
    if callable(arrays := getattr(optimizer, "_arrays", None)):     # what `fastopt.sklearn.patch` puts there
        held |= cast("dict[str, Any]", arrays())
    if not all(n.lstrip("-") in held for n in slots.values()):
        raise TypeError(
            "estimator: expected an MLPClassifier or MLPRegressor of scikit-learn, fitted with the solver "
            f"'adam' or 'sgd', got {type(estimator).__name__}"
        )
    columns = {name: held[slot.lstrip("-")] for name, slot in slots.items()}
    places = list(range(len(next(iter(columns.values())))))
    group = _group(rule, "sklearn", _renamed(held, names), places, held.get("t", 0))
    return _saved(rule, [group], _states(rule, group, columns, slots))


def to_sklearn(optimizer: Source, params: Iterable[np.ndarray]) -> Any:
    """An optimizer of scikit-learn that goes on where one here stands.

    ::

        mlp._optimizer = fastopt.interop.to_sklearn(opt, mlp.coefs_ + mlp.intercepts_)

    and the next `partial_fit` goes on with it.

    Parameters
    ----------
    optimizer : Optimizer or dict
        The optimizer here, Adam or SGD in the dialect "sklearn" with one group, or its `state_dict`.
    params : list of ndarray
        What it is to train, in the order of the parameters here.

    Returns
    -------
    AdamOptimizer or SGDOptimizer
        Of scikit-learn, with a constant learning rate.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.
    TypeError, ValueError
        If scikit-learn does not have the rule, or no place for an option or for what is kept beside the
        state, or if `params` do not fit.
    """
    module = _library("sklearn.neural_network._stochastic_optimizers", "scikit-learn")
    saved, group = _one_group(optimizer, "sklearn", _SKLEARN)
    rule, params = saved["optimizer"], list(params)
    theirs, names, slots = _SKLEARN[rule]
    _refuse_set(rule, "sklearn", group, names.keys(), f"scikit-learn's {theirs}")
    _check_shapes("params", params, saved["state"])
    made = getattr(module, theirs)(params, group["lr"])
    vars(made).update(_named(group, names))
    if rule == "Adam":
        made.t = saved["steps"] - group["start"]
    for ours, slot in slots.items():
        if all(ours in state for state in saved["state"]):
            setattr(made, slot.lstrip("-"), [_signed(slot, state[ours]) for state in saved["state"]])
    return made


# --- optax -------------------------------------------------------------------------------------------


def from_optax(state: Any, optimizer: Optimizer) -> dict[str, Any]:
    """The state of a transformation of optax, for `load_state_dict` of the same rule here.

    A state of optax holds neither its rule nor its numbers, so they are those of the optimizer that is to go
    on with it.

    Parameters
    ----------
    state : nesting of tuples
        What ``init`` or ``update`` of ``optax.adam(...)`` and its like returned.
    optimizer : Optimizer
        In the dialect "optax" where its rule has dialects, with one group, and with the nesting of parameters
        that optax has.

    Returns
    -------
    dict
        ``steps`` is 0 where the state has no ``count``, as that of SGD.

    Raises
    ------
    TypeError, ValueError
        If the rule has no counterpart, or the state does not fit it.
    """
    saved, group, fields = _against_optax(optimizer, state)
    count = next((int(np.asarray(value)) for n, value in fields.items() if n.startswith("count")), 0)
    for k in group["params"]:
        saved["state"][k] = {}
    for name, field in _slots_of(saved["optimizer"], group, _OPTAX).items():
        leaves = _leaves(_of(fields, field), optimizer._shape, field.lstrip("-"))
        for k, leaf in enumerate(leaves):
            saved["state"][k][name] = _signed(field, leaf)
    saved["steps"], group["start"] = count, 0
    if saved["optimizer"] == "NAdam":
        group["numbers"] = {"mu_product": group["betas"][0] ** count}
    return saved


def to_optax(optimizer: Optimizer, state: Any) -> Any:
    """The state of an optimizer, as a transformation of optax takes it.

    Parameters
    ----------
    optimizer : Optimizer
        In the dialect "optax" where its rule has dialects, with one group, and with the nesting of parameters
        that optax has.
    state : nesting of tuples
        A state of the transformation, such as its ``init(params)``: what is to be filled in.

    Returns
    -------
    nesting of tuples
        A new state.

    Raises
    ------
    ImportError
        If JAX is not installed.
    TypeError, ValueError
        If the rule has no counterpart, or `state` does not fit it.
    """
    jnp = _library("jax.numpy", "optax")
    saved, group, fields = _against_optax(optimizer, state)
    steps, new = saved["steps"] - group["start"], {}
    for name, field in _slots_of(saved["optimizer"], group, _OPTAX).items():
        theirs = field.lstrip("-")
        leaves = _leaves(_of(fields, field), optimizer._shape, theirs)
        _check_shapes(theirs, leaves, [{name: s[name]} for s in saved["state"]])
        arrays = [jnp.asarray(_signed(field, s[name])) for s in saved["state"]]
        new[theirs] = _filled(fields[theirs], optimizer._shape, arrays)
    counts = {n: jnp.asarray(steps, value.dtype) for n, value in fields.items() if n.startswith("count")}
    return _replaced(state, new | counts)


def _against_optax(optimizer: Any, state: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What is saved of an optimizer, its group, and the fields of a state of optax."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected one of fastopt, got {type(optimizer).__name__}")
    speaks = "optax" in type(optimizer).CONVENTIONS
    saved, group = _one_group(optimizer, "optax" if speaks else "torch", _OPTAX)
    if optimizer._grouped:
        raise ValueError("optimizer: expected parameters that are not in groups")
    if not isinstance(state, tuple):
        raise TypeError(f"state: expected one of optax, which is a tuple, got {type(state).__name__}")
    return saved, group, dict(_fields(state))


def _fields(state: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of all fields of the named tuples in a nesting of tuples."""
    if isinstance(state, tuple):
        yield from zip(getattr(state, "_fields", ()), state, strict=False)
        for inner in state:
            yield from _fields(inner)


def _of(fields: Mapping[str, Any], name: str) -> Any:
    name = name.lstrip("-")
    if name not in fields:
        raise ValueError(f"state: expected a field {name}, got {', '.join(fields)}")
    return fields[name]


def _replaced(state: Any, new: Mapping[str, Any]) -> Any:
    """The nesting of tuples with new values of some fields."""
    if not isinstance(state, tuple):
        return state
    names = getattr(state, "_fields", [None] * len(state))
    inner = [new[n] if n in new else _replaced(v, new) for n, v in zip(names, state, strict=True)]
    return type(state)(*inner) if hasattr(state, "_fields") else tuple(inner)


def _leaves(tree: Any, shape: Any, place: str) -> list[np.ndarray]:
    """The arrays of a nesting like that of the parameters, in the order of those."""
    if isinstance(shape, int):
        return [_array(tree, place)]
    inner = shape.items() if isinstance(shape, dict) else enumerate(shape)
    fits = isinstance(tree, dict if isinstance(shape, dict) else (list, tuple)) and len(tree) == len(shape)
    if not fits or (isinstance(shape, dict) and set(tree) != shape.keys()):
        raise ValueError(f"{place}: expected the nesting of the parameters, got {type(tree).__name__}")
    return [leaf for key, s in inner for leaf in _leaves(tree[key], s, place + item(key))]


def _filled(tree: Any, shape: Any, arrays: list[Any]) -> Any:
    """The same nesting with other arrays."""
    if isinstance(shape, int):
        return arrays[shape]
    if isinstance(shape, dict):
        return {key: _filled(tree[key], s, arrays) for key, s in shape.items()}
    return type(tree)(_filled(inner, s, arrays) for inner, s in zip(tree, shape, strict=True))


# --- What they share ---------------------------------------------------------------------------------


def _library(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this needs {name}: pip install {name}") from error


def _expect_keys(place: str, value: Any, keys: Iterable[str]) -> None:
    if not isinstance(value, Mapping) or not value.keys() >= set(keys):
        found = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise TypeError(f"{place}: expected a dict with the keys {', '.join(keys)}, got {found}")


def _array(value: Any, place: str) -> np.ndarray:
    """A copy of a tensor, of a dtype that there is here."""
    try:
        array = np.array(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    except TypeError as error:      # a dtype that NumPy does not have
        raise TypeError(f"{place}: expected float32 or float64, got {value.dtype}") from error
    if array.dtype not in DTYPES:
        raise TypeError(f"{place}: expected float32 or float64, got {array.dtype}")
    return array


def _plain(value: Any) -> Any:
    """A number that may be a tensor, or several."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    return value.item() if hasattr(value, "item") else value


def _flat(names: Iterable[Any]) -> list[Any]:
    """Names, of which some are in pairs."""
    return [n for name in names for n in (name if isinstance(name, tuple) else (name,))]


def _signed(name: str, array: np.ndarray) -> np.ndarray:
    return np.array(-array if name.startswith("-") else array)


def _numbers(rule: str, convention: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters of a rule as they begin in a dialect, but for those given; checked."""
    kind = getattr(optimizers, rule)
    dialect = {"convention": convention} if len(kind.CONVENTIONS) > 1 else {}
    group: Group = kind(np.zeros((1, 1)), **dialect).groups[0]
    group.update({name: given[name] for name in given.keys() & group.hyperparameters().keys()})
    kind.check(group.raw())
    return group.hyperparameters()


def _renamed(values: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Numbers by our names."""
    return {
        ours: tuple(values[n] for n in name) if isinstance(name, tuple) else values[name]
        for ours, name in names.items()
    }


def _named(group: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """The inverse of `_renamed`."""
    return dict(zip(_flat(names.values()), _flat(group[ours] for ours in names), strict=True))


def _group(
    rule: str, convention: str, given: Mapping[str, Any], places: list[int], steps: int, product: float = 1.0
) -> dict[str, Any]:
    """A group as `_saved` takes it."""
    group = {**_numbers(rule, convention, given), "params": places, "schedules": {}, "steps": steps}
    return group | {"numbers": {"mu_product": product}} if rule == "NAdam" else group


def _saved(rule: str, groups: list[dict[str, Any]], states: list[States]) -> dict[str, Any]:
    """A `state_dict` of fastopt; groups count from their own first step."""
    steps = max((group["steps"] for group in groups), default=0)
    for group in groups:
        group["start"] = steps - group.pop("steps")
    return {"optimizer": rule, "steps": steps, "skipped_steps": 0, "groups": groups, "state": states}


def _slots_of(
    rule: str, group: Mapping[str, Any], table: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """The states that a rule has with the numbers of a group, and their names elsewhere."""
    kind = getattr(optimizers, rule)
    h = Hyperparameters(group)
    return {name: table[rule][name] for name in kind.STATES[kind.rule(h)]}


def _states(
    rule: str, group: Mapping[str, Any], columns: Mapping[str, Sequence[Any]], slots: Mapping[str, str]
) -> list[States]:
    """For each parameter its states by our names, of those there are."""
    wanted = _slots_of(rule, group, {rule: slots})
    return [
        {name: _signed(slot, _array(columns[name][k], f"{slot}[{k}]")) for name, slot in wanted.items()}
        for k in group["params"]
    ]


def _read(optimizer: Source, table: Iterable[str]) -> dict[str, Any]:
    """The `state_dict` of an optimizer of a rule in the table, with its numbers of the coming step."""
    if not isinstance(optimizer, Optimizer):
        _expect_keys("optimizer", optimizer, ("optimizer", "steps", "groups", "state"))
        saved = dict(optimizer)
    else:
        saved = optimizer.state_dict()
        for entry, group in zip(saved["groups"], optimizer.groups, strict=True):
            entry |= {name: group.evaluate(name, optimizer.steps) for name in group.schedules()}
    rule = saved["optimizer"]
    if rule not in table or not hasattr(optimizers, rule):
        known = [name for name in table if hasattr(optimizers, name)]
        raise ValueError(f"optimizer: expected one of {', '.join(known)}, got {rule}")
    for i, group in enumerate(saved["groups"]):
        place = f"optimizer['groups'][{i}]"
        _expect_keys(place, group, ("params", "start", *["numbers"] * (rule == "NAdam")))
        missing = sorted(_numbers(rule, "torch", {}).keys() - group.keys())
        if missing:
            raise ValueError(f"{place}: expected {missing[0]}; of a schedule, give the optimizer itself")
    for name in ("ema", "lookahead", "accumulated"):
        if name in saved:
            raise ValueError(f"optimizer: expected no {name}, for which there is no place elsewhere")
    return saved


def _refuse_set(
    rule: str, convention: str, group: Mapping[str, Any], names: Collection[str], where: str
) -> None:
    """Refuse hyperparameters that have no counterpart, and are not as they begin."""
    for name, value in _numbers(rule, convention, {}).items():
        if name not in names and group[name] != value:
            raise ValueError(f"{name}: expected {value!r}, as {where} has it, got {group[name]!r}")


def _one_group(
    optimizer: Source, convention: str, table: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `_read` returns, and the only group in it, which must be of a dialect."""
    saved = _read(optimizer, table)
    if len(saved["groups"]) != 1:
        raise ValueError(f"optimizer: expected one group, got {len(saved['groups'])}")
    (group,) = saved["groups"]
    found = group.get("convention", "torch")
    if found != convention:
        raise ValueError(f"convention: expected {convention!r}, got {found!r}; set it in opt.groups[0]")
    return saved, group


def _check_shapes(place: str, arrays: Sequence[Any], states: Sequence[States]) -> None:
    if len(arrays) != len(states):
        raise ValueError(f"{place}: expected {len(states)} as the optimizer has, got {len(arrays)}")
    for k, (array, state) in enumerate(zip(arrays, states, strict=True)):
        for value in state.values():
            if tuple(array.shape) != value.shape:
                raise ValueError(f"{place}[{k}]: expected shape {value.shape}, got {tuple(array.shape)}")
