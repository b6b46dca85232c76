"""fastopt: the optimizer step as one pass over memory."""

from fastopt import functional, reference, schedules
from fastopt._threads import get_num_threads, set_num_threads, show_config
from fastopt._version import __version__
from fastopt.optimizers import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSprop",
    "__version__",
    "functional",
    "get_num_threads",
    "reference",
    "schedules",
    "set_num_threads",
    "show_config",
]
