"""Hyperparameters: valid ranges, schedules, and the values of one step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fastopt._core.validation import to_float

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastopt._core.typing import Bounds, Ranges, ScalarState

# Half-open ranges [low, high), one per entry of a pair or triple. NaN is in none of them; a third element
# None means that the value may be None. Optimizers with other ranges define `Rule.RANGES`.
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
UP_TO_ONE = (0.0, math.nextafter(1.0, 2.0))
# Hyperparameters that are read before the first step only.
UNSCHEDULED = ("initial_accumulator_value", "d0")


def check_number(name: str, value: Any, bounds: Bounds | None = None) -> Any:
    """Return `value` as a float, or as None where allowed; raise if it is outside the range of `name`."""
    bounds = bounds or RANGES[name]
    if value is None and len(bounds) > 2:
        return None
    low, high = bounds[:2]
    if type(value) is float and low <= value < high and value != -math.inf:
        return value  # the usual case, quickly
    number = to_float(name, value)
    if not low <= number < high or math.isinf(number):
        raise ValueError(f"{name}: expected a finite number in [{low:g}, {high:g}), got {value!r}")
    return number


def check_number_or_schedule(name: str, value: Any, bounds: Bounds) -> Any:
    """Return a schedule as it is; check any other value with `check_number`."""
    return value if callable(value) and name not in UNSCHEDULED else check_number(name, value, bounds)


def evaluate(name: str, value: Any, step: int, bounds: Bounds | None = None) -> Any:
    """Value of a hyperparameter: schedules are called with the number of finished steps.

    An error names the hyperparameter and the step.
    """
    if not callable(value):
        if not isinstance(value, tuple):
            return value
        return tuple(evaluate(name, v, step, b) for v, b in zip(value, bounds or RANGES[name], strict=True))
    try:
        number = value(step)
    except Exception as error:
        error.add_note(f"Raised by the schedule of {name}, {value!r}, at step {step}")
        raise
    try:
        return check_number(name, number, bounds)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} at step {step} from the schedule {value!r}") from None


def is_schedule(value: Any) -> bool:
    return callable(value) or (isinstance(value, tuple) and any(map(callable, value)))


class Hyperparameters:
    """Hyperparameters of a group as attributes, which are faster to read than items of a dict."""

    convention = "torch"  # of optimizers without the argument

    # Attributes that are not a float, and those that the step plan adds.
    betas: tuple[float, ...]
    etas: tuple[float, ...]
    step_sizes: tuple[float, ...]
    ns_coefficients: tuple[float, float, float]
    adamw_betas: tuple[float, ...]
    eps: Any  # a pair for Adafactor
    clip_exp: float | None
    growth_rate: float | None
    adjust_lr_fn: str | None
    bias_correction: bool
    centered: bool
    maximize: bool
    kernel: str
    is_new: bool
    scalar_state: ScalarState
    scalar_state_before: ScalarState
    sums: tuple[float, ...] | None
    totals: tuple[float, ...] | None
    size: int

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> float: ...

    def recorded(self) -> RecordedHyperparameters:
        """The same hyperparameters, as an object that records which of them are read."""
        result = RecordedHyperparameters({})
        result.__dict__ = self.__dict__
        return result

    def cautious_scale(self) -> float:
        """Scale of a cautious update: size of the array over the number of elements that move."""
        return 1.0 if self.sums is None else 1.0 / max(self.sums[0] / max(self.size, 1), 1e-3)


class RecordedHyperparameters(Hyperparameters):
    """Hyperparameters that record their names in `names` when they are read."""

    __slots__ = ("names",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.names: set[str] = set()
        super().__init__(values)

    def __getattribute__(self, name: str) -> Any:
        if name not in ("names", "__dict__"):
            self.names.add(name)
        return super().__getattribute__(name)
