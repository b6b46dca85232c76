"""Number formats of parameters, gradients and state, and conversions of whole arrays in NumPy.

The kernels compute in float32 or float64, the *computing dtype* of an array. An array of another format is
decoded tile by tile and encoded after the update (`codecs.pxd`).

NumPy has no bfloat16. Arrays of ``ml_dtypes.bfloat16`` are viewed as arrays of `BFLOAT16`, which holds the
same 16 bits, so nothing here needs ml_dtypes. Memory with bfloat16 of another library can be passed as
``array_of_uint16.view(BFLOAT16)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    AnyArray = NDArray[Any]     # `typing` imports `rows`, which imports this module

FLOAT16, FLOAT32, FLOAT64 = map(np.dtype, (np.float16, np.float32, np.float64))
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])

PARAM_DTYPES = (FLOAT32, FLOAT64, BFLOAT16, FLOAT16)
EXPECTED = "float32, float64, bfloat16 or float16"

# The numbers of `Format` in `span.pxd`.
_CODES = {FLOAT16: 1, FLOAT32: 2, FLOAT64: 3, BFLOAT16: 4}


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is that of ml_dtypes for bfloat16 in native byte order, or `BFLOAT16`."""
    return dtype == BFLOAT16 or (dtype.kind == "V" and dtype.name == "bfloat16" and dtype.isnative)


def normalize(array: AnyArray) -> AnyArray:
    """View an array of bfloat16 as one of `BFLOAT16`; return others unchanged."""
    return array.view(BFLOAT16) if array.dtype.kind == "V" and is_bfloat16(array.dtype) else array


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Name of a dtype in an error message."""
    return "bfloat16" if dtype == BFLOAT16 else str(dtype) if dtype.isnative else dtype.str


def computing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Dtype in which the kernels compute with an array."""
    return FLOAT64 if dtype == FLOAT64 else FLOAT32


def code(dtype: np.dtype[Any], computing: np.dtype[Any]) -> int:
    """Format of an array for kernels that compute in a dtype; 0 if it is that dtype."""
    return 0 if dtype == computing else _CODES[dtype]


def decode(array: AnyArray, dtype: np.dtype[Any] | None = None) -> AnyArray:
    """Return an array in its computing dtype, or in `dtype`; itself if it has that."""
    if array.dtype.kind == "V":
        bits = np.asarray(normalize(array).view(np.uint16).astype(np.uint32) << 16)     # also without axes
        array = bits.view(np.float32)
        return array if dtype is None else array.astype(dtype, copy=False)
    with np.errstate(over="ignore"):    # as in the kernels, an overflow is an infinity
        return array.astype(computing_dtype(array.dtype) if dtype is None else dtype, copy=False)


def join_split(high: AnyArray, low: AnyArray) -> AnyArray:
    """Return the float32 values of an array of `BFLOAT16` and of their low 16 bits."""
    bits = high.view(np.uint16).astype(np.uint32) << 16
    return np.asarray(bits + low.view(np.int16).astype(np.uint32)).view(np.float32)


def split(values: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Return float32 values as `BFLOAT16`, to nearest with ties away from zero, and their low 16 bits."""
    bits = values.view(np.uint32)
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    high = np.where(is_nan, bits >> 16 | 0x40, (bits + 0x8000) >> 16).astype(np.uint16)
    return high.view(BFLOAT16), np.where(is_nan, 0, bits).astype(np.uint16)


def encode(values: ArrayLike, dtype: np.dtype[Any]) -> AnyArray:
    """Return values as an array of a dtype, rounded to nearest."""
    if dtype != BFLOAT16 or getattr(values, "dtype", None) == BFLOAT16:
        return np.asarray(values, dtype)
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.asarray(np.where(is_nan, bits >> 16 | 0x40, rounded), np.uint16).view(BFLOAT16)
