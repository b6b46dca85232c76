"""Hyperparameters and fitted attributes of the estimators, and the validation of the hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from sklearn.utils._param_validation import Interval, Options, StrOptions

from fastopt._core.typing import AnyArray, Array, FloatOrSchedule
from fastopt.callbacks import BackupAndRestore, Callback
from fastopt.nn import History
from fastopt.nn.layers import ACTIVATIONS
from fastopt.nn.typing import Activation, Layers, Norm
from fastopt.optimizers import Optimizer
from fastopt.sklearn.solvers import SOLVERS

if TYPE_CHECKING:  # scikit-learn's classes have no types, and a base class without types would hide ours

    class BaseEstimator:
        def __getattr__(self, name: str) -> Any: ...
        def __getstate__(self) -> dict[str, Any]: ...
        def __setstate__(self, state: dict[str, Any]) -> None: ...
        def __sklearn_tags__(self) -> Any: ...
        def _validate_params(self) -> None: ...

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

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions({"logistic", *ACTIVATIONS}), "array-like"],
        "solver": [StrOptions(set(SOLVERS)), callable],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither"), callable],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {math.inf})],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "max_time": [Interval(Real, 0, None, closed="neither"), None],
    }


def check_params(estimator: MLPAttributes) -> None:
    """Check the hyperparameters, except for those that `fastopt.MLP` checks.

    scikit-learn requires estimators to do so in `fit`, not in the constructor. Its own check raises its own
    messages for the types and ranges in `_parameter_constraints`.
    """
    estimator._validate_params()
    params = estimator.get_params(deep=False)
    sizes = params["hidden_layer_sizes"]
    sizes = [sizes] if isinstance(sizes, Integral) else list(sizes)
    if not all(isinstance(size, Integral) and int(size) > 0 for size in sizes):
        raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}; expected positive integers.")
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
