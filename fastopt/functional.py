"""Update rules as functions: one compiled step on raw arrays, in place.

Each function has the signature and the documentation of the function in `fastopt.reference`, which is plain
NumPy, and gives the same bits (Adafactor and Muon agree up to rounding). Use the functions when you keep the
state arrays yourself; the classes in `fastopt` keep them for you and add schedules, parameter groups and
gradient clipping.

The arrays of a call are float32 or float64, C-contiguous, writeable and of one dtype; they must not share
memory. A gradient in another layout is copied.
"""

from __future__ import annotations

import functools
import inspect
from math import inf
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from fastopt import optimizers, reference
from fastopt._core.pytree import flatten
from fastopt._core.step_table import NEW_STATE, StepCounter
from fastopt.optimizers.groups import Group
from fastopt.optimizers.hyperparameters import Hyperparameters
from fastopt.optimizers.parameter_docs import FUNCTION, complete
from fastopt.optimizers.plan import StepPlan
from fastopt.optimizers.state import Scalars, State, StateArrays
from fastopt.optimizers.state_dict import check_like, check_scalar_state, check_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastopt._core.typing import Array
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
    nothing has been changed.

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
    signature = inspect.signature(function)
    keywords = [x.name for x in signature.parameters.values() if x.kind is x.KEYWORD_ONLY]
    # A function may lack hyperparameters that its kernel does not use.
    options = inspect.signature(optimizer).parameters.values()
    defaults = {x.name: x.default for x in options if x.default is not x.empty}
    defaults["independent_weight_decay"] = 0.0

    @functools.wraps(function)
    def update(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{function.__name__}(): {error}") from None
        bound.apply_defaults()
        arguments = bound.arguments
        step = check_steps("step", arguments.pop("step", 1))
        if step < 1:
            raise ValueError("step: expected a positive integer, got 0")
        rule = optimizer.RULE
        hyperparameters = defaults | {
            name: rule.evaluate(name, rule.check_hyperparameter(name, arguments.pop(name)), step - 1)
            for name in keywords if name != "step"
        }
        p, g, numbers = arguments.pop("p"), arguments.pop("g"), arguments.pop("numbers", None)
        given = {name: array for name, array in arguments.items() if array is not None}
        flatten({"p": p, **given}, "arrays")
        enabled = {name: array in given for name, array in enabled_by.items()}
        for name, array in enabled_by.items():
            if hyperparameters[name] and not enabled[name]:
                raise ValueError(f"{array}: expected an array with {name}={hyperparameters[name]}, got None")
            if name not in keywords:
                is_number = name in rule.RANGES
                hyperparameters[name] = float(enabled[name]) if is_number else enabled[name]
        _step(rule, hyperparameters, enabled, p, g, given, numbers, step)

    update.__module__ = __name__
    sections = _SECTIONS.format(optimizer.__name__, function.__name__)
    update.__doc__ = complete(function.__doc__ or "", function, FUNCTION, sections)
    return update


def _step(
    rule: type[Rule], hyperparameters: dict[str, Any], enabled: dict[str, bool], p: Array, g: Array,
    given: dict[str, Array], numbers: dict[str, float] | None, step: int,
) -> None:
    """Take one step on one array: a step plan with a single array, used once."""
    if g is None:
        raise TypeError("g: expected a NumPy array, got NoneType")
    counter = StepCounter(step - 1)
    group = Group(p, hyperparameters, rule, counter)
    rule.check(group.raw())
    selected = Hyperparameters(hyperparameters | enabled)
    kernel = rule.kernel(selected)
    if rule.kernel_for(selected, p) != kernel:
        raise ValueError(f"p: expected a matrix, got {p.ndim} axes")
    shapes = {
        name if name in given else _ARGUMENT_OF.get(name, name): shape
        for name, shape in rule.state_shapes(kernel, p).items()
    }
    if shapes.keys() != given.keys():
        expected, got = ", ".join(shapes) or "none", ", ".join(given) or "none"
        raise ValueError(f"p: expected the state arrays {expected} for shape {p.shape}, got {got}")
    state = {name: given[name] for name in shapes}
    for name, shape in shapes.items():
        check_like(name, state[name], p.dtype, shape)
    scalars = rule.SCALAR_STATE | (numbers or {})
    check_scalar_state("numbers", scalars, rule.SCALAR_STATE)
    counts, flags = np.array([step - 1]), np.array([NEW_STATE if step == 1 else 0], np.uint8)
    own_state = State(state, counts, flags, 0)
    own_state.scalars_cell = Scalars(scalars)
    arrays = StateArrays((own_state,), {}, counts, flags)
    plan = StepPlan(rule, [group], [0], [p], [kernel], arrays, counter, 0, ["g"])
    plan.refresh()
    plan.table.full_step(g, 1.0, inf, inf, False, False, False, plan.prepass, plan.second_scalars)
    if numbers is not None:
        numbers.update(own_state.scalars)


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
