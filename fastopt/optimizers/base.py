"""The base class of all optimizers: the methods that users call.

The class has more than 300 lines because half of them are the documentation of its public methods.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, Unpack, cast

import numpy as np

from fastopt._core.pytree import assemble
from fastopt._core.rows import Rows
from fastopt._core.step_table import NEW_COPIES, Exchange, StepCounter
from fastopt._core.validation import check_bool, check_float, check_int
from fastopt.checkpoint import load_tree, save_tree
from fastopt.optimizers.groups import ParamGroups
from fastopt.optimizers.hyperparameters import Hyperparameters, check_number
from fastopt.optimizers.load_state import StateReader, load_all
from fastopt.optimizers.options.accumulation import Accumulator
from fastopt.optimizers.options.base import Option, check_options
from fastopt.optimizers.options.ema import EMA
from fastopt.optimizers.options.gradients import unit_transform
from fastopt.optimizers.options.lookahead import Lookahead
from fastopt.optimizers.options.sparse import check_mode, index_of
from fastopt.optimizers.parameter_docs import document
from fastopt.optimizers.plan import StepPlan
from fastopt.optimizers.rule import Rule
from fastopt.optimizers.state import Scalars, State, StateArrays, allocate
from fastopt.optimizers.state_dict import call_all, check_steps, export_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from _typeshed import StrPath
    from numpy.typing import ArrayLike

    from fastopt._core.typing import (
        AnyArray,
        Array,
        FloatOrSchedule,
        Gradients,
        Number,
        Params,
        ScalarState,
        Sparse,
        StepOptions,
    )
    from fastopt.optimizers.groups import Group
    from fastopt.optimizers.load_state import IncompatibleKeys

T = TypeVar("T")
Init = TypeVar("Init", bound=Callable[..., None])


def constructor(signature_of: Init) -> Init:
    """Make the ``__init__`` of an optimizer from its signature.

    Arguments other than `params` and those of `Optimizer` become hyperparameters. Those that are not
    given have the defaults of the signature, or those of the framework convention in `Rule.CONVENTIONS`.
    """
    signature = inspect.signature(signature_of)
    names = [p.name for p in signature.parameters.values() if p.kind != p.VAR_KEYWORD][2:]

    @functools.wraps(signature_of)
    def __init__(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        given, rule = dict(bound.arguments), self.RULE
        convention = rule.check_hyperparameter("convention", given.get("convention", "torch"))
        bound.apply_defaults()
        values = {**bound.arguments, **rule.CONVENTIONS[convention], **given}
        unknown = bound.arguments["options"].keys() - _OPTIONS
        if unknown:
            known = ", ".join([*names, *_OPTIONS])
            raise TypeError(f"{type(self).__name__}: unknown argument {min(unknown)!r}, expected {known}")
        hyperparameters = {name: values[name] for name in names}
        Optimizer.__init__(self, given["params"], hyperparameters, **bound.arguments["options"])

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return cast(Init, __init__)


class Optimizer:
    """Base class of the optimizers.

    A subclass declares its update rule in `RULE` and its hyperparameters in the signature of its
    ``__init__``.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays in any memory layout without gaps, updated in place: an array, or lists,
        tuples and dicts of arrays in any nesting; an iterator over arrays, such as ``net.values()``; or a
        list of group dicts ``{"params": ..., "lr": ...}``.
    hyperparameters : dict
        Defaults of every group. A number may be a schedule, a callable of the number of finished steps.
    ema : float or schedule, optional
        Keep an exponential moving average (EMA) of the parameters with this decay rate; with
        `fastopt.schedules.SWA` their stochastic weight average.
    lookahead : pair of int and float, optional
        ``(k, alpha)``: every `k` steps, move slow parameters by the fraction `alpha` of the way to the
        parameters, and continue from there (Zhang et al., "Lookahead optimizer: k steps forward, 1 step
        back", NeurIPS 2019).
    accumulate : int
        Gradient accumulation: step only at every `accumulate`-th call of `step`, with the mean of the
        gradients.
    centralize : bool
        Subtract from each gradient its mean over all axes but the last (Yong et al., "Gradient
        centralization", ECCV 2020). Vectors are left unchanged.
    unit_clip : float, optional
        Adaptive gradient clipping: for each unit, which is one index of the last axis, the norm of the
        gradient is limited to this factor times the norm of the weights, or times 1e-3 if that is larger.
        A vector is one unit (Brock et al., "High-performance large-scale image recognition without
        normalization", ICML 2021).
    independent_weight_decay : float or schedule
        Multiply the parameters by one minus this value before each step, independently of the learning
        rate. It is a hyperparameter of the groups.
    skip_nonfinite : bool
        Skip a step whose gradients contain a NaN or an infinity, and count it in `skipped_steps`.
    sparse : {"lazy", "exact", "dense"}, optional
        Treatment of the rows that a gradient of type `fastopt.Rows` does not contain. "lazy": they are left
        unchanged. "exact": they take a step with a zero gradient, but only when they are needed, see
        `catch_up`. "dense": they take it at once. The default is "lazy" where the optimizer
        supports it, else "dense".

    Attributes
    ----------
    groups : tuple of Group
    state : tuple of State
        State arrays of every parameter, in the order of the nesting, with torch's names. The attribute
        `steps` of each is the number of steps that the parameter has taken.
    params
        The parameters as they were passed.
    steps : int
        Number of steps taken. Setting it moves the schedules, and the bias corrections of all parameters.
    grad_norm : float or None
        Norm of the gradients before clipping, from the last step with `max_norm`, taken or skipped.
    skipped_steps : int
        Number of steps that `skip_nonfinite` skipped.

    Notes
    -----
    An optimizer must be used by one thread at a time; different optimizers may step at once.
    """

    RULE: ClassVar[type[Rule]] = Rule

    # Replaced together, see `_arrange`.
    _params: ParamGroups
    _kernels: list[str]
    _state: StateArrays
    _plan: StepPlan
    _accumulator: Accumulator | None
    _needs_full_step: bool

    def __init_subclass__(cls) -> None:
        if cls.__doc__ and {"RULE", "__init__"} <= vars(cls).keys():
            cls.__doc__ = document(cls.__doc__, cls.__init__, cls.RULE)

    def __init__(
        self, params: Params, hyperparameters: Mapping[str, Any], *, ema: FloatOrSchedule | None = None,
        lookahead: tuple[int, Number] | None = None, accumulate: int = 1, centralize: bool = False,
        unit_clip: Number | None = None, independent_weight_decay: FloatOrSchedule = 0.0,
        skip_nonfinite: bool = False, sparse: Sparse | None = None,
    ) -> None:
        self.skip_nonfinite: bool = check_bool("skip_nonfinite", skip_nonfinite)
        self._unit_options = (
            check_bool("centralize", centralize),
            unit_clip if unit_clip is None else check_number("unit_clip", unit_clip),
        )
        options = [
            None if ema is None else EMA(ema), None if lookahead is None else Lookahead(lookahead),
        ]
        self._options: dict[str, Option] = {option.name: option for option in options if option is not None}
        check_options(self.RULE, self._options)
        self._micro_batches = check_int("accumulate", accumulate, 1)
        self.sparse: str = check_mode(sparse, self.RULE.SPARSE)
        self._counter = StepCounter()
        self._refreshing = False
        self._accumulator = None
        defaults = {**hyperparameters, "independent_weight_decay": independent_weight_decay}
        groups = ParamGroups(params, self.RULE, defaults, type(self).__name__, self._counter)
        self._arrange(groups, None)

    # --- Groups and state ------------------------------------------------------------------------

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
        """Update other arrays from now on, and keep state, step counts and hyperparameters.

        Use it after arrays were replaced by others, for example by loaded ones. The state of each array goes
        to the new array at the same place.

        Parameters
        ----------
        params : ndarray, nesting of ndarrays, or list of dict
            Arrays of the same nesting, shapes and dtypes as before. If the optimizer has groups, a list of
            dicts ``{"params": ...}``, of which other items are ignored; the nesting if they come from
            `fastopt.param_groups`.

        Raises
        ------
        TypeError, ValueError
            If they do not match; nothing has been changed then.
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
        buffer_names = [*self._options, *(["accumulated"] if self._micro_batches > 1 else [])]
        state = allocate(self.RULE, params.arrays, kernels, hps, buffer_names, self._counter, old)
        paths = [f"grads{path}" for path in params.paths]
        accumulator = None
        if self._micro_batches > 1:
            buffers = (a for name, a in state.buffers.items() if name != "accumulated")
            written = itertools.chain(params.arrays, *(own.values() for own in state.states), *buffers)
            accumulator = Accumulator(
                params.treedef, paths, state.buffers["accumulated"], self._micro_batches,
                "dense" if self.sparse == "dense" else "", list(written), self._accumulator,
            )
            accumulator.watch(params.watch)
        plan = StepPlan(
            self.RULE, params.groups, params.group_of, params.arrays, kernels, state, self._counter,
            params.treedef, paths, sparse=self.sparse, options=self._options, watch=params.watch,
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

    def _sync_hyperparams(self) -> None:
        """Validate changed hyperparameters; reallocate state if they select another kernel."""
        if self._params.kernels() != self._kernels:
            self.catch_up()
            self._arrange(self._params, self._state)

    # --- The step ------------------------------------------------------------------------------

    def step(
        self, grads: Gradients, *, max_norm: Number | None = None, clip_value: Number | None = None,
        grad_scale: Number | None = None, zero_grad: bool = False, weight: Number = 1.0,
    ) -> bool:
        """Update every parameter in place.

        Parameters
        ----------
        grads : nesting of ndarrays
            Gradients, of the shapes of the parameters, in the same nesting; a list with one entry per
            group if groups were passed. They are float16, float32 or float64, and only read, unless
            `zero_grad`. An array in another memory layout than its parameter is copied. For a gradient
            of some rows, pass `fastopt.Rows`. None, or a missing key of a dict, leaves a parameter, its
            state and its step count unchanged.
        max_norm : float, optional
            Scale the gradients down so that their norm over all parameters is at most this; the norm
            before scaling is stored in `grad_norm`. Formula of ``torch.nn.utils.clip_grad_norm_``. With
            ``inf`` the norm is only measured.
        clip_value : float, optional
            Clamp each gradient to ``[-clip_value, clip_value]``, after `max_norm`.
        grad_scale : float, optional
            Multiply the gradients by this first.
        zero_grad : bool
            Set the gradients to zero after use, also if the step is skipped.
        weight : float
            With `accumulate`, weight of this micro-batch in the mean, such as its number of samples.

        Returns
        -------
        bool
            Whether a step was taken: False if it was skipped by `skip_nonfinite`, or if `accumulate` needs
            further micro-batches.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not match its parameter; nothing has been changed then.
        """
        if self._counter.stale:
            self._refresh()
        if (max_norm is clip_value is grad_scale is None
                and not (zero_grad or self.skip_nonfinite or self._needs_full_step)):
            return self._plan.table.step(grads)
        check_bool("zero_grad", zero_grad)
        scale = 1.0 if grad_scale is None else check_number("grad_scale", grad_scale)
        limits = _check_limits(max_norm, clip_value)
        if self._accumulator is None:
            return self._full_step(grads, scale, limits, zero_grad)
        weight = check_float("weight", weight, 0.0, open_low=True)
        return self._accumulator.add(grads, weight, scale, zero_grad) and self._step_accumulated(limits)

    def flush(self, *, max_norm: Number | None = None, clip_value: Number | None = None) -> bool:
        """With `accumulate`, take a step with the micro-batches so far, if there are any.

        Parameters
        ----------
        max_norm, clip_value : float, optional
            As for `step`.

        Returns
        -------
        bool
            Whether a step was taken.
        """
        limits = _check_limits(max_norm, clip_value)
        if self._accumulator is None or not self._accumulator.count:
            return False
        if self._counter.stale:
            self._refresh()
        return self._step_accumulated(limits)

    def step_rows(
        self, param: AnyArray | int, rows: ArrayLike, grads: Array, **options: Unpack[StepOptions],
    ) -> bool:
        """Take a step in which only some rows of one parameter have a gradient.

        The same as `step` with `fastopt.Rows` for that parameter and None for the others. If several tables
        are trained together, call `step` with one `Rows` for each.

        Parameters
        ----------
        param : ndarray or int
            One of the parameters, or its index in `state`.
        rows : sequence of int, shape (k,)
            Indices of the rows, in any order; the gradients of a repeated index are added.
        grads : ndarray, shape (k, ...)
            One gradient per index, of a floating dtype and the inner shape of the parameter.
        **options
            As for `step`, except `zero_grad`.

        Raises
        ------
        TypeError, ValueError
            If they do not match the parameter; nothing has been changed then.
        """
        gradients: list[Rows | None] = [None] * len(self._params.arrays)
        gradients[index_of(param, self._params.arrays)] = Rows(rows, grads)
        return self.step(assemble(self._params.treedef, gradients), **options)

    def catch_up(self, param: AnyArray | int | None = None, rows: ArrayLike | None = None) -> None:
        """With ``sparse="exact"``, apply the steps that rows have skipped.

        Call it for the rows of a minibatch before they are read, and for all rows before the parameters
        are. `step` does it for the rows whose gradient it receives; `state_dict`, copying and pickling do it
        for all. It does nothing if no row can have skipped a step.

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

    def _refresh(self) -> None:
        """Update everything that does not change at each step."""
        if self._counter.exchanged:
            self._refuse_swapped("step")
        if self._refreshing:
            raise RuntimeError("step: not allowed inside a schedule")
        self._refreshing = True
        try:
            if self._counter.stale_hyperparams:
                self._sync_hyperparams()
            self._plan.refresh()
        finally:
            self._refreshing = False

    def _full_step(
        self, grads: Gradients, scale: float, limits: tuple[bool, float, float], zero_grad: bool
    ) -> bool:
        """Take a step with all its options; False if it was skipped."""
        plan, (measures_norm, max_norm, clip) = self._plan, limits
        return plan.table.full_step(
            grads, scale, clip, max_norm, zero_grad, measures_norm, self.skip_nonfinite, plan.prepass,
            plan.second_scalars,
        )

    def _step_accumulated(self, limits: tuple[bool, float, float]) -> bool:
        """Take a step with the mean of the accumulated gradients, and set their sums to zero."""
        assert self._accumulator is not None
        grads, scale = self._accumulator.mean()
        return self._full_step(grads, scale, limits, True)

    def _can_lease(self, params: object) -> bool:
        """Whether `_lease` can be used for a network with exactly these `params`."""
        return self.params is params and not (self.skip_nonfinite or self._needs_full_step)

    def _lease(self, grads: Gradients, call: Callable[..., T], *args: Any) -> T:
        """Take a plain step whose update is done by compiled code that also computes the gradients.

        `call` gets `args` and the address of a `StepLease` (`span.pxd`). It either updates every element once
        and counts the step with ``StepLease.finish``, or does neither. Returns the result of `call`.
        """
        if self._counter.stale:
            self._refresh()
        return cast(T, self._plan.table.leased_step(grads, call, args))

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
        """Take the parameters as they are now, after they were replaced outside of the optimizer.

        Copies that the optimizer keeps of the parameters, such as the slow parameters of Lookahead, the
        moving average, or the iterates of the schedule-free optimizers, are set to the present values.
        Gradient moments and step counts are left unchanged. Call it after loading other weights into the
        parameters.
        """
        self._refuse_swapped("sync_params")
        self.catch_up()
        for k, (array, state) in enumerate(zip(self._params.arrays, self.state, strict=True)):
            if not state.is_new:
                hp = Hyperparameters(self.groups[self._params.group_of[k]].evaluated(self.steps))
                self.RULE.reset_copies(hp, array, state)
        self._state.flags[...] |= NEW_COPIES
        self._counter.stale = self._counter.stale_counts = True

    # --- Moving average of the parameters --------------------------------------------------------

    @property
    def ema(self) -> Any:
        """Moving averages of the parameters in their nesting of lists and dicts; None without ``ema=``."""
        averages = self._state.buffers.get("ema")
        if averages is None:
            return None
        self._update_averages()
        return assemble(self._params.treedef, averages)

    def _update_averages(self) -> None:
        """Apply what the moving averages have not seen yet: skipped rows, and parameters before a step."""
        self.catch_up()
        buffers, flags = self._state.buffers["ema"], self._state.flags
        for array, average, flag in zip(self._params.arrays, buffers, flags, strict=True):
            if flag & NEW_COPIES and not self._counter.exchanged:
                average[...] = array

    def swapped_ema(self) -> AbstractContextManager[None]:
        """``with opt.swapped_ema():`` the parameters hold their averages, and no step can be taken."""
        if "ema" not in self._state.buffers:
            raise ValueError("swapped_ema: the optimizer keeps no average; pass ema=0.999 to it")
        self._refuse_swapped("swapped_ema")
        self._update_averages()
        return Exchange(self._counter, "swapped_ema", self._params.arrays, self._state.buffers["ema"])

    def _refuse_swapped(self, name: str) -> None:
        if self._counter.exchanged:
            raise RuntimeError(
                f"{name}: not allowed inside swapped_ema or averaged, where the parameters are averages"
            )

    # --- Saving and loading ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to resume, as plain numbers, strings and copies of arrays.

        Schedules are not saved: the optimizer that loads keeps its own, and takes over the state
        of those that have one. Skipped steps of sparse rows are applied first.

        Returns
        -------
        dict
            ``version`` of the format, ``optimizer``, ``steps``, ``skipped_steps``; ``groups``, for each the
            hyperparameters, the keys of its parameters and the states of its schedules; ``state``, for each
            key of a parameter its number of steps, its scalars and its arrays by name; and the buffers of
            options: ``ema``, ``lookahead``, ``accumulated``. The key of a parameter is its path in the
            nesting, such as ``"encoder.0.W"``.
        """
        self._refuse_swapped("state_dict")
        self.catch_up()
        self._sync_hyperparams()
        return export_state(
            type(self).__name__, self._counter, self._params, self._state, self._accumulator
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Resume from the state of another optimizer.

        The states of parameters are found by their keys, in whatever order or group they are.

        Parameters
        ----------
        state_dict : dict
            As returned by `state_dict`.
        strict : bool, default True
            Whether everything must fit. False loads what fits and leaves the rest unchanged, but moving
            averages and slow parameters that are missing begin at the parameters.

        Returns
        -------
        IncompatibleKeys
            What did not fit: the lists ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys``, which
            are empty with `strict`.

        Raises
        ------
        ValueError, TypeError
            If it belongs to another optimizer, has an impossible value or, with `strict`, does not fit;
            nothing has been changed then.
        """
        self._refuse_swapped("load_state_dict")
        check_bool("strict", strict)
        loaded = StateReader(type(self).__name__, self._params, self._state.buffers).read(state_dict)
        if strict:
            loaded.check_complete(type(self).__name__)
        if None in loaded.states:
            self.catch_up()     # else the skipped steps are those of a state that is replaced
        new: dict[str, Any] = {}
        if loaded.kernels != self._kernels:
            new = self._arrangement(self._params, loaded.kernels, loaded.hyperparameters, self._state)
        state, accumulator = new.get("_state", self._state), new.get("_accumulator", self._accumulator)
        calls = loaded.calls(self._params, self._counter, state, accumulator)
        load_all([self._plan.table.drop_deferred, *calls, *self._swapping(new)], loaded.schedules)
        return loaded.incompatible

    def save(self, path: StrPath) -> None:
        """Write `state_dict` to a file.

        The file has a checksum for each array. It replaces an existing file atomically: after a crash there
        is either the old file or the complete new one. The parameters are not saved.

        Parameters
        ----------
        path : str or path-like
            Path of the file, used as it is. If it ends in ``.safetensors``, the file has that format
            (``pip install 'fastopt[safetensors]'``), else it is an archive of NumPy arrays (``.npz``).
        """
        save_tree(path, self.state_dict())

    def load(self, path: StrPath, strict: bool = True) -> IncompatibleKeys:
        """Resume from a file that `save` wrote.

        Parameters
        ----------
        path : str or path-like
        strict : bool, default True
            As for `load_state_dict`.

        Returns
        -------
        IncompatibleKeys
            As for `load_state_dict`.

        Raises
        ------
        ValueError, TypeError
            If the file is damaged, or as for `load_state_dict`; nothing has been changed then.
        """
        return self.load_state_dict(load_tree(path), strict)

    def __copy__(self) -> NoReturn:
        raise TypeError(
            f"copy: expected copy.deepcopy, as a shallow copy of this {type(self).__name__} would share its "
            "state"
        )

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the parameters are included, addresses are not."""
        self._refuse_swapped("copying")
        self.catch_up()
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arrange(self._params, self._state)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for group in self.groups:
            values = ", ".join(f"{n}={v!r}" for n, v in group.hyperparameters().items())
            lines.append(f"    {self.RULE.kernel(group.raw())}: {values}")
        count = sum(array.size for array in self._params.arrays)
        lines.append(f"    {len(self._params.arrays)} arrays, {count:,} elements, {self.steps} steps\n)")
        return "\n".join(lines)


def _check_limits(max_norm: Number | None, clip_value: Number | None) -> tuple[bool, float, float]:
    """Return whether the norm is measured, and the bounds of the norm and of the elements."""
    clip = math.inf if clip_value is None else check_number("clip_value", clip_value)
    if max_norm is None or (isinstance(max_norm, float) and max_norm == math.inf):
        return max_norm is not None, math.inf, clip
    return True, check_number("max_norm", max_norm), clip


_OPTIONS = tuple(
    p.name for p in inspect.signature(Optimizer).parameters.values() if p.kind == p.KEYWORD_ONLY
)
