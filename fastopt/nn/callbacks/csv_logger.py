"""Logging of metrics to a CSV file."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fastopt.nn.callbacks.base import StatefulCallback
from fastopt.nn.files import atomic_write

if TYPE_CHECKING:
    from _typeshed import StrPath

    from fastopt.nn.typing import Logs

__all__ = ["CSVLogger"]


class CSVLogger(StatefulCallback):
    """Write the metrics of each epoch to a CSV file.

    The first column is ``epoch``, from 0. A metric that first appears in a later epoch adds a column;
    missing values are written as ``NA``.

    Parameters
    ----------
    filename : str or path-like
        Path of the file.
    separator : str, default ","
        One character.
    append : bool, default False
        Whether to append to an existing file instead of replacing it. Further fits of the same trainer
        always append.
    """

    begun: bool

    def __init__(self, filename: StrPath, separator: str = ",", append: bool = False) -> None:
        if not isinstance(separator, str) or len(separator) != 1:
            raise ValueError(f"separator: expected one character, got {separator!r}")
        self.filename: Path = Path(filename)
        self.separator = separator
        self.append = append
        self.reset()

    def initial_state(self) -> dict[str, Any]:
        """Return the attributes of the state and their values at the start of training."""
        return {"begun": bool(self.append)}

    def reset(self) -> None:
        """Restore the initial state."""
        super().reset()
        self._resumed = False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""
        super().load_state_dict(state)
        self._resumed = True

    def on_train_begin(self, logs: Logs) -> None:
        """Raise before training if the file cannot be written or is not a log of this class."""
        if not self.filename.parent.is_dir():
            raise FileNotFoundError(f"filename: there is no folder {self.filename.parent}")
        columns = self._read_columns()
        if columns and columns[0] != "epoch":
            raise ValueError(
                f"filename: expected 'epoch' as the first column of {self.filename}, got {columns[0]!r}"
            )

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write a row."""
        row = {"epoch": epoch, **logs}
        columns = self._read_columns()
        if self._resumed or not row.keys() <= set(columns):
            columns = list(dict.fromkeys([*columns, *row]))
            self._rewrite(columns, epoch if self._resumed else math.inf)
        with open(self.filename, "a", newline="", encoding="utf-8") as file:
            self._writer(file, columns).writerow(row)
        self.begun, self._resumed = True, False

    def _read_columns(self) -> list[str]:
        if not self.begun or not self.filename.exists():
            return []
        with open(self.filename, newline="", encoding="utf-8") as file:
            return next(csv.reader(file, delimiter=self.separator), [])

    def _rewrite(self, columns: list[str], end: float) -> None:
        """Rewrite the file with these columns, without the trailing rows of epoch `end` or later."""
        rows = []
        if self._read_columns():
            with open(self.filename, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file, delimiter=self.separator))
        while rows and int(rows[-1]["epoch"]) >= end:
            rows.pop()
        with (
            atomic_write(self.filename) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = self._writer(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def _writer(self, file: TextIO, columns: list[str]) -> csv.DictWriter[str]:
        return csv.DictWriter(file, columns, restval="NA", delimiter=self.separator, lineterminator="\n")
