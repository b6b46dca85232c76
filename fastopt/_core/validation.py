"""Checks of arguments that several modules share. Each returns the checked value."""

from __future__ import annotations

import contextlib
import math
import sys
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastopt._core.formats import EXPECTED, PARAM_DTYPES, normalize
from fastopt._core.layout import byte_bounds, is_dense
from fastopt._core.runtime import address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

_T = TypeVar("_T")


def check_bool(name: str, value: Any) -> bool:
    """Return `value`, or raise if it is not a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


def check_int(name: str, value: Any, least: int) -> int:
    """Return `value` as an int, or raise if it is not an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value!r}")
    return int(value)


def to_float(name: str, value: Any) -> float:
    """Return a real number as a float, which may be infinite or NaN.

    A number is whatever ``float()`` accepts, except text: a Python, NumPy or torch scalar, an array or tensor
    with one element, a ``Decimal`` or a ``Fraction``. A bool or a complex number is refused.
    """
    if type(value) is float:
        return value
    number: Any = None if is_masked(value) else value
    if callable(getattr(number, "item", None)):  # arrays, tensors and their scalars
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # raised unless it has one element
            number = value.item()
    is_real = hasattr(number, "__float__") or hasattr(number, "__index__")
    if is_real and not isinstance(number, (bool, np.bool_, np.complexfloating)):
        try:
            return float(number)
        except OverflowError:
            return math.inf if number > 0 else -math.inf
        except (TypeError, ValueError, RuntimeError):  # not a single number
            pass
    shape = getattr(value, "shape", ())
    found = f"{type(value).__name__} of shape {tuple(shape)}" if shape else repr(value)
    raise TypeError(f"{name}: expected a number, got {found}")


def check_float(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> float:
    """Return `value` as a float, or raise if it is not a finite number in ``[low, high)``.

    With `open_low`, the interval is ``(low, high)``.
    """
    number = to_float(name, value)
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


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the closest known one, else all of them."""
    import difflib  # only for an error

    known = list(known)
    starting = [other for other in known if len(name) > 2 and other.startswith(name)]
    if closest := starting[:1] or difflib.get_close_matches(name, known, n=1):
        return f"did you mean {closest[0]!r}?"
    return f"expected one of {', '.join(known)}"


def is_masked(array: Any) -> bool:
    """Whether `array` is a masked array. `numpy.ma` takes time to import and may not be loaded."""
    ma = sys.modules.get("numpy.ma")
    return ma is not None and isinstance(array, ma.MaskedArray)


def check_updatable(array: Any, name: str) -> NDArray[Any]:
    """Return `array` without its subclass, or raise unless its dtype is one that kernels update.

    An array of bfloat16 is returned as a view, see `formats`.
    """
    if not isinstance(array, np.ndarray) or is_masked(array):
        raise TypeError(f"{name}: expected a NumPy array of {EXPECTED}, got {type(array).__name__}")
    viewed = normalize(array)
    if viewed.dtype not in PARAM_DTYPES or not viewed.dtype.isnative:
        found = array.dtype if array.dtype.isnative else f"{array.dtype.str} (another byte order)"
        raise TypeError(f"{name}: expected dtype {EXPECTED}, got {found}; {_remedy(array.dtype)}")
    return viewed if type(viewed) is np.ndarray else viewed.view(np.ndarray)


def _remedy(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "O":
        return "for an array of arrays pass list(params)"
    if dtype.kind in "iub":
        return "leave counters and masks out, or convert it with .astype(numpy.float32) and use the result"
    return "convert it with .astype(numpy.float32) and use the result as the parameter"


def check_memory(array: NDArray[Any], name: str) -> None:
    """Raise unless a kernel can update the memory of `array` in place."""
    if array.flags.carray:      # C-contiguous, aligned and writeable
        return
    if not is_dense(array):
        raise ValueError(
            f"{name}: expected an array without gaps in memory, got strides {array.strides} for shape "
            f"{array.shape}; make it one with numpy.ascontiguousarray and use the result"
        )
    if not array.flags.writeable:
        raise ValueError(f"{name}: expected a writeable array, got a read-only one; copy it first")
    if not array.flags.aligned:
        raise ValueError(
            f"{name}: expected an array aligned to its {array.itemsize}-byte items, "
            f"got address {address(array):#x}; copy it first"
        )


def check_disjoint(arrays: list[NDArray[Any]], paths: list[str], name: str) -> None:
    """Raise if two arrays share memory."""
    ranges = sorted((*byte_bounds(array), i) for i, array in enumerate(arrays) if array.size)
    reach: list[tuple[int, int]] = []   # of the arrays before that may still overlap the next
    farthest = 0
    for start, end, i in ranges:
        reach = [(e, k) for e, k in reach if e > start] if start < farthest else []
        farthest = max(farthest, end)
        for _, k in reach:
            if np.shares_memory(arrays[i], arrays[k]):
                first, second = sorted((i, k))
                what = "are the same array" if arrays[i] is arrays[k] else "share memory"
                raise ValueError(
                    f"{name}{paths[first]} and {name}{paths[second]} {what}: each element can be updated "
                    "only once per step; pass tied weights once, with the sum of their gradients"
                )
        reach.append((end, i))
