"""Picks the instruction set: the best build that this processor and operating system can run.

``FASTOPT_ISA=base``, ``v3`` or ``v4`` asks for one; if it cannot run here, the import fails and says so.
"""

import importlib.util
import os
from typing import Any, Protocol

from fastopt import _runtime


class Kernels(Protocol):
    """What a module of update rules has, whatever its instruction set; see `_kernels.pyx`."""

    KERNELS: object
    RULES: dict[str, int]
    SURVEYS: set[str]
    ROWWISE: set[str]


class Layers(Protocol):
    """What a module of layers has, whatever its instruction set; see `_layers.pyx`."""

    LAYERS: object
    ACTIVATIONS: dict[str, int]
    NEEDS_Z: tuple[str, ...]
    LOSSES: dict[str, int]


# The levels of x86-64 that a build can have, lowest first; other processors have "base" alone.
_LEVELS = {"base": 0, "v3": 3, "v4": 4}


def runnable() -> list[str]:
    """Names of the builds that exist in this installation and run on this machine, best last."""
    return [isa for isa in _LEVELS if _LEVELS[isa] <= _runtime.cpu_level() and _exists(isa)]


def _exists(isa: str) -> bool:
    # What is compiled for an instruction set is installed together: one module stands for all.
    return importlib.util.find_spec(f"fastopt._kernels_{isa}") is not None


def load(name: str, isa: str) -> Any:
    """Import "kernels" or "layers" of one instruction set, never before it is known that they can run."""
    if isa not in runnable():
        raise ImportError(
            f"FASTOPT_ISA={isa}: this machine and installation can run {', '.join(runnable())}"
        )
    return importlib.import_module(f"fastopt._{name}_{isa}")


isa = os.environ.get("FASTOPT_ISA") or runnable()[-1]
kernels: Kernels = load("kernels", isa)
layers: Layers = load("layers", isa)
