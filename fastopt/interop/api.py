"""The public names of :mod:`fastopt.interop`, which `__init__.py` imports when one of them is used."""

from fastopt.interop.keras import from_keras, to_keras
from fastopt.interop.optax import from_optax, to_optax
from fastopt.interop.sklearn import from_sklearn, to_sklearn
from fastopt.interop.torch import from_torch, to_torch

__all__ = [
    "from_keras", "from_optax", "from_sklearn", "from_torch",
    "to_keras", "to_optax", "to_sklearn", "to_torch",
]
