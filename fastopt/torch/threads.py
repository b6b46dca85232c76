"""The threads of torch, on which steps run after a backward pass has used them."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch

_FUNCTIONS = ("GOMP_parallel", "omp_get_max_threads", "omp_get_thread_num")


@lru_cache
def openmp_team() -> tuple[int, int, int] | None:
    """Return the addresses of functions of torch's OpenMP for `Table.set_team`; None without them."""
    for path in (None, torch._C.__file__):      # a library that is loaded for all others has priority
        try:
            library = ctypes.CDLL(path)
            found = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in _FUNCTIONS]
        except (AttributeError, OSError, TypeError):     # Windows has no library of all others
            continue
        run, max_threads, thread_index = found
        if run and max_threads and thread_index:
            return run, max_threads, thread_index
    return None
