"""``accumulate=n``: gradient accumulation, the mean of the gradients of `n` micro-batches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fastopt._core import dispatch
from fastopt._core.step_table import Entry, Table

if TYPE_CHECKING:
    from fastopt._core.typing import Array, Gradients, TreeDef


class Accumulator:
    """Mean of the gradients of a number of micro-batches.

    A micro-batch is added by a step of SGD on the sums with the learning rate ``-1 / micro_batches``.

    Attributes
    ----------
    count : int
        Micro-batches since the last step.
    """

    def __init__(
        self, treedef: TreeDef, paths: list[str], sums: list[Array], micro_batches: int, sparse: str,
        written: list[Array], before: Accumulator | None = None,
    ) -> None:
        self.sums: list[Array] = sums
        self.micro_batches: int = micro_batches
        self.count: int = 0 if before is None else before.count
        entries = [Entry(array, [], sparse=sparse) for array in sums]
        self._table = Table(dispatch.kernels, treedef, paths, entries, ["sgd"], written)
        self._table.set_group(0, False, 0.0, {"lr": -1.0 / micro_batches})

    def __getstate__(self) -> dict[str, Any]:
        return {"count": self.count}  # the optimizer makes a new table when it is unpickled

    def clear(self) -> None:
        for array in self.sums:
            array[...] = 0

    def add(self, grads: Gradients, scale: float, zero_grad: bool) -> bool:
        """Add the gradients of a micro-batch; return True if a step is due."""
        self._table.full_step(grads, scale, math.inf, math.inf, zero_grad, False, False, None)
        self.count = (self.count + 1) % self.micro_batches
        return self.count == 0
