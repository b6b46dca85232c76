"""Checks of arguments that several modules share. Each returns the checked value."""

from __future__ import annotations

import math
import sys
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_T = TypeVar("_T")


def check_bool(name: str, value: Any) -> bool:
    """Return `value`, or raise if it is not a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


def check_int(name: str, value: Any, least: int) -> int:
    """Return `value` as an int, or raise if it is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value!r}")
    return int(value)


def check_float(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> float:
    """Return `value` as a float, or raise if it is not a finite number in ``[low, high)``.

    With `open_low`, the interval is ``(low, high)``.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    is_above = low < number if open_low else low <= number
    if math.isfinite(number) and is_above and number < high:
        return number
    is_bounded = (low, high) != (-math.inf, math.inf)
    interval = f" in {'(' if open_low else '['}{low:g}, {high:g})" if is_bounded else ""
    raise ValueError(f"{name}: expected a finite number{interval}, got {value!r}")


def check_choice(name: str, value: _T, choices: Iterable[Any]) -> _T:
    """Return `value`, or raise if it is not one of `choices`."""
    choices = tuple(choices)
    if any(isinstance(value, type(choice)) and value == choice for choice in choices):
        return value
    raise ValueError(f"{name}: expected one of {', '.join(map(str, choices))}, got {value!r}")


def check_X_y(X_name: str, X: Any, y_name: str, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return samples and labels as arrays, or raise if they differ in length or have none.

    A sparse matrix of samples comes back in CSR format.
    """
    X, y = X.tocsr() if hasattr(X, "tocsr") else np.asarray(X), np.asarray(y)
    for name, values in ((X_name, X), (y_name, y)):
        if values.ndim == 0:
            raise ValueError(f"{name}: expected one entry a sample, got a single value")
    n = X.shape[0]
    if n != len(y):
        raise ValueError(f"{y_name}: expected {n} labels, as many as {X_name} has samples, got {len(y)}")
    if n == 0:
        raise ValueError(f"{X_name}: expected at least one sample, got none")
    return X, y


def is_masked(array: Any) -> bool:
    """Whether `array` is a masked array. `numpy.ma` takes time to import and may not be loaded."""
    ma = sys.modules.get("numpy.ma")
    return ma is not None and isinstance(array, ma.MaskedArray)
