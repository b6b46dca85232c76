"""The number of threads of a step.

`import fastopt` runs this module, so it imports nothing that NumPy has not imported already.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
from numbers import Integral
from typing import TYPE_CHECKING, Any, cast

from fastopt._core import runtime
from fastopt._version import __version__

if TYPE_CHECKING:
    from importlib.abc import Loader
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
    runtime.set_threads(_check_threads("n", n))


def get_num_threads() -> int:
    """Return the number of threads that a step may use, including the calling thread.

    The initial value is ``FASTOPT_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the number of processors
    available to this process: its CPU affinity, within the CPU quota of its control group.
    """
    return runtime.get_threads()


def _check_threads(name: str, n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, Integral):
        raise TypeError(f"{name}: expected an integer, got {type(n).__name__}")
    threads = int(n)
    if not 1 <= threads < 10**9:
        raise ValueError(f"{name}: expected at least 1 thread and fewer than 10**9, got {threads}")
    return threads


def from_environment() -> int | None:
    """Number of threads set by an environment variable; None if there is none.

    A malformed FASTOPT_NUM_THREADS is an error. OMP_NUM_THREADS is read leniently because it is meant for
    other libraries as well and may be a list.
    """
    text = os.environ.get("FASTOPT_NUM_THREADS")
    if text:
        digits = text.strip()
        if not digits.isdecimal() or len(digits) > 9:
            raise ValueError(f"FASTOPT_NUM_THREADS: expected a positive integer below 10**9, got {text!r}")
        return _check_threads("FASTOPT_NUM_THREADS", int(digits))
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not first.isdecimal():
        return None
    return max(1, int(first) if len(first) <= 9 else 10**9 - 1)


def processors() -> tuple[frozenset[int], float]:
    """Return the processors on which this process may run, and how many its control group may use."""
    if hasattr(os, "sched_getaffinity"):
        numbers = frozenset(os.sched_getaffinity(0))
    else:
        numbers = frozenset(range(os.cpu_count() or 1))
    return numbers, _cpu_quota("/sys/fs/cgroup")


def count_processors() -> int:
    """Return the number of processors available to this process."""
    numbers, quota = processors()
    return int(min(len(numbers), quota))


def _cpu_quota(root: str) -> float:
    """Processors that the control group may use, rounded up; infinity without a quota."""
    try:
        quota, period = _read(f"{root}/cpu.max").split()
    except (OSError, ValueError):
        try:
            quota = _read(f"{root}/cpu/cpu.cfs_quota_us").strip()
            period = _read(f"{root}/cpu/cpu.cfs_period_us")
        except OSError:
            return math.inf
    if quota in ("max", "-1"):
        return math.inf
    return max(1, math.ceil(int(quota) / int(period)))


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


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
        for finder in sys.meta_path:
            find_spec = None if finder is cls else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = cast("Loader", _RegisteringLoader(spec.loader))
                return spec
        return None


class _RegisteringLoader:
    """Loads a module with its own loader, then registers the controller."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return cast("ModuleType | None", self._loader.create_module(spec))

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register_controller(module)


runtime.set_threads(from_environment() or count_processors())
atexit.register(runtime.stop_workers)
if "threadpoolctl" in sys.modules:
    import threadpoolctl

    _register_controller(threadpoolctl)
else:
    sys.meta_path.insert(0, _ThreadpoolctlFinder)
