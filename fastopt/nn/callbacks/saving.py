"""Callbacks that write files."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
        Save only if `monitor` is better than its best value so far.
    save_weights_only : bool, default False
        False saves with ``net.save(path)``: for an MLP, see `fastopt.MLP.save`. True saves only the arrays of
        the model, which may have any class, to an ``.npz`` file. An MLP loads them with
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
    missing values are written as ``NA``. The lines are part of the training state, so a run that is resumed
    writes the whole file again, whatever has happened to it.

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

    columns: list[str]
    lines: list[str]

    def __init__(self, filename: StrPath, separator: str = ",", append: bool = False) -> None:
        if not isinstance(separator, str) or len(separator) != 1:
            raise ValueError(f"separator: expected one character, got {separator!r}")
        self.filename: Path = Path(filename)
        self.separator = separator
        self.append = append
        self.reset()

    def initial_state(self) -> dict[str, Any]:
        return {"columns": [], "lines": []}

    def reset(self) -> None:
        super().reset()
        self._is_written = False    # whether the file has all lines and nothing else

    def state_dict(self) -> dict[str, Any]:
        return {"columns": list(self.columns), "lines": list(self.lines)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({name: list(value) for name, value in state.items()})
        self._is_written = False

    def on_train_begin(self, logs: Logs) -> None:
        if not self.trainer.is_main:
            return
        if not self.filename.parent.is_dir():
            raise FileNotFoundError(f"filename: there is no folder {self.filename.parent}")
        if self.append and not self.lines and self.filename.exists():
            self._begin_with_file()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        row = {"epoch": epoch, **logs}
        if not row.keys() <= set(self.columns):
            rows = list(csv.DictReader(io.StringIO("".join(self.lines)), delimiter=self.separator))
            columns = list(dict.fromkeys([*self.columns, *row]))
            header = dict(zip(columns, columns, strict=True))
            self.lines = [self._format(each, columns) for each in (header, *rows)]
            self.columns, self._is_written = columns, False
        self.lines.append(self._format(row, self.columns))
        self._write()

    def on_train_end(self, logs: Logs) -> None:
        if self.lines and not self._is_written:     # of a run that has ended before
            self._write()

    def _begin_with_file(self) -> None:
        text = self.filename.read_text(encoding="utf-8")
        columns = next(csv.reader(io.StringIO(text), delimiter=self.separator), [])
        if columns and columns[0] != "epoch":
            raise ValueError(
                f"filename: expected 'epoch' as the first column of {self.filename}, got {columns[0]!r}"
            )
        self.columns, self.lines = columns, [text if text.endswith("\n") else f"{text}\n"] * bool(columns)

    def _write(self) -> None:
        """Append the last line to the file, or write all of them if it may have others."""
        if not self.trainer.is_main:
            return
        is_written, self._is_written = self._is_written, False
        if is_written and self.filename.exists():
            with open(self.filename, "a", newline="", encoding="utf-8") as file:
                file.write(self.lines[-1])
        else:
            with atomic_write(self.filename) as path, open(path, "w", newline="", encoding="utf-8") as file:
                file.writelines(self.lines)
        self._is_written = True

    def _format(self, row: Mapping[str, Any], columns: list[str]) -> str:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, columns, "NA", delimiter=self.separator, lineterminator="\n")
        writer.writerow(row)
        return stream.getvalue()
