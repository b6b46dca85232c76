"""Tables as pandas reads them: text files, compressed or not, and Parquet."""

from __future__ import annotations

import codecs
import operator
import os
import sys
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from fastopt._core.validation import check_choice, suggest

if TYPE_CHECKING:
    import pandas as pd
    from _typeshed import StrPath

    from fastopt.nn.typing import Header

_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".data")
_ARCHIVE_SUFFIXES = ("", ".gz", ".zip", ".bz2", ".xz")
SUFFIXES = (*(text + archive for text in _TEXT_SUFFIXES for archive in _ARCHIVE_SUFFIXES), ".parquet")

# In the order in which they are tried: a comma may be a decimal comma, a space may be part of a text.
_SEPARATORS = ("\t", ";", "|", ",", r"\s+")
_UTF8 = "utf-8-sig"     # with a byte order mark or without
_SAMPLE_ROWS = 100      # from which separator, header and decimal point are found
# Texts that stand for a missing value: those of pandas, and the question mark of older data sets.
_MISSING = [
    case(text)
    for text in (
        "", "?", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "1.#IND", "1.#QNAN", "<NA>", "N/A",
        "NA", "NULL", "NaN", "None",
    )
    for case in (str, str.lower, str.upper, str.capitalize)
]  # fmt: skip


def is_table(path: StrPath) -> bool:
    """Whether the name of a file is that of a table, or ``-`` for standard input."""
    return os.fspath(path) == "-" or os.fspath(path).lower().endswith(SUFFIXES)


def import_pandas() -> Any:
    """Return pandas, or raise an ImportError that names the extra."""
    try:
        import pandas
    except ImportError:
        raise ImportError("reading tables needs pandas: pip install 'fastopt[data]'") from None
    return pandas


@dataclass(frozen=True)
class TableFormat:
    """How a table is written.

    Parameters
    ----------
    sep : str, optional
        Separator of the columns: one character, or ``r"\\s+"`` for any number of blanks. Default: detected
        among tab, semicolon, vertical bar, comma and blanks.
    decimal : {".", ","}, optional
        Decimal point. Default: detected.
    header : bool or "auto", default "auto"
        Whether the first line holds column names. With ``"auto"``, the first line is a header if one of its
        cells is a string in an otherwise numeric column, if its cells are distinct strings that are not all
        values of their columns, or if its cells number the columns from 0.
    na_values : tuple of str, default ()
        Strings that stand for a missing value, in addition to the empty string, ``?`` and those of pandas.
        In the label column, only these and the empty string are missing.
    thousands : str, optional
        Separator of thousands in numbers, one character. Default: there is none.
    encoding : str, optional
        Encoding of the text, such as ``"latin-1"``. Default: UTF-8, with a byte order mark or without.
    """

    sep: str | None = None
    decimal: str | None = None
    header: Header = "auto"
    na_values: tuple[str, ...] = ()
    thousands: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        check_choice("header", self.header, (True, False, "auto"))
        if not (self.sep in (None, r"\s+") or (isinstance(self.sep, str) and len(self.sep) == 1)):
            raise ValueError(f"sep: expected one character, or '\\\\s+' for blanks, got {self.sep!r}")
        if self.decimal is not None:
            check_choice("decimal", self.decimal, (".", ","))
        if self.thousands is not None and (len(self.thousands) != 1 or self.thousands == self.decimal):
            raise ValueError(
                f"thousands: expected one character that is not the decimal point, got {self.thousands!r}"
            )
        try:
            codecs.lookup(self.encoding or _UTF8)
        except LookupError:
            raise ValueError(
                f"encoding: expected a name such as 'utf-8', 'latin-1' or 'utf-16', got {self.encoding!r}"
            ) from None


class TableReader:
    """Find the layout of a table and read it.

    Parameters
    ----------
    path : str or path-like
        A ``.csv``, ``.tsv``, ``.txt`` or ``.data`` file, which may be compressed (``.gz``, ``.zip``,
        ``.bz2``, ``.xz``); a ``.parquet`` file (needs pyarrow); or ``-`` for standard input.
    layout : TableFormat, optional
    expected : collection of str, default ()
        Known column names: a first line that contains one of them is a header.

    Attributes
    ----------
    names : list of str
        Names of the columns; without a header, their indices from 0.
    named : bool
        Whether there is a header.
    sep, decimal : str
        Separator and decimal point.
    """

    def __init__(
        self, path: StrPath, layout: TableFormat | None = None, expected: Collection[str] = ()
    ) -> None:
        self._pandas = import_pandas()
        self.path = "standard input" if os.fspath(path) == "-" else os.fspath(path)
        self._source: Any = path
        self.layout = TableFormat() if layout is None else layout
        self._parquet: pd.DataFrame | None = None
        if self.path == "standard input":
            self._source = sys.stdin.buffer.read()
        if self.path.lower().endswith(".parquet"):
            self._open_parquet()
        else:
            self._find_layout(expected)
        if repeated := [name for name in self.names if self.names.count(name) > 1]:
            raise ValueError(
                f"{self.path}: expected different column names, got {repeated[0]!r} twice; rename one of them"
            )

    def _open_parquet(self) -> None:
        try:
            self._parquet = self._pandas.read_parquet(self._source)
        except ImportError:
            raise ImportError("reading Parquet needs pyarrow: pip install pyarrow") from None
        except Exception as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"{self.path}: not a valid Parquet file ({error})") from None
        self.sep, self.decimal, self.named = "", ".", True
        self.names = [str(name) for name in self._parquet.columns]

    def _find_layout(self, expected: Collection[str]) -> None:
        layout = self.layout
        sample, self.sep = None, layout.sep or ""
        for sep in _SEPARATORS if layout.sep is None else [layout.sep]:
            try:
                rows = self._read_csv(sep=sep, nrows=_SAMPLE_ROWS, dtype=str, na_values=[""])
            except ValueError:
                continue
            # A separator splits every line; a text with a semicolon is in some lines only.
            if layout.sep is not None or (rows.shape[1] > 1 and rows[1].notna().mean() > 0.5):
                sample, self.sep = rows, sep
                break
        if sample is None:      # one column, or an error that all separators share
            self.sep = ","
            sample = self._read_csv(sep=",", nrows=_SAMPLE_ROWS, dtype=str, na_values=[""])
        first = [f"Unnamed: {i}" if isinstance(cell, float) else cell.strip()
                 for i, cell in sample.iloc[0].items()]
        body = sample.iloc[1:]
        self.decimal = layout.decimal or self._find_decimal(body if len(body) else sample)
        self.named = bool(layout.header)
        if layout.header == "auto":
            self.named = not set(expected).isdisjoint(first) or self._is_header(first, body)
        self.names = first if self.named else [str(i) for i in range(len(first))]
        if self.named and len(sample) < 2:
            raise ValueError(f"{self.path}: not a valid CSV file (no rows below the header)")

    def _find_decimal(self, body: pd.DataFrame) -> str:
        def count(decimal: str) -> int:
            return sum(self._numbers(body[i], decimal).notna().sum() for i in body)

        if self.sep == "," or self.layout.thousands == ",":
            return "."
        return "," if self.layout.thousands == "." or count(",") > count(".") else "."

    def _is_header(self, first: Sequence[str], body: pd.DataFrame) -> bool:
        if first == [str(i) for i in range(len(first))] and len(first) > 1:
            return True
        is_number = self._numbers(self._pandas.Series(first)).notna()
        missing = {*_MISSING, *self.layout.na_values}
        for i, cell in enumerate(first):
            if not is_number[i] and not cell.startswith("Unnamed: ") and cell not in missing:
                below = self._numbers(body[i][~body[i].isin(missing)].dropna())
                if len(below) and below.notna().all():
                    return True
        if is_number.any():
            return False
        # Texts are names, unless they are repeated or all of them are also values.
        is_value = [bool((body[i].str.strip() == cell).any()) for i, cell in enumerate(first)]
        return len({*first}) == len(first) and not all(is_value)

    def _numbers(self, texts: pd.Series, decimal: str = "") -> pd.Series:
        """Return strings as numbers, NaN where they are none."""
        if self.layout.thousands is not None:
            texts = texts.str.replace(self.layout.thousands, "", regex=False)
        if (decimal or self.decimal) == ",":
            texts = texts.str.replace(".", "x", regex=False).str.replace(",", ".", regex=False)
        return self._pandas.to_numeric(texts, errors="coerce")

    def numbers(self, cells: pd.Series) -> pd.Series:
        """Return a column as numbers, NaN where a cell is missing or not a number."""
        if cells.dtype.kind in "iuf":
            return cells.astype("float64")
        return self._numbers(cells.astype("object").astype(str).where(cells.notna())).astype("float64")

    def _read_csv(self, **options: Any) -> pd.DataFrame:
        """Read the file, whose columns are numbered; a damaged file raises a ValueError."""
        import lzma
        import zipfile
        import zlib

        damage = ValueError, OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, lzma.LZMAError
        too_long = self._pandas.errors.ParserWarning
        source = BytesIO(self._source) if isinstance(self._source, bytes) else self._source
        try:
            with warnings.catch_warnings():
                # Of a line with more cells than the first one.
                warnings.simplefilter("error", self._pandas.errors.ParserWarning)
                return self._pandas.read_csv(
                    source, keep_default_na=False, skipinitialspace=True,
                    encoding=self.layout.encoding or _UTF8, thousands=self.layout.thousands,
                    **{"header": None, **options},
                )
        except FileNotFoundError:
            raise
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path}: not a valid CSV file (expected {self.layout.encoding or 'UTF-8'}: {error}); "
                "--encoding selects another encoding, for example latin-1 or utf-16"
            ) from None
        except (*damage, too_long) as error:
            raise ValueError(f"{self.path}: not a valid CSV file ({' '.join(str(error).split())})") from None

    def index_of(self, option: str, column: str | int) -> int:
        """Return the index of a column given by name or index, or raise an error that names `option`."""
        n = len(self.names)
        if isinstance(column, str):
            if column in self.names:
                return self.names.index(column)
            raise ValueError(f"{self.path}: {option}: no column {column!r}; {suggest(column, self.names)}")
        try:
            index = operator.index(column)
        except TypeError:
            raise TypeError(f"{option}: expected a column name or an index, got {column!r}") from None
        if not -n <= index < n:
            raise ValueError(f"{self.path}: {option}={index} is not one of the {n} columns")
        return index % n

    def read(self, text: Collection[int] = (), label: int | None = None) -> pd.DataFrame:
        """Return the table, with the index of each column as its name.

        Parameters
        ----------
        text : collection of int
            Columns whose strings are kept as they are, even if they look like numbers.
        label : int, optional
            The label column, whose strings are also kept.
        """
        text = {*text, *([] if label is None else [label])}
        if self._parquet is not None:
            frame = self._parquet.set_axis(range(len(self.names)), axis=1)
            for i in frame:
                if i in text or frame[i].dtype.kind not in "iuf":
                    frame[i] = frame[i].astype("object").astype(str).where(frame[i].notna(), None)
        else:
            frame = self._read_columns(text, label)
            # Without their texts: booleans, and integers that are too large.
            if others := [i for i in frame if not self._is_number_or_text(frame[i])]:
                frame = self._read_columns({*text, *others}, label)
        for i in frame:
            if frame[i].dtype.kind not in "iuf":
                frame[i] = frame[i].astype("object").str.strip()
        return frame

    def _is_number_or_text(self, cells: pd.Series) -> bool:
        kinds = ("string", "empty")
        return cells.dtype.kind in "iuf" or self._pandas.api.types.infer_dtype(cells, skipna=True) in kinds

    def _read_columns(self, text: Collection[int], label: int | None) -> pd.DataFrame:
        missing = [*_MISSING, *self.layout.na_values]
        na_values = dict.fromkeys(range(len(self.names)), missing)
        if label is not None:
            na_values[label] = ["", *self.layout.na_values]
        return self._read_csv(
            sep=self.sep, decimal=self.decimal, header=0 if self.named else None, index_col=False,
            names=list(range(len(self.names))), dtype=dict.fromkeys(text, str), na_values=na_values,
            low_memory=False,
        )

    def cell(self, row: int, index: int) -> str:
        """Return the description of a cell for an error; rows count from 1, without the header."""
        return f"{self.path}: the cell in row {row + 1} of column {self.names[index]!r}"
