"""``accumulate=n``: gradient accumulation, the weighted mean of the gradients of `n` micro-batches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core import dispatch
from fastopt._core.arena import copy_all
from fastopt._core.pytree import assemble
from fastopt._core.step_table import Entry, StepCounter, Table
from fastopt.optimizers.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from fastopt._core.containers import ContainerWatch
    from fastopt._core.typing import Array, Gradients, TreeDef


class Accumulator:
    """Sums of the weighted gradients of a number of micro-batches.

    A micro-batch is added by a step of SGD on the sums with its negative weight as learning rate. Its table
    counts the micro-batches in which each parameter had a gradient.

    Attributes
    ----------
    count : int
        Micro-batches since the last step.
    weights : ndarray
        Total weight of these micro-batches, for each parameter.
    """

    def __init__(
        self, treedef: TreeDef, paths: list[str], sums: list[Array], micro_batches: int, sparse: str,
        written: list[Array], before: Accumulator | None = None,
    ) -> None:
        self.counter: StepCounter = StepCounter()
        self.sums: list[Array] = sums
        self.weights = np.zeros(len(sums))
        self._treedef, self._micro_batches = treedef, micro_batches
        self.counts = np.zeros(len(sums), np.int64)
        if before is not None:
            known = len(before.weights)
            self.counter.steps = before.counter.steps
            self.weights[:known], self.counts[:known] = before.weights, before.counts
        entries = [Entry(array, [], sparse=sparse) for array in sums]
        self._table = Table(
            dispatch.kernels, treedef, paths, entries, self.counter, self.counts,
            np.zeros(len(sums), np.uint8), lambda hp, t: {}, written,
        )
        self._table.set_scalar_groups([0] * len(sums), ["sgd"], [Hyperparameters({})])

    @property
    def count(self) -> int:
        return self.counter.steps

    def __getstate__(self) -> dict[str, Any]:
        # The optimizer makes a new accumulator from this when it is unpickled.
        return {"counter": self.counter, "weights": self.weights, "counts": self.counts}

    def add(self, grads: Gradients, weight: float, scale: float, zero_grad: bool) -> bool:
        """Add the gradients of a micro-batch; return True if a step is due."""
        if not self.count:
            self.weights[:], self.counts[:] = 0.0, 0
        self._table.set_constants(0, {"lr": -weight})
        self._table.stage_state(self.weights, self.weights + weight)
        self._table.full_step(grads, scale, math.inf, math.inf, zero_grad, False, False)
        return self.count >= self._micro_batches

    def mean(self) -> tuple[Gradients, float]:
        """Return the sums and the scale that makes them means; None for parameters without a gradient."""
        total = float(self.weights.max())
        rescaled = {     # those of parameters that were added after the first micro-batch
            k: array * array.dtype.type(total / weight)
            for k, (array, weight) in enumerate(zip(self.sums, self.weights, strict=True))
            if 0.0 < weight < total
        }
        copy_all(
            [*(self.sums[k] for k in rescaled), self.weights],
            [*rescaled.values(), np.full_like(self.weights, total)],
        )
        sums = [a if count else None for a, count in zip(self.sums, self.counts, strict=True)]
        return assemble(self._treedef, sums), 1.0 / total

    def watch(self, containers: ContainerWatch) -> None:
        """Let each micro-batch look whether the caller's containers have other arrays."""
        self._table.watch = containers
