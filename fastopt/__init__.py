"""fastopt: optimizers whose step is one pass over memory, and a trainer for multilayer perceptrons."""

from importlib import import_module as _import_module

from fastopt._core import dispatch, threads  # noqa: F401  (a wrong environment variable fails here)
from fastopt._version import __version__ as __version__

# Public names by module. Each is imported when it is first used: a script that takes one optimizer need not
# wait for the trainer. `__init__.pyi` says the same to type checkers; a test compares the two.
_NAMES = {
    "fastopt._config": ("show_config",),
    "fastopt._core.rows": ("Rows",),
    "fastopt._core.threads": ("get_num_threads", "set_num_threads"),
    "fastopt.keyed": ("KeyedOptimizer",),
    "fastopt.lr_finder": ("lr_find",),
    "fastopt.optimizers.param_groups": ("param_groups",),
    "fastopt.nn": ("MLP", "Callback", "History", "Trainer"),
    "fastopt.optimizers": (
        "ADOPT", "ASGD", "FTRL", "LAMB", "LARS", "SGD", "AdEMAMix", "AdaBelief", "Adadelta", "Adafactor",
        "Adagrad", "Adam", "AdamW", "AdamWScheduleFree", "Adamax", "Adan", "Lion", "Muon", "NAdam",
        "Optimizer", "Prodigy", "RAdam", "RMSprop", "Rprop", "SGDScheduleFree", "SignSGD", "Yogi",
    ),
}  # fmt: skip
_SUBMODULES = ("callbacks", "functional", "interop", "reference", "schedules", "solver")
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted([*_MODULE_OF, *_SUBMODULES, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        value = getattr(_import_module(_MODULE_OF[name]), name)
    elif name in (*_SUBMODULES, "nn", "optimizers"):
        value = _import_module(f"fastopt.{name}")
    else:
        raise AttributeError(f"module 'fastopt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
