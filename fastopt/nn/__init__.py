"""Multilayer perceptrons, their training loop, data sets and metrics."""

from typing import TYPE_CHECKING

from fastopt._lazy import attach

if TYPE_CHECKING:
    from fastopt.nn.api import *  # noqa: F403
else:
    __getattr__, __dir__ = attach(__name__)
