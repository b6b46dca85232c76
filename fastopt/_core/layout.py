"""Dense memory layouts: the elements of an array fill one block of memory, in any order of the axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastopt._core.runtime import address

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    AnyArray: TypeAlias = NDArray[Any]      # `typing` imports `rows`, which imports this module


def is_dense(array: AnyArray) -> bool:
    """Whether the elements of `array` fill one block of memory, each at an address of its own."""
    if array.flags.c_contiguous or array.size == 0:
        return True
    expected = array.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= n
    return True


def first_index(array: AnyArray) -> int:
    """Index of the first element of a dense array in the order of memory: 0 unless an axis is reversed."""
    if array.flags.c_contiguous or array.size == 0:
        return 0
    pairs = zip(array.strides, array.shape, strict=True)
    return sum((1 - n) * s // array.itemsize for s, n in pairs if s < 0)


def byte_bounds(array: AnyArray) -> tuple[int, int]:
    """Address of the first byte of an array, and that after its last one.

    NumPy's function of this name reads ``__array_interface__``, which crashes if memory runs out.
    """
    first = address(array, False)  # the lowest one, also if an axis is reversed
    if array.flags.c_contiguous or array.size == 0:
        return first, first + array.nbytes
    pairs = zip(array.shape, array.strides, strict=True)
    return first, first + sum((n - 1) * abs(stride) for n, stride in pairs) + array.itemsize


def same_layout(a: AnyArray, b: AnyArray) -> bool:
    """Whether two arrays have the same shape and order in memory."""
    if a.flags.c_contiguous and b.flags.c_contiguous:
        return a.shape == b.shape
    pairs = zip(a.strides, b.strides, a.shape, strict=True) if a.shape == b.shape else ()
    same = all(s * b.itemsize == t * a.itemsize for s, t, n in pairs if n > 1)
    return a.shape == b.shape and (a.size == 0 or same)


def same_memory(a: AnyArray, b: AnyArray) -> bool:
    """Whether two arrays are views of the same elements in the same order."""
    same_type = a.dtype == b.dtype and same_layout(a, b)
    return same_type and (a.size == 0 or address(a, False) == address(b, False))


def with_layout(vector: AnyArray, like: AnyArray) -> AnyArray:
    """View a vector as an array with the shape and the memory layout of the dense array `like`."""
    if like.flags.c_contiguous:
        return vector.reshape(like.shape)
    size = vector.itemsize
    strides = [s // like.itemsize * size for s in like.strides]
    return np.ndarray(like.shape, vector.dtype, vector, first_index(like) * size, strides)


def memory_order(array: AnyArray) -> AnyArray:
    """View a dense array as a vector of its elements in the order of memory: the inverse of `with_layout`."""
    steps: Any = [slice(None, None, -1 if s < 0 else 1) for s in array.strides]
    forward = array[(..., *steps)]
    axes = sorted(range(array.ndim), key=lambda axis: -forward.strides[axis])
    return forward.transpose(axes).reshape(-1)


def copy_with_layout(array: AnyArray, like: AnyArray, dtype: DTypeLike) -> AnyArray:
    """Copy `array` into new memory with the layout of the dense array `like`."""
    copied = with_layout(np.empty(like.size, dtype), like)
    copied[...] = array
    return copied
