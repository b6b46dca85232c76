"""Multilayer perceptrons, their training loop, data sets and metrics."""

from fastopt.nn import data, metrics
from fastopt.nn.callbacks.base import Callback
from fastopt.nn.gradient_check import check_gradients
from fastopt.nn.history import History
from fastopt.nn.mlp import MLP
from fastopt.nn.trainer import Trainer

__all__ = ["MLP", "Callback", "History", "Trainer", "check_gradients", "data", "metrics"]
