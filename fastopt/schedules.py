"""Schedules: learning rates, and any other hyperparameter, as plain callables of the step.

A schedule is called with the number of finished steps, 0 before the first one, and returns the
value to use for the next step::

    opt = fastopt.SGD(params, lr=schedules.Cosine(0.1, steps=10_000), momentum=0.9)

The optimizer calls it with ``opt.steps`` before every step, so nothing has to be told when to
advance; to decay by the epoch, multiply by the number of minibatches an epoch. Any function of the
step will do in a schedule's place. Those below check their arguments when they are made, print
themselves, compare equal when their fields do, and can be pickled. All but `ReduceOnPlateau` are
immutable and depend on the step alone, so a run that starts again at step ``n`` goes on exactly.

The first field of each is called ``lr``, as that is what most of them are used for; the
value may just as well be a momentum or a weight decay. Where ``torch.optim.lr_scheduler`` has the
same schedule the values agree with it, one of its "epochs" being one step here.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, cast

from fastopt._core.validation import check_int

__all__ = [
    "SWA",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "InverseTime",
    "LinearWarmup",
    "MultiStep",
    "OneCycle",
    "Polynomial",
    "ReduceOnPlateau",
    "Step",
]


@dataclass(frozen=True)
class Constant:
    """The same value at every step: ``lr``.

    Parameters
    ----------
    lr : float
        The value, at least 0.
    """

    lr: float

    def __post_init__(self) -> None:
        _check_fields(self, lr=_nonnegative)

    def __call__(self, step: int) -> float:
        _finished(step)
        return self.lr


@dataclass(frozen=True)
class Step:
    """Multiply by ``gamma`` every ``step_size`` steps: ``lr * gamma ** (t // step_size)``.

    Parameters
    ----------
    lr : float
        The value of the first ``step_size`` steps, at least 0.
    step_size : int
        Steps between two decays, at least 1.
    gamma : float, default 0.1
        Factor of a decay, above 0.

    Notes
    -----
    Agrees with ``torch.optim.lr_scheduler.StepLR``.
    """

    lr: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _check_fields(self, lr=_nonnegative, step_size=_count, gamma=_positive)

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** (_finished(step) // self.step_size)


@dataclass(frozen=True)
class MultiStep:
    """Multiply by ``gamma`` at each milestone: ``lr * gamma ** #{m in milestones: m <= t}``.

    Parameters
    ----------
    lr : float
        The value before the first milestone, at least 0.
    milestones : sequence of int
        Numbers of finished steps, in increasing order; one that stands twice counts twice.
    gamma : float, default 0.1
        Factor of a decay, above 0.

    Notes
    -----
    Agrees with ``torch.optim.lr_scheduler.MultiStepLR``.
    """

    lr: float
    milestones: Sequence[int]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _check_fields(self, lr=_nonnegative, milestones=_milestones, gamma=_positive)

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** bisect_right(self.milestones, _finished(step))


@dataclass(frozen=True)
class Exponential:
    """Multiply by ``gamma`` at every step: ``lr * gamma ** t``.

    Parameters
    ----------
    lr : float
        The value of the first step, at least 0.
    gamma : float
        Factor of every step, above 0. Above 1 the value grows, as in a search for the largest
        learning rate that still trains.

    Notes
    -----
    Agrees with ``torch.optim.lr_scheduler.ExponentialLR``.
    """

    lr: float
    gamma: float

    def __post_init__(self) -> None:
        _check_fields(self, lr=_nonnegative, gamma=_positive)

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** _finished(step)


@dataclass(frozen=True)
class InverseTime:
    """Decay with the inverse of time: ``lr / (1 + decay * t) ** power``.

    Parameters
    ----------
    lr : float
        The value of the first step, at least 0.
    decay : float
        Speed of the decay, at least 0: after ``1 / decay`` steps the divisor is ``2 ** power``.
    power : float, default 1.0
        Exponent, above 0. Powers above 0.5 and up to 1 satisfy the conditions under which
        stochastic approximation converges; 0.5 is the inverse square root.

    Notes
    -----
    H. Robbins and S. Monro, "A Stochastic Approximation Method", 1951; L. Bottou, "Stochastic
    Gradient Descent Tricks", 2012.
    """

    lr: float
    decay: float
    power: float = 1.0

    def __post_init__(self) -> None:
        _check_fields(self, lr=_nonnegative, decay=_nonnegative, power=_positive)

    def __call__(self, step: int) -> float:
        return self.lr / float((1.0 + self.decay * _finished(step)) ** self.power)


@dataclass(frozen=True)
class Polynomial:
    """Go down to ``min_lr`` in ``steps`` steps along a power of the time left, then stay there.

    ``min_lr + (lr - min_lr) * (1 - min(t, steps) / steps) ** power``

    Parameters
    ----------
    lr : float
        The value of the first step, at least 0.
    steps : int
        Steps until ``min_lr`` is reached, at least 1.
    power : float, default 1.0
        Exponent, above 0: 1 is a straight line.
    min_lr : float, default 0.0
        The last value, between 0 and `lr`.

    Notes
    -----
    Agrees with ``torch.optim.lr_scheduler.PolynomialLR`` where ``min_lr`` is 0.
    """

    lr: float
    steps: int
    power: float = 1.0
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        _check_fields(self, lr=_nonnegative, steps=_count, power=_positive, min_lr=_nonnegative)
        _check_order("min_lr", self.min_lr, "lr", self.lr)

    def __call__(self, step: int) -> float:
        left = 1.0 - min(_finished(step), self.steps) / self.steps
        return self.min_lr + (self.lr - self.min_lr) * float(left**self.power)


@dataclass(frozen=True)
class Cosine:
    """Go down to ``min_lr`` in ``steps`` steps along half a cosine (cosine annealing).

    ``min_lr + (lr - min_lr) * (1 + cos(pi * t / steps)) / 2``

    Parameters
    ----------
    lr : float
        The value of the first step, at least 0.
    steps : int
        Steps until ``min_lr`` is reached, at least 1. Training longer than this climbs back
        along the same curve to ``lr`` at ``2 * steps``, and so on.
    min_lr : float, default 0.0
        The least value, between 0 and `lr`.

    See Also
    --------
    CosineRestarts : jumps back to ``lr`` instead of climbing.

    Notes
    -----
    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017,
    equation 5. Agrees with ``torch.optim.lr_scheduler.CosineAnnealingLR``, the way back included.
    """

    lr: float
    steps: int
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        _check_fields(self, lr=_nonnegative, steps=_count, min_lr=_nonnegative)
        _check_order("min_lr", self.min_lr, "lr", self.lr)

    def __call__(self, step: int) -> float:
        return _half_cosine(self.lr, self.min_lr, _finished(step) / self.steps)


@dataclass(frozen=True)
class CosineRestarts:
    """Cosine annealing that starts again from ``lr`` whenever a cycle is over (SGDR).

    ``min_lr + (lr - min_lr) * (1 + cos(pi * t_cur / t_cycle)) / 2``, where ``t_cur`` counts the
    steps of the present cycle and ``t_cycle``, its length, is ``steps * multiplier ** cycle``.

    Parameters
    ----------
    lr : float
        The value each cycle starts with, at least 0.
    steps : int
        Length of the first cycle in steps, at least 1.
    multiplier : int, default 1
        How many times longer each cycle is than the one before it, at least 1.
    min_lr : float, default 0.0
        The value each cycle heads for, between 0 and `lr`.

    Notes
    -----
    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
    Agrees with ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts``.
    """

    lr: float
    steps: int
    multiplier: int = 1
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        _check_fields(self, lr=_nonnegative, steps=_count, multiplier=_count, min_lr=_nonnegative)
        _check_order("min_lr", self.min_lr, "lr", self.lr)

    def __call__(self, step: int) -> float:
        current, cycle = self._position(_finished(step))
        return _half_cosine(self.lr, self.min_lr, current / cycle)

    def _position(self, step: int) -> tuple[int, int]:
        """Steps since the last restart, and the length of the cycle they are in."""
        if self.multiplier == 1:
            return step % self.steps, self.steps
        # Whole numbers, and a logarithmic number of turns: no rounding at the restarts.
        cycle = self.steps
        while step >= cycle:
            step -= cycle
            cycle *= self.multiplier
        return step, cycle


@dataclass(frozen=True)
class LinearWarmup:
    """Rise along a straight line for ``steps`` steps, then follow another schedule.

    ``then(0) * (start_factor + (1 - start_factor) * t / steps)`` for ``t < steps``, and
    ``then(t - steps)`` afterwards: what follows begins at its own step 0.

    Parameters
    ----------
    steps : int
        Steps of the warm-up, at least 1.
    then : float or callable
        What follows: a number (held from then on) or a schedule.
    start_factor : float, default 1/3
        The part of ``then(0)`` to start with, between 0 and 1.

    Notes
    -----
    P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, section
    2.2. Agrees with ``LinearLR`` followed by another scheduler in a ``SequentialLR`` of
    ``torch.optim.lr_scheduler``.

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
        _check_fields(self, steps=_count, then=_schedule, start_factor=_fraction)

    def __call__(self, step: int) -> float:
        step = _finished(step)
        then = cast("Callable[[int], float]", self.then)    # a number has been made one
        if step >= self.steps:
            return then(step - self.steps)
        risen = self.start_factor + (1.0 - self.start_factor) * step / self.steps
        return then(0) * risen

    def state_dict(self) -> dict[str, Any]:
        """The state of what follows, if it keeps any (`ReduceOnPlateau` does); else empty."""
        then: Any = self.then
        return then.state_dict() if hasattr(then, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Hand `state`, which came from `state_dict`, to what follows.

        Raises
        ------
        ValueError
            If there is a state, and what follows keeps none.
        """
        then: Any = self.then
        if hasattr(then, "load_state_dict"):
            then.load_state_dict(state)
        elif state:
            raise ValueError(f"state: {then!r} keeps no state, but {dict(state)!r} came")


@dataclass(frozen=True)
class OneCycle:
    """One rise to ``max_lr`` and one long fall far below the start (the 1cycle policy).

    From ``max_lr / div_factor`` up to ``max_lr`` over the first ``pct_start`` of the steps, then
    down to ``max_lr / div_factor / final_div_factor``, which is reached at the last step and held.
    With ``three_phase`` the fall first mirrors the rise and only then goes all the way down.

    Parameters
    ----------
    max_lr : float
        The peak, at least 0.
    steps : int
        All steps of the training, at least 1.
    pct_start : float, default 0.3
        Part of the steps that rise, between 0 and 1 (0.5 with `three_phase`).
    anneal : {"cos", "linear"}, default "cos"
        Shape of each phase: half a cosine, or a straight line.
    div_factor : float, default 25.0
        The peak over the first value, above 0.
    final_div_factor : float, default 1e4
        The first value over the last, above 0.
    three_phase : bool, default False
        Whether to come back to the first value, as fast as it was left, before the final fall.

    Notes
    -----
    L. N. Smith and N. Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large
    Learning Rates", 2018. Agrees with ``torch.optim.lr_scheduler.OneCycleLR`` at all its steps. To
    cycle the momentum against it, give the optimizer's ``momentum`` a schedule of its own.
    """

    max_lr: float
    steps: int
    pct_start: float = 0.3
    anneal: Literal["cos", "linear"] = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False

    def __post_init__(self) -> None:
        _check_fields(
            self,
            max_lr=_nonnegative,
            steps=_count,
            pct_start=_fraction,
            anneal=_one_of(*_ANNEAL),
            div_factor=_positive,
            final_div_factor=_positive,
            three_phase=_one_of(False, True),
        )
        if self.three_phase and self.pct_start > 0.5:
            raise ValueError(
                f"pct_start: expected at most 0.5 with three_phase, got {self.pct_start!r}"
            )

    def __call__(self, step: int) -> float:
        step = min(_finished(step), self.steps - 1)
        begin = 0.0
        for phase in self._phases():
            if step <= phase[0]:
                break
            begin = phase[0]
        end, start_lr, end_lr = phase
        # A phase of no length at all is over as soon as it begins.
        done = (step - begin) / (end - begin) if end != begin else 1.0
        return _ANNEAL[self.anneal](start_lr, end_lr, done)

    def _phases(self) -> list[tuple[float, float, float]]:
        """The last step of each phase (it may fall between two steps) and its two values."""
        low = self.max_lr / self.div_factor
        rise = (self.pct_start * self.steps - 1, low, self.max_lr)
        last_step, last_lr = self.steps - 1, low / self.final_div_factor
        if not self.three_phase:
            return [rise, (last_step, self.max_lr, last_lr)]
        fall = (2 * self.pct_start * self.steps - 2, self.max_lr, low)
        return [rise, fall, (last_step, low, last_lr)]


@dataclass(frozen=True)
class SWA:
    """The weight of the past that makes an optimizer's `ema` a plain mean: stochastic weight averaging.

    ``fastopt.SGD(params, ema=SWA(start=9000, every=100))`` averages the parameters after steps 9100,
    9200, ... Up to the first of them the average is the parameters themselves. It is a weight for
    `ema` alone.

    Parameters
    ----------
    start : int, default 0
        Steps before averaging begins, at least 0.
    every : int, default 1
        Steps from one parameter vector that is averaged to the next, at least 1.

    References
    ----------
    Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018.
    """

    start: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        _check_fields(self, start=_whole, every=_count)

    def __call__(self, step: int) -> float:
        count, between = divmod(_finished(step) + 1 - self.start, self.every)
        if count < 1:
            return 0.0
        return 1.0 if between else (count - 1) / count


@dataclass
class ReduceOnPlateau:
    """Lower the value whenever a reported metric has stopped getting better.

    The only schedule here with a state: tell it how training goes with `report`, usually once an
    epoch with the validation loss. After more than ``patience`` reports in a row that were not
    better than the best one, the value becomes ``max(value * factor, min_lr)``. The optimizer keeps
    its state in ``opt.state_dict()``.

    Parameters
    ----------
    lr : float
        The value to begin with, at least 0.
    mode : {"min", "max"}, default "min"
        Whether a better metric is a smaller or a larger one.
    factor : float, default 0.1
        What to multiply by, above 0 and below 1.
    patience : int, default 10
        Reports without progress that are let pass, at least 0.
    threshold : float, default 1e-4
        How much better counts as better, at least 0.
    threshold_mode : {"rel", "abs"}, default "rel"
        Better than ``best * (1 - threshold)`` (``1 + threshold`` for "max") or than
        ``best - threshold`` (``best + threshold``).
    cooldown : int, default 0
        Reports after a reduction in which none is counted as bad, at least 0.
    min_lr : float, default 0.0
        The value is never reduced below this; at least 0.
    eps : float, default 1e-8
        A reduction by no more than this is not made; at least 0.

    Attributes
    ----------
    current_lr : float
        The value now.
    best : float
        The best metric reported.
    num_bad_reports : int
        Reports in a row that were not better.
    cooldown_left : int
        Reports left of the cooldown.

    Notes
    -----
    Agrees with ``torch.optim.lr_scheduler.ReduceLROnPlateau``, where `report` is called ``step``;
    as there, a metric of NaN is never better than the best.

    Examples
    --------
    >>> schedule = ReduceOnPlateau(0.5, factor=0.5, patience=1)
    >>> for loss in [1.0, 0.9, 0.9, 0.9]:
    ...     schedule.report(loss)
    >>> schedule(step=400)
    0.25
    """

    lr: float
    mode: Literal["min", "max"] = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8
    current_lr: float = field(init=False)
    best: float = field(init=False)
    num_bad_reports: int = field(init=False, default=0)
    cooldown_left: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        _check_fields(
            self,
            lr=_nonnegative,
            mode=_one_of("min", "max"),
            factor=_positive,
            patience=_whole,
            threshold=_nonnegative,
            threshold_mode=_one_of("rel", "abs"),
            cooldown=_whole,
            min_lr=_nonnegative,
            eps=_nonnegative,
        )
        if self.factor >= 1.0:
            raise ValueError(f"factor: expected a number below 1, got {self.factor!r}")
        self.current_lr = self.lr
        self.best = math.inf if self.mode == "min" else -math.inf

    def __call__(self, step: int) -> float:
        _finished(step)
        return self.current_lr

    def report(self, metric: float) -> None:
        """Take note of `metric`, and lower the value if it has not improved for long enough.

        Parameters
        ----------
        metric : float
            What is watched, such as the validation loss.

        Raises
        ------
        TypeError
            If `metric` is not a number.
        """
        try:
            metric = float(metric)
        except (TypeError, ValueError):
            raise TypeError(f"metric: expected a number, got {metric!r}") from None
        if self._is_better(metric):
            self.best = metric
            self.num_bad_reports = 0
        else:
            self.num_bad_reports += 1
        if self.cooldown_left > 0:
            self.cooldown_left -= 1
            self.num_bad_reports = 0
        if self.num_bad_reports > self.patience:
            self._reduce()
            self.cooldown_left = self.cooldown
            self.num_bad_reports = 0

    def state_dict(self) -> dict[str, Any]:
        """What `report` has changed so far: four numbers, by the names of the attributes."""
        return {name: getattr(self, name) for name in _PLATEAU_STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, which came from the `state_dict` of a schedule made alike.

        Raises
        ------
        ValueError
            If `state` has other keys than `state_dict` gives, or a value out of range; nothing is
            changed then.
        """
        if set(state) != set(_PLATEAU_STATE):
            raise ValueError(
                f"state: expected the keys {sorted(_PLATEAU_STATE)}, got {sorted(state)}"
            )
        checked = {name: check(name, state[name]) for name, check in _PLATEAU_STATE.items()}
        for name, value in checked.items():
            setattr(self, name, value)

    def _is_better(self, metric: float) -> bool:
        sign = 1.0 if self.mode == "max" else -1.0
        if self.threshold_mode == "rel":
            bar = self.best * (1.0 + sign * self.threshold)
        else:
            bar = self.best + sign * self.threshold
        return metric > bar if self.mode == "max" else metric < bar

    def _reduce(self) -> None:
        reduced = max(self.current_lr * self.factor, self.min_lr)
        if self.current_lr - reduced > self.eps:
            self.current_lr = reduced


def _half_cosine(start: float, end: float, done: float) -> float:
    """From `start` (`done` 0) to `end` (`done` 1) along half a cosine."""
    return end + (start - end) * (1.0 + math.cos(math.pi * done)) / 2.0


def _line(start: float, end: float, done: float) -> float:
    """From `start` (`done` 0) to `end` (`done` 1) along a straight line."""
    return start + (end - start) * done


_ANNEAL = {"cos": _half_cosine, "linear": _line}


def _finished(step: int) -> int:
    """`step` as a number of finished steps, refused where it cannot be one."""
    try:
        step = operator.index(step)
    except TypeError:
        raise TypeError(f"step: expected a whole number, got {step!r}") from None
    if step < 0:
        raise ValueError(f"step: expected the number of finished steps, at least 0, got {step}")
    return step


# Each check takes the name and the value of an argument, and returns the value to keep.


def _check_fields(schedule: Any, **checks: Callable[[str, Any], Any]) -> None:
    for name, check in checks.items():
        # The way a frozen dataclass itself sets its fields.
        object.__setattr__(schedule, name, check(name, getattr(schedule, name)))


def _check_order(low_name: str, low: float, high_name: str, high: float) -> None:
    if low > high:
        raise ValueError(f"{low_name}: expected at most {high_name}={high!r}, got {low!r}")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)


def _nonnegative(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{name}: expected a finite number, at least 0, got {value!r}")
    return number


def _positive(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")
    return number


def _fraction(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {value!r}")
    return number


def _whole(name: str, value: Any) -> int:
    return check_int(name, value, 0)


def _count(name: str, value: Any) -> int:
    return check_int(name, value, 1)


def _milestones(name: str, value: Any) -> tuple[int, ...]:
    try:
        items = tuple(value)
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of whole numbers, got {value!r}") from None
    numbers = tuple(_whole(f"{name}[{place}]", item) for place, item in enumerate(items))
    if list(numbers) != sorted(numbers):
        raise ValueError(f"{name}: expected increasing order, got {value!r}")
    return numbers


def _one_of(*choices: Any) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        # By type as well, as 1 == True; `in` would also compare arrays element by element.
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        raise ValueError(f"{name}: expected one of {list(choices)}, got {value!r}")

    return check


def _schedule(name: str, value: Any) -> Any:
    if callable(value):
        return value
    if isinstance(value, Real):
        return Constant(_nonnegative(name, value))
    raise TypeError(
        f"{name}: expected a number or a schedule (a callable of the step), got {value!r}"
    )


# The best metric may be any number, and is infinite before the first report.
_PLATEAU_STATE = {
    "current_lr": _nonnegative,
    "best": _number,
    "num_bad_reports": _whole,
    "cooldown_left": _whole,
}
