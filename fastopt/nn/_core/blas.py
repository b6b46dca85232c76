"""Finds the matrix product of the BLAS that NumPy itself multiplies with.

NumPy does not hand it out, but its symbols stand in a library that the process has loaded anyway. Where
none of the names that are known here is found, `find` returns zeros, and the trainer asks `numpy.matmul`.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.nn._core.net import Blas

if TYPE_CHECKING:
    from collections.abc import Iterator

# OpenBLAS as in NumPy's wheels, OpenBLAS with 64-bit integers, Apple's Accelerate, and any other BLAS:
# how the names of its functions go, and the bits of its integers.
_NAMES = (
    ("scipy_{}64_", 64),
    ("{}64_", 64),
    ("{}$NEWLAPACK$ILP64", 64),
    ("{}", 32),
)
# Processors for which OpenBLAS multiplies small matrices without copying them first; up to this many
# multiplications count as small (`sgemm_small_matrix_permit` in its sources).
_SMALL = 100**3
_SMALL_CORES = ("SkylakeX", "Cooperlake", "SapphireRapids")


def find() -> dict[str, Any]:
    """What `net.Blas` takes: addresses, 0 for what is not there, and the facts about them."""
    for library in _libraries():
        for pattern, bits in _NAMES:
            if found := _address(library, pattern.format("cblas_sgemm")):
                openblas = "openblas_{}_num_threads"
                return {
                    "name": _describe(library, pattern),
                    "sgemm": found,
                    "dgemm": _address(library, pattern.format("cblas_dgemm")),
                    "long_integers": bits == 64,
                    "get_threads": _address(library, pattern.format(openblas.format("get"))),
                    "set_threads": _address(library, pattern.format(openblas.format("set"))),
                    "small": _SMALL if _core(library, pattern) in _SMALL_CORES else 0,
                }
    return {"name": "numpy.matmul"}


def _libraries() -> Iterator[ctypes.CDLL]:
    """NumPy's own module, which sees its BLAS on Linux and macOS, and what a wheel has beside it."""
    paths = [np._core._multiarray_umath.__file__]  # type: ignore[attr-defined]
    paths += sorted(map(str, Path(np.__file__).parents[1].glob("numpy.libs/*openblas*")))
    for path in paths:
        try:
            yield ctypes.CDLL(path)
        except OSError:
            continue    # a path that is not a library; what is found nowhere is multiplied by NumPy


def _address(library: ctypes.CDLL, name: str) -> int:
    function = getattr(library, name, None)
    return ctypes.cast(function, ctypes.c_void_p).value or 0 if function is not None else 0


def _text(library: ctypes.CDLL, name: str) -> str:
    function = getattr(library, name, None)
    if function is None:
        return ""
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode()


def _core(library: ctypes.CDLL, pattern: str) -> str:
    return _text(library, pattern.format("openblas_get_corename"))


def _describe(library: ctypes.CDLL, pattern: str) -> str:
    words = _text(library, pattern.format("openblas_get_config")).split()
    return " ".join([*words[:2], _core(library, pattern)]) if words else "cblas"


blas = Blas(**find())
