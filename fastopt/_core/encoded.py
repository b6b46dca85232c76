"""State arrays that are stored with fewer bits than the kernels compute with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.codes import decode_blocks, encode_blocks
from fastopt._core.formats import BFLOAT16, decode, encode
from fastopt._core.layout import first_index

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

    from fastopt._core.formats import AnyArray

# The numbers of `Format` in `span.pxd`.
CODES = {"bfloat16": 4, "signed8": 5, "unsigned8": 6}


class Encoded:
    """An array of float32 values that are stored as bfloat16 or as 8-bit codes, see `codes.encode_blocks`.

    Parameters
    ----------
    encoding : {"bfloat16", "signed8", "unsigned8"}
    stored : ndarray, one axis
        The stored bits in the order of memory: uint16 or uint8.
    scales : ndarray of float32
        One per block of 8-bit codes, else empty.
    block_size : int
    like : ndarray
        A dense array of its shape and memory layout.
    """

    def __init__(
        self, encoding: str, stored: AnyArray, scales: AnyArray, block_size: int, like: AnyArray
    ) -> None:
        self.encoding, self.stored, self.scales, self.block_size = encoding, stored, scales, block_size
        self.shape: tuple[int, ...] = like.shape
        self.strides: tuple[int, ...] = tuple(s // like.itemsize for s in like.strides)     # in elements
        self._first = first_index(like)

    dtype = np.dtype(np.float32)    # of the values

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes + self.scales.nbytes

    @property
    def view(self) -> AnyArray:
        """The stored bits as an array of this shape."""
        size = self.stored.itemsize
        strides = [s * size for s in self.strides]
        return np.ndarray(self.shape, self.stored.dtype, self.stored, self._first * size, strides)

    def arrays(self) -> list[AnyArray]:
        """The arrays whose memory this is."""
        return [self.stored, self.scales]

    def read(self) -> AnyArray:
        """Return the values as a read-only array."""
        if self.encoding == "bfloat16":
            values = decode(self.stored.view(BFLOAT16))
        else:
            values = decode_blocks(self.stored, self.scales, self.encoding == "signed8", self.block_size)
        strides = [s * 4 for s in self.strides]
        result: AnyArray = np.ndarray(self.shape, np.float32, values, self._first * 4, strides)
        result.flags.writeable = False
        return result

    def encode(self, values: ArrayLike) -> list[AnyArray]:
        """Return what `arrays` have to hold for these values, which are rounded to nearest."""
        vector = np.empty(self.stored.size, np.float32)
        strides = [s * 4 for s in self.strides]
        np.ndarray(self.shape, np.float32, vector, self._first * 4, strides)[...] = values
        if self.encoding == "bfloat16":
            return [encode(vector, BFLOAT16).view(np.uint16), self.scales]
        return list(encode_blocks(vector, self.encoding == "signed8", self.block_size))

    def convert(self, other: Encoded | ArrayLike) -> list[AnyArray]:
        """Return what `arrays` have to hold for other values: the bits of an array that is stored alike."""
        if not isinstance(other, Encoded):
            return self.encode(other)
        if self.description() == other.description() and self.shape == other.shape:
            return other.arrays()
        return self.encode(other.read())

    def assign(self, other: Encoded | ArrayLike) -> None:
        for array, value in zip(self.arrays(), self.convert(other), strict=True):
            array[...] = value

    def description(self) -> dict[str, Any]:
        """What a state dict holds in addition to the arrays."""
        entry: dict[str, Any] = {"encoding": self.encoding, "strides": list(self.strides)}
        return entry | ({} if self.encoding == "bfloat16" else {"block_size": self.block_size})

    def export(self) -> dict[str, Any]:
        """Return a copy as plain values for a state dict."""
        arrays: dict[str, Any] = {"shape": list(self.shape), "stored": self.stored.copy()}
        if self.encoding != "bfloat16":
            arrays["scales"] = self.scales.copy()
        return self.description() | arrays


def from_export(name: str, saved: Mapping[str, Any]) -> Encoded:
    """Return the array that `Encoded.export` saved, or raise a ValueError."""
    encoding, shape = saved.get("encoding"), saved.get("shape")
    if encoding not in CODES:
        raise ValueError(f"{name}['encoding']: expected one of {', '.join(CODES)}, got {encoding!r}")
    strides = saved.get("strides")
    for key, value in (("shape", shape), ("strides", strides)):
        if not isinstance(value, (list, tuple)) or not all(type(n) is int for n in value):
            raise ValueError(f"{name}['{key}']: expected a list of integers, got {value!r}")
    assert isinstance(shape, (list, tuple)) and isinstance(strides, (list, tuple))
    size = int(np.prod([max(n, 0) for n in shape], dtype=np.int64))
    block_size = saved.get("block_size", 0)
    is_bf16 = encoding == "bfloat16"
    if not is_bf16 and block_size not in BLOCK_SIZES:
        raise ValueError(f"{name}['block_size']: expected one of {BLOCK_SIZES}, got {block_size!r}")
    scales = np.zeros(0, np.float32) if is_bf16 else saved.get("scales")
    expected = [
        ("stored", saved.get("stored"), np.uint16 if is_bf16 else np.uint8, size),
        ("scales", scales, np.float32, 0 if is_bf16 else -(-size // block_size)),
    ]
    for key, array, dtype, length in expected:
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != (length,):
            found = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else repr(array)
            raise ValueError(
                f"{name}['{key}']: expected {np.dtype(dtype)} of shape {(length,)}, got {found}"
            )
    # Strides of a dense array: a permutation of the axes; any axis may be reversed.
    axes = sorted(range(len(shape)), key=lambda i: abs(strides[i]) if i < len(strides) else 0)
    step = 1
    is_dense = len(strides) == len(shape) and min(shape, default=0) >= 0
    for i in axes if is_dense and size else ():
        is_dense = is_dense and (shape[i] == 1 or abs(strides[i]) == step)
        step *= shape[i]
    if not is_dense:
        raise ValueError(f"{name}['strides']: expected those of a dense array of {shape}, got {strides}")
    first = sum((1 - n) * s for n, s in zip(shape, strides, strict=True) if s < 0) if size else 0
    stored: Any = saved["stored"]
    itemsize = stored.itemsize
    like = np.ndarray(shape, stored.dtype, stored, first * itemsize, [s * itemsize for s in strides])
    return Encoded(encoding, stored, np.asarray(scales), block_size, like)


BLOCK_SIZES = (128, 256, 512)
