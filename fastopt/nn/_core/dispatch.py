"""The layer kernels for the instruction set that `fastopt._core.dispatch` has selected."""

from typing import Protocol

from fastopt._core import dispatch


class Layers(Protocol):
    """The contents of a module of layer kernels, the same for every instruction set; see `layers.pyx`.

    Attributes
    ----------
    LAYERS : capsule
        Two `LayerKernels`, for float32 and for float64.
    ACTIVATIONS, LOSSES : dict of {str: int}
        Code of each activation and loss.
    NEEDS_Z : tuple of str
        Activations whose derivative is computed from z, their argument, instead of their output.
    """

    LAYERS: object
    ACTIVATIONS: dict[str, int]
    NEEDS_Z: tuple[str, ...]
    LOSSES: dict[str, int]


layers: Layers = dispatch.load("fastopt.nn._core.layers", dispatch.isa)
