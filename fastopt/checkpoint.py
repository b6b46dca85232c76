"""Files of nested arrays and numbers: replaced atomically, with checksums, without pickle."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from types import ModuleType

    from _typeshed import StrPath

    from fastopt._core.typing import AnyArray

_TREE = "tree"  # the member of an archive that describes how its arrays are nested
_CHECKSUMS = "crc32"  # the metadata of a safetensors file with a checksum for each array


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
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if not all(name.endswith(".npy") for name in names) or not _has_members(file, len(names)):
                raise ValueError("not an archive of arrays")
            # `read` compares the checksum before anything in the data is used.
            return {name.removesuffix(".npy"): _parse(archive.read(name)) for name in names}
    except damage as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"{path}: damaged, or not an .npz file of plain arrays") from error


def _parse(data: bytes) -> AnyArray:
    array: AnyArray = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return array


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
    """Write nested dicts and lists of arrays, numbers and strings atomically to a file.

    If the path ends in ``.safetensors``, the file has that format, else it is an ``.npz`` archive. The keys
    of dicts must be strings. Tuples are read back as lists, NumPy scalars as Python numbers.
    """
    arrays: dict[str, AnyArray] = {}
    text = json.dumps(_extract_arrays(tree, arrays))
    with atomic_write(path) as temporary:
        if is_safetensors(path):
            checksums = json.dumps({"": _checksum(text.encode()), **_checksums(arrays)})
            arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
            import_safetensors().save_file(arrays, temporary, {_TREE: text, _CHECKSUMS: checksums})
        else:
            write_arrays(temporary, arrays | {_TREE: np.array(text)})


def load_tree(path: StrPath) -> Any:
    """Return the nested dicts and lists that `save_tree` wrote, or raise a ValueError."""
    if is_safetensors(path):
        text, arrays = _read_safetensors(path)
    else:
        arrays = read_arrays(path)
        text = str(arrays.get(_TREE, ""))
    try:
        return _insert_arrays(json.loads(text), arrays)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a saved training state") from error


def write_arrays(path: StrPath, arrays: Mapping[str, AnyArray]) -> None:
    """Write an archive to this very path: given a name, NumPy would add a missing ``.npz``."""
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no name is allow_pickle


def is_safetensors(path: StrPath) -> bool:
    """Whether a path is that of a file in the format of safetensors."""
    return os.fspath(path).endswith(".safetensors")


def import_safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("this format needs safetensors: pip install 'fastopt[safetensors]'") from None
    return safetensors.numpy


def _read_safetensors(path: StrPath) -> tuple[str, dict[str, AnyArray]]:
    """Return the description of a tree and its arrays, whose checksums the format does not have itself."""
    import_safetensors()
    import safetensors

    damage = ValueError(f"{path}: damaged, or not a saved training state")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise damage from error
    text = metadata.get(_TREE, "")
    try:
        expected = json.loads(metadata.get(_CHECKSUMS, ""))
    except ValueError as error:
        raise damage from error
    if expected != {"": _checksum(text.encode()), **_checksums(arrays)}:
        raise damage
    return text, arrays


def _checksums(arrays: Mapping[str, AnyArray]) -> dict[str, str]:
    """Return a checksum of dtype, shape and content of each array."""
    return {
        name: _checksum(f"{array.dtype.str} {array.shape}".encode(), array.tobytes())
        for name, array in arrays.items()
    }


def _checksum(*parts: bytes) -> str:
    import zlib

    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return f"{value:08x}"


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
