"""Callbacks of :class:`fastopt.Trainer`, with the names and semantics of Keras.

Callbacks run in the order in which they are passed to the trainer. A callback serves one trainer at a
time: it is reset when another trainer uses it, and keeps its state over further calls of `Trainer.fit`.
"""

from fastopt.nn.callbacks.backup import BackupAndRestore
from fastopt.nn.callbacks.base import Callback
from fastopt.nn.callbacks.checkpoint import ModelCheckpoint
from fastopt.nn.callbacks.csv_logger import CSVLogger
from fastopt.nn.callbacks.early_stopping import EarlyStopping
from fastopt.nn.callbacks.lambda_callback import LambdaCallback
from fastopt.nn.callbacks.learning_rate import LearningRateScheduler, ReduceLROnPlateau
from fastopt.nn.callbacks.swap_ema_weights import SwapEMAWeights
from fastopt.nn.callbacks.terminate_on_nan import TerminateOnNaN

__all__ = [
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "LambdaCallback",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "ReduceLROnPlateau",
    "SwapEMAWeights",
    "TerminateOnNaN",
]
