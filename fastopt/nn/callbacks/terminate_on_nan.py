"""Termination of runs that have diverged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fastopt.nn.callbacks.base import Callback

if TYPE_CHECKING:
    from fastopt.nn.typing import Logs

__all__ = ["TerminateOnNaN"]


class TerminateOnNaN(Callback):
    """Stop training after the first batch whose loss is NaN or infinite.

    Parameters
    ----------
    raise_error : bool, default False
        Raise a RuntimeError instead. `Trainer.fit` then ends without `on_train_end`.
    """

    def __init__(self, raise_error: bool = False) -> None:
        self.raise_error = raise_error

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Check the loss."""
        if math.isfinite(logs["loss"]):
            return
        if self.raise_error:
            epoch = len(self.trainer.history.epoch)
            raise RuntimeError(f"the loss of batch {batch} of epoch {epoch} is {logs['loss']}")
        self.trainer.stop_training = True
