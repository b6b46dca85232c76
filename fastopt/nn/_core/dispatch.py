"""The layer kernels for the instruction set that `fastopt._core.dispatch` has selected."""

from typing import Protocol

from fastopt._core import dispatch


class Layers(Protocol):
    """The contents of `layers.pyx`, the same for every instruction set."""

    LAYERS: object  # capsule of two `LayerKernels`, for float32 and for float64
    ACTIVATIONS: dict[str, int]
    NEEDS_Z: tuple[str, ...]  # activations whose derivative is computed from their argument, not their output
    LOSSES: dict[str, int]


layers: Layers = dispatch.load("fastopt.nn._core.layers", dispatch.isa)
