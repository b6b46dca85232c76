"""`MLPClassifier` and `MLPRegressor`: scikit-learn's estimators, trained by fastopt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.metrics import r2_score
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call,
    check_classification_targets,
    type_of_target,
    unique_labels,
)

from fastopt._core.typing import AnyArray, Array
from fastopt.nn.typing import ClassWeight, Samples
from fastopt.sklearn.base import BaseMLP, if_stochastic
from fastopt.sklearn.params import ClassifierMixin, RegressorMixin


@dataclass(eq=False, repr=False, kw_only=True)
class MLPClassifier(ClassifierMixin, BaseMLP):
    """Multilayer perceptron classifier with scikit-learn's interface.

    The parameters of ``sklearn.neural_network.MLPClassifier`` have the same meaning and default, and the same
    random state gives the same model, up to rounding. `solver`, `activation` and `learning_rate_init` accept
    more values. The parameters after `max_fun` are additional.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
        Widths of the hidden layers; an empty sequence gives logistic regression.
    activation : str or sequence of str, default "relu"
        Any activation of `fastopt.MLP`: one name, or one per hidden layer.
    solver : str or callable, default "adam"
        ``"lbfgs"``, or the lower-case name of any fastopt optimizer: ``"adam"``, ``"sgd"``, ``"adamw"``,
        ``"rmsprop"``, ...; ``"momentum"`` and ``"nesterov"`` are ``"sgd"`` with a fixed `nesterovs_momentum`.
        All use the learning rate `learning_rate_init`; some optimizers, such as ``"adadelta"`` and
        ``"prodigy"``, need a value near 1. Alternatively, a callable that takes the parameters and returns an
        optimizer, such as ``functools.partial(fastopt.AdamW, lr=3e-4)`` or a
        `fastopt.mpi.DistributedOptimizer`; it sets all hyperparameters itself, and `learning_rate_init` is
        ignored.
    alpha : float, default 1e-4
        L2 penalty of the weights. The loss of a batch includes ``alpha / 2 * sum(W**2)``, divided by the
        number of samples.
    batch_size : int or "auto", default "auto"
        ``"auto"`` is 200 or the number of samples, whichever is smaller. ``"lbfgs"`` uses all samples.
    learning_rate : {"constant", "invscaling", "adaptive"}, default "constant"
        ``"invscaling"`` divides the learning rate by ``(t_ + 1) ** power_t`` after each epoch;
        ``"adaptive"`` divides it by 5 when training would otherwise stop without improvement, and stops once
        it is at most 1e-6. Ignored by ``"adam"``.
    learning_rate_init : float or schedule, default 1e-3
        A schedule is a callable of the number of finished steps, see `fastopt.schedules`; it requires
        ``learning_rate="constant"``.
    power_t : float, default 0.5
        Exponent of ``"invscaling"``.
    max_iter : int, default 200
        Maximum number of epochs of a `fit`; with ``"lbfgs"``, of iterations.
    shuffle : bool, default True
        Shuffle the samples in each epoch.
    random_state : int, RandomState or None, default None
        Determines the initial weights, the validation split, the order of the samples, and dropout.
    tol : float, default 1e-4
        Training stops when the loss or validation score has not improved by `tol` for more than
        `n_iter_no_change` epochs. With ``"lbfgs"``, training stops when no component of the gradient is
        larger than `tol`.
    verbose : bool, default False
        Print the loss of each epoch.
    warm_start : bool, default False
        Let `fit` continue from the previous fit, including optimizer state, learning rate and order of the
        samples: two fits of five epochs equal one of ten.
    momentum : float, default 0.9
        Momentum of ``"sgd"``.
    nesterovs_momentum : bool, default True
        Use Nesterov momentum with ``"sgd"``.
    early_stopping : bool, default False
        Set training samples aside for validation, stop when their score no longer improves, and restore the
        weights of the best epoch.
    validation_fraction : float, default 0.1
        Fraction of the samples set aside, unless `fit` is given validation data.
    beta_1, beta_2, epsilon : float, default 0.9, 0.999, 1e-8
        Hyperparameters of ``"adam"`` and ``"adamw"``; the other optimizers use their own defaults.
    n_iter_no_change : int or inf, default 10
        Epochs without improvement after which training stops.
    max_fun : int, default 15000
        Maximum number of loss evaluations of ``"lbfgs"``.
    dropout : float or sequence of float, default 0.0
        Dropout probability: one value, or one per hidden layer.
    norm : {None, "batch", "layer"} or a sequence of them, default None
        Normalization before the activation: one value, or one per hidden layer.
    callbacks : sequence of fastopt.Callback, default ()
        Callbacks of the training run; not supported by ``"lbfgs"``.
    max_time : float or None, default None
        Time limit in seconds, after which `fit` stops at the end of a batch.
    class_weight : dict, "balanced" or None, default None
        Class weights, which are multiplied by the sample weights.

    Attributes
    ----------
    coefs_, intercepts_ : list of ndarray
        Weights ``(in, out)`` and biases of each layer. These are the arrays of the network: you can modify or
        replace them.
    classes_ : ndarray
        Sorted labels.
    loss_ : float
        Loss of the last epoch, including the penalty.
    loss_curve_ : list of float
        Loss of each epoch. This attribute and those up to `best_validation_score_` do not exist with
        ``"lbfgs"``.
    best_loss_ : float or None
        Lowest loss; None with `early_stopping`.
    validation_scores_, validation_loss_curve_ : list of float or None
        Accuracy and loss (without the penalty) of the validation data after each epoch; None without
        validation data.
    best_validation_score_ : float or None
        Highest validation score.
    history_ : fastopt.History
        All values recorded per epoch, including learning rates and times.
    n_iter_ : int
        Number of epochs or iterations of the last `fit`.
    t_ : int
        Number of training samples seen so far.
    n_layers_, n_outputs_ : int
        Number of layers, including input and output; number of outputs, 1 for two classes.
    out_activation_ : str
        "softmax", or "logistic" for two classes and for multi-label targets.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of str
        Feature names, if `X` has them.

    References
    ----------
    Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    AISTATS 2010: the initial weights.

    Examples
    --------
    >>> from fastopt.sklearn import MLPClassifier
    >>> model = MLPClassifier((64, 32), solver="adamw", dropout=0.2, early_stopping=True)
    >>> model.fit(X_train, y_train).score(X_test, y_test)
    """

    class_weight: ClassWeight | None = None

    @if_stochastic
    def partial_fit(
        self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> Self:
        """Train for one epoch on `X` and `y`, resuming from the last call or `fit`.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, features)
        y : array_like, shape (n,) or (n, outputs)
            Labels, which need not include every class.
        sample_weight : array_like, shape (n,), optional
        classes : array_like, shape (n_classes,), optional
            All labels; required in the first call only.

        Returns
        -------
        self
        """
        _check_partial_fit_first_call(self, classes)
        return self._fit(X, y, sample_weight, None, incremental=True)

    def predict(self, X: Samples) -> AnyArray:
        """Return the most probable label, or the labels with a probability above 1/2 for multi-label targets.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, features)

        Returns
        -------
        ndarray, shape (n,) or (n, labels)
        """
        X = self._validate_X(X)
        labels = self._current_net().predict(X)
        return labels if labels.ndim == 2 else self.classes_[labels]

    def predict_proba(self, X: Samples) -> Array:
        """Return the probability of each class, in the order of `classes_`.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, features)

        Returns
        -------
        ndarray, shape (n, classes)
            For multi-label targets, the independent probability of each label.
        """
        X = self._validate_X(X)
        return self._current_net().predict_proba(X)

    def predict_log_proba(self, X: Samples) -> Array:
        """Return the logarithm of `predict_proba`.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, features)

        Returns
        -------
        ndarray, shape (n, classes)
        """
        probabilities = self.predict_proba(X)
        with np.errstate(divide="ignore"):
            return np.log(probabilities, out=probabilities)

    def _set_target_attributes(self, y: AnyArray, incremental: bool) -> None:
        if y.ndim == 1 and y.dtype.kind in "iub":       # what scikit-learn's functions find, in less time
            target_type, labels = "multiclass", np.unique(y)
        else:
            check_classification_targets(y)
            target_type = type_of_target(y)
            if target_type == "multiclass-multioutput":
                raise ValueError(
                    "Multioutput target data is not supported with label binarization: expected one label "
                    "per sample, or columns of 0 and 1"
                )
            labels = unique_labels(y)
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self.classes_ = labels
        elif not incremental and not np.array_equal(labels, self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                f"Previously got {self.classes_}, `y` has {labels}"
            )
        if target_type == "multilabel-indicator":
            self.n_outputs_, self.out_activation_ = y.shape[1], "logistic"
        elif len(self.classes_) > 2:
            self.n_outputs_, self.out_activation_ = len(self.classes_), "softmax"
        else:
            self.n_outputs_, self.out_activation_ = 1, "logistic"

    def _encode(self, y: Any) -> AnyArray:
        """Return indices into `classes_`, or columns of 0 and 1."""
        if y.ndim == 1:
            indices: AnyArray = np.searchsorted(self.classes_, y)
            if np.array_equal(self.classes_.take(indices, mode="clip"), y):
                return indices
        labels = unique_labels(y)
        if len(np.setdiff1d(labels, self.classes_)):
            raise ValueError(
                "`y` has classes not in `self.classes_`. "
                f"`self.classes_` has {self.classes_}. 'y' has {labels}."
            )
        return np.asarray(y.toarray() if issparse(y) else y).astype(np.int8)

    def _sample_weight(
        self, X: Any, y: AnyArray, sample_weight: ArrayLike | None, incremental: bool
    ) -> AnyArray | None:
        weights = super()._sample_weight(X, y, sample_weight, incremental)
        if self.class_weight is None:
            return weights
        if incremental and isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight: expected a dict with partial_fit, which does not see all samples, "
                f"got {self.class_weight!r}"
            )
        class_weights: AnyArray = compute_sample_weight(self.class_weight, y).astype(X.dtype)
        return class_weights if weights is None else weights * class_weights

    def _loss_options(self) -> dict[str, Any]:
        softmax = self.out_activation_ == "softmax"
        return {"loss": "cross_entropy" if softmax else "binary_cross_entropy"}

    def _score_encoded(self, X: Any, y: AnyArray, sample_weight: AnyArray | None = None) -> float:
        correct = self._net.predict(X) == y
        correct = correct.all(axis=1) if correct.ndim == 2 else correct
        return float(np.average(correct, weights=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


@dataclass(eq=False, repr=False)
class _RegressionLoss:
    """The first argument of the regressor's constructor. A base class, because fields of bases come first."""

    loss: Literal["squared_error", "poisson", "huber", "quantile"] = "squared_error"


@dataclass(eq=False, repr=False, kw_only=True)
class MLPRegressor(RegressorMixin, BaseMLP, _RegressionLoss):
    """Multilayer perceptron regressor with scikit-learn's interface.

    The parameters of ``sklearn.neural_network.MLPRegressor`` have the same meaning and default, and the same
    random state gives the same model, up to rounding. All parameters and attributes that are not listed here
    are those of `MLPClassifier`.

    Parameters
    ----------
    loss : {"squared_error", "poisson", "huber", "quantile"}, default "squared_error"
        Half the squared error; the Poisson loss of non-negative targets, for which the network predicts the
        logarithm; the Huber loss with threshold `delta`; or the pinball loss of the
        `quantile`. Losses are summed over the outputs.
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

    Examples
    --------
    >>> from fastopt.sklearn import MLPRegressor
    >>> model = MLPRegressor(hidden_layer_sizes=64, norm="layer", max_iter=500)
    >>> model.fit(X_train, y_train).predict(X_test)
    """

    delta: float = 1.0
    quantile: float = 0.5

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
        X, y = super()._validate(X, y.toarray() if issparse(y) else y, reset)
        if self.loss == "poisson" and (y < 0).any():
            raise ValueError(f"y: expected no negative value for loss='poisson', got {y.min()}")
        return X, y.astype(X.dtype, copy=False)

    def _set_target_attributes(self, y: AnyArray, incremental: bool) -> None:
        self.n_outputs_ = 1 if y.ndim == 1 else y.shape[1]
        self.out_activation_ = "exp" if self.loss == "poisson" else "identity"

    def _loss_options(self) -> dict[str, Any]:
        return {"loss": self.loss, "delta": self.delta, "quantile": self.quantile}

    def _score_encoded(self, X: Any, y: AnyArray, sample_weight: AnyArray | None = None) -> float:
        predicted = self._net.predict(X)
        if not np.isfinite(predicted).all():
            return math.nan
        return float(r2_score(y, predicted, sample_weight=sample_weight))
