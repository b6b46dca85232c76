"""The number of threads of a step.

`import fastopt` runs this module, so it imports nothing that NumPy has not imported already.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastopt._core import runtime
from fastopt._core.validation import check_int
from fastopt._version import __version__

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def set_num_threads(n: int) -> None:
    """Set the number of threads that a step may use.

    Results do not depend on it. Small steps use one thread regardless.

    Parameters
    ----------
    n : int
        Positive number of threads, including the calling thread. Values above 256 are reduced to 256.
    """
    if check_int("n", n, 1) >= 10**9:
        raise ValueError(f"n: expected fewer than 10**9 threads, got {n}")
    runtime.set_threads(n)


def get_num_threads() -> int:
    """Return the number of threads that a step may use, including the calling thread.

    The initial value is ``FASTOPT_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the number of processors
    available to this process: its CPU affinity, within the CPU quota of its control group.
    """
    return runtime.get_threads()


def _from_environment() -> int | None:
    """Number of threads set by an environment variable; None if there is none.

    A malformed FASTOPT_NUM_THREADS is an error. OMP_NUM_THREADS is read leniently because it is meant for
    other libraries as well and may be a list.
    """
    text = os.environ.get("FASTOPT_NUM_THREADS")
    if text:
        digits = text.strip()
        if not digits.isdecimal() or len(digits) > 9 or int(digits) < 1:
            raise ValueError(f"FASTOPT_NUM_THREADS: expected a positive integer below 10**9, got {text!r}")
        return int(digits)
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return max(1, int(first[:9])) if first.isdecimal() else None


def _count_processors() -> int:
    has_affinity = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return int(min(count, _cpu_quota("/sys/fs/cgroup")))


def _cpu_quota(root: str) -> float:
    """Processors that the control group may use, rounded up; infinity without a quota."""
    try:
        quota, period = Path(root, "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = Path(root, "cpu/cpu.cfs_quota_us").read_text().strip()
            period = Path(root, "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return math.inf
    return math.inf if quota in ("max", "-1") else max(1, math.ceil(int(quota) / int(period)))


def _register_controller(threadpoolctl: Any) -> None:
    """Let ``threadpoolctl.threadpool_limits`` limit this pool."""
    if not hasattr(threadpoolctl, "LibController"):  # before version 3.2
        return

    class FastoptController(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = "fastopt"
        internal_api = "fastopt"
        filename_prefixes = ("runtime",)
        check_symbols = ("fo_pool_set_threads",)

        def get_num_threads(self) -> int:
            return int(self.dynlib.fo_pool_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.fo_pool_set_threads(num_threads)

        def get_version(self) -> str:
            return __version__

    threadpoolctl.register(FastoptController)


class _ThreadpoolctlFinder:
    """Entry of `sys.meta_path` that registers the controller when threadpoolctl is imported.

    Importing threadpoolctl here would double the time of ``import fastopt``.
    """

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "threadpoolctl":
            return None
        others = [f for f in sys.meta_path if f is not cls and hasattr(f, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            exec_module = spec.loader.exec_module

            def exec_and_register(module: ModuleType) -> None:
                exec_module(module)
                _register_controller(module)

            spec.loader.exec_module = exec_and_register  # type: ignore[method-assign]
        return spec


runtime.set_threads(_from_environment() or _count_processors())
atexit.register(runtime.stop_workers)
if "threadpoolctl" in sys.modules:
    import threadpoolctl

    _register_controller(threadpoolctl)
else:
    sys.meta_path.insert(0, _ThreadpoolctlFinder)
