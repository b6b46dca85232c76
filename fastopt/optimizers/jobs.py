"""Between an optimizer and its span table: who asks what of which arrays, and what comes before the pass."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from fastopt._core import dispatch
from fastopt.optimizers.groups import Hyperparameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import SimpleNamespace

    from fastopt._core.step_table import Table
    from fastopt._core.typing import Array
    from fastopt.optimizers.base import Optimizer
    from fastopt.optimizers.groups import Group
    from fastopt.optimizers.wrappers import Transform


class Job:
    """What asks the same of its arrays: a group, or one array of it if each has scalars of its own.

    Attributes
    ----------
    now : Hyperparameters
        The numbers of the coming step; ``rule``, the name of the kernel that takes them; ``numbers``
        as `carry` returned them; ``sums``, what was measured of the array, and ``totals`` of all, None
        until it was; ``size``, the array's.
    """

    group: Group | SimpleNamespace
    rule: str
    array: int | None
    start: int
    now: Hyperparameters

    def __init__(self, group: Group | SimpleNamespace, rule: str, array: int | None) -> None:
        self.group, self.rule, self.array = group, rule, array

    def look(self) -> Hyperparameters:
        """Take over what the group has for the coming step."""
        self.start = self.group.start
        self.now = Hyperparameters({
            **vars(self.group.now), "rule": self.rule, "numbers": self.group.coming,
            "sums": None, "totals": None, "size": None,
        })
        return self.now


def kernel_of(kind: type[Optimizer], rule: str) -> str:
    """Name of a rule's kernel."""
    return "along" if rule in kind.DIRECTED else rule


@np.errstate(all="ignore")     # as in the kernels: what overflows is a number like any other
def prepare(
    kind: type[Optimizer], table: Table, jobs: Sequence[Job], job_of: list[int], steps: int,
    arrays: list[Array], state: Sequence[Mapping[str, Array]], transform: Transform | None = None,
) -> None:
    """What a rule wants beside its one pass, between the checks and the update.

    Units are measured, for `transform` to say how to change their gradients on the way; gradients that
    the rule's `direction` changes as a whole are replaced. A rule whose scalars need sums over its arrays
    has them measured in a pass of its own.
    """
    if transform:
        for k, array in enumerate(arrays):
            units = array.shape[-1] if array.ndim > 1 else 1
            if array.size:
                sums = table.unit_sums(k, units)
                table.set_units(k, *transform(sums, array.size // units, array.ndim < 2))
    if any(job.rule in kind.DIRECTED for job in jobs):
        for k, array in enumerate(arrays):
            job, g = jobs[job_of[k]], table.gradient(k)
            if job.rule in kind.DIRECTED and array.size:
                g = kind.direction(job.now, steps - job.start, array, g, state[k])
            table.replace(k, g)
    if any(job.rule in dispatch.kernels.SURVEYS for job in jobs):
        surveyed = table.survey()
        # One after the other: `sum` is more exact from Python 3.12 on, and so has other bits.
        totals = tuple(reduce(add, column) for column in zip(*surveyed, strict=True))
        for i, job in enumerate(jobs):
            if job.array is None or job.rule not in dispatch.kernels.SURVEYS:
                continue    # such a rule has a job for each array
            h, t = job.now, steps - job.start
            h.sums, h.totals, h.size = surveyed[job.array], totals, arrays[job.array].size
            job.group.coming = h.numbers = kind.carry(h, t, job.group.numbers)
            table.rows[i] = kind.variables(h, t)
