"""Memory that begins on a cache line: one vector, or staggered views of one block; copies into arrays."""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastopt._core.formats import encode
from fastopt._core.layout import with_layout
from fastopt._core.runtime import address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike

    from fastopt._core.typing import AnyArray, Array

_ALIGN = 64  # bytes of a cache line, and of the widest register
_PAGE = 4096  # bytes after which addresses map to the same sets of the first-level cache
_LARGE = 1 << 16  # bytes above which the offset within a page matters more than the waste of a page


def aligned_zeros(n: int, dtype: DTypeLike) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a vector of n zeros that begins on a cache line."""
    nbytes = n * np.dtype(dtype).itemsize
    memory = np.zeros(nbytes + _ALIGN, np.uint8)
    first = -address(memory) % _ALIGN
    return memory[first : first + nbytes].view(dtype)


View: TypeAlias = "tuple[tuple[int, ...] | None, np.dtype[Any]]"


def alloc_views(arrays: list[Array], views: Sequence[Sequence[View]]) -> list[list[Array]]:
    """Allocate zeros of the given shapes and dtypes for each array, in one block.

    A view with the shape None has the shape and the memory layout of the array, the others are C-contiguous.
    Every view begins on a cache line. NumPy requests huge pages for large blocks, so one block also
    provides these. Streams at the same offset within their pages evict each other from the cache:
    each large view begins a quarter of a page further on than the one before.
    """
    sizes = [
        [(a.size if shape is None else math.prod(shape)) * dtype.itemsize for shape, dtype in own]
        for a, own in zip(arrays, views, strict=True)
    ]
    reserved = [[_reserved(size) for size in own_sizes] for own_sizes in sizes]
    arena = np.zeros(sum(itertools.chain(*reserved)) + _ALIGN, np.uint8)
    base = address(arena)
    start = -base % _ALIGN
    result = []
    for array, own, own_sizes, own_reserved in zip(arrays, views, sizes, reserved, strict=True):
        own_views = []
        for k, (shape, dtype) in enumerate(own):
            size = own_sizes[k]
            first = start
            if size >= _LARGE:
                wanted = address(array) // _ALIGN * _ALIGN + (k + 1) * (_PAGE // 4)
                first += (wanted - base - start) % _PAGE
            vector = arena[first : first + size].view(dtype)
            if shape is None and not array.flags.c_contiguous:
                own_views.append(with_layout(vector, array))
            else:
                own_views.append(vector.reshape(array.shape if shape is None else shape))
            start += own_reserved[k]
        result.append(own_views)
    return result


def _reserved(size: int) -> int:
    """Bytes of the block that a view of `size` bytes may take."""
    return -(-size // _ALIGN) * _ALIGN + (_PAGE if size >= _LARGE else 0)


def copy_all(arrays: Sequence[AnyArray], values: Sequence[ArrayLike]) -> None:
    """Copy each of `values` into the array at the same index, in this order: all of them, or none.

    Nothing is copied if a value does not fit. The copies are made without executing Python code, so no signal
    handler runs between them.
    """
    converted = [
        np.broadcast_to(encode(value, array.dtype), array.shape)
        for array, value in zip(arrays, values, strict=True)
    ]
    deque(map(np.ndarray.__setitem__, arrays, itertools.repeat(...), converted), maxlen=0)
