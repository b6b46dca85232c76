"""The base class of both estimators: data validation, the network, and the two ways to train it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import is_classifier, is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fastopt._core.typing import AnyArray
from fastopt.nn import History, Trainer
from fastopt.nn.typing import Samples, Validation
from fastopt.sklearn.net import PenalizedMLP, draw_weights
from fastopt.sklearn.params import MLPAttributes, check_params
from fastopt.sklearn.solvers import minimize_lbfgs
from fastopt.sklearn.training import Data, EpochOrder, NoImprovement, OptimizerView, TrainingState
from fastopt.sklearn.validation import combine_validation, warn_if_not_transformed

_F = TypeVar("_F", bound=Callable[..., Any])


def _is_stochastic(estimator: MLPAttributes) -> bool:
    """Return True, or raise the error that `available_if` turns into a missing `partial_fit`."""
    if estimator.solver == "lbfgs":
        raise AttributeError(
            "partial_fit is only available for stochastic optimizers. lbfgs is not stochastic."
        )
    return True


if_stochastic: Callable[[_F], _F] = available_if(_is_stochastic)


class BaseMLP(MLPAttributes):
    """Base class of the classifier and the regressor, which implement the methods without a body."""

    _net: PenalizedMLP
    _net_made_with: dict[str, Any]
    _random_state: np.random.RandomState
    _training: TrainingState

    def _set_target_attributes(self, y: AnyArray, incremental: bool) -> None:
        """Set `n_outputs_`, `out_activation_` and `classes_`."""
        raise NotImplementedError

    def _encode(self, y: Any) -> Any:
        """Return targets in the form that the loss of the network expects."""
        return y

    def _score_encoded(self, X: Any, y: AnyArray, sample_weight: AnyArray | None = None) -> float:
        """Return the score of the predictions for encoded targets."""
        raise NotImplementedError

    def _loss_options(self) -> dict[str, Any]:
        """Return the arguments of the network that select the loss."""
        raise NotImplementedError

    def fit(
        self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None,
        validation_data: Validation | None = None, *, X_val: Samples | None = None,
        y_val: ArrayLike | None = None, sample_weight_val: ArrayLike | None = None,
    ) -> Self:
        """Train on `X` and `y`.

        Training starts from new weights. With `warm_start`, it resumes from the last fit: weights, optimizer
        state, learning rate and order of the samples.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, features)
            float32 data is trained in float32, all other data in float64.
        y : array_like, shape (n,) or (n, outputs)
            Labels or target values.
        sample_weight : array_like, shape (n,), optional
            Weight of each sample.
        validation_data : (X, y) or (X, y, sample_weight), optional
            Samples to score after each epoch. With `early_stopping`, their score decides when to stop, and no
            training samples are set aside. Not supported by solver "lbfgs". A pipeline does not transform
            them: a UserWarning is raised if their scale differs from that of the training samples.
        X_val, y_val, sample_weight_val : array_like, optional
            The validation data as separate arguments, with the names that scikit-learn's gradient boosting
            estimators use. A pipeline with ``transform_input=["X_val"]`` transforms them.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If a hyperparameter or the data is invalid, or if training diverged.
        """
        validation = combine_validation(validation_data, X_val, y_val, sample_weight_val)
        return self._fit(X, y, sample_weight, validation, incremental=False)

    def _fit(
        self, X: Any, y: Any, sample_weight: ArrayLike | None, validation_data: Validation | None, *,
        incremental: bool,
    ) -> Self:
        check_params(self)
        if incremental and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if validation_data is not None and self.solver == "lbfgs":
            raise ValueError("validation_data: expected a stochastic solver with it, got 'lbfgs'")
        starts = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        X, y = self._validate(X, y, reset=starts)
        self._set_target_attributes(y, incremental)
        weights = self._sample_weight(X, y, sample_weight, incremental)
        validation = self._validate_validation(validation_data, X, y)
        y = self._encode(y)
        hidden: Any = self.hidden_layer_sizes
        hidden = [int(hidden)] if isinstance(hidden, Integral) else [int(size) for size in hidden]
        sizes = [X.shape[1], *hidden, self.n_outputs_]
        if starts:
            self._start(sizes, X.dtype)
        else:
            self._resume(sizes)
        if self.solver == "lbfgs":
            self._fit_lbfgs(X, y, weights)
        else:
            data = (X, y) if weights is None else (X, y, weights)
            self._fit_stochastic(data, validation, incremental)
        if not all(np.isfinite(array).all() for layer in self._net.params for array in layer):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and "
                "need to be preprocessed. Scale the features or lower learning_rate_init."
            )
        return self

    # --- The network -----------------------------------------------------------------------------

    def _start(self, sizes: list[int], dtype: np.dtype[Any]) -> None:
        """Make a network with initial weights and discard the state of earlier fits."""
        self._random_state = check_random_state(self.random_state)
        self._make_net(sizes, dtype)
        draw_weights(self._net, self._random_state)
        self._connect()
        self._reset_training()

    def _resume(self, sizes: list[int]) -> None:
        """Prepare the network of the last fit for the current hyperparameters."""
        net = self._current_net()
        if not hasattr(self, "_training"):      # the weights were assigned, not trained
            self._reset_training()
        if list(net.sizes) != sizes:
            raise ValueError(
                f"X, y and hidden_layer_sizes: expected layer sizes {list(net.sizes)} to resume from, "
                f"got {sizes}"
            )
        if self._net_made_with != self._net_options():
            self._make_net(sizes, net.dtype)
            self._net.load_state_dict(net.state_dict())
            self._connect()
        self._net.alpha = self.alpha

    def _reset_training(self) -> None:
        self._training = TrainingState(self._random_state.get_state())
        self.n_layers_ = len(self._net.sizes)
        self.n_iter_ = self.t_ = 0
        self.history_ = History()
        if self.solver != "lbfgs":
            self.loss_curve_ = []
            self.best_loss_ = None if self.early_stopping else np.inf
            self.validation_scores_ = self.validation_loss_curve_ = None
            self.best_validation_score_ = None

    def _net_options(self) -> dict[str, Any]:
        shared = {"activation": self.activation, "dropout": self.dropout, "norm": self.norm}
        return shared | self._loss_options()

    def _make_net(self, sizes: Sequence[int], dtype: Any) -> None:
        self._net_made_with = self._net_options()
        self._net = self._new_net(sizes, dtype)

    def _new_net(self, sizes: Sequence[int], dtype: Any) -> PenalizedMLP:
        # Only dropout needs a seed. Without dropout, the random state must match scikit-learn's.
        seed = self._random_state.randint(2**31) if np.any(self.dropout) else 0
        return PenalizedMLP(sizes, alpha=self.alpha, dtype=dtype, seed=seed, **self._net_options())

    def _connect(self) -> None:
        """Make `coefs_` and `intercepts_` refer to the arrays of the network."""
        self.coefs_ = [layer[0] for layer in self._net.params]
        self.intercepts_ = [layer[1] for layer in self._net.params]

    def _current_net(self) -> PenalizedMLP:
        """Return the network, after copying weights assigned to `coefs_` and `intercepts_` into it."""
        assigned = [*zip(self.coefs_, self.intercepts_, strict=True)]
        sizes = (len(self.coefs_[0]), *(len(b) for b in self.intercepts_))
        if not hasattr(self, "_net") or tuple(self._net.sizes) != sizes:
            self._random_state = check_random_state(self.random_state)
            self._make_net(sizes, self.coefs_[0].dtype)
        for layer, arrays in zip(self._net.params, assigned, strict=True):
            for param, array in zip(layer[:2], arrays, strict=True):
                if array is not param:
                    param[...] = array
        self._connect()
        return self._net

    # --- Training --------------------------------------------------------------------------------

    def _fit_lbfgs(self, X: Any, y: AnyArray, weights: AnyArray | None) -> None:
        """Minimize in float64, which the line search needs; the solution has the dtype of the network."""
        net = self._net
        if net.dtype != np.float64:
            net = self._new_net(self._net.sizes, np.float64)
            net.load_state_dict({k: v.astype(np.float64) for k, v in self._net.state_dict().items()})
        result = minimize_lbfgs(
            net, X, y, weights, max_iter=self.max_iter, max_fun=self.max_fun, tol=self.tol,
            max_time=self.max_time, verbose=bool(self.verbose),
        )
        self.loss_ = net.reported_loss(float(result.fun), net.penalty(), y, weights)
        self.n_iter_ = min(int(result.nit), self.max_iter)
        if net is not self._net:
            self._net.load_state_dict({k: v.astype(self._net.dtype) for k, v in net.state_dict().items()})
        if result.status not in (0, 99):    # converged, or stopped by max_time
            warnings.warn(
                f"lbfgs failed to converge after {result.nit} iteration(s) (status={result.status}):\n"
                f"{result.message} Increase max_iter or max_fun, or scale the features.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _fit_stochastic(self, data: Data, validation: Data | None, incremental: bool) -> None:
        if self.early_stopping and validation is None:
            data, validation = self._split(data)
        X, y, weights = (*data, None)[:3]
        n_samples = X.shape[0]
        batch_size = min(200, n_samples) if self.batch_size == "auto" else self.batch_size
        if batch_size > n_samples:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped: "
                f"{batch_size} samples in a batch, {n_samples} in the data.",
                stacklevel=4,
            )
        if validation is not None and self.validation_scores_ is None:
            self.validation_scores_, self.validation_loss_curve_ = [], []
            self.best_validation_score_ = -np.inf
        state = self._training
        order = EpochOrder(self._random_state, state.order)
        stopping = NoImprovement(self, state, self._net, validation, self._score_encoded)
        opt = state.resume_optimizer(self, self._net.params)
        trainer = Trainer(self._net, opt, [stopping, *self.callbacks])
        trainer.history = self.history_
        state.set_learning_rate(self)
        self.n_iter_ = 0
        for callback in state.seen_callbacks:
            callback.trainer = trainer      # so that the trainer does not reset their state
        epochs = 1 if incremental else self.max_iter
        try:
            trainer.fit(
                X, y, min(batch_size, n_samples), epochs, validation, verbose=0, shuffle=self.shuffle,
                seed=order, sample_weight=weights, max_time=self.max_time, training_accuracy=False,
            )
        finally:
            for callback in self.callbacks:     # clone and pickle would copy the trainer
                callback.trainer = None  # type: ignore[assignment]
        state.seen_callbacks = list(self.callbacks)
        state.order = order.order if self.warm_start else None
        if stopping.best is not None:
            self._net.load_state_dict(stopping.best)
        if self.history_.interrupted:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        elif not incremental and not self.history_.stopped_by:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization "
                "hasn't converged yet.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _split(self, data: Data) -> tuple[Data, Data]:
        """Set samples aside for validation: the same ones in every fit that resumes."""
        random_state = self._random_state
        if self.t_:
            random_state = np.random.RandomState()
            random_state.set_state(self._training.split_state)
        # As in scikit-learn, the proportions of the classes are preserved for a single output only.
        stratify = data[1] if is_classifier(self) and self.n_outputs_ == 1 else None
        parts = train_test_split(
            *data, test_size=self.validation_fraction, random_state=random_state, stratify=stratify
        )
        train, validation = tuple(parts[::2]), tuple(parts[1::2])
        n_validation = validation[0].shape[0]
        if n_validation < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your "
                f"dataset: {n_validation} of {data[0].shape[0]} samples are set aside, expected at least 2."
            )
        return train, validation

    # --- Data ------------------------------------------------------------------------------------

    def _validate(self, X: Any, y: Any, reset: bool) -> tuple[Any, AnyArray]:
        """Return X and y as arrays of the right type and shape."""
        X, y = validate_data(
            self, X, y, accept_sparse="csr", multi_output=True, y_numeric=is_regressor(self),
            dtype=(np.float64, np.float32), reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y

    def _sample_weight(
        self, X: Any, y: AnyArray, sample_weight: ArrayLike | None, incremental: bool
    ) -> AnyArray | None:
        return None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=X.dtype)

    def _validate_validation(self, data: Validation | None, trained_X: Any, trained_y: Any) -> Data | None:
        if data is None:
            return None
        if not isinstance(data, tuple | list) or len(data) not in (2, 3):
            raise ValueError(
                f"validation_data: expected (X, y) or (X, y, sample_weight), got {type(data).__name__}"
            )
        X, y = self._validate(data[0], data[1], reset=False)
        warn_if_not_transformed("X", trained_X, X)
        if is_regressor(self):
            warn_if_not_transformed("y", trained_y, y)
        weights = self._sample_weight(X, y, data[2] if len(data) == 3 else None, True)
        return (X, self._encode(y)) if weights is None else (X, self._encode(y), weights)

    def _validate_X(self, X: Samples) -> Any:
        if self._is_plain(X):
            return X
        check_is_fitted(self)
        return validate_data(self, X, accept_sparse="csr", reset=False)

    def _is_plain(self, X: Any) -> bool:
        """Return whether scikit-learn's validation, which takes longer than a prediction, can be omitted.

        The network refuses NaN and Inf itself. Names of features are compared by scikit-learn.
        """
        return (
            type(X) is np.ndarray and X.ndim == 2 and X.dtype in (np.float32, np.float64) and len(X) > 0
            and hasattr(self, "coefs_") and not hasattr(self, "feature_names_in_")
            and X.shape[1] == self.n_features_in_
        )

    # --- scikit-learn's protocols ----------------------------------------------------------------

    @property
    def _optimizer(self) -> OptimizerView:
        """The learning rate under the private name that code for scikit-learn reads."""
        training = self.__dict__.get("_training")
        if training is None or training.optimizer is None:
            raise AttributeError(f"{type(self).__name__}: there is no optimizer before a stochastic fit")
        return OptimizerView(training.resume_optimizer(self, self._current_net().params))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Omit `coefs_` and `intercepts_`, which are in the network: joblib would store them twice."""
        state = dict(super().__getstate__())
        if "_net" in state:
            self._current_net()
            del state["coefs_"], state["intercepts_"]
        if "_training" in state:
            state["_training"] = self._training.detached()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_net" in state:
            self._connect()
