"""``fastopt train --resume``: the training state of a run, and resuming from it."""

from __future__ import annotations

import os
import sys
import warnings
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.callbacks import BackupAndRestore, Callback
from fastopt.cli import outputs, training
from fastopt.cli.parser import UsageError
from fastopt.nn.callbacks.backup import find_backups, load_newest_backup

if TYPE_CHECKING:
    from pathlib import Path

    from fastopt.nn.data import Dataset
    from fastopt.nn.typing import Logs

_ALLOWED = ("resume", "epochs", "max-time", "save-freq")  # options that may be given with --resume


class RunOptions(Callback):
    """Keep the options of a run and a checksum of its data in the training state."""

    def __init__(self, text: str, path: str, dataset: Dataset) -> None:
        self._text, self._path = text, path
        checksum = 0
        for value in vars(dataset).values():
            if isinstance(value, np.ndarray):
                checksum = zlib.crc32(np.ascontiguousarray(value).tobytes(), checksum)
        self._data = checksum

    def state_dict(self) -> dict[str, Any]:
        return {"options": self._text, "data": self._data}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["data"] != self._data:
            raise ValueError(f"--resume: {self._path} does not contain the samples that the run started with")


class RunBackup(BackupAndRestore):
    """Save the training state of a run regularly and after its last epoch; say how to resume."""

    def __init__(self, folder: str, save_freq: str | int, epochs: int) -> None:
        super().__init__(folder, save_freq, delete_checkpoint=False)
        self._epochs = epochs

    def on_train_begin(self, logs: Logs) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)     # printed by `read_options`
            super().on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        history = self.trainer.history
        if self.save_freq == "epoch" or len(history.epoch) >= self._epochs or history.stopped_by:
            self._save()

    def on_interrupt(self, logs: Logs) -> None:
        super().on_interrupt(logs)
        self.trainer.write(f"Resume with: fastopt train --resume {self.backup_dir}")


def read_options(folder: str, argv: Sequence[str]) -> tuple[str, str]:
    """Return the file and the text of the options with which a run began, or raise if it cannot be resumed.

    They are those of the newest backup, which has a checksum; before the first backup, those of the file.
    """
    for argument in argv:
        name = argument.partition("=")[0]
        if name.startswith("--") and name[2:] not in _ALLOWED:
            allowed = ", ".join(f"--{each}" for each in _ALLOWED[1:])
            raise UsageError("fastopt train", f"--resume: expected no options but {allowed}; got {name}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        newest = load_newest_backup(folder)
    for warning in caught:
        print(f"fastopt: {warning.message}", file=sys.stderr)
    config = os.path.join(folder, outputs.CONFIG)
    if newest is None:
        if not os.path.exists(config):
            raise ValueError(f"--resume: {folder} has neither {outputs.CONFIG} nor a backup of a run")
        print(f"{folder} has no training state yet: the run starts from the beginning", flush=True)
        with open(config, encoding="utf-8") as file:
            return config, file.read()
    path, state = newest
    try:
        options = dict(state["callbacks"])[RunOptions.__name__]["options"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: not a backup of 'fastopt train'") from None
    partial = state["partial_epoch"]
    n_epochs = training.plural(len(state["epoch"]), "epoch")
    batch = f" and batch {partial['batch']} of the next one" if partial else ""
    print(f"Resuming from {path}, after {n_epochs}{batch}", flush=True)
    return str(path), str(options)


def keep_newest_backup(folder: str) -> None:
    """Keep one backup of a run that has ended, for a later ``--resume`` with more epochs."""
    backups: list[Path] = find_backups(folder)
    for path in backups[:-1]:
        path.unlink()
    if backups:
        backups[-1].replace(backups[-1].with_name("backup-1.npz"))
