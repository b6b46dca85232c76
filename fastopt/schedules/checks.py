"""Checks of the arguments of schedules. Each takes name and value, and returns the checked value."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from fastopt._core.validation import check_choice, check_float, check_int

nonnegative = partial(check_float, low=0.0)
positive = partial(check_float, low=0.0, open_low=True)
nonnegative_int = partial(check_int, least=0)
positive_int = partial(check_int, least=1)


def fraction(name: str, value: Any) -> float:
    """Return `value` as a float, or raise if it is not between 0 and 1."""
    number = check_float(name, value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {value!r}")
    return number


def one_of(*choices: Any) -> Callable[[str, Any], Any]:
    """Return a check that accepts only `choices`."""
    return partial(check_choice, choices=choices)


def check_fields(schedule: Any, **checks: Callable[[str, Any], Any]) -> None:
    """Check the fields of a dataclass, and replace them by the checked values."""
    for name, check in checks.items():
        object.__setattr__(schedule, name, check(name, getattr(schedule, name)))  # it may be frozen


def check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    """Raise if `low` is larger than `high`."""
    if low > high:
        raise ValueError(f"{low_name}: expected at most {high_name}={high!r}, got {low!r}")


def check_step(step: int) -> int:
    """Return `step` as an int, or raise if it cannot be a number of finished steps."""
    try:
        step = operator.index(step)
    except TypeError:
        raise TypeError(f"step: expected a whole number, got {step!r}") from None
    if step < 0:
        raise ValueError(f"step: expected the number of finished steps, at least 0, got {step}")
    return step
