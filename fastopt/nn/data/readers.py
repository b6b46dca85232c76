"""Readers of IDX files (the format in which MNIST is published), NPZ files and CSV files."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastopt.checkpoint import read_arrays
from fastopt.nn.data.tables import TableFormat, TableReader

if TYPE_CHECKING:
    from _typeshed import StrPath
    from numpy.typing import NDArray

    from fastopt._core.typing import AnyArray
    from fastopt.nn.typing import Header

PARTS = ("", "_train", "_test")  # suffixes of the array names X and y
_SPLIT_NAMES = ("X_train", "y_train", "X_test", "y_test")
_IDX_NAME = re.compile(
    r"(?P<prefix>.+-)?(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(\.gz)?"
)
_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}  # of IDX files


def read_idx(path: StrPath) -> AnyArray:
    """Return the array of an IDX file, the format in which MNIST is published.

    Parameters
    ----------
    path : str or path-like
        The file may be compressed by gzip, whatever its name.

    Returns
    -------
    ndarray
        Array of the dtype and shape given in the file, in native byte order.

    Notes
    -----
    The header consists of two zero bytes, one byte for the type, one for the number of dimensions, and
    each dimension as a big-endian uint32. The values follow, big-endian, in C order.
    """
    content = Path(path).read_bytes()
    if content.startswith(b"\x1f\x8b"):  # the magic number of gzip
        import gzip
        import zlib

        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error})") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        raise ValueError(f"{path}: not an IDX file, it begins with {content[:4].hex(' ')!r}")
    dtype, ndim = np.dtype(_DTYPES[content[2]]), content[3]
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
    _check_part(images, "the file of images", X, f"the file of labels {labels}", y)
    return X, y


def read_idx_folder(path: StrPath) -> dict[str, AnyArray]:
    """Return the data set of a folder with the IDX files of MNIST.

    Parameters
    ----------
    path : str or path-like
        A folder that holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
        ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``. Each name may have the suffix ``.gz``, a
        dot in place of the second hyphen, and ``test`` in place of ``t10k``. A file may be in a folder of
        the same name, and all of them in a folder ``raw`` or ``*/raw``, as torchvision stores them. If the
        names have prefixes for several data sets, as in EMNIST, the path must end in one of these:
        ``EMNIST/raw/emnist-letters``.

    Returns
    -------
    dict of ndarray
        ``X_train``, ``y_train``, ``X_test``, ``y_test``.
    """
    folder, name = (Path(path), None) if Path(path).is_dir() else (Path(path).parent, Path(path).name)
    found = _find_idx_files(folder)
    if name is not None:
        found = {key: files for key, files in found.items() if key[1] == name}
    if len(found) > 1 and (folder, "") not in found:
        paths = ", ".join(sorted(str(parent / prefix) for parent, prefix in found))
        raise ValueError(f"{path}: expected one data set, found several; choose one of {paths}")
    files = found.get((folder, "")) or next(iter(found.values()), {})
    arrays = {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        pair = []
        for kind, code in (("images", "idx3"), ("labels", "idx1")):
            if (part, kind) not in files:
                raise ValueError(f"{path}: the file {stem}-{kind}-{code}-ubyte (or .gz) is missing")
            pair.append(files[part, kind])
        arrays[f"X_{part}"], arrays[f"y_{part}"] = read_idx_pair(*pair)
    return arrays


def _find_idx_files(folder: Path) -> dict[tuple[Path, str], dict[tuple[str, str], Path]]:
    """Return the IDX files by folder and prefix of the data set, then by part and kind."""
    found: dict[tuple[Path, str], dict[tuple[str, str], Path]] = {}
    for parent in (folder, folder / "raw", *sorted(folder.glob("*/raw"))):
        # Sorted, so that an uncompressed file comes after its folder or compressed copy, and replaces it.
        for path in sorted(parent.glob("*-ubyte*"), key=lambda path: (path.is_file(), path.suffix != ".gz")):
            match = _IDX_NAME.fullmatch(path.name)
            if match is None:
                continue
            inside = [file for file in sorted(path.glob("*-ubyte*")) if _IDX_NAME.fullmatch(file.name)]
            if path.is_dir() and len(inside) != 1:
                continue
            part = "train" if match["part"] == "train" else "test"
            files = found.setdefault((parent, (match["prefix"] or "").removesuffix("-")), {})
            files[part, match["kind"]] = inside[0] if path.is_dir() else path
    return found


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
                    _check_part(path, X, arrays[X], y, arrays.get(y))
            return arrays
    raise ValueError(
        f"{path}: expected the arrays X and y, or {', '.join(_SPLIT_NAMES)}; "
        f"found {', '.join(found) or 'none'}"
    )


def _check_part(path: StrPath, X_name: str, X: AnyArray, y_name: str, y: AnyArray | None) -> None:
    """Raise if `X` is not a nonempty array of samples, or `y` differs from it in length."""
    if X.ndim < 2:
        raise ValueError(f"{path}: expected at least two dimensions of {X_name}, got the shape {X.shape}")
    if X.size == 0:
        raise ValueError(f"{path}: {X_name} is empty, its shape is {X.shape}")
    if y is not None:
        n = len(y) if y.ndim else 0
        if n != len(X):
            raise ValueError(f"{path}: {X_name} has {len(X)} rows, {y_name} has {n}")


def read_csv(
    path: StrPath, label: str | int | None = -1, header: Header = "auto", features: int | None = None
) -> tuple[NDArray[np.float64], AnyArray | None]:
    """Return ``X, y`` from a table of numbers and, optionally, a label column.

    Tables with strings or missing values are read by `fastopt.nn.data.load`.

    Parameters
    ----------
    path : str or path-like
        The file, see `TableReader`.
    label : str, int or None, default -1
        Name or index of the label column (negative: from the right). None: the table has no labels.
    header : bool or "auto", default "auto"
        Whether the first line holds column names, see `TableFormat`.
    features : int, optional
        Expected number of features. A table with exactly this many columns has no labels, whatever
        `label` is.

    Returns
    -------
    X : ndarray of float64, shape (n, features)
    y : ndarray of int64, float64 or strings, shape (n,), or None

    Notes
    -----
    It needs pandas: ``pip install 'fastopt[data]'``. Row numbers in error messages start at 1 and exclude
    the header.
    """
    reader = TableReader(path, TableFormat(header=header))
    n = len(reader.names)
    if label is not None and n < 2 and n != features:
        raise ValueError(f"{path}: expected features and a label column, found one column")
    index = None if label is None or n == features else reader.index_of("label", label)
    frame = reader.read(label=index)
    columns = []
    for i in range(n):
        values = reader.numbers(frame[i])
        if i == index:
            labels = frame[i]
            wrong = labels.isna() if values.isna().any() else ~np.isfinite(values)
        else:
            columns.append(values.to_numpy(np.float64))
            wrong = ~np.isfinite(values)
        if wrong.any():
            row = int(np.argmax(wrong))
            cell = frame[i].iloc[row]
            is_missing = frame[i].isna().iloc[row]
            defect = "is missing" if is_missing else f"is {str(cell)!r}, which is not a finite number"
            raise ValueError(f"{reader.cell(row, i)} {defect}")
    X = np.column_stack(columns)
    if index is None:
        return X, None
    values = reader.numbers(labels)
    if values.isna().any():
        return X, labels.to_numpy(str)
    is_integer = not labels.str.contains("[.,eE]", regex=True).any()
    return X, values.to_numpy(np.int64 if is_integer else np.float64)
