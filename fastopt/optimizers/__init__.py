"""The optimizers, one file per family. `base.py` has the code that they share."""

from typing import TYPE_CHECKING

from fastopt._lazy import attach

if TYPE_CHECKING:
    from fastopt.optimizers.api import *  # noqa: F403
else:
    __getattr__, __dir__ = attach(__name__)
