"""``ema=``: an exponential moving average of the parameters, or their stochastic weight average."""

from __future__ import annotations

from typing import Any

from fastopt.optimizers.hyperparameters import UP_TO_ONE, check_number, evaluate
from fastopt.optimizers.options.base import Option


class EMA(Option):
    """Decay rate of the average, which may be a schedule such as `fastopt.schedules.SWA`.

    A schedule with a method ``decay(step, joined)`` also gets the number of steps that the optimizer had
    taken before the parameter was added.
    """

    name = "ema"

    def __init__(self, decay: Any) -> None:
        self.is_scheduled = callable(decay)
        self._decay = decay if callable(decay) else check_number("ema", decay)
        if callable(decay) and hasattr(decay, "state_dict") and decay.state_dict():
            raise ValueError(f"ema: expected a number or a schedule without a state, got {decay!r}")

    def scalar(self, steps: int, count: int) -> float:
        decay = self._decay
        if callable(getattr(decay, "decay", None)):
            return float(check_number("ema", decay.decay(steps, steps - count), UP_TO_ONE))
        return float(evaluate("ema", decay, steps, UP_TO_ONE))
