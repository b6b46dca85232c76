"""Model files: a network together with the labels of its classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.typing import AnyArray
from fastopt.nn import MLP

if TYPE_CHECKING:
    from _typeshed import StrPath


class Model(MLP):
    """An MLP that is saved with the labels of its classes, which are None for a regression."""

    def __init__(self, *, classes: AnyArray | None, **options: Any) -> None:
        super().__init__(**options)
        self.classes = classes

    def _config(self) -> dict[str, Any]:
        classes = self.classes
        described = None if classes is None else {"dtype": classes.dtype.str, "labels": classes.tolist()}
        return super()._config() | {"extra": {"classes": described}}


def load_model(path: StrPath) -> tuple[MLP, AnyArray | None]:
    """Return the network of a model file and its class labels, or None if the file has none."""
    net, extra = MLP._load(path)
    classes = None
    if extra is not None and extra["classes"] is not None:
        described = extra["classes"]
        classes = np.array(described["labels"], described["dtype"])
    expected = max(net.sizes[-1], 2)
    if classes is not None and classes.shape != (expected,):
        raise ValueError(f"{path}: expected {expected} classes, got {classes.shape}")
    return net, classes
