"""What a training is at a moment: a net's weights in memory, and files that are never half written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.nn.data import read_arrays

if TYPE_CHECKING:
    from _typeshed import StrPath

    from fastopt._core.typing import AnyArray

__all__ = ["load_tree", "put_weights", "replacing", "save_tree", "take_weights"]

_TREE = "tree"  # the member of a file that says how its arrays are nested


# --- Weights in memory ------------------------------------------------------------------------


def take_weights(net: Any) -> dict[str, AnyArray]:
    """Return copies of a net's arrays by name.

    Parameters
    ----------
    net : object
        With ``state_dict()``, which then says what there is; or with ``params``, a list of layers,
        each a list of arrays, which are named by their places: ``"params[0][1]"``.

    Returns
    -------
    dict of ndarray
    """
    if hasattr(net, "state_dict"):
        state: dict[str, AnyArray] = net.state_dict()
        return state
    return {name: array.copy() for name, array in _named(net)}


def put_weights(net: Any, weights: Mapping[str, AnyArray]) -> None:
    """Write `weights`, which `take_weights` gave, back into the arrays of a net.

    Parameters
    ----------
    net : object
    weights : dict of ndarray

    Raises
    ------
    ValueError
        If they are another net's; nothing has been changed then.
    """
    if hasattr(net, "load_state_dict"):
        net.load_state_dict(weights)
        return
    own = dict(_named(net))
    expected = {name: array.shape for name, array in own.items()}
    found = {name: np.shape(array) for name, array in weights.items()}
    if found != expected:
        raise ValueError(f"weights: expected arrays of the shapes {expected}, got {found}")
    for name, array in own.items():
        array[...] = weights[name]


def _named(net: Any) -> Iterator[tuple[str, AnyArray]]:
    for i, layer in enumerate(net.params):
        for j, array in enumerate(layer):
            yield f"params[{i}][{j}]", array


# --- Files ------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """``with replacing(path) as temporary:`` what is written to `temporary` then appears at `path`.

    It does so at once and as a whole: whoever reads, and whatever crashes, there is the old file or
    the new one. Files that are written beside `temporary`, with another suffix, come along, and are
    in their place before it is. Folders that are missing are made.

    Parameters
    ----------
    path : str or path-like
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a file can be renamed within one file system only.
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder / path.name
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
            os.replace(file, path.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_tree(path: StrPath, tree: Any) -> None:
    """Write nested dicts and lists of arrays, numbers and strings to an ``.npz`` file, as a whole.

    Parameters
    ----------
    path : str or path-like
    tree : dict or list
        Keys are strings. Tuples come back as lists, numbers of NumPy as those of Python.
    """
    arrays: dict[str, AnyArray] = {}
    text = json.dumps(_take_out(tree, arrays))
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays, **{_TREE: text})  # type: ignore[arg-type]  # none is allow_pickle


def load_tree(path: StrPath) -> Any:
    """Return what `save_tree` wrote.

    Raises
    ------
    ValueError
        If the file is damaged or of another kind.
    """
    arrays = read_arrays(path)
    try:
        return _put_in(json.loads(str(arrays[_TREE])), arrays)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a saved training state") from error


def _take_out(tree: Any, arrays: dict[str, AnyArray]) -> Any:
    """Return `tree` as JSON has it, every array of it replaced by its name in `arrays`."""
    if isinstance(tree, np.ndarray):
        name = f"array{len(arrays)}"
        arrays[name] = tree
        return {"array": name}
    if isinstance(tree, Mapping):
        return {"dict": {key: _take_out(value, arrays) for key, value in tree.items()}}
    if isinstance(tree, (list, tuple)):
        return [_take_out(value, arrays) for value in tree]
    return tree.item() if isinstance(tree, np.generic) else tree


def _put_in(tree: Any, arrays: Mapping[str, AnyArray]) -> Any:
    """The inverse of `_take_out`."""
    if isinstance(tree, list):
        return [_put_in(value, arrays) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        return arrays[tree["array"]]
    return {key: _put_in(value, arrays) for key, value in tree["dict"].items()}
