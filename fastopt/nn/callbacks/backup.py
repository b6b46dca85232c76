"""The callback that saves the training state and resumes from it."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastopt._core.validation import check_int
from fastopt.atomic_write import remove_leftovers
from fastopt.checkpoint import load_tree
from fastopt.nn.callbacks.base import Callback

if TYPE_CHECKING:
    from _typeshed import StrPath

    from fastopt.nn.typing import Logs


class BackupAndRestore(Callback):
    """Save the training state regularly, so that an interrupted run can be resumed.

    The complete state is written to the files ``backup-1.npz``, ``backup-2.npz``, ... of a folder: the
    model, the state of the optimizer, the history, the random generator and the position in the epoch, and
    the state of the other callbacks. After a crash, run the same program again: if the trainer has not
    trained yet and there is a backup, `Trainer.fit` resumes from the backup and trains the remaining epochs,
    with results that are identical bit for bit to those of an uninterrupted run. A backup is also written
    when Ctrl-C or SIGTERM ends the fit.

    It must be the last of the callbacks, so that their changes are saved. If a run is resumed in the middle
    of an epoch, `on_epoch_begin` is not called again for this epoch: a change that it has made must be part
    of the state of its callback.

    Parameters
    ----------
    backup_dir : str or path-like
        Folder for the backups of one training run. It is created if it is missing.
    save_freq : "epoch", int or str, default "epoch"
        When to save: after each epoch; an int, after this many batches; or a time such as ``"30s"``, after
        the first batch that ends at least this long after the last backup.
    keep : int, default 2
        Number of backups to keep. An old backup is removed when a new one is complete and has been read back.
        If the newest backup is damaged when the run is resumed, a warning is raised and the previous backup
        is used.
    delete_checkpoint : bool, default True
        Whether to delete the backups at the end of the fit, and the folder if it is empty then. They are
        always kept if the fit is ended by Ctrl-C, SIGTERM, `max_time` or an error.
    """

    def __init__(
        self, backup_dir: StrPath, save_freq: Literal["epoch"] | int | str = "epoch", *, keep: int = 2,
        delete_checkpoint: bool = True,
    ) -> None:
        self.backup_dir: Path = Path(backup_dir)
        self.save_freq = save_freq
        self._batches, self._seconds = parse_frequency(save_freq)
        self.keep: int = check_int("keep", keep, 1)
        self.delete_checkpoint = delete_checkpoint
        self.reset()

    def reset(self) -> None:
        self._n_batches = 0
        self._saved_at = 0.0

    def on_train_begin(self, logs: Logs) -> None:
        if self.trainer.callbacks[-1] is not self:
            raise ValueError("BackupAndRestore: it must be the last of the callbacks")
        self._n_batches, self._saved_at = 0, self.trainer.clock()
        if self.trainer.is_untrained:
            newest = self.trainer.from_main(lambda: load_newest_backup(self.backup_dir))
            if newest is not None:
                self.trainer.load_state_dict(newest[1])

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        self._n_batches += 1
        is_late = self._seconds < math.inf and self.trainer.clock() - self._saved_at >= self._seconds
        if is_late or self._n_batches == self._batches:
            self._save()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.save_freq == "epoch":
            self._save()

    def on_interrupt(self, logs: Logs) -> None:
        path = self._save()
        self.trainer.write(f"Saved the training state in {path}")

    def on_train_end(self, logs: Logs) -> None:
        history = self.trainer.history
        is_over = not (history.interrupted or history.stopped_by == "max_time")
        if self.trainer.is_main and self.delete_checkpoint and is_over:
            remove_backups(self.backup_dir)
            with contextlib.suppress(OSError):
                self.backup_dir.rmdir()

    def _save(self) -> Path:
        """Write a backup, remove those that are too old, and return its path."""
        old = find_backups(self.backup_dir)
        path = self.backup_dir / f"backup-{_number(old[-1]) + 1 if old else 1}.npz"
        self.trainer.save(path)
        for each in old[: len(old) + 1 - self.keep] if self.trainer.is_main else ():
            each.unlink(missing_ok=True)
        self._n_batches, self._saved_at = 0, self.trainer.clock()
        return path


def find_backups(folder: StrPath) -> list[Path]:
    """Return the paths of the backups in a folder, the newest last."""
    return sorted((path for path in Path(folder).glob("backup-*.npz") if _number(path)), key=_number)


def load_newest_backup(folder: StrPath) -> tuple[Path, Any] | None:
    """Return path and content of the newest backup in a folder that is not damaged; None if there is none.

    Warns of damaged backups, and raises a ValueError if all are damaged.
    """
    errors: list[str] = []
    for path in reversed(find_backups(folder)):
        try:
            state = load_tree(path)
        except ValueError as error:
            errors.append(str(error))
            continue
        for message in errors:
            warnings.warn(f"{message}; using the backup before it, {path}", RuntimeWarning, stacklevel=2)
        return path, state
    if errors:
        raise ValueError(f"{folder}: no backup can be read: {'; '.join(errors)}")
    return None


def remove_backups(folder: StrPath) -> None:
    """Remove all backups in a folder, and what killed processes have left there."""
    for path in find_backups(folder):
        path.unlink(missing_ok=True)
    remove_leftovers(folder)


def backup_number(name: str) -> int:
    """Return the number in the file name of a backup, or 0 if it is the name of another file."""
    match = re.fullmatch(r"backup-([1-9][0-9]*)\.npz", name)
    return int(match[1]) if match else 0


def _number(path: Path) -> int:
    return backup_number(path.name)


def parse_frequency(save_freq: str | int) -> tuple[int, float]:
    """Return the number of batches and of seconds between backups; 0 and inf stand for never."""
    if save_freq == "epoch":
        return 0, math.inf
    if isinstance(save_freq, str):
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)s", save_freq)
        if not match or not float(match[1]):
            raise ValueError(
                "save_freq: expected 'epoch', a number of batches, or seconds such as '30s', "
                f"got {save_freq!r}"
            )
        return 0, float(match[1])
    return check_int("save_freq", save_freq, 1), math.inf
