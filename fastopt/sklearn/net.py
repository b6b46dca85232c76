"""The net behind the estimators: `fastopt.MLP` with scikit-learn's loss, penalty and first weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import xlogy

from fastopt.nn import MLP
from fastopt.nn.mlp import Feed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastopt.nn.typing import Samples
    from fastopt.optimizers import Optimizer

__all__ = ["PenalizedMLP", "draw_weights"]


class PenalizedMLP(MLP):
    """An MLP whose L2 penalty is shared out among the rows of a batch.

    The loss of a batch is ``sum(w * l) / sum(w) + 0.5 * alpha * sum(W**2) / sum(w)``, where a row's
    ``l`` is summed over the outputs, and a row without a weight weighs 1. So a smaller last batch
    has a larger share of the penalty, as in scikit-learn.

    Parameters
    ----------
    sizes : sequence of int
    alpha : float
        Strength of the penalty.
    **options
        Of `fastopt.MLP`.
    """

    def __init__(self, sizes: Sequence[int], *, alpha: float, **options: Any) -> None:
        super().__init__(sizes, reduction="sum", **options)
        self.alpha: float = alpha
        self._losses = 0.0
        self._rows = 0

    def feed(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> PenalizedFeed:
        """Check data once and return what trains on batches of it, a `PenalizedFeed`."""
        return PenalizedFeed(self, X, y, sample_weight)

    def evaluate(self, X: Samples, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Return the loss as a step states it, but without the penalty."""
        self.l2 = 0.0
        return self.stated(super().evaluate(X, y, sample_weight), 0.0, y, sample_weight)

    def penalty(self) -> float:
        """Return the penalty's part in the loss of the last batch."""
        return 0.5 * self.l2 * sum(float(np.vdot(layer[0], layer[0])) for layer in self.params)

    def stated(self, loss: float, penalty: float, y: Any, sample_weight: Any = None) -> float:
        """Return the number that scikit-learn states for a loss.

        It states the squared error as a mean over the outputs, and yet goes down the gradient of their
        sum; and to Poisson's loss it adds what makes that of a perfect prediction 0.

        Parameters
        ----------
        loss : float
            Of a batch, penalty included.
        penalty : float
            Counts with the squared error of several outputs only.
        y, sample_weight : ndarray
            The batch's targets and weights; count with Poisson's loss only.
        """
        if self.takes_mean():
            return (loss - penalty) / self.sizes[-1] + penalty
        if self.loss == "poisson":
            return loss + float(np.sum(np.average(xlogy(y, y) - y, axis=0, weights=sample_weight)))
        return loss

    def takes_mean(self) -> bool:
        """Whether the stated loss is a mean over several outputs."""
        return self.loss == "squared_error" and self.sizes[-1] > 1

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take copies of arrays that must not be written, as those of joblib's memory maps."""
        for name in ("params", "running"):
            state[name] = [[np.require(a, requirements="W") for a in layer] for layer in state[name]]
        super().__setstate__(state)

    def note(self, loss: float, rows: int) -> None:
        """Count a batch in what `take_losses` returns."""
        self._losses += loss * rows
        self._rows += rows

    def take_losses(self) -> tuple[float, int]:
        """Return the mean loss of the rows since the last call, whatever these weigh, and their number."""
        mean, rows = self._losses / self._rows, self._rows
        self._losses, self._rows = 0.0, 0
        return mean, rows


class PenalizedFeed(Feed):
    """Data to train a `PenalizedMLP` on, batch after batch."""

    _net: PenalizedMLP

    def __init__(self, net: PenalizedMLP, X: Samples, y: Any, sample_weight: Any) -> None:
        super().__init__(net, *net._source(X, y, sample_weight))
        self._targets = y
        self._weights = sample_weight

    def objective(self) -> float:
        """Compute the gradients of all rows and return the loss that they belong to."""
        self._share_penalty(None, 0, None)
        return super().step(None)

    def step(
        self, order: NDArray[np.int64] | None, begin: int = 0, rows: int | None = None,
        opt: Optimizer | None = None,
    ) -> float:
        """Compute the gradients of a batch and return its loss as scikit-learn states it."""
        net = self._net
        self._share_penalty(order, begin, rows)
        penalty = net.penalty() if net.takes_mean() else 0.0    # before `opt` changes the weights
        loss = super().step(order, begin, rows, opt)
        batch = self._batch(order, begin, rows) if net.loss == "poisson" else (None, None)
        loss = net.stated(loss, penalty, *batch)
        net.note(loss, self._source.rows if rows is None else rows)
        return loss

    def _share_penalty(self, order: NDArray[np.int64] | None, begin: int, rows: int | None) -> None:
        self._net.l2 = self._net.alpha / self._total(order, begin, rows)

    def _total(self, order: NDArray[np.int64] | None, begin: int, rows: int | None) -> float:
        """Return the sum of the weights of a batch."""
        if self._weights is None:
            return self._source.rows if rows is None else rows
        return float(self._batch(order, begin, rows)[1].sum())

    def _batch(self, order: NDArray[np.int64] | None, begin: int, rows: int | None) -> tuple[Any, Any]:
        """Return targets and weights of a batch."""
        stop = None if rows is None else begin + rows
        places = slice(begin, stop) if order is None else order[begin:stop]
        weights = None if self._weights is None else self._weights[places]
        return self._targets[places], weights


def draw_weights(net: PenalizedMLP, random_state: np.random.RandomState) -> None:
    """Draw weights and biases as scikit-learn does: uniformly, after Glorot & Bengio (2010).

    The bound is ``sqrt(6 / (fan_in + fan_out))``, or ``sqrt(2 / ...)`` where a logistic function
    follows; the last layer's goes by the activation before it.

    Parameters
    ----------
    net : PenalizedMLP
    random_state : numpy.random.RandomState
    """
    activations: list[str | None] = [*net.activation, *net.activation[-1:]] or [None]
    for (W, b, *_), activation in zip(net.params, activations, strict=True):
        bound = math.sqrt((2.0 if activation == "sigmoid" else 6.0) / sum(W.shape))
        W[...] = random_state.uniform(-bound, bound, W.shape)
        b[...] = random_state.uniform(-bound, bound, b.shape)
