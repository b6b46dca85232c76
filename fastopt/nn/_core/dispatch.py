"""The layers of the instruction set that `fastopt._core.dispatch` has picked."""

from typing import Protocol

from fastopt._core import dispatch


class Layers(Protocol):
    """What a module of layers exports, whatever its instruction set; see `layers.pyx`."""

    LAYERS: object
    ACTIVATIONS: dict[str, int]
    NEEDS_Z: tuple[str, ...]
    LOSSES: dict[str, int]


layers: Layers = dispatch.load("fastopt.nn._core.layers", dispatch.isa)
