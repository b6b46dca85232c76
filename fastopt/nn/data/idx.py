"""Reads IDX files, the format in which MNIST is published."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastopt.nn.data.npz import check_part

if TYPE_CHECKING:
    from _typeshed import StrPath

    from fastopt._core.typing import AnyArray

__all__ = ["read_idx", "read_idx_folder", "read_idx_pair"]

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"


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
    content = _read_bytes(path)
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


def _read_bytes(path: StrPath) -> bytes:
    content = Path(path).read_bytes()
    if not content.startswith(_GZIP_MAGIC):
        return content
    import gzip
    import zlib

    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error})") from None


def read_idx_pair(images: StrPath, labels: StrPath) -> tuple[AnyArray, AnyArray]:
    """Return ``X, y`` from an IDX file of images and one of labels.

    Parameters
    ----------
    images, labels : str or path-like
        The two files.

    Returns
    -------
    X : ndarray, shape (n, ...)
    y : ndarray, shape (n,)
    """
    X, y = read_idx(images), read_idx(labels)
    if y.ndim != 1:
        raise ValueError(f"{labels}: expected a vector of labels, got the shape {y.shape}")
    check_part(images, "the file of images", X, f"the file of labels {labels}", y)
    return X, y


def read_idx_folder(path: StrPath) -> dict[str, AnyArray]:
    """Return the data set of a folder with the IDX files of MNIST.

    Parameters
    ----------
    path : str or path-like
        A folder that holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
        ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``. Each name may have the suffix
        ``.gz``, and a dot in place of the second hyphen.

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
