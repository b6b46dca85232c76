"""The base class of all optimizers: the methods that users call.

The class has more than 300 lines because half of them are the documentation of its public methods.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, Unpack, cast

from fastopt._core.pytree import assemble
from fastopt._core.rows import NO_ROWS, Rows
from fastopt._core.validation import check_bool, check_int
from fastopt.optimizers.groups import ParamGroups
from fastopt.optimizers.hyperparameters import check_number
from fastopt.optimizers.options.accumulation import Accumulator
from fastopt.optimizers.options.ema import EMA, swap
from fastopt.optimizers.options.gradients import unit_transform
from fastopt.optimizers.options.lookahead import Lookahead
from fastopt.optimizers.options.sparse import check_mode, index_of
from fastopt.optimizers.parameter_docs import document
from fastopt.optimizers.plan import StepPlan
from fastopt.optimizers.rule import Rule
from fastopt.optimizers.state import State, allocate
from fastopt.optimizers.state_dict import check_state_dict, check_steps, export_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike

    from fastopt._core.typing import (
        AnyArray,
        Array,
        FloatOrSchedule,
        Gradients,
        Number,
        Params,
        Sparse,
        StepOptions,
    )
    from fastopt.optimizers.groups import Group

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
        float32 or float64 arrays, updated in place: an array, or lists, tuples and dicts of arrays in
        any nesting; or a list of group dicts ``{"params": ..., "lr": ...}``.
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
        State arrays of every parameter, in the order of the nesting, with torch's names.
    params
        The parameters as they were passed.
    steps : int
        Number of steps taken.
    grad_norm : float or None
        Norm of the gradients before clipping, from the last step with `max_norm`.
    skipped_steps : int

    Notes
    -----
    An optimizer must be used by one thread at a time; different optimizers may step at once.
    """

    RULE: ClassVar[type[Rule]] = Rule

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
        self._ema = None if ema is None else EMA(ema)
        self._lookahead = None if lookahead is None else Lookahead(lookahead)
        self._micro_batches = check_int("accumulate", accumulate, 1)
        self.sparse: str = check_mode(sparse, self.RULE.SPARSE)
        self.grad_norm: float | None = None
        self.skipped_steps: int = 0
        self._steps = 0
        self._swapped = False
        self._accumulator: Accumulator | None = None
        defaults = {**hyperparameters, "independent_weight_decay": independent_weight_decay}
        self._params = ParamGroups(params, self.RULE, defaults, type(self).__name__)
        self._dirty = self._params.dirty
        self._allocate_state((), {})

    # --- Groups and state ------------------------------------------------------------------------

    @property
    def params(self) -> Any:
        return self._params.params

    @property
    def groups(self) -> tuple[Group, ...]:
        return self._params.groups

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters; `step` then takes a list of gradients with one entry per group.

        `group` is a dict ``{"params": ..., "lr": ...}``; hyperparameters that it does not contain have the
        optimizer's defaults.
        """
        self._refuse_swapped("add_param_group")
        self.catch_up()
        self._params.add(group, self._steps)
        self._allocate_state(self.state, self._option_buffers)

    def places(self) -> list[tuple[Group, list[int]]]:
        """Return pairs of a group and the indices of its parameters in `state`."""
        return list(zip(self.groups, self._params.indices(), strict=True))

    def _allocate_state(
        self, old_states: Sequence[Mapping[str, Array]], old_buffers: Mapping[str, Sequence[Array]]
    ) -> None:
        """Allocate state and option buffers, copy what fits of the old ones, and make the step plan."""
        used = {
            "ema": self._ema is not None,
            "lookahead": self._lookahead is not None,
            "accumulated": self._micro_batches > 1,
        }
        params = self._params
        self._kernels = params.kernels()
        self.state: tuple[State, ...]
        self.state, self._option_buffers = allocate(
            self.RULE, params.arrays, self._kernels, params.hyperparameters(),
            [name for name, is_used in used.items() if is_used], old_states, old_buffers,
        )
        paths = [f"grads{path}" for path in params.paths]
        self._plan = StepPlan(
            self.RULE, params.groups, params.group_of, params.arrays, self._kernels, self.state,
            params.treedef, paths, buffers=self._option_buffers, sparse=self.sparse, ema=self._ema,
            lookahead=self._lookahead, unit_transform=unit_transform(*self._unit_options),
        )
        if "accumulated" in self._option_buffers:
            self._accumulator = Accumulator(
                params.treedef, paths, self._option_buffers["accumulated"], self._micro_batches,
                "dense" if self.sparse == "dense" else "", self._written_arrays(), self._accumulator,
            )
        self._needs_full_step = self._plan.needs_full_step or self._accumulator is not None
        self._dirty.mark()

    def _written_arrays(self) -> list[Array]:
        """All arrays that a step writes, except the accumulated gradients."""
        buffers = (a for name, a in self._option_buffers.items() if name != "accumulated")
        states = (state.values() for state in self.state)
        return list(itertools.chain(self._params.arrays, *states, *buffers))

    def _sync_hyperparams(self) -> None:
        """Validate changed hyperparameters; reallocate state if they select another kernel."""
        if self._params.kernels() != self._kernels:
            self.catch_up()
            self._allocate_state(self.state, self._option_buffers)

    # --- The step ------------------------------------------------------------------------------

    def step(
        self, grads: Gradients, *, max_norm: Number | None = None, clip_value: Number | None = None,
        grad_scale: Number | None = None, zero_grad: bool = False,
    ) -> None:
        """Update every parameter in place.

        Parameters
        ----------
        grads : nesting of ndarrays
            Gradients, of the shapes and dtypes of the parameters, in the same nesting; a list with
            one entry per group if groups were passed. They are only read, unless `zero_grad`. An array in
            another memory layout is copied. For a gradient of some rows, pass `fastopt.Rows`.
        max_norm : float, optional
            Scale the gradients down so that their norm over all parameters is at most this; the norm
            before scaling is stored in `grad_norm`. Formula of ``torch.nn.utils.clip_grad_norm_``.
        clip_value : float, optional
            Clamp each gradient to ``[-clip_value, clip_value]``, after `max_norm`.
        grad_scale : float, optional
            Multiply the gradients by this first.
        zero_grad : bool
            Set the gradients to zero after use.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not match its parameter; nothing has been changed then.
        """
        if self._dirty.scalars:
            self._refresh()
        plan = self._plan
        t = plan.update_scalars(self._steps + 1)
        plain = max_norm is clip_value is grad_scale is None
        if plain and not (zero_grad or self.skip_nonfinite or self._needs_full_step):
            plan.table.step(grads)
            self._steps = t
        elif self._full_step(grads, max_norm, clip_value, grad_scale, zero_grad):
            self._steps = t

    def step_rows(
        self, param: AnyArray | int, rows: ArrayLike, grads: Array, **options: Unpack[StepOptions],
    ) -> None:
        """Take a step in which only some rows of one parameter have a gradient.

        The same as `step` with `fastopt.Rows` for that parameter and no rows for the others: it
        counts as a step. If several tables are trained together, call `step` with one `Rows` for each.

        Parameters
        ----------
        param : ndarray or int
            One of the parameters, or its index in `state`.
        rows : sequence of int, shape (k,)
            Indices of the rows, in any order; the gradients of a repeated index are added.
        grads : ndarray, shape (k, ...)
            One gradient per index, of the dtype and the inner shape of the parameter.
        **options
            As for `step`, except `zero_grad`.

        Raises
        ------
        TypeError, ValueError
            If they do not match the parameter; nothing has been changed then.
        """
        gradients = [NO_ROWS] * len(self._params.arrays)
        gradients[index_of(param, self._params.arrays)] = Rows(rows, grads)
        self.step(assemble(self._params.treedef, gradients), **options)

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
        self._refuse_swapped("step")
        changed = self._dirty.hyperparams
        if changed:
            self._sync_hyperparams()
        self._dirty.scalars = self._plan.refresh(self._steps, everything=changed)
        self._dirty.hyperparams = False

    def _full_step(
        self, grads: Gradients, max_norm: Number | None, clip_value: Number | None, grad_scale: Number | None,
        zero_grad: bool,
    ) -> bool:
        """Take a step with all its options; False if it was skipped or only accumulated a micro-batch."""
        check_bool("zero_grad", zero_grad)
        scale = 1.0 if grad_scale is None else check_number("grad_scale", grad_scale)
        clip = math.inf if clip_value is None else check_number("clip_value", clip_value)
        limit = math.inf if max_norm is None else check_number("max_norm", max_norm)
        if self._accumulator is not None:
            if not self._accumulator.add(grads, scale, zero_grad):
                return False
            grads = assemble(self._params.treedef, self._option_buffers["accumulated"])
            scale, zero_grad = 1.0, True
        plan, t = self._plan, self._steps + 1
        norm = plan.table.full_step(
            grads, scale, clip, limit, zero_grad, max_norm is not None, self.skip_nonfinite,
            (lambda: plan.prepass(t)) if plan.has_prepass else None,
        )
        if norm is None:
            self.skipped_steps += 1
            if self._accumulator is not None:
                self._accumulator.clear()
            return False
        for group in self.groups:
            group.scalar_state = group.next_scalar_state
        if max_norm is not None:
            self.grad_norm = norm
        return True

    def _can_lease(self, params: object) -> bool:
        """Whether `_lease` can be used for a network with exactly these `params`."""
        return self.params is params and not (self.skip_nonfinite or self._needs_full_step)

    def _lease(self, grads: Gradients, call: Callable[..., T | None], *args: Any) -> T | None:
        """Take a plain step whose update is done by compiled code that also computes the gradients.

        `call` gets `args` and the address of a `StepLease` (`span.pxd`), and updates every element once. If
        it returns None or raises, nothing was updated and no step is counted. Returns the result of `call`.
        """
        if self._dirty.scalars:
            self._refresh()
        t, table = self._plan.update_scalars(self._steps + 1), self._plan.table
        lease = table.begin_step(grads)
        try:
            result = call(*args, lease)
        finally:
            table.end_step()
        if result is not None:
            self._steps = t
        return result

    @property
    def steps(self) -> int:
        return self._steps

    @steps.setter
    def steps(self, value: int) -> None:
        self._steps = check_steps("steps", value)
        for group in self.groups:
            group.start = min(group.start, self._steps)
        self._dirty.mark()

    # --- Moving average of the parameters --------------------------------------------------------

    @property
    def ema(self) -> Any:
        """Moving averages of the parameters in their nesting of lists and dicts; None without ``ema=``."""
        averages = self._option_buffers.get("ema")
        return None if averages is None else assemble(self._params.treedef, averages)

    @contextlib.contextmanager
    def swapped_ema(self) -> Iterator[None]:
        """``with opt.swapped_ema():`` the parameters hold their averages, and no step can be taken."""
        if "ema" not in self._option_buffers:
            raise ValueError("swapped_ema: the optimizer keeps no average; pass ema=0.999 to it")
        self._refuse_swapped("swapped_ema")
        self.catch_up()
        self._mark_swapped(True)
        swap(self._params.arrays, self._option_buffers["ema"])
        try:
            yield
        finally:
            swap(self._params.arrays, self._option_buffers["ema"])
            self._mark_swapped(False)

    def _refuse_swapped(self, name: str) -> None:
        if self._swapped:
            raise RuntimeError(
                f"{name}: not allowed inside swapped_ema or averaged, where the parameters are averages"
            )

    def _mark_swapped(self, swapped: bool) -> None:
        self._swapped = swapped
        self._dirty.mark()

    # --- Saving and loading ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to resume, as plain numbers and copies of arrays.

        Schedules are not saved: the optimizer that loads keeps its own, and takes over the state
        of those that have one. Skipped steps of sparse rows are applied first.

        Returns
        -------
        dict
            ``optimizer``, ``steps``, ``skipped_steps``, ``groups`` (hyperparameters, indices of their
            parameters, the step at which they were added, states of schedules, and ``numbers``, the scalar
            state of the update rule, if it has one), ``state`` (arrays by name, for each
            parameter), and the buffers of options: ``ema``, ``lookahead``, ``accumulated`` with the
            number of accumulated ``micro_batches``.
        """
        self._refuse_swapped("state_dict")
        self.catch_up()
        self._sync_hyperparams()
        return export_state(
            type(self).__name__, self._steps, self.skipped_steps, self.places(), self.state,
            self._option_buffers, self._accumulator,
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume from the state of another optimizer.

        Parameters
        ----------
        state_dict : dict
            As returned by `state_dict`. Arrays of a group that has taken no step may be missing.

        Raises
        ------
        ValueError, TypeError
            If it belongs to another optimizer or to parameters of other shapes or dtypes; nothing
            has been changed then.
        """
        self._refuse_swapped("load_state_dict")
        values, schedules = check_state_dict(
            state_dict, type(self).__name__, self.RULE, self.places(), self._params.arrays,
            self._option_buffers, self._micro_batches,
        )
        self._plan.table.drop_deferred()
        for group, saved, own in zip(self.groups, state_dict["groups"], values, strict=True):
            group.data.update(own)
            group.start = saved["start"]
            group.scalar_state = {name: float(saved["numbers"][name]) for name in self.RULE.SCALAR_STATE}
        for schedule, state in schedules:
            schedule.load_state_dict(state)
        self._steps = int(state_dict["steps"])
        self.skipped_steps = int(state_dict["skipped_steps"])
        self._dirty.mark()
        self._sync_hyperparams()
        for i, own_state, saved in zip(self._params.group_of, self.state, state_dict["state"], strict=True):
            hp = self.groups[i].raw()
            for name, array in own_state.items():
                array[...] = saved[name] if saved else self.RULE.init_value(name, hp)
        for name, buffers in self._option_buffers.items():
            for buffer, value in zip(buffers, state_dict[name], strict=True):
                buffer[...] = value
        if self._accumulator is not None:
            self._accumulator.count = state_dict["micro_batches"]

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the parameters are included, addresses are not."""
        self._refuse_swapped("copying")
        self.catch_up()
        state = {name: value for name, value in self.__dict__.items() if name != "_plan"}
        return state | {"state": [dict(arrays) for arrays in self.state]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate_state(self.state, self._option_buffers)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for group in self.groups:
            values = ", ".join(f"{n}={v!r}" for n, v in group.hyperparameters().items())
            lines.append(f"    {self.RULE.kernel(group.raw())}: {values}")
        count = sum(array.size for array in self._params.arrays)
        lines.append(f"    {len(self._params.arrays)} arrays, {count:,} elements, {self._steps} steps\n)")
        return "\n".join(lines)


_OPTIONS = tuple(
    p.name for p in inspect.signature(Optimizer).parameters.values() if p.kind == p.KEYWORD_ONLY
)
