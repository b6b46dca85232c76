"""The step plan: the span table of an optimizer and the scalars of each step."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from fastopt._core import dispatch
from fastopt._core.step_table import Entry, Table
from fastopt.optimizers.hyperparameters import Hyperparameters
from fastopt.optimizers.options.sparse import idle_steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastopt._core.typing import Array, TreeDef
    from fastopt.optimizers.groups import Group
    from fastopt.optimizers.options.ema import EMA
    from fastopt.optimizers.options.gradients import UnitTransform
    from fastopt.optimizers.options.lookahead import Lookahead
    from fastopt.optimizers.rule import Rule


class ScalarGroup:
    """Arrays updated with one set of scalars: those of a group with one kernel, or a single array.

    Attributes
    ----------
    array : int or None
        Index of the array whose scalars depend on its own elements.
    hp : Hyperparameters
        Values of the coming step, with ``kernel``; ``scalar_state`` as `Rule.advance` returned it; ``sums``
        over the array and ``totals`` over all arrays after a first pass, else None; ``size`` of the array.
    """

    hp: Hyperparameters
    start: int

    def __init__(self, group: Group, kernel: str, array: int | None) -> None:
        self.group, self.kernel, self.array = group, kernel, array

    def snapshot(self) -> Hyperparameters:
        """Take over the group's values for the coming step."""
        self.start = self.group.start
        self.hp = Hyperparameters({
            **vars(self.group.current), "kernel": self.kernel, "sums": None, "totals": None, "size": None,
            "scalar_state": self.group.next_scalar_state,
        })
        return self.hp


class StepPlan:
    """Everything that the steps of one arrangement of groups, kernels and options share.

    Parameters
    ----------
    rule : type
    groups : sequence of Group
    group_of : sequence of int
        Index of the group of each parameter.
    arrays, kernels, states : sequence
        Each parameter, the name of its kernel, and its state arrays by name.
    treedef, paths
        Nesting of the parameters, and the name of each gradient in errors: ``grads[2]["W"]``.
    buffers : dict of str to sequence of ndarray
        Buffers of the options, by name.
    sparse : str
        Mode of sparse rows.
    ema, lookahead, unit_transform
        Options, or None.
    written : sequence of ndarray
        Further arrays that an optimizer step writes: no gradient may overlap them.
    """

    def __init__(
        self, rule: type[Rule], groups: Sequence[Group], group_of: Sequence[int], arrays: Sequence[Array],
        kernels: Sequence[str], states: Sequence[Mapping[str, Array]], treedef: TreeDef, paths: list[str], *,
        buffers: Mapping[str, Sequence[Array]], sparse: str = "dense", ema: EMA | None = None,
        lookahead: Lookahead | None = None, unit_transform: UnitTransform | None = None,
        written: Sequence[Array] = (),
    ) -> None:
        self.rule, self.groups, self.arrays, self.states = rule, groups, arrays, states
        self._sparse, self._ema, self._lookahead = sparse, ema, lookahead
        self._unit_transform = unit_transform
        self._step_scalars = rule.step_scalars
        self._scheduled = False
        self.scalar_groups: list[ScalarGroup] = []
        self.scalar_group_of: list[int] = []
        compiled = dispatch.kernels
        index: dict[tuple[int, str, int | None], int] = {}
        for k, (i, kernel) in enumerate(zip(group_of, kernels, strict=True)):
            array = k if kernel in rule.PRECOMPUTED or kernel in compiled.TWO_PASS else None
            own = index.setdefault((i, kernel, array), len(index))
            if own == len(self.scalar_groups):
                self.scalar_groups.append(ScalarGroup(groups[i], kernel, array))
            self.scalar_group_of.append(own)
        self.has_prepass: bool = unit_transform is not None or any(
            g.array is not None for g in self.scalar_groups
        )
        row_wise = [kernel in compiled.ROWWISE for kernel in kernels]
        self.needs_full_step: bool = self.has_prepass or bool(rule.SCALAR_STATE) or any(row_wise)
        self.table = Table(
            compiled, treedef, paths,
            [
                Entry(
                    array, list(state.values()), own,
                    slow=buffers["lookahead"][k] if "lookahead" in buffers else None,
                    average=buffers["ema"][k] if "ema" in buffers else None,
                    sparse=self._sparse_mode(self.scalar_groups[own]),
                    row_sums=next(iter(state.values())) if row_wise[k] else None,
                )
                for k, (array, state, own) in enumerate(
                    zip(arrays, states, self.scalar_group_of, strict=True)
                )
            ],
            ["apply_update" if g.kernel in rule.PRECOMPUTED else g.kernel for g in self.scalar_groups],
            written,
        )

    def _sparse_mode(self, scalar_group: ScalarGroup) -> str:
        """Mode of sparse rows of a scalar group; "" if its arrays can only be stepped as a whole."""
        whole = scalar_group.array is not None or self._unit_transform is not None
        if self._sparse == "lazy":
            whole = whole or self._lookahead is not None
        return "" if whole and self._sparse != "dense" else self._sparse

    def refresh(self, step: int, *, everything: bool) -> bool:
        """Compute what does not change at each step, after `step` finished steps.

        Parameters
        ----------
        step : int
        everything : bool
            Evaluate all hyperparameters; else those that have a schedule.

        Returns
        -------
        bool
            Whether this must be repeated before the step after the coming one.
        """
        rule, t = self.rule, step + 1
        for group in self.groups:
            group.update_current(step, everything=everything)
        if everything:
            self._scheduled = any(group.scheduled for group in self.groups)
            self._scheduled = self._scheduled or (self._ema is not None and self._ema.scheduled)
        if everything or self._scheduled:
            ema = 0.0 if self._ema is None else self._ema.decay(step)
            for i, scalar_group in enumerate(self.scalar_groups):
                hp = scalar_group.snapshot()
                factor = rule.decay_factor(hp) * (1.0 - hp.independent_weight_decay)
                self.table.set_group(i, hp.maximize, rule.l2_decay(hp), rule.constants(hp), factor, ema)
                if self._sparse == "exact":
                    self.table.set_idle_decay(i, *idle_steps(rule.idle_decay(hp)))
        if rule.SCALAR_STATE:
            for group in self.groups:
                group.next_scalar_state = rule.advance(group.current, t - group.start, group.scalar_state)
            for scalar_group in self.scalar_groups:
                scalar_group.hp.scalar_state = scalar_group.group.next_scalar_state
        if self._lookahead is not None:
            for i, scalar_group in enumerate(self.scalar_groups):
                self.table.set_lookahead_alpha(i, self._lookahead.alpha(t - scalar_group.start))
        return self._scheduled or bool(rule.SCALAR_STATE) or self._lookahead is not None

    def update_scalars(self, t: int) -> int:
        """Give the table the scalars of step `t`; return `t`."""
        i, step_scalars, rows = 0, self._step_scalars, self.table.step_scalars
        for scalar_group in self.scalar_groups:
            rows[i] = step_scalars(scalar_group.hp, t - scalar_group.start)
            i += 1  # noqa: SIM113 (enumerate alone would take a tenth of a small step)
        return t

    @np.errstate(all="ignore")  # as in the kernels: an overflow is an infinity
    def prepass(self, t: int) -> None:
        """Do what step `t` needs between the check of the gradients and the update.

        Units are reduced for the options that scale their gradients. Gradients are replaced by updates that
        the rule computes from whole arrays. Kernels of two passes run their first one.
        """
        rule, table = self.rule, self.table
        if self._unit_transform:
            for k, array in enumerate(self.arrays):
                units = array.shape[-1] if array.ndim > 1 else 1
                if array.size:
                    g_sums = table.unit_sums(k, units)
                    scale_shift = self._unit_transform(g_sums, array.size // units, array.ndim < 2)
                    table.set_units(k, *scale_shift)
        if any(g.kernel in rule.PRECOMPUTED for g in self.scalar_groups):
            for k, array in enumerate(self.arrays):
                scalar_group, g = self.scalar_groups[self.scalar_group_of[k]], table.transformed_grad(k)
                if scalar_group.kernel in rule.PRECOMPUTED and array.size:
                    own_t = t - scalar_group.start
                    g = rule.compute_update(scalar_group.hp, own_t, array, g, self.states[k])
                table.replace_grad(k, g)
        two_pass = dispatch.kernels.TWO_PASS
        if any(g.kernel in two_pass for g in self.scalar_groups):
            sums = table.reduce_pass()
            # One after the other: `sum` is more exact from Python 3.12 on, so its bits differ.
            totals = tuple(reduce(add, column) for column in zip(*sums, strict=True))
            for i, scalar_group in enumerate(self.scalar_groups):
                own = scalar_group.array
                if own is None or scalar_group.kernel not in two_pass:
                    continue
                hp, group, own_t = scalar_group.hp, scalar_group.group, t - scalar_group.start
                hp.sums, hp.totals, hp.size = sums[own], totals, self.arrays[own].size
                group.next_scalar_state = hp.scalar_state = rule.advance(hp, own_t, group.scalar_state)
                table.step_scalars[i] = rule.step_scalars(hp, own_t)
