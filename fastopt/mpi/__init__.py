"""Data-parallel training on MPI (``pip install 'fastopt[mpi]'``).

The script is the same for one process and for many that ``mpiexec`` starts. All ranks together use the same
global batch, which is split into a fixed number of micro-shards, so that the trained parameters have the same
bits for any number of ranks::

    opt = fastopt.mpi.DistributedOptimizer(fastopt.Adam(params))
    fastopt.mpi.broadcast_parameters(params)
    for X, y in batches:                                    # the global batch
        for shard, samples in opt.split(len(X)):            # the micro-shards of this rank
            opt.accumulate(gradients(X[samples], y[samples]), shard, weight=len(X[samples]))
        opt.step(max_norm=1.0)

A process that was not started by an MPI launcher is a single rank, and does not need mpi4py.
"""

from typing import TYPE_CHECKING

from fastopt._lazy import attach

if TYPE_CHECKING:
    from fastopt.mpi.api import *  # noqa: F403
else:
    __getattr__, __dir__ = attach(__name__)
