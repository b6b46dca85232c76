"""Hyperparameters and fitted attributes of the estimators, and the validation of the hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastopt._core.typing import AnyArray, Array, FloatOrSchedule
from fastopt._core.validation import check_choice, check_float, check_int
from fastopt.callbacks import BackupAndRestore, Callback
from fastopt.nn import History
from fastopt.nn.typing import Activation, Layers, Norm
from fastopt.optimizers import Optimizer
from fastopt.sklearn.solvers import SOLVERS

if TYPE_CHECKING:  # scikit-learn's classes have no types, and a base class without types would hide ours

    class BaseEstimator:
        def __getattr__(self, name: str) -> Any: ...
        def __getstate__(self) -> dict[str, Any]: ...
        def __setstate__(self, state: dict[str, Any]) -> None: ...
        def __sklearn_tags__(self) -> Any: ...

    class ClassifierMixin:
        def __sklearn_tags__(self) -> Any: ...

    class RegressorMixin:
        def __sklearn_tags__(self) -> Any: ...
else:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin  # noqa: F401 (for estimators.py)


class FittedAttributes(BaseEstimator):
    """Public attributes that `fit` sets."""

    coefs_: list[Array]
    intercepts_: list[Array]
    classes_: AnyArray
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


@dataclass(eq=False, repr=False)
class MLPAttributes(FittedAttributes):
    """Constructor arguments that both estimators share."""

    hidden_layer_sizes: int | Sequence[int] = (100,)
    activation: Activation | Sequence[Activation] = "relu"
    _: KW_ONLY
    solver: str | Callable[[Layers], Optimizer] = "adam"
    alpha: float = 0.0001
    batch_size: int | Literal["auto"] = "auto"
    learning_rate: Literal["constant", "invscaling", "adaptive"] = "constant"
    learning_rate_init: FloatOrSchedule = 0.001
    power_t: float = 0.5
    max_iter: int = 200
    shuffle: bool = True
    random_state: int | np.random.RandomState | None = None
    tol: float = 1e-4
    verbose: bool = False
    warm_start: bool = False
    momentum: float = 0.9
    nesterovs_momentum: bool = True
    early_stopping: bool = False
    validation_fraction: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    n_iter_no_change: float = 10
    max_fun: int = 15000
    dropout: float | Sequence[float] = 0.0
    norm: Norm | Sequence[Norm] = None
    callbacks: Sequence[Callback] = ()
    max_time: float | None = None


def check_params(estimator: MLPAttributes) -> None:
    """Check types and values of the hyperparameters, except for those that `fastopt.MLP` checks.

    scikit-learn requires estimators to do so in `fit`, not in the constructor.
    """
    params = estimator.get_params(deep=False)
    for name in ("max_iter", "max_fun"):
        check_int(name, params[name], 1)
    if params["batch_size"] != "auto":
        check_int("batch_size", params["batch_size"], 1)
    if params["n_iter_no_change"] != math.inf:
        check_int("n_iter_no_change", params["n_iter_no_change"], 1)
    for name in ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping"):
        if not isinstance(params[name], bool | np.bool_):
            raise TypeError(f"{name}: expected True or False, got {params[name]!r}")
    for name in ("alpha", "power_t", "tol", "momentum"):
        check_float(name, params[name], 0.0)
    if params["momentum"] > 1.0:
        raise ValueError(f"momentum: expected a number in [0, 1], got {params['momentum']!r}")
    for name in ("validation_fraction", "beta_1", "beta_2"):
        check_float(name, params[name], 0.0, 1.0)
    check_float("epsilon", params["epsilon"], 0.0, open_low=True)
    if not callable(params["learning_rate_init"]):
        check_float("learning_rate_init", params["learning_rate_init"], 0.0, open_low=True)
    if params["max_time"] is not None:
        check_float("max_time", params["max_time"], 0.0, open_low=True)
    check_choice("learning_rate", params["learning_rate"], ("constant", "invscaling", "adaptive"))
    if not callable(params["solver"]):
        check_choice("solver", params["solver"], SOLVERS)
    callbacks = params["callbacks"]
    if not isinstance(callbacks, list | tuple) or not all(isinstance(c, Callback) for c in callbacks):
        raise TypeError(f"callbacks: expected a list of fastopt.Callback objects, got {callbacks!r}")
    if any(isinstance(c, BackupAndRestore) for c in callbacks):
        raise ValueError(
            "callbacks: expected no BackupAndRestore, which does not save the estimator's attributes; "
            "use warm_start and pickle the estimator"
        )
    if params["solver"] == "lbfgs":
        for name in ("callbacks", "dropout"):
            if np.any(params[name]):
                raise ValueError(f"{name}: expected none with solver='lbfgs', got {params[name]!r}")
