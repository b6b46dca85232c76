"""State of the optimizers in scikit-learn's multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fastopt.interop import state_dict as sd

_OPTIMIZERS: sd.Table = {
    "SGD": (
        "SGDOptimizer", {"lr": "learning_rate", "momentum": "momentum", "nesterov": "nesterov"},
        {"momentum_buffer": "-velocities"},
    ),
    "Adam": (
        "AdamOptimizer", {"lr": "learning_rate_init", "betas": ("beta_1", "beta_2"), "eps": "epsilon"},
        {"exp_avg": "ms", "exp_avg_sq": "vs"},
    ),
}


def from_sklearn(estimator: Any) -> dict[str, Any]:
    """Convert the state of a scikit-learn optimizer for `load_state_dict` of a fastopt optimizer.

    Parameters
    ----------
    estimator : MLPClassifier, MLPRegressor or their `_optimizer`
        A scikit-learn estimator that was fitted with solver "adam" or "sgd".

    Returns
    -------
    dict
        State dict with one group with ``convention="sklearn"`` and the parameters in the order
        ``estimator.coefs_ + estimator.intercepts_``. ``steps`` is 0 for SGD, which does not count steps.
    """
    optimizer = getattr(estimator, "_optimizer", estimator)
    name = "Adam" if hasattr(optimizer, "ms") else "SGD"
    _, names, table = _OPTIMIZERS[name]
    attributes = dict(vars(optimizer)) if hasattr(optimizer, "__dict__") else {}
    if hasattr(optimizer, "state_arrays"):      # installed by `fastopt.sklearn.patch`
        attributes |= optimizer.state_arrays()
    if not all(foreign.lstrip("-") in attributes for foreign in table.values()):
        raise TypeError(
            "estimator: expected an MLPClassifier or MLPRegressor of scikit-learn, fitted with the solver "
            f"'adam' or 'sgd', got {type(estimator).__name__}"
        )
    arrays = {local: attributes[foreign.lstrip("-")] for local, foreign in table.items()}
    n_params = len(next(iter(arrays.values())))
    values, steps = sd.rename_from(attributes, names), sd.to_count("t", attributes.get("t", 0))
    return sd.make_single_group(name, "sklearn", values, n_params, arrays, table, steps)


def to_sklearn(optimizer: sd.OptimizerOrState, params: Iterable[np.ndarray]) -> Any:
    """Create a scikit-learn optimizer that resumes from the state of a fastopt optimizer.

    The next `partial_fit` uses it after ::

        mlp._optimizer = fastopt.interop.to_sklearn(opt, mlp.coefs_ + mlp.intercepts_)

    Parameters
    ----------
    optimizer : Optimizer or dict
        A fastopt Adam or SGD with ``convention="sklearn"`` and one group, or its `state_dict`.
    params : list of ndarray
        Arrays to train, in the order of the parameters.

    Returns
    -------
    AdamOptimizer or SGDOptimizer
        A scikit-learn optimizer with a constant learning rate.
    """
    module = sd.import_library("sklearn.neural_network._stochastic_optimizers", "scikit-learn")
    saved, group = sd.read_single_group(optimizer, "sklearn", _OPTIMIZERS)
    name, params = saved["optimizer"], list(params)
    foreign_name, names, table = _OPTIMIZERS[name]
    sd.refuse_unsupported(name, "sklearn", group, names, f"scikit-learn's {foreign_name}")
    entries = sd.entries_of(saved, group)
    sd.check_shapes("params", params, entries)
    steps, _ = sd.shared_scalars(entries, "scikit-learn")
    result = getattr(module, foreign_name)(params, group["lr"])
    vars(result).update(sd.rename_to(group, names))
    if name == "Adam":
        result.t = steps
    for local, foreign in table.items():
        arrays = getattr(result, foreign.lstrip("-"))       # zeros
        for k, entry in enumerate(entries):
            if local in entry:
                arrays[k] = sd.match_sign(foreign, entry[local])
    return result
