"""Schedules that depend on the step alone."""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastopt.schedules.base import Checked, Wrapper, check_step, power


@dataclass(frozen=True)
class Step(Checked):
    """Multiply by ``gamma`` every ``step_size`` steps: ``lr * gamma ** (t // step_size)``.

    Agrees with ``torch.optim.lr_scheduler.StepLR``.

    Parameters
    ----------
    lr : float
        Value of the first ``step_size`` steps, at least 0.
    step_size : int
        Steps between two decays, at least 1.
    gamma : float, default 0.1
        Decay factor, above 0.
    """

    lr: float
    step_size: int
    gamma: float = 0.1

    def __call__(self, step: int) -> float:
        return _scaled(self.lr, power(self.gamma, check_step(step) // self.step_size))


@dataclass(frozen=True)
class MultiStep(Checked):
    """Multiply by ``gamma`` at each milestone: ``lr * gamma ** #{m in milestones: m <= t}``.

    Agrees with ``torch.optim.lr_scheduler.MultiStepLR``.

    Parameters
    ----------
    lr : float
        Value before the first milestone, at least 0.
    milestones : sequence of int
        Numbers of finished steps, in increasing order. A repeated milestone decays repeatedly.
    gamma : float, default 0.1
        Decay factor, above 0.
    """

    lr: float
    milestones: Sequence[int]
    gamma: float = 0.1

    def __call__(self, step: int) -> float:
        return _scaled(self.lr, power(self.gamma, bisect_right(self.milestones, check_step(step))))


@dataclass(frozen=True)
class Exponential(Checked):
    """Multiply by ``gamma`` at every step: ``lr * gamma ** t``.

    Agrees with ``torch.optim.lr_scheduler.ExponentialLR``.

    Parameters
    ----------
    lr : float
        Value of the first step, at least 0.
    gamma : float
        Factor per step, above 0. With a factor above 1 the value grows, as in a learning-rate range test.
    """

    lr: float
    gamma: float

    def __call__(self, step: int) -> float:
        return _scaled(self.lr, power(self.gamma, check_step(step)))


@dataclass(frozen=True)
class InverseTime(Checked):
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

    def __call__(self, step: int) -> float:
        return self.lr / power(1.0 + self.decay * min(check_step(step), sys.float_info.max), self.power)


class _Annealing(Checked):
    """Base of the schedules from `lr` to a smaller `min_lr`."""

    lr: float
    min_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr: expected at most lr={self.lr!r}, got {self.min_lr!r}")


@dataclass(frozen=True)
class Polynomial(_Annealing):
    """Decay to ``min_lr`` over ``steps`` steps with a power of the remaining time, then stay constant.

    ``min_lr + (lr - min_lr) * (1 - min(t, steps) / steps) ** power``

    Agrees with ``torch.optim.lr_scheduler.PolynomialLR`` if ``min_lr`` is 0.

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
    """

    lr: float
    steps: int
    power: float = 1.0
    min_lr: float = 0.0

    def __call__(self, step: int) -> float:
        remaining = 1.0 - min(check_step(step), self.steps) / self.steps
        return self.min_lr + (self.lr - self.min_lr) * float(remaining**self.power)


@dataclass(frozen=True)
class Cosine(_Annealing):
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
    Agrees with ``torch.optim.lr_scheduler.CosineAnnealingLR``, even after ``steps``.
    """

    lr: float
    steps: int
    min_lr: float = 0.0

    def __call__(self, step: int) -> float:
        return _half_cosine(self.lr, self.min_lr, check_step(step) % (2 * self.steps) / self.steps)


@dataclass(frozen=True)
class CosineRestarts(_Annealing):
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

    def __call__(self, step: int) -> float:
        current, cycle = self._position(check_step(step))
        return _half_cosine(self.lr, self.min_lr, current / cycle)

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
class LinearWarmup(Wrapper):
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

    def _at(self, step: int) -> tuple[Any, int, float]:
        if step >= self.steps:
            return self.then, step - self.steps, 1.0
        return self.then, 0, self.start_factor + (1.0 - self.start_factor) * step / self.steps

    def wrapped(self) -> dict[str, Any]:
        return {"then": self.then}


@dataclass(frozen=True)
class Join(Wrapper):
    """Follow several schedules, one after the other.

    The first schedule is followed for ``lengths[0]`` steps, the second for ``lengths[1]`` steps, and so on;
    the last one has no length. Each begins at its own step 0.

    Parameters
    ----------
    schedules : sequence of float or callable
        The schedules, or constant values.
    lengths : sequence of int
        Steps of each schedule except the last, at least 1.

    Notes
    -----
    Agrees with ``torch.optim.lr_scheduler.SequentialLR``, which takes the milestones instead of the lengths.
    A `ReduceOnPlateau` receives all metrics, also those before its first step.

    Examples
    --------
    >>> schedule = Join([LinearWarmup(2, 0.4, 0.0), 0.4, Exponential(0.4, 0.5)], lengths=[2, 3])
    >>> [schedule(step) for step in range(8)]
    [0.0, 0.2, 0.4, 0.4, 0.4, 0.4, 0.2, 0.1]
    """

    schedules: Sequence[float | Callable[[int], float]]
    lengths: Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = len(self.schedules) - 1
        if len(self.lengths) != expected:
            raise ValueError(
                f"lengths: expected {expected} numbers, one for each schedule except the last, "
                f"got {self.lengths!r}"
            )

    def _at(self, step: int) -> tuple[Any, int, float]:
        for schedule, length in zip(self.schedules, self.lengths, strict=False):
            if step < length:
                return schedule, step, 1.0
            step -= length
        return self.schedules[-1], step, 1.0

    def wrapped(self) -> dict[str, Any]:
        return {f"schedules[{i}]": schedule for i, schedule in enumerate(self.schedules)}


@dataclass(frozen=True)
class WSD(_Annealing):
    """Warm up linearly, stay constant, then decay (warmup-stable-decay).

    The value rises from ``start_factor * lr`` to `lr` over the first `warmup_steps` steps, and decays from
    `lr` to `min_lr` over the last `decay_steps` of `steps` steps. Between them it is `lr`, after them
    `min_lr`.

    Parameters
    ----------
    lr : float
        Value of the stable phase, at least 0.
    steps : int
        Steps of the training run, at least 1.
    decay_steps : int
        Steps of the decay, usually 10 to 20 % of `steps`.
    warmup_steps : int, default 0
        Steps of the warmup.
    shape : {"1-sqrt", "linear", "cosine"}, default "1-sqrt"
        Shape of the decay. With ``x`` rising from 0 to 1 during it, the value is
        ``min_lr + (lr - min_lr) * f(x)``, where ``f(x)`` is ``1 - sqrt(x)``, ``1 - x`` or
        ``(1 + cos(pi * x)) / 2``.
    min_lr : float, default 0.0
        Final value, between 0 and `lr`.
    start_factor : float, default 0.0
        Initial value of the warmup as a fraction of `lr`, between 0 and 1. With 0, the first step does not
        move the parameters.

    Notes
    -----
    The stable phase does not depend on `steps`: a run can be continued from a state saved in it with a larger
    `steps`, and several runs of different lengths can share it.

    S. Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training
    Strategies", 2024; A. Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training
    Durations", NeurIPS 2024 (the shape "1-sqrt").

    Examples
    --------
    >>> schedule = WSD(0.4, steps=9, warmup_steps=2, decay_steps=4, shape="linear")
    >>> [round(schedule(step), 2) for step in range(11)]
    [0.0, 0.2, 0.4, 0.4, 0.4, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0]
    """

    lr: float
    steps: int
    decay_steps: int
    warmup_steps: int = 0
    shape: Literal["1-sqrt", "linear", "cosine"] = "1-sqrt"
    min_lr: float = 0.0
    start_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(
                f"decay_steps: expected at most steps - warmup_steps = {self.steps - self.warmup_steps}, "
                f"got {self.decay_steps}"
            )

    def __call__(self, step: int) -> float:
        step = check_step(step)
        if step < self.warmup_steps:
            return self.lr * (self.start_factor + (1.0 - self.start_factor) * (step / self.warmup_steps))
        decayed = step - (self.steps - self.decay_steps)
        if decayed < 0:
            return self.lr
        if decayed >= self.decay_steps:
            return self.min_lr
        x = decayed / self.decay_steps
        if self.shape == "cosine":
            return _half_cosine(self.lr, self.min_lr, x)
        return self.min_lr + (self.lr - self.min_lr) * (1.0 - (x if self.shape == "linear" else math.sqrt(x)))


@dataclass(frozen=True)
class OneCycle(Checked):
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
        super().__post_init__()
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
        if self.anneal == "cos":
            return _half_cosine(start_lr, end_lr, progress)
        return start_lr + (end_lr - start_lr) * progress

    def _phases(self) -> list[tuple[float, float, float]]:
        """Return the last step, which can be fractional, and the first and last value of each phase."""
        low = self.max_lr / self.div_factor
        rise = (self.pct_start * self.steps - 1, low, self.max_lr)
        last_step, last_lr = self.steps - 1, low / self.final_div_factor
        if not self.three_phase:
            return [rise, (last_step, self.max_lr, last_lr)]
        fall = (2 * self.pct_start * self.steps - 2, self.max_lr, low)
        return [rise, fall, (last_step, low, last_lr)]


@dataclass(frozen=True)
class SWA(Checked):
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

    def __call__(self, step: int) -> float:
        return self.decay(step, 0)

    def decay(self, step: int, joined: int) -> float:
        """Decay rate after `step` steps, for a parameter that was added after `joined` steps."""
        count, remainder = divmod(check_step(step) + 1 - self.start, self.every)
        count -= max(0, joined - self.start) // self.every
        if count < 1:
            return 0.0
        return 1.0 if remainder else (count - 1) / count


def _scaled(lr: float, factor: float) -> float:
    """``lr * factor``, where 0 times infinity is 0."""
    return lr * factor if lr else 0.0


def _half_cosine(start: float, end: float, progress: float) -> float:
    """Interpolate from `start` (`progress` 0) to `end` (`progress` 1) along half a cosine."""
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
