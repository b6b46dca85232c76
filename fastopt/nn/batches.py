"""The minibatches of an epoch, and the training step on each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.nn._core.blas import blas
from fastopt.nn.gradients import GradientOrder, are_arrays_like
from fastopt.nn.mlp import MLP
from fastopt.optimizers.base import Optimizer

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from fastopt.nn.network import TrainingData
    from fastopt.nn.typing import Logs, Net

# Models with at least this many parameters are updated array by array, each right after its gradient.
_MIN_PARAMS_TO_LEASE = 1 << 13


def make_batches(net: Net, columns: Sequence[Any], batch_size: int, rng: Generator | None) -> Batches:
    """Return the batches of a training run.

    The columns are X, y and, optionally, the sample weights. Without `rng`, they keep their order.
    """
    # A subclass that overrides train_step must be trained through it.
    is_compiled = isinstance(net, MLP) and type(net).train_step is MLP.train_step
    return (CompiledBatches if is_compiled else GatheredBatches)(net, columns, batch_size, rng)


def accumulates(opt: Any) -> bool:
    """Whether an optimizer takes weights of micro-batches and has to be flushed at the end of an epoch."""
    own = opt.opt if is_distributed(opt) else opt
    return isinstance(own, Optimizer) and own._micro_batches > 1


def is_distributed(opt: Any) -> bool:
    """Whether an optimizer is a `fastopt.mpi.DistributedOptimizer`, on however many ranks."""
    return hasattr(opt, "ranks") and isinstance(getattr(opt, "opt", None), Optimizer)


class Batches:
    """The batches of an epoch, and sums over them for metrics.

    Attributes
    ----------
    y : ndarray
    n_samples, batch_size : int
    counts : list of float
        Sums for the training accuracy over the batches; empty if the steps do not count. They are set
        when an epoch begins or is resumed.
    """

    def __init__(self, net: Any, columns: Sequence[Any], batch_size: int, rng: Generator | None) -> None:
        self._net = net
        self._columns = columns
        self.y = columns[1]
        self.n_samples = len(self.y)
        self.batch_size = batch_size
        self._rng = rng
        self._order: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return -(-self.n_samples // self.batch_size)

    @property
    def counts(self) -> list[float]:
        return []

    @counts.setter
    def counts(self, counts: Sequence[float]) -> None:
        pass

    @property
    def is_shuffled(self) -> bool:
        """Whether each epoch has a new order."""
        return self._rng is not None

    def shuffle(self) -> Any:
        """Draw the order of an epoch; return the state of the random generator before, if there is one."""
        if self._rng is None:
            return None
        state: Any = self._rng.bit_generator.state
        self._order = self._rng.permutation(self.n_samples)
        return state

    def shuffle_again(self, state: Any) -> None:
        """Repeat the call of `shuffle` that returned `state`. The random generator is not advanced."""
        if self._rng is not None:
            now: Any = self._rng.bit_generator.state
            self._rng.bit_generator.state = state
            self._order = self._rng.permutation(self.n_samples)
            self._rng.bit_generator.state = now

    def ranges(self, first: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges (begin, end) of the batches in the order of the epoch, from batch `first` on."""
        for begin in range(first * self.batch_size, self.n_samples, self.batch_size):
            yield begin, min(begin + self.batch_size, self.n_samples)

    def step(self, opt: Any, begin: int, end: int, options: Mapping[str, Any]) -> float:
        """Take a step on a batch and return its loss."""
        raise NotImplementedError

    def gradients(self, begin: int, end: int) -> tuple[float, Any]:
        """Return the loss of a batch and its gradients, in the order of the parameters."""
        raise NotImplementedError

    def count_correct(self, weight: NDArray[np.float64] | None) -> bool:
        """Count the samples that the outputs of the steps predict correctly, if the steps provide outputs.

        Return whether they do. `weight` has the weight of each sample in the accuracy.
        """
        return False

    def metrics(self) -> Logs:
        """Return the accuracy over the batches, if they are counted."""
        return {}

    def weight(self, begin: int, end: int) -> float:
        """Return the weight of a batch in the mean loss: its size, or the sum of its sample weights."""
        if len(self._columns) < 3:
            return end - begin
        weights = self._columns[2]
        return float((weights[begin:end] if self._order is None else weights[self._order[begin:end]]).sum())


class CompiledBatches(Batches):
    """Batches of an MLP, whose compiled step reads the samples directly from the data."""

    def __init__(self, net: Any, columns: Sequence[Any], batch_size: int, rng: Generator | None) -> None:
        super().__init__(net, columns, batch_size, rng)
        self._data: TrainingData = net.bind_data(*columns)
        n_params = sum(array.size for layer in net.params for array in layer)
        # Products through NumPy may fail for lack of memory when some parameters have been updated already.
        self._is_large = n_params >= _MIN_PARAMS_TO_LEASE and blas.direct
        self._counts = False

    def step(self, opt: Any, begin: int, end: int, options: Mapping[str, Any]) -> float:
        may_lease = self._is_large and not options and isinstance(opt, Optimizer)
        if may_lease and opt._can_lease(self._net.params):
            return self._data.step(self._order, begin, end - begin, opt)
        loss, grads = self.gradients(begin, end)
        opt.step(grads, **options)
        return loss

    def gradients(self, begin: int, end: int) -> tuple[float, Any]:
        return self._data.step(self._order, begin, end - begin), self._data.grads

    @property
    def counts(self) -> list[float]:
        return list(self._data.counts) if self._counts else []

    @counts.setter
    def counts(self, counts: Sequence[float]) -> None:
        if counts:
            self._data.counts = (counts[0], counts[1])

    def count_correct(self, weight: NDArray[np.float64] | None) -> bool:
        # A subclass may define its own predictions.
        self._counts = type(self._net).predict is MLP.predict and self._data.count_correct(weight)
        return self._counts

    def metrics(self) -> Logs:
        return {"accuracy": self._data.accuracy()} if self._counts else {}


class GatheredBatches(Batches):
    """Batches copied into reused buffers, or views of the data if the order is that of the data."""

    def __init__(self, net: Any, columns: Sequence[Any], batch_size: int, rng: Generator | None) -> None:
        super().__init__(net, columns, batch_size, rng)
        self._arrange = GradientOrder(net)
        self._converts = False      # whether gradients have to be converted before every step
        n = min(batch_size, self.n_samples)
        self._buffers = [
            None if hasattr(a, "tocsr") or rng is None else np.empty((n, *a.shape[1:]), a.dtype)
            for a in columns
        ]

    def step(self, opt: Any, begin: int, end: int, options: Mapping[str, Any]) -> float:
        loss, grads = self._net.train_step(*self._gather(begin, end))
        grads = self._arrange.order(grads)
        if isinstance(opt, Optimizer) and not self._converts:
            try:
                opt.step(grads, **options)
                return float(loss)
            except (TypeError, ValueError):     # before it has changed anything
                if are_arrays_like(self._net.params, grads):
                    raise
                self._converts = True
        opt.step(self._arrange.convert(grads), **options)
        return float(loss)

    def gradients(self, begin: int, end: int) -> tuple[float, Any]:
        loss, grads = self._net.train_step(*self._gather(begin, end))
        return float(loss), self._arrange(grads)

    def _gather(self, begin: int, end: int) -> list[Any]:
        if self._order is None:
            return [column[begin:end] for column in self._columns]
        samples = self._order[begin:end]
        # With mode="raise", take() buffers its output; the indices are always valid.
        return [
            column[samples]
            if buffer is None
            else column.take(samples, axis=0, out=buffer[: len(samples)], mode="clip")
            for column, buffer in zip(self._columns, self._buffers, strict=True)
        ]
