"""The results of training, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastopt.nn.typing import Logs

__all__ = ["History", "format_logs", "format_stop"]


class History:
    """Metrics of each epoch.

    Attributes
    ----------
    epoch : list of int
        Indices of the finished epochs, from 0.
    history : dict of list of float
        One entry per epoch for each metric, NaN if an epoch did not have it:

        ``"loss"``: mean training loss over the batches, each computed before its step;
        ``"val_loss"``: loss of the validation data, if the model has `evaluate`;
        ``"accuracy"``, ``"val_accuracy"``: fraction of samples predicted correctly after the epoch, if
        predictions are labels, weighted by sample weights but not by class weights;
        ``"lr"``: learning rate of the last step of the epoch, of the first parameter group;
        ``"seconds"``: wall-clock time of the training steps of the epoch, without evaluation;
        and metrics added by callbacks, see `Callback.on_test_end`.
    stopped_by : str or None
        Reason why the last `Trainer.fit` ended early: ``"max_time"``; ``"interrupt"`` for Ctrl-C; or
        the class name of a callback, such as ``"EarlyStopping"``. None if all epochs were trained.
    """

    def __init__(self) -> None:
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}
        self.stopped_by: str | None = None

    def __repr__(self) -> str:
        return f"History({len(self.epoch)} epochs: {', '.join(self.history)})"

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the last `Trainer.fit`."""
        return self.stopped_by == "interrupt"

    def record(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Append the metrics of an epoch.

        Parameters
        ----------
        epoch : int
            Index of the epoch.
        logs : dict of float
            Its metrics by name.
        """
        for name in logs:
            if name not in self.history:
                self.history[name] = [math.nan] * len(self.epoch)
        for name, values in self.history.items():
            values.append(logs.get(name, math.nan))
        self.epoch.append(epoch)

    def last(self) -> Logs:
        """Return the metrics of the last epoch as a dict, which is empty before the first epoch."""
        return {name: values[-1] for name, values in self.history.items()}


def format_logs(logs: Mapping[str, float]) -> str:
    """Return the line that reports an epoch, in the format of the article."""
    test = "accuracy" if "val_accuracy" in logs else "loss"
    names = {"loss": "Loss", "accuracy": "Training Accuracy", f"val_{test}": f"Test {test.title()}"}
    return " | ".join(f"{text} = {logs[name]:.4f}" for name, text in names.items() if name in logs)


def format_stop(history: History) -> str:
    """Return the line that reports why training ended early."""
    n = len(history.epoch)
    epochs = f"{n} epoch{'' if n == 1 else 's'}"
    if history.interrupted:
        return f"Interrupted after {epochs}: the weights trained so far are kept."
    return f"Stopped after {epochs} by {history.stopped_by}."
