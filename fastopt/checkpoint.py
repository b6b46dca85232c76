"""Files of nested arrays and numbers: replaced atomically, with checksums, without pickle."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from fastopt.atomic_write import atomic_write

if TYPE_CHECKING:
    import zipfile
    from pathlib import Path
    from types import ModuleType

    from _typeshed import StrPath

    from fastopt._core.typing import AnyArray

# Largest ratio of the sizes of a member before and after compression, by method: stored, deflated. Others may
# use as much memory as a damaged file asks for.
_MAX_RATIOS = {0: 1, 8: 1032}
_TREE = "tree"  # the description of a file of `save_tree`
_CHECKSUMS = "crc32"  # the metadata of a safetensors file with a checksum for each array


def save_tree(path: StrPath, tree: Any) -> None:
    """Write nested dicts and lists of arrays, numbers and strings atomically to a file.

    If the path ends in ``.safetensors``, the file has that format, else it is an ``.npz`` archive. The keys
    of dicts must be strings. Tuples are read back as lists, NumPy scalars as Python numbers.
    """
    arrays: dict[str, AnyArray] = {}
    text = json.dumps(_extract_arrays(tree, arrays))
    write_file(path, _TREE, text, arrays)


def load_tree(path: StrPath) -> Any:
    """Return the nested dicts and lists that `save_tree` wrote, or raise a ValueError."""
    text, arrays = read_file(path, _TREE)
    try:
        return _insert_arrays(json.loads(text), arrays)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a saved training state") from error


def write_file(path: StrPath, name: str, text: str, arrays: Mapping[str, AnyArray]) -> None:
    """Write arrays and a text that describes them atomically to a file.

    The text is an array of an ``.npz`` archive, or metadata of a safetensors file, called `name`. The file
    replaces an existing one after it has been read back and has the right checksums.
    """
    if not is_safetensors(path):
        write_arrays(path, {**arrays, name: np.array(text)})
        return
    with atomic_write(path) as temporary:
        _write_safetensors(temporary, name, text, arrays)
        _verify(temporary)


def read_file(path: StrPath, name: str) -> tuple[str, dict[str, AnyArray]]:
    """Return the text and the arrays that `write_file` wrote, or raise a ValueError.

    The text is empty if there is none of this name.
    """
    if is_safetensors(path):
        return _read_safetensors(path, name)
    arrays = read_arrays(path)
    return str(arrays.pop(name, "")), arrays


def read_arrays(path: StrPath) -> dict[str, AnyArray]:
    """Return all arrays of an ``.npz`` file by name.

    Parameters
    ----------
    path : str or path-like
        The file. A ValueError is raised if it is damaged or holds anything but plain arrays.
    """
    import zipfile

    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                if not (_is_complete(file, members) and _are_plain(members, file.tell())):
                    raise ValueError("not an archive of arrays")
                # `read` compares the checksum before anything in the data is used.
                return {m.filename.removesuffix(".npy"): _parse(archive.read(m)) for m in members}
        except Exception as error:
            # The readers of zip archives and of NumPy raise errors of many classes for damaged files, among
            # them an OSError for an invalid position.
            is_environment = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
            if is_environment or isinstance(error, MemoryError):
                raise
            raise ValueError(f"{path}: damaged, or not an .npz file of plain arrays") from error


def write_arrays(path: StrPath, arrays: Mapping[str, AnyArray]) -> None:
    """Write an ``.npz`` archive atomically; it replaces a file after its checksums have been compared."""
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as file:  # given a name, NumPy would add a missing ``.npz``
            np.savez(file, **arrays)  # type: ignore[arg-type]  # no name is allow_pickle
        _verify(temporary)


def is_safetensors(path: StrPath) -> bool:
    """Whether a path is that of a file in the format of safetensors."""
    return os.fspath(path).endswith(".safetensors")


def _is_complete(file: BinaryIO, members: Sequence[zipfile.ZipInfo]) -> bool:
    """Whether the end record of a zip archive agrees with its members and its size, and nothing follows it.

    `zipfile` does not compare these. A damaged length in the directory can hide the next entry inside the
    previous one. (Fields that are too small for a large archive have their largest value.)
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(-22, os.SEEK_END)
    signature, _, _, _, count, length, start, comment = struct.unpack("<4s4H2LH", file.read())
    return (
        (signature, comment) == (b"PK\5\6", 0)
        and min(len(members), 0xFFFF) == count
        and (start + length + 22 == size or size > 0xFFFFFFFF)
    )


def _are_plain(members: Sequence[zipfile.ZipInfo], size: int) -> bool:
    """Whether the members of an archive are those that NumPy writes, and fit into a file of this size.

    The sizes are compared before memory is allocated for them.
    """
    return sum(member.compress_size for member in members) <= size and all(
        member.filename.endswith(".npy")
        and member.file_size <= _MAX_RATIOS.get(member.compress_type, 0) * member.compress_size
        for member in members
    )


def _parse(data: bytes) -> AnyArray:
    """Return the array of an ``.npy`` file; its size is compared before memory is allocated."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:  # version 3 is for names of fields only
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    start = file.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError("not a plain array")
    return np.ndarray(shape, dtype, data, start, order="F" if fortran else "C").copy(order="K")


def _verify(path: Path) -> None:
    """Raise an OSError if a new file does not have the checksums of what was written."""
    import zipfile

    try:
        if is_safetensors(path):
            _read_safetensors(path, "")
            return
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is None:
                return
    except (ValueError, zipfile.BadZipFile):
        pass
    raise OSError(f"{path.name}: the file that was written differs from its checksums when it is read back")


def import_safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("this format needs safetensors: pip install 'fastopt[safetensors]'") from None
    return safetensors.numpy


def _import_ml_dtypes() -> ModuleType:
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError("bfloat16 arrays in a file need ml_dtypes: pip install 'fastopt[bf16]'") from None
    return ml_dtypes


def _write_safetensors(path: Path, name: str, text: str, arrays: Mapping[str, AnyArray]) -> None:
    checksums = {"": checksum(name.encode(), text.encode()), **_checksums(arrays)}
    contiguous = {name: np.array(array, order="C") for name, array in arrays.items()}
    metadata = {name: text, _CHECKSUMS: json.dumps(checksums)}
    save_file = import_safetensors().save_file
    import safetensors

    try:
        save_file(contiguous, path, metadata)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path}: {error}") from None


def _read_safetensors(path: StrPath, name: str) -> tuple[str, dict[str, AnyArray]]:
    """Return the text of this name, or of any if `name` is empty, and the arrays.

    The format has no checksums itself.
    """
    import_safetensors()
    import safetensors

    damage = ValueError(f"{path}: damaged, or not a file of fastopt")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        expected = json.loads(metadata.pop(_CHECKSUMS, ""))
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise damage from error
    texts = {checksum(key.encode(), text.encode()): (key, text) for key, text in metadata.items()}
    if not isinstance(expected, dict) or len(texts) != 1 or expected.pop("", None) not in texts:
        raise damage
    if expected != _checksums(arrays):
        raise damage
    key, text = next(iter(texts.values()))
    return (text if key == name else ""), arrays


def _checksums(arrays: Mapping[str, AnyArray]) -> dict[str, str]:
    """Return a checksum of dtype, shape and content of each array."""
    return {
        name: checksum(f"{array.dtype.str} {array.shape}".encode(), array.tobytes())
        for name, array in arrays.items()
    }


def checksum(*parts: bytes) -> str:
    """Return the CRC-32 of bytes as eight hexadecimal digits."""
    import zlib

    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return f"{value:08x}"


def _extract_arrays(tree: Any, arrays: dict[str, AnyArray]) -> Any:
    """Return `tree` in a form that JSON can hold, its arrays moved to `arrays` and replaced by names."""
    if isinstance(tree, np.ndarray):
        name = f"array{len(arrays)}"
        if tree.dtype.isbuiltin == 2:   # of another package, such as bfloat16: no file format has its name
            arrays[name] = tree.view(f"u{tree.dtype.itemsize}")
            return {"array": name, "dtype": tree.dtype.name}
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
    if "dtype" in tree:
        return arrays[tree["array"]].view(getattr(_import_ml_dtypes(), tree["dtype"]))
    if "array" in tree:
        return arrays[tree["array"]]
    return {key: _insert_arrays(value, arrays) for key, value in tree["dict"].items()}
