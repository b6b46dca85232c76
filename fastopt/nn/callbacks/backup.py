"""Backups from which an interrupted run resumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastopt.nn.callbacks.base import Callback
from fastopt.nn.callbacks.swap_ema_weights import SwapEMAWeights
from fastopt.nn.files import load_tree, save_tree

if TYPE_CHECKING:
    from _typeshed import StrPath

    from fastopt.nn.typing import Logs

__all__ = ["BackupAndRestore"]


class BackupAndRestore(Callback):
    """Save the training state after each epoch, so that an interrupted run can be resumed.

    The complete state is written to ``backup_dir/backup.npz``: the model, the state of the optimizer, the
    history, the random generator of the shuffling, and the state of the other callbacks. After a crash,
    run the same program again: if the trainer has trained nothing yet and there is a backup,
    `Trainer.fit` resumes from it and trains the remaining epochs, with results that are identical bit
    for bit to those of an uninterrupted run.

    It must be the last of the callbacks, so that their changes are saved.

    Parameters
    ----------
    backup_dir : str or path-like
        Folder for the backup of one training run. It is created if it is missing.
    delete_checkpoint : bool, default True
        Whether to delete the file at the end of the fit. It is kept in any case if the fit ends by
        Ctrl-C, `max_time` or an error.
    """

    def __init__(self, backup_dir: StrPath, *, delete_checkpoint: bool = True) -> None:
        self.path: Path = Path(backup_dir) / "backup.npz"
        self.delete_checkpoint = delete_checkpoint

    def on_train_begin(self, logs: Logs) -> None:
        """Load the backup if there is one."""
        if self.trainer.callbacks[-1] is not self:
            raise ValueError("BackupAndRestore: it must be the last of the callbacks")
        if not self.trainer.history.epoch and self.path.exists():
            self.trainer.load_state_dict(load_tree(self.path))

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Save the training state."""
        swaps = [c for c in self.trainer.callbacks if isinstance(c, SwapEMAWeights) and c.swapped]
        for swap in swaps:
            swap.swap_out()
        save_tree(self.path, self.trainer.state_dict())
        for swap in swaps:
            swap.swap_in()

    def on_train_end(self, logs: Logs) -> None:
        """Delete the backup of a completed run."""
        if self.delete_checkpoint and self.trainer.history.stopped_by not in ("interrupt", "max_time"):
            self.path.unlink(missing_ok=True)
