"""Evaluation and saving of averaged weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastopt.nn.callbacks.base import Callback
from fastopt.nn.callbacks.monitor import MonitorCallback
from fastopt.nn.snapshot import get_weights, set_weights

if TYPE_CHECKING:
    from fastopt.nn.typing import Logs

__all__ = ["SwapEMAWeights"]


class SwapEMAWeights(Callback):
    """Use the averaged weights for evaluation and at the end of training.

    The averages are those kept by the optimizer: an exponential moving average of the parameters
    (``fastopt.Adam(net.params, ema=0.999)``), or the evaluation weights of a schedule-free optimizer
    (``fastopt.AdamWScheduleFree``). The model holds them while an epoch is evaluated, and keeps them at
    the end of the fit; a further fit continues from there.

    Place it before callbacks that store weights, and let it swap at the end of the epoch, too::

        [SwapEMAWeights(swap_on_epoch=True), ModelCheckpoint("best.npz", save_best_only=True)]

    Place it after callbacks whose `on_test_end` evaluates the model.

    Parameters
    ----------
    swap_on_epoch : bool, default False
        Whether the model holds the averages when the following callbacks run `on_epoch_end`.

    Raises
    ------
    ValueError
        In `Trainer.fit`, if the optimizer keeps no averages; or if another callback would select the
        best epoch by the metrics of the averages but store the weights themselves.

    Notes
    -----
    Only the parameters that the optimizer updates are averaged. The running statistics of batch
    normalization remain those of the weights.
    """

    def __init__(self, swap_on_epoch: bool = False) -> None:
        self.swap_on_epoch = swap_on_epoch
        self.swapped: bool = False

    def on_train_begin(self, logs: Logs) -> None:
        """Raise if the optimizer keeps no averages or another callback would store other weights."""
        opt, callbacks = self.trainer.opt, self.trainer.callbacks
        if not (self._has_ema() or hasattr(opt, "averaged")):
            raise ValueError(
                "SwapEMAWeights: the optimizer keeps no averages; create it with ema=0.999, for example"
            )
        for i, callback in enumerate(callbacks):
            keeps_best = isinstance(callback, MonitorCallback) and callback.keeps_best_weights
            if keeps_best and not (self.swap_on_epoch and i > callbacks.index(self)):
                raise ValueError(
                    f"SwapEMAWeights: {type(callback).__name__} would monitor the averages and store the "
                    "weights; place it after SwapEMAWeights(swap_on_epoch=True)"
                )

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Restore the weights."""
        self.swap_out()

    def on_test_begin(self, logs: Logs) -> None:
        """Copy the averages into the model."""
        self.swap_in()

    def on_test_end(self, logs: Logs) -> None:
        """Restore the weights."""
        self.swap_out()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Copy the averages into the model if `swap_on_epoch` is true."""
        if self.swap_on_epoch:
            self.swap_in()

    def on_train_end(self, logs: Logs) -> None:
        """Replace the weights by the averages for good."""
        self.swap_out()
        if self._has_ema():
            with self.trainer.opt.swapped_ema():
                averages = get_weights(self.trainer.net)
            set_weights(self.trainer.net, averages)
        else:
            self.trainer.opt.keep_average()

    def close(self) -> None:
        """Restore the weights after an error."""
        self.swap_out()

    def _has_ema(self) -> bool:
        return getattr(self.trainer.opt, "ema", None) is not None

    def swap_in(self) -> None:
        """Copy the averages into the model, unless it already holds them."""
        if not self.swapped:
            opt = self.trainer.opt
            self._swap = opt.swapped_ema() if self._has_ema() else opt.averaged()
            self._swap.__enter__()
            self.swapped = True

    def swap_out(self) -> None:
        """Restore the weights, unless the model already holds them."""
        if self.swapped:
            self._swap.__exit__(None, None, None)
            self.swapped = False
