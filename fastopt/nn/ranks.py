"""Training on several ranks: the step on micro-shards, and what all ranks decide alike.

The optimizer is then a `fastopt.mpi.DistributedOptimizer`. Only its attributes and methods are used, so the
trainer needs no MPI.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from fastopt.nn.batches import is_distributed
from fastopt.nn.evaluation import evaluate, evaluates_as_mlp
from fastopt.nn.files import get_weights, set_weights
from fastopt.nn.layers import loss_for
from fastopt.nn.mlp import MLP
from fastopt.nn.network import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from fastopt.nn.batches import Batches
    from fastopt.nn.evaluation import EvaluationData
    from fastopt.nn.signals import DeferredSignals
    from fastopt.nn.typing import Logs

T = TypeVar("T")

_LOSS, _WEIGHT, _CORRECT, _SEEN, _RUNNING = range(5)  # columns of the sums over a micro-shard


class SingleRank:
    """What a trainer does alone: the ordinary step, and every decision.

    Attributes
    ----------
    is_main : bool
        Whether this rank prints and writes files.
    signals : DeferredSignals or None
        The handlers of the running fit.
    """

    is_main = True
    signals: DeferredSignals | None = None

    def clock(self) -> float:
        """Return the time in seconds, the same on all ranks."""
        return time.perf_counter()

    def from_main(self, function: Callable[[], T]) -> T:
        """Return what `function` returns on the main rank, the only one that calls it, or raise its error."""
        return function()

    def synchronize(self, net: Any, *values: object) -> None:
        """Begin a fit: give all ranks the weights of the main rank; raise unless they pass equal values."""

    def make_step(self, batches: Batches, net: Any, opt: Any) -> Callable[[int, int, Any], float]:
        """Return a function that takes a step on a batch, given by its range, and returns its loss."""
        return partial(batches.step, opt)

    def evaluate(self, net: Any, data_sets: Mapping[str, EvaluationData]) -> Logs:
        """Return the metrics of a model, see `fastopt.nn.evaluation.evaluate`."""
        assert self.signals is not None
        with self.signals.raising():
            return evaluate(net, data_sets)


class Ranks(SingleRank):
    """What the ranks of a `fastopt.mpi.DistributedOptimizer` do together.

    Every method but `clock` must be called by all ranks, in the same order.
    """

    def __init__(self, opt: Any) -> None:
        self._ranks = opt.ranks
        self.is_main = self._ranks.rank == 0
        self._time = 0.0

    def clock(self) -> float:
        """Return the time of the main rank when the ranks last communicated."""
        return self._time

    def from_main(self, function: Callable[[], T]) -> T:
        value: Any = None
        error: Exception | None = None
        if self.is_main:
            try:
                value = function()
            except Exception as raised:
                error = raised
        value, error, self._time = self._ranks.broadcast((value, error, time.perf_counter()))
        if error is not None:
            raise error
        return cast(T, value)

    def synchronize(self, net: Any, *values: object) -> None:
        self._ranks.check_equal("fit", [" (samples, batch size, epochs)"], [values])
        weights = self.from_main(lambda: get_weights(net))
        if not self.is_main:
            set_weights(net, weights)

    def exchange(self, sums: NDArray[np.float64]) -> None:
        """Add up arrays in place whose entries are zero on all ranks but one: the order has no effect.

        The ranks also agree on the time and on signals: if one has received a signal, so have all.
        """
        ranks, signals = self._ranks, self.signals
        control = np.zeros(1 + ranks.size)
        if self.is_main:
            control[0] = time.perf_counter()
        if signals is not None and signals.received is not None:
            control[1 + ranks.rank] = signals.received
        everything = np.concatenate((sums.ravel(), control))
        ranks.sum_in_place(everything)
        sums[...] = everything[: sums.size].reshape(sums.shape)
        self._time = float(everything[sums.size])
        if signals is not None:
            signals.agree(int(everything[sums.size + 1 :].max()))

    def make_step(self, batches: Batches, net: Any, opt: Any) -> Callable[[int, int, Any], float]:
        return ShardedStep(self, batches, net, opt)

    def evaluate(self, net: Any, data_sets: Mapping[str, EvaluationData]) -> Logs:
        """Return the metrics of a model; an MLP evaluates a part of the data on each rank."""
        logs: Logs = {}
        for prefix, data in data_sets.items():
            if prefix and evaluates_as_mlp(net):
                logs |= self._evaluate_parts(net, prefix, data)
            else:
                logs |= self.from_main(partial(evaluate, net, {prefix: data}))
        return logs

    def _evaluate_parts(self, net: MLP, prefix: str, data: EvaluationData) -> Logs:
        X, y, weights = data
        chunks = [slice(i, i + CHUNK) for i in range(0, len(y), CHUNK)]
        sums = np.zeros((len(chunks), 4))
        for i in range(self._ranks.rank, len(chunks), self._ranks.size):
            chunk = chunks[i]
            sums[i] = net.evaluation_sums(X[chunk], y[chunk], None if weights is None else weights[chunk])
        self.exchange(sums)
        loss, share = net.metrics_of(*_add_up(sums).tolist())
        logs: Logs = {} if share is None else {f"{prefix}accuracy": share}
        return logs | {f"{prefix}loss": loss}


def ranks_of(opt: Any) -> SingleRank:
    """Return the ranks that use an optimizer together."""
    return Ranks(opt) if is_distributed(opt) else SingleRank()


class ShardedStep:
    """The training step on the micro-shards of a batch; each rank has some of them.

    Everything is a function of the micro-shards and their order, not of the rank that computes them: dropout
    masks, the moments of batch normalization, and the sums of losses and correct predictions.
    """

    def __init__(self, ranks: Ranks, batches: Batches, net: Any, opt: Any) -> None:
        self._ranks, self._batches, self._opt, self._n_shards = ranks, batches, opt, opt.n_shards
        self._mlp: MLP | None = net if isinstance(net, MLP) else None
        self._running = [array for layer in self._mlp.running for array in layer] if self._mlp else []
        if self._mlp and self._mlp.loss == "auto":  # also on a rank whose micro-shards are all empty
            self._mlp.loss = loss_for(batches.y, self._mlp.sizes[-1])

    def __call__(self, begin: int, end: int, options: Mapping[str, Any]) -> float:
        batches, mlp, counts = self._batches, self._mlp, self._batches.counts
        sums = np.zeros((self._n_shards, _RUNNING + sum(array.size for array in self._running)))
        running = [array.copy() for array in self._running]
        steps = 0 if mlp is None else mlp.dropout_step
        for shard, part in self._opt.split(end - begin):
            first, last = begin + part.start, begin + part.stop
            weight = batches.weight(first, last)
            if not weight:
                continue
            self._restore(running)
            if mlp is not None:
                mlp.dropout_step = steps + shard
            batches.counts = [0.0, 0.0]
            loss, grads = batches.gradients(first, last)
            self._opt.accumulate(grads, shard, weight=weight)
            sums[shard, :_RUNNING] = weight * loss, weight, *(batches.counts or (0.0, 0.0))
            if running:
                sums[shard, _RUNNING:] = weight * np.concatenate(self._running, dtype=np.float64)
        self._opt.step(**options)
        self._ranks.exchange(sums)
        total = _add_up(sums)
        if mlp is not None:
            mlp.dropout_step = steps + self._n_shards
        if counts:
            batches.counts = [counts[0] + total[_CORRECT], counts[1] + total[_SEEN]]
        if running:
            ends = np.cumsum([array.size for array in running])
            self._restore(np.split(total[_RUNNING:] / total[_WEIGHT], ends[:-1]))
        return float(total[_LOSS] / total[_WEIGHT])

    def _restore(self, running: list[Any]) -> None:
        for array, values in zip(self._running, running, strict=True):
            array[...] = values


def _add_up(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of the rows in their order."""
    total = np.zeros(sums.shape[1])
    for row in sums:
        total += row
    return total
