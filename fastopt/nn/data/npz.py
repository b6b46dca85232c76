"""Reads data sets from NPZ files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastopt.nn.files import read_arrays

if TYPE_CHECKING:
    from _typeshed import StrPath

    from fastopt._core.typing import AnyArray

__all__ = ["PARTS", "check_part", "read_npz"]

PARTS = ("", "_train", "_test")  # suffixes of the array names X and y
_SPLIT_NAMES = ("X_train", "y_train", "X_test", "y_test")


def read_npz(path: StrPath) -> dict[str, AnyArray]:
    """Return the arrays of a data set in an ``.npz`` file.

    Parameters
    ----------
    path : str or path-like
        A file that holds ``X`` and ``y``; or ``X_train``, ``y_train``, ``X_test`` and ``y_test`` (as
        Keras's ``mnist.npz``); or ``X`` without labels. The case of the names does not matter. Other
        arrays are ignored.

    Returns
    -------
    dict of ndarray
        The arrays under these names.
    """
    found = {name.lower(): array for name, array in read_arrays(path).items()}
    for names in (("X", "y"), _SPLIT_NAMES, ("X",)):
        if all(name.lower() in found for name in names):
            arrays = {name: found[name.lower()] for name in names}
            for part in PARTS:
                if "X" + part in arrays:
                    X, y = "X" + part, "y" + part
                    check_part(path, X, arrays[X], y, arrays.get(y))
            return arrays
    raise ValueError(
        f"{path}: expected the arrays X and y, or {', '.join(_SPLIT_NAMES)}; "
        f"found {', '.join(found) or 'none'}"
    )


def check_part(path: StrPath, X_name: str, X: AnyArray, y_name: str, y: AnyArray | None) -> None:
    """Raise if `X` is not a nonempty array of samples, or `y` differs from it in length."""
    if X.ndim < 2:
        raise ValueError(f"{path}: expected at least two dimensions of {X_name}, got the shape {X.shape}")
    if X.size == 0:
        raise ValueError(f"{path}: {X_name} is empty, its shape is {X.shape}")
    if y is not None:
        n = len(y) if y.ndim else 0
        if n != len(X):
            raise ValueError(f"{path}: {X_name} has {len(X)} rows, {y_name} has {n}")
