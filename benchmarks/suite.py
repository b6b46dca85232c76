"""The description of a suite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Workloads, turns per contender, seconds per turn, and the size to append to the names of workloads.

    `limit` is the number of seconds after which a workload gets no further turns, but at least two.
    """

    workloads: tuple[str, ...]
    rounds: int
    seconds: float
    size: str = ""
    limit: float = math.inf


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
    whole : tuple of str
        Names of the workloads that are measured with ``--whole``.
    plots : bool
        Whether a run can be drawn.
    best_threads : bool
        Whether the best number of threads counts for contenders other than fastopt, not the largest.
    timed : str
        What is timed, in which unit.
    is_large : callable
        Whether a workload is measured with the largest number of threads only.
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
    whole: tuple[str, ...] = ()
    plots: bool = False
    best_threads: bool = False
    timed: str = "training steps in microseconds, averaged over whole epochs"
    is_large: Callable[[Any], bool] = lambda workload: False
