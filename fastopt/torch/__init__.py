"""Optimizers for PyTorch tensors on the CPU (``pip install 'fastopt[torch]'``).

There is one class per fastopt optimizer, with its name. Each is a `torch.optim.Optimizer`::

    optimizer = fastopt.torch.AdamW(model.parameters(), lr=1e-3)
    loss.backward()
    optimizer.step()

Parameters and state are updated in the memory of the tensors. If ``torch.optim`` has a class of the same
name, the arguments, the groups and the keys of the state are the same, and each class loads the state of the
other.
"""

from typing import TYPE_CHECKING

from fastopt._lazy import attach

if TYPE_CHECKING:
    from fastopt.torch.api import *  # noqa: F403
else:
    __getattr__, __dir__ = attach(__name__)
