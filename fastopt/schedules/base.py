"""The base class of the schedules, which checks their arguments, and the constant schedule."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from numbers import Real
from typing import Any

from fastopt._core.validation import check_choice, check_float, check_int


def check_any_float(name: str, value: Any) -> float:
    """Return `value` as a float, which may be infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def _check_fraction(name: str, value: Any) -> float:
    number = check_float(name, value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {value!r}")
    return number


def _check_reduction(name: str, value: Any) -> float:
    number = _positive(name, value)
    if number >= 1.0:
        raise ValueError(f"{name}: expected a number below 1, got {number!r}")
    return number


def _check_milestones(name: str, value: Any) -> tuple[int, ...]:
    try:
        items = tuple(value)
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of whole numbers, got {value!r}") from None
    milestones = tuple(nonnegative_int(f"{name}[{index}]", item) for index, item in enumerate(items))
    if list(milestones) != sorted(milestones):
        raise ValueError(f"{name}: expected increasing order, got {value!r}")
    return milestones


def _check_schedule(name: str, value: Any) -> Any:
    if callable(value):
        return value
    if isinstance(value, Real):
        return Constant(nonnegative(name, value))
    raise TypeError(f"{name}: expected a number or a schedule (a callable of the step), got {value!r}")


nonnegative = partial(check_float, low=0.0)
nonnegative_int = partial(check_int, least=0)
_positive = partial(check_float, low=0.0, open_low=True)
_positive_int = partial(check_int, least=1)

# The fields of all schedules; a field has the same meaning in each schedule that has it.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("lr", "max_lr", "min_lr", "decay", "threshold", "eps"), nonnegative),
    **dict.fromkeys(("gamma", "power", "div_factor", "final_div_factor"), _positive),
    **dict.fromkeys(("start", "patience", "cooldown"), nonnegative_int),
    **dict.fromkeys(("steps", "step_size", "multiplier", "every"), _positive_int),
    **dict.fromkeys(("start_factor", "pct_start"), _check_fraction),
    "factor": _check_reduction,
    "milestones": _check_milestones,
    "then": _check_schedule,
    "mode": partial(check_choice, choices=("min", "max")),
    "threshold_mode": partial(check_choice, choices=("rel", "abs")),
    "anneal": partial(check_choice, choices=("cos", "linear")),
    "three_phase": partial(check_choice, choices=(False, True)),
}


class Checked:
    """Base of the dataclasses whose fields are checked, and converted to int, float or tuple."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]    # the subclasses are dataclasses
            if field.init:
                value = _CHECKS[field.name](field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, value)     # the dataclass may be frozen


def check_step(step: int) -> int:
    """Return `step` as an int, or raise if it cannot be a number of finished steps."""
    try:
        step = operator.index(step)
    except TypeError:
        raise TypeError(f"step: expected a whole number, got {step!r}") from None
    if step < 0:
        raise ValueError(f"step: expected the number of finished steps, at least 0, got {step}")
    return step


@dataclass(frozen=True)
class Constant(Checked):
    """The same value at every step: ``lr``.

    Parameters
    ----------
    lr : float
        The value, at least 0.
    """

    lr: float

    def __call__(self, step: int) -> float:
        check_step(step)
        return self.lr
