"""The network of the estimators: `fastopt.MLP` with scikit-learn's loss, penalty and initial weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

from fastopt.nn import MLP
from fastopt.nn.network import TrainingData
from fastopt.nn.typing import Samples
from fastopt.optimizers import Optimizer


class PenalizedMLP(MLP):
    """An MLP whose L2 penalty is divided by the weight of the batch.

    The loss of a batch is ``sum(w * l) / sum(w) + 0.5 * alpha * sum(W**2) / sum(w)``, where ``l`` is the loss
    of a sample, summed over the outputs, and ``w`` its weight, 1 by default. The penalty therefore counts
    more in a smaller last batch, as in scikit-learn.
    """

    def __init__(self, sizes: Sequence[int], *, alpha: float, **options: Any) -> None:
        super().__init__(sizes, reduction="sum", **options)
        self.alpha: float = alpha
        self._loss_sum = 0.0
        self._n_samples = 0

    def _initialize_weights(self, rng: np.random.Generator) -> None:
        """Leave them to `draw_weights`, or to those of another network."""

    def bind_data(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> PenalizedData:
        return PenalizedData(self, X, y, sample_weight)

    def evaluate(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the loss that scikit-learn reports, without the penalty."""
        self.l2 = 0.0
        return self.reported_loss(super().evaluate(X, y, sample_weight), 0.0, y, sample_weight)

    def penalty(self) -> float:
        """Return the penalty term in the loss of the last batch."""
        return 0.5 * self.l2 * sum(float(np.vdot(layer[0], layer[0])) for layer in self.params)

    def reported_loss(self, loss: float, penalty: float, y: Any, sample_weight: Any = None) -> float:
        """Return the loss that scikit-learn reports for a minimized loss.

        scikit-learn reports the squared error as the mean over the outputs, but follows the gradient of the
        sum. It reports the Poisson loss as a deviance, which is 0 for a perfect prediction. `penalty`, a term
        of `loss`, is used only for the former, the targets and weights of the batch only for the latter.
        """
        if self.reports_mean_over_outputs():
            return (loss - penalty) / self.sizes[-1] + penalty
        if self.loss == "poisson":
            return loss + float(np.sum(np.average(xlogy(y, y) - y, axis=0, weights=sample_weight)))
        return loss

    def reports_mean_over_outputs(self) -> bool:
        """Return whether the reported loss is a mean over several outputs."""
        return self.loss == "squared_error" and self.sizes[-1] > 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copy read-only arrays, such as joblib's memory maps."""
        for name in ("params", "running"):
            state[name] = [[np.require(a, requirements="W") for a in layer] for layer in state[name]]
        super().__setstate__(state)

    def pop_mean_loss(self) -> tuple[float, int]:
        """Return the mean loss since the last call, not weighted by sample weights, and the sample count."""
        mean, n_samples = self._loss_sum / self._n_samples, self._n_samples
        self._loss_sum, self._n_samples = 0.0, 0
        return mean, n_samples


class PenalizedData(TrainingData):
    """Data on which a `PenalizedMLP` is trained batch by batch."""

    _net: PenalizedMLP

    def __init__(self, net: PenalizedMLP, X: Samples, y: Any, sample_weight: Any) -> None:
        super().__init__(net, *net._source(X, y, sample_weight))
        self._targets = y
        self._weights = sample_weight

    def objective(self) -> float:
        """Compute the gradients of all samples and return the loss that they are the gradients of."""
        self._set_l2(None, 0, None)
        return super().step(None)

    def step(
        self, order: NDArray[np.int64] | None, begin: int = 0, rows: int | None = None,
        opt: Optimizer | None = None,
    ) -> float:
        """Compute the gradients of a batch and return the loss that scikit-learn reports."""
        net = self._net
        self._set_l2(order, begin, rows)
        # The penalty must be computed before `opt` changes the weights.
        penalty = net.penalty() if net.reports_mean_over_outputs() else 0.0
        loss = super().step(order, begin, rows, opt)
        batch = self._batch(order, begin, rows) if net.loss == "poisson" else (None, None)
        loss = net.reported_loss(loss, penalty, *batch)
        n_samples = self._source.rows if rows is None else rows
        net._loss_sum += loss * n_samples
        net._n_samples += n_samples
        return loss

    def _set_l2(self, order: NDArray[np.int64] | None, begin: int, rows: int | None) -> None:
        """Divide the penalty by the sum of the weights of a batch."""
        if self._weights is None:
            total: float = self._source.rows if rows is None else rows
        else:
            total = float(self._batch(order, begin, rows)[1].sum())
        self._net.l2 = self._net.alpha / total

    def _batch(self, order: NDArray[np.int64] | None, begin: int, rows: int | None) -> tuple[Any, Any]:
        """Return targets and weights of a batch."""
        stop = None if rows is None else begin + rows
        index = slice(begin, stop) if order is None else order[begin:stop]
        weights = None if self._weights is None else self._weights[index]
        return self._targets[index], weights


def draw_weights(net: PenalizedMLP, random_state: np.random.RandomState) -> None:
    """Draw initial weights and biases as scikit-learn does: uniformly, after Glorot & Bengio (2010).

    The last layer uses the activation of the layer before it.
    """
    activations: list[str | None] = [*net.activation, *net.activation[-1:]] or [None]
    for (W, b, *_), activation in zip(net.params, activations, strict=True):
        bound = math.sqrt((2.0 if activation == "sigmoid" else 6.0) / sum(W.shape))
        W[...] = random_state.uniform(-bound, bound, W.shape)
        b[...] = random_state.uniform(-bound, bound, b.shape)
