"""``lookahead=(k, alpha)``: slow parameters that follow the fast ones every `k` steps."""

from __future__ import annotations

from typing import Any

from fastopt._core.validation import check_int
from fastopt.optimizers.hyperparameters import UP_TO_ONE, check_number
from fastopt.optimizers.options.base import Option


class Lookahead(Option):
    """Interval and step size of the slow parameters.

    References
    ----------
    Zhang, Lucas, Hinton, Ba, "Lookahead optimizer: k steps forward, 1 step back", NeurIPS 2019.
    """

    name = "lookahead"
    is_scheduled = True

    def __init__(self, value: Any) -> None:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(f"lookahead: expected a pair (k, alpha), got {value!r}")
        self._k = check_int("lookahead", value[0], 1)
        self._alpha = check_number("lookahead", value[1], UP_TO_ONE)

    def scalar(self, steps: int, count: int) -> float:
        """Fraction of the way that the slow parameters move; 0 between their steps."""
        return 0.0 if (count + 1) % self._k else self._alpha
