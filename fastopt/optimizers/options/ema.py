"""``ema=``: an exponential moving average of the parameters, or their stochastic weight average."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastopt.optimizers.hyperparameters import UP_TO_ONE, check_number, evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastopt._core.typing import Array


class EMA:
    """Decay rate of the average, which may be a schedule such as `fastopt.schedules.SWA`."""

    def __init__(self, decay: Any) -> None:
        self.scheduled: bool = callable(decay)
        self._decay = decay if self.scheduled else check_number("ema", decay)

    def decay(self, step: int) -> float:
        """Decay rate after `step` finished steps."""
        return float(evaluate("ema", self._decay, step, UP_TO_ONE))


def swap(arrays: Sequence[Array], averages: Sequence[Array]) -> None:
    """Exchange the parameters and their averages in place."""
    for array, average in zip(arrays, averages, strict=True):
        saved = array.copy()
        array[...] = average
        average[...] = saved
