"""The base class of all optimizers: construction, the step, and averages of the parameters."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

from fastopt._core.formats import decode
from fastopt._core.pytree import assemble
from fastopt._core.rows import Rows
from fastopt._core.step_table import NEW_COPIES, Exchange, StepCounter
from fastopt._core.validation import check_bool, check_float, check_int
from fastopt.optimizers.groups import ParamGroups
from fastopt.optimizers.hyperparameters import check_number
from fastopt.optimizers.options.sparse import index_of
from fastopt.optimizers.options.training import check_training_options
from fastopt.optimizers.parameter_docs import document
from fastopt.optimizers.saving import Saving

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from numpy.typing import ArrayLike

    from fastopt._core.typing import (
        AnyArray,
        Array,
        FloatOrSchedule,
        Gradients,
        MasterWeights,
        Number,
        Params,
        Rounding,
        Sparse,
        StateDtype,
        StepOptions,
    )

T = TypeVar("T")
Init = TypeVar("Init", bound=Callable[..., None])


def constructor(signature_of: Init) -> Init:
    """Make the ``__init__`` of an optimizer from its signature.

    Arguments other than `params` and those of `Optimizer` become hyperparameters. Those that are not
    given have the defaults of the signature, or those of the framework convention in `Rule.CONVENTIONS`.
    """
    signature = inspect.signature(signature_of)

    @functools.wraps(signature_of)
    def __init__(self: Optimizer, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        params, hyperparameters, options = read_arguments(type(self), bound)
        Optimizer.__init__(self, params, hyperparameters, **options)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return cast(Init, __init__)


def read_arguments(
    cls: type[Optimizer], bound: inspect.BoundArguments
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return the parameters, hyperparameters and options in the arguments of an optimizer's constructor."""
    given, rule = dict(bound.arguments), cls.RULE
    convention = rule.check_hyperparameter("convention", given.get("convention", "torch"))
    bound.apply_defaults()
    values = {**bound.arguments, **rule.CONVENTIONS[convention], **given}
    names = [p.name for p in bound.signature.parameters.values() if p.kind != p.VAR_KEYWORD]
    names = [name for name in names if name not in ("self", "params")]
    options = bound.arguments["options"]
    unknown = options.keys() - OPTIONS
    if unknown:
        known = ", ".join([*names, *OPTIONS])
        raise TypeError(f"{cls.__name__}: unknown argument {min(unknown)!r}, expected {known}")
    return given["params"], {name: values[name] for name in names}, options


class Optimizer(Saving):
    """Base class of the optimizers.

    A subclass declares its update rule in `RULE` and its hyperparameters in the signature of its
    ``__init__``.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32, float64, bfloat16 (``ml_dtypes.bfloat16``) or float16 arrays in any memory layout without
        gaps, updated in place: an array, or lists, tuples and dicts of arrays in any nesting; an iterator
        over arrays, such as ``net.values()``; or a list of group dicts ``{"params": ..., "lr": ...}``.
    hyperparameters : dict
        Defaults of every group. Each may be a schedule: a callable of the number of completed steps.
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
        `catch_up`; not supported for 16-bit parameters. "dense": they take this step immediately. The default
        is "lazy" where the optimizer supports it, else "dense".
    rounding : {"stochastic", "nearest"}
        Rounding of bfloat16 and float16 parameters, whose updates are computed in float32. "stochastic": to
        one of the two neighbors, with probabilities that make the result correct on average. "nearest": an
        update that is smaller than half the distance to the neighbor is lost.
    seed : int
        Seed of stochastic rounding, in [0, 2**64).
    state_dtype : {"float32", "bfloat16", "int8"}
        Storage of the state arrays of elementwise optimizers. "bfloat16": 2 bytes per element instead of 4.
        "int8": 8-bit codes with one float32 scale per block of `block_size` elements; parameters with fewer
        than 4096 elements keep float32 state. Both are rounded stochastically. Copies of the parameters stay
        float32, and with "int8", arrays in which errors add up are stored as bfloat16.
    block_size : {128, 256, 512}
        Elements of 8-bit state that share a scale.
    master_weights : "split", optional
        Store the low 16 bits of the float32 values, which bfloat16 parameters cannot hold, in
        ``state[k]["low_bits"]``, so that training gives the same bits as with float32 parameters. The
        parameters are then rounded to nearest.

    Attributes
    ----------
    groups : tuple of Group
    state : tuple of State
        State arrays of every parameter, in the order of the nesting, with torch's names. The attribute
        `steps` of each is the number of steps that the parameter has taken. An array that is stored with
        fewer bits is read as a read-only float32 copy; assign values with ``state[k][name] = values``.
    state_nbytes : int
        Bytes of all state arrays.
    params
        The parameters as they were passed.
    steps : int
        Number of steps taken. Setting it also changes the step of the schedules and of the bias corrections
        of all parameters.
    grad_norm : float or None
        Norm of the gradients before clipping, from the last step with `max_norm`, taken or skipped.
    skipped_steps : int
        Number of steps that `skip_nonfinite` skipped.

    Notes
    -----
    An optimizer must be used by one thread at a time; different optimizers may step at the same time.
    """

    def __init_subclass__(cls) -> None:
        if cls.__doc__ and {"RULE", "__init__"} <= vars(cls).keys():
            cls.__doc__ = document(cls.__doc__, cls.__init__, cls.RULE)

    def __init__(
        self, params: Params, hyperparameters: Mapping[str, Any], *, ema: FloatOrSchedule | None = None,
        lookahead: tuple[int, Number] | None = None, accumulate: int = 1, centralize: bool = False,
        unit_clip: Number | None = None, independent_weight_decay: FloatOrSchedule = 0.0,
        skip_nonfinite: bool = False, sparse: Sparse | None = None, rounding: Rounding = "stochastic",
        seed: int = 0, state_dtype: StateDtype = "float32", block_size: int = 256,
        master_weights: MasterWeights | None = None,
    ) -> None:
        checked = check_training_options(
            self.RULE, ema=ema, lookahead=lookahead, centralize=centralize, unit_clip=unit_clip,
            skip_nonfinite=skip_nonfinite, sparse=sparse, rounding=rounding, seed=seed,
            state_dtype=state_dtype, block_size=block_size, master_weights=master_weights,
        )
        self._options, self._unit_options = checked.updates, checked.units
        self.skip_nonfinite: bool = checked.skip_nonfinite
        self.sparse: str = checked.sparse
        self._micro_batches = check_int("accumulate", accumulate, 1)
        self._storage = checked.storage
        self._counter = StepCounter()
        self._refreshing = False
        self._accumulator = None
        defaults = {**hyperparameters, "independent_weight_decay": independent_weight_decay}
        groups = ParamGroups(params, self.RULE, defaults, type(self).__name__, self._counter)
        self._arrange(groups, None)

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
            group if groups were passed. They are float32, float64, bfloat16 or float16, and are not modified
            unless `zero_grad` is True. An array whose memory layout differs from that of its parameter is
            copied. For a gradient of some rows, pass `fastopt.Rows`. None, or a missing key of a dict, leaves
            a parameter, its state and its step count unchanged.
        max_norm : float, optional
            Scale the gradients down so that their norm over all parameters is at most this; the norm
            before scaling is stored in `grad_norm`. Formula of ``torch.nn.utils.clip_grad_norm_``. With
            ``inf`` the norm is only measured.
        clip_value : float, optional
            Clamp each gradient to ``[-clip_value, clip_value]``, after `max_norm`.
        grad_scale : float, optional
            Multiply the gradients by this value before clipping.
        zero_grad : bool
            Set the gradients to zero after use, even if the step is skipped.
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
            If a gradient does not match its parameter. In this case nothing is changed.
        """
        if self._counter.stale:
            self._refresh()
        if (max_norm is clip_value is grad_scale is None
                and not (zero_grad or self.skip_nonfinite or self._needs_full_step)):
            return self._plan.table.step(grads)
        check_bool("zero_grad", zero_grad)
        scale = 1.0 if grad_scale is None else check_number("grad_scale", grad_scale)
        limits = check_limits(max_norm, clip_value)
        if self._accumulator is None:
            return self._full_step(grads, scale, limits, zero_grad)
        weight = check_float("weight", weight, 0.0, open_low=True)
        return self._accumulator.add(grads, weight, scale, zero_grad) and self._step_accumulated(limits)

    def flush(self, *, max_norm: Number | None = None, clip_value: Number | None = None) -> bool:
        """With `accumulate`, take a step with the micro-batches added so far, if there are any.

        Parameters
        ----------
        max_norm, clip_value : float, optional
            As for `step`.

        Returns
        -------
        bool
            Whether a step was taken.
        """
        limits = check_limits(max_norm, clip_value)
        if self._accumulator is None or not self._accumulator.count:
            return False
        if self._counter.stale:
            self._refresh()
        return self._step_accumulated(limits)

    def step_rows(
        self, param: AnyArray | int, rows: ArrayLike, grads: Array, **options: Unpack[StepOptions],
    ) -> bool:
        """Take a step in which only some rows of one parameter have a gradient.

        This is the same as `step` with `fastopt.Rows` for that parameter and None for the others. If several
        tables are trained together, call `step` with one `Rows` for each.

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
            If `rows` or `grads` do not match the parameter. In this case nothing is changed.
        """
        gradients: list[Rows | None] = [None] * len(self._params.arrays)
        gradients[index_of(param, self._params.arrays)] = Rows(rows, grads)
        return self.step(assemble(self._params.treedef, gradients), **options)

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
        is_plain = not (self.skip_nonfinite or self._needs_full_step)
        return self.params is params and is_plain and self._storage.state_dtype == "float32"

    def _lease(self, grads: Gradients, call: Callable[..., T], *args: Any) -> T:
        """Take a plain step whose update is done by compiled code that also computes the gradients.

        `call` gets `args` and the address of a `StepLease` (`span.pxd`). It either updates every element once
        and counts the step with ``StepLease.finish``, or does neither. Returns the result of `call`.
        """
        if self._counter.stale:
            self._refresh()
        return cast(T, self._plan.table.leased_step(grads, call, args))

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
                average[...] = decode(array)

    def swapped_ema(self) -> AbstractContextManager[None]:
        """Context manager in which the parameters hold their averages; no step can be taken in it."""
        if "ema" not in self._state.buffers:
            raise ValueError("swapped_ema: the optimizer keeps no average; pass ema=0.999 to it")
        self._refuse_swapped("swapped_ema")
        self._update_averages()
        return Exchange(self._counter, "swapped_ema", self._params.arrays, self._state.buffers["ema"])

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for group in self.groups:
            values = ", ".join(f"{n}={v!r}" for n, v in group.hyperparameters().items())
            lines.append(f"    {self.RULE.kernel(group.raw())}: {values}")
        count = sum(array.size for array in self._params.arrays)
        lines.append(f"    {len(self._params.arrays)} arrays, {count:,} elements, {self.steps} steps\n)")
        return "\n".join(lines)


def check_limits(max_norm: Number | None, clip_value: Number | None) -> tuple[bool, float, float]:
    """Return whether the norm is measured, and the bounds of the norm and of the elements."""
    clip = math.inf if clip_value is None else check_number("clip_value", clip_value)
    if max_norm is None or (isinstance(max_norm, float) and max_norm == math.inf):
        return max_norm is not None, math.inf, clip
    return True, check_number("max_norm", max_norm), clip


OPTIONS = tuple(
    p.name for p in inspect.signature(Optimizer).parameters.values() if p.kind == p.KEYWORD_ONLY
)
