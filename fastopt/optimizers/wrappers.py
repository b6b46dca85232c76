"""What can be put around any rule: gradients changed as a whole, and summed over micro-batches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastopt._core import dispatch
from fastopt._core.step_table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastopt._core.typing import Array, Gradients, Shape

    # Of a unit's sums and size, and whether it is a vector: what its gradient is multiplied by, and what
    # is taken off.
    Transform: TypeAlias = Callable[[Array, int, bool], tuple[Array, Array]]


def transformation(centralize: bool, unit_clip: float | None) -> Transform | None:
    """A function of a unit's sums that says what its gradient is multiplied by, and what is taken off.

    A unit of an array is what its last axis counts, all other axes being summed over; a vector is one
    unit, and is not centralized. None if nothing is to be done.

    References
    ----------
    Yong, Huang, Hua, Zhang, "Gradient centralization: a new optimization technique for deep neural
    networks", ECCV 2020.
    Brock, De, Smith, Simonyan, "High-performance large-scale image recognition without normalization",
    ICML 2021 (adaptive gradient clipping).
    """
    if not centralize and unit_clip is None:
        return None

    def transform(sums: Array, size: int, is_vector: bool) -> tuple[Array, Array]:
        g, g_squares, p_squares = sums
        factor = np.ones_like(g) if unit_clip is None else _clipped(g_squares, p_squares, unit_clip)
        mean = factor * g / size if centralize and not is_vector else np.zeros_like(g)
        return factor, mean

    return transform


def _clipped(g_squares: Array, p_squares: Array, clipping: float, least: float = 1e-3) -> Array:
    """What brings the norm of a gradient down to `clipping` times that of the weights, or 1."""
    norm, bound = np.sqrt(g_squares), clipping * np.maximum(np.sqrt(p_squares), least)
    return np.where(norm < bound, 1.0, bound / np.maximum(norm, 1e-6))


class Accumulator:
    """Mean of the gradients of a number of micro-batches.

    Attributes
    ----------
    count : int
        Micro-batches since the last step.
    """

    def __init__(
        self, shape: Shape, places: list[str], sums: list[Array], micro_batches: int, sparse: str,
        others: list[Array], before: Accumulator | None = None,
    ) -> None:
        self.sums: list[Array] = sums
        self.micro_batches: int = micro_batches
        self.count: int = 0 if before is None else before.count
        kernels = dispatch.kernels
        self._table = Table(
            kernels.KERNELS, shape, places, sums, [[] for _ in sums], [], [], [0] * len(sums),
            [kernels.RULES["sgd"]], [sparse] * len(sums), others=others,
        )
        self._table.set_group(0, False, 0.0, (-1.0 / micro_batches,))

    def __getstate__(self) -> dict[str, Any]:
        return {"count": self.count}    # the optimizer, when it is unpickled, makes another of it

    def clear(self) -> None:
        for array in self.sums:
            array[...] = 0

    def add(self, grads: Gradients, scale: float, zero_grad: bool) -> bool:
        """Add the gradients of a micro-batch; True if they were the last that a step waits for."""
        self._table.step_shaped(grads, scale, math.inf, math.inf, zero_grad, False, False, None)
        self.count = (self.count + 1) % self.micro_batches
        return self.count == 0
