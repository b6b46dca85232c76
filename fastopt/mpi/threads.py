"""The number of threads of each rank, where several ranks share the processors of a machine."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from fastopt._core import threads
from fastopt.nn._core.blas import blas

if TYPE_CHECKING:
    from fastopt.mpi.communicator import Communicator

_BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")   # which OpenBLAS reads


def divide_processors(ranks: Communicator) -> None:
    """Set the default number of threads of steps and of NumPy's BLAS to the processors per rank.

    Numbers of threads that were set by an environment variable or `fastopt.set_num_threads` are kept.
    """
    local = ranks.local
    if local.size == 1:
        return
    n_threads = processors_per_rank(local.allgather(threads.processors()), local.rank)
    is_default = not threads.from_environment()
    if is_default and threads.get_num_threads() == threads.count_processors():
        threads.set_num_threads(n_threads)
    if blas.n_threads is not None and not any(map(os.environ.get, _BLAS_VARIABLES)):
        blas.n_threads = n_threads


def processors_per_rank(available: list[tuple[frozenset[int], float]], rank: int) -> int:
    """Return the number of processors for a rank, of those that it shares with the others on its machine.

    Parameters
    ----------
    available : list of (frozenset of int, float)
        For each rank, the processors on which it may run, and the number that its control group may use.
    rank : int
    """
    own, quota = available[rank]
    share = sum(1.0 / sum(n in others for others, _ in available) for n in own)
    return max(1, math.floor(min(share, quota / len(available)) + 1e-9))
