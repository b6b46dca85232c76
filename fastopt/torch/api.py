"""The public names of :mod:`fastopt.torch`, which `__init__.py` imports when one of them is used."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

try:
    import torch
except ImportError as error:
    raise ImportError("fastopt.torch needs PyTorch: pip install 'fastopt[torch]'") from error
if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    raise ImportError(
        f"fastopt.torch needs PyTorch 2.10 or later, got {torch.__version__}: pip install 'fastopt[torch]'"
    )

from fastopt.interop.torch_names import CONSTANTS, FLAGS
from fastopt.optimizers.api import BY_NAME, arguments_of
from fastopt.torch.optimizer import NOT_SUPPORTED, Optimizer, ScheduleFreeOptimizer

__all__ = [cls.__name__ for cls in BY_NAME.values()]  # pyright: ignore[reportUnsupportedDunderAll]
__all__ += ["Optimizer"]


def _make_class(cls: Any) -> type[Optimizer]:
    """Return the optimizer for tensors that has the update rule and the arguments of an optimizer."""
    name, signature = cls.__name__, inspect.signature(cls)
    arguments = {n: p for n, p in arguments_of(cls).items() if n not in NOT_SUPPORTED}
    in_torch = getattr(torch.optim, name, None)
    known = inspect.signature(in_torch).parameters if in_torch else FLAGS
    flags = {n: default for n, default in FLAGS.items() if n in known}
    constants, base = CONSTANTS.get(name, {}), Optimizer
    if name.endswith("ScheduleFree"):
        base, flags = ScheduleFreeOptimizer, flags | {"train_mode": True}
    keyword = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=default)
        for n, default in (flags | constants).items() if n in known
    ]
    parameters = [signature.parameters["params"], *arguments.values(), *keyword]
    return type(name, (base,), {
        "__module__": "fastopt.torch", "__doc__": cls.__doc__, "OPTIMIZER": cls, "RULE": cls.RULE,
        "NAMES": tuple(n for n in arguments if n in signature.parameters or n == "independent_weight_decay"),
        "FLAGS": flags, "CONSTANTS": constants, "_signature": signature,
        "__signature__": inspect.Signature(
            [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
        ),
    })


if TYPE_CHECKING:
    def __getattr__(name: str) -> Any: ...

globals().update({cls.__name__: _make_class(cls) for cls in BY_NAME.values()})
