"""Data sets from files: IDX, NPZ and CSV, and the handwritten digits that come with the package.

Readers (`read_idx`, `read_npz`, `read_csv`) return what a file holds; `read` takes any of their
formats and gives rows for a net to predict; `load` makes a data set ready to train on. A file that
is damaged is refused with a ValueError that names it and says what is wrong.
"""

from __future__ import annotations

import gzip
import math
import operator
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from _typeshed import StrPath
    from numpy.typing import ArrayLike, NDArray

    from fastopt._core.typing import AnyArray

    Task: TypeAlias = Literal["auto", "classification", "regression"]
    Header: TypeAlias = bool | Literal["auto"]
    Part: TypeAlias = tuple[AnyArray, AnyArray | None]

__all__ = [
    "Dataset",
    "load",
    "load_digits",
    "read",
    "read_arrays",
    "read_csv",
    "read_idx",
    "read_idx_folder",
    "read_idx_pair",
    "read_npz",
    "train_test_split",
]

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"
_PARTS = ("", "_train", "_test")  # what may follow the names X and y
_SPLIT_NAMES = ("X_train", "y_train", "X_test", "y_test")
_DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_NOT_NPZ = "damaged, or not an .npz file of plain arrays"


@dataclass(frozen=True)
class Dataset:
    """Data ready to train on.

    Attributes
    ----------
    X_train, X_test : ndarray of float32, shape (n, features)
    y_train, y_test : ndarray
        int64 labels ``0 .. len(classes) - 1`` (classification), or float32 values (regression).
    classes : ndarray or None
        The label that each integer stands for; None for a regression.
    """

    X_train: NDArray[np.float32]
    y_train: AnyArray
    X_test: NDArray[np.float32]
    y_test: AnyArray
    classes: AnyArray | None


# --- The front door --------------------------------------------------------------------------


def load(
    path: StrPath, *, label: str | int | None = -1, header: Header = "auto", scale: float | None = None,
    task: Task = "auto", test_size: float = 0.2, seed: int = 0,
) -> Dataset:
    """Read a data set of any known format and make it ready to train on.

    Parameters
    ----------
    path, label, header, scale
        As for `read`; there must be labels.
    task : {"auto", "classification", "regression"}
        ``"auto"``: a regression if the labels are floating-point numbers.
    test_size, seed
        As for `train_test_split`, for data that come in one piece.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If the format cannot be told, the file is damaged, or there are no labels.
    FileNotFoundError
        If there is no such file.
    """
    if task not in ("auto", "classification", "regression"):
        raise ValueError(f"task must be 'auto', 'classification' or 'regression', got {task!r}")
    parts = read(path, label=label, header=header, scale=scale)
    labels = [y for _, y in parts if y is not None]
    if len(labels) < len(parts):
        raise ValueError(f"{path}: expected labels, found rows of features alone")
    targets, classes = _targets(path, np.concatenate(labels), task)
    if len(parts) == 1:
        X_train, X_test, y_train, y_test = train_test_split(parts[0][0], targets, test_size, seed)
    else:
        (X_train, _), (X_test, _) = parts
        y_train, y_test = np.split(targets, [len(X_train)])
    return Dataset(X_train, y_train, X_test, y_test, classes)


def read(
    path: StrPath, *, label: str | int | None = -1, header: Header = "auto", features: int | None = None,
    scale: float | None = None,
) -> list[Part]:
    """Read the rows of a data set of any known format, in their order.

    Parameters
    ----------
    path : str or path-like
        A folder of IDX files as MNIST is published; an IDX file of images (its labels are looked
        for beside it); ``.npz``, ``.csv`` or ``.csv.gz``; or the word ``"digits"`` for
        `load_digits`.
    label, header, features
        As for `read_csv`; other formats ignore them.
    scale : float, optional
        The features are divided by it: by default by 255 where they are bytes (pixels), else by 1.

    Returns
    -------
    list of (X, y)
        The one part, or two: that for training and that for test. ``X`` is float32 of shape
        (n, features); ``y`` holds the labels as they are in the file, None where it has none.

    Raises
    ------
    ValueError
        If the format cannot be told, the file is damaged, or the features are not finite numbers.
    FileNotFoundError
        If there is no such file.
    """
    if scale is not None and not 0.0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale!r}")
    parts = [
        (_features(path, X, scale), y) for X, y in _read_parts(path, label, header, features)
    ]
    widths = [X.shape[1] for X, _ in parts]
    if len(set(widths)) > 1:
        raise ValueError(f"{path}: X_train has {widths[0]} features, X_test {widths[1]}")
    return parts


def _read_parts(path: StrPath, label: str | int | None, header: Header, features: int | None) -> list[Part]:
    """Return a list of one or two pairs ``X, y`` of whatever is there, as it is there."""
    file = Path(path)
    if file.is_dir():
        return _parts(read_idx_folder(file))
    if not file.exists():
        if os.fspath(path) == "digits":
            return [load_digits()]
        raise FileNotFoundError(f"no such file or folder: {file}")
    name = file.name.lower()
    if name.endswith(".npz"):
        return _parts(read_npz(file))
    if name.endswith((".csv", ".csv.gz")):
        return [read_csv(file, label, header, features)]
    if "idx" in name:
        return [read_idx_pair(file, _labels_beside(file))]
    raise ValueError(
        f"{file}: unknown format; known are a folder of IDX files, IDX, .npz, .csv and .csv.gz"
    )


def _parts(arrays: Mapping[str, AnyArray]) -> list[Part]:
    return [(arrays["X" + part], arrays.get("y" + part)) for part in _PARTS if "X" + part in arrays]


def _labels_beside(images: Path) -> Path:
    labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels == images or not labels.exists():
        raise ValueError(f"{images}: found no file of labels beside it; use read_idx_pair")
    return labels


def _features(path: StrPath, X: AnyArray, scale: float | None) -> NDArray[np.float32]:
    """Return `X` as float32 of shape (n, features), divided by its scale."""
    if X.dtype.kind not in "biuf":
        raise ValueError(f"{path}: the features must be real numbers, got {X.dtype}")
    if scale is None:
        scale = 255.0 if X.dtype == np.uint8 else 1.0
    X = X.reshape(len(X), -1).astype(np.float32)
    if scale != 1.0:
        X /= scale
    if not np.isfinite(X).all():
        raise ValueError(f"{path}: the features hold NaN or Inf")
    return X


def _targets(path: StrPath, y: AnyArray, task: Task) -> tuple[AnyArray, AnyArray | None]:
    """Return ``labels, classes``, or ``values, None`` for a regression."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if task == "regression" or (task == "auto" and y.dtype.kind == "f"):
        if y.dtype.kind not in "biuf":
            raise ValueError(f"{path}: a regression needs numbers for labels, got {y.dtype}")
        y = y.astype(np.float32)
        if not np.isfinite(y).all():
            raise ValueError(f"{path}: the labels hold NaN or Inf")
        return y, None
    if y.ndim != 1:
        raise ValueError(f"{path}: expected one label a row, got labels of shape {y.shape}")
    classes, labels = np.unique(y, return_inverse=True)
    return labels.astype(np.int64, copy=False), classes


def train_test_split(
    X: ArrayLike, y: ArrayLike, test_size: float = 0.2, seed: int = 0
) -> tuple[AnyArray, AnyArray, AnyArray, AnyArray]:
    """Split rows at random, each class in the same proportion.

    Parameters
    ----------
    X : ndarray, shape (n, ...)
    y : ndarray, shape (n, ...)
        One-dimensional labels that are not floating-point numbers are stratified: the test part
        holds ``test_size`` of each class, rounded up or down. Others are split plainly.
    test_size : float, default 0.2
        Share of the rows, between 0 and 1, both excluded.
    seed : int, default 0

    Returns
    -------
    X_train, X_test, y_train, y_test : ndarray
        Copies; rows keep their order.
    """
    X, y = np.asarray(X), np.asarray(y)
    n = len(X)
    if len(y) != n:
        raise ValueError(f"X and y must be of the same length, got {n} and {len(y)}")
    if not 0.0 < test_size < 1.0:
        raise ValueError(f"test_size must be between 0 and 1, got {test_size!r}")
    n_test = round(n * test_size)
    if not 0 < n_test < n:
        raise ValueError(f"test_size={test_size!r} of {n} rows leaves one part without any")
    order = np.random.default_rng(seed).permutation(n)
    if y.ndim == 1 and y.dtype.kind != "f":
        order = order[np.argsort(y[order], kind="stable")]
    # Rows at even distances meet every class in proportion, once sorted by class.
    picks = order[((np.arange(n_test) + 0.5) * n / n_test).astype(np.intp)]
    test = np.zeros(n, bool)
    test[picks] = True
    return X[~test], X[test], y[~test], y[test]


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the 1797 handwritten digits that come with the package.

    Returns
    -------
    X : ndarray of float32, shape (1797, 64)
        Images of 8 x 8 pixels, row by row, in steps of 1/16 from 0 to 1.
    y : ndarray of int64, shape (1797,)
        Digits 0 to 9.

    References
    ----------
    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0.
    """
    arrays = read_npz(Path(__file__).with_name("digits.npz"))
    return arrays["X"].astype(np.float32) / 16.0, arrays["y"].astype(np.int64)


# --- NPZ -------------------------------------------------------------------------------------


def read_arrays(path: StrPath) -> dict[str, AnyArray]:
    """Return all arrays of an ``.npz`` file, by name.

    Raises
    ------
    ValueError
        If the file is no ``.npz``, is damaged, or holds anything but plain arrays.
    """
    with open(path, "rb") as file:
        try:
            with np.lib.npyio.NpzFile(file) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except _DAMAGE as error:
            raise ValueError(f"{path}: {_NOT_NPZ}") from error
        is_whole = _lists_all(file, len(arrays))
    if not is_whole or not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError(f"{path}: {_NOT_NPZ}")  # NumPy hands out other files as bytes
    return arrays


def _lists_all(file: BinaryIO, members: int) -> bool:
    """Whether a zip archive's end speaks of as many members as its directory: zipfile does not ask.

    A damaged length in the directory can hide the next member in the one before. An archive with a
    comment, which NumPy never writes, ends otherwise and is taken as it is.
    """
    file.seek(-22, os.SEEK_END)
    end = file.read()
    return end[:4] != b"PK\5\6" or int.from_bytes(end[10:12], "little") in (members, 0xFFFF)


def read_npz(path: StrPath) -> dict[str, AnyArray]:
    """Return the arrays of a data set in an ``.npz`` file.

    Parameters
    ----------
    path : str or path-like
        Holds ``X`` and ``y``, or ``X_train``, ``y_train``, ``X_test`` and ``y_test`` (as Keras'
        ``mnist.npz``), or ``X`` without labels, in capitals or not. Other arrays are ignored.

    Returns
    -------
    dict of ndarray
        Under these names.
    """
    found = {name.lower(): array for name, array in read_arrays(path).items()}
    for names in (("X", "y"), _SPLIT_NAMES, ("X",)):
        if all(name.lower() in found for name in names):
            arrays = {name: found[name.lower()] for name in names}
            for part in _PARTS:
                if "X" + part in arrays:
                    X, y = "X" + part, "y" + part
                    _check_part(path, X, arrays[X], y, arrays.get(y))
            return arrays
    raise ValueError(
        f"{path}: expected the arrays X and y, or {', '.join(_SPLIT_NAMES)}; "
        f"found {', '.join(found) or 'none'}"
    )


def _check_part(path: StrPath, X_name: str, X: AnyArray, y_name: str, y: AnyArray | None) -> None:
    if X.ndim < 2:
        raise ValueError(f"{path}: {X_name} must have at least two dimensions, got {X.shape}")
    if X.size == 0:
        raise ValueError(f"{path}: {X_name} is empty, its shape is {X.shape}")
    if y is not None:
        rows = len(y) if y.ndim else 0
        if rows != len(X):
            raise ValueError(f"{path}: {X_name} has {len(X)} rows, {y_name} has {rows}")


# --- IDX -------------------------------------------------------------------------------------


def read_idx(path: StrPath) -> AnyArray:
    """Return the array of an IDX file, the format in which MNIST is published.

    Parameters
    ----------
    path : str or path-like
        Compressed by gzip or not, whatever its name.

    Returns
    -------
    ndarray
        Of the type and shape that the file states, in the machine's byte order.

    Notes
    -----
    A header of two zero bytes, one byte for the type, one for the number of dimensions, and each
    dimension as a big-endian uint32; then the values, big-endian, in C order.
    """
    content = _read_bytes(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise ValueError(f"{path}: not an IDX file, it begins with {content[:4].hex(' ')!r}")
    dtype, ndim = np.dtype(_IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * ndim
    if len(content) < start:
        raise ValueError(f"{path}: truncated in the header")
    shape = tuple(np.frombuffer(content, ">u4", ndim, 4).tolist())
    expected = math.prod(shape) * dtype.itemsize
    if len(content) - start != expected:
        raise ValueError(
            f"{path}: truncated or damaged, shape {shape} needs {expected} bytes of values, "
            f"the file holds {len(content) - start}"
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def _read_bytes(path: StrPath) -> bytes:
    content = Path(path).read_bytes()
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error})") from None


def read_idx_pair(images: StrPath, labels: StrPath) -> tuple[AnyArray, AnyArray]:
    """Return ``X, y`` from an IDX file of images and one of labels.

    Parameters
    ----------
    images, labels : str or path-like

    Returns
    -------
    X : ndarray, shape (n, ...)
    y : ndarray, shape (n,)
    """
    X, y = read_idx(images), read_idx(labels)
    if y.ndim != 1:
        raise ValueError(f"{labels}: expected a vector of labels, got the shape {y.shape}")
    _check_part(images, "the file of images", X, f"its file of labels {labels}", y)
    return X, y


def read_idx_folder(path: StrPath) -> dict[str, AnyArray]:
    """Return the data set of a folder laid out as MNIST is published.

    Parameters
    ----------
    path : str or path-like
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``
        and ``t10k-labels-idx1-ubyte``, each perhaps with ``.gz``, or with a dot for the second
        hyphen.

    Returns
    -------
    dict of ndarray
        ``X_train``, ``y_train``, ``X_test``, ``y_test``.
    """
    arrays = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        pair = [_find_idx(path, f"{prefix}-{name}") for name in ("images", "labels")]
        arrays[f"X_{part}"], arrays[f"y_{part}"] = read_idx_pair(*pair)
    return arrays


def _find_idx(folder: StrPath, stem: str) -> Path:
    for suffix in ("-idx?-ubyte", "-idx?-ubyte.gz", ".idx?-ubyte", ".idx?-ubyte.gz"):
        for file in Path(folder).glob(stem + suffix):
            return file
    kind = "idx3" if stem.endswith("images") else "idx1"
    raise ValueError(f"{folder}: the file {stem}-{kind}-ubyte (or .gz) is missing")


# --- CSV -------------------------------------------------------------------------------------


def read_csv(
    path: StrPath, label: str | int | None = -1, header: Header = "auto", features: int | None = None
) -> tuple[NDArray[np.float64], AnyArray | None]:
    """Return ``X, y`` from a table of numbers, which may have a column of labels.

    Parameters
    ----------
    path : str or path-like
        Compressed by gzip if its name ends in ``.gz``.
    label : str, int or None, default -1
        The column of labels, by name or by place (negative: from the right); None: there is none.
    header : bool or "auto", default "auto"
        Whether the first line holds names. ``"auto"``: it does if none of its cells is a number.
    features : int, optional
        How many features a row has, where that is known: a table of just as many columns has no
        labels, whatever `label` says.

    Returns
    -------
    X : ndarray of float64, shape (n, features)
    y : ndarray of int64, float64 or strings, shape (n,), or None

    Raises
    ------
    ValueError
        If a cell is missing or is not a finite number, rows differ in length, or there is no such
        column of labels. Rows are counted from 1, names not included.
    ImportError
        If pandas is not installed: ``pip install 'fastopt[data]'``.
    """
    if header not in (True, False, "auto"):
        raise ValueError(f"header must be True, False or 'auto', got {header!r}")
    table, names = _read_table(path, header)
    place = None if len(names) == features else _label_place(path, names, label)
    _check_cells(path, table, names, place)
    if place is None:
        return table.to_numpy(np.float64), None
    y = table.pop(place)  # type: ignore[arg-type,unused-ignore]  # a place is a name there
    return table.to_numpy(np.float64), y.to_numpy(None if y.dtype.kind in "biuf" else str)


def _read_table(path: StrPath, header: Header) -> tuple[pd.DataFrame, list[Any]]:
    """Return the table, its columns numbered, and their names; the numbers where it has none."""
    try:
        import pandas as pd
    except ImportError:
        raise ImportError("reading CSV needs pandas: pip install 'fastopt[data]'") from None
    options: dict[str, Any] = {"header": None, "keep_default_na": False, "na_values": [""]}
    try:
        first = pd.read_csv(path, nrows=1, dtype=str, **options).iloc[0]
        if header == "auto":
            header = bool(pd.to_numeric(first, errors="coerce").isna().all())
        table = pd.read_csv(path, skiprows=int(header), low_memory=False, **options)
    except FileNotFoundError:
        raise
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a sound CSV file ({error})") from None
    names = list(first) if header else list(range(len(first)))
    if table.shape[1] != len(names):
        raise ValueError(
            f"{path}: the first line names {len(names)} columns, the rows have {table.shape[1]}"
        )
    return table, names


def _label_place(path: StrPath, names: list[Any], label: str | int | None) -> int | None:
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
        raise TypeError(f"label must be a name, a place or None, got {label!r}") from None
    if not -n <= label < n:
        raise ValueError(f"{path}: label={label} is not one of the {n} columns")
    return label % n


def _check_cells(path: StrPath, table: pd.DataFrame, names: list[Any], label: int | None) -> None:
    """Refuse missing cells, and features that are not finite numbers."""
    import pandas as pd

    for place, name in enumerate(names):
        cells = table[place]
        wrong, what = cells.isna(), "is missing"
        if not wrong.any() and (place != label or cells.dtype.kind == "f"):
            numbers = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64)
            wrong, what = ~np.isfinite(numbers), "is not a finite number"
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(f"{path}: the cell in row {row + 1} of column {name!r} {what}")
