"""The noise of stochastic rounding and the 8-bit codes of state arrays, in NumPy.

The kernels have the same bits (`csrc/fo_codec.h`). The optimizers use these functions where whole arrays are
read or set, and `fastopt.reference_formats` where a step is computed without the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastopt._core.formats import AnyArray

SEGMENT = 512       # elements whose noise follows one another in the table
RANGE = {True: np.float32(29.48), False: np.float32(126960.0)}       # of y, see `encode_blocks`


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash of 64-bit words: the next word of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = x * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


TABLE = (mix(np.arange(1, 1024 + SEGMENT + 1, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32)


def noise(seed: int, step: int, parameter: int, array: int, size: int) -> NDArray[np.uint32]:
    """Noise of the elements of an array, 32 random bits each.

    Parameters
    ----------
    seed, step : int
        `step` counts the updates of the parameter; the first one is 1.
    parameter : int
        Index of the parameter in the optimizer.
    array : int
        0 for the parameter itself, 1 for the first array of its state, and so on.
    size : int
        Number of elements.
    """
    key = mix(np.array([seed], np.uint64) + np.uint64(1))
    key = mix(key + np.uint64(parameter))
    key = mix(key + np.uint64(step))
    segments = np.arange(-(-size // SEGMENT), dtype=np.uint64)
    words = mix(key + segments * np.uint64(8) + np.uint64(array))
    start = (words & np.uint64(1008)).astype(np.intp)   # one of 64 places in the table
    table = TABLE[start[:, None] + np.arange(SEGMENT)]
    keys = (words >> np.uint64(32)).astype(np.uint32)
    result: NDArray[np.uint32] = (table ^ keys[:, None]).ravel()[:size]
    return result


def encode_blocks(
    x: AnyArray, signed: bool, block_size: int, noise: NDArray[np.uint32] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the 8-bit codes of a vector of float32, and one scale per block.

    The scale is the largest magnitude of the block, but at least ``2.0**-108`` unless that is zero. With y, a
    magnitude over the scale times `RANGE`, the code consists of the last bits of the exponent and the first
    ones of the mantissa of 2 + y: small values have equal distances, large ones equal relative distances. A
    signed code has a sign, 2 bits of exponent and 5 of mantissa; an unsigned one has 4 and 4, and is 0 for
    zero alone. Values are rounded stochastically with noise, else to nearest. In a block with a NaN or an
    infinity, every code is the largest.
    """
    mantissa, largest = (18, 0x7F) if signed else (19, 0xFF)
    padded = np.zeros(-(-x.size // block_size) * block_size, np.float32)
    padded[: x.size] = x
    bits = padded.view(np.uint32)
    magnitude = bits & 0x7FFFFFFF
    maxima = magnitude.reshape(-1, block_size).max(axis=1, initial=0)
    scales = np.where(maxima < 0x00800000, 0, maxima).astype(np.uint32).view(np.float32)
    scales = np.where((scales > 0) & (scales < 2.0**-108), np.float32(2.0**-108), scales)
    with np.errstate(all="ignore"):
        factors = np.where(scales > 0, RANGE[signed] / scales, np.float32(0))
        y = (magnitude.view(np.float32) if signed else padded).reshape(-1, block_size) * factors[:, None]
        y = y if signed else np.where(y < 2.0**-3, np.float32(2.0**-3), y)
        code = (y + np.float32(2)).ravel().view(np.uint32)[: x.size]
    added = np.uint32(1 << mantissa - 1) if noise is None else noise >> np.uint32(32 - mantissa)
    rounded = (code + added >> np.uint32(mantissa)).astype(np.uint8)
    bits = bits[: x.size]
    sign = (bits >> 24 & 0x80).astype(np.uint8)
    codes = rounded | sign if signed else np.where(bits & 0x7F800000, rounded, np.uint8(0))
    is_finite = np.repeat(np.isfinite(scales), block_size)[: x.size]
    return np.where(is_finite, codes, np.uint8(largest)), scales


def decode_blocks(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], signed: bool, block_size: int
) -> NDArray[np.float32]:
    """Return the values of the codes of `encode_blocks`."""
    mantissa, code = (18, codes & 0x7F) if signed else (19, codes)
    y = (code.astype(np.uint32) << mantissa | 0x40000000).view(np.float32) - np.float32(2)
    factors = scales * (np.float32(1) / RANGE[signed])
    with np.errstate(all="ignore"):
        values: NDArray[np.float32] = y * np.repeat(factors, block_size)[: codes.size]
    return np.where(codes & 0x80, np.float32(0) - values, values) if signed else values
