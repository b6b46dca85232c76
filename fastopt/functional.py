"""Update rules as functions: one compiled step on raw arrays, in place.

Each function has the signature and the documentation of the function in `fastopt.reference`, which is plain
NumPy, and gives the same bits (Adafactor and Muon agree up to rounding). Use the functions when you keep the
state arrays yourself; the classes in `fastopt` keep them for you and add schedules, parameter groups and
gradient clipping.

The arrays of a call are float32 or float64, all of the same dtype, contiguous and writeable; they must not
share memory. A gradient in another layout is copied. The arrays are checked in every call, and no reference
to them is kept.

`p` and `g` may also be bfloat16 (``ml_dtypes.bfloat16``) or float16, and of different dtypes; the state
arrays are then float32. All functions take ``rounding="stochastic"`` or ``"nearest"`` and ``seed=0`` for such
a `p`. The noise of stochastic rounding depends on `seed`, `step` and the element; pass another `seed` at each
step to a function without `step`.

State arrays may be stored with fewer bits: as bfloat16 arrays, or as tuples ``(codes, scales)`` of 8-bit
codes and one float32 scale per block of 128, 256 or 512 elements. They have the shape and the memory layout
of `p`, which must not be float64. The dtype of codes is int8 if the values can be negative, else uint8; see
`fastopt.reference_formats`. All state arrays must be zero before the first step.
"""

from __future__ import annotations

import functools
import inspect
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

import numpy as np

from fastopt import optimizers, reference
from fastopt._core import dispatch
from fastopt._core.direct import KernelCall, contains_objects
from fastopt._core.encoded import Encoded
from fastopt._core.formats import BFLOAT16, computing_dtype, dtype_name, normalize
from fastopt._core.layout import memory_order, same_layout
from fastopt._core.pytree import flatten
from fastopt._core.step_table import NEW_STATE, StepCounter
from fastopt._core.validation import check_disjoint, check_memory
from fastopt.optimizers.groups import Group
from fastopt.optimizers.hyperparameters import Hyperparameters
from fastopt.optimizers.options.storage import MIN_INT8_SIZE, Storage, check_storage
from fastopt.optimizers.parameter_docs import FUNCTION, complete
from fastopt.optimizers.plan import StepPlan
from fastopt.optimizers.state import Scalars, State, StateArrays, memory_of
from fastopt.optimizers.state_dict import check_like, check_scalar_state, check_steps
from fastopt.reference_formats import Formats, block_size, is_encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from fastopt._core.typing import Array, ScalarState
    from fastopt.optimizers.base import Optimizer
    from fastopt.optimizers.rule import Rule

P = ParamSpec("P")

__all__ = [
    "adabelief_", "adadelta_", "adafactor_", "adagrad_", "adam_", "adamax_", "adamw_",
    "adamw_schedule_free_", "adan_", "ademamix_", "adopt_", "asgd_", "ftrl_", "lamb_", "lars_", "lion_",
    "momentum_", "muon_", "nadam_", "prodigy_", "radam_", "rmsprop_", "rprop_", "sgd_",
    "sgd_schedule_free_", "sign_sgd_", "yogi_",
]

_SECTIONS = """Raises
------
ValueError, TypeError
    If an argument is out of range or an array cannot be updated in place. The message names the argument;
    nothing is changed.

See Also
--------
fastopt.{} : The optimizer, with formula, paper and options.
fastopt.reference.{} : The same update in NumPy."""
# State arrays whose argument has a shorter name than the entry in ``opt.state``.
_ARGUMENT_OF = {"momentum_buffer": "buf", "sum": "acc"}


def compiled(function: Callable[P, None], optimizer: type[Optimizer], **enabled_by: str) -> Callable[P, None]:
    """Return a function with the signature of `function` that runs the compiled kernel of `optimizer`.

    The positional parameters of `function` are `p`, `g`, the state arrays and the scalar state `numbers`; the
    keyword-only ones are `step` and hyperparameters of `optimizer`.

    Parameters
    ----------
    function : callable
        Update rule from `fastopt.reference`.
    optimizer : type
        Class whose kernel updates the arrays.
    **enabled_by
        For each hyperparameter that selects a kernel, the state array whose presence turns it on.
    """
    rule, signature = optimizer.RULE, inspect.signature(function)
    parameters = [x for x in signature.parameters.values() if x.kind is not x.VAR_KEYWORD]
    positional = [x.name for x in parameters if x.kind is not x.KEYWORD_ONLY]
    has_numbers = positional[-1] == "numbers"
    first, end, most = 2, len(positional) - has_numbers, len(positional)
    least = sum(x.default is x.empty for x in parameters if x.kind is not x.KEYWORD_ONLY)
    keywords = frozenset(x.name for x in parameters if x.kind is x.KEYWORD_ONLY)
    required = frozenset(x.name for x in parameters if x.name in keywords and x.default is x.empty)
    own = {x.name: x.default for x in parameters if x.name in keywords - required - {"step"}}
    known = keywords | Formats.__optional_keys__
    defaults = default_hyperparameters(optimizer, own)
    arrays = _Arrays(rule, positional[first:end], enabled_by, keywords)
    latest: _Latest | None = None

    @functools.wraps(function)
    def update(*args: Any, **kwargs: Any) -> None:
        nonlocal latest
        same = latest       # read once, because another thread may replace it
        if same is not None and len(args) == same.n_args and len(kwargs) == same.n_kwargs:
            step = kwargs.get("step") if same.has_step else 1
            if (
                type(step) is int and step > 0 and (step == 1) == same.is_first
                and contains_objects(kwargs, same.hyperparameters)
                and same.call.update_array(rule.step_scalars(same.hp, step), args[0], args[1], args[first:])
            ):
                return
        if not (least <= len(args) <= most and required.issubset(kwargs) and known.issuperset(kwargs)):
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}(): {error}") from None
            args = tuple([bound.arguments.get(name) for name in positional])
            unknown = bound.arguments.get("formats", {}).keys() - known
            if unknown:
                raise TypeError(f"{function.__name__}(): got an unexpected keyword argument {min(unknown)!r}")
            kwargs = {name: value for name, value in bound.arguments.items() if name in keywords}
            kwargs |= bound.arguments.get("formats", {})
        storage = check_storage(kwargs.pop("rounding", "stochastic"), kwargs.pop("seed", 0))
        has_step, step = "step" in kwargs, kwargs.pop("step", 1)
        if type(step) is not int or step < 1:
            step = check_steps("step", step)
            if step < 1:
                raise ValueError("step: expected a positive integer, got 0")
        values = defaults.copy()
        for name, value in kwargs.items():
            values[name] = rule.evaluate(name, rule.check_hyperparameter(name, value), step - 1)
        states = args[first:end] + (None,) * (end - len(args))
        numbers = args[end] if has_numbers else None
        call = arrays.step(values, args[0], args[1], states, numbers, step, storage)
        if call is not None and all(map(_is_immutable, kwargs.values())):
            latest = _Latest(*call, kwargs, len(args), len(kwargs) + has_step, has_step, step == 1)

    update.__module__ = __name__
    sections = _SECTIONS.format(optimizer.__name__, function.__name__)
    update.__doc__ = complete(function.__doc__ or "", function, FUNCTION, sections)
    return update


def kernel_call(
    rule: type[Rule], hp: Hyperparameters, kernel: str, step: int, scalar_state: ScalarState,
) -> KernelCall:
    """Return the call of an elementwise kernel with checked hyperparameters, and complete these for `step`.

    The call and `hp` serve any number of steps, but for the first one, if the rule has no scalar state.
    """
    vars(hp).update(
        kernel=kernel, is_new=step == 1, sums=None, totals=None, scalar_state_before=scalar_state
    )
    hp.scalar_state = rule.advance(hp, step, scalar_state)
    return KernelCall(kernel, rule.constants(hp), hp.maximize, *rule.weight_decay(hp))


def default_hyperparameters(optimizer: type[Optimizer], own: dict[str, Any]) -> dict[str, Any]:
    """Return the default hyperparameters of an optimizer, updated with `own`.

    A function may lack hyperparameters that its kernel does not use.
    """
    options = inspect.signature(optimizer).parameters.values()
    defaults = {x.name: x.default for x in options if x.default is not x.empty}
    values = defaults | {"independent_weight_decay": 0.0} | own
    return {name: optimizer.RULE.check_hyperparameter(name, value) for name, value in values.items()}


class _Latest(NamedTuple):
    """The latest call of a function: the next one need not compute what the same hyperparameters determine.

    The values of `hyperparameters` are immutable. `n_args` arguments were positional, none of them None, and
    `n_kwargs` were not, `step` among them if `has_step`.
    """

    call: KernelCall
    hp: Hyperparameters
    hyperparameters: dict[str, Any]
    n_args: int
    n_kwargs: int
    has_step: bool
    is_first: bool


def _is_immutable(value: object) -> bool:
    return type(value) in (float, int, bool, str) or (type(value) is tuple and all(map(_is_immutable, value)))


class _Arrays:
    """Takes the step of one call.

    Parameters
    ----------
    rule : type
    arguments : list of str
        Names of the arguments that are state arrays.
    enabled_by : dict of str to str
        For each hyperparameter that selects a kernel, the state array whose presence turns it on.
    keywords : set of str
        Names of the keyword-only arguments.
    """

    def __init__(
        self, rule: type[Rule], arguments: list[str], enabled_by: Mapping[str, str], keywords: Collection[str]
    ) -> None:
        self._rule, self._arguments, self._keywords = rule, arguments, keywords
        self._enabled_by = [(name, arguments.index(array)) for name, array in enabled_by.items()]
        whole = {*dispatch.kernels.TWO_PASS, *dispatch.kernels.ROWWISE, *rule.PRECOMPUTED}
        # By elementwise kernel, the indices of its state arrays among the arguments.
        self._order: dict[str, list[int]] = {}
        for kernel, states in rule.STATES.items():
            names = [name if name in arguments else _ARGUMENT_OF.get(name, name) for name in states]
            if kernel not in whole and set(names) <= set(arguments):
                self._order[kernel] = [arguments.index(name) for name in names]

    def step(
        self, values: dict[str, Any], p: Array, g: Array, states: tuple[Array | None, ...],
        numbers: dict[str, float] | None, step: int, storage: Storage,
    ) -> tuple[KernelCall, Hyperparameters] | None:
        """Take the step; return what a call with the same hyperparameters can use again, or None."""
        rule, selected = self._rule, values
        for name, i in self._enabled_by:
            enabled = states[i] is not None
            if values[name] and not enabled:
                array = self._arguments[i]
                raise ValueError(f"{array}: expected an array with {name}={values[name]}, got None")
            if name in self._keywords:
                selected = selected | {name: enabled}
            else:
                values[name] = selected[name] = float(enabled) if name in rule.RANGES else enabled
        hp = Hyperparameters(values)
        rule.check(hp)
        kernel = rule.kernel(hp if selected is values else Hyperparameters(selected))
        scalar_state = rule.SCALAR_STATE | (numbers or {})
        check_scalar_state("numbers", scalar_state, rule.SCALAR_STATE)
        named = zip(self._arguments, states, strict=True)
        given = {name: array for name, array in named if array is not None}
        order = self._order.get(kernel)
        call = None
        if order is not None and len(order) == len(given) and not any(map(is_encoded, given.values())):
            call = kernel_call(rule, hp, kernel, step, scalar_state)
            scalars = rule.step_scalars(hp, step)
            if not call.update_array(scalars, p, g, tuple([states[i] for i in order])):
                call = None
        if call is not None:
            scalar_state = hp.scalar_state
        else:
            scalar_state = _step(rule, values, selected, kernel, p, g, given, numbers or {}, step, storage)
        if numbers is not None:
            numbers.update(scalar_state)
            return None
        return (call, hp) if call is not None and order == list(range(len(given))) else None


def _step(
    rule: type[Rule], hyperparameters: dict[str, Any], selected: dict[str, Any], kernel: str, p: Array,
    g: Array, given: dict[str, Array], numbers: dict[str, float], step: int, storage: Storage,
) -> ScalarState:
    """Take one step on one array with a step plan that is used once; return the scalar state after it.

    This is for rules that need whole arrays, for arrays that have to be copied, and for the errors.
    """
    if g is None:
        raise TypeError("g: expected a NumPy array, got NoneType")
    _, (p, *_), _ = flatten({"p": p, **{n: a for n, a in given.items() if not is_encoded(a)}}, "arrays")
    if rule.kernel_for(Hyperparameters(selected), p) != kernel:
        raise ValueError(f"p: expected a matrix, got {p.ndim} axes")
    shapes = {
        name if name in given else _ARGUMENT_OF.get(name, name): shape
        for name, shape in rule.state_shapes(kernel, p).items()
    }
    if shapes.keys() != given.keys():
        expected, got = ", ".join(shapes) or "none", ", ".join(given) or "none"
        raise ValueError(f"p: expected the state arrays {expected} for shape {p.shape}, got {got}")
    names = dict(zip(shapes, rule.state_shapes(kernel, p), strict=True))     # in the rule, by argument
    kinds = rule.state_kinds(kernel)
    state: dict[str, Any] = {}
    for name, shape in shapes.items():
        state[name] = given[name]
        if is_encoded(given[name]):
            if list(shapes) != list(given) or p.dtype == np.float64:
                dtype = computing_dtype(p.dtype)
                raise TypeError(f"{name}: expected {dtype} with these arrays, got fewer bits")
            state[name] = _encoded(name, given[name], kinds.get(names[name]), p)
        else:
            check_like(name, state[name], computing_dtype(p.dtype), shape)
    memory = [(name, array) for name in state for array in memory_of([state[name]])]
    check_disjoint([p, *(array for _, array in memory)], ["p", *(name for name, _ in memory)], "")
    counter = StepCounter(step - 1)
    group = Group(p, {}, rule, counter)
    group.data |= hyperparameters   # which are checked
    counts, flags = np.array([step - 1]), np.array([NEW_STATE if step == 1 else 0], np.uint8)
    own_state = State(state, counts, flags, 0)
    own_state.scalars_cell = Scalars(rule.SCALAR_STATE | numbers)
    arrays = StateArrays((own_state,), {}, counts, flags)
    plan = StepPlan(rule, [group], [0], [p], [kernel], arrays, counter, 0, ["g"], storage=storage)
    plan.refresh()
    plan.table.full_step(g, 1.0, inf, inf, False, False, False, plan.prepass, plan.second_scalars)
    return dict(own_state.scalars)


def _encoded(name: str, given: Any, kind: str | None, p: Array) -> Encoded:
    """Return a state array of fewer bits as the step table takes it, or raise an error."""
    is_bf16 = not isinstance(given, tuple)
    array, scales = (given, np.zeros(0, np.float32)) if is_bf16 else given
    storage = Storage(state_dtype="bfloat16" if is_bf16 else "int8")
    encoding = storage.encoding(kind, MIN_INT8_SIZE)
    dtypes = {"bfloat16": BFLOAT16, "signed8": np.dtype(np.int8), "unsigned8": np.dtype(np.uint8)}
    array = normalize(array)
    if not encoding or array.dtype != dtypes[encoding]:
        expected = f"float32, bfloat16 or codes of {dtypes[encoding]}" if encoding else "float32"
        raise TypeError(f"{name}: expected {expected}, got {dtype_name(array.dtype)}")
    if not same_layout(array, p):
        raise ValueError(f"{name}: expected shape and memory layout of p, {p.shape}, got {array.shape}")
    size = 0
    if not is_bf16:
        check_like(f"{name}[1]", scales, np.dtype(np.float32), (scales.size,))
        size = block_size(array, scales)
    check_memory(array, name)
    check_memory(scales, name)
    stored = memory_order(array).view(np.uint16 if is_bf16 else np.uint8)
    return Encoded(encoding, stored, scales, size, p)


sgd_ = compiled(reference.sgd_, optimizers.SGD)
momentum_ = compiled(reference.momentum_, optimizers.SGD, momentum="buf")
asgd_ = compiled(reference.asgd_, optimizers.ASGD)
rprop_ = compiled(reference.rprop_, optimizers.Rprop)
sign_sgd_ = compiled(reference.sign_sgd_, optimizers.SignSGD, momentum="buf")
lion_ = compiled(reference.lion_, optimizers.Lion)
adagrad_ = compiled(reference.adagrad_, optimizers.Adagrad)
adadelta_ = compiled(reference.adadelta_, optimizers.Adadelta)
ftrl_ = compiled(reference.ftrl_, optimizers.FTRL, initial_accumulator_value="accumulator")
rmsprop_ = compiled(reference.rmsprop_, optimizers.RMSprop, momentum="buf", centered="grad_avg")
adam_ = compiled(reference.adam_, optimizers.Adam, amsgrad="max_exp_avg_sq")
adamw_ = compiled(reference.adamw_, optimizers.AdamW, amsgrad="max_exp_avg_sq")
adamax_ = compiled(reference.adamax_, optimizers.Adamax)
nadam_ = compiled(reference.nadam_, optimizers.NAdam)
radam_ = compiled(reference.radam_, optimizers.RAdam)
adabelief_ = compiled(reference.adabelief_, optimizers.AdaBelief)
yogi_ = compiled(reference.yogi_, optimizers.Yogi)
adopt_ = compiled(reference.adopt_, optimizers.ADOPT)
ademamix_ = compiled(reference.ademamix_, optimizers.AdEMAMix)
adan_ = compiled(reference.adan_, optimizers.Adan)
lars_ = compiled(reference.lars_, optimizers.LARS)
lamb_ = compiled(reference.lamb_, optimizers.LAMB)
prodigy_ = compiled(reference.prodigy_, optimizers.Prodigy)
sgd_schedule_free_ = compiled(reference.sgd_schedule_free_, optimizers.SGDScheduleFree)
adamw_schedule_free_ = compiled(reference.adamw_schedule_free_, optimizers.AdamWScheduleFree)
adafactor_ = compiled(reference.adafactor_, optimizers.Adafactor)
muon_ = compiled(reference.muon_, optimizers.Muon)
