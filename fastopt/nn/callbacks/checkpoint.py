"""Model checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastopt._core.validation import check_float, check_int
from fastopt.nn.callbacks.monitor import MonitorCallback, monitored_value
from fastopt.nn.files import atomic_write
from fastopt.nn.snapshot import get_weights

if TYPE_CHECKING:
    from _typeshed import StrPath

    from fastopt.nn.typing import Logs, Mode

__all__ = ["ModelCheckpoint"]


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
        self,
        filepath: StrPath,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: Mode = "auto",
        save_freq: Literal["epoch"] | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        # Without save_best_only nothing is compared, so the mode need not be inferred.
        super().__init__(monitor, mode if save_best_only else "min")
        self.filepath: str = os.fspath(filepath)
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq: Literal["epoch"] | int = (
            save_freq if save_freq == "epoch" else check_int("save_freq", save_freq, 1)
        )
        if save_weights_only and not self.filepath.endswith(".npz"):
            raise ValueError(
                "filepath: expected a name that ends in .npz because of save_weights_only=True, "
                f"got {self.filepath!r}"
            )
        threshold = initial_value_threshold
        self.initial_value_threshold: float | None = (
            None if threshold is None else check_float("initial_value_threshold", threshold)
        )
        self.reset()

    def initial_state(self) -> dict[str, Any]:
        """Return the attributes of the state and their values at the start of training."""
        threshold = self.initial_value_threshold
        return {"best": self.worst if threshold is None else threshold, "batches": 0}

    @property
    def keeps_best_weights(self) -> bool:
        """Whether the callback stores weights when the metric improves."""
        return self.save_best_only

    def on_train_begin(self, logs: Logs) -> None:
        """Raise before training if the model cannot be saved."""
        net = self.trainer.net
        if not (self.save_weights_only or hasattr(net, "save")):
            raise TypeError(
                f"net: ModelCheckpoint expected an object with 'save', got {type(net).__name__}; "
                "save_weights_only=True saves its arrays"
            )

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Store the epoch for file names."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Save after every `save_freq` batches."""
        if self.save_freq != "epoch":
            self.batches += 1
            if self.batches >= self.save_freq:
                self.batches = 0
                self._save_if_better(self._epoch, {"batch": batch + 1, **logs})

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Save if `save_freq` is ``"epoch"``."""
        if self.save_freq == "epoch":
            self._save_if_better(epoch, logs)

    def _save_if_better(self, epoch: int, logs: Logs) -> None:
        reason = ""
        if self.save_best_only:
            value = monitored_value(self, self.monitor, logs)
            if not self.is_better(value, self.best):
                return
            reason = f"{self.monitor} improved from {self.best:.5f} to {value:.5f}, "
            self.best = value
        path = self._format_path({"epoch": epoch + 1, **logs})
        with atomic_write(path) as temporary:
            if self.save_weights_only:
                weights = get_weights(self.trainer.net)
                np.savez(temporary, **weights)  # type: ignore[arg-type]  # no name is allow_pickle
            else:
                self.trainer.net.save(temporary)
        if self.verbose:
            self.trainer.write(f"Epoch {epoch + 1}: {reason}saved {path}")

    def _format_path(self, fields: Mapping[str, float]) -> str:
        try:
            return self.filepath.format(**fields)
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"filepath: {self.filepath!r} has the field {error}, expected one of {', '.join(fields)}"
            ) from None
