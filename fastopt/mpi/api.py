"""The public names of :mod:`fastopt.mpi`, which `__init__.py` imports when one of them is used."""

from fastopt.mpi.broadcast import broadcast_optimizer_state, broadcast_parameters
from fastopt.mpi.communicator import local_rank, local_size, rank, size
from fastopt.mpi.cost_model import Compute, Cost, Network, measure_compute, measure_network, predict
from fastopt.mpi.optimizer import DistributedOptimizer

__all__ = [
    "Compute", "Cost", "DistributedOptimizer", "Network", "broadcast_optimizer_state", "broadcast_parameters",
    "local_rank", "local_size", "measure_compute", "measure_network", "predict", "rank", "size",
]
