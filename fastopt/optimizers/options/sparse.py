"""``sparse=``: gradients of some rows of a parameter, and rows that catch up later."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fastopt._core.formats import dtype_name, normalize
from fastopt._core.layout import same_memory
from fastopt._core.rows import MAX_DEFERRED_STEPS
from fastopt._core.scalar_math import power
from fastopt._core.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastopt._core.typing import AnyArray, Array

# Half a unit in the last place of 1, and the fraction of it that a skipped movement may come to.
_ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53}
_NEGLIGIBLE = 0.25


def check_mode(value: str | None, supported: tuple[str, ...]) -> str:
    """Return how rows without a gradient are treated; the default is the first supported mode."""
    if value is None:
        return supported[0]
    if value not in supported:
        raise ValueError(f"sparse: expected one of {', '.join(supported)}, got {value!r}")
    return value


def check_dtypes(mode: str, arrays: Sequence[Array], paths: Sequence[str]) -> None:
    """Raise ValueError if rows that catch up later have 16 bits: each skipped step would round them."""
    for array, path in zip(arrays, paths, strict=True):
        if mode == "exact" and array.itemsize == 2:
            raise ValueError(
                f"sparse: 'exact' needs parameters of float32 or float64, got {dtype_name(array.dtype)} "
                f"for params{path}; use 'lazy' or 'dense'"
            )


def index_of(param: AnyArray | int, arrays: Sequence[Array]) -> int:
    """Index of a parameter that is given by its array or by that index."""
    for k, array in enumerate(arrays):
        if array is param:
            return k
    if isinstance(param, np.ndarray):
        param = normalize(param)
        for k, array in enumerate(arrays):
            if same_memory(array, param):   # a subclass, or another view
                return k
        raise ValueError("param: expected one of the arrays of the optimizer, got another one")
    index = check_int("param", param, 0)
    if index >= len(arrays):
        raise ValueError(f"param: expected an index in [0, {len(arrays)}), got {index}")
    return index


@lru_cache
def steps_to_rest(ratio: float, dtype: str) -> int:
    r"""Number of steps without a gradient after which later movements are negligible.

    The first step moves an element by :math:`d` and the one :math:`j` steps later by at most
    :math:`d \sqrt{1 + j} q^j`, so the steps from :math:`j = n` on sum to less than
    :math:`d \sqrt{1 + n} q^n / (1 - \sqrt{1 + 1 / (1 + n)} q)`. The result is the first :math:`n` for which
    this is below a quarter of a rounding error of :math:`d`.

    Parameters
    ----------
    ratio : float
        :math:`q \ge 0`.
    dtype : str
        "float32" or "float64".

    Returns
    -------
    int
        -1 if it takes more steps than a row may be behind.
    """
    if ratio == 0.0:
        return 0
    for n in range(MAX_DEFERRED_STEPS):
        shrink = math.sqrt(1.0 + 1.0 / (1 + n)) * ratio
        left = math.sqrt(1.0 + n) * power(ratio, n)
        if shrink < 1.0 and left < _NEGLIGIBLE * _ROUNDING[dtype] * (1.0 - shrink):
            return n
    return -1


def idle_steps(idle_decay: tuple[float, tuple[float, ...]] | None) -> tuple[int, int, tuple[float, ...]]:
    """Steps to rest in float32 and in float64, and the factors of a step, from `Rule.idle_decay`."""
    if idle_decay is None:
        return -1, -1, ()
    ratio, factors = idle_decay
    return steps_to_rest(ratio, "float32"), steps_to_rest(ratio, "float64"), factors
