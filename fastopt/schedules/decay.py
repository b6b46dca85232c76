"""Schedules without warmup that depend on the step alone."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastopt.schedules.checks import (
    check_fields,
    check_order,
    check_step,
    nonnegative,
    nonnegative_int,
    positive,
    positive_int,
)


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
        check_fields(self, lr=nonnegative)

    def __call__(self, step: int) -> float:
        check_step(step)
        return self.lr


@dataclass(frozen=True)
class Step:
    """Multiply by ``gamma`` every ``step_size`` steps: ``lr * gamma ** (t // step_size)``.

    Parameters
    ----------
    lr : float
        Value of the first ``step_size`` steps, at least 0.
    step_size : int
        Steps between two decays, at least 1.
    gamma : float, default 0.1
        Decay factor, above 0.

    Notes
    -----
    Agrees with ``torch.optim.lr_scheduler.StepLR``.
    """

    lr: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, lr=nonnegative, step_size=positive_int, gamma=positive)

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** (check_step(step) // self.step_size)


@dataclass(frozen=True)
class MultiStep:
    """Multiply by ``gamma`` at each milestone: ``lr * gamma ** #{m in milestones: m <= t}``.

    Parameters
    ----------
    lr : float
        Value before the first milestone, at least 0.
    milestones : sequence of int
        Numbers of finished steps, in increasing order. A repeated milestone decays repeatedly.
    gamma : float, default 0.1
        Decay factor, above 0.

    Notes
    -----
    Agrees with ``torch.optim.lr_scheduler.MultiStepLR``.
    """

    lr: float
    milestones: Sequence[int]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, lr=nonnegative, milestones=_check_milestones, gamma=positive)

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** bisect_right(self.milestones, check_step(step))


def _check_milestones(name: str, value: Any) -> tuple[int, ...]:
    try:
        items = tuple(value)
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of whole numbers, got {value!r}") from None
    milestones = tuple(nonnegative_int(f"{name}[{index}]", item) for index, item in enumerate(items))
    if list(milestones) != sorted(milestones):
        raise ValueError(f"{name}: expected increasing order, got {value!r}")
    return milestones


@dataclass(frozen=True)
class Exponential:
    """Multiply by ``gamma`` at every step: ``lr * gamma ** t``.

    Parameters
    ----------
    lr : float
        Value of the first step, at least 0.
    gamma : float
        Factor per step, above 0. With a factor above 1 the value grows, as in a learning-rate range test.

    Notes
    -----
    Agrees with ``torch.optim.lr_scheduler.ExponentialLR``.
    """

    lr: float
    gamma: float

    def __post_init__(self) -> None:
        check_fields(self, lr=nonnegative, gamma=positive)

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** check_step(step)


@dataclass(frozen=True)
class InverseTime:
    """Decay inversely with time: ``lr / (1 + decay * t) ** power``.

    Parameters
    ----------
    lr : float
        Value of the first step, at least 0.
    decay : float
        Decay per step, at least 0. After ``1 / decay`` steps the divisor is ``2 ** power``.
    power : float, default 1.0
        Exponent, above 0. Exponents above 0.5 and up to 1 satisfy the convergence conditions of stochastic
        approximation; 0.5 is the inverse square root.

    Notes
    -----
    H. Robbins and S. Monro, "A Stochastic Approximation Method", 1951; L. Bottou, "Stochastic Gradient
    Descent Tricks", 2012.
    """

    lr: float
    decay: float
    power: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, lr=nonnegative, decay=nonnegative, power=positive)

    def __call__(self, step: int) -> float:
        return self.lr / float((1.0 + self.decay * check_step(step)) ** self.power)


@dataclass(frozen=True)
class Polynomial:
    """Decay to ``min_lr`` over ``steps`` steps with a power of the remaining time, then stay constant.

    ``min_lr + (lr - min_lr) * (1 - min(t, steps) / steps) ** power``

    Parameters
    ----------
    lr : float
        Value of the first step, at least 0.
    steps : int
        Steps until ``min_lr`` is reached, at least 1.
    power : float, default 1.0
        Exponent, above 0; 1 is linear decay.
    min_lr : float, default 0.0
        Final value, between 0 and `lr`.

    Notes
    -----
    Agrees with ``torch.optim.lr_scheduler.PolynomialLR`` if ``min_lr`` is 0.
    """

    lr: float
    steps: int
    power: float = 1.0
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, lr=nonnegative, steps=positive_int, power=positive, min_lr=nonnegative)
        check_order("min_lr", self.min_lr, "lr", self.lr)

    def __call__(self, step: int) -> float:
        remaining = 1.0 - min(check_step(step), self.steps) / self.steps
        return self.min_lr + (self.lr - self.min_lr) * float(remaining**self.power)


@dataclass(frozen=True)
class Cosine:
    """Anneal to ``min_lr`` over ``steps`` steps along half a cosine.

    ``min_lr + (lr - min_lr) * (1 + cos(pi * t / steps)) / 2``

    Parameters
    ----------
    lr : float
        Value of the first step, at least 0.
    steps : int
        Steps until ``min_lr`` is reached, at least 1. If training continues, the value rises along the same
        curve to ``lr`` at ``2 * steps``, and so on.
    min_lr : float, default 0.0
        Smallest value, between 0 and `lr`.

    See Also
    --------
    CosineRestarts : jumps back to ``lr`` instead of rising.

    Notes
    -----
    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, equation 5.
    Agrees with ``torch.optim.lr_scheduler.CosineAnnealingLR``, also after ``steps``.
    """

    lr: float
    steps: int
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, lr=nonnegative, steps=positive_int, min_lr=nonnegative)
        check_order("min_lr", self.min_lr, "lr", self.lr)

    def __call__(self, step: int) -> float:
        return half_cosine(self.lr, self.min_lr, check_step(step) / self.steps)


@dataclass(frozen=True)
class CosineRestarts:
    """Cosine annealing that restarts from ``lr`` after each cycle (SGDR).

    ``min_lr + (lr - min_lr) * (1 + cos(pi * t_cur / t_cycle)) / 2``, where ``t_cur`` is the number of steps
    since the last restart, and ``t_cycle = steps * multiplier ** cycle`` is the length of the cycle.

    Parameters
    ----------
    lr : float
        Value at the start of each cycle, at least 0.
    steps : int
        Length of the first cycle in steps, at least 1.
    multiplier : int, default 1
        Ratio of the length of a cycle to that of the previous one, at least 1.
    min_lr : float, default 0.0
        Value that each cycle approaches, between 0 and `lr`.

    Notes
    -----
    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017. Agrees with
    ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts``.
    """

    lr: float
    steps: int
    multiplier: int = 1
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self, lr=nonnegative, steps=positive_int, multiplier=positive_int, min_lr=nonnegative
        )
        check_order("min_lr", self.min_lr, "lr", self.lr)

    def __call__(self, step: int) -> float:
        current, cycle = self._position(check_step(step))
        return half_cosine(self.lr, self.min_lr, current / cycle)

    def _position(self, step: int) -> tuple[int, int]:
        """Return the number of steps since the last restart, and the length of the current cycle."""
        if self.multiplier == 1:
            return step % self.steps, self.steps
        # Integer arithmetic, so that restarts are not subject to rounding. The loop is logarithmic in step.
        cycle = self.steps
        while step >= cycle:
            step -= cycle
            cycle *= self.multiplier
        return step, cycle


@dataclass(frozen=True)
class SWA:
    """Decay rate that turns the EMA of an optimizer into stochastic weight averaging (SWA).

    ``fastopt.SGD(params, ema=SWA(start=9000, every=100))`` averages the parameters after steps 9100, 9200,
    ... with equal weights. Before the first of these steps the average equals the parameters. Use it for
    `ema` only.

    Parameters
    ----------
    start : int, default 0
        Steps before averaging begins, at least 0.
    every : int, default 1
        Steps between two averaged parameter vectors, at least 1.

    References
    ----------
    Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018.
    """

    start: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        check_fields(self, start=nonnegative_int, every=positive_int)

    def __call__(self, step: int) -> float:
        count, remainder = divmod(check_step(step) + 1 - self.start, self.every)
        if count < 1:
            return 0.0
        return 1.0 if remainder else (count - 1) / count


def half_cosine(start: float, end: float, progress: float) -> float:
    """Interpolate from `start` (`progress` 0) to `end` (`progress` 1) along half a cosine."""
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
