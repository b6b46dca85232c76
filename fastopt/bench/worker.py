"""One contender of ``fastopt bench`` in a process of its own: the conversation with its caller.

`fastopt.bench` runs this file as a script, perhaps under another Python: it needs NumPy and the one
library it measures, nothing else. Line by line it reads a request as JSON and answers with JSON;
between requests it is blocked in a read, and it answers only once its threads have gone to sleep,
so that no pool spins while another contender is timed.

What there is to do is said by a suite: `steps.py` or `training.py`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from time import process_time, sleep
from types import ModuleType
from typing import Any, TextIO

PACKAGE = "fastopt_bench"       # what this folder is called in a contender's process


def settle() -> bool:
    """Return once this process's threads sleep; False if they keep on running."""
    for _ in range(300):
        used = process_time()
        sleep(0.003)
        if process_time() - used < 5e-4:
            return True
    return False


def _huge_bytes() -> int | None:
    """Bytes of this process in huge pages, or None where the system does not say."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("AnonHugePages")), None)


# --- The conversation ----------------------------------------------------------------------------


class Conversation:
    """Requests answered one at a time, each with a line of JSON."""

    def __init__(self, suite: ModuleType, name: str, threads: int, answers: TextIO) -> None:
        self.suite = suite
        self.make = partial(suite.CONTENDERS[name], threads)
        self.answers = answers
        self.bench: Any = None

    def hello(self) -> bool:
        """Say the library's version, or that it is not installed; True if it can be measured."""
        try:
            self.answer(version=self.make().version, quiet=settle())
        except ImportError as error:
            self.answer(absent=str(error))
            return False
        return True

    def setup(self, work: str) -> None:
        self.bench = None       # the arrays of the last work go first
        self.bench = self.suite.Bench(self.make(), self.suite.find_work(work))
        self.answer(probe=self.bench.probe, huge=_huge_bytes(), quiet=settle())

    def round(self, seconds: float) -> None:
        times = self.bench.round(seconds)
        self.answer(times=times, quiet=settle())

    def drop(self) -> None:
        self.bench = None
        gc.collect()
        self.answer()

    def answer(self, **values: Any) -> None:
        print(json.dumps(values), file=self.answers, flush=True)

    def serve(self, lines: Iterable[str]) -> None:
        requests: dict[str, Callable[..., None]] = {
            "setup": self.setup, "round": self.round, "drop": self.drop
        }
        for line in lines:
            request = json.loads(line)
            try:
                requests[request.pop("do")](**request)
            except Exception as error:      # is told to the caller, who goes on without this one
                self.bench = None
                self.answer(error=f"{type(error).__name__}: {error}")


def load(suite: str) -> ModuleType:
    """The module of a suite, in a package of this folder alone: this Python may have no fastopt."""
    package = ModuleType(PACKAGE)
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules[PACKAGE] = package
    return importlib.import_module(f"{PACKAGE}.{suite}")


def main(suite: str, name: str, threads: str) -> None:
    """Serve requests on the standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)       # what a library prints is no part of the conversation
    conversation = Conversation(load(suite), name, int(threads), answers)
    if conversation.hello():
        conversation.serve(sys.stdin)


if __name__ == "__main__":
    main(*sys.argv[1:])
