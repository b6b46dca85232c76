"""What all optimizers share: groups of parameters, their state in one arena, and the step."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from fastopt._core import dispatch
from fastopt._core.pytree import count_places, flatten
from fastopt._core.rows import NO_ROWS, Rows
from fastopt._core.step_table import Table
from fastopt._core.validation import check_int
from fastopt.optimizers import groups
from fastopt.optimizers.groups import Flag, Group, check_number, evaluate, is_schedule
from fastopt.optimizers.jobs import Job, kernel_of, prepare
from fastopt.optimizers.sparse import check_flavor, place_of, rest_of
from fastopt.optimizers.state import State, carve, check_state_dict, check_steps, stateful
from fastopt.optimizers.wrappers import Accumulator, transformation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike

    from fastopt._core.typing import (
        AnyArray,
        Array,
        Choices,
        Conventions,
        FloatOrSchedule,
        Gradients,
        Number,
        Numbers,
        Params,
        Ranges,
        Shape,
        Sparse,
        SparseModes,
        States,
        StepOptions,
    )
    from fastopt.optimizers.groups import Hyperparameters

T = TypeVar("T")

_UP_TO_ONE = (0.0, math.nextafter(1.0, 2.0))


class Optimizer:
    """Base of the optimizers: everything but the rule.

    A subclass passes its hyperparameters on and says, in a few class attributes and static methods,
    what its rule is.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place: an array, or lists, tuples and dicts of arrays in
        any nesting; or a list of group dicts ``{"params": ..., "lr": ...}``.
    hyperparameters : dict
        Defaults of every group. A number may be a schedule, a callable of the number of finished steps.
    ema : float or schedule, optional
        Keep an exponential moving average of the parameters with this weight of the past; with
        `fastopt.schedules.SWA` the plain mean.
    lookahead : pair of int and float, optional
        ``(k, alpha)``: every `k` steps, move slow parameters by `alpha` of the way to where the rule has
        come, and go on from there (Zhang et al., "Lookahead optimizer: k steps forward, 1 step back",
        NeurIPS 2019).
    accumulate : int
        Step at every so many calls of `step` only, with the mean of their gradients.
    centralize : bool
        Take from each gradient its mean over all axes but the last (Yong et al., "Gradient
        centralization", ECCV 2020); not from that of a vector.
    unit_clip : float, optional
        Adaptive gradient clipping: for each unit, what the last axis counts, the norm of the gradient is
        at most this times the norm of the weights, or times 1e-3 if that is more; a vector is one unit
        (Brock et al., "High-performance large-scale image recognition without normalization", ICML 2021).
    independent_weight_decay : float or schedule
        Shrink the parameters by this share before each step, whatever the learning rate. A
        hyperparameter of the groups, as the rule's own are.
    skip_nonfinite : bool
        Leave everything as it is in a step whose gradients hold a NaN or an infinity, and count it
        in `skipped_steps`.
    sparse : {"lazy", "exact", "dense"}, optional
        What becomes of the rows that a gradient of `fastopt.Rows` does not have. "lazy": nothing. "exact":
        a step with a gradient of zero, which they take when they are needed, see `catch_up`. "dense": the
        same at once. The first is the default where the rule can do it, "dense" elsewhere.

    Attributes
    ----------
    groups : tuple of Group
    state : tuple of State
        For every parameter, in the order of the nesting, its state arrays by torch's names.
    params
        The parameters as they were given.
    steps : int
        Steps taken.
    grad_norm : float or None
        Norm of the gradients before clipping, from the last step with `max_norm`.
    skipped_steps : int

    Notes
    -----
    An optimizer belongs to one thread at a time; different optimizers may step at once.
    """

    # Kernel of each variant and the names of its state arrays; the dialects the rule speaks, each with the
    # arguments that it begins with unlike torch (see `dialects`); what the rule's numbers and words may be;
    # the numbers it carries from step to step, as they are at the start.
    STATES: States = {}
    CONVENTIONS: Conventions = {"torch": {}}
    RANGES: Ranges = groups.RANGES
    CHOICES: Choices = {}
    NUMBERS: Numbers = {}
    SPARSE: SparseModes = ("dense",)
    # Rules whose kernel takes, for the gradient, what `direction` makes of it and the state.
    DIRECTED: tuple[str, ...] = ()

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        """Name of the kernel for the hyperparameters `h` (where a schedule counts as true)."""
        raise NotImplementedError

    @classmethod
    def rule_of(cls, h: Hyperparameters, array: Array) -> str:
        """`rule`, where it is not the same for every array."""
        return cls.rule(h)

    @classmethod
    def layout(cls, rule: str, array: Array) -> dict[str, tuple[int, ...]]:
        """Shapes of the state arrays of an array, by name."""
        return dict.fromkeys(cls.STATES[rule], array.shape)

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        """The first scalars of the kernel `h.rule`: those that the hyperparameters alone decide."""
        raise NotImplementedError

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        """Its further scalars, which depend on the step `t` (the first is 1), too."""
        return ()

    @staticmethod
    def carry(h: Hyperparameters, t: int, numbers: dict[str, float]) -> dict[str, float]:
        """What the `NUMBERS` of the step before have become at step `t`: a new dict."""
        return numbers

    @staticmethod
    def direction(h: Hyperparameters, t: int, p: Array, g: Array, state: Mapping[str, Array]) -> Array:
        """For a rule that is not elementwise: what its kernel takes for the gradient `g`, in NumPy."""
        raise NotImplementedError

    @staticmethod
    def decay(h: Hyperparameters) -> float:
        """L2 weight decay, added to the gradient; a decoupled one is part of the rule."""
        return 0.0 if h.convention == "keras" else h.weight_decay

    @staticmethod
    def keep(h: Hyperparameters) -> float:
        """What is left of the parameters before the rule: keras has decoupled decay around every rule."""
        return 1.0 - h.lr * h.weight_decay if h.convention == "keras" else 1.0

    @classmethod
    def rest(cls, h: Hyperparameters) -> tuple[float, tuple[float, ...]] | None:
        """What becomes of numbers without a gradient, decay of weights (L2) apart.

        Returns
        -------
        (ratio, factors) or None
            Each of their steps is at most ``ratio`` times the one before, but for what bias corrections
            add, and none is taken once the first state array is zero; and what a step leaves, by
            multiplication, of the parameter (when it no longer moves) and of each state array. None
            where there is no such ratio.
        """
        return None

    @staticmethod
    def initial(name: str, h: Hyperparameters) -> float:
        """What a state array holds before the first step."""
        return 0.0

    def __init__(
        self, params: Params, hyperparameters: Mapping[str, Any], *, ema: FloatOrSchedule | None = None,
        lookahead: tuple[int, Number] | None = None, accumulate: int = 1, centralize: bool = False,
        unit_clip: Number | None = None, independent_weight_decay: FloatOrSchedule = 0.0, skip_nonfinite: bool = False,
        sparse: Sparse | None = None,
    ) -> None:
        for name, value in (("skip_nonfinite", skip_nonfinite), ("centralize", centralize)):
            if not isinstance(value, bool):
                raise TypeError(f"{name}: expected True or False, got {value!r}")
        self._ema_weight = ema if ema is None or callable(ema) else check_number("ema", ema)
        self._lookahead = lookahead if lookahead is None else _check_lookahead(lookahead)
        self._micro_batches = check_int("accumulate", accumulate, 1)
        self._changes = centralize, unit_clip if unit_clip is None else check_number("unit_clip", unit_clip)
        self.skip_nonfinite: bool = skip_nonfinite
        self.sparse: str = check_flavor(sparse, self.SPARSE)
        self.params: Any = params
        self.grad_norm: float | None = None
        self.skipped_steps: int = 0
        self._steps = 0
        self._defaults = {**hyperparameters, "independent_weight_decay": independent_weight_decay}
        self._stale = Flag()
        self._swapped = False
        self._accumulator: Accumulator | None = None
        self._grouped = _are_groups(params)
        given: Any = params if self._grouped else [{"params": params}]
        self.groups: tuple[Group, ...] = tuple(self._make_group(group) for group in given)
        self._resolve()
        self._build([], {})

    def _make_group(self, given: Mapping[str, Any]) -> Group:
        unknown = given.keys() - self._defaults.keys() - {"params"}
        if unknown:
            raise ValueError(
                f"params: unknown hyperparameter {sorted(unknown)[0]!r} in a group of "
                f"{type(self).__name__}, expected one of {', '.join(self._defaults)}"
            )
        hyperparameters = {name: given.get(name, value) for name, value in self._defaults.items()}
        group = Group(given["params"], hyperparameters, type(self), self._stale, self._steps)
        self.check(group.raw())
        return group

    @staticmethod
    def check(h: Hyperparameters) -> None:
        """Refuse hyperparameters that do not go together."""

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters; `step` then takes a list of gradients, one entry a group.

        Parameters
        ----------
        group : dict
            ``{"params": ..., "lr": ...}``; what is not said is as in the other groups' defaults.
        """
        self._refuse_swapped("add_param_group")
        if not _are_groups([group]):
            raise TypeError(f"group: expected a dict with the key 'params', got {group!r}")
        made = self._make_group(group)
        flatten([g["params"] for g in [*self.groups, made]])    # raises before anything changes
        self.catch_up()
        self.groups = (*self.groups, made)
        self._grouped = True
        self.params = [dict(g) for g in self.groups]
        self._resolve()
        self._build(self.state, self._kept)

    # --- State ---------------------------------------------------------------------------------

    def _resolve(self) -> None:
        """Take the nesting of the parameters apart, once."""
        trees = [group["params"] for group in self.groups]
        self._shape, self._arrays, self._places = flatten(trees if self._grouped else trees[0])
        shapes: Any = self._shape if self._grouped else [self._shape]
        self._group_of = [i for i, shape in enumerate(shapes) for _ in range(count_places(shape))]

    def _build(self, old_state: Sequence[Mapping[str, Array]], old_kept: Mapping[str, list[Array]]) -> None:
        """Lay out the state and what is kept beside it, and make the span table."""
        self._rules = self._find_rules()
        layouts = [self.layout(rule, array) for rule, array in zip(self._rules, self._arrays, strict=True)]
        beside = self._beside()
        carved = carve(self._arrays, [
            [*layout.values()] + [array.shape] * len(beside)
            for layout, array in zip(layouts, self._arrays, strict=True)
        ])
        self.state: tuple[State, ...] = tuple(
            State(dict(zip(layout, views, strict=False)))
            for layout, views in zip(layouts, carved, strict=True)
        )
        hs = [group.raw() for group in self.groups]
        for k, state in enumerate(self.state):
            h = hs[self._group_of[k]]
            for name, array in state.items():
                old = old_state[k].get(name) if k < len(old_state) else None
                start = self.initial(name, h)
                if old is not None and old.shape == array.shape:
                    array[...] = old
                elif start:
                    array[...] = start
        self._kept = {
            name: [views[i - len(beside)] for views in carved] for i, name in enumerate(beside)
        }
        for name, arrays in self._kept.items():
            before = old_kept.get(name, [])
            for k, array in enumerate(arrays):
                if k < len(before):
                    array[...] = before[k]
                elif name != "accumulated":
                    array[...] = self._arrays[k]
        self._make_table()
        self._stale.raised = self._stale.changed = True

    def _beside(self) -> list[str]:
        """Names of what is kept for every parameter, whatever the rule."""
        wanted = {
            "ema": self._ema_weight is not None,
            "lookahead": self._lookahead is not None,
            "accumulated": self._micro_batches > 1,
        }
        return [name for name, is_kept in wanted.items() if is_kept]

    def _make_table(self) -> None:
        kernels = dispatch.kernels
        owners: dict[tuple[int, str, int | None], int] = {}
        self._jobs: list[Job] = []
        self._job_of: list[int] = []
        for k, (i, rule) in enumerate(zip(self._group_of, self._rules, strict=True)):
            alone = rule in self.DIRECTED or rule in kernels.SURVEYS
            owner = owners.setdefault((i, rule, k if alone else None), len(owners))
            if owner == len(self._jobs):
                self._jobs.append(Job(self.groups[i], rule, k if alone else None))
            self._job_of.append(owner)
        rowwise = [rule in kernels.ROWWISE for rule in self._rules]
        places = [f"grads{place}" for place in self._places]
        self._transform = transformation(*self._changes)
        self._table = Table(
            kernels.KERNELS,
            self._shape,
            places,
            self._arrays,
            [list(state.values()) for state in self.state],
            self._kept.get("lookahead", []),
            self._kept.get("ema", []),
            self._job_of,
            [kernels.RULES[kernel_of(type(self), job.rule)] for job in self._jobs],
            [self._flavor(self._jobs[i]) for i in self._job_of],
            [next(iter(s.values())) if r else None for s, r in zip(self.state, rowwise, strict=True)],
        )
        if "accumulated" in self._kept:
            self._accumulator = Accumulator(
                self._shape, places, self._kept["accumulated"], self._micro_batches,
                "dense" if self.sparse == "dense" else "", self._written(), self._accumulator,
            )
        self._prepared = self._transform is not None or any(job.array is not None for job in self._jobs)
        self._staged = (
            self._prepared or bool(self.NUMBERS) or any(rowwise) or self._accumulator is not None
        )

    def _written(self) -> list[Array]:
        """All that a step writes, but for what is accumulated."""
        kept = [array for name, arrays in self._kept.items() if name != "accumulated" for array in arrays]
        return [*self._arrays, *(array for state in self.state for array in state.values()), *kept]

    def _flavor(self, job: Job) -> str:
        """What rows of a gradient mean to a job; "" if its arrays must be stepped as a whole."""
        whole = job.array is not None or self._transform is not None
        if self.sparse == "lazy":
            whole = whole or self._lookahead is not None
        return "" if whole and self.sparse != "dense" else self.sparse

    def _find_rules(self) -> list[str]:
        """The rule of every array."""
        raws = [group.raw() for group in self.groups]
        return [self.rule_of(raws[i], a) for i, a in zip(self._group_of, self._arrays, strict=True)]

    def _settle(self) -> None:
        """See what has been set: another rule lays the state out anew."""
        for group in self.groups:
            self.check(group.raw())
        if self._find_rules() != self._rules:
            self.catch_up()
            self._build(self.state, self._kept)

    def _refresh(self) -> None:
        """See to what has been set, and to what changes from step to step beside `variables`."""
        self._refuse_swapped("step")
        if self._stale.changed or self._scheduled:
            self._evaluate()
        t = self._steps + 1
        if self.NUMBERS:
            for group in self.groups:
                group.coming = self.carry(group.now, t - group.start, group.numbers)
            for job in self._jobs:
                job.now.numbers = job.group.coming
        if self._lookahead is not None:
            for i, job in enumerate(self._jobs):
                self._table.set_pull(i, self._pull(t - job.start))
        self._stale.raised = self._scheduled or bool(self.NUMBERS) or self._lookahead is not None
        self._stale.changed = False

    def _evaluate(self) -> None:
        """Evaluate for the coming step what has been set, or what is scheduled."""
        changed, step = self._stale.changed, self._steps
        if changed:
            self._settle()
        weight = 0.0 if self._ema_weight is None else evaluate("ema", self._ema_weight, step, _UP_TO_ONE)
        self._scheduled = callable(self._ema_weight)
        for group in self.groups:
            if changed:
                group.now = group.at(step)
                group.now.totals = None
                group.moving = group.schedules()
            else:
                for name in group.moving:
                    setattr(group.now, name, group.evaluate(name, step))
            self._scheduled = self._scheduled or bool(group.moving)
        for i, job in enumerate(self._jobs):
            h = job.look()
            keep = self.keep(h) * (1.0 - h.independent_weight_decay)
            self._table.set_group(i, h.maximize, self.decay(h), self.constants(h), keep, weight)
            if self.sparse == "exact":
                self._table.set_rest(i, *rest_of(self.rest(h)))

    def _pull(self, t: int) -> float:
        """How far the slow parameters follow at step `t`."""
        if self._lookahead is None:
            return 0.0
        every, alpha = self._lookahead
        return 0.0 if t % every else alpha

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
            one entry a group where groups were given. Read only, unless `zero_grad`. An array in
            another memory layout is copied. For a gradient that only some rows have, `fastopt.Rows`.
        max_norm : float, optional
            Scale the gradients down so that their norm over all parameters is at most this; the norm
            before is left in `grad_norm`. Formula of ``torch.nn.utils.clip_grad_norm_``.
        clip_value : float, optional
            Clamp each gradient to ``[-clip_value, clip_value]``, after `max_norm`.
        grad_scale : float, optional
            Multiply the gradients by this first.
        zero_grad : bool
            Set the gradients to zero after use.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit its parameter; nothing has been changed then.
        """
        t = self._set_scalars()
        plain = max_norm is clip_value is grad_scale is None
        if plain and not (zero_grad or self.skip_nonfinite or self._staged):
            self._table.step(grads)
            self._steps = t
        elif self._step_shaped(grads, max_norm, clip_value, grad_scale, zero_grad):
            self._steps = t

    def step_rows(
        self, param: AnyArray | int, rows: ArrayLike, grads: Array, **options: Unpack[StepOptions],
    ) -> None:
        """A step in which only some rows of one parameter have a gradient.

        The same as `step` with `fastopt.Rows` for that parameter, and no row at all for the others: it
        counts as a step. Where several tables are trained together, call `step` with one `Rows` for each.

        Parameters
        ----------
        param : ndarray or int
            One of the parameters, or its place among them, as in `state`.
        rows : sequence of int, shape (k,)
            Which rows, in any order; the gradients of one that comes several times are added up.
        grads : ndarray, shape (k, ...)
            The gradient of each, of the dtype and the inner shape of the parameter.
        **options
            As for `step`, but for `zero_grad`.

        Raises
        ------
        TypeError, ValueError
            If they do not fit the parameter; nothing has been changed then.
        """
        gradients = [NO_ROWS] * len(self._arrays)
        gradients[place_of(param, self._arrays)] = Rows(rows, grads)
        self.step(_assemble(self._shape, gradients), **options)

    def catch_up(self, param: AnyArray | int | None = None, rows: ArrayLike | None = None) -> None:
        """With ``sparse="exact"``, let rows take the steps that they have been left out of.

        To be called for the rows of a minibatch before they are read, and for all before the parameters
        are: `step` does it for the rows whose gradient it gets; `state_dict`, copying and pickling do it
        for all. Where no row can be behind, nothing happens.

        Parameters
        ----------
        param : ndarray or int, optional
            One of the parameters, or its place among them; all by default.
        rows : sequence of int, optional
            Which of its rows, in any order, also several times; all by default.

        Raises
        ------
        TypeError, ValueError
            If there is no such parameter or row.
        """
        if param is None and rows is not None:
            raise ValueError("rows: expected a param that they are of")
        self._table.catch_up(-1 if param is None else place_of(param, self._arrays), rows)

    def _set_scalars(self) -> int:
        """Give the table this step's scalars; return the number of the step."""
        if self._stale.raised:
            self._refresh()
        t, i, variables = self._steps + 1, 0, self.variables
        rows = self._table.rows
        for job in self._jobs:
            rows[i] = variables(job.now, t - job.start)
            i += 1  # noqa: SIM113 (enumerate alone would take a tenth of a small step)
        return t

    def _can_lease(self, params: object) -> bool:
        """Whether `lend` can be used for a net with these `params`: it has all the arrays, and no other."""
        return self.params is params and not (self.skip_nonfinite or self._staged)

    def _lease(self, grads: Gradients, work: Callable[..., T | None], *args: Any) -> T | None:
        """A plain step, whose update is left to compiled code that also computes the gradients.

        Parameters
        ----------
        grads : nesting of ndarrays
            As for `step`; they need not be computed yet.
        work : callable
            Called with `args` and the address of a `StepLease` (`span.pxd`), updates every element once.

        Returns
        -------
        object
            What `work` returned. If it is None, or `work` raised, nothing was updated and the step has
            not been taken.
        """
        t, table = self._set_scalars(), self._table
        lent = table.begin_step(grads)
        try:
            result = work(*args, lent)
        finally:
            table.end_step()
        if result is not None:
            self._steps = t
        return result

    def _step_shaped(
        self, grads: Gradients, max_norm: Number | None, clip_value: Number | None, grad_scale: Number | None,
        zero_grad: bool,
    ) -> bool:
        """A step with all its options; False if more micro-batches are to come, or if it was skipped."""
        if not isinstance(zero_grad, bool):
            raise TypeError(f"zero_grad: expected True or False, got {type(zero_grad).__name__}")
        scale = 1.0 if grad_scale is None else check_number("grad_scale", grad_scale)
        clip = math.inf if clip_value is None else check_number("clip_value", clip_value)
        largest = math.inf if max_norm is None else check_number("max_norm", max_norm)
        if self._accumulator is not None:
            if not self._accumulator.add(grads, scale, zero_grad):
                return False
            grads, scale, zero_grad = _assemble(self._shape, self._kept["accumulated"]), 1.0, True
        norm = self._table.step_shaped(
            grads, scale, clip, largest, zero_grad, max_norm is not None, self.skip_nonfinite,
            self._prepare if self._prepared else None,
        )
        if norm is None:
            self.skipped_steps += 1
            if self._accumulator is not None:
                self._accumulator.clear()
            return False
        for group in self.groups:
            group.numbers = group.coming
        if max_norm is not None:
            self.grad_norm = norm
        return True

    def _prepare(self) -> None:
        prepare(
            type(self), self._table, self._jobs, self._job_of, self._steps + 1, self._arrays, self.state,
            self._transform,
        )

    @property
    def steps(self) -> int:
        return self._steps

    @steps.setter
    def steps(self, value: int) -> None:
        self._steps = check_steps("steps", value)
        for group in self.groups:
            group.start = min(group.start, self._steps)
        self._stale.raised = self._stale.changed = True

    # --- The average of the parameters -----------------------------------------------------------

    @property
    def ema(self) -> Any:
        """Moving averages of the parameters in their nesting (of lists and dicts); None if there are none."""
        return _assemble(self._shape, self._kept["ema"]) if "ema" in self._kept else None

    @contextlib.contextmanager
    def swapped_ema(self) -> Iterator[None]:
        """``with opt.swapped_ema():`` the parameters hold their averages, and no step can be taken."""
        if "ema" not in self._kept:
            raise ValueError("swapped_ema: the optimizer keeps no average, give it ema=0.999")
        self._refuse_swapped("swapped_ema")
        self.catch_up()
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _refuse_swapped(self, what: str) -> None:
        if self._swapped:
            raise RuntimeError(
                f"{what}: not inside of swapped_ema or averaged, where the parameters are averages"
            )

    def _mark_swapped(self, swapped: bool) -> None:
        self._swapped = swapped
        self._stale.raised = self._stale.changed = True

    def _swap(self) -> None:
        self._mark_swapped(not self._swapped)
        for array, average in zip(self._arrays, self._kept["ema"], strict=True):
            held = array.copy()
            array[...] = average
            average[...] = held

    # --- Saving and loading ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a later run needs to go on, as plain numbers and copies of arrays.

        A schedule is not a number: the optimizer that loads keeps its own, and takes over the state
        of those that have one.

        Returns
        -------
        dict
            ``optimizer``, ``steps``, ``skipped_steps``, ``groups`` (hyperparameters, places of their
            parameters, when they were added, states of schedules, and the ``numbers`` of a rule that carries
            some), ``state`` (arrays by name, for each
            parameter), and what else is kept for them: ``ema``, ``lookahead``, ``accumulated`` with the
            number of ``micro_batches`` in it. Rows that are behind are caught up first.
        """
        self._refuse_swapped("state_dict")
        self.catch_up()
        self._settle()
        groups = []
        for group, place in self.places():
            items = group.hyperparameters().items()
            entry = {name: value for name, value in items if not is_schedule(value)}
            entry |= {"params": place, "start": group.start, "schedules": {}}
            if self.NUMBERS:
                entry["numbers"] = dict(group.numbers)
            for name, schedule in stateful(group):
                entry["schedules"][name] = schedule.state_dict()
            groups.append(entry)
        result = {
            "optimizer": type(self).__name__,
            "steps": self._steps,
            "skipped_steps": self.skipped_steps,
            "groups": groups,
            "state": [{name: array.copy() for name, array in s.items()} for s in self.state],
        }
        for name, arrays in self._kept.items():
            result[name] = [array.copy() for array in arrays]
        if self._accumulator is not None:
            result["micro_batches"] = self._accumulator.count
        return result

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where the optimizer stood that `state_dict` was taken from.

        Parameters
        ----------
        state_dict : dict
            As `state_dict` returns it. Arrays of a group that has taken no step may be left out.

        Raises
        ------
        ValueError, TypeError
            If it came from another optimizer or from parameters of other shapes or dtypes; nothing
            has been changed then.
        """
        self._refuse_swapped("load_state_dict")
        values, schedules = check_state_dict(self, state_dict)
        self._table.forget()
        for group, saved, mine in zip(self.groups, state_dict["groups"], values, strict=True):
            group.data.update(mine)
            group.start = saved["start"]
            group.numbers = {name: float(saved["numbers"][name]) for name in self.NUMBERS}
        for schedule, state in schedules:
            schedule.load_state_dict(state)
        self._steps = int(state_dict["steps"])
        self.skipped_steps = int(state_dict["skipped_steps"])
        self._stale.raised = self._stale.changed = True
        self._settle()
        for i, own, given in zip(self._group_of, self.state, state_dict["state"], strict=True):
            h = self.groups[i].raw()
            for name, array in own.items():
                array[...] = given[name] if given else self.initial(name, h)
        for name, kept in self._kept.items():
            for array, value in zip(kept, state_dict[name], strict=True):
                array[...] = value
        if self._accumulator is not None:
            self._accumulator.count = state_dict["micro_batches"]

    def places(self) -> list[tuple[Group, list[int]]]:
        """Pairs of a group and the places of its parameters in `state`."""
        places: list[list[int]] = [[] for _ in self.groups]
        for k, i in enumerate(self._group_of):
            places[i].append(k)
        return list(zip(self.groups, places, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the parameters come along, the addresses do not."""
        self._refuse_swapped("copying")
        self.catch_up()
        left = ("_table", "_arrays", "_shape", "_places", "_group_of", "_jobs", "_transform")
        state = {name: value for name, value in self.__dict__.items() if name not in left}
        return state | {"state": [dict(arrays) for arrays in self.state]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._resolve()     # the arrays may have come back as something that must not be written
        self._build(self.state, self._kept)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for group in self.groups:
            values = ", ".join(f"{n}={v!r}" for n, v in group.hyperparameters().items())
            lines.append(f"    {self.rule(group.raw())}: {values}")
        count = sum(array.size for array in self._arrays)
        lines.append(f"    {len(self._arrays)} arrays, {count:,} numbers, {self._steps} steps\n)")
        return "\n".join(lines)


def _check_lookahead(value: Any) -> tuple[int, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"lookahead: expected a pair (k, alpha), got {value!r}")
    return check_int("lookahead", value[0], 1), check_number("lookahead", value[1], _UP_TO_ONE)


def _are_groups(params: object) -> bool:
    return (
        isinstance(params, (list, tuple))
        and len(params) > 0
        and all(isinstance(group, (dict, Group)) and "params" in group for group in params)
    )


def _assemble(shape: Shape, arrays: Sequence[object]) -> Any:
    """The inverse of `flatten`."""
    if isinstance(shape, int):
        return arrays[shape]
    if isinstance(shape, dict):
        return {key: _assemble(inner, arrays) for key, inner in shape.items()}
    return [_assemble(inner, arrays) for inner in shape]
