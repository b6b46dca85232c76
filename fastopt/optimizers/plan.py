"""The step plan: the span table of an optimizer and the scalars of each step."""

from __future__ import annotations

import itertools
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core import dispatch
from fastopt._core.encoded import Encoded
from fastopt._core.step_table import Entry, Table
from fastopt.optimizers.hyperparameters import Hyperparameters
from fastopt.optimizers.options.sparse import idle_steps
from fastopt.optimizers.options.storage import Storage
from fastopt.optimizers.state import Scalars, values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fastopt._core.containers import ContainerWatch
    from fastopt._core.step_table import StepCounter
    from fastopt._core.typing import Array, Partition, TreeDef
    from fastopt.optimizers.groups import Group
    from fastopt.optimizers.options.base import Option
    from fastopt.optimizers.options.gradients import UnitTransform
    from fastopt.optimizers.rule import Rule
    from fastopt.optimizers.state import StateArrays


class ScalarGroup:
    """Arrays updated with one set of scalars.

    They have one group, kernel and number of steps, or it is a single array.

    Attributes
    ----------
    first : int
        Index of its first array.
    array : int or None
        Index of the array whose scalars depend on its own elements.
    hp : Hyperparameters
        Values of the coming step, with ``kernel``; ``is_new``, see `Rule.step_scalars`; ``scalar_state`` as
        `Rule.advance` returned it, and ``scalar_state_before``; ``sums`` over the array and ``totals`` over
        all arrays after a first pass, else None; ``size`` of the array.
    constants_read, decay_read : set of str or None
        Hyperparameters from which the table's constants and weight decay were computed; None if any may
        have been.
    """

    def __init__(self, group: Group, kernel: str, first: int, is_single: bool) -> None:
        self.group, self.kernel, self.first = group, kernel, first
        self.array = first if is_single else None
        self.hp = Hyperparameters({})
        self.constants_read: set[str] | None = None
        self.decay_read: set[str] | None = None


class StepPlan:
    """Everything that the steps of one arrangement of groups, kernels and options share.

    Parameters
    ----------
    rule : type
    groups : sequence of Group
    group_of : sequence of int
        Index of the group of each parameter.
    arrays, kernels : sequence
        Each parameter, and the name of its kernel.
    state : StateArrays
        State of the parameters, and the buffers of the options.
    counter : StepCounter
    treedef, paths
        Nesting of the parameters, and the name of each gradient in errors: ``grads[2]["W"]``.
    sparse : str
        Mode of sparse rows.
    options : dict of str to Option
        Options that act on the parameters after each update, by name.
    storage : Storage
        How the arrays are stored.
    unit_transform : callable, optional
    written : sequence of ndarray
        Further arrays that an optimizer step writes: no gradient may overlap them.
    pending : StepCounter, optional
        Counter of accumulated gradients.
    watch : ContainerWatch, optional
        Notices that the caller's containers have other arrays.
    partition : Partition, optional
        If the arrays are parts of parameters, combines what several processes compute.
    positions : sequence of int, optional
        Index of each parameter in the optimizer, if some of its parameters are left out.
    """

    def __init__(
        self, rule: type[Rule], groups: Sequence[Group], group_of: Sequence[int], arrays: Sequence[Array],
        kernels: Sequence[str], state: StateArrays, counter: StepCounter, treedef: TreeDef, paths: list[str],
        *, sparse: str = "dense", options: dict[str, Option] | None = None,
        storage: Storage | None = None, unit_transform: UnitTransform | None = None,
        written: Sequence[Array] = (),
        pending: StepCounter | None = None, watch: ContainerWatch | None = None,
        partition: Partition | None = None, positions: Sequence[int] | None = None,
    ) -> None:
        self.rule, self.groups, self.group_of, self.arrays = rule, groups, group_of, arrays
        self._kernels, self._state, self._counter = kernels, state, counter
        self._sparse, self._options, self._unit_transform = sparse, options or {}, unit_transform
        storage = storage or Storage()
        self._has_blocks = storage.state_dtype == "int8"    # some arrays may have
        self._scheduled_options: list[Option] = []
        self.scalar_groups: list[ScalarGroup] = []
        self.scalar_group_of: list[int] = []
        compiled = dispatch.kernels
        self._single = [kernel in rule.PRECOMPUTED or kernel in compiled.TWO_PASS for kernel in kernels]
        used = set(kernels)
        self._precomputed = not used.isdisjoint(rule.PRECOMPUTED)
        two_pass = not used.isdisjoint(compiled.TWO_PASS)
        self.prepass: Callable[[], None] | None = (
            self._prepass if unit_transform is not None or self._precomputed else None
        )
        self.second_scalars: Callable[[list[tuple[float, float]]], None] | None = (
            self._second_scalars if two_pass else None
        )
        row_wise = [kernel in compiled.ROWWISE for kernel in kernels]
        if partition is not None and any(row_wise):
            raise ValueError("rowwise: not supported by a sharded optimizer; its state is one value per row")
        self.needs_full_step: bool = self.prepass is not None or two_pass or any(row_wise)
        pairs = zip(state.states, kernels, strict=True)
        precomputed = itertools.chain(*(own.values() for own, name in pairs if name in rule.PRECOMPUTED))
        buffers = state.buffers
        self._sizes = [array.size for array in arrays] if partition is None else partition.sizes
        self.table = Table(
            compiled, treedef, paths,
            [
                Entry(
                    array, [] if kernels[k] in rule.PRECOMPUTED else own.kernel_arrays(),
                    slow=buffers["lookahead"][k] if "lookahead" in buffers else None,
                    average=buffers["ema"][k] if "ema" in buffers else None,
                    sparse=self._sparse_mode(k),
                    row_sums=next(iter(own.values())) if row_wise[k] else None,
                    to_nearest=storage.to_nearest, seed=storage.seed, low=own.low_bits(),
                    origin=0 if partition is None else partition.origins[k],
                    position=k if positions is None else positions[k],
                )
                for k, (array, own) in enumerate(zip(arrays, state.states, strict=True))
            ],
            counter, state.counts, state.flags, rule.step_scalars, [*written, *precomputed], pending,
        )
        self.table.watch, self.table.partition = watch, partition

    def _sparse_mode(self, k: int) -> str:
        """Mode of sparse rows of an array; "" if it can only be stepped as a whole."""
        if self._sparse == "dense":
            return "dense"
        whole = self._single[k] or self._unit_transform is not None
        if self._has_blocks:
            stored = self._state.states[k].stored.values()
            whole = whole or any(isinstance(a, Encoded) and a.scales.size for a in stored)
        if self._sparse == "lazy":
            whole = whole or "lookahead" in self._options
        return "" if whole else self._sparse

    def _partition(self) -> None:
        """Divide the arrays into scalar groups."""
        states, groups, rule = self._state.states, self.groups, self.rule
        counts, flags = self._state.counts.tolist(), self._state.flags.tolist()
        has_scalars = bool(rule.SCALAR_STATE) and not rule.SHARED_SCALARS
        index: dict[tuple[object, ...], int] = {}
        scalar_groups: list[ScalarGroup] = []
        scalar_group_of: list[int] = []
        for k, i in enumerate(self.group_of):
            kernel, is_single = self._kernels[k], self._single[k]
            scalars = tuple(states[k].scalars.values()) if has_scalars else ()
            own = index.setdefault(
                (i, kernel, k if is_single else None, counts[k], flags[k], scalars), len(index)
            )
            if own == len(scalar_groups):
                scalar_groups.append(ScalarGroup(groups[i], kernel, k, is_single))
                if has_scalars:
                    states[k].scalars_cell = Scalars(states[k].scalars)
            elif has_scalars:
                states[k].scalars_cell = states[scalar_groups[own].first].scalars_cell
            scalar_group_of.append(own)
        names = ["apply_update" if g.kernel in rule.PRECOMPUTED else g.kernel for g in scalar_groups]
        self.table.set_scalar_groups(scalar_group_of, names, [g.hp for g in scalar_groups])
        self.scalar_groups, self.scalar_group_of = scalar_groups, scalar_group_of

    def refresh(self) -> None:
        """Compute everything that has changed since the last step, apart from `Rule.step_scalars`."""
        rule, counter, groups = self.rule, self._counter, self.groups
        steps, everything = counter.steps, counter.stale_hyperparams
        if everything:
            options = self._options.values()
            self._scheduled_options = [option for option in options if option.is_scheduled]
        partitioned = everything or counter.stale_counts
        if partitioned:
            self._partition()
        is_scheduled = bool(self._scheduled_options or rule.SCALAR_STATE)
        for group in groups:
            group.update_current(steps, everything)
            if group.schedules:
                is_scheduled = True
        if len(groups) > 1:
            try:
                rule.check_groups([group.current for group in groups])
            except ValueError as error:
                raise ValueError(f"{error} at step {steps}") from None
        for i, scalar_group in enumerate(self.scalar_groups):
            if partitioned:
                self._set_scalar_group(i, scalar_group)
            elif scalar_group.group.changed:
                self._update_scalar_group(i, scalar_group)
        if partitioned or self._scheduled_options:
            self._set_options(self._options.values() if partitioned else self._scheduled_options)
        if rule.SCALAR_STATE:
            self._advance_scalars()
        for group in groups:
            group.changed.clear()
        counter.stale_hyperparams = counter.stale_counts = False
        counter.stale = is_scheduled

    def _set_scalar_group(self, i: int, scalar_group: ScalarGroup) -> None:
        """Compute everything of a new scalar group."""
        hp, first = scalar_group.hp, scalar_group.first
        hp.kernel, hp.is_new = scalar_group.kernel, self._state.states[first].is_new
        hp.size, hp.sums, hp.totals = self._sizes[first], None, None
        vars(hp).update(vars(scalar_group.group.current))
        recorded = hp.recorded()
        self._set_constants(i, recorded)
        scalar_group.constants_read = recorded.names
        recorded = hp.recorded()
        self._set_decay(i, recorded)
        scalar_group.decay_read = recorded.names

    def _update_scalar_group(self, i: int, scalar_group: ScalarGroup) -> None:
        """Compute what depends on hyperparameters that have changed."""
        hp, changes = scalar_group.hp, scalar_group.group.changed
        hp.__dict__.update(changes)
        read = scalar_group.constants_read
        if read is None or not read.isdisjoint(changes):
            self._set_constants(i, hp)
            scalar_group.constants_read = None
        read = scalar_group.decay_read
        if read is None or not read.isdisjoint(changes):
            self._set_decay(i, hp)
            scalar_group.decay_read = None

    def _set_options(self, options: Iterable[Option]) -> None:
        """Set the scalars of options for the coming step."""
        for option in options:
            for i, scalar_group in enumerate(self.scalar_groups):
                count = int(self._state.counts[scalar_group.first])
                self.table.set_option(i, option.name, option.scalar(self._counter.steps, count))

    def _set_constants(self, i: int, hp: Hyperparameters) -> None:
        """Set the constants of a scalar group in the table."""
        self.table.set_constants(i, self.rule.constants(hp))

    def _set_decay(self, i: int, hp: Hyperparameters) -> None:
        """Set the weight decay of a scalar group in the table."""
        self.table.set_decay(i, hp.maximize, *self.rule.weight_decay(hp))
        if self._sparse == "exact":
            self.table.set_idle_decay(i, *idle_steps(self.rule.idle_decay(hp)))

    def _advance_scalars(self, totals: tuple[float, ...] | None = None) -> None:
        """Advance the scalar state of every scalar group, or that of all if they share it."""
        rule, states, counts = self.rule, self._state.states, self._state.counts
        groups = self.scalar_groups
        if rule.SHARED_SCALARS:     # by the group that has taken the most steps and is not frozen
            groups = [max(groups, key=lambda g: (g.hp.lr > 0.0, int(counts[g.first])))]
        for scalar_group in groups:
            hp, cell = scalar_group.hp, states[scalar_group.first].scalars_cell
            t = int(counts[scalar_group.first]) + 1
            step = t if cell.counter is None else cell.counter.steps + 1
            hp.totals = totals
            before = cell.current(step - 1)
            idle = totals is not None and all(map(self.table.is_absent, range(len(self.arrays))))
            cell.advance(step, before if idle else rule.advance(hp, t, before))
            for other in self.scalar_groups if rule.SHARED_SCALARS else [scalar_group]:
                other.hp.scalar_state_before, other.hp.scalar_state = before, cell.after

    @np.errstate(all="ignore")  # as in the kernels: an overflow is an infinity
    def _prepass(self) -> None:
        """Do what a step needs between the check of the gradients and the update.

        Units are reduced for the options that scale their gradients. Gradients are replaced by updates that
        the rule computes from whole arrays.
        """
        rule, table = self.rule, self.table
        present = [k for k, array in enumerate(self.arrays) if array.size and not table.is_absent(k)]
        if self._unit_transform:
            for k in present:
                array = self.arrays[k]
                units = array.shape[-1] if array.ndim > 1 else 1
                sums = table.unit_sums(k, units)
                table.set_units(k, *self._unit_transform(sums, array.size // units, array.ndim < 2))
        if not self._precomputed:
            return
        for k in present:
            scalar_group, g = self.scalar_groups[self.scalar_group_of[k]], table.transformed_grad(k)
            if scalar_group.kernel in rule.PRECOMPUTED:
                state = self._state.states[k]
                p = np.asarray(values_of(self.arrays[k], state), order="C")
                g, after = rule.compute_update(scalar_group.hp, state.steps + 1, p, g, state)
                for name, value in after.items():
                    table.stage_state(state[name], value)
            table.replace_grad(k, g)

    def _second_scalars(self, sums: list[tuple[float, float]]) -> None:
        """Set what the scalars of the second pass depend on, from the sums of the first pass."""
        rule, two_pass = self.rule, dispatch.kernels.TWO_PASS
        # One after the other: `sum` is more exact from Python 3.12 on, so its bits differ.
        totals: Any = tuple(reduce(add, column) for column in zip(*sums, strict=True))
        for scalar_group in self.scalar_groups:
            if scalar_group.kernel in two_pass:
                scalar_group.hp.sums = sums[scalar_group.first]
        if rule.SCALAR_STATE:
            self._advance_scalars(totals)
