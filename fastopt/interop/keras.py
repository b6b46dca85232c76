"""State of Keras 3 optimizers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from fastopt.interop import state_dict as sd

_COMMON = {"lr": "learning_rate", "weight_decay": "weight_decay"}
_BETAS = {**_COMMON, "betas": ("beta_1", "beta_2"), "eps": "epsilon"}
_MOMENTS = {"exp_avg": "momentum", "exp_avg_sq": "velocity"}
_ADAM = {**_BETAS, "amsgrad": "amsgrad"}, {**_MOMENTS, "max_exp_avg_sq": "velocity_hat"}
_OPTIMIZERS: sd.Table = {
    "SGD": (
        "SGD", {**_COMMON, "momentum": "momentum", "nesterov": "nesterov"},
        {"momentum_buffer": "-momentum"},
    ),
    "RMSprop": (
        "RMSprop",
        {**_COMMON, "alpha": "rho", "momentum": "momentum", "eps": "epsilon", "centered": "centered"},
        {"square_avg": "velocity", "grad_avg": "average_gradient", "momentum_buffer": "momentum"},
    ),
    "Adagrad": (
        "Adagrad", {**_COMMON, "initial_accumulator_value": "initial_accumulator_value", "eps": "epsilon"},
        {"sum": "accumulator"},
    ),
    "Adadelta": (
        "Adadelta", {**_COMMON, "rho": "rho", "eps": "epsilon"},
        {"square_avg": "accumulated_grad", "acc_delta": "accumulated_delta_var"},
    ),
    "Adam": ("Adam", *_ADAM),
    "AdamW": ("AdamW", *_ADAM),
    "Adamax": ("Adamax", _BETAS, {"exp_avg": "momentum", "exp_inf": "norm"}),
    "NAdam": ("Nadam", _BETAS, _MOMENTS),
    "Lion": ("Lion", {**_COMMON, "betas": ("beta_1", "beta_2")}, {"exp_avg": "momentum"}),
    "FTRL": (
        "Ftrl",
        {
            **_COMMON, "l1": "l1_regularization_strength", "l2": "l2_regularization_strength", "beta": "beta",
            "initial_accumulator_value": "initial_accumulator_value",
        },
        {"accumulator": "accumulator", "linear": "linear"},
    ),
    "LAMB": ("Lamb", _BETAS, _MOMENTS),
}


def from_keras(optimizer: Any) -> dict[str, Any]:
    """Convert the state of a Keras 3 optimizer for `load_state_dict` of a fastopt optimizer.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
        A built optimizer, as it is after the first step.

    Returns
    -------
    dict
        State dict with one group with ``convention="keras"`` and the parameters in the order of Keras's
        variables.
    """
    if not all(hasattr(optimizer, name) for name in ("get_config", "variables", "built")):
        raise TypeError(f"optimizer: expected one of keras.optimizers, got {type(optimizer).__name__}")
    keras_name = type(optimizer).__name__
    name = next((local for local, (foreign, *_) in _OPTIMIZERS.items() if foreign == keras_name), None)
    if name is None:
        supported = ", ".join(foreign for foreign, *_ in _OPTIMIZERS.values())
        raise ValueError(f"optimizer: expected one of {supported} of keras.optimizers, got {keras_name}")
    if not optimizer.built:
        raise ValueError("optimizer: expected a built one; take a step or call .build(variables)")
    _, names, table = _OPTIMIZERS[name]
    config = optimizer.get_config() | {"learning_rate": float(optimizer.learning_rate)}
    _refuse_unsupported_config(type(optimizer), config, names)
    if any(getattr(optimizer, f"_exclude_from_weight_decay{end}", None) for end in ("", "_pattern")):
        raise ValueError("optimizer: expected weight decay of all variables, got some that are excluded")
    values = sd.rename_from(config, names)
    values["weight_decay"] = values["weight_decay"] or 0.0
    variables = [(v.name, v.numpy()) for v in optimizer.variables]
    arrays = {
        local: [array for path, array in variables if path.endswith("_" + foreign.lstrip("-"))]
        for local, foreign in table.items()
    }
    n_params, steps = len(optimizer._trainable_variables), sd.to_count("iterations", variables[0][1])
    mu_product = float(variables[-1][1]) if name == "NAdam" else 1.0
    n_slots = sum(path not in ("iteration", "learning_rate") for path, _ in variables) - (name == "NAdam")
    counts = [len(slots) for slots in arrays.values()]
    if sum(counts) != n_slots or not {0, n_params}.issuperset(counts):
        raise ValueError(
            f"optimizer: expected the variables of keras.optimizers.{keras_name} and {n_params} parameters, "
            f"got {', '.join(path for path, _ in variables)}"
        )
    return sd.make_single_group(name, "keras", values, n_params, arrays, table, steps, mu_product)


def to_keras(optimizer: sd.OptimizerOrState, variables: Iterable[Any]) -> Any:
    """Create a Keras 3 optimizer that resumes from the state of a fastopt optimizer.

    Parameters
    ----------
    optimizer : Optimizer or dict
        A fastopt optimizer with ``convention="keras"`` and one group, or its `state_dict`.
    variables : list of keras.Variable
        Variables to train, in the order of the parameters: ``model.trainable_variables``.

    Returns
    -------
    keras.optimizers.Optimizer
        An optimizer that is built for `variables`.
    """
    keras = sd.import_library("keras", "keras")
    saved, group = sd.read_single_group(optimizer, "keras", _OPTIMIZERS)
    name, variables = saved["optimizer"], list(variables)
    keras_name, names, table = _OPTIMIZERS[name]
    sd.refuse_unsupported(name, "keras", group, names, f"keras.optimizers.{keras_name}")
    entries = sd.entries_of(saved, group)
    sd.check_shapes("variables", variables, entries)
    steps, scalars = sd.shared_scalars(entries, "keras")
    result = getattr(keras.optimizers, keras_name)(**sd.rename_to(group, names))
    result.build(variables)
    result.iterations.assign(steps)
    for local, foreign in table.items():
        slots = [v for v in result.variables if v.name.endswith("_" + foreign.lstrip("-"))]
        for slot, entry in zip(slots, entries, strict=False):
            if local in entry:
                slot.assign(sd.match_sign(foreign, entry[local]))
    if scalars:
        result.variables[-1].assign(scalars["mu_product"])
    return result


def _refuse_unsupported_config(cls: type, config: Mapping[str, Any], names: sd.Names) -> None:
    """Raise if an option of Keras that fastopt does not have differs from its default."""
    supported = {"name"}
    for foreign in names.values():
        supported |= set(foreign) if isinstance(foreign, tuple) else {foreign}
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in config and name not in supported and config[name] != parameter.default:
            raise ValueError(
                f"optimizer: expected {name}={parameter.default!r}, because fastopt has no such option, "
                f"got {config[name]!r}"
            )
