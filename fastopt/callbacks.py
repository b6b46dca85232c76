"""Callbacks of :class:`fastopt.Trainer`, with the names and semantics of Keras.

Callbacks run in the order in which they are passed to the trainer. A callback serves one trainer at a
time: it is reset when another trainer uses it, and keeps its state over further calls of `Trainer.fit`.
"""

from fastopt.nn.callbacks.backup import BackupAndRestore
from fastopt.nn.callbacks.base import Callback
from fastopt.nn.callbacks.control import (
    EarlyStopping,
    LambdaCallback,
    LearningRateScheduler,
    ReduceLROnPlateau,
    SwapEMAWeights,
    TerminateOnNaN,
)
from fastopt.nn.callbacks.saving import CSVLogger, ModelCheckpoint

__all__ = [
    "BackupAndRestore", "CSVLogger", "Callback", "EarlyStopping", "LambdaCallback", "LearningRateScheduler",
    "ModelCheckpoint", "ReduceLROnPlateau", "SwapEMAWeights", "TerminateOnNaN",
]
