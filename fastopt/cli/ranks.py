"""Commands on several ranks, which ``mpiexec`` starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from fastopt.cli.parser import UsageError
from fastopt.mpi.communicator import Communicator, find_communicator, is_launched


def find_ranks() -> Communicator:
    """Return the ranks of the job, without importing mpi4py if no launcher has started the process."""
    return find_communicator() if is_launched() else Communicator()


@contextlib.contextmanager
def only_main_prints(ranks: Communicator, command: str) -> Iterator[None]:
    """Return a context in which ranks other than 0 print nothing, or raise if one must run the command."""
    if ranks.size > 1 and command != "train":
        raise UsageError("fastopt", f"only 'train' runs on several ranks; start {command!r} without mpiexec")
    with contextlib.ExitStack() as stack:
        if ranks.rank:
            discard = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(discard))
            stack.enter_context(contextlib.redirect_stderr(discard))
        yield
