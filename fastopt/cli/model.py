"""Model files: a network together with the labels of its classes."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.typing import AnyArray
from fastopt.checkpoint import is_safetensors
from fastopt.nn import MLP, data

if TYPE_CHECKING:
    from _typeshed import StrPath


class Model(MLP):
    """An MLP that is saved with the labels of its classes, which are None for a regression."""

    def __init__(self, *, classes: AnyArray | None, **options: Any) -> None:
        super().__init__(**options)
        self.classes = classes

    def save(self, path: StrPath) -> None:
        """Write the network and its classes to a file that `fastopt.MLP.load` can read."""
        super().save(path)
        if self.classes is None:
            return
        if is_safetensors(path):
            from safetensors.numpy import load_file, save_file

            save_file(load_file(path), path, metadata={"classes": json.dumps(self.classes.tolist())})
        else:
            with zipfile.ZipFile(path, "a") as archive, archive.open("classes.npy", "w") as member:
                np.lib.format.write_array(member, self.classes, allow_pickle=False)


def load_model(path: StrPath) -> tuple[MLP, AnyArray | None]:
    """Return the network of a model file and its class labels, or None if the file has none."""
    net = MLP.load(path)
    if is_safetensors(path):
        from safetensors import safe_open

        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get("classes")
        classes = None if text is None else np.array(json.loads(text))
    else:
        classes = data.read_arrays(path).get("classes")
    expected = max(net.sizes[-1], 2)
    if classes is not None and classes.shape != (expected,):
        raise ValueError(f"{path}: expected {expected} classes, got {classes.shape}")
    return net, classes
