"""Splits a data set into training and test data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastopt._core.validation import check_float, check_X_y

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastopt._core.typing import AnyArray

__all__ = ["train_test_split"]


def train_test_split(
    X: ArrayLike, y: ArrayLike, test_size: float = 0.2, seed: int = 0
) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray]:
    """Split samples into random training and test sets, stratified by class.

    Parameters
    ----------
    X : ndarray, shape (n, ...)
        Samples.
    y : ndarray, shape (n, ...)
        Labels or values. One-dimensional labels that are not floating-point numbers are stratified:
        the test set holds ``test_size`` of each class, rounded up or down.
    test_size : float, default 0.2
        Fraction of the samples in the test set, between 0 and 1, both excluded.
    seed : int, default 0
        Seed of the random split.

    Returns
    -------
    X_train, X_test, y_train, y_test : ndarray
        Copies, in the original order.
    """
    X, y = check_X_y("X", X, "y", y)
    test_size = check_float("test_size", test_size, 0.0, 1.0, open_low=True)
    n = len(y)
    n_test = round(n * test_size)
    if not 0 < n_test < n:
        raise ValueError(f"test_size: {test_size!r} of {n} samples leaves one part empty")
    order = np.random.default_rng(seed).permutation(n)
    if y.ndim == 1 and y.dtype.kind != "f":
        order = order[np.argsort(y[order], kind="stable")]
    # Evenly spaced positions in an order sorted by class hold every class in proportion.
    picks = order[((np.arange(n_test) + 0.5) * n / n_test).astype(np.intp)]
    test = np.zeros(n, bool)
    test[picks] = True
    return X[~test], X[test], y[~test], y[test]
