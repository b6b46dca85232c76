"""Schedules that begin with a warmup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, cast

from fastopt.schedules.checks import (
    check_fields,
    check_step,
    fraction,
    nonnegative,
    one_of,
    positive,
    positive_int,
)
from fastopt.schedules.decay import Constant, half_cosine


@dataclass(frozen=True)
class LinearWarmup:
    """Increase linearly for ``steps`` steps, then follow another schedule.

    ``then(0) * (start_factor + (1 - start_factor) * t / steps)`` for ``t < steps``, and ``then(t - steps)``
    afterwards: the other schedule begins at its step 0.

    Parameters
    ----------
    steps : int
        Steps of the warmup, at least 1.
    then : float or callable
        Schedule after the warmup, or a constant value.
    start_factor : float, default 1/3
        Initial value as a fraction of ``then(0)``, between 0 and 1.

    Notes
    -----
    P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, section 2.2. Agrees
    with ``LinearLR`` followed by another scheduler in a ``SequentialLR`` of ``torch.optim.lr_scheduler``.

    Examples
    --------
    >>> schedule = LinearWarmup(4, then=Cosine(0.5, steps=100), start_factor=0.0)
    >>> [schedule(step) for step in range(5)]
    [0.0, 0.125, 0.25, 0.375, 0.5]
    """

    steps: int
    then: float | Callable[[int], float]
    start_factor: float = 1.0 / 3.0

    def __post_init__(self) -> None:
        check_fields(self, steps=positive_int, then=_check_schedule, start_factor=fraction)

    def __call__(self, step: int) -> float:
        step = check_step(step)
        then = cast("Callable[[int], float]", self.then)  # numbers were converted to Constant
        if step >= self.steps:
            return then(step - self.steps)
        return then(0) * (self.start_factor + (1.0 - self.start_factor) * step / self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of `then`, which is empty unless it is a `ReduceOnPlateau`."""
        then: Any = self.then
        return then.state_dict() if hasattr(then, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `then` from the result of `state_dict`.

        Raises
        ------
        ValueError
            If `state` is not empty and `then` has no state.
        """
        then: Any = self.then
        if hasattr(then, "load_state_dict"):
            then.load_state_dict(state)
        elif state:
            raise ValueError(f"state: expected an empty dict, as {then!r} has no state, got {dict(state)!r}")


def _check_schedule(name: str, value: Any) -> Any:
    if callable(value):
        return value
    if isinstance(value, Real):
        return Constant(nonnegative(name, value))
    raise TypeError(f"{name}: expected a number or a schedule (a callable of the step), got {value!r}")


@dataclass(frozen=True)
class OneCycle:
    """Increase to ``max_lr``, then anneal to far below the initial value (the 1cycle policy).

    The value rises from ``max_lr / div_factor`` to ``max_lr`` over the first ``pct_start`` of the steps,
    then falls to ``max_lr / div_factor / final_div_factor`` at the last step, and stays there. With
    ``three_phase`` it first falls to the initial value as fast as it rose, then to the final value.

    Parameters
    ----------
    max_lr : float
        Peak value, at least 0.
    steps : int
        Steps of the training run, at least 1.
    pct_start : float, default 0.3
        Fraction of the steps before the peak, between 0 and 1 (0.5 with `three_phase`).
    anneal : {"cos", "linear"}, default "cos"
        Shape of each phase: half a cosine, or linear.
    div_factor : float, default 25.0
        Ratio of the peak to the initial value, above 0.
    final_div_factor : float, default 1e4
        Ratio of the initial to the final value, above 0.
    three_phase : bool, default False
        Whether to return to the initial value before the final phase.

    Notes
    -----
    L. N. Smith and N. Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
    Rates", 2018. Agrees with ``torch.optim.lr_scheduler.OneCycleLR`` at all its steps. To cycle the momentum
    in the opposite direction, pass another schedule as the optimizer's ``momentum``.
    """

    max_lr: float
    steps: int
    pct_start: float = 0.3
    anneal: Literal["cos", "linear"] = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            max_lr=nonnegative,
            steps=positive_int,
            pct_start=fraction,
            anneal=one_of(*_ANNEAL),
            div_factor=positive,
            final_div_factor=positive,
            three_phase=one_of(False, True),
        )
        if self.three_phase and self.pct_start > 0.5:
            raise ValueError(f"pct_start: expected at most 0.5 with three_phase, got {self.pct_start!r}")

    def __call__(self, step: int) -> float:
        step = min(check_step(step), self.steps - 1)
        begin = 0.0
        for phase in self._phases():
            if step <= phase[0]:
                break
            begin = phase[0]
        end, start_lr, end_lr = phase
        # A phase of length 0 ends as soon as it begins.
        progress = (step - begin) / (end - begin) if end != begin else 1.0
        return _ANNEAL[self.anneal](start_lr, end_lr, progress)

    def _phases(self) -> list[tuple[float, float, float]]:
        """Return the last step, which can be fractional, and the first and last value of each phase."""
        low = self.max_lr / self.div_factor
        rise = (self.pct_start * self.steps - 1, low, self.max_lr)
        last_step, last_lr = self.steps - 1, low / self.final_div_factor
        if not self.three_phase:
            return [rise, (last_step, self.max_lr, last_lr)]
        fall = (2 * self.pct_start * self.steps - 2, self.max_lr, low)
        return [rise, fall, (last_step, low, last_lr)]


def _linear(start: float, end: float, progress: float) -> float:
    """Interpolate linearly from `start` (`progress` 0) to `end` (`progress` 1)."""
    return start + (end - start) * progress


_ANNEAL = {"cos": half_cosine, "linear": _linear}
