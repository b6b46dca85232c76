"""Early stopping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastopt._core.validation import check_float, check_int
from fastopt.nn.callbacks.monitor import MonitorCallback, monitored_value
from fastopt.nn.snapshot import get_weights, set_weights

if TYPE_CHECKING:
    from fastopt._core.typing import AnyArray
    from fastopt.nn.typing import Logs, Mode

__all__ = ["EarlyStopping"]


class EarlyStopping(MonitorCallback):
    """Stop training when a metric has not improved for a number of epochs.

    Parameters
    ----------
    monitor : str, default "val_loss"
        Metric of the history to monitor.
    min_delta : float, default 0
        Smallest change that counts as an improvement.
    patience : int, default 0
        Number of consecutive epochs without improvement after which training stops.
    verbose : int, default 0
        1 prints a message on stopping and on restoring weights.
    mode : {"auto", "min", "max"}, default "auto"
        Whether a smaller or a larger value is better. ``"auto"`` infers it for the loss and the accuracy.
    baseline : float, optional
        An epoch counts as an improvement only if the metric is also better than this value.
    restore_best_weights : bool, default False
        At the end of `Trainer.fit`, for whatever reason, restore the weights of the best epoch, whether
        or not it was better than `baseline`. The state of the optimizer is not restored.
    start_from_epoch : int, default 0
        Number of epochs before monitoring starts.

    Attributes
    ----------
    best : float
        Best value so far.
    best_epoch : int
        Epoch of the best value.
    wait : int
        Epochs since the last improvement.
    stopped_epoch : int or None
        Epoch after which the callback stopped training. A further fit starts with the full patience.

    Examples
    --------
    >>> stop = fastopt.callbacks.EarlyStopping(patience=5, restore_best_weights=True)
    >>> fastopt.Trainer(net, opt, [stop]).fit(X, y, epochs=100, validation_data=(X_val, y_val))
    """

    best: float
    best_epoch: int
    best_weights: dict[str, AnyArray] | None
    wait: int
    stopped_epoch: int | None

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: Mode = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience: int = check_int("patience", patience, 0)
        self.verbose = verbose
        self.baseline: float | None = None if baseline is None else check_float("baseline", baseline)
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch: int = check_int("start_from_epoch", start_from_epoch, 0)
        self.reset()

    def initial_state(self) -> dict[str, Any]:
        """Return the attributes of the state and their values at the start of training."""
        return {
            "best": self.worst, "best_epoch": 0, "best_weights": None, "wait": 0, "stopped_epoch": None
        }

    @property
    def keeps_best_weights(self) -> bool:
        """Whether the callback stores weights when the metric improves."""
        return self.restore_best_weights

    def on_train_begin(self, logs: Logs) -> None:
        """Reset the patience if the callback stopped the previous fit."""
        if self.stopped_epoch is not None:
            self.wait, self.stopped_epoch = 0, None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Compare the metric with its best value; stop if the patience is exhausted."""
        value = monitored_value(self, self.monitor, logs)
        if epoch < self.start_from_epoch:
            return
        is_better = self.is_better(value, self.best)
        if self.restore_best_weights and (is_better or self.best_weights is None):
            self.best_weights = get_weights(self.trainer.net)
            self.best_epoch = epoch
        self.wait += 1
        if is_better:
            self.best, self.best_epoch = value, epoch
            if self.baseline is None or self.is_better(value, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.trainer.stop_training = True
            if self.verbose:
                self.trainer.write(f"Epoch {epoch + 1}: early stopping")

    def on_train_end(self, logs: Logs) -> None:
        """Restore the best weights."""
        if self.best_weights is not None:
            set_weights(self.trainer.net, self.best_weights)
            if self.verbose:
                self.trainer.write(f"Restored the weights of the best epoch: {self.best_epoch + 1}")
