"""Predicted time per step and memory per rank of distributed training on many ranks.

A message of m bytes takes ``alpha + m beta`` seconds: the latency and the inverse bandwidth of the network.
The times of the collective operations are those that Thakur, Rabenseifner and Gropp derive from this model
("Optimization of collective communication operations in MPICH", IJHPCA 2005), with ``gamma`` seconds per byte
of a local sum.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastopt._core.validation import check_float, check_int
from fastopt.mpi.communicator import Communicator, find_communicator
from fastopt.mpi.optimizer import DistributedOptimizer
from fastopt.mpi.sums import BUCKET
from fastopt.nn.trainer import Trainer
from fastopt.optimizers.base import Optimizer

_SHORT = 512 * 1024     # bytes from which MPICH's algorithms use the bandwidth rather than few messages
_TINY = 1024            # bytes up to which its Allreduce sends everything in each message
_RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_N_SCALARS = 2          # sums per step over few values: weights of the micro-shards, and their losses
_MAX_BATCH = 1 << 40  # samples, beyond which more ranks are said never to pay


@dataclass(frozen=True)
class Network:
    """Times of communication.

    Attributes
    ----------
    alpha : float
        Latency: seconds per message.
    beta : float
        Seconds per byte of a message.
    gamma : float
        Seconds per byte that a rank adds to a local sum.
    """

    alpha: float
    beta: float
    gamma: float = 0.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            check_float(name, getattr(self, name), 0.0)

    def alltoall(self, ranks: int, nbytes: float) -> float:
        """Return the seconds of an Alltoall by pairwise exchange; `nbytes` is the size of a rank's buffer."""
        return (ranks - 1) * self.alpha + (ranks - 1) / ranks * nbytes * self.beta

    def allgather(self, ranks: int, nbytes: float) -> float:
        """Return the seconds of an Allgather, by recursive doubling or in a ring, of `nbytes` in all."""
        messages = math.ceil(math.log2(ranks)) if nbytes < _SHORT else ranks - 1
        return messages * self.alpha + (ranks - 1) / ranks * nbytes * self.beta

    def reduce_scatter(self, ranks: int, nbytes: float) -> float:
        """Return the seconds of a Reduce_scatter, by recursive halving or pairwise exchange."""
        messages = math.ceil(math.log2(ranks)) if nbytes < _SHORT else ranks - 1
        return messages * self.alpha + (ranks - 1) / ranks * nbytes * (self.beta + self.gamma)

    def allreduce(self, ranks: int, nbytes: float) -> float:
        """Return the seconds of an Allreduce, by recursive doubling or Rabenseifner's algorithm."""
        steps = math.ceil(math.log2(ranks))
        if nbytes <= _TINY:
            return steps * (self.alpha + nbytes * (self.beta + self.gamma))
        return 2 * steps * self.alpha + (ranks - 1) / ranks * nbytes * (2 * self.beta + self.gamma)


@dataclass(frozen=True)
class Compute:
    """Measured times of the work of one rank.

    Attributes
    ----------
    fixed, per_sample : float
        The gradients of a micro-shard of m samples and their sum take ``fixed + per_sample m`` seconds.
    step : float
        Seconds of an optimizer step on all parameters.
    """

    fixed: float
    per_sample: float
    step: float

    def __post_init__(self) -> None:
        for name in ("fixed", "per_sample", "step"):
            check_float(name, getattr(self, name), 0.0)


@dataclass(frozen=True)
class Cost:
    """Predicted cost of a training step; one entry of the result of `predict`.

    Attributes
    ----------
    ranks : int
    seconds : float
        Time per step: the sum of the next three.
    compute, communication, update : float
        Seconds for the gradients, for their exchange and sums, and for the optimizer.
    speedup : float
        Time on one rank divided by the time on all.
    efficiency : float
        The speedup divided by the number of ranks.
    state_bytes : float
        Bytes of the optimizer's state on each rank.
    total_bytes : float
        Bytes of parameters, gradients, buffers of the exchange, and state on each rank.
    pays_from : int or None
        Smallest batch size at which a step is faster than on the next smaller number of ranks; None for the
        first entry, or if there is no such batch size.
    """

    ranks: int
    seconds: float
    compute: float
    communication: float
    update: float
    speedup: float
    efficiency: float
    state_bytes: float
    total_bytes: float
    pays_from: int | None


def predict(
    n_params: int, batch_size: int, compute: Compute | Mapping[int, Compute], network: Network, *,
    ranks: Iterable[int] = _RANKS, sharded: bool = False, deterministic: bool = True, micro_shards: int = 8,
    itemsize: int = 4, state_bytes: float = 8.0, cores: int = 1, ranks_per_machine: int | None = None
) -> list[Cost]:
    """Predict time per step, efficiency and memory of training with `DistributedOptimizer`.

    Parameters
    ----------
    n_params : int
        Number of parameters of the model.
    batch_size : int
        Samples per step, over all ranks.
    compute : Compute or dict of Compute
        Measured times of one rank, see `measure_compute`; in a dict by its number of threads.
    network : Network
        Measured times of the network, see `measure_network`.
    ranks : iterable of int, default 1, 2, 4, ..., 1024
        Numbers of ranks, ascending.
    sharded : bool, default False
        Whether the state of the optimizer is divided between the ranks.
    deterministic : bool, default True
        Whether sums have a fixed order (Alltoall, local sums, Allgather); otherwise MPI computes them.
    micro_shards : int, default 8
        Micro-shards of a batch; at least one per rank is assumed.
    itemsize : int, default 4
        Bytes per parameter and gradient.
    state_bytes : float, default 8
        Bytes of optimizer state per parameter: 8 for Adam, 4 for SGD with momentum.
    cores : int, default 1
        Cores of a machine. Ranks have at least one thread, and share cores if there are fewer.
    ranks_per_machine : int, optional
        Ranks on a machine, default one per core.

    Returns
    -------
    list of Cost
        One entry for each number of ranks.
    """
    model = _Model(
        check_int("n_params", n_params, 1), {1: compute} if isinstance(compute, Compute) else compute,
        network, sharded, deterministic, check_int("micro_shards", micro_shards, 1),
        check_int("itemsize", itemsize, 1), check_int("cores", cores, 1),
        check_int("ranks_per_machine", cores if ranks_per_machine is None else ranks_per_machine, 1),
    )
    if 1 not in model.compute:
        raise ValueError(f"compute: expected an entry for one thread, got {sorted(model.compute)}")
    batch_size = check_int("batch_size", batch_size, 1)
    state_bytes = check_float("state_bytes", state_bytes, 0.0)
    costs: list[Cost] = []
    alone = sum(model.times(1, batch_size))
    before = None
    for p in ranks:
        check_int("ranks", p, 1)
        times = model.times(p, batch_size)
        seconds = sum(times)
        state = n_params * state_bytes / (p if sharded else 1)
        costs.append(Cost(
            p, seconds, *times, alone / seconds, alone / seconds / p, state,
            state + model.vector_bytes(p),
            None if before is None else model.break_even(before, p),
        ))
        before = p
    return costs


@dataclass(frozen=True)
class _Model:
    n_params: int
    compute: Mapping[int, Compute]
    network: Network
    sharded: bool
    deterministic: bool
    micro_shards: int
    itemsize: int
    cores: int
    ranks_per_machine: int

    def times(self, ranks: int, batch_size: int) -> tuple[float, float, float]:
        """Return the seconds per step for gradients, communication and update."""
        local = min(ranks, self.ranks_per_machine)
        threads = max(n for n in self.compute if n <= max(1, self.cores // local))
        cost, sharing = self.compute[threads], max(1.0, local / self.cores)
        shards = min(max(self.micro_shards, ranks), batch_size)     # those that have samples
        own = -(-shards // ranks)
        nbytes = self.n_params * self.itemsize
        compute = own * (cost.fixed + cost.per_sample * batch_size / shards)
        update = cost.step / (ranks if self.sharded else 1)
        return sharing * compute, self._communication(ranks, nbytes), sharing * update

    def vector_bytes(self, ranks: int) -> float:
        """Return the bytes of parameters, gradients, partial sums of the tree, and received values."""
        own = -(-max(self.micro_shards, ranks) // ranks)
        received = min(self.n_params, BUCKET) if ranks > 1 and self.deterministic else 0
        return self.itemsize * ((2 + own.bit_length()) * self.n_params + received)

    def _communication(self, ranks: int, nbytes: int) -> float:
        network = self.network
        if ranks == 1:
            return 0.0
        scalars = _N_SCALARS * network.allreduce(ranks, _TINY)
        if self.deterministic:
            sums = (ranks - 1) / ranks * nbytes * network.gamma
            return scalars + network.alltoall(ranks, nbytes) + sums + network.allgather(ranks, nbytes)
        if self.sharded:
            return scalars + network.reduce_scatter(ranks, nbytes) + network.allgather(ranks, nbytes)
        return scalars + network.allreduce(ranks, nbytes)

    def break_even(self, fewer: int, ranks: int) -> int | None:
        """Return the smallest batch size at which `ranks` ranks are faster than `fewer`."""

        def pays(batch_size: int) -> bool:
            return sum(self.times(ranks, batch_size)) < sum(self.times(fewer, batch_size))

        high = 1
        while not pays(high):
            high *= 2
            if high > _MAX_BATCH:
                return None
        low = high // 2  # does not pay
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if pays(middle) else (middle, high)
        return high


def measure_compute(
    net: Any, opt: Optimizer, X: Any, y: Any, batch_sizes: tuple[int, int], *, micro_shards: int = 8,
    comm: Any = None, epochs: int = 5,
) -> Compute:
    """Measure the work of a rank: the gradients of micro-shards and their sums, and the optimizer step.

    All ranks train separately at the same time, each with its own threads, so the times include the slowdown
    that ranks on the same machine cause each other. Start as many ranks per machine as in the planned
    training run.

    Parameters
    ----------
    net : object
        Model as for `fastopt.Trainer`; it is trained, so its parameters change.
    opt : Optimizer
        Optimizer of its parameters.
    X, y : array_like
        Training data, of at least the larger batch size.
    batch_sizes : pair of int
        Batch sizes of two runs; the time of a step is a linear function of them.
    micro_shards : int, default 8
        Micro-shards of a batch.
    comm : mpi4py.MPI.Intracomm, optional
        Ranks that take part: all processes of the job by default.
    epochs : int, default 5
        Epochs per batch size. The median is taken, without the first.

    Returns
    -------
    Compute
        The times of the slowest rank.
    """
    ranks = find_communicator(comm)
    alone = DistributedOptimizer(opt, _alone(ranks), shards=micro_shards)
    few, many = (check_int(f"batch_sizes[{i}]", n, 1) for i, n in enumerate(batch_sizes))
    if not few < many <= len(y):
        raise ValueError(f"batch_sizes: expected two ascending numbers up to {len(y)}, got {batch_sizes}")
    times = []
    for n in (few, many):
        ranks.allgather(None)   # begin at the same time
        history = Trainer(net, alone).fit(
            X, y, n, check_int("epochs", epochs, 2), verbose=0, training_accuracy=False
        )
        times.append(float(np.median(history.history["seconds"][1:])) / -(-len(y) // n))
    grads = net.train_step(X[:few], y[:few])[1]
    step = _median(lambda: opt.step(grads), 10, lambda: ranks.allgather(None))
    # Neither is negative, and the time of the larger batch size is exact.
    gradients = max(times[1] - step, 0.0)
    per_sample = min(max(times[1] - times[0], 0.0) / (many - few), gradients / many)
    fixed = (gradients - many * per_sample) / micro_shards
    return Compute(*np.max(ranks.allgather((fixed, per_sample, step)), axis=0).tolist())


def _alone(ranks: Communicator) -> Any:
    """Return the communicator of this rank alone."""
    if ranks.size == 1:
        return ranks.comm
    from mpi4py import MPI

    return MPI.COMM_SELF


def measure_network(
    comm: Any, sizes: Iterable[int] = (1 << 12, 1 << 16, 1 << 20, 1 << 22), *, repetitions: int = 20
) -> Network:
    """Measure latency and bandwidth between the ranks of a communicator; all of them call it.

    They are fitted to the times of the operations that training uses, an Alltoall and an Allgather of each
    size and an Allreduce of 1 kB, and so include the slowdown that ranks on the same machine cause each
    other.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        Communicator of at least two ranks.
    sizes : iterable of int
        Bytes of the vectors that are added up.
    repetitions : int, default 20
        Number of measurements per size, whose median is taken.

    Returns
    -------
    Network
        The same on all ranks.
    """
    ranks = find_communicator(comm)
    if (p := ranks.size) < 2:
        raise ValueError("comm: expected a communicator of at least two ranks, got one rank")
    unit = Network(1.0, 0.0), Network(0.0, 1.0)
    model: list[list[float]] = []
    times: list[float] = []
    scalars = np.zeros(128)
    for nbytes in sizes:
        part = max(check_int("sizes", nbytes, 1) // 4 // p, 1)
        vector, received = np.zeros((2, p * part), np.float32)
        starts, counts = list(range(0, p * part, part)), [part] * p

        exchange = partial(ranks.exchange, vector, starts, counts, received, counts)
        gather = partial(ranks.gather_segments, vector, starts, counts)
        total = sum(_median(call, repetitions, ranks.barrier) for call in (exchange, gather))
        times += [total, _median(partial(ranks.sum_in_place, scalars), repetitions, ranks.barrier)]
        model += [
            [each.alltoall(p, vector.nbytes) + each.allgather(p, vector.nbytes) for each in unit],
            [each.allreduce(p, scalars.nbytes) for each in unit],
        ]
    # Relative errors, so that small and large messages count alike.
    weights = 1.0 / np.array(times)
    fitted = np.linalg.lstsq(np.array(model) * weights[:, None], np.ones(len(times)), rcond=None)[0]
    a, b = np.ones((2, 1 << 18), np.float32)
    gamma = _median(lambda: np.add(a, b, out=a), repetitions, ranks.barrier) / a.nbytes
    return Network(*ranks.broadcast((*np.maximum(fitted, 0.0).tolist(), gamma)))


def _median(function: Callable[[], Any], repetitions: int, prepare: Callable[[], Any]) -> float:
    """Return the median of the seconds of a call, after one that is not counted."""
    times = []
    for _ in range(repetitions + 1):
        prepare()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))
