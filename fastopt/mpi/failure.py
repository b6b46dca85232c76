"""The end of a job of which one rank fails; otherwise the other ranks would wait for it forever.

The argument `world` is the `Communicator` of all processes of the job, whose module imports this one.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_HEAD_START = 0.5   # seconds in which rank 0 can report an error that all ranks have, and end the job


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
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
        world.comm.Abort(status)
