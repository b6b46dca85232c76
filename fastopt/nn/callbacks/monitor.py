"""Callbacks that monitor a metric of the history."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from fastopt._core.validation import check_choice, check_float
from fastopt.nn.callbacks.base import Callback, StatefulCallback

if TYPE_CHECKING:
    from fastopt.nn.typing import Logs, Mode

__all__ = ["MonitorCallback", "monitored_value", "resolve_mode"]

# Whether a smaller or a larger value is better, by the metric's name without "val_".
_MODES: dict[str, Literal["min", "max"]] = {"loss": "min", "accuracy": "max"}


class MonitorCallback(StatefulCallback):
    """A callback that compares a metric with its best value so far."""

    def __init__(self, monitor: str, mode: Mode, min_delta: float = 0.0) -> None:
        self.monitor = monitor
        self.mode = resolve_mode(mode, monitor)
        self.min_delta: float = abs(check_float("min_delta", min_delta))

    @property
    def worst(self) -> float:
        """The value that every finite value improves on."""
        return math.inf if self.mode == "min" else -math.inf

    @property
    def keeps_best_weights(self) -> bool:
        """Whether the callback stores weights when the metric improves."""
        return False

    def is_better(self, value: float, reference: float) -> bool:
        """Whether `value` improves on `reference` by more than `min_delta`; NaN never does."""
        if self.mode == "min":
            return value + self.min_delta < reference
        return value - self.min_delta > reference


def resolve_mode(mode: Mode, monitor: str) -> Literal["min", "max"]:
    """Return "min" or "max"; "auto" is inferred from the name of the metric."""
    check_choice("mode", mode, ("auto", "min", "max"))
    if mode != "auto":
        return mode
    if not isinstance(monitor, str) or monitor.removeprefix("val_") not in _MODES:
        raise ValueError(
            f"mode: cannot infer whether to minimize or maximize {monitor!r}; pass mode='min' or mode='max'"
        )
    return _MODES[monitor.removeprefix("val_")]


def monitored_value(callback: Callback, monitor: str, logs: Logs) -> float:
    """Return the value of the metric that a callback monitors, or raise if `logs` does not have it."""
    try:
        return logs[monitor]
    except KeyError:
        is_missing = monitor.startswith("val_") and not any(name.startswith("val_") for name in logs)
        hint = "; Trainer.fit needs validation_data for it" if is_missing else ""
        raise ValueError(
            f"monitor: {type(callback).__name__} finds no {monitor!r}, expected one of "
            f"{', '.join(sorted(logs))}{hint}"
        ) from None
