"""`MLPRegressor`: scikit-learn's regressor, trained by fastopt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.sparse import issparse
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from sklearn.utils.validation import validate_data

from fastopt.sklearn.base import BaseMLP, if_stochastic

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import ArrayLike

    from fastopt._core.typing import AnyArray, Array, FloatOrSchedule
    from fastopt.nn import Callback
    from fastopt.nn.typing import Activation, Layers, Norm, Samples
    from fastopt.optimizers import Optimizer

__all__ = ["MLPRegressor"]


class MLPRegressor(RegressorMixin, BaseMLP):
    """Multilayer perceptron regressor with scikit-learn's interface.

    The parameters of ``sklearn.neural_network.MLPRegressor`` have the same meaning and default, and
    the same random state gives the same model, up to rounding.

    Parameters
    ----------
    loss : {"squared_error", "poisson", "huber", "quantile"}, default "squared_error"
        Half the squared error; the Poisson loss of non-negative targets, for which the net's output is
        the logarithm of the prediction; the Huber loss with threshold `delta`; or the pinball loss of
        the `quantile`. Losses are summed over the outputs.
    hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate, learning_rate_init, power_t
        See `MLPClassifier`.
    max_iter, shuffle, random_state, tol, verbose, warm_start, momentum, nesterovs_momentum
        See `MLPClassifier`.
    early_stopping, validation_fraction, beta_1, beta_2, epsilon, n_iter_no_change, max_fun
        See `MLPClassifier`.
    dropout, norm, callbacks, max_time
        See `MLPClassifier`.
    delta : float, default 1.0
        Absolute error at which the Huber loss changes from quadratic to linear.
    quantile : float, default 0.5
        Quantile predicted with ``loss="quantile"``, between 0 and 1.

    Attributes
    ----------
    validation_scores_, best_validation_score_
        R2 of the validation data, NaN if a prediction is not finite.
    out_activation_ : str
        "identity", or "exp" for the Poisson loss.
    coefs_, intercepts_, loss_, loss_curve_, best_loss_, validation_loss_curve_, history_
        See `MLPClassifier`.
    n_iter_, t_, n_layers_, n_outputs_, n_features_in_, feature_names_in_
        See `MLPClassifier`.

    Raises
    ------
    ValueError, TypeError
        In `fit`, if a parameter or the data is invalid, or if training diverged.

    Examples
    --------
    >>> from fastopt.sklearn import MLPRegressor
    >>> model = MLPRegressor(hidden_layer_sizes=64, norm="layer", max_iter=500)
    >>> model.fit(X_train, y_train).predict(X_test)
    """

    loss: Literal["squared_error", "poisson", "huber", "quantile"]
    delta: float
    quantile: float

    def __init__(
        self, loss: Literal["squared_error", "poisson", "huber", "quantile"] = "squared_error",
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: Activation | Sequence[Activation] = "relu", *,
        solver: str | Callable[[Layers], Optimizer] = "adam", alpha: float = 0.0001,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: Literal["constant", "invscaling", "adaptive"] = "constant",
        learning_rate_init: FloatOrSchedule = 0.001, power_t: float = 0.5, max_iter: int = 200,
        shuffle: bool = True, random_state: int | np.random.RandomState | None = None, tol: float = 1e-4,
        verbose: bool = False, warm_start: bool = False, momentum: float = 0.9,
        nesterovs_momentum: bool = True, early_stopping: bool = False, validation_fraction: float = 0.1,
        beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8, n_iter_no_change: float = 10,
        max_fun: int = 15000, dropout: float | Sequence[float] = 0.0, norm: Norm | Sequence[Norm] = None,
        callbacks: Sequence[Callback] = (), max_time: float | None = None, delta: float = 1.0,
        quantile: float = 0.5,
    ) -> None:
        self._store_params(locals())

    @if_stochastic
    def partial_fit(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train for one epoch on `X` and `y`, resuming from the last call or `fit`.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, features)
        y : array_like, shape (n,) or (n, outputs)
        sample_weight : array_like, shape (n,), optional

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, None, incremental=True)

    def predict(self, X: Samples) -> Array:
        """Return the predicted values.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, features)

        Returns
        -------
        ndarray, shape (n,) or (n, outputs)
        """
        X = self._validate_X(X)
        return self._current_net().predict(X)

    def _validate(self, X: Any, y: Any, reset: bool) -> tuple[Any, AnyArray]:
        X, y = validate_data(
            self, X, y, accept_sparse="csr", multi_output=True, y_numeric=True,
            dtype=(np.float64, np.float32), reset=reset,
        )
        y = y.toarray() if issparse(y) else y
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if self.loss == "poisson" and (y < 0).any():
            raise ValueError(f"y: expected no negative value for loss='poisson', got {y.min()}")
        return X, y.astype(X.dtype, copy=False)

    def _set_target_attributes(self, y: AnyArray, incremental: bool) -> None:
        self.n_outputs_ = 1 if y.ndim == 1 else y.shape[1]
        self.out_activation_ = "exp" if self.loss == "poisson" else "identity"

    def _encode(self, y: AnyArray) -> AnyArray:
        return y

    def _loss_options(self) -> dict[str, Any]:
        return {"loss": self.loss, "delta": self.delta, "quantile": self.quantile}

    def _stratifies(self) -> bool:
        return False

    def _score_encoded(self, X: Any, y: AnyArray, sample_weight: AnyArray | None = None) -> float:
        predicted = self._net.predict(X)
        if not np.isfinite(predicted).all():
            return math.nan
        return float(r2_score(y, predicted, sample_weight=sample_weight))
