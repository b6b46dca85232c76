"""Conversion of optimizer state between fastopt and other libraries.

You can move a run from one library to another mid-training::

    opt.load_state_dict(fastopt.interop.from_torch(torch_opt.state_dict()))
    torch_opt.load_state_dict(fastopt.interop.to_torch(opt))

The functions convert the state arrays, the number of steps, and the hyperparameters with their values at
the next step; schedules are not converted. Copy the parameters yourself, in the same order and with the same
shapes. The functions raise TypeError or ValueError if the target library does not have the optimizer, an
option or a hyperparameter, if shapes differ, or if an array is neither float32 nor float64.
"""

from typing import TYPE_CHECKING

from fastopt._lazy import attach

if TYPE_CHECKING:
    from fastopt.interop.api import *  # noqa: F403
else:
    __getattr__, __dir__ = attach(__name__)
