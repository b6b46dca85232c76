"""Hooks into :class:`fastopt.Trainer`, under the names that Keras gave them."""

from __future__ import annotations

__all__ = ["Callback"]


class Callback:
    """Does nothing at each point of the training; override what you need.

    Epochs are counted from 0 over the whole life of the trainer, batches from 0 in each epoch.
    ``logs`` is a dict of numbers: see `fastopt.History` for those of an epoch; a batch has
    ``"loss"``. Set ``self.trainer.stop_training = True`` to end the training after the batch.

    Attributes
    ----------
    trainer : Trainer
        Set before `on_train_begin`; its `net`, `opt` and `history` are the way to everything else.
    """

    trainer = None

    def on_train_begin(self, logs):
        """Run at the start of `Trainer.fit`; `logs` is empty."""

    def on_epoch_begin(self, epoch, logs):
        """Run before the first batch of an epoch; `logs` is empty."""

    def on_train_batch_end(self, batch, logs):
        """Run after each step of the optimizer."""

    def on_epoch_end(self, epoch, logs):
        """Run when an epoch is evaluated and in the history."""

    def on_train_end(self, logs):
        """Run at the end of `Trainer.fit`, also after Ctrl-C; `logs` are the last epoch's."""
