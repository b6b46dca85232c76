"""The handwritten digits that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastopt.nn.data.npz import read_npz

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["load_digits"]


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return 1797 images of handwritten digits and their labels.

    Returns
    -------
    X : ndarray of float32, shape (1797, 64)
        Images of 8 x 8 pixels in row-major order, with values from 0 to 1 in steps of 1/16.
    y : ndarray of int64, shape (1797,)
        Digits 0 to 9.

    References
    ----------
    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0.
    """
    arrays = read_npz(Path(__file__).parent.with_name("digits.npz"))
    return arrays["X"].astype(np.float32) / 16.0, arrays["y"].astype(np.int64)
