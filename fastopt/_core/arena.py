"""Memory that begins on a cache line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

_CACHE_LINE = 64  # bytes; an unaligned vector of this size takes two accesses


def aligned_zeros(n: int, dtype: DTypeLike) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a vector of n zeros that begins on a cache line."""
    nbytes = n * np.dtype(dtype).itemsize
    memory = np.zeros(nbytes + _CACHE_LINE, np.uint8)
    first = -memory.ctypes.data % _CACHE_LINE
    return memory[first : first + nbytes].view(dtype)
