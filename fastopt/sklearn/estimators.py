"""`MLPClassifier` and `MLPRegressor`: scikit-learn's estimators, trained by fastopt."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, column_or_1d, shuffle
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fastopt.nn import Callback, History, Trainer
from fastopt.optimizers import Optimizer
from fastopt.sklearn.net import PenalizedMLP, draw_weights
from fastopt.sklearn.params import check_params, hidden_sizes
from fastopt.sklearn.solvers import go_on_with, make_optimizer, minimize_lbfgs

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import ArrayLike, NDArray

    from fastopt._core.typing import AnyArray, Array, FloatOrSchedule
    from fastopt.nn.typing import Activation, ClassWeight, Layers, Logs, Norm, Samples, Validation

    # What is left of validation data: X, y and perhaps weights.
    _Checked = tuple[Any, AnyArray] | tuple[Any, AnyArray, AnyArray]

__all__ = ["MLPClassifier", "MLPRegressor"]

_F = TypeVar("_F", bound=Callable[..., Any])
_LEAST_ADAPTIVE_LR = 1e-6
_OPTIMIZER_PARAMS = (
    "solver", "learning_rate_init", "momentum", "nesterovs_momentum", "beta_1", "beta_2", "epsilon",
)


def _is_stochastic(estimator: _BaseMLP) -> bool:
    """Tell `available_if` whether there is a `partial_fit`."""
    if estimator.solver == "lbfgs":
        raise AttributeError("partial_fit needs a stochastic solver, which 'lbfgs' is not")
    return True


def _if_stochastic(method: _F) -> _F:
    """Let an estimator have a method only if its solver is stochastic."""
    available: _F = available_if(_is_stochastic)(method)
    return available


class _BaseMLP(BaseEstimator):
    """What classification and regression share.

    A subclass has the methods that raise NotImplementedError here. Targets are
    "encoded" in the form that the net's loss takes.
    """

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

    _net: PenalizedMLP
    _net_made_with: dict[str, Any]
    _random_state: np.random.RandomState
    _optimizer: Any     # an Optimizer, the state of one, or None
    _optimizer_made_with: dict[str, Any]
    _base_lrs: list[Any]
    _order: NDArray[np.int64] | None
    _met: list[Callback]

    def _read(self, X: Any, y: Any, reset: bool) -> tuple[Any, AnyArray]:
        """Return checked data."""
        raise NotImplementedError

    def _note_targets(self, y: AnyArray, incremental: bool) -> None:
        """Learn what the targets are like."""
        raise NotImplementedError

    def _encode(self, y: Any) -> AnyArray:
        """Return targets as the net takes them."""
        raise NotImplementedError

    def _score_rows(self, X: Any, y: AnyArray, weights: AnyArray | None = None) -> float:
        """Return how good the predictions for encoded targets are."""
        raise NotImplementedError

    def _net_options(self) -> dict[str, Any]:
        """Return arguments of the net."""
        raise NotImplementedError

    def _stratifies(self) -> bool:
        """Whether rows set aside hold each class in proportion."""
        raise NotImplementedError

    def fit(
        self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None,
        validation_data: Validation | None = None,
    ) -> Self:
        """Train on `X` and `y`.

        This starts anew or, with `warm_start`, goes on where the last training stopped: with its
        weights, the optimizer's state, the learning rate and the order of the rows.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, features)
            float32 is trained in float32, all else in float64.
        y : array_like, shape (n,) or (n, outputs)
            Labels, or values.
        sample_weight : array_like, shape (n,), optional
            What each row counts for.
        validation_data : (X, y) or (X, y, sample_weight), optional
            Rows to score after each epoch. With `early_stopping` they decide when to stop, and none
            of the training rows are set aside. Not with solver "lbfgs".

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, validation_data, incremental=False)

    def _fit(
        self, X: Any, y: Any, sample_weight: ArrayLike | None, validation_data: Validation | None, *,
        incremental: bool,
    ) -> Self:
        check_params(self)
        if incremental and self.early_stopping:
            raise ValueError("early_stopping: expected False with partial_fit, got True")
        if validation_data is not None and self.solver == "lbfgs":
            raise ValueError("validation_data: expected a stochastic solver with it, got 'lbfgs'")
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        X, y = self._read(X, y, reset=first)
        self._note_targets(y, incremental)
        weights = self._row_weights(X, y, sample_weight, incremental)
        y = self._encode(y)
        sizes = [X.shape[1], *hidden_sizes(self.hidden_layer_sizes), self.n_outputs_]
        if first:
            self._start(sizes, X.dtype)
        else:
            self._go_on(sizes)
        if self.solver == "lbfgs":
            self._fit_lbfgs(X, y, weights)
        else:
            validation = self._read_validation(validation_data)
            self._fit_stochastic(X, y, weights, validation, incremental)
        if not all(np.isfinite(array).all() for layer in self._net.params for array in layer):
            raise ValueError(
                "weights: expected finite ones after training, got NaN or Inf; scale the features "
                "or lower learning_rate_init"
            )
        return self

    # --- The net and the optimizer ---------------------------------------------------------------

    def _start(self, sizes: list[int], dtype: np.dtype[Any]) -> None:
        """Make a new net, and forget all training."""
        self._random_state = check_random_state(self.random_state)
        self._net_made_with = self._net_options()
        self._net = self._make_net(sizes, dtype)
        draw_weights(self._net, self._random_state)
        self._link()
        self._forget_training()

    def _forget_training(self) -> None:
        self._split_state = self._random_state.get_state()
        self._optimizer = self._order = None
        self._met = []
        self.n_layers_ = len(self._net.sizes)
        self.n_iter_ = self.t_ = 0
        self.history_ = History()
        if self.solver != "lbfgs":
            self._lr_divisor = 1.0
            self._no_improvement_count = 0
            self.loss_curve_ = []
            self.best_loss_ = None if self.early_stopping else np.inf
            self.validation_scores_ = self.validation_loss_curve_ = None
            self.best_validation_score_ = None

    def _go_on(self, sizes: list[int]) -> None:
        """See that the net of the last training serves for this one."""
        net = self._current_net()
        if not hasattr(self, "history_"):   # the weights were given, not trained
            self._forget_training()
        if list(net.sizes) != sizes:
            raise ValueError(
                f"X, y and hidden_layer_sizes: expected a net of the sizes {list(net.sizes)} to go "
                f"on with, got {sizes}"
            )
        if self._net_made_with != self._net_options():
            self._net_made_with = self._net_options()
            self._net = self._make_net(sizes, net.dtype)
            self._net.load_state_dict(net.state_dict())
            self._link()
        self._net.alpha = self.alpha

    def _make_net(self, sizes: Sequence[int], dtype: Any) -> PenalizedMLP:
        options = self._net_options()
        # Only dropout draws numbers in training; without it, none is taken from the random state.
        seed = self._random_state.randint(2**31) if np.any(options["dropout"]) else 0
        return PenalizedMLP(sizes, alpha=self.alpha, dtype=dtype, seed=seed, **options)

    def _shared_net_options(self) -> dict[str, Any]:
        return {"activation": self.activation, "dropout": self.dropout, "norm": self.norm}

    def _link(self) -> None:
        """Let `coefs_` and `intercepts_` be the net's own arrays."""
        self.coefs_ = [layer[0] for layer in self._net.params]
        self.intercepts_ = [layer[1] for layer in self._net.params]

    def _current_net(self) -> PenalizedMLP:
        """Return the net with the weights of `coefs_` and `intercepts_`, which may have been set."""
        held = [*zip(self.coefs_, self.intercepts_, strict=True)]
        sizes = (len(self.coefs_[0]), *(len(b) for b in self.intercepts_))
        if not hasattr(self, "_net") or tuple(self._net.sizes) != sizes:
            self._random_state = check_random_state(self.random_state)
            self._net_made_with = self._net_options()
            self._net = self._make_net(sizes, self.coefs_[0].dtype)
        for layer, arrays in zip(self._net.params, held, strict=True):
            for param, array in zip(layer[:2], arrays, strict=True):
                if array is not param:
                    param[...] = array
        self._link()
        return self._net

    def _make_optimizer(self) -> Optimizer:
        """Return the optimizer of the last training, or one that goes on with its state."""
        params = {name: getattr(self, name) for name in _OPTIMIZER_PARAMS}
        held = self._optimizer
        same = held is not None and self._optimizer_made_with == params
        if same and isinstance(held, Optimizer) and held.params is self._net.params:
            return held
        opt = make_optimizer(self._net.params, **params)
        self._base_lrs = [group["lr"] for group in opt.groups]
        if self._lr_varies() and any(map(callable, self._base_lrs)):
            raise ValueError(
                f"learning_rate: expected 'constant' beside a schedule, got {self.learning_rate!r}"
            )
        if held is not None:
            saved = held.state_dict() if isinstance(held, Optimizer) else held
            go_on_with(opt, saved, same)
        self._optimizer, self._optimizer_made_with = opt, params
        return opt

    def _lr_varies(self) -> bool:
        """Whether `learning_rate` has a say: not with Adam, as in scikit-learn."""
        return self.learning_rate != "constant" and self.solver != "adam"

    def _set_learning_rate(self) -> None:
        if self._lr_varies():
            divisor = self._lr_divisor
            if self.learning_rate == "invscaling":
                divisor = (self.t_ + 1) ** self.power_t if self.t_ else 1.0
            for group, lr in zip(self._optimizer.groups, self._base_lrs, strict=True):
                group["lr"] = lr / divisor

    # --- Training --------------------------------------------------------------------------------

    def _fit_lbfgs(self, X: Any, y: AnyArray, weights: AnyArray | None) -> None:
        """Minimize in float64, as the line search needs it; the solution has the net's dtype."""
        net = self._net
        if net.dtype != np.float64:
            net = self._make_net(self._net.sizes, np.float64)
            net.load_state_dict({k: v.astype(np.float64) for k, v in self._net.state_dict().items()})
        losses = []

        def report(loss: float) -> None:
            losses.append(loss)
            if self.verbose:
                print(f"Iteration {len(losses)}, loss = {loss:.8f}")

        result = minimize_lbfgs(
            net, X, y, weights, max_iter=self.max_iter, max_fun=self.max_fun, tol=self.tol,
            max_time=self.max_time, report=report,
        )
        self.loss_ = net.stated(float(result.fun), net.penalty(), y, weights)
        self.n_iter_ = min(int(result.nit), self.max_iter)
        if net is not self._net:
            self._net.load_state_dict({k: v.astype(self._net.dtype) for k, v in net.state_dict().items()})
        if result.status not in (0, 99):    # converged, or stopped by max_time
            warnings.warn(
                f"L-BFGS has not converged after {result.nit} iterations and {result.nfev} "
                f"evaluations; raise max_iter or max_fun, or scale the features: {result.message}",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _fit_stochastic(
        self, X: Any, y: AnyArray, weights: AnyArray | None, validation: _Checked | None, incremental: bool
    ) -> None:
        if self.early_stopping and validation is None:
            X, y, weights, validation = self._split(X, y, weights)
        if validation is not None and self.validation_scores_ is None:
            self.validation_scores_, self.validation_loss_curve_ = [], []
            self.best_validation_score_ = -np.inf
        rows = X.shape[0]
        order = _Order(self._random_state, self._order)
        ending = NoImprovement(self, validation)
        trainer = Trainer(self._net, self._make_optimizer(), [ending, *self.callbacks])
        trainer.history = self.history_
        self._set_learning_rate()
        self.n_iter_ = 0
        for callback in self._met:
            callback.trainer = trainer      # it keeps what it has learned so far
        epochs = 1 if incremental else self.max_iter
        try:
            trainer.fit(
                X, y, self._batch_rows(rows), epochs, validation, verbose=0, shuffle=self.shuffle,
                seed=order, sample_weight=weights, max_time=self.max_time, training_accuracy=False,
            )
        finally:
            for callback in self.callbacks:     # else clone and pickle would take all of it along
                callback.trainer = None  # type: ignore[assignment]
        self._met = list(self.callbacks)
        self._order = order.rows if self.warm_start else None
        if ending.best is not None:
            self._net.load_state_dict(ending.best)
        if self.history_.interrupted:
            warnings.warn("training was interrupted", stacklevel=4)
        elif not incremental and not self.history_.stopped_by:
            warnings.warn(
                f"training has not converged after max_iter={self.max_iter} epochs",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _batch_rows(self, rows: int) -> int:
        if self.batch_size == "auto":
            return min(200, rows)
        if self.batch_size > rows:
            warnings.warn(
                f"batch_size: there are only {rows} rows, got {self.batch_size}", stacklevel=5
            )
        return min(self.batch_size, rows)

    def _split(
        self, X: Any, y: AnyArray, weights: AnyArray | None
    ) -> tuple[Any, AnyArray, AnyArray | None, _Checked]:
        """Set rows aside for validation: the same ones if the training of these rows goes on."""
        random_state = self._random_state
        if self.t_:
            random_state = np.random.RandomState()
            random_state.set_state(self._split_state)
        arrays = [X, y] if weights is None else [X, y, weights]
        parts = train_test_split(
            *arrays,
            test_size=self.validation_fraction,
            random_state=random_state,
            stratify=y if self._stratifies() else None,
        )
        if parts[1].shape[0] < 2:
            raise ValueError(
                "validation_fraction: expected at least 2 rows for validation, got "
                f"{parts[1].shape[0]} of {X.shape[0]}"
            )
        kept = parts[::2]
        return kept[0], kept[1], None if weights is None else kept[2], tuple(parts[1::2])

    def _end_epoch(self, trainer: Trainer, logs: Logs, validation: _Checked | None) -> bool:
        """Note an epoch's numbers; stop the training, or lower the learning rate, if it stagnates."""
        self.n_iter_ += 1
        self.loss_, rows = self._net.take_losses()
        self.t_ += rows
        self.loss_curve_.append(self.loss_)
        if self.verbose:
            print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
        scores, losses = self.validation_scores_, self.validation_loss_curve_
        if validation is not None and scores is not None and losses is not None:
            losses.append(logs["val_loss"])
            known = "val_accuracy" in logs and validation[1].ndim == 1
            score = logs["val_accuracy"] if known else self._score_rows(*validation)
            scores.append(score)
            if self.verbose:
                print(f"Validation score: {score:f}")
        improved = self._note_improvement()
        if self._no_improvement_count > self.n_iter_no_change:
            self._stagnate(trainer)
        self._set_learning_rate()
        return improved

    def _note_improvement(self) -> bool:
        """Count the epochs without improvement; return whether the validation score is the best."""
        best_score = worse = False
        if self.validation_scores_ is not None and self.best_validation_score_ is not None:
            score = self.validation_scores_[-1]
            worse = score < self.best_validation_score_ + self.tol
            best_score = score > self.best_validation_score_
            if best_score:
                self.best_validation_score_ = score
        if not self.early_stopping:
            best = math.inf if self.best_loss_ is None else self.best_loss_
            worse = self.loss_ > best - self.tol
            self.best_loss_ = min(best, self.loss_)
        self._no_improvement_count = self._no_improvement_count + 1 if worse else 0
        return best_score

    def _stagnate(self, trainer: Trainer) -> None:
        what = "validation score" if self.early_stopping else "training loss"
        message = (
            f"The {what} has not improved by more than tol={self.tol:g} in "
            f"{self.n_iter_no_change} epochs."
        )
        adaptive = self.learning_rate == "adaptive" and self._lr_varies()
        if adaptive and max(g["lr"] for g in self._optimizer.groups) > _LEAST_ADAPTIVE_LR:
            self._lr_divisor *= 5.0
            self._no_improvement_count = 0
            message += " The learning rate is divided by 5."
        else:
            trainer.stop_training = True
            message += " Stopping."
        if self.verbose:
            print(message)

    # --- Data ------------------------------------------------------------------------------------

    def _row_weights(
        self, X: Any, y: AnyArray, sample_weight: ArrayLike | None, incremental: bool
    ) -> AnyArray | None:
        return None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=X.dtype)

    def _read_validation(self, data: Validation | None) -> _Checked | None:
        if data is None:
            return None
        if not isinstance(data, tuple | list) or len(data) not in (2, 3):
            raise ValueError(
                f"validation_data: expected (X, y) or (X, y, sample_weight), got {type(data).__name__}"
            )
        X, y = self._read(data[0], data[1], reset=False)
        weights = self._row_weights(X, y, data[2] if len(data) == 3 else None, True)
        return (X, self._encode(y)) if weights is None else (X, self._encode(y), weights)

    def _rows(self, X: Samples) -> Any:
        check_is_fitted(self)
        return validate_data(self, X, accept_sparse="csr", reset=False)

    # --- scikit-learn's protocols ----------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what only refers to the net's arrays, as joblib stores shared arrays twice."""
        state = dict(super().__getstate__())
        if "_net" in state:
            self._current_net()
            del state["coefs_"], state["intercepts_"]
        if isinstance(state.get("_optimizer"), Optimizer):
            state["_optimizer"] = self._optimizer.state_dict()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_net" in state:
            self._link()


class _Order(np.random.Generator):
    """A generator whose permutations are scikit-learn's: each is a shuffle of the one before.

    Attributes
    ----------
    rows : ndarray of int or None
        The last permutation.
    """

    def __init__(self, random_state: np.random.RandomState, rows: NDArray[np.int64] | None) -> None:
        super().__init__(random_state._bit_generator)
        self._random_state = random_state
        self.rows = rows

    def permutation(self, n: int) -> NDArray[np.int64]:  # type: ignore[override]
        """Return the next epoch's order of `n` rows."""
        before = np.arange(n) if self.rows is None or len(self.rows) != n else self.rows
        order: NDArray[np.int64] = shuffle(before, random_state=self._random_state)
        self.rows = order
        return order


class NoImprovement(Callback):
    """Tells the estimator of each epoch, and ends the training as scikit-learn does.

    Attributes
    ----------
    best : dict
        State of the net at its best validation score.
    """

    def __init__(self, estimator: _BaseMLP, validation: _Checked | None) -> None:
        self._estimator = estimator
        self._validation = validation
        self.best = estimator._net.state_dict() if estimator.early_stopping else None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Note the epoch's numbers, and the net's state if it is the best."""
        estimator = self._estimator
        best = estimator._end_epoch(self.trainer, logs, self._validation)
        if best and estimator.early_stopping:
            self.best = estimator._net.state_dict()


class MLPClassifier(ClassifierMixin, _BaseMLP):
    """A multilayer perceptron that classifies, for scikit-learn.

    The arguments of ``sklearn.neural_network.MLPClassifier`` have their meaning and default there,
    and the same random state gives the same model, up to rounding; `solver`, `activation` and
    `learning_rate_init` take more than they do there. Those after `max_fun` are fastopt's own.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
        Widths of the hidden layers; an empty one makes logistic regression.
    activation : str or sequence of str, default "relu"
        Any of `fastopt.MLP`: one name, or one a hidden layer.
    solver : str or callable, default "adam"
        ``"lbfgs"``, or the name of any optimizer of fastopt in lower case: ``"adam"``, ``"sgd"``,
        ``"adamw"``, ``"rmsprop"``, ...; ``"momentum"`` and ``"nesterov"`` are ``"sgd"`` with a fixed
        `nesterovs_momentum`. All have the rate `learning_rate_init`; some rules, such as
        ``"adadelta"`` and ``"prodigy"``, want one near 1. Or a callable that makes an optimizer of the
        parameters it is given, such as ``functools.partial(fastopt.AdamW, lr=3e-4)``: it brings all
        its numbers, and `learning_rate_init` does not count.
    alpha : float, default 1e-4
        L2 penalty of the weights. A batch's loss has ``alpha / 2 * sum(W**2)``, divided by its rows.
    batch_size : int or "auto", default "auto"
        ``"auto"`` is 200, or all rows if there are fewer. Not with ``"lbfgs"``, which takes all.
    learning_rate : {"constant", "invscaling", "adaptive"}, default "constant"
        ``"invscaling"`` divides the rate by ``(t_ + 1) ** power_t`` after each epoch; ``"adaptive"``
        divides it by 5 where training would otherwise stop for want of improvement, and stops once
        it is at most 1e-6. ``"adam"`` ignores this.
    learning_rate_init : float or schedule, default 1e-3
        A schedule, a callable of the number of finished steps as in `fastopt.schedules`, needs the
        `learning_rate` ``"constant"``.
    power_t : float, default 0.5
    max_iter : int, default 200
        Most epochs of a `fit`; with ``"lbfgs"``, iterations.
    shuffle : bool, default True
        Draw the order of the rows anew each epoch.
    random_state : int, RandomState or None, default None
        Of the first weights, the rows set aside, the order of the rows, and dropout.
    tol : float, default 1e-4
        Training ends when loss or validation score has not improved by this for more than
        `n_iter_no_change` epochs. With ``"lbfgs"``, the largest gradient of a solution.
    verbose : bool, default False
        Print the loss of each epoch.
    warm_start : bool, default False
        Let `fit` go on where the last one stopped: optimizer state, learning rate and order of rows
        included, so that two fits of five epochs are one of ten.
    momentum : float, default 0.9
    nesterovs_momentum : bool, default True
        Both for ``"sgd"``.
    early_stopping : bool, default False
        Score rows that are not trained on; stop by their score, and keep the best epoch's net.
    validation_fraction : float, default 0.1
        Share of the rows set aside, unless `fit` is given validation data.
    beta_1, beta_2, epsilon : float, default 0.9, 0.999, 1e-8
        For ``"adam"`` and ``"adamw"``; the other rules have their own.
    n_iter_no_change : int or inf, default 10
    max_fun : int, default 15000
        Most evaluations of ``"lbfgs"``.
    dropout : float or sequence of float, default 0.0
        Share of the activations that a training step drops: one number, or one a hidden layer.
    norm : {None, "batch", "layer"} or a sequence of them, default None
        Normalization before the activation: one, or one a hidden layer.
    class_weight : dict, "balanced" or None, default None
        Weights of the classes, in which the sample weights are multiplied.
    callbacks : sequence of fastopt.Callback, default ()
        Called while an optimizer trains; not with ``"lbfgs"``.
    max_time : float or None, default None
        Seconds after which `fit` stops, at the end of a batch.

    Attributes
    ----------
    coefs_, intercepts_ : list of ndarray
        Weights ``(in, out)`` and biases of each layer: the net's own arrays. What is written into
        them, or put in their place, counts.
    classes_ : ndarray
        The labels, sorted.
    loss_ : float
        Loss of the last epoch, penalty included.
    loss_curve_ : list of float
        Loss of each epoch. Like the following, not with ``"lbfgs"``.
    best_loss_ : float or None
        The least; None with `early_stopping`.
    validation_scores_, validation_loss_curve_ : list of float or None
        Accuracy and loss (without the penalty) of the validation rows after each epoch; None where
        there are none.
    best_validation_score_ : float or None
    history_ : fastopt.History
        All numbers of all epochs, learning rates and seconds among them.
    n_iter_ : int
        Epochs, or iterations, of the last `fit`.
    t_ : int
        Rows trained on so far.
    n_layers_, n_outputs_ : int
        Layers with input and output; outputs of the net: 1 for two classes.
    out_activation_ : str
        "softmax", or for two classes and for many labels a row "logistic".
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only where `X` has names.

    Raises
    ------
    ValueError, TypeError
        When fitted, if a parameter or the data do not fit, or if training diverged.

    References
    ----------
    Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    AISTATS 2010: the first weights.

    Examples
    --------
    >>> from fastopt.sklearn import MLPClassifier
    >>> model = MLPClassifier((64, 32), solver="adamw", dropout=0.2, early_stopping=True)
    >>> model.fit(X_train, y_train).score(X_test, y_test)
    """

    class_weight: ClassWeight | None
    classes_: AnyArray

    def __init__(
        self, hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: Activation | Sequence[Activation] = "relu", *,
        solver: str | Callable[[Layers], Optimizer] = "adam", alpha: float = 0.0001,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: Literal["constant", "invscaling", "adaptive"] = "constant",
        learning_rate_init: FloatOrSchedule = 0.001, power_t: float = 0.5, max_iter: int = 200, shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None, tol: float = 1e-4, verbose: bool = False,
        warm_start: bool = False, momentum: float = 0.9, nesterovs_momentum: bool = True,
        early_stopping: bool = False, validation_fraction: float = 0.1, beta_1: float = 0.9,
        beta_2: float = 0.999, epsilon: float = 1e-8, n_iter_no_change: float = 10, max_fun: int = 15000,
        dropout: float | Sequence[float] = 0.0, norm: Norm | Sequence[Norm] = None,
        class_weight: ClassWeight | None = None, callbacks: Sequence[Callback] = (),
        max_time: float | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.dropout = dropout
        self.norm = norm
        self.class_weight = class_weight
        self.callbacks = callbacks
        self.max_time = max_time

    @_if_stochastic
    def partial_fit(
        self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> Self:
        """Train one epoch on `X` and `y`, going on where the last training stopped.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, features)
        y : array_like, shape (n,) or (n, outputs)
            Not every class needs to be among them.
        sample_weight : array_like, shape (n,), optional
        classes : array_like, shape (n_classes,), optional
            All labels there are; needed in the first call only.

        Returns
        -------
        self
        """
        if classes is not None:
            given = unique_labels(classes)
            if not hasattr(self, "classes_"):
                self.classes_ = given
            elif not np.array_equal(self.classes_, given):
                raise ValueError(f"classes: expected those of the first call, {self.classes_}, got {given}")
        elif not hasattr(self, "classes_"):
            raise ValueError("classes: expected all labels in the first call of partial_fit, got None")
        return self._fit(X, y, sample_weight, None, incremental=True)

    def predict(self, X: Samples) -> AnyArray:
        """Return the most probable label, or for many labels a row which of them hold.

        Parameters
        ----------
        X : array_like or sparse matrix, shape (n, features)

        Returns
        -------
        ndarray, shape (n,) or (n, labels)
        """
        X = self._rows(X)
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
            With many labels a row, each label's probability on its own.
        """
        X = self._rows(X)
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

    def _read(self, X: Any, y: Any, reset: bool) -> tuple[Any, AnyArray]:
        X, y = validate_data(
            self, X, y, accept_sparse="csr", multi_output=True, dtype=(np.float64, np.float32), reset=reset
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y

    def _note_targets(self, y: AnyArray, incremental: bool) -> None:
        """Learn the classes, or see that they are those there were."""
        check_classification_targets(y)
        kind = type_of_target(y)
        if kind == "multiclass-multioutput":
            raise ValueError("y: expected one label a row, or columns of 0 and 1, got multioutput classes")
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self.classes_ = unique_labels(y)
        elif not incremental and not np.array_equal(unique_labels(y), self.classes_):
            raise ValueError(
                "y: expected the same classes as in the fit that warm_start goes on with, "
                f"{self.classes_}, got {unique_labels(y)}"
            )
        if kind == "multilabel-indicator":
            self.n_outputs_, self.out_activation_ = y.shape[1], "logistic"
        elif len(self.classes_) > 2:
            self.n_outputs_, self.out_activation_ = len(self.classes_), "softmax"
        else:
            self.n_outputs_, self.out_activation_ = 1, "logistic"

    def _encode(self, y: Any) -> AnyArray:
        """Return places in `classes_`, or columns of 0 and 1."""
        unknown = np.setdiff1d(unique_labels(y), self.classes_)
        if len(unknown):
            raise ValueError(f"y: expected labels among {self.classes_}, got {unknown} too")
        if y.ndim == 2:
            return np.asarray(y.toarray() if issparse(y) else y).astype(np.int8)
        places: AnyArray = np.searchsorted(self.classes_, y)
        return places

    def _row_weights(
        self, X: Any, y: AnyArray, sample_weight: ArrayLike | None, incremental: bool
    ) -> AnyArray | None:
        weights = super()._row_weights(X, y, sample_weight, incremental)
        if self.class_weight is None:
            return weights
        if incremental and isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight: expected a dict with partial_fit, which does not see all rows, "
                f"got {self.class_weight!r}"
            )
        of_classes: AnyArray = compute_sample_weight(self.class_weight, y).astype(X.dtype)
        return of_classes if weights is None else weights * of_classes

    def _net_options(self) -> dict[str, Any]:
        softmax = self.out_activation_ == "softmax"
        return self._shared_net_options() | {
            "loss": "cross_entropy" if softmax else "binary_cross_entropy"
        }

    def _stratifies(self) -> bool:
        """Whether rows set aside hold each class in proportion: as in scikit-learn, two classes."""
        return self.n_outputs_ == 1

    def _score_rows(self, X: Any, y: AnyArray, weights: AnyArray | None = None) -> float:
        right = self._net.predict(X) == y
        return float(np.average(right.all(axis=1) if right.ndim == 2 else right, weights=weights))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, _BaseMLP):
    """A multilayer perceptron that predicts values, for scikit-learn.

    The arguments of ``sklearn.neural_network.MLPRegressor`` have their meaning and default there,
    and the same random state gives the same model, up to rounding.

    Parameters
    ----------
    loss : {"squared_error", "poisson", "huber", "quantile"}, default "squared_error"
        Half the squared error; Poisson's loss, of targets that are not negative, where the net's
        output is the logarithm of the prediction; Huber's with threshold `delta`; the pinball
        loss of the `quantile`. Summed over the outputs.
    hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate, learning_rate_init, power_t
        See `MLPClassifier`.
    max_iter, shuffle, random_state, tol, verbose, warm_start, momentum, nesterovs_momentum
        See `MLPClassifier`.
    early_stopping, validation_fraction, beta_1, beta_2, epsilon, n_iter_no_change, max_fun
        See `MLPClassifier`.
    dropout, norm, callbacks, max_time
        See `MLPClassifier`.
    delta : float, default 1.0
        Where Huber's loss turns from square to straight.
    quantile : float, default 0.5
        Of ``"quantile"``, between 0 and 1.

    Attributes
    ----------
    validation_scores_, best_validation_score_
        R2 of the validation rows, NaN where predictions are not finite.
    out_activation_ : str
        "identity", or "exp" for Poisson's loss.
    coefs_, intercepts_, loss_, loss_curve_, best_loss_, validation_loss_curve_, history_
        See `MLPClassifier`.
    n_iter_, t_, n_layers_, n_outputs_, n_features_in_, feature_names_in_
        See `MLPClassifier`.

    Raises
    ------
    ValueError, TypeError
        When fitted, if a parameter or the data do not fit, or if training diverged.

    Examples
    --------
    >>> from fastopt.sklearn import MLPRegressor
    >>> model = MLPRegressor(hidden_layer_sizes=64, norm="layer", max_iter=500)
    >>> model.fit(X_train, y_train).predict(X_test)
    """

    def __init__(
        self, loss: Literal["squared_error", "poisson", "huber", "quantile"] = "squared_error",
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: Activation | Sequence[Activation] = "relu", *,
        solver: str | Callable[[Layers], Optimizer] = "adam", alpha: float = 0.0001,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: Literal["constant", "invscaling", "adaptive"] = "constant",
        learning_rate_init: FloatOrSchedule = 0.001, power_t: float = 0.5, max_iter: int = 200, shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None, tol: float = 1e-4, verbose: bool = False,
        warm_start: bool = False, momentum: float = 0.9, nesterovs_momentum: bool = True,
        early_stopping: bool = False, validation_fraction: float = 0.1, beta_1: float = 0.9,
        beta_2: float = 0.999, epsilon: float = 1e-8, n_iter_no_change: float = 10, max_fun: int = 15000,
        dropout: float | Sequence[float] = 0.0, norm: Norm | Sequence[Norm] = None,
        callbacks: Sequence[Callback] = (), max_time: float | None = None, delta: float = 1.0,
        quantile: float = 0.5,
    ) -> None:
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.dropout = dropout
        self.norm = norm
        self.callbacks = callbacks
        self.max_time = max_time
        self.delta = delta
        self.quantile = quantile

    @_if_stochastic
    def partial_fit(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train one epoch on `X` and `y`, going on where the last training stopped.

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
        X = self._rows(X)
        return self._current_net().predict(X)

    def _read(self, X: Any, y: Any, reset: bool) -> tuple[Any, AnyArray]:
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

    def _note_targets(self, y: AnyArray, incremental: bool) -> None:
        self.n_outputs_ = 1 if y.ndim == 1 else y.shape[1]
        self.out_activation_ = "exp" if self.loss == "poisson" else "identity"

    def _encode(self, y: AnyArray) -> AnyArray:
        return y

    def _net_options(self) -> dict[str, Any]:
        return self._shared_net_options() | {
            "loss": self.loss, "delta": self.delta, "quantile": self.quantile
        }

    def _stratifies(self) -> bool:
        return False

    def _score_rows(self, X: Any, y: AnyArray, weights: AnyArray | None = None) -> float:
        predicted = self._net.predict(X)
        if not np.isfinite(predicted).all():
            return math.nan
        return float(r2_score(y, predicted, sample_weight=weights))
