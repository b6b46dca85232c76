"""Reads CSV files with pandas."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.validation import check_choice

if TYPE_CHECKING:
    import pandas as pd
    from _typeshed import StrPath
    from numpy.typing import NDArray

    from fastopt._core.typing import AnyArray
    from fastopt.nn.typing import Header

__all__ = ["read_csv"]


def read_csv(
    path: StrPath, label: str | int | None = -1, header: Header = "auto", features: int | None = None
) -> tuple[NDArray[np.float64], AnyArray | None]:
    """Return ``X, y`` from a table of numbers and, optionally, a column of labels.

    Parameters
    ----------
    path : str or path-like
        The file. It is decompressed by gzip if its name ends in ``.gz``.
    label : str, int or None, default -1
        Name or index of the column of labels (negative: from the right). None: the table has no labels.
    header : bool or "auto", default "auto"
        Whether the first line holds column names. ``"auto"``: it does if none of its cells is a number.
    features : int, optional
        Expected number of features. A table with exactly this many columns has no labels, whatever
        `label` is.

    Returns
    -------
    X : ndarray of float64, shape (n, features)
    y : ndarray of int64, float64 or strings, shape (n,), or None

    Raises
    ------
    ValueError
        If a cell is missing or is not a finite number, rows differ in length, or the column of labels
        does not exist. Row numbers in the message start at 1 and exclude the header.
    ImportError
        If pandas is not installed: ``pip install 'fastopt[data]'``.
    """
    check_choice("header", header, (True, False, "auto"))
    table, names = _read_table(path, header)
    label_index = None if len(names) == features else _label_index(path, names, label)
    _check_cells(path, table, names, label_index)
    if label_index is None:
        return table.to_numpy(np.float64), None
    y = table.pop(label_index)  # type: ignore[arg-type,unused-ignore]  # the column names are integers
    return table.to_numpy(np.float64), y.to_numpy(None if y.dtype.kind in "biuf" else str)


def _read_table(path: StrPath, header: Header) -> tuple[pd.DataFrame, list[Any]]:
    """Return the table, whose columns are numbered, and the column names (numbers without a header)."""
    try:
        import pandas as pd
    except ImportError:
        raise ImportError("reading CSV needs pandas: pip install 'fastopt[data]'") from None
    import zlib

    options: dict[str, Any] = {"header": None, "keep_default_na": False, "na_values": [""]}
    try:
        first = pd.read_csv(path, nrows=1, dtype=str, **options).iloc[0]
        if header == "auto":
            header = bool(pd.to_numeric(first, errors="coerce").isna().all())
        table = pd.read_csv(path, skiprows=int(header), low_memory=False, **options)
    except FileNotFoundError:
        raise
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a valid CSV file ({error})") from None
    names = list(first) if header else list(range(len(first)))
    if table.shape[1] != len(names):
        raise ValueError(
            f"{path}: the first line has {len(names)} columns, the other lines have {table.shape[1]}"
        )
    return table, names


def _label_index(path: StrPath, names: list[Any], label: str | int | None) -> int | None:
    """Return the index of the column of labels, or None if there is none."""
    if label is None:
        return None
    n = len(names)
    if n < 2:
        raise ValueError(f"{path}: expected features and a column of labels, found one column")
    if isinstance(label, str):
        if label not in names:
            raise ValueError(f"{path}: no column {label!r} among {', '.join(map(str, names))}")
        return names.index(label)
    try:
        label = operator.index(label)
    except TypeError:
        raise TypeError(f"label: expected a column name, an index or None, got {label!r}") from None
    if not -n <= label < n:
        raise ValueError(f"{path}: label={label} is not one of the {n} columns")
    return label % n


def _check_cells(path: StrPath, table: pd.DataFrame, names: list[Any], label_index: int | None) -> None:
    """Raise if a cell is missing or a feature is not a finite number."""
    import pandas as pd

    for i, name in enumerate(names):
        cells = table[i]
        is_bad, defect = cells.isna(), "is missing"
        if not is_bad.any() and (i != label_index or cells.dtype.kind == "f"):
            values = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64)
            is_bad, defect = ~np.isfinite(values), "is not a finite number"
        if is_bad.any():
            row = int(np.argmax(is_bad))
            raise ValueError(f"{path}: the cell in row {row + 1} of column {name!r} {defect}")
