"""Picks the instruction set: the best build that this processor and operating system can run.

``FASTOPT_ISA=base``, ``v3`` or ``v4`` selects one; if it cannot run here, the import fails with the reason.
"""

import importlib.util
import os
from typing import Any, Protocol

from fastopt._core import runtime


class Kernels(Protocol):
    """Exports of a module of update rules; see `kernels.pyx`."""

    KERNELS: object
    KERNEL_INDEX: dict[str, int]
    FIELDS: dict[str, tuple[str, ...]]
    TWO_PASS: set[str]
    ROWWISE: set[str]


# The levels of x86-64 that a build can have, lowest first; other processors have "base" alone.
_LEVELS = {"base": 0, "v3": 3, "v4": 4}


def runnable() -> list[str]:
    """Names of the builds that exist in this installation and run on this machine, best last."""
    level = runtime.cpu_level()
    return [
        isa for isa in _LEVELS
        if _LEVELS[isa] <= level and importlib.util.find_spec(f"fastopt._core.kernels_{isa}") is not None
    ]


def load(module: str, isa: str) -> Any:
    """Import the build of `module` for one instruction set, after checking that it can run."""
    if isa not in runnable():
        raise ImportError(f"FASTOPT_ISA={isa}: this machine and installation can run {', '.join(runnable())}")
    return importlib.import_module(f"{module}_{isa}")


isa = os.environ.get("FASTOPT_ISA") or runnable()[-1]
kernels: Kernels = load("fastopt._core.kernels", isa)
