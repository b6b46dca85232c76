"""The optimizers, one file a family. `base.py` has what they share."""

from typing import TYPE_CHECKING

from fastopt._lazy import attach

if TYPE_CHECKING:
    from fastopt.optimizers.api import *  # noqa: F403
else:
    __getattr__, __dir__ = attach(__name__)
