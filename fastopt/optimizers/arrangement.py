"""The parameters of an optimizer with their groups, state and step plan."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastopt._core.step_table import NEW_COPIES, StepCounter
from fastopt.optimizers.groups import ParamGroups
from fastopt.optimizers.hyperparameters import Hyperparameters
from fastopt.optimizers.options.accumulation import Accumulator
from fastopt.optimizers.options.base import Option
from fastopt.optimizers.options.gradients import unit_transform
from fastopt.optimizers.options.sparse import check_dtypes, index_of
from fastopt.optimizers.options.storage import Storage, check_master_weights, check_state_dtype
from fastopt.optimizers.plan import StepPlan
from fastopt.optimizers.rule import Rule
from fastopt.optimizers.state import Scalars, State, StateArrays, allocate, memory_of, reset_copies
from fastopt.optimizers.state_dict import call_all, check_steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

    from fastopt._core.typing import AnyArray, FloatOrSchedule, Params, ScalarState
    from fastopt.optimizers.groups import Group


class Arrangement:
    """Base class of `Optimizer`: the part that depends on the parameters, their groups and kernels."""

    RULE: ClassVar[type[Rule]] = Rule

    sparse: str
    _counter: StepCounter
    _options: dict[str, Option]
    _unit_options: tuple[bool, float | None]
    _storage: Storage
    _micro_batches: int
    _refreshing: bool

    # Replaced together, see `_arrange`.
    _params: ParamGroups
    _kernels: list[str]
    _state: StateArrays
    _plan: StepPlan
    _accumulator: Accumulator | None
    _needs_full_step: bool

    @property
    def params(self) -> Any:
        return self._params.params

    @property
    def groups(self) -> tuple[Group, ...]:
        return self._params.groups

    @property
    def lr(self) -> Any:
        """Learning rate of all groups: a number or a schedule. Set it to change all of them."""
        first, *others = (group["lr"] for group in self.groups)
        if any(lr != first for lr in others):
            raise ValueError("lr: the groups have different values; use groups[i]['lr']")
        return first

    @lr.setter
    def lr(self, value: FloatOrSchedule) -> None:
        for group in self.groups:
            group["lr"] = value

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters; `step` then takes a list of gradients with one entry per group.

        `group` is a dict ``{"params": ..., "lr": ...}``; hyperparameters that it does not contain have the
        optimizer's defaults. Its step counts begin at 0; schedules follow the steps of the optimizer.
        """
        self._refuse_swapped("add_param_group")
        if self._refreshing:
            raise RuntimeError("add_param_group: not allowed inside a schedule")
        self.catch_up()
        self._arrange(self._params.added(group), self._state)

    def rebind(self, params: Params) -> None:
        """Update other arrays from now on, keeping state, step counts and hyperparameters.

        Use it after arrays were replaced by others, for example by loaded ones. Each new array takes over the
        state of the previous array at the same position in the nesting.

        Parameters
        ----------
        params : ndarray, nesting of ndarrays, or list of dict
            Arrays of the same nesting, shapes and dtypes as before. If the optimizer has groups, a list of
            dicts ``{"params": ...}``, whose other items are ignored; the nesting if the groups come from
            `fastopt.param_groups`.

        Raises
        ------
        TypeError, ValueError
            If the arrays do not match. In this case nothing is changed.
        """
        self._refuse_swapped("rebind")
        if self._refreshing:
            raise RuntimeError("rebind: not allowed inside a schedule")
        groups = self._params.rebound(params)
        self.catch_up()
        self._arrange(groups, self._state)
        groups.update_groups()

    def places(self) -> list[tuple[Group, list[int]]]:
        """Return pairs of a group and the indices of its parameters in `state`."""
        return list(zip(self.groups, self._params.indices(), strict=True))

    def _arrange(self, params: ParamGroups, old: StateArrays | None) -> None:
        """Allocate state and option buffers, copy what fits of the old ones, and make the step plan.

        If anything fails, nothing has changed.
        """
        new = self._arrangement(params, params.kernels(), params.hyperparameters(), old)
        call_all(self._swapping(new))

    def _swapping(self, new: dict[str, Any]) -> list[Callable[[], object]]:
        """Return the calls for `call_all` that make a new arrangement, if any, that of the optimizer."""
        calls: list[Callable[[], object]] = [self._counter.mark, partial(dict.update, self.__dict__, new)]
        if new:
            params: ParamGroups = new["_params"]
            for group, indices in zip(params.groups, params.indices(), strict=True):
                states = [new["_state"].states[k] for k in indices]
                calls.append(partial(dict.update, vars(group), {"states": states}))
        return calls

    def _arrangement(
        self, params: ParamGroups, kernels: list[str], hps: list[Hyperparameters], old: StateArrays | None
    ) -> dict[str, Any]:
        """Return the attributes that depend on the parameters and their kernels."""
        check_dtypes(self.sparse, params.arrays, params.paths)
        check_master_weights(self._storage, params.arrays, params.paths)
        check_state_dtype(self.RULE, self._storage, self.sparse, params.arrays, params.paths)
        buffer_names = [*self._options, *(["accumulated"] if self._micro_batches > 1 else [])]
        state = allocate(self.RULE, params.arrays, kernels, hps, buffer_names, self._counter,
                         self._storage, old)
        paths = [f"grads{path}" for path in params.paths]
        accumulator = None
        if self._micro_batches > 1:
            buffers = (a for name, a in state.buffers.items() if name != "accumulated")
            written = itertools.chain(params.arrays, memory_of(
                itertools.chain(*(own.stored.values() for own in state.states))), *buffers)
            accumulator = Accumulator(
                params.treedef, paths, state.buffers["accumulated"], self._micro_batches,
                "dense" if self.sparse == "dense" else "", list(written), self._accumulator,
            )
            accumulator.watch(params.watch)
        plan = StepPlan(
            self.RULE, params.groups, params.group_of, params.arrays, kernels, state, self._counter,
            params.treedef, paths, sparse=self.sparse, options=self._options, watch=params.watch,
            storage=self._storage, partition=params.partition,
            unit_transform=unit_transform(*self._unit_options),
            pending=None if accumulator is None else accumulator.counter,
        )
        return {
            "_params": params, "_kernels": kernels, "_state": state, "_plan": plan,
            "_accumulator": accumulator,
            "_needs_full_step": plan.needs_full_step or accumulator is not None,
        }

    @property
    def state(self) -> tuple[State, ...]:
        return self._state.states

    @property
    def state_nbytes(self) -> int:
        return sum(state.nbytes for state in self.state)

    def _sync_hyperparams(self) -> None:
        """Validate changed hyperparameters; reallocate state if they select another kernel."""
        if self._params.kernels() != self._kernels:
            self.catch_up()
            self._arrange(self._params, self._state)

    @property
    def steps(self) -> int:
        return self._counter.steps

    @steps.setter
    def steps(self, value: int) -> None:
        value = check_steps("steps", value)
        counts = self._state.counts
        moved = np.maximum(counts + (value - self._counter.steps), 0)
        scalars = [dict(state.scalars) for state in self.state]
        for state, own in zip(self.state, scalars, strict=True):
            state.scalars_cell = Scalars(own)
        if self.RULE.SHARED_SCALARS:
            self._share_scalars(scalars[0])
        self._counter.mark()
        counts[...], self._counter.steps = moved, value

    def _share_scalars(self, values: ScalarState) -> None:
        """Let all parameters have one scalar state."""
        cell = Scalars(dict(values), self._counter)
        for state in self.state:
            state.scalars_cell = cell

    @property
    def grad_norm(self) -> float | None:
        return self._counter.grad_norm

    @property
    def skipped_steps(self) -> int:
        return self._counter.skipped_steps

    def sync_params(self) -> None:
        """Use the current values of the parameters after they were replaced outside of the optimizer.

        The copies of the parameters that the optimizer keeps, such as the slow parameters of Lookahead, the
        moving average, or the iterates of the schedule-free optimizers, are set to the current values.
        Gradient moments and step counts are left unchanged. Call it after loading other weights into the
        parameters.
        """
        self._refuse_swapped("sync_params")
        self.catch_up()
        for k, (array, state) in enumerate(zip(self._params.arrays, self.state, strict=True)):
            hp = Hyperparameters(self.groups[self._params.group_of[k]].evaluated(self.steps))
            reset_copies(self.RULE, hp, array, state)
        self._state.flags[...] |= NEW_COPIES
        self._counter.stale = self._counter.stale_counts = True

    def catch_up(self, param: AnyArray | int | None = None, rows: ArrayLike | None = None) -> None:
        """With ``sparse="exact"``, apply the steps that rows have skipped.

        Call it for the rows of a minibatch before you read them, and without arguments before you read all
        parameters. `step` does it for the rows whose gradient it receives; `state_dict`, copying and pickling
        do it for all rows. It does nothing if no row can have skipped a step.

        Parameters
        ----------
        param : ndarray or int, optional
            One of the parameters, or its index in `state`; all by default.
        rows : sequence of int, optional
            Rows of `param`, in any order, repeated or not; all by default.

        Raises
        ------
        TypeError, ValueError
            If there is no such parameter or row.
        """
        if param is None and rows is not None:
            raise ValueError("rows: expected a param that they belong to")
        self._plan.table.catch_up(-1 if param is None else index_of(param, self._params.arrays), rows)

    def _refuse_swapped(self, name: str) -> None:
        if self._counter.exchanged:
            raise RuntimeError(
                f"{name}: not allowed inside swapped_ema or averaged, where the parameters are averages"
            )
