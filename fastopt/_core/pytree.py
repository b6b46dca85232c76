"""Nestings of arrays: flattened once, and compared with other nestings.

The *treedef* of a nesting has an integer in place of each array (its index in the flat list), a tuple for
a list or tuple, and a dict for a dict. The step table binds gradients along it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fastopt._core.runtime import address
from fastopt._core.validation import is_masked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastopt._core.typing import Array, TreeDef

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def flatten(tree: Any, name: str = "params") -> tuple[TreeDef, list[Array], list[str]]:
    """Return the treedef of a nesting of parameters, its arrays, and their paths: ``[2]["W"]``.

    Raises TypeError or ValueError if an element is not an array that a kernel can update in place, if two
    arrays share memory, or if there is no array.
    """
    arrays: list[Array] = []
    paths: list[str] = []
    treedef = _flatten(tree, name, "", arrays, paths)
    if not arrays:
        raise ValueError(f"{name}: expected at least one array, got none")
    _check_disjoint(arrays, paths, name)
    return treedef, arrays, paths


def _flatten(tree: Any, name: str, path: str, arrays: list[Array], paths: list[str]) -> TreeDef:
    if isinstance(tree, (list, tuple)):
        return tuple(_flatten(inner, name, f"{path}[{i}]", arrays, paths) for i, inner in enumerate(tree))
    if isinstance(tree, dict):
        return {key: _flatten(inner, name, path + item(key), arrays, paths) for key, inner in tree.items()}
    check_updatable(tree, name + path)
    arrays.append(tree)
    paths.append(path)
    return len(arrays) - 1


def assemble(treedef: TreeDef, leaves: Sequence[object]) -> Any:
    """Return `leaves` in a nesting of lists and dicts: the inverse of `flatten`."""
    if isinstance(treedef, int):
        return leaves[treedef]
    if isinstance(treedef, dict):
        return {key: assemble(inner, leaves) for key, inner in treedef.items()}
    return [assemble(inner, leaves) for inner in treedef]


def count_leaves(treedef: TreeDef) -> int:
    """Number of arrays in a nesting."""
    if isinstance(treedef, int):
        return 1
    return sum(map(count_leaves, treedef.values() if isinstance(treedef, dict) else treedef))


def item(key: object) -> str:
    """Item of a dict as it is written in an error: ``["W"]``."""
    return f'["{key}"]' if isinstance(key, str) else f"[{key!r}]"


def check_updatable(array: Any, name: str) -> None:
    """Raise unless `array` can be updated in place by a kernel."""
    if not isinstance(array, np.ndarray) or is_masked(array):
        raise TypeError(f"{name}: expected a NumPy array of float32 or float64, got {type(array).__name__}")
    if array.dtype not in DTYPES or not array.dtype.isnative:
        found = array.dtype if array.dtype.isnative else f"{array.dtype.str} (another byte order)"
        raise TypeError(
            f"{name}: expected dtype float32 or float64, got {found}; convert it with "
            ".astype(numpy.float32) and use the result as the parameter"
        )
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{name}: expected a C-contiguous array, got strides {array.strides} for shape "
            f"{array.shape}; make it one with numpy.ascontiguousarray and use the result"
        )
    if not array.flags.writeable:
        raise ValueError(f"{name}: expected a writeable array, got a read-only one; copy it first")
    if not array.flags.aligned:
        raise ValueError(
            f"{name}: expected an array aligned to its {array.itemsize}-byte items, "
            f"got address {address(array):#x}; copy it first"
        )


def _check_disjoint(arrays: list[Array], paths: list[str], name: str) -> None:
    starts = [address(array) for array in arrays]
    ranges = sorted((starts[i], starts[i] + a.nbytes, i) for i, a in enumerate(arrays) if a.nbytes)
    for (_, end, i), (start, _, k) in pairwise(ranges):
        if start < end:
            first, second = sorted((i, k))
            what = "are the same array" if arrays[i] is arrays[k] else "share memory"
            raise ValueError(
                f"{name}{paths[first]} and {name}{paths[second]} {what}: "
                "each element can be updated only once per step"
            )


def explain_mismatch(treedef: TreeDef, tree: Any, path: str = "grads") -> NoReturn:
    """Raise the error that names the element in which `tree` differs from `treedef`."""
    _find_mismatch(treedef, tree, path)
    raise ValueError(f"{path}: expected the nesting of the parameters, got one that changes while it is read")


def _find_mismatch(treedef: TreeDef, tree: Any, path: str) -> None:
    if isinstance(treedef, int):
        return
    n, actual = len(treedef), type(tree).__name__
    if isinstance(treedef, tuple):
        if not isinstance(tree, (list, tuple)):
            raise TypeError(f"{path}: expected a list of {n} as the parameters have, got {actual}")
        if len(tree) != n:
            raise ValueError(f"{path}: expected {n} entries as the parameters have, got {len(tree)}")
        inner = ((i, t, f"[{i}]") for i, t in enumerate(treedef))
    else:
        expected = f"keys {list(treedef)} as the parameters have"
        if not isinstance(tree, dict):
            raise TypeError(f"{path}: expected a dict with {expected}, got {actual}")
        if tree.keys() != treedef.keys():
            raise ValueError(f"{path}: expected {expected}, got {list(tree)}")
        inner = ((key, t, item(key)) for key, t in treedef.items())
    for key, inner_treedef, step in inner:
        _find_mismatch(inner_treedef, tree[key], path + step)
