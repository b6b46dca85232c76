"""Groups of parameters and their hyperparameters: what may be set, and what a schedule makes of it."""

from __future__ import annotations

import math
from collections import UserDict
from numbers import Real
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastopt._core.typing import Bounds, Params, Ranges
    from fastopt.optimizers.base import Optimizer

# Half-open ranges [low, high), one for each number of a pair or triple. A name means the same in every
# rule; where it cannot, the optimizer has `RANGES` of its own. NaN is in none of them; None behind a
# range means that there may be no number.
RANGES: Ranges = {
    "lr": (0.0, math.inf),
    "lr_decay": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "eps": (0.0, math.inf),
    "initial_accumulator_value": (0.0, math.inf),
    "momentum": (0.0, math.inf),
    "dampening": (-math.inf, math.inf),
    "rho": (0.0, 1.0),
    "momentum_decay": (0.0, math.inf),
    "etas": ((0.0, 1.0), (1.0, math.inf)),
    "step_sizes": ((0.0, math.inf), (0.0, math.inf)),
    "lambd": (0.0, math.inf),
    "t0": (0.0, math.inf),
    "beta": (0.0, math.inf),
    "l1": (0.0, math.inf),
    "l2": (0.0, math.inf),
    "clip_exp": (0.0, math.inf, None),
    "alpha_warmup": (0.0, math.inf),
    "beta3_warmup": (0.0, math.inf),
    "warmup_steps": (0.0, math.inf),
    "r": (0.0, math.inf),
    "weight_lr_power": (0.0, math.inf),
    "trust_coefficient": (0.0, math.inf),
    "d0": (0.0, math.inf),
    "d_coef": (0.0, math.inf),
    "growth_rate": (1.0, math.inf, None),
    "alpha": (0.0, 1.0),
    "betas": ((0.0, 1.0), (0.0, 1.0)),
    "independent_weight_decay": (0.0, 1.0),
    "unit_clip": (0.0, math.inf),
    "ema": (0.0, 1.0),
    "max_norm": (0.0, math.inf),
    "clip_value": (0.0, math.inf),
    "grad_scale": (-math.inf, math.inf),
}
# What is used before the first step only.
UNSCHEDULED = ("initial_accumulator_value", "d0")


def check_number(name: str, value: Any, bounds: Bounds | None = None) -> Any:
    """Return `value` as a float, or as None where that may be; raise if it is not in the range of `name`."""
    bounds = bounds or RANGES[name]
    if value is None and len(bounds) > 2:
        return None
    low, high = bounds[:2]
    if type(value) is float and low <= value < high and value != -math.inf:
        return value        # the usual case, quickly
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not low <= number < high or math.isinf(number):
        raise ValueError(f"{name}: expected a finite number in [{low:g}, {high:g}), got {value!r}")
    return number


def check_hyperparameter(name: str, value: Any, kind: type[Optimizer]) -> Any:
    """Return a hyperparameter as a group keeps it: a number, several, schedules, a word, a flag.

    `kind` is the class of the optimizer, whose `RANGES`, `CHOICES` and `CONVENTIONS` say what is right.
    """
    choices = kind.CONVENTIONS if name == "convention" else kind.CHOICES.get(name)
    if choices:
        if value not in tuple(choices):
            raise ValueError(f"{name}: expected one of {', '.join(map(str, choices))}, got {value!r}")
        return value
    if name not in kind.RANGES:
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")
        return bool(value)
    bounds = kind.RANGES[name]
    if not isinstance(bounds[0], tuple):
        return _number_or_schedule(name, value, bounds)
    if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != len(bounds):
        count = "a pair of" if len(bounds) == 2 else len(bounds)
        raise ValueError(f"{name}: expected {count} numbers, got {value!r}")
    return tuple(_number_or_schedule(name, v, b) for v, b in zip(value, bounds, strict=True))


def _number_or_schedule(name: str, value: Any, bounds: Bounds) -> Any:
    return value if callable(value) and name not in UNSCHEDULED else check_number(name, value, bounds)


def evaluate(name: str, value: Any, step: int, bounds: Bounds | None = None) -> Any:
    """A hyperparameter as a number: schedules are called with the number of finished steps."""
    if isinstance(value, tuple):
        return tuple(evaluate(name, v, step, b) for v, b in zip(value, bounds or RANGES[name], strict=True))
    return check_number(name, value(step), bounds) if callable(value) else value


def is_schedule(value: Any) -> bool:
    return callable(value) or (isinstance(value, tuple) and any(map(callable, value)))


class Hyperparameters:
    """A group's hyperparameters as attributes, which are quicker to read than a dict's items."""

    convention = "torch"    # of rules that speak no other dialect

    # What is neither a number nor a flag; and what `Job` and `Optimizer` add.
    betas: tuple[float, ...]
    etas: tuple[float, ...]
    step_sizes: tuple[float, ...]
    ns_coefficients: tuple[float, float, float]
    adamw_betas: tuple[float, ...]
    eps: Any    # of Adafactor, a pair
    clip_exp: float | None
    growth_rate: float | None
    adjust_lr_fn: str | None
    centered: bool
    maximize: bool
    rule: str
    numbers: dict[str, float]
    sums: tuple[float, ...] | None
    totals: tuple[float, ...] | None
    size: int

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    if TYPE_CHECKING:
        def __getattr__(self, name: str) -> float: ...

    def boost(self) -> float:
        """How much farther a cautious rule moves the numbers that it moves: size over their count."""
        return 1.0 if self.sums is None else 1.0 / max(self.sums[0] / max(self.size, 1), 1e-3)


class Flag:
    """Tells an optimizer, before a step, that its groups want a look.

    Attributes
    ----------
    raised : bool
        Something has changed, or is scheduled to.
    changed : bool
        Something has been set.
    """

    raised: bool = True
    changed: bool = True


class Group(UserDict[str, Any]):
    """Hyperparameters of some parameters, a dict that checks what is put into it.

    ``opt.groups[0]["lr"] = 1e-4`` takes effect at the next step.

    Attributes
    ----------
    kind : type
        The optimizer's class.
    stale : Flag
        The optimizer's, raised here when something is set.
    start : int
        Steps the optimizer had taken when the group was added: the group's own first comes after.
    numbers : dict of float
        What the rule carries from step to step beside its arrays, and ``coming``, what it will be after
        the coming step.
    now : Hyperparameters
        The numbers of the coming step.
    moving : list of str
        Names of the hyperparameters that are scheduled.
    """

    kind: type[Optimizer]
    stale: Flag
    start: int
    numbers: dict[str, float]
    coming: dict[str, float]
    now: Hyperparameters
    moving: list[str]
    data: dict[str, Any]

    def __init__(
        self, params: Params, hyperparameters: Mapping[str, Any], kind: type[Optimizer], stale: Flag,
        start: int,
    ) -> None:
        self.kind = kind
        self.numbers = self.coming = dict(kind.NUMBERS)
        self.stale = stale
        self.start = start
        self.data = {"params": params}
        for name, value in hyperparameters.items():
            self.data[name] = check_hyperparameter(name, value, kind)

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "params":
            raise ValueError("params: the parameters of a group are fixed; make another group")
        if name not in self.data:
            known = ", ".join(k for k in self.data if k != "params")
            raise ValueError(f"{name}: no such hyperparameter here, expected one of {known}")
        self.data[name] = check_hyperparameter(name, value, self.kind)
        self.stale.raised = self.stale.changed = True

    def __ior__(self, other: Any) -> Self:  # type: ignore[override, misc]
        self.update(other)
        return self

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError(f"{name}: a hyperparameter can be set, not deleted")

    def hyperparameters(self) -> dict[str, Any]:
        return {name: value for name, value in self.data.items() if name != "params"}

    def raw(self) -> Hyperparameters:
        """The hyperparameters as attributes, schedules as they are."""
        return Hyperparameters(self.hyperparameters())

    def schedules(self) -> list[str]:
        """Names of the hyperparameters that must be evaluated before each step."""
        return [name for name, value in self.hyperparameters().items() if is_schedule(value)]

    def at(self, step: int) -> Hyperparameters:
        """The hyperparameters as numbers at a step."""
        return Hyperparameters({name: self.evaluate(name, step) for name in self.hyperparameters()})

    def evaluate(self, name: str, step: int) -> Any:
        """A hyperparameter at a step: a number, several, a word or a flag."""
        return evaluate(name, self.data[name], step, self.kind.RANGES.get(name))
