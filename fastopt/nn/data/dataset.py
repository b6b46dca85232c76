"""Data sets that are ready to train on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastopt._core.validation import check_choice, check_float, check_X_y
from fastopt.nn.data.preprocessing import FittedTable, TablePreprocessor, fit_table, is_regression
from fastopt.nn.data.readers import PARTS, read_csv, read_idx_folder, read_idx_pair, read_npz
from fastopt.nn.data.tables import TableFormat, is_table

if TYPE_CHECKING:
    import pandas as pd
    from _typeshed import StrPath
    from numpy.typing import ArrayLike, NDArray

    from fastopt._core.typing import AnyArray
    from fastopt.nn.typing import Header, Task

    Part: TypeAlias = tuple[AnyArray, AnyArray | None]


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test data.

    Attributes
    ----------
    X_train, X_test : ndarray of float32, shape (n, features)
        Features.
    y_train, y_test : ndarray
        int64 labels ``0 .. len(classes) - 1`` (classification) or float32 values (regression).
    classes : ndarray or None
        The original label of each integer; None for a regression.
    X_val, y_val : ndarray or None
        Validation data, None without it.
    table : TablePreprocessor or None
        The preprocessing of a table; None for other data.
    sample_shape : tuple of int
        Shape of a sample in the file, such as (28, 28) for an image.
    rows_test : pandas.DataFrame or None
        The rows of the test data of a table, before the preprocessing.
    """

    X_train: NDArray[np.float32]
    y_train: AnyArray
    X_test: NDArray[np.float32]
    y_test: AnyArray
    classes: AnyArray | None
    X_val: NDArray[np.float32] | None = None
    y_val: AnyArray | None = None
    table: TablePreprocessor | None = None
    sample_shape: tuple[int, ...] = ()
    rows_test: pd.DataFrame | None = None

    @property
    def validation_data(self) -> tuple[AnyArray, AnyArray] | None:
        """The argument `validation_data` of `Trainer.fit`."""
        return None if self.X_val is None or self.y_val is None else (self.X_val, self.y_val)


def load(
    path: StrPath, *, label: str | int | None = -1, header: Header = "auto", scale: float | None = None,
    task: Task = "auto", test_size: float = 0.2, validation_size: float = 0.0, seed: int = 0,
    validation: StrPath | None = None, test: StrPath | None = None, layout: TableFormat | None = None,
    ignore: Sequence[str | int] = (), categorical: Sequence[str | int] = (), standardize: bool = True,
) -> Dataset:
    """Read a data set of any supported format and prepare it for training.

    Tables are prepared by a `TablePreprocessor`, whose statistics are those of the training part: missing
    numbers are replaced by the median and marked by an additional feature, numbers are standardized, and
    strings are one-hot encoded.

    Parameters
    ----------
    path, label, header, scale
        As for `read`. The data set must have labels.
    task : {"auto", "classification", "regression"}
        ``"auto"`` selects a regression if the labels are floating-point numbers, unless all of them are
        integral, with at most 20 different values and at least 5 samples per value on average.
    test_size, seed
        As for `train_test_split`. Used only if the data set is not already split and there is no `test`.
    validation_size : float, default 0
        Fraction of the training samples that becomes the validation data, selected like the test data.
        Used only if there is no `validation`.
    validation, test : str or path-like, optional
        Files with the validation data and the test data, in the format of `path`.
    layout : TableFormat, optional
        Layout of a table. Its `header` takes precedence over the argument.
    ignore, categorical : sequence of str or int, default ()
        Names or indices of the columns of a table to leave out, and of those to encode as categories even if
        they contain numbers.
    standardize : bool, default True
        Whether to standardize the numbers of a table.
    """
    check_choice("task", task, ("auto", "classification", "regression"))
    sizes = {"test": test_size, "validation": check_float("validation_size", validation_size, 0.0, 1.0)}
    files = {name: file for name, file in (("test", test), ("validation", validation)) if file is not None}
    if is_table(path):
        if scale is not None:
            raise ValueError(f"scale: expected None for a table, which is standardized, got {scale!r}")
        layout = TableFormat(header=header) if layout is None else layout
        table = fit_table(path, layout, label, ignore, categorical, task)
        return _load_table(table, files, sizes, seed, standardize)
    parts, sample_shape = _read(path, label, header, None, scale)
    labels = [y for _, y in parts if y is not None]
    if len(labels) < len(parts):
        raise ValueError(f"{path}: expected labels, got features only")
    targets, classes = _targets(path, np.concatenate(labels), task)
    n_train = len(parts[0][0])
    given: dict[str, tuple[AnyArray, AnyArray]] = {"train": (parts[0][0], targets[:n_train])}
    if len(parts) == 2:
        given["test"] = parts[1][0], targets[n_train:]
    for name, file in files.items():
        X, y = read(file, label=label, header=header, scale=scale)[-1]
        if y is None or X.shape[1] != parts[0][0].shape[1]:
            raise ValueError(f"{file}: expected labels and {parts[0][0].shape[1]} features, as {path} has")
        given[name] = X, _encode(file, y, classes)
    sizes = {name: size for name, size in sizes.items() if name not in given}
    rows = split_rows(path, given["train"][1], sizes, seed)
    given |= {name: (given["train"][0][part], given["train"][1][part]) for name, part in rows.items()}
    return _make_dataset(given, classes, sample_shape=sample_shape)


def _load_table(
    fitted: FittedTable, files: Mapping[str, StrPath], sizes: Mapping[str, float], seed: int,
    standardize: bool,
) -> Dataset:
    """Split a table and preprocess its parts with the statistics of the training part."""
    preprocessor, table = fitted.preprocessor, fitted.table
    y = preprocessor.encode(table)
    rows = split_rows(fitted.path, y, {name: size for name, size in sizes.items() if name not in files}, seed)
    preprocessor.fit(table, rows["train"], standardize)
    X = preprocessor.transform(table)
    given = {name: (X[part], y[part]) for name, part in rows.items()}
    tables = {name: preprocessor.read(file) for name, file in files.items()}
    for name, other in tables.items():
        if other.labels is None:
            raise ValueError(f"{files[name]}: expected the label column {preprocessor.label!r}")
        given[name] = preprocessor.transform(other), preprocessor.encode(other)
    frame = tables["test"].frame if "test" in tables else table.frame.iloc[rows["test"]]
    classes = preprocessor.classes
    if classes is None:
        given = {name: (X, _values(fitted.path, y)) for name, (X, y) in given.items()}
    return _make_dataset(
        given, None if classes is None else np.array(classes), table=preprocessor,
        rows_test=frame.reset_index(drop=True),
    )


def _make_dataset(
    given: Mapping[str, tuple[AnyArray, AnyArray]], classes: AnyArray | None, **options: Any
) -> Dataset:
    X_val, y_val = given.get("validation", (None, None))
    return Dataset(*given["train"], *given["test"], classes, X_val, y_val, **options)


def split_rows(
    path: StrPath, y: AnyArray, sizes: Mapping[str, float], seed: int
) -> dict[str, NDArray[np.intp]]:
    """Return the indices of the training rows and of the other parts, see `train_test_split`.

    Each part in `sizes` takes a fraction of the rows that are left. The validation part is left out if it
    would be empty.
    """
    rows = {"train": np.arange(len(y))}
    for name, size in sizes.items():
        if name == "validation" and not round(len(rows["train"]) * size):
            continue
        n = len(rows["train"])
        if not 0 < round(n * size) < n:
            raise ValueError(
                f"{path}: expected more samples to use a fraction of {size:g} as {name} data, got {n}; pass "
                f"a file with the {name} data (--{name})"
            )
        rows["train"], rows[name], _, _ = train_test_split(rows["train"], y[rows["train"]], size, seed)
    return rows


def read(
    path: StrPath, *, label: str | int | None = -1, header: Header = "auto", features: int | None = None,
    scale: float | None = None,
) -> list[Part]:
    """Read the samples of a data set of any supported format, in file order.

    Parameters
    ----------
    path : str or path-like
        A folder with the IDX files of MNIST, see `read_idx_folder`; an IDX file of images, whose labels are
        read from the matching file in the same folder; a ``.npz`` file; a table of numbers, see
        `read_csv`; or the string ``"digits"`` for `load_digits`.
    label, header, features
        As for `read_csv`. Other formats ignore them.
    scale : float, optional
        Divisor of the features. Default: 255 if they are bytes (pixels), else 1.

    Returns
    -------
    list of (X, y)
        One pair, or two if the data set is split into training and test data. ``X`` is float32 of
        shape (n, features); ``y`` holds the labels as stored in the file, or None if it has none.
    """
    return _read(path, label, header, features, scale)[0]


def _read(
    path: StrPath, label: str | int | None, header: Header, features: int | None, scale: float | None
) -> tuple[list[Part], tuple[int, ...]]:
    """Return the parts of a data set, see `read`, and the shape of a sample in the file."""
    if scale is not None:
        scale = check_float("scale", scale, 0.0, open_low=True)
    given = _read_parts(path, label, header, features)
    parts = [(_features(path, X, scale), y) for X, y in given]
    widths = [X.shape[1] for X, _ in parts]
    if len(set(widths)) > 1:
        raise ValueError(f"{path}: X_train has {widths[0]} features, X_test {widths[1]}")
    return parts, (8, 8) if os.fspath(path) == "digits" else given[0][0].shape[1:]


def _read_parts(path: StrPath, label: str | int | None, header: Header, features: int | None) -> list[Part]:
    file = Path(path)
    is_prefix = not file.exists() and any(file.parent.glob(f"{escape(file.name)}-*-images*"))
    if file.is_dir() or is_prefix:
        return _split_parts(read_idx_folder(file))
    if not file.exists() and os.fspath(path) != "-":
        if os.fspath(path) == "digits":
            return [load_digits()]
        raise FileNotFoundError(f"no such file or folder: {file}")
    name = file.name.lower()
    if name.endswith(".npz"):
        return _split_parts(read_npz(file))
    if is_table(path):
        return [read_csv(file, label, header, features)]
    if "idx" in name:
        labels = file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1"))
        if labels == file or not labels.exists():
            raise ValueError(f"{file}: the matching file of labels is missing; use read_idx_pair")
        return [read_idx_pair(file, labels)]
    raise ValueError(
        f"{file}: unknown format, expected a folder of IDX files, an IDX or .npz file, or a table in a .csv, "
        ".tsv, .txt, .data or .parquet file"
    )


def _split_parts(arrays: Mapping[str, AnyArray]) -> list[Part]:
    return [(arrays["X" + part], arrays.get("y" + part)) for part in PARTS if "X" + part in arrays]


def _features(path: StrPath, X: AnyArray, scale: float | None) -> NDArray[np.float32]:
    """Return `X` as float32 of shape (n, features), divided by `scale`."""
    if X.dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected features that are real numbers, got {X.dtype}")
    if scale is None:
        scale = 255.0 if X.dtype == np.uint8 else 1.0
    given = X.reshape(len(X), -1)
    with np.errstate(over="ignore"):
        X = given.astype(np.float32)
    if scale != 1.0:
        X /= scale
    if not (finite := np.isfinite(X)).all():
        row, column = np.argwhere(~finite)[0].tolist()
        value = given[row, column]
        defect = "NaN or Inf" if not np.isfinite(value) else f"{value!s}, which is too large for float32"
        raise ValueError(f"{path}: the features hold {defect}: sample {row}, feature {column}")
    return X


def _targets(path: StrPath, y: AnyArray, task: Task) -> tuple[AnyArray, AnyArray | None]:
    """Return ``labels, classes``, or ``values, None`` for a regression."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    numbers = y if y.dtype.kind in "biuf" else None
    if is_regression(path, numbers, y.dtype.kind == "f", task):
        return _values(path, y), None
    if y.ndim != 1:
        raise ValueError(f"{path}: expected one label per sample, got labels of shape {y.shape}")
    classes, labels = np.unique(y, return_inverse=True)
    return labels.astype(np.int64, copy=False), classes


def _values(path: StrPath, y: AnyArray) -> NDArray[np.float32]:
    """Return the values of a regression as float32."""
    if y.dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected numeric labels for a regression, got {y.dtype}")
    with np.errstate(over="ignore"):
        y = y.astype(np.float32)
    if not np.isfinite(y).all():
        raise ValueError(f"{path}: the labels hold NaN or Inf")
    return y


def _encode(path: StrPath, y: AnyArray, classes: AnyArray | None) -> AnyArray:
    """Return the labels of another file as indices of `classes`, or the values of a regression."""
    if classes is None:
        return _values(path, y)
    y = y.reshape(len(y), -1)
    known, labels = np.unique(np.concatenate([classes, y.ravel()]), return_inverse=True)
    if y.shape[1] != 1 or len(known) > len(classes):
        unknown = np.setdiff1d(y, classes)
        raise ValueError(f"{path}: expected labels among {classes}, got {unknown[:5]}")
    return labels[len(classes) :].astype(np.int64, copy=False)


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
