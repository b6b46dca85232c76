"""Hyperparameters and fitted attributes of the estimators, and the validation of the hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sklearn.base import BaseEstimator

from fastopt._core.validation import check_choice, check_float, check_int
from fastopt.callbacks import BackupAndRestore, Callback
from fastopt.sklearn.solvers import SOLVERS

if TYPE_CHECKING:
    from fastopt._core.typing import AnyArray, Array, FloatOrSchedule
    from fastopt.nn import History
    from fastopt.nn.typing import Activation, Layers, Norm
    from fastopt.optimizers import Optimizer

__all__ = ["MLPAttributes", "check_params", "hidden_sizes"]

_NON_NEGATIVE = ("alpha", "power_t", "tol", "momentum")
_BELOW_1 = ("validation_fraction", "beta_1", "beta_2")
_POSITIVE = ("epsilon", "learning_rate_init", "max_time")
_FLAGS = ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping")
_LEARNING_RATES = ("constant", "invscaling", "adaptive")
_NOT_WITH_LBFGS = ("callbacks", "dropout")


class MLPAttributes(BaseEstimator):
    """Hyperparameters and public fitted attributes that both estimators share."""

    hidden_layer_sizes: int | Sequence[int]
    activation: Activation | Sequence[Activation]
    solver: str | Callable[[Layers], Optimizer]
    alpha: float
    batch_size: int | Literal["auto"]
    learning_rate: Literal["constant", "invscaling", "adaptive"]
    learning_rate_init: FloatOrSchedule
    power_t: float
    max_iter: int
    shuffle: bool
    random_state: int | np.random.RandomState | None
    tol: float
    verbose: bool
    warm_start: bool
    momentum: float
    nesterovs_momentum: bool
    early_stopping: bool
    validation_fraction: float
    beta_1: float
    beta_2: float
    epsilon: float
    n_iter_no_change: float
    max_fun: int
    dropout: float | Sequence[float]
    norm: Norm | Sequence[Norm]
    callbacks: Sequence[Callback]
    max_time: float | None

    coefs_: list[Array]
    intercepts_: list[Array]
    loss_: float
    loss_curve_: list[float]
    best_loss_: float | None
    validation_scores_: list[float] | None
    validation_loss_curve_: list[float] | None
    best_validation_score_: float | None
    history_: History
    n_iter_: int
    t_: int
    n_layers_: int
    n_outputs_: int
    out_activation_: str
    n_features_in_: int
    feature_names_in_: AnyArray

    def _store_params(self, arguments: Mapping[str, Any]) -> None:
        """Store the ``locals()`` of ``__init__``, which are its arguments, as attributes."""
        for name, value in arguments.items():
            if name != "self":
                setattr(self, name, value)


def check_params(estimator: MLPAttributes) -> None:
    """Check types and values of the hyperparameters, except for those that `fastopt.MLP` checks.

    scikit-learn requires estimators to do so in `fit`, not in the constructor.

    Raises
    ------
    TypeError, ValueError
        If a hyperparameter is invalid.
    """
    params = estimator.get_params(deep=False)
    for name in ("max_iter", "max_fun"):
        check_int(name, params[name], 1)
    if params["batch_size"] != "auto":
        check_int("batch_size", params["batch_size"], 1)
    if params["n_iter_no_change"] != math.inf:
        check_int("n_iter_no_change", params["n_iter_no_change"], 1)
    for name in _FLAGS:
        if not isinstance(params[name], bool | np.bool_):
            raise TypeError(f"{name}: expected True or False, got {params[name]!r}")
    for name in _NON_NEGATIVE:
        check_float(name, params[name], 0.0)
    if params["momentum"] > 1.0:
        raise ValueError(f"momentum: expected a number in [0, 1], got {params['momentum']!r}")
    for name in _BELOW_1:
        check_float(name, params[name], 0.0, 1.0)
    for name in _POSITIVE:
        is_schedule = name == "learning_rate_init" and callable(params[name])
        if not is_schedule and not (name == "max_time" and params[name] is None):
            check_float(name, params[name], 0.0, open_low=True)
    check_choice("learning_rate", params["learning_rate"], _LEARNING_RATES)
    if not callable(params["solver"]):
        check_choice("solver", params["solver"], SOLVERS)
    _check_callbacks(params["callbacks"])
    if params["solver"] == "lbfgs":
        for name in _NOT_WITH_LBFGS:
            if np.any(params[name]):
                raise ValueError(f"{name}: expected none with solver='lbfgs', got {params[name]!r}")


def hidden_sizes(value: Any) -> list[int]:
    """Return `hidden_layer_sizes`, an int or a sequence of int, as a list of int."""
    values = [value] if isinstance(value, Integral) else list(value)
    return [check_int("hidden_layer_sizes", size, 1) for size in values]


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, list | tuple) or not all(isinstance(c, Callback) for c in callbacks):
        raise TypeError(f"callbacks: expected a list of fastopt.Callback objects, got {callbacks!r}")
    if any(isinstance(c, BackupAndRestore) for c in callbacks):
        raise ValueError(
            "callbacks: expected no BackupAndRestore, which does not save the estimator's attributes; "
            "use warm_start and pickle the estimator"
        )
