"""The ranks that take part in a run: those of an mpi4py communicator, or this process alone."""

from __future__ import annotations

import functools
import itertools
import os
import time
from typing import TYPE_CHECKING, Any

from fastopt.mpi.failure import Departures, install_excepthook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastopt._core.typing import AnyArray

# Variables that launchers set in the processes of a job with the number of ranks: MPICH and Intel MPI (PMI),
# Open MPI, MVAPICH, and Slurm's srun.
_LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")

_yield_processor = getattr(os, "sched_yield", functools.partial(time.sleep, 0))     # which Windows lacks


class Communicator:
    """Collective operations on the ranks of a communicator.

    Every operation must be called by all ranks, in the same order. With one rank, none of them needs MPI. A
    rank that waits yields its processor, which others may need if there are more ranks than processors.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        None stands for this process alone.
    departures : Departures, optional
        Ends the job if a rank has left it for which others wait.

    Attributes
    ----------
    comm
        As passed to the constructor.
    rank, size : int
        Index of this process, and the number of processes.
    """

    def __init__(self, comm: Any = None, departures: Departures | None = None) -> None:
        self.comm = comm
        self._departures = departures
        self._request: Any = None       # keeps its arrays if an exception ends the wait
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()

    @functools.cached_property
    def local(self) -> Communicator:
        """The ranks on the same machine. The first use is a collective operation."""
        if self.size == 1:
            return Communicator()
        from mpi4py import MPI

        return Communicator(self.comm.Split_type(MPI.COMM_TYPE_SHARED))

    def _wait(self, request: Any) -> None:
        """Wait until a non-blocking operation of all ranks has been completed."""
        self._request = request
        if self._departures is not None:
            self._departures.n_operations += 1
        while not request.Test():
            if self._departures is not None:
                self._departures.check()
            _yield_processor()

    def barrier(self) -> None:
        """Wait until all ranks have called this method."""
        if self.size > 1:
            self._wait(self.comm.Ibarrier())

    def allgather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, which may be any objects."""
        self.barrier()
        return [value] if self.size == 1 else list(self.comm.allgather(value))

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks on rank 0, and an empty list on the others."""
        self.barrier()
        return [value] if self.size == 1 else list(self.comm.gather(value) or [])

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Return the value of the rank `root`."""
        self.barrier()
        return value if self.size == 1 else self.comm.bcast(value, root)

    def check_equal(self, name: str, paths: Sequence[str], values: Sequence[Any]) -> None:
        """Raise ValueError on all ranks unless their values are equal; `paths` follow `name` in the error."""
        for other, theirs in enumerate(self.allgather(list(zip(paths, values, strict=True)))):
            if other == 0:
                first = theirs
            elif len(theirs) != len(first):
                raise ValueError(
                    f"{name}: expected the same arrays on all ranks, got {len(first)} on rank 0 and "
                    f"{len(theirs)} on rank {other}"
                )
            for (path, value), (_, expected) in zip(theirs, first, strict=True):
                if value != expected:
                    raise ValueError(
                        f"{name}{path}: expected the same on all ranks, got {expected} on rank 0 and {value} "
                        f"on rank {other}"
                    )

    def broadcast_array(self, vector: AnyArray, root: int) -> None:
        """Copy the elements of a contiguous array from the rank `root` into those of the other ranks."""
        if self.size > 1:
            self._wait(self.comm.Ibcast(as_bits(vector), root))

    def sum_in_place(self, values: AnyArray) -> None:
        """Add up a few values over the ranks in place, in an order that MPI chooses."""
        if self.size > 1:
            from mpi4py import MPI

            self._wait(self.comm.Iallreduce(MPI.IN_PLACE, values))

    def sum_vectors_in_place(self, vector: AnyArray) -> None:
        """Add up vectors as `sum_in_place` adds up a few values.

        The ranks should have waited for each other before. The blocking operation has better algorithms.
        """
        if self.size > 1:
            from mpi4py import MPI

            self.comm.Allreduce(MPI.IN_PLACE, vector)

    def exchange(
        self, vector: AnyArray, starts: Sequence[int], counts: Sequence[int], received: AnyArray,
        received_counts: Sequence[int],
    ) -> None:
        """Send a segment of `vector` to each rank, and receive one from each; there must be several ranks.

        Parameters
        ----------
        vector : ndarray
        starts, counts : sequence of int
            Beginning and number of elements of the segment for each rank.
        received : ndarray
            The segments that the ranks have sent are written here, one after the other.
        received_counts : sequence of int
            Their numbers of elements.
        """
        offsets = [0, *itertools.accumulate(received_counts[:-1])]
        self._wait(self.comm.Ialltoallv([vector, (counts, starts)], [received, (received_counts, offsets)]))

    def gather_segments(self, vector: AnyArray, starts: Sequence[int], counts: Sequence[int]) -> None:
        """Give all ranks all segments of `vector`; each rank has one of them."""
        if self.size > 1:
            from mpi4py import MPI

            self._wait(self.comm.Iallgatherv(MPI.IN_PLACE, [vector, (counts, starts)]))


def as_bits(vector: AnyArray) -> AnyArray:
    """View a vector as unsigned integers, because MPI does not know all dtypes of parameters."""
    return vector.view(f"u{vector.itemsize}")


def find_communicator(comm: Any = None) -> Communicator:
    """Return the ranks of an mpi4py communicator; of all processes of the job without one.

    Raises
    ------
    ImportError
        If the process belongs to a job of several ranks, and mpi4py is not installed.
    TypeError
        If `comm` is not a communicator of mpi4py.
    """
    world = _world()
    if comm is None or comm == world.comm:
        return world
    for name in ("Ialltoallv", "Iallgatherv", "Iallreduce", "Split_type"):
        if not hasattr(comm, name):
            raise TypeError(f"comm: expected a communicator of mpi4py, got {type(comm).__name__}")
    return Communicator(comm)


def is_launched() -> bool:
    """Whether an MPI launcher has started this process, even if it is the only one."""
    return any(name in os.environ for name in _LAUNCHERS)


@functools.cache
def _world() -> Communicator:
    launcher = next((name for name in _LAUNCHERS if os.environ.get(name, "1") != "1"), None)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # the latter if there is no MPI library
        if launcher is not None:
            raise ImportError(
                f"fastopt.mpi needs mpi4py, because this process is one of {os.environ[launcher]} ranks "
                f"({launcher}): pip install 'fastopt[mpi]', and an MPI library such as mpich: {error}"
            ) from error
        return Communicator()
    n_ranks = MPI.COMM_WORLD.Get_size()
    world = Communicator(MPI.COMM_WORLD, Departures(MPI.COMM_WORLD) if n_ranks > 1 else None)
    if launcher is not None and world.size == 1:
        raise RuntimeError(
            f"fastopt.mpi: this process is one of {os.environ[launcher]} ranks ({launcher}), but the MPI "
            f"library of mpi4py, {MPI.Get_library_version().splitlines()[0]}, sees only one; start the job "
            "with the mpiexec of this library"
        )
    if world.size > 1:
        install_excepthook(world)
    return world


def rank() -> int:
    """Return the index of this process among all processes of the job: 0 without MPI."""
    return _world().rank


def size() -> int:
    """Return the number of processes of the job: 1 without MPI."""
    return _world().size


def local_rank() -> int:
    """Return the index of this process among those on the same machine.

    All ranks must call `local_rank` or `local_size` if one does.
    """
    return _world().local.rank


def local_size() -> int:
    """Return the number of processes of the job on this machine. See `local_rank`."""
    return _world().local.size
