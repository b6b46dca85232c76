"""The base class of the schedules, which checks their arguments, and the constant schedule."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from fastopt._core.validation import check_choice, check_float, check_int


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
    items = _check_sequence(name, value, "integers")
    milestones = tuple(nonnegative_int(f"{name}[{index}]", item) for index, item in enumerate(items))
    if list(milestones) != sorted(milestones):
        raise ValueError(f"{name}: expected increasing order, got {value!r}")
    return milestones


def _check_schedule(name: str, value: Any) -> Any:
    if callable(value):
        return value
    try:
        return Constant(nonnegative(name, value))
    except TypeError:
        raise TypeError(
            f"{name}: expected a number or a schedule (a callable of the step), got {value!r}"
        ) from None


def _check_schedules(name: str, value: Any) -> tuple[Any, ...]:
    items = _check_sequence(name, value, "numbers or schedules")
    if not items:
        raise ValueError(f"{name}: expected at least one schedule, got {value!r}")
    return tuple(_check_schedule(f"{name}[{index}]", item) for index, item in enumerate(items))


def _check_lengths(name: str, value: Any) -> tuple[int, ...]:
    items = _check_sequence(name, value, "integers")
    return tuple(_positive_int(f"{name}[{index}]", item) for index, item in enumerate(items))


def _check_sequence(name: str, value: Any, content: str) -> tuple[Any, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of {content}, got {value!r}") from None


nonnegative = partial(check_float, low=0.0)
nonnegative_int = partial(check_int, least=0)
_positive = partial(check_float, low=0.0, open_low=True)
_positive_int = partial(check_int, least=1)

# The fields of all schedules; a field has the same meaning in each schedule that has it.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("lr", "max_lr", "min_lr", "decay", "threshold", "eps"), nonnegative),
    **dict.fromkeys(("gamma", "power", "div_factor", "final_div_factor"), _positive),
    **dict.fromkeys(
        ("start", "patience", "cooldown", "warmup_steps", "decay_steps"), nonnegative_int
    ),
    **dict.fromkeys(("steps", "step_size", "multiplier", "every"), _positive_int),
    **dict.fromkeys(("start_factor", "pct_start"), _check_fraction),
    "factor": _check_reduction,
    "milestones": _check_milestones,
    "then": _check_schedule,
    "schedules": _check_schedules,
    "lengths": _check_lengths,
    "mode": partial(check_choice, choices=("min", "max")),
    "threshold_mode": partial(check_choice, choices=("rel", "abs")),
    "shape": partial(check_choice, choices=("1-sqrt", "linear", "cosine")),
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
        raise TypeError(f"step: expected an integer, got {step!r}") from None
    if step < 0:
        raise ValueError(f"step: expected the number of finished steps, at least 0, got {step}")
    return step


def power(base: float, exponent: float) -> float:
    """``base ** exponent`` for a positive base; infinity or 0 in place of an OverflowError."""
    try:
        return float(base**exponent)
    except OverflowError:
        return 1.0 if base == 1.0 else math.inf if base > 1.0 else 0.0


def report_to(schedules: Iterable[Any], metric: float) -> None:
    """Call ``report(metric)`` once on every schedule that has it, also where wrappers hold it."""
    for schedule in {id(leaf): leaf for each in schedules for leaf in _leaves(each)}.values():
        if hasattr(schedule, "report"):
            schedule.report(metric)


def report_to_optimizer(optimizer: Any, metric: float) -> None:
    """Call ``report(metric)`` once on every schedule of an optimizer's hyperparameters that has it."""
    hyperparameters: list[Any] = []
    for group in getattr(optimizer, "groups", ()):
        for name, hyperparameter in group.items():
            if name != "params":
                hyperparameters += hyperparameter if isinstance(hyperparameter, tuple) else [hyperparameter]
    report_to(hyperparameters, metric)


def _leaves(schedule: Any) -> Iterator[Any]:
    """Schedules inside of wrappers, at any depth; a schedule that wraps none itself."""
    if not isinstance(schedule, Wrapper):
        yield schedule
        return
    for wrapped in schedule.wrapped().values():
        yield from _leaves(wrapped)


class Wrapper(Checked):
    """Base of the schedules that evaluate other schedules: the state is that of the others."""

    def wrapped(self) -> dict[str, Any]:
        """Return the other schedules by name."""
        raise NotImplementedError

    def _at(self, step: int) -> tuple[Any, int, float]:
        """Return the schedule that is followed at a step, its own step, and a factor of its value."""
        raise NotImplementedError

    def __call__(self, step: int) -> float:
        schedule, own_step, factor = self._at(check_step(step))
        value: float = schedule(own_step) * factor
        return value

    def decay(self, step: int, joined: int) -> float:
        """Decay rate of an EMA, see `SWA.decay`."""
        schedule, own_step, factor = self._at(check_step(step))
        if not callable(getattr(schedule, "decay", None)):
            return self(step)
        value: float = schedule.decay(own_step, max(joined - (step - own_step), 0)) * factor
        return value

    def report(self, metric: float) -> None:
        """Pass a metric to every wrapped schedule that has a method `report`, such as `ReduceOnPlateau`.

        All of them receive it, including those that do not determine the current value.

        Parameters
        ----------
        metric : float
            The monitored metric, such as the validation loss.
        """
        report_to([self], metric)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the wrapped schedules that have a state, by name."""
        return {name: schedule.state_dict() for name, schedule in self._stateful().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict` of a schedule with the same arguments.

        If `state` has wrong keys or values, the schedule is unchanged.
        """
        stateful = self._stateful()
        if not isinstance(state, Mapping) or set(state) != set(stateful):
            raise ValueError(f"state: expected the keys {sorted(stateful)}, got {state!r}")
        for name, schedule in stateful.items():
            copy.deepcopy(schedule).load_state_dict(state[name])
        for name, schedule in stateful.items():
            schedule.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        return {
            name: each for name, each in self.wrapped().items()
            if (each._stateful() if isinstance(each, Wrapper) else hasattr(each, "state_dict"))
        }


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
