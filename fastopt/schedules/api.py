"""The public names of :mod:`fastopt.schedules`, which `__init__.py` imports when one of them is used."""

from fastopt.schedules.base import Constant
from fastopt.schedules.plateau import ReduceOnPlateau
from fastopt.schedules.stateless import (
    SWA,
    WSD,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseTime,
    Join,
    LinearWarmup,
    MultiStep,
    OneCycle,
    Polynomial,
    Step,
)

__all__ = [
    "SWA", "WSD", "Constant", "Cosine", "CosineRestarts", "Exponential", "InverseTime", "Join",
    "LinearWarmup", "MultiStep", "OneCycle", "Polynomial", "ReduceOnPlateau", "Step",
]
