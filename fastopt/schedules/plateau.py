"""A schedule that reacts to a metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastopt._core.validation import to_float
from fastopt.schedules.base import Checked, check_step, nonnegative, nonnegative_int


@dataclass
class ReduceOnPlateau(Checked):
    """Reduce the value when a metric has stopped improving.

    This is the only schedule with a state. Pass the metric to `report`, usually the validation loss once per
    epoch. After more than ``patience`` consecutive reports without an improvement, the value becomes
    ``max(value * factor, min_lr)``. The state is part of ``opt.state_dict()``.

    Parameters
    ----------
    lr : float
        Initial value, at least 0.
    mode : {"min", "max"}, default "min"
        Whether the metric is to be minimized or maximized.
    factor : float, default 0.1
        Factor of a reduction, above 0 and below 1.
    patience : int, default 10
        Consecutive reports without an improvement before a reduction, at least 0.
    threshold : float, default 1e-4
        Smallest change that counts as an improvement, at least 0.
    threshold_mode : {"rel", "abs"}, default "rel"
        An improvement is a metric below ``best - threshold * abs(best)`` ("rel") or ``best - threshold``
        ("abs"). With ``mode="max"``, it is a metric above the same expressions with ``+``.
    cooldown : int, default 0
        Reports after a reduction that are not counted, at least 0.
    min_lr : float, default 0.0
        Lower bound of the value, at least 0.
    eps : float, default 1e-8
        Reductions by at most this amount are skipped; at least 0.

    Attributes
    ----------
    current_lr : float
        Current value.
    best : float
        Best metric so far.
    num_bad_reports : int
        Consecutive reports without an improvement.
    cooldown_left : int
        Remaining reports of the cooldown.

    Notes
    -----
    Agrees with ``torch.optim.lr_scheduler.ReduceLROnPlateau``, whose ``step`` is called `report` here, for
    positive metrics. For negative metrics and a relative threshold, torch counts every metric that is equal
    to the best one as an improvement, and even slightly worse ones. As in torch, NaN is never an improvement.

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
        super().__post_init__()
        self.current_lr = self.lr
        self.best = math.inf if self.mode == "min" else -math.inf

    def __call__(self, step: int) -> float:
        check_step(step)
        return self.current_lr

    def report(self, metric: float) -> None:
        """Record a metric, and reduce the value if it has not improved for long enough.

        Parameters
        ----------
        metric : float
            The monitored metric, such as the validation loss.
        """
        metric = to_float("metric", metric)
        self.num_bad_reports += 1
        if self._is_better(metric):
            self.best = metric
            self.num_bad_reports = 0
        if self.cooldown_left > 0:
            self.cooldown_left -= 1
            self.num_bad_reports = 0
        if self.num_bad_reports > self.patience:
            reduced = max(self.current_lr * self.factor, self.min_lr)
            if self.current_lr - reduced > self.eps:
                self.current_lr = reduced
            self.cooldown_left = self.cooldown
            self.num_bad_reports = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes that `report` changes, by name."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict` of a schedule with the same arguments.

        If `state` has wrong keys or values, the schedule is unchanged.
        """
        if set(state) != set(_STATE):
            raise ValueError(f"state: expected the keys {sorted(_STATE)}, got {sorted(state)}")
        checked = {name: check(name, state[name]) for name, check in _STATE.items()}
        for name, value in checked.items():
            setattr(self, name, value)

    def _is_better(self, metric: float) -> bool:
        bar = self.best
        if math.isfinite(bar):
            change = self.threshold if self.mode == "max" else -self.threshold
            is_relative = self.threshold_mode == "rel"
            bar = bar * (1.0 + math.copysign(change, bar * change)) if is_relative else bar + change
        return metric > bar if self.mode == "max" else metric < bar


_STATE: dict[str, Callable[[str, Any], float]] = {
    "current_lr": nonnegative,
    "best": to_float,    # infinite before the first report
    "num_bad_reports": nonnegative_int,
    "cooldown_left": nonnegative_int,
}
