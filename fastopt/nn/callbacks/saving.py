"""Callbacks that write files."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from fastopt._core.validation import check_float, check_int
from fastopt.atomic_write import atomic_write
from fastopt.checkpoint import write_arrays
from fastopt.nn.callbacks.base import MonitorCallback, StatefulCallback
from fastopt.nn.files import get_weights

if TYPE_CHECKING:
    from _typeshed import StrPath

    from fastopt.nn.typing import Logs, Mode


class ModelCheckpoint(MonitorCallback):
    """Save the model after each epoch, or whenever a metric improves.

    Files are written atomically: after a crash, the previous file is intact.

    Parameters
    ----------
    filepath : str or path-like
        Path of the file. It may contain format fields: ``{epoch}``, the number of the epoch from 1; the
        metrics of the history, as in ``"run/{epoch:02d}-{val_loss:.2f}.npz"``; and, if `save_freq` is an
        int, ``{batch}``, from 1. Without fields, each file replaces the previous one. Missing folders
        are created.
    monitor : str, default "val_loss"
        Metric of the history to monitor.
    verbose : int, default 0
        1 prints a message on saving.
    save_best_only : bool, default False
        Save only if `monitor` is better than ever before.
    save_weights_only : bool, default False
        False saves with ``net.save(path)``: for an MLP, see `fastopt.MLP.save`. True saves only the
        arrays of the model, of whatever class, to an ``.npz`` file. An MLP loads them with
        ``net.load_state_dict(dict(numpy.load(path)))``.
    mode : {"auto", "min", "max"}, default "auto"
        Whether a smaller or a larger value is better. ``"auto"`` infers it for the loss and the accuracy.
    save_freq : "epoch" or int, default "epoch"
        An int saves after this many batches. Only the loss of the batch can be monitored then.
    initial_value_threshold : float, optional
        With `save_best_only`, the value that the first saved model must improve on.

    Attributes
    ----------
    best : float
        Best value so far.

    Examples
    --------
    >>> save = fastopt.callbacks.ModelCheckpoint("best.npz", save_best_only=True)
    """

    best: float
    batches: int

    def __init__(
        self, filepath: StrPath, monitor: str = "val_loss", verbose: int = 0, save_best_only: bool = False,
        save_weights_only: bool = False, mode: Mode = "auto", save_freq: Literal["epoch"] | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        # Without save_best_only nothing is compared, so the mode need not be inferred.
        super().__init__(monitor, mode if save_best_only else "min")
        self.filepath: str = os.fspath(filepath)
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq = save_freq if save_freq == "epoch" else check_int("save_freq", save_freq, 1)
        if save_weights_only and not self.filepath.endswith(".npz"):
            raise ValueError(
                "filepath: expected a name that ends in .npz because of save_weights_only=True, "
                f"got {self.filepath!r}"
            )
        if initial_value_threshold is not None:
            initial_value_threshold = check_float("initial_value_threshold", initial_value_threshold)
        self.initial_value_threshold: float | None = initial_value_threshold
        self.reset()

    def initial_state(self) -> dict[str, Any]:
        threshold = self.initial_value_threshold
        return {"best": self.worst if threshold is None else threshold, "batches": 0}

    def on_train_begin(self, logs: Logs) -> None:
        net = self.trainer.net
        if not (self.save_weights_only or hasattr(net, "save")):
            raise TypeError(
                f"net: ModelCheckpoint expected an object with 'save', got {type(net).__name__}; "
                "save_weights_only=True saves its arrays"
            )

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        if self.save_freq != "epoch":
            self.batches += 1
            if self.batches >= self.save_freq:
                self.batches = 0
                self._save_if_better(len(self.trainer.history.epoch), {"batch": batch + 1, **logs})

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.save_freq == "epoch":
            self._save_if_better(epoch, logs)

    def _save_if_better(self, epoch: int, logs: Logs) -> None:
        reason = ""
        if self.save_best_only:
            value = self.monitored_value(logs)
            if not self.is_better(value, self.best):
                return
            reason = f"{self.monitor} improved from {self.best:.5f} to {value:.5f}, "
        fields: Mapping[str, float] = {"epoch": epoch + 1, **logs}
        try:
            path = self.filepath.format(**fields)
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"filepath: {self.filepath!r} has the field {error}, expected one of {', '.join(fields)}"
            ) from None
        if not self.trainer.is_main:
            pass
        elif self.save_weights_only:
            write_arrays(path, get_weights(self.trainer.net))
        else:
            with atomic_write(path) as temporary:
                self.trainer.net.save(temporary)
        if self.save_best_only:
            self.best = value
        if self.verbose:
            self.trainer.write(f"Epoch {epoch + 1}: {reason}saved {path}")


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
        return {"begun": bool(self.append)}

    def reset(self) -> None:
        super().reset()
        self._resumed = False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._resumed = True

    def on_train_begin(self, logs: Logs) -> None:
        if not self.trainer.is_main:
            return
        if not self.filename.parent.is_dir():
            raise FileNotFoundError(f"filename: there is no folder {self.filename.parent}")
        columns = self._read_columns()
        if columns and columns[0] != "epoch":
            raise ValueError(
                f"filename: expected 'epoch' as the first column of {self.filename}, got {columns[0]!r}"
            )

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if not self.trainer.is_main:
            return
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
                lines = file.read().splitlines(keepends=True)
            if not lines[-1].endswith("\n"):
                del lines[-1]   # of a process that was killed
            rows = list(csv.DictReader(lines, delimiter=self.separator))
        while rows and int(rows[-1]["epoch"]) >= end:
            rows.pop()
        with atomic_write(self.filename) as path, open(path, "w", newline="", encoding="utf-8") as file:
            writer = self._writer(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def _writer(self, file: TextIO, columns: list[str]) -> csv.DictWriter[str]:
        return csv.DictWriter(file, columns, restval="NA", delimiter=self.separator, lineterminator="\n")
