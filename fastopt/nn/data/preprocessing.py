"""The preprocessing of tables, which is saved with a model: columns by name, imputation, encoding, scaling.

It follows scikit-learn's `SimpleImputer(strategy="median", add_indicator=True)`, `StandardScaler` and
`OneHotEncoder`.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.nn.data.tables import TableFormat, TableReader, import_pandas

if TYPE_CHECKING:
    import pandas as pd
    from _typeshed import StrPath
    from numpy.typing import NDArray

    from fastopt._core.typing import AnyArray
    from fastopt.nn.typing import Task

_MAX_CATEGORIES = 100   # of a text column; a column with more is left out
_MAX_FLOAT_CLASSES = 20 # of labels that are whole floating-point numbers; integers with more may be values
_MISSING_NAME = "missing"
_SAVED_FORMAT = ("sep", "decimal", "na_values", "thousands", "encoding")    # what other tables have in common
# Numbers as pandas does not read them: with separators of thousands, and with a unit.
_THOUSANDS = r"[-+]?\d{1,3}(?:([.,' ])\d{3})(?:\1\d{3})*(?:[.,]\d+)?"
_WITH_UNIT = r"[-+]?(?:[$€£]\s?\d[\d.,]*|\d[\d.,]*\s?[%$€£])"


@dataclass
class Column:
    """A column of a table and the features into which it is encoded.

    Attributes
    ----------
    name : str
    categories : list of str or None
        Strings. Each is encoded as a feature with the values 0 and 1. None for a column of numbers.
    has_missing : bool
        Whether an additional feature of 0 and 1 marks missing values, because some are missing in the
        training data.
    fill, mean, scale : float
        For a column of numbers: the median of the training data, which replaces missing values, and the mean
        and standard deviation with which the result is standardized.
    """

    name: str
    categories: list[str] | None = None
    has_missing: bool = False
    fill: float = 0.0
    mean: float = 0.0
    scale: float = 1.0

    @property
    def feature_names(self) -> list[str]:
        """Names of the features into which the column is encoded."""
        missing = [f"{self.name}={_MISSING_NAME}"] * self.has_missing
        if self.categories is None:
            return [self.name, *missing]
        return [f"{self.name}={text}" for text in self.categories] + missing

    def transform(self, cells: AnyArray, is_missing: NDArray[np.bool_]) -> Iterator[AnyArray]:
        """Yield the features of the cells: float64 numbers, or texts."""
        if self.categories is None:
            yield (np.where(is_missing, self.fill, cells) - self.mean) / self.scale
        else:
            yield from (cells == text for text in self.categories)
        if self.has_missing:
            yield is_missing


@dataclass
class TablePreprocessor:
    """Turn tables into the features and targets of a model.

    Attributes
    ----------
    columns : list of Column
        Columns of features, in the order of the training data.
    names : list of str
        Names of all columns of the training data.
    named : bool
        Whether the training data had a header. Without one, columns are identified by their order.
    label : str or None
        Name of the label column.
    classes : list of str or None
        Texts of the classes; None for a regression.
    target_mean, target_scale : float
        Mean and standard deviation with which the values of a regression are standardized.
    layout : dict
        The `TableFormat` that was given.
    left_out : dict of str
        Reasons why other columns are not features, by name.
    """

    columns: list[Column]
    names: list[str]
    named: bool
    label: str | None
    classes: list[str] | None = None
    target_mean: float = 0.0
    target_scale: float = 1.0
    layout: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return the preprocessing as dicts, lists, texts and numbers."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TablePreprocessor:
        """Return the preprocessing with the result of `state_dict`."""
        columns = [Column(**column) for column in state["columns"]]
        return cls(**{**state, "columns": columns})

    @property
    def n_features(self) -> int:
        """Number of features of a sample."""
        return sum(len(column.feature_names) for column in self.columns)

    # --- Fitting ---------------------------------------------------------------------------------

    def fit(self, table: TableData, rows: AnyArray, standardize: bool) -> None:
        """Compute medians, means and standard deviations from the given rows."""
        for column in self.columns:
            if column.categories is not None:
                continue
            cells = table.numbers(column.name)[rows]
            present = cells[~np.isnan(cells)]
            column.fill = float(np.median(present)) if len(present) else 0.0
            if standardize:
                filled = np.where(np.isnan(cells), column.fill, cells)
                column.mean, column.scale = _moments(filled)

    def fit_target(self, values: AnyArray) -> None:
        """Compute mean and standard deviation of the values of a regression."""
        self.target_mean, self.target_scale = _moments(values)

    # --- Transforming ----------------------------------------------------------------------------

    def transform(self, table: TableData) -> NDArray[np.float32]:
        """Return the features, shape (n, features)."""

        def cells(column: Column) -> tuple[AnyArray, NDArray[np.bool_]]:
            if column.categories is None:
                values = table.numbers(column.name)
                return values, np.isnan(values)
            texts = table.frame[column.name]
            return texts.to_numpy(object), texts.isna().to_numpy()

        X = self._stack(len(table), cells)
        if not (finite := np.isfinite(X)).all():
            row, feature = np.argwhere(~finite)[0].tolist()
            ends = np.cumsum([len(column.feature_names) for column in self.columns])
            name = self.columns[int(np.searchsorted(ends, feature, "right"))].name
            raise ValueError(
                f"{table.cell(row, name)} is {table.frame[name][row]}, which is too large for float32"
            )
        return X

    def transform_arrays(self, path: StrPath, X: AnyArray) -> NDArray[np.float32]:
        """Return the features of an array with the columns of the table, which must all be numbers."""
        n = len(self.columns)
        if X.shape[1] != n:
            raise ValueError(f"{path}: expected {n} features per sample, as the model has, got {X.shape[1]}")
        if encoded := [column.name for column in self.columns if column.categories is not None]:
            raise ValueError(f"{path}: expected a table, as the model has categories in {_list(encoded)}")
        is_missing = np.zeros(len(X), bool)
        cells = iter(X.T.astype(np.float64))
        return self._stack(len(X), lambda column: (next(cells), is_missing))

    def _stack(
        self, n: int, cells: Callable[[Column], tuple[AnyArray, NDArray[np.bool_]]]
    ) -> NDArray[np.float32]:
        """Return the features of all columns, whose `n` cells and missing cells the function returns."""
        features = np.empty((self.n_features, n), np.float32)
        with np.errstate(over="ignore"):
            values = (each for column in self.columns for each in column.transform(*cells(column)))
            for row, each in zip(features, values, strict=True):
                row[:] = each
        return np.ascontiguousarray(features.T)

    def unknown_categories(self, table: TableData) -> dict[str, list[str]]:
        """Return the texts that do not occur in the training data, by column."""
        found = {}
        for column in self.columns:
            if column.categories is not None:
                texts = table.frame[column.name].dropna()
                if unknown := sorted({*texts} - {*column.categories}):
                    found[column.name] = unknown
        return found

    def encode(self, table: TableData) -> AnyArray:
        """Return the labels as int64, or the values of a regression as float64."""
        return table.target() if self.classes is None else table.codes(self.classes)

    def scale_target(self, values: AnyArray) -> NDArray[np.float32]:
        """Return the values of a regression standardized."""
        scaled: NDArray[np.float32] = ((values - self.target_mean) / self.target_scale).astype(np.float32)
        return scaled

    def unscale_target(self, values: AnyArray) -> NDArray[np.float64]:
        """Return predicted values on the scale of the training data."""
        values = values.astype(np.float64)
        return values * self.target_scale + self.target_mean

    # --- Reading ---------------------------------------------------------------------------------

    def read(
        self, path: StrPath, layout: Mapping[str, Any] | None = None, label: str | int | None = None,
        ignore: Collection[str | int] = (),
    ) -> TableData:
        """Read another table and find its columns by name, or by order if the training data had no header.

        Parameters
        ----------
        path : str or path-like
            As for `TableReader`.
        layout : dict, optional
            Arguments of `TableFormat` that differ from those for the training data.
        label : str or int, optional
            Label column, if it is not that of the training data.
        ignore : collection of str or int, default ()
            Further columns to leave out.
        """
        used = {**self.layout, **(layout or {})}
        used["na_values"] = tuple(used.get("na_values", ()))
        features = [column.name for column in self.columns]
        reader = TableReader(path, TableFormat(**used), expected=features if self.named else ())
        given = None if label is None else reader.index_of("label", label)
        ignored = [reader.names[reader.index_of("ignore", column)] for column in ignore]
        names = self._match(reader, given, ignored)
        label_index = given if given is not None else names.get(self.label or "")
        texts = [names[c.name] for c in self.columns if c.categories is not None]
        frame = reader.read(texts, label_index)
        indices = [names[name] for name in features]
        selected = frame[indices].set_axis(features, axis=1)
        labels = None if label_index is None or frame[label_index].isna().all() else frame[label_index]
        return TableData(reader, selected, names, labels, label_index)

    def _match(self, reader: TableReader, label: int | None, ignore: Collection[str]) -> dict[str, int]:
        """Return the index of each known column by its name, or raise an error that names the others."""
        features = [column.name for column in self.columns]
        if self.named and not reader.named and reader.layout.header == "auto":
            raise ValueError(
                f"{reader.path}: expected a header with the columns of the training data, {_list(features)}; "
                "--no-header takes them in this order"
            )
        if not (self.named and reader.named):
            return self._match_by_order(reader, label)
        found = {name: i for i, name in enumerate(reader.names)}
        if missing := [name for name in features if name not in found]:
            raise ValueError(
                f"{reader.path}: expected the columns of the training data; missing: {_list(missing)}"
            )
        known = {*self.names, *ignore, *([] if label is None else [reader.names[label]])}
        if unknown := [name for name in reader.names if name not in known]:
            raise ValueError(
                f"{reader.path}: expected the columns of the training data; unknown: {_list(unknown)}; "
                "leave them out with --ignore"
            )
        return found

    def _match_by_order(self, reader: TableReader, label: int | None) -> dict[str, int]:
        indices = [i for i in range(len(reader.names)) if i != label]
        features = [column.name for column in self.columns]
        unlabeled = [name for name in self.names if name != self.label]
        for names in (self.names, unlabeled, features):
            if len(names) == len(indices) and not (names is self.names and label is not None):
                return dict(zip(names, indices, strict=True))
        raise ValueError(
            f"{reader.path}: expected {len(self.names)} columns as in the training data, or {len(unlabeled)} "
            f"without the label, got {len(reader.names)}"
        )


class TableData:
    """The features and the label column of a table.

    Attributes
    ----------
    frame : pandas.DataFrame
        Columns of features by name.
    labels : pandas.Series or None
        Label column as texts.
    """

    def __init__(
        self, reader: TableReader, frame: pd.DataFrame, indices: Mapping[str, int], labels: pd.Series | None,
        label_index: int | None,
    ) -> None:
        self._reader, self._indices, self._label_index = reader, indices, label_index
        self.frame, self.labels = frame, labels

    def __len__(self) -> int:
        return len(self.frame)

    def cell(self, row: int, name: str) -> str:
        """Return the description of a cell for an error."""
        return self._reader.cell(row, self._indices[name])

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return a column of numbers, NaN where a cell is missing; a text or an infinity is an error."""
        cells = self.frame[name]
        values: NDArray[np.float64] = self._reader.numbers(cells).to_numpy(np.float64)
        if cells.dtype.kind in "iu":
            return values
        wrong = np.isinf(values) | (np.isnan(values) & cells.notna().to_numpy())
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(_not_a_number(self.cell(row, name), cells.iloc[row], name))
        return values

    def target(self) -> NDArray[np.float64]:
        """Return the label column as numbers."""
        labels = self._present_labels()
        values: NDArray[np.float64] = self._reader.numbers(labels).to_numpy(np.float64)
        if not (finite := np.isfinite(values)).all():
            row = int(np.argmin(finite))
            raise ValueError(
                f"{self._label_cell(row)} is {labels.iloc[row]!r}, expected a finite number for a regression"
            )
        return values

    def numeric_labels(self) -> NDArray[np.float64] | None:
        """Return the label column as numbers, or None if a label is a text."""
        values = self._reader.numbers(self._present_labels()).to_numpy(np.float64)
        return values if np.isfinite(values).all() else None

    def codes(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return the indices of the labels in `classes`, or raise if there are others."""
        labels = self._present_labels()
        codes = import_pandas().Index(classes).get_indexer(labels)
        if (codes < 0).any():
            row = int(np.argmin(codes))
            raise ValueError(
                f"{self._label_cell(row)} is {labels.iloc[row]!r}, "
                "expected labels among the classes of the model"
            )
        labels_as_codes: NDArray[np.int64] = codes.astype(np.int64)
        return labels_as_codes

    def _label_cell(self, row: int) -> str:
        assert self._label_index is not None
        return self._reader.cell(row, self._label_index)

    def _present_labels(self) -> pd.Series:
        assert self.labels is not None
        if (missing := self.labels.isna().to_numpy()).any():
            cell = self._label_cell(int(np.argmax(missing)))
            raise ValueError(f"{cell} is missing, expected a label; leave out the rows without a label")
        return self.labels


def _not_a_number(cell: str, value: object, name: str) -> str:
    text = str(value)
    return (
        f"{cell} is {text!r}, expected a number; --na-values {text} treats it as a missing value, "
        f"--categorical {name} encodes the column as categories, --ignore {name} leaves it out"
    )


@dataclass(frozen=True)
class FittedTable:
    """A table and the preprocessing that was made for it, whose statistics are not yet known."""

    path: str
    preprocessor: TablePreprocessor
    table: TableData


def fit_table(
    path: StrPath, layout: TableFormat, label: str | int | None, ignore: Sequence[str | int],
    categorical: Sequence[str | int], task: Task,
) -> FittedTable:
    """Read a table to train on, and decide what its columns are; the arguments are those of `load`."""
    reader = TableReader(path, layout)
    if label is None or len(reader.names) < 2:
        raise ValueError(
            f"{reader.path}: expected features and a label column, found {len(reader.names)} columns"
        )
    label_index = reader.index_of("label", label)
    ignored = {reader.index_of("ignore", column) for column in ignore}
    encoded = {reader.index_of("categorical", column) for column in categorical}
    if label_index in ignored | encoded:
        raise ValueError(f"{reader.path}: the label column {reader.names[label_index]!r} is not a feature")
    frame = reader.read(encoded, label_index)
    columns, left_out = choose_columns(reader, frame, label_index, ignored, encoded)
    indices = {name: i for i, name in enumerate(reader.names)}
    features = frame[[indices[c.name] for c in columns]].set_axis([c.name for c in columns], axis=1)
    table = TableData(reader, features, indices, frame[label_index], label_index)
    _warn_of_header(reader, frame[label_index])
    numbers = table.numeric_labels()
    given = {name: getattr(layout, name) for name in _SAVED_FORMAT}
    preprocessor = TablePreprocessor(
        columns, reader.names, reader.named, reader.names[label_index], layout=given, left_out=left_out
    )
    texts = frame[label_index].dropna()
    has_fractions = numbers is not None and bool(texts.str.contains("[.,eE]", regex=True).any())
    if not is_regression(reader.path, numbers, has_fractions, task):
        classes = sorted({*texts})
        if numbers is not None:
            classes.sort(key=dict(zip(texts, numbers.tolist(), strict=True)).__getitem__)
        preprocessor.classes = classes
    return FittedTable(reader.path, preprocessor, table)


def _warn_of_header(reader: TableReader, labels: pd.Series) -> None:
    """Warn if the first line is read as data and may be a header of numbers."""
    counts = labels.value_counts()
    is_unique = not reader.named and counts.get(labels.iloc[0]) == 1 and counts.iloc[1:-1].min() > 1
    if is_unique and reader.layout.header == "auto":
        warnings.warn(
            f"{reader.path}: the first line is read as data, but no other line has its label "
            f"{labels.iloc[0]!r}; --header reads it as column names",
            stacklevel=4,
        )


def is_regression(path: StrPath, numbers: AnyArray | None, is_float: bool, task: Task) -> bool:
    """Return whether labels are the values of a regression; `numbers` is None if one is not a number.

    Warn if integers that are treated as classes look like values.
    """
    if task != "auto":
        return task == "regression"
    if numbers is None or numbers.ndim != 1:
        return is_float
    n_values = len(np.unique(numbers))
    if is_float:
        is_whole = bool((numbers == np.round(numbers)).all())
        return not (is_whole and n_values <= _MAX_FLOAT_CLASSES and len(numbers) >= 5 * n_values)
    if n_values > _MAX_FLOAT_CLASSES and (len(numbers) < 50 * n_values or n_values > 100):
        warnings.warn(
            f"{path}: {n_values} different integers in {len(numbers)} labels are treated as classes; "
            "--task regression (task='regression' in Python) predicts them as values",
            stacklevel=4,
        )
    return False


def choose_columns(
    reader: TableReader, frame: pd.DataFrame, label: int | None, ignore: Collection[int],
    categorical: Collection[int],
) -> tuple[list[Column], dict[str, str]]:
    """Return the columns of features, and why other columns are left out."""
    columns, left_out = [], {}
    for i, name in enumerate(reader.names):
        if i == label:
            continue
        cells = frame[i]
        if i in ignore:
            left_out[name] = "--ignore"
        elif cells.isna().all():
            left_out[name] = "empty"
        elif name in ("", "Unnamed: 0") and i == 0 and _counts_rows(cells):
            left_out[name] = "counts the rows"
        elif i not in categorical and _is_numeric(reader, cells, i):
            columns.append(Column(name, None, bool(cells.isna().any())))
        else:
            texts = sorted({*cells.dropna()})
            _warn_of_numbers(reader, texts, name)
            if i not in categorical and len(texts) > min(_MAX_CATEGORIES, max(10, len(cells) // 2)):
                left_out[name] = f"{len(texts)} different texts"
            else:
                columns.append(Column(name, texts, bool(cells.isna().any())))
    if not columns:
        raise ValueError(f"{reader.path}: expected a column of features, found none")
    return columns, left_out


def _is_numeric(reader: TableReader, cells: pd.Series, index: int) -> bool:
    """Whether all cells are numbers; raise if more than half are, as the others are probably errors."""
    if cells.dtype.kind in "iuf":
        return True
    values = reader.numbers(cells)
    is_text = (values.isna() & cells.notna()).to_numpy()
    if not is_text.any():
        return True
    if 2 * int(is_text.sum()) > int(cells.notna().sum()):
        return False
    row = int(np.argmax(is_text))
    raise ValueError(_not_a_number(reader.cell(row, index), cells.iloc[row], reader.names[index]))


def _warn_of_numbers(reader: TableReader, texts: Sequence[str], name: str) -> None:
    """Warn if texts look like numbers that are written with separators of thousands or units."""
    remedies = {_THOUSANDS: "--thousands CHARACTER reads", _WITH_UNIT: "remove the unit to use"}
    for pattern, remedy in remedies.items():
        found = [text for text in texts if re.fullmatch(pattern, text)]
        if texts and 2 * len(found) > len(texts):
            warnings.warn(
                f"{reader.path}: column {name!r} has texts that look like numbers, such as {found[-1]!r}; "
                f"{remedy} them as numbers",
                stacklevel=5,
            )
            return


def _counts_rows(cells: pd.Series) -> bool:
    values = cells.to_numpy()
    if values.dtype.kind not in "iu" or len(values) < 2:
        return False
    return bool((np.diff(values) == 1).all()) and int(values[0]) in (0, 1)


def _moments(values: AnyArray) -> tuple[float, float]:
    """Return mean and standard deviation, 1 for constant values.

    If they differ by rounding errors only, as large integers do, the deviation is the size of the numbers.
    """
    if (values == values[0]).all():
        return float(values[0]), 1.0
    mean, scale = float(np.mean(values)), float(np.std(values))
    if not math.isfinite(scale):
        return mean if math.isfinite(mean) else 0.0, 1.0
    return mean, scale if scale > 1e-12 * abs(mean) else abs(mean)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
