"""The minibatches of an epoch: which rows, and the step that is taken on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.nn.mlp import MLP
from fastopt.optimizers.base import Optimizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastopt.nn.typing import Net

__all__ = ["make_batches"]

_LARGE = 1 << 13  # parameters from which on an update right after each gradient saves more than it costs


def make_batches(
    net: Net, columns: tuple[Any, ...], batch_size: int, rng: np.random.Generator | None
) -> Batches:
    """Return the batches of a training; each iteration over them is an epoch, in another order.

    Parameters
    ----------
    net : object
    columns : tuple
        X, y and, where rows have weights, these.
    batch_size : int
    rng : numpy.random.Generator or None
        Without one the rows are taken in the given order.

    Returns
    -------
    Batches
    """
    # A net that has its own idea of a step is asked for it.
    if isinstance(net, MLP) and type(net).train_step is MLP.train_step:
        return _Fed(net, columns, batch_size, rng)
    return _Gathered(net, columns, batch_size, rng)


class Batches:
    """Iterates over (begin, end) of the batches in the order of the epoch.

    Parameters
    ----------
    net, columns, batch_size, rng
        See `make_batches`.
    """

    def __init__(
        self, net: Net, columns: tuple[Any, ...], batch_size: int, rng: np.random.Generator | None
    ) -> None:
        self._net = net
        self._columns = columns
        self._rows = len(columns[1])
        self._batch_size = batch_size
        self._rng = rng
        self._order: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return -(-self._rows // self._batch_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self._rng is not None:
            self._order = self._rng.permutation(self._rows)
        for begin in range(0, self._rows, self._batch_size):
            yield begin, min(begin + self._batch_size, self._rows)

    def step(self, begin: int, end: int, opt: Any, options: Mapping[str, Any]) -> float:
        """Take a step on a batch and return its loss."""
        raise NotImplementedError

    def weight(self, begin: int, end: int) -> float:
        """Return how much a batch counts in the mean loss: its rows, or the sum of their weights."""
        if len(self._columns) < 3:
            return end - begin
        weights = self._columns[2]
        return float((weights[begin:end] if self._order is None else weights[self._order[begin:end]]).sum())


class _Fed(Batches):
    """Batches of a net that takes the rows out of the data itself."""

    def __init__(
        self, net: MLP, columns: tuple[Any, ...], batch_size: int, rng: np.random.Generator | None
    ) -> None:
        super().__init__(net, columns, batch_size, rng)
        self._feed = net.feed(*columns)
        self._large = sum(array.size for layer in net.params for array in layer) >= _LARGE

    def step(self, begin: int, end: int, opt: Any, options: Mapping[str, Any]) -> float:
        """Take a step on a batch and return its loss."""
        at_once = self._large and not options and isinstance(opt, Optimizer)
        if at_once and opt._can_lease(self._net.params):
            return self._feed.step(self._order, begin, end - begin, opt)
        loss = self._feed.step(self._order, begin, end - begin)
        opt.step(self._feed.grads, **options)
        return loss


class _Gathered(Batches):
    """Batches gathered into buffers that every batch reuses, or views where they are in order."""

    def __init__(
        self, net: Net, columns: tuple[Any, ...], batch_size: int, rng: np.random.Generator | None
    ) -> None:
        super().__init__(net, columns, batch_size, rng)
        self._reversed = getattr(net, "grads_reversed", True)
        rows = min(batch_size, self._rows)
        self._buffers = [
            None if hasattr(a, "tocsr") or rng is None else np.empty((rows, *a.shape[1:]), a.dtype)
            for a in columns
        ]

    def step(self, begin: int, end: int, opt: Any, options: Mapping[str, Any]) -> float:
        """Take a step on a batch and return its loss."""
        loss, grads = self._net.train_step(*self._gather(begin, end))
        opt.step(grads[::-1] if self._reversed else grads, **options)
        return float(loss)

    def _gather(self, begin: int, end: int) -> list[Any]:
        if self._order is None:
            return [column[begin:end] for column in self._columns]
        rows = self._order[begin:end]
        # mode="clip" because "raise" makes take() buffer its output; the rows are all in range.
        return [
            column[rows]
            if buffer is None
            else column.take(rows, axis=0, out=buffer[: len(rows)], mode="clip")
            for column, buffer in zip(self._columns, self._buffers, strict=True)
        ]
