"""Conversion of optimizer state between fastopt and other libraries.

You can move a run from one library to another mid-training::

    opt.load_state_dict(fastopt.interop.from_torch(torch_opt.state_dict()))
    torch_opt.load_state_dict(fastopt.interop.to_torch(opt))

The functions convert the state arrays, the number of steps, and the hyperparameters with their values at
the next step; schedules are not converted. Copy the parameters yourself, in the same order and with the same
shapes. The functions raise TypeError or ValueError if the target library does not have the optimizer, an
option or a hyperparameter, if shapes differ, or if an array is neither float32 nor float64.
"""

from fastopt.interop.keras import from_keras, to_keras
from fastopt.interop.optax import from_optax, to_optax
from fastopt.interop.sklearn import from_sklearn, to_sklearn
from fastopt.interop.torch import from_torch, to_torch

__all__ = [
    "from_keras", "from_optax", "from_sklearn", "from_torch",
    "to_keras", "to_optax", "to_sklearn", "to_torch",
]
