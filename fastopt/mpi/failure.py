"""Ends a job if one of its ranks fails or exits; otherwise the other ranks would wait for it forever.

The argument `world` is the `Communicator` of all processes of the job, whose module imports this one.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import time
from array import array
from types import TracebackType
from typing import Any

_TAG = 32767        # of messages between ranks, the largest one that every MPI library has
_PAUSE = 0.01       # seconds between two looks for the end of another rank
_PATIENCE = 1.0     # seconds
_FORWARDING = 0.2   # seconds in which the launcher forwards what this process has printed
_HEAD_START = 1.0   # seconds in which rank 0 can report an error that all ranks have, and end the job


def install_excepthook(world: Any) -> None:
    """Let an exception that nothing catches end all ranks, after its traceback and the number of the rank."""
    print_exception = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        let_main_report(world)
        print(f"Rank {world.rank} of {world.size} failed and ends the job:", file=sys.stderr)
        print_exception(kind, error, traceback)
        end_job(world, 130 if issubclass(kind, KeyboardInterrupt) else 1)

    sys.excepthook = excepthook


def let_main_report(world: Any) -> None:
    """Wait on other ranks than 0, so that an error that all of them have is printed once."""
    if world.rank:
        time.sleep(_HEAD_START)


def end_job(world: Any, status: int) -> None:
    """End the processes of all ranks with an exit status; return if this is the only one."""
    if world.size > 1:
        _abort(world.comm, status)


def _abort(comm: Any, status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    time.sleep(_FORWARDING)
    comm.Abort(status)
    os._exit(status)    # Abort of MPICH returns before the launcher has ended this process


class Departures:
    """Ends the job if a rank waits for one that has left it, such as by `sys.exit`.

    At the end of its process, each rank tells the next one in how many operations it has taken part.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        All processes of the job, at least two.

    Attributes
    ----------
    n_operations : int
        Operations that this rank has begun, which all ranks take part in.
    """

    def __init__(self, comm: Any) -> None:
        self.n_operations = 0
        self._comm = comm
        self._rank, self._size = comm.Get_rank(), comm.Get_size()
        self._previous, self._next = (self._rank - 1) % self._size, (self._rank + 1) % self._size
        self._sent = array("q", [0])
        self._received = array("q", [0])      # operations of the previous rank, if it has left
        self._has_left = False
        atexit.register(self._leave)

    def check(self) -> None:
        """End the job if the previous rank has left it before the operation for which this one waits."""
        self._receive()
        if self._has_left and self._received[0] < self.n_operations:
            print(
                f"Rank {self._previous} of {self._size} has exited, but rank {self._rank} waits for it and "
                "ends the job", file=sys.__stderr__, flush=True,
            )
            _abort(self._comm, 1)

    def _receive(self) -> None:
        if not self._has_left and self._comm.Iprobe(self._previous, _TAG):
            self._comm.Recv(self._received, self._previous, _TAG)
            self._has_left = True

    def _leave(self) -> None:
        from mpi4py import MPI

        if MPI.Is_finalized():
            return
        self._sent[0] = self.n_operations
        request = self._comm.Issend(self._sent, self._next, _TAG)
        # Without operations, the other ranks may not use this module.
        deadline = math.inf if self.n_operations else time.monotonic() + _PATIENCE
        while not (request.Test() and self._has_left) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
            self._receive()
