"""The description of a suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Workloads, turns per contender, seconds per turn, and the size to append to the names of workloads."""

    workloads: tuple[str, ...]
    rounds: int
    seconds: float
    size: str = ""


@dataclass(frozen=True)
class Suite:
    """Workloads, contenders, and the way to time them.

    Attributes
    ----------
    find : callable
        Returns the workload of a name, or raises ValueError.
    bench : type
        Called with a contender and a workload; has a `probe` to compare with that of fastopt, or None, and
        `round`.
    yardstick : str
        The contender to whose time the times of the others are compared.
    unit : str
        Of the yardstick's amount per second.
    compared : str
        Name of the probed quantity; `tolerance` is the largest difference from fastopt.
    extra_threads : tuple of int
        Numbers of threads in addition to the number of cores.
    sweep, quick_sweep : tuple of str
        Names of the workloads that are drawn.
    """

    name: str
    purpose: str
    workloads: tuple[Any, ...]
    find: Callable[[str], Any]
    contenders: Mapping[str, Any]
    bench: Callable[[Any, Any], Any]
    full: Settings
    quick: Settings
    yardstick: str = "limit"
    unit: str = "GB/s"
    compared: str = "parameters"
    tolerance: float = 1e-5
    extra_threads: tuple[int, ...] = ()
    sweep: tuple[str, ...] = ()
    quick_sweep: tuple[str, ...] = ()
