"""Weights of models in memory; files of arrays, training states and models, written without pickle."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from types import ModuleType

    from _typeshed import StrPath

    from fastopt._core.typing import AnyArray

_TREE = "tree"  # the member of an archive that describes how its arrays are nested
_CONFIG = "fastopt_mlp"  # the member of an .npz file that holds the arguments as JSON


def get_weights(net: Any) -> dict[str, AnyArray]:
    """Return ``net.state_dict()``, or copies of the arrays of ``net.params``, named ``"params[0][1]"``."""
    if hasattr(net, "state_dict"):
        state: dict[str, AnyArray] = net.state_dict()
        return state
    return {name: array.copy() for name, array in _named_arrays(net)}


def set_weights(net: Any, weights: Mapping[str, AnyArray]) -> None:
    """Copy the result of `get_weights` into a model, or raise a ValueError and change nothing."""
    if hasattr(net, "load_state_dict"):
        net.load_state_dict(weights)
        return
    arrays = dict(_named_arrays(net))
    expected = {name: array.shape for name, array in arrays.items()}
    actual = {name: np.shape(array) for name, array in weights.items()}
    if actual != expected:
        raise ValueError(f"weights: expected arrays of the shapes {expected}, got {actual}")
    for name, array in arrays.items():
        array[...] = weights[name]


def _named_arrays(net: Any) -> Iterator[tuple[str, AnyArray]]:
    for i, layer in enumerate(net.params):
        for j, array in enumerate(layer):
            yield f"params[{i}][{j}]", array


def read_arrays(path: StrPath) -> dict[str, AnyArray]:
    """Return all arrays of an ``.npz`` file by name.

    Parameters
    ----------
    path : str or path-like
        The file. A ValueError is raised if it is damaged or holds anything but plain arrays.
    """
    import zipfile
    import zlib

    damage = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
    invalid = ValueError(f"{path}: damaged, or not an .npz file of plain arrays")
    with open(path, "rb") as file:
        try:
            with np.lib.npyio.NpzFile(file) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except damage as error:
            raise invalid from error
        is_complete = _has_members(file, len(arrays))
    # NumPy returns members that are not arrays as bytes.
    if not is_complete or not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise invalid
    return arrays


def _has_members(file: BinaryIO, n_members: int) -> bool:
    """Whether the end record of a zip archive counts `n_members`, which `zipfile` does not check.

    A damaged length in the central directory can hide the next entry inside the previous one. An
    archive with a comment, which NumPy never writes, ends differently and is accepted.
    """
    file.seek(-22, os.SEEK_END)
    end = file.read()
    return end[:4] != b"PK\5\6" or int.from_bytes(end[10:12], "little") in (n_members, 0xFFFF)


@contextlib.contextmanager
def atomic_write(path: StrPath) -> Iterator[Path]:
    """Yield a temporary path; the file written there replaces `path` when the block ends.

    The replacement is atomic: a reader, or a crash, sees either the old file or the complete new one.
    Files written next to the temporary path with another suffix are moved as well, before it. Missing
    folders are created.
    """
    import shutil
    import tempfile

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a file can be renamed only within one file system.
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
    """Write nested dicts and lists of arrays, numbers and strings atomically to an ``.npz`` file.

    The keys of dicts must be strings. Tuples are read back as lists, NumPy scalars as Python numbers.
    """
    arrays: dict[str, AnyArray] = {}
    text = json.dumps(_extract_arrays(tree, arrays))
    with atomic_write(path) as temporary:
        _save_npz(temporary, arrays | {_TREE: np.array(text)})


def load_tree(path: StrPath) -> Any:
    """Return the nested dicts and lists that `save_tree` wrote, or raise a ValueError."""
    arrays = read_arrays(path)
    try:
        return _insert_arrays(json.loads(str(arrays[_TREE])), arrays)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a saved training state") from error


def _save_npz(path: StrPath, arrays: Mapping[str, AnyArray]) -> None:
    """Write an archive to this very path: given a name, NumPy would add a missing ``.npz``."""
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no name is allow_pickle


def _extract_arrays(tree: Any, arrays: dict[str, AnyArray]) -> Any:
    """Return `tree` in a form that JSON can hold, its arrays moved to `arrays` and replaced by names."""
    if isinstance(tree, np.ndarray):
        name = f"array{len(arrays)}"
        arrays[name] = tree
        return {"array": name}
    if isinstance(tree, Mapping):
        return {"dict": {key: _extract_arrays(value, arrays) for key, value in tree.items()}}
    if isinstance(tree, (list, tuple)):
        return [_extract_arrays(value, arrays) for value in tree]
    return tree.item() if isinstance(tree, np.generic) else tree


def _insert_arrays(tree: Any, arrays: Mapping[str, AnyArray]) -> Any:
    """Invert `_extract_arrays`."""
    if isinstance(tree, list):
        return [_insert_arrays(value, arrays) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        return arrays[tree["array"]]
    return {key: _insert_arrays(value, arrays) for key, value in tree["dict"].items()}


def is_safetensors(path: StrPath) -> bool:
    """Whether a model is saved at `path` in the format of safetensors."""
    return os.fspath(path).endswith(".safetensors")


def write_model(path: StrPath, config: Mapping[str, Any], arrays: dict[str, AnyArray]) -> None:
    """Write a model, see `fastopt.MLP.save`: the constructor's arguments and ``"format"``, and arrays."""
    if is_safetensors(path):
        with open(_config_path(path), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=1)
        _safetensors().save_file(arrays, path)
    else:
        _save_npz(path, {_CONFIG: np.array(json.dumps(config)), **arrays})


def read_model(
    path: StrPath, version: int, required: Collection[str]
) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Return the arguments, those `required` among them, and the arrays that `write_model` wrote.

    Raises a ValueError if the file is damaged or not a model of this format version.
    """
    if is_safetensors(path):
        with open(_config_path(path), encoding="utf-8") as file:
            text = file.read()
        try:
            arrays = _safetensors().load_file(path)
        except Exception as error:
            if isinstance(error, OSError | ImportError):
                raise
            raise ValueError(f"{path}: {error}") from None
    else:
        arrays = read_arrays(path)
        if _CONFIG not in arrays:
            raise ValueError(f"{path}: not a saved fastopt.MLP")
        text = str(arrays[_CONFIG])
    try:
        config: dict[str, Any] = json.loads(text)
        actual = config.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: the file does not describe a fastopt.MLP") from None
    if actual != version:
        raise ValueError(f"{path}: expected format {version}, got {actual}")
    if missing := set(required) - config.keys():
        raise ValueError(f"{path}: {min(missing)!r} is missing")
    return config, arrays


def _config_path(path: StrPath) -> str:
    return os.fspath(path).removesuffix(".safetensors") + ".json"


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("this format needs safetensors: pip install 'fastopt[safetensors]'") from None
    return safetensors.numpy
