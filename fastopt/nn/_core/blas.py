"""Finds the BLAS that NumPy uses.

NumPy does not export its matrix product, but its BLAS is loaded into the process, so the symbols
can be looked up. If none of the known names is found, `blas` multiplies through `numpy.matmul`.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.nn._core.gemm import Blas

if TYPE_CHECKING:
    from collections.abc import Iterator

# Name pattern and integer width in bits: OpenBLAS of NumPy's wheels, OpenBLAS with 64-bit integers, Apple's
# Accelerate, any other BLAS.
_NAMES = (("scipy_{}64_", 64), ("{}64_", 64), ("{}$NEWLAPACK$ILP64", 64), ("{}", 32))
# OpenBLAS multiplies small matrices without packing them if it has selected its kernels for these processors,
# up to this many multiplications (`sgemm_small_matrix_permit` in its sources).
_SMALL = 100**3
_SMALL_CORES = ("SkylakeX", "Cooperlake", "SapphireRapids")


def find() -> dict[str, Any]:
    """Return the arguments of `Blas` for the BLAS that NumPy uses."""
    for library in _libraries():
        for pattern, bits in _NAMES:
            if sgemm := _address(library, pattern.format("cblas_sgemm")):
                core = _text(library, pattern.format("openblas_get_corename"))
                words = _text(library, pattern.format("openblas_get_config")).split()
                return {
                    "name": " ".join([*words[:2], core]) if words else "cblas",
                    "sgemm": sgemm,
                    "dgemm": _address(library, pattern.format("cblas_dgemm")),
                    "sgemv": _address(library, pattern.format("cblas_sgemv")),
                    "dgemv": _address(library, pattern.format("cblas_dgemv")),
                    "ilp64": bits == 64,
                    "get_threads": _address(library, pattern.format("openblas_get_num_threads")),
                    "set_threads": _address(library, pattern.format("openblas_set_num_threads")),
                    "small": _SMALL if core in _SMALL_CORES else 0,
                }
    return {"name": "numpy.matmul"}


def _libraries() -> Iterator[ctypes.CDLL]:
    """Yield NumPy's own module, which links to its BLAS on Linux and macOS, and its wheel's libraries."""
    paths = [np._core._multiarray_umath.__file__]  # type: ignore[attr-defined]
    paths += sorted(map(str, Path(np.__file__).parents[1].glob("numpy.libs/*openblas*")))
    for path in paths:
        try:
            yield ctypes.CDLL(path)
        except OSError:
            continue    # not loadable; without any BLAS, products go through numpy.matmul


def _address(library: ctypes.CDLL, name: str) -> int:
    function = getattr(library, name, None)
    return ctypes.cast(function, ctypes.c_void_p).value or 0 if function is not None else 0


def _text(library: ctypes.CDLL, name: str) -> str:
    """Return the result of a function without arguments that returns a string; "" if it is missing."""
    function = getattr(library, name, None)
    if function is None:
        return ""
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode()


blas = Blas(**find())
