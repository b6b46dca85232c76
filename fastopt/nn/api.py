"""The public names of :mod:`fastopt.nn`, which `__init__.py` imports when one of them is used."""

import fastopt.nn.data as data
import fastopt.nn.metrics as metrics
from fastopt.nn.callbacks.base import Callback
from fastopt.nn.gradient_check import check_gradients
from fastopt.nn.history import History
from fastopt.nn.mlp import MLP
from fastopt.nn.trainer import Trainer

__all__ = ["MLP", "Callback", "History", "Trainer", "check_gradients", "data", "metrics"]
