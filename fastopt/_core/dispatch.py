"""Picks the instruction set: the best build that this processor and operating system can run.

``FASTOPT_ISA=base``, ``v3`` or ``v4`` selects one; if it cannot run here, the import fails with the reason.
"""

import importlib.util
import os
from typing import Any, Protocol

from fastopt._core import runtime


class Kernels(Protocol):
    """What a module of update rules exports, whatever its instruction set; see `kernels.pyx`."""

    KERNELS: object
    KERNEL_INDEX: dict[str, int]
    FIELDS: dict[str, tuple[str, ...]]
    TWO_PASS: set[str]
    ROWWISE: set[str]


# The levels of x86-64 that a build can have, lowest first; other processors have "base" alone.
_LEVELS = {"base": 0, "v3": 3, "v4": 4}


def runnable() -> list[str]:
    """Names of the builds that exist in this installation and run on this machine, best last."""
    return [isa for isa in _LEVELS if _LEVELS[isa] <= runtime.cpu_level() and _exists(isa)]


def _exists(isa: str) -> bool:
    # The modules of an instruction set are installed together: one of them stands for all.
    return importlib.util.find_spec(f"fastopt._core.kernels_{isa}") is not None


def load(module: str, isa: str) -> Any:
    """Import the build of `module` for one instruction set, after checking that it can run."""
    if isa not in runnable():
        raise ImportError(
            f"FASTOPT_ISA={isa}: this machine and installation can run {', '.join(runnable())}"
        )
    return importlib.import_module(f"{module}_{isa}")


isa = os.environ.get("FASTOPT_ISA") or runnable()[-1]
kernels: Kernels = load("fastopt._core.kernels", isa)
