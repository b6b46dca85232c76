"""``centralize=`` and ``unit_clip=``: gradients that are scaled and shifted unit by unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastopt._core.typing import Array

    # (sums over each unit, elements per unit, whether the array is a vector) -> (scale, shift) of each unit
    UnitTransform: TypeAlias = Callable[[Array, int, bool], tuple[Array, Array]]


def unit_transform(centralize: bool, unit_clip: float | None) -> UnitTransform | None:
    """Return the function that maps sums over units to the scale and the shift of their gradients.

    A unit of an array is one index of its last axis, with all other axes summed over. A vector is a
    single unit and is not centralized. None if neither option is used.

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
        scale = np.ones_like(g) if unit_clip is None else _clip_scale(g_squares, p_squares, unit_clip)
        shift = scale * g / size if centralize and not is_vector else np.zeros_like(g)
        return scale, shift

    return transform


def _clip_scale(g_squares: Array, p_squares: Array, clipping: float, min_norm: float = 1e-3) -> Array:
    """Scale that limits the norm of a gradient to `clipping` times the norm of the weights."""
    norm, bound = np.sqrt(g_squares), clipping * np.maximum(np.sqrt(p_squares), min_norm)
    return np.where(norm < bound, 1.0, bound / np.maximum(norm, 1e-6))
