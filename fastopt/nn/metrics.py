"""Metrics of predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastopt._core.typing import AnyArray

__all__ = ["accuracy", "confusion_matrix", "r2_score"]


def accuracy(y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    """Return the fraction of samples predicted correctly.

    Parameters
    ----------
    y_true, y_pred : array_like, shape (n,) or (n, labels)
        Labels of any dtype. A sample with several labels is correct only if all of them are (subset
        accuracy, as in scikit-learn).
    sample_weight : array_like, shape (n,), optional
        Weights of the samples.
    """
    y_true, y_pred = _same_shape(y_true, y_pred)
    is_correct = (y_true == y_pred).reshape(len(y_true), -1).all(axis=1)
    return float(np.average(is_correct, weights=sample_weight))  # type: ignore[arg-type]  # accepts array_like


def r2_score(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the coefficient of determination, ``1 - SS_residual / SS_total``.

    Parameters
    ----------
    y_true, y_pred : array_like, shape (n,) or (n, outputs)
        Real values. The scores of several outputs are averaged.

    Returns
    -------
    float
        1 for perfect predictions, 0 for predictions no better than the mean. A constant output scores 1
        if it is predicted exactly, else 0, as in scikit-learn.
    """
    y_true, y_pred = _same_shape(y_true, y_pred)
    y_true = y_true.reshape(len(y_true), -1).astype(np.float64)
    residual = np.square(y_true - y_pred.reshape(y_true.shape)).sum(axis=0)
    total = np.square(y_true - y_true.mean(axis=0)).sum(axis=0)
    constant = total == 0.0
    scores = 1.0 - residual / np.where(constant, 1.0, total)
    return float(np.where(constant, residual == 0.0, scores).mean())


def confusion_matrix(y_true: ArrayLike, y_pred: ArrayLike, n_classes: int | None = None) -> NDArray[np.int64]:
    """Count the samples of each true class by predicted class.

    Parameters
    ----------
    y_true, y_pred : array_like of int, shape (n,)
        Labels from 0.
    n_classes : int, optional
        Number of classes. Default: one more than the largest label.

    Returns
    -------
    ndarray of int64, shape (n_classes, n_classes)
        Rows are true classes, columns are predicted classes.
    """
    y_true, y_pred = _same_shape(y_true, y_pred)
    for name, y in (("y_true", y_true), ("y_pred", y_pred)):
        if y.ndim != 1 or y.dtype.kind not in "iub":
            raise ValueError(f"{name}: expected a vector of integers, got {y.dtype} of shape {y.shape}")
    largest = max(int(y_true.max()), int(y_pred.max()))
    if n_classes is None:
        n_classes = largest + 1
    if largest >= n_classes or min(y_true.min(), y_pred.min()) < 0:
        raise ValueError(f"y_true and y_pred: expected labels from 0 to {n_classes - 1}")
    pairs = y_true.astype(np.int64) * n_classes + y_pred
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def _same_shape(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[AnyArray, AnyArray]:
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    if y_true.shape != y_pred.shape:
        raise ValueError(f"y_pred: expected the shape of y_true, {y_true.shape}, got {y_pred.shape}")
    if y_true.ndim == 0 or len(y_true) == 0:
        raise ValueError(f"y_true: expected at least one sample, got the shape {y_true.shape}")
    return y_true, y_pred
