"""Stochastic training of the estimators: the state that a later fit resumes from, and the stopping rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastopt.nn import Callback
from fastopt.nn.typing import Layers, Logs
from fastopt.optimizers import Adam, Optimizer
from fastopt.optimizers.state_dict import with_groups
from fastopt.sklearn.net import PenalizedMLP
from fastopt.sklearn.params import MLPAttributes
from fastopt.sklearn.solvers import is_optimizer, make_optimizer

Data: TypeAlias = tuple[Any, ...]   # validated X and encoded y, with or without sample weights

_MIN_ADAPTIVE_LR = 1e-6
_OPTIMIZER_PARAMS = (
    "solver", "learning_rate_init", "momentum", "nesterovs_momentum", "beta_1", "beta_2", "epsilon",
)


@dataclass
class TrainingState:
    """State that is kept between fits, in addition to the weights and the public attributes."""

    split_state: Any        # state of the random generator before the first split of the samples
    optimizer: Any = None   # its state dict in a copy of an estimator; None before the first step
    optimizer_params: dict[str, Any] = field(default_factory=dict)  # hyperparameters of the estimator
    base_lrs: list[Any] = field(default_factory=list)               # initial learning rate of each group
    lr_divisor: float = 1.0                                         # for learning_rate="adaptive"
    no_improvement_count: int = 0                                   # consecutive epochs
    order: NDArray[np.int64] | None = None                          # of the samples, with `warm_start`
    seen_callbacks: list[Callback] = field(default_factory=list)    # they keep their state in the next fit

    def detached(self) -> TrainingState:
        """Return a state to be copied or pickled, with a state dict in place of the optimizer."""
        if is_optimizer(self.optimizer):
            return replace(self, optimizer=self.optimizer.state_dict())
        return self

    def resume_optimizer(self, estimator: MLPAttributes, params: Layers) -> Optimizer:
        """Return the optimizer of the last fit, or a new one that resumes from its state.

        With other hyperparameters, it takes over the step count and the state arrays that both have.
        """
        made_with = {name: getattr(estimator, name) for name in _OPTIMIZER_PARAMS}
        previous: Any = self.optimizer
        same_params = previous is not None and self.optimizer_params == made_with
        if same_params and is_optimizer(previous) and previous.params is params:
            return cast(Optimizer, previous)
        opt = make_optimizer(params, **made_with)
        self.base_lrs = [group["lr"] for group in opt.groups]
        if lr_varies(estimator) and any(map(callable, self.base_lrs)):
            raise ValueError(
                "learning_rate: expected 'constant' with a schedule as learning_rate_init, "
                f"got {estimator.learning_rate!r}"
            )
        saved = previous.state_dict() if is_optimizer(previous) else previous
        if saved is not None and saved["optimizer"] == type(getattr(opt, "opt", opt)).__name__:
            if same_params:
                opt.load_state_dict(saved)
            else:
                opt.load_state_dict(with_groups(saved, opt.state_dict()["groups"]), strict=False)
        self.optimizer, self.optimizer_params = opt, made_with
        return opt

    def set_learning_rate(self, estimator: MLPAttributes) -> None:
        """Set the learning rate of the coming epoch, unless it is constant."""
        if lr_varies(estimator):
            divisor = self.lr_divisor
            if estimator.learning_rate == "invscaling":
                divisor = (estimator.t_ + 1) ** estimator.power_t if estimator.t_ else 1.0
            for group, lr in zip(self.optimizer.groups, self.base_lrs, strict=True):
                group["lr"] = lr / divisor


class OptimizerView:
    """The learning rate of an optimizer, as an attribute with scikit-learn's name.

    Attributes
    ----------
    learning_rate : float
        Learning rate of the first parameter group. As in scikit-learn, that of Adam includes the bias
        corrections of the last step. Setting it sets the learning rate of all groups.
    """

    def __init__(self, opt: Optimizer) -> None:
        self._opt = opt

    @property
    def learning_rate(self) -> float:
        group, steps = self._opt.groups[0], self._opt.steps
        given: Any = group["lr"]
        lr = float(given(max(steps - 1, 0)) if callable(given) else given)
        if type(self._opt) is not Adam or not steps:
            return lr
        beta_1, beta_2 = group["betas"]
        return float(lr * math.sqrt(1.0 - beta_2**steps) / (1.0 - beta_1**steps))

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self._opt.groups:
            group["lr"] = value


def lr_varies(estimator: MLPAttributes) -> bool:
    """Return whether `learning_rate` has an effect; as in scikit-learn, it has none with Adam."""
    return estimator.learning_rate != "constant" and estimator.solver != "adam"


class EpochOrder(np.random.Generator):
    """A generator with scikit-learn's permutations: each shuffles the previous one, `order`."""

    def __init__(self, random_state: np.random.RandomState, order: NDArray[np.int64] | None) -> None:
        super().__init__(random_state._bit_generator)
        self._random_state = random_state
        self.order = order

    def permutation(self, n: int) -> NDArray[np.int64]:  # type: ignore[override]
        previous = np.arange(n) if self.order is None or len(self.order) != n else self.order
        indices = np.arange(n)
        self._random_state.shuffle(indices)     # as `sklearn.utils.shuffle`
        order: NDArray[np.int64] = previous[indices]
        self.order = order
        return order


class NoImprovement(Callback):
    """Updates the estimator's attributes after each epoch and stops training as scikit-learn does.

    With `early_stopping`, `best` is the state dict of the network at its best validation score.
    """

    def __init__(
        self, estimator: MLPAttributes, state: TrainingState, net: PenalizedMLP, validation: Data | None,
        score: Callable[..., float],
    ) -> None:
        self._estimator, self._state, self._net = estimator, state, net
        self._validation, self._score = validation, score
        self.best = net.state_dict() if estimator.early_stopping else None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Record losses and scores; stop training or lower the learning rate without improvement."""
        estimator, state = self._estimator, self._state
        estimator.n_iter_ += 1
        estimator.loss_, n_samples = self._net.pop_mean_loss()
        estimator.t_ += n_samples
        estimator.loss_curve_.append(estimator.loss_)
        if estimator.verbose:
            print(f"Iteration {estimator.n_iter_}, loss = {estimator.loss_:.8f}")
        self._record_validation(logs)
        is_best = self._update_best()
        if state.no_improvement_count > estimator.n_iter_no_change:
            self._lower_rate_or_stop()
        state.set_learning_rate(estimator)
        if is_best and estimator.early_stopping:
            self.best = self._net.state_dict()

    def _record_validation(self, logs: Logs) -> None:
        estimator, validation = self._estimator, self._validation
        scores, losses = estimator.validation_scores_, estimator.validation_loss_curve_
        if validation is None or scores is None or losses is None:
            return
        losses.append(logs["val_loss"])
        has_score = "val_accuracy" in logs and validation[1].ndim == 1
        scores.append(logs["val_accuracy"] if has_score else self._score(*validation))
        if estimator.verbose:
            print(f"Validation score: {scores[-1]:f}")

    def _update_best(self) -> bool:
        """Count epochs without improvement; return whether the validation score is the best."""
        estimator, state = self._estimator, self._state
        is_best = worse = False
        if estimator.validation_scores_ is not None and estimator.best_validation_score_ is not None:
            score = estimator.validation_scores_[-1]
            worse = score < estimator.best_validation_score_ + estimator.tol
            is_best = score > estimator.best_validation_score_
            if is_best:
                estimator.best_validation_score_ = score
        if not estimator.early_stopping:
            best_loss = math.inf if estimator.best_loss_ is None else estimator.best_loss_
            worse = estimator.loss_ > best_loss - estimator.tol
            estimator.best_loss_ = min(best_loss, estimator.loss_)
        state.no_improvement_count = state.no_improvement_count + 1 if worse else 0
        return is_best

    def _lower_rate_or_stop(self) -> None:
        estimator, state = self._estimator, self._state
        quantity = "validation score" if estimator.early_stopping else "training loss"
        message = (
            f"The {quantity} has not improved by more than tol={estimator.tol:g} in "
            f"{estimator.n_iter_no_change} epochs."
        )
        adaptive = estimator.learning_rate == "adaptive" and lr_varies(estimator)
        if adaptive and max(group["lr"] for group in state.optimizer.groups) > _MIN_ADAPTIVE_LR:
            state.lr_divisor *= 5.0
            state.no_improvement_count = 0
            message += " The learning rate is divided by 5."
        else:
            self.trainer.stop_training = True
            message += " Stopping."
        if estimator.verbose:
            print(message)
