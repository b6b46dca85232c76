"""Checks of the estimators' parameters, made when training begins, as scikit-learn wants it."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.validation import check_int
from fastopt.callbacks import BackupAndRestore, Callback
from fastopt.sklearn.solvers import SOLVERS

if TYPE_CHECKING:
    from fastopt.sklearn.estimators import _BaseMLP

__all__ = ["check_params", "hidden_sizes"]

# The least and the greatest allowed, and which of them are not.
_NUMBERS = {
    "alpha": (0.0, math.inf, "[)"),
    "power_t": (0.0, math.inf, "[)"),
    "tol": (0.0, math.inf, "[)"),
    "momentum": (0.0, 1.0, "[]"),
    "validation_fraction": (0.0, 1.0, "[)"),
    "beta_1": (0.0, 1.0, "[)"),
    "beta_2": (0.0, 1.0, "[)"),
    "epsilon": (0.0, math.inf, "()"),
    "learning_rate_init": (0.0, math.inf, "()"),
    "max_time": (0.0, math.inf, "()"),
}
_FLAGS = ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping")
_LEARNING_RATES = ("constant", "invscaling", "adaptive")
_WITHOUT_LBFGS = ("callbacks", "dropout")


def check_params(estimator: _BaseMLP) -> None:
    """Refuse parameters of a wrong type or value; those of the net alone are for the net to check.

    Raises
    ------
    TypeError, ValueError
        With the parameter's name, what was expected and what came.
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
    for name in _NUMBERS:
        unset = name == "max_time" and params[name] is None
        if not unset and not (name == "learning_rate_init" and callable(params[name])):
            _check_number(name, params[name])
    _check_choice("learning_rate", params["learning_rate"], _LEARNING_RATES)
    if not callable(params["solver"]):
        _check_choice("solver", params["solver"], SOLVERS)
    _check_callbacks(params["callbacks"])
    if params["solver"] == "lbfgs":
        for name in _WITHOUT_LBFGS:
            if np.any(params[name]):
                raise ValueError(f"{name}: expected none with solver='lbfgs', got {params[name]!r}")


def hidden_sizes(value: Any) -> list[int]:
    """Return the widths of the hidden layers, which may be given as a number, as a list of int."""
    values = [value] if isinstance(value, Integral) else list(value)
    return [check_int("hidden_layer_sizes", size, 1) for size in values]


def _check_callbacks(callbacks: Any) -> None:
    if not isinstance(callbacks, list | tuple) or not all(isinstance(c, Callback) for c in callbacks):
        raise TypeError(f"callbacks: expected a list of fastopt.Callback objects, got {callbacks!r}")
    if any(isinstance(c, BackupAndRestore) for c in callbacks):
        raise ValueError(
            "callbacks: expected no BackupAndRestore, which knows nothing of the estimator's attributes; "
            "use warm_start and pickle the estimator"
        )


def _check_number(name: str, value: Any) -> None:
    low, high, ends = _NUMBERS[name]
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    number: Any = value
    above = number >= low if ends[0] == "[" else number > low
    below = number <= high if ends[1] == "]" else number < high
    if not (above and below):
        raise ValueError(f"{name}: expected a number in {ends[0]}{low:g}, {high:g}{ends[1]}, got {value!r}")


def _check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
