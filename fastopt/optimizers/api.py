"""The public names of :mod:`fastopt.optimizers`, which `__init__.py` imports when one of them is used."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING

from fastopt.optimizers.adagrad import FTRL, Adadelta, Adagrad
from fastopt.optimizers.adam import Adam, Adamax, AdamW, NAdam, RAdam
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.layerwise import LAMB, LARS
from fastopt.optimizers.matrix import Adafactor, Muon
from fastopt.optimizers.momenta import ADOPT, Adan, AdEMAMix
from fastopt.optimizers.prodigy import Prodigy
from fastopt.optimizers.rmsprop import RMSprop
from fastopt.optimizers.schedule_free import AdamWScheduleFree, SGDScheduleFree
from fastopt.optimizers.sgd import ASGD, SGD
from fastopt.optimizers.sign import Lion, Rprop, SignSGD
from fastopt.optimizers.variance import AdaBelief, Yogi

if TYPE_CHECKING:
    from inspect import Parameter

__all__ = [
    "ADOPT",
    "ASGD",
    "FTRL",
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "AdamWScheduleFree",
    "Adamax",
    "Adan",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGDScheduleFree",
    "SignSGD",
    "Yogi",
]

# Every rule under its name in lower case, as SciPy's methods and the command line have them.
BY_NAME = {name.lower(): globals()[name] for name in __all__ if name != "Optimizer"}

# Options for training, which do not apply to the minimization of a function of one array.
TRAINING_OPTIONS = (
    "maximize", "ema", "skip_nonfinite", "accumulate", "sparse", "rounding", "seed", "state_dtype",
    "block_size", "master_weights",
)


def arguments_of(rule: type[Optimizer]) -> dict[str, Parameter]:
    """Parameters of an optimizer's signature by name: its own, then those that all take, but `params`."""
    given, common = (signature(kind).parameters for kind in (rule, Optimizer))
    own = {name: p for name, p in given.items() if p.kind != p.VAR_KEYWORD and name != "params"}
    return own | {name: p for name, p in common.items() if p.kind == p.KEYWORD_ONLY and name not in own}
