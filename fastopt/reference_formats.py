"""The number formats of `fastopt.reference` in NumPy; the compiled formats are tested against them.

An update rule computes in float32. `stored` lets it take arrays with fewer bits: they are decoded before the
update, and the parameters and the state are rounded after it. Stochastic rounding adds noise below the last
bit that is kept, and truncates. The noise depends only on seed, step, parameter, array and element.

The results are bit for bit those of the compiled kernels, except that these read and write subnormal float32
numbers as zero.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypedDict

import numpy as np

from fastopt._core.codes import decode_blocks, encode_blocks, mix, noise
from fastopt._core.encoded import BLOCK_SIZES
from fastopt._core.formats import FLOAT16, computing_dtype, decode, is_bfloat16, normalize

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fastopt._core.typing import AnyArray, Array

P = ParamSpec("P")

__all__ = [
    "Formats", "block_size", "decode_blocks", "decode_state", "encode_blocks", "encode_state", "is_encoded",
    "mix", "noise", "round_bfloat16", "round_float16", "step_stored", "stored",
]


class Formats(TypedDict, total=False):
    """Keyword arguments of all update rules for arrays with fewer bits.

    Attributes
    ----------
    rounding : {"stochastic", "nearest"}, default "stochastic"
    seed : int, default 0
    """

    rounding: Literal["stochastic", "nearest"]
    seed: int


def round_bfloat16(x: Array, noise: NDArray[np.uint32] | None = None) -> NDArray[np.uint16]:
    """Round float32 to the bits of bfloat16: stochastically with noise, else to nearest, ties to even."""
    bits = x.view(np.uint32)
    added = 0x7FFF + (bits >> 16 & 1) if noise is None else noise >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, bits >> 16 | 0x40, (bits + added) >> 16).astype(np.uint16)


def round_float16(x: Array, noise: NDArray[np.uint32] | None = None) -> NDArray[np.uint16]:
    """Round float32 to the bits of float16, as `round_bfloat16`. Too large values become infinite."""
    if noise is None:
        with np.errstate(over="ignore", under="ignore"):
            nearest: NDArray[np.uint16] = x.astype(FLOAT16).view(np.uint16)
            nan = (x.view(np.uint32) >> 16 & 0x8000 | 0x7E00).astype(np.uint16)
            result: NDArray[np.uint16] = np.where(np.isnan(x), nan, nearest)
        return result
    bits, r = x.view(np.uint32), noise >> 19
    magnitude = bits & 0x7FFFFFFF
    is_subnormal = magnitude < 0x38800000       # below 2**-14; then in units of 2**-24
    units = np.where(is_subnormal, magnitude, 0).astype(np.uint32).view(np.float32) * np.float32(2.0**24)
    subnormal = (units + r.astype(np.float32) * np.float32(2.0**-13)).astype(np.uint32)
    with np.errstate(over="ignore"):    # of subnormal numbers, which are replaced
        normal = np.minimum(((magnitude + r) >> 13) - (112 << 10), 0x7C00)
    half = np.where(is_subnormal, subnormal, normal)
    half = np.where(magnitude > 0x7F800000, 0x7E00, half)
    result = (half | bits >> 16 & 0x8000).astype(np.uint16)
    return result


def step_stored(
    function: Callable[..., None], p: AnyArray, g: AnyArray, *states: Any, step: int = 1, parameter: int = 0,
    rounding: Literal["stochastic", "nearest"] = "stochastic", seed: int = 0, **arguments: Any,
) -> None:
    """Call an update rule with arrays that have fewer bits.

    Parameters
    ----------
    function : callable
        Update rule for arrays of the computing dtype of `p`.
    p, g : ndarray
        Parameters, updated in place, and gradient.
    *states
        Further arguments of `function`, see `is_encoded`.
    step, parameter, seed : int
        Arguments of `noise`; `step` is not passed to `function`.
    rounding : {"stochastic", "nearest"}
    **arguments
        Further keyword arguments of `function`.
    """
    p = normalize(p)
    computed = np.array(decode(p), order="C")
    decoded = [decode_state(state) if is_encoded(state) else state for state in states]
    function(computed, decode(normalize(g), computed.dtype), *decoded, **arguments)
    x = computed.reshape(-1)
    if p.dtype == computed.dtype:
        p[...] = computed
    else:
        words = noise(seed, step, parameter, 0, x.size) if rounding == "stochastic" else None
        rounded = (round_float16 if p.dtype == FLOAT16 else round_bfloat16)(x, words)
        p[...] = rounded.view(p.dtype).reshape(p.shape)
    given = [pair for pair in zip(states, decoded, strict=True) if pair[0] is not None]
    for array, (state, values) in enumerate(given, 1):
        if is_encoded(state):
            encode_state(state, values.reshape(-1), noise(seed, step, parameter, array, x.size))


def is_encoded(state: object) -> bool:
    """Whether a state array is stored with fewer bits.

    It is an array of bfloat16, or a tuple of 8-bit codes and their scales. Codes have the dtype int8 if the
    values can be negative, else uint8.
    """
    return isinstance(state, tuple) or (isinstance(state, np.ndarray) and is_bfloat16(state.dtype))


def decode_state(state: Any) -> AnyArray:
    """Return the float32 values of a state array with fewer bits."""
    if not isinstance(state, tuple):
        return decode(state)
    codes, scales = state
    values = decode_blocks(
        codes.reshape(-1).view(np.uint8), scales, codes.dtype == np.int8, block_size(codes, scales)
    )
    return values.reshape(codes.shape)


def encode_state(state: Any, values: Array, noise: NDArray[np.uint32]) -> None:
    """Store float32 values in a state array with fewer bits."""
    if not isinstance(state, tuple):
        state[...] = round_bfloat16(values, noise).view(state.dtype).reshape(state.shape)
        return
    codes, scales = state
    new, scales[...] = encode_blocks(values, codes.dtype == np.int8, block_size(codes, scales), noise)
    codes[...] = new.view(codes.dtype).reshape(codes.shape)


def block_size(codes: AnyArray, scales: AnyArray) -> int:
    """Elements per scale: the first of `BLOCK_SIZES` with this number of blocks."""
    for size in BLOCK_SIZES:
        if -(-codes.size // size) == scales.size:
            return size
    raise ValueError(
        f"scales: expected one per block of {', '.join(map(str, BLOCK_SIZES))} codes, got {scales.size} "
        f"for {codes.size}"
    )


def stored(function: Callable[P, None]) -> Callable[P, None]:
    """Let an update rule take arrays with fewer bits, and the keyword arguments `Formats`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def update(*args: Any, rounding: Any = "stochastic", seed: int = 0, **arguments: Any) -> None:
        bound = signature.bind(*args, **arguments)
        p, g, *states = bound.args
        is_plain = p.dtype == g.dtype and p.dtype == computing_dtype(p.dtype)
        if is_plain and not any(map(is_encoded, states)):
            function(*bound.args, **bound.kwargs)
            return
        arguments = bound.kwargs
        call = functools.partial(function, step=arguments["step"]) if "step" in arguments else function
        step_stored(call, p, g, *states, rounding=rounding, seed=seed, **arguments)

    return update  # type: ignore[return-value]
