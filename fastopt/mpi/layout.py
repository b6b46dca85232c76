"""All parameters in one vector per dtype, so that ranks exchange few large messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastopt._core.layout import with_layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastopt._core.typing import AnyArray, Array

_ALIGN = 16     # elements: every parameter begins on a cache line


class Layout:
    """Places of parameters in vectors, of which there is one for each dtype of parameters.

    Attributes
    ----------
    arrays : sequence of ndarray
        The parameters.
    starts : list of int
        Index of the first element of each parameter in the vector of its dtype.
    sizes : dict of dtype to int
        Elements of the vectors.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        self.arrays = arrays
        self.sizes: dict[Any, int] = {}
        self.starts: list[int] = []
        for array in arrays:
            start = self.sizes.get(array.dtype, 0)
            self.starts.append(start)
            self.sizes[array.dtype] = -(-(start + array.size) // _ALIGN) * _ALIGN

    def views(self, vectors: Mapping[Any, AnyArray]) -> list[Array]:
        """Return the part of each parameter, with its shape and memory layout."""
        return [
            with_layout(vectors[array.dtype][start : start + array.size], array)
            for array, start in zip(self.arrays, self.starts, strict=True)
        ]
