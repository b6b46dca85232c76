"""The number of threads that a step may use."""

from __future__ import annotations

import atexit
import math
import os
from numbers import Integral
from pathlib import Path
from typing import Any

from fastopt._core import runtime
from fastopt._version import __version__


def set_num_threads(n: int) -> None:
    """Let a step use up to `n` threads, the calling one included.

    Results do not depend on it. Small steps use one thread whatever is set.

    Parameters
    ----------
    n : int
        From 1 on.
    """
    runtime.set_threads(_check_threads("n", n))


def get_num_threads() -> int:
    """How many threads a step may use, the calling one included.

    At import it is ``FASTOPT_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the number of processors
    that this process may run on, within the CPU quota of its control group.
    """
    return runtime.get_threads()


def _check_threads(name: str, n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, Integral):
        raise TypeError(f"{name}: expected a whole number of threads, got {type(n).__name__}")
    if n < 1:
        raise ValueError(f"{name}: expected at least 1 thread, got {n}")
    return int(n)


def _from_environment() -> int | None:
    """FASTOPT_NUM_THREADS must be right; OMP_NUM_THREADS is others' too and may be a list."""
    ours, others = os.environ.get("FASTOPT_NUM_THREADS"), os.environ.get("OMP_NUM_THREADS", "")
    if ours:
        if not ours.strip().isdecimal():
            raise ValueError(f"FASTOPT_NUM_THREADS: expected a whole number from 1 on, got {ours!r}")
        return _check_threads("FASTOPT_NUM_THREADS", int(ours))
    first = others.split(",")[0].strip()
    return max(int(first), 1) if first.isdecimal() else None


def _processors() -> int:
    """Processors this process may run on: its affinity, within its control group's quota."""
    has_affinity = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return int(min(count, _quota(Path("/sys/fs/cgroup"))))


def _quota(root: Path) -> float:
    """Whole processors that the control group may use; infinite where there is no quota."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    if quota in ("max", "-1"):
        return math.inf
    return max(1, math.ceil(int(quota) / int(period)))


def _register_with_threadpoolctl() -> None:
    """Let ``threadpoolctl.threadpool_limits`` limit this pool, where that library is installed."""
    try:
        import threadpoolctl
    except ImportError:
        return

    class FastoptController(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = "fastopt"
        internal_api = "fastopt"
        filename_prefixes = ("runtime",)
        check_symbols = ("fo_pool_set_threads",)

        def get_num_threads(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
            return int(self.dynlib.fo_pool_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.fo_pool_set_threads(num_threads)

        def get_version(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
            return __version__

    threadpoolctl.register(FastoptController)


runtime.set_threads(_from_environment() or _processors())
atexit.register(runtime.stop_workers)
_register_with_threadpoolctl()
