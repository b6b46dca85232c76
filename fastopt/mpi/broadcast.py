"""Copies of the parameters and the optimizer state of one rank on all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastopt._core.layout import memory_order
from fastopt._core.pytree import flatten, read_iterators
from fastopt.mpi.communicator import find_communicator
from fastopt.mpi.optimizer import DistributedOptimizer
from fastopt.optimizers.base import Optimizer

if TYPE_CHECKING:
    from fastopt._core.typing import Params
    from fastopt.mpi.communicator import Communicator


def broadcast_parameters(params: Params, root: int = 0, comm: Any = None) -> None:
    """Copy the parameters of one rank into those of all others.

    Parameters
    ----------
    params : ndarray or nesting of ndarrays
        Arrays as for an optimizer, of the same shapes and dtypes on every rank.
    root : int, default 0
        Rank whose parameters are copied.
    comm : mpi4py.MPI.Intracomm, optional
        All processes of the job by default.

    Raises
    ------
    ValueError
        If the arrays of the ranks do not match. In this case nothing is changed.
    """
    ranks = find_communicator(comm)
    _check_root(root, ranks)
    _, arrays, paths = flatten(read_iterators(getattr(params, "params", params)))
    ranks.check_equal("params", paths, [(array.dtype.name, array.shape, array.strides) for array in arrays])
    for array in arrays:
        ranks.broadcast_array(memory_order(array), root)


def broadcast_optimizer_state(opt: Optimizer | DistributedOptimizer, root: int = 0, comm: Any = None) -> None:
    """Copy the state and the hyperparameters of the optimizer of one rank to those of all others.

    Schedules are not copied, but their states are, as with `Optimizer.load_state_dict`.

    Parameters
    ----------
    opt : Optimizer or DistributedOptimizer
        Optimizers of the same class and of parameters of the same shapes. A sharded optimizer raises an
        error, because each rank has a different part of its state.
    root : int, default 0
        Rank whose state is copied.
    comm : mpi4py.MPI.Intracomm, optional
        All processes of the job by default. A `DistributedOptimizer` always uses its own ranks.
    """
    ranks = find_communicator(comm)
    if isinstance(opt, DistributedOptimizer):
        if opt.sharded:
            raise ValueError("opt: expected an optimizer whose state is not sharded")
        ranks, opt = opt.ranks, opt.opt
    _check_root(root, ranks)
    state = ranks.broadcast(opt.state_dict() if ranks.rank == root else None, root)
    if ranks.rank != root:
        opt.load_state_dict(state)


def _check_root(root: int, ranks: Communicator) -> None:
    if root not in range(ranks.size):
        raise ValueError(f"root: expected a rank from 0 to {ranks.size - 1}, got {root!r}")
