"""How much each row of a data set counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastopt._core.typing import AnyArray
    from fastopt.nn.typing import ClassWeight

__all__ = ["check_weights", "row_weights"]


def row_weights(
    y: AnyArray, sample_weight: ArrayLike | None = None, class_weight: ClassWeight | None = None
) -> NDArray[np.float64] | None:
    """Return the weight of every row, or None where all count the same.

    Parameters
    ----------
    y : ndarray, shape (n,) or (n, 1), or of any shape if there are no class weights
        Labels.
    sample_weight : array_like, shape (n,), optional
    class_weight : dict or "balanced", optional
        Weights of labels; a label that is not in the dict has weight 1. ``"balanced"`` makes all
        classes count the same: ``n / (classes * rows of the class)``, as in scikit-learn.

    Returns
    -------
    ndarray of float64, shape (n,), or None
        The product of both.

    Raises
    ------
    ValueError, TypeError
        If a weight is negative or not finite, or all are zero; if there are class weights but no
        classes; or if classes and class weights do not fit.
    """
    weights = None
    if sample_weight is not None:
        weights = check_weights("sample_weight", sample_weight, len(y))
    if class_weight is not None:
        of_classes = _of_classes(y, class_weight)
        weights = of_classes if weights is None else weights * of_classes
        if not weights.any():
            raise ValueError("class_weight: expected a positive weight for some row, got zeros alone")
    return weights


def check_weights(name: str, weights: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return `weights` as n numbers of float64, none of them negative, not all of them zero."""
    weights = _numbers(name, weights)
    if weights.shape != (n,):
        raise ValueError(f"{name}: expected one number a row, shape ({n},), got {weights.shape}")
    if not weights.any():
        raise ValueError(f"{name}: expected at least one positive number, got zeros alone")
    return weights


def _of_classes(y: AnyArray, class_weight: ClassWeight) -> NDArray[np.float64]:
    if y.dtype.kind == "f" or y.ndim > 2 or (y.ndim == 2 and y.shape[1] != 1):
        raise ValueError(
            f"class_weight: expected y to hold one label a row, got {y.dtype} of shape {y.shape}"
        )
    classes, place, counts = np.unique(y.ravel(), return_inverse=True, return_counts=True)
    if isinstance(class_weight, str) and class_weight == "balanced":
        return (len(y) / (len(classes) * counts))[place]
    if not isinstance(class_weight, Mapping):
        raise TypeError(f"class_weight: expected a dict or 'balanced', got {class_weight!r}")
    labels = classes.tolist()
    left = [label for label in labels if label not in class_weight]
    unknown = [label for label in class_weight if label not in labels]
    if left and unknown:
        raise ValueError(
            f"class_weight: the labels {left} of y have no weight, and {unknown} are no labels of y"
        )
    return _numbers("class_weight", [class_weight.get(label, 1.0) for label in labels])[place]


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return `values` in float64, or raise if one cannot be a weight."""
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected real numbers, got {values.dtype}")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"{name}: expected finite numbers of at least 0")
    return values.astype(np.float64)
