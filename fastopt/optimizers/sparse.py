"""Gradients of some rows: which parameter, in which flavor, and when a row without gradients rests."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fastopt._core.rows import MAX_DEFERRED_STEPS
from fastopt._core.scalar_math import power
from fastopt._core.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastopt._core.typing import AnyArray, Array

# Half a unit in the last place of 1, and what may be dropped of a row's way beside one of its steps.
_ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53}
_DROPPED = 0.25


def check_flavor(value: str | None, offered: tuple[str, ...]) -> str:
    """Return how rows without a gradient are treated, the first that is offered if none is asked for."""
    if value is None:
        return offered[0]
    if value not in offered:
        raise ValueError(f"sparse: expected one of {', '.join(offered)}, got {value!r}")
    return value


def place_of(param: AnyArray | int, arrays: Sequence[Array]) -> int:
    """The place of a parameter, which is given by itself or by that very place."""
    for k, array in enumerate(arrays):
        if array is param:
            return k
    if isinstance(param, np.ndarray):
        raise ValueError("param: expected one of the arrays of the optimizer, got another one")
    place = check_int("param", param, 0)
    if place >= len(arrays):
        raise ValueError(f"param: expected a place in [0, {len(arrays)}), got {place}")
    return place


@lru_cache
def steps_to_rest(ratio: float, dtype: str) -> int:
    r"""Steps without a gradient after which what is still to come of them does not count.

    The first moves a number by :math:`d`, the one :math:`j` later by at most
    :math:`d \sqrt{1 + j} q^j`, so that those from :math:`j = n` on come to less than
    :math:`d \sqrt{1 + n} q^n / (1 - \sqrt{1 + 1 / (1 + n)} q)`. This is brought below a quarter of a
    rounding error of :math:`d`.

    Parameters
    ----------
    ratio : float
        :math:`q \ge 0`.
    dtype : str
        "float32" or "float64".

    Returns
    -------
    int
        -1 if it takes more steps than any row may be behind.
    """
    if ratio == 0.0:
        return 0
    for n in range(MAX_DEFERRED_STEPS):
        shrink = math.sqrt(1.0 + 1.0 / (1 + n)) * ratio
        left = math.sqrt(1.0 + n) * power(ratio, n)
        if shrink < 1.0 and left < _DROPPED * _ROUNDING[dtype] * (1.0 - shrink):
            return n
    return -1


def rest_of(rest: tuple[float, tuple[float, ...]] | None) -> tuple[int, int, tuple[float, ...]]:
    """A rule's `rest` as the span table takes it."""
    if rest is None:
        return -1, -1, ()
    ratio, factors = rest
    return steps_to_rest(ratio, "float32"), steps_to_rest(ratio, "float64"), factors
