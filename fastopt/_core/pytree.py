"""Nestings of arrays: flattened once, and compared with other nestings.

The *treedef* of a nesting has an integer in place of each array (its index in the flat list), a tuple for
a list or tuple, and a dict for a dict. The step table binds gradients along it.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from operator import is_
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np

from fastopt._core.layout import same_memory
from fastopt._core.validation import check_disjoint, check_memory, check_updatable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastopt._core.typing import Array, TreeDef


MAX_DEPTH = 100

# (container, key, item) of every list and dict of a nesting.
Slots: TypeAlias = "list[tuple[list[Any] | dict[Any, Any], Any, Any]]"


def flatten(
    tree: Any, name: str = "params", slots: Slots | None = None
) -> tuple[TreeDef, list[Array], list[str]]:
    """Return the treedef of a nesting of parameters, its arrays, and their paths: ``[2]["W"]``.

    Subclasses of ndarray, such as `numpy.matrix`, are viewed as arrays. The items of every list and dict are
    appended to `slots`.

    Raises TypeError or ValueError if an element is not an array that a kernel can update in place, if two
    arrays share memory, if there is no array, or if a container contains itself.
    """
    arrays: list[Array] = []
    paths: list[str] = []
    treedef = _flatten(tree, name, "", arrays, paths, [] if slots is None else slots, 0)
    if not arrays:
        raise ValueError(f"{name}: expected at least one array, got none")
    check_disjoint(arrays, paths, name)
    for array, path in zip(arrays, paths, strict=True):
        check_memory(array, name + path)
    return treedef, arrays, paths


def _flatten(
    tree: Any, name: str, path: str, arrays: list[Array], paths: list[str], slots: Slots, depth: int
) -> TreeDef:
    _check_depth(name, depth)
    if isinstance(tree, (list, tuple)):
        items = list(tree)
        if isinstance(tree, list):
            slots += [(tree, i, inner) for i, inner in enumerate(items)]
        return tuple([
            _flatten(inner, name, f"{path}[{i}]", arrays, paths, slots, depth + 1)
            for i, inner in enumerate(items)
        ])
    if isinstance(tree, dict):
        content = dict(tree)
        slots += [(tree, key, inner) for key, inner in content.items()]
        return {
            key: _flatten(inner, name, path + item(key), arrays, paths, slots, depth + 1)
            for key, inner in content.items()
        }
    arrays.append(check_updatable(tree, name + path))
    paths.append(path)
    return len(arrays) - 1


def read_iterators(tree: Any, name: str = "params", depth: int = 0) -> Any:
    """Return a nesting with a list in place of each iterator and view of a dict; itself if it has none."""
    _check_depth(name, depth)
    if isinstance(tree, np.ndarray):    # before the tests for abstract classes, which take longer
        return tree
    if isinstance(tree, (Iterator, KeysView, ValuesView, ItemsView)):
        tree = list(tree)
    if type(tree) is dict:
        content = {key: read_iterators(inner, name, depth + 1) for key, inner in tree.items()}
        return content if any(content[key] is not tree[key] for key in content) else tree
    if type(tree) in (list, tuple):
        items = [read_iterators(inner, name, depth + 1) for inner in tree]
        return tree if all(map(is_, items, tree)) else items
    return tree


def check_paths(expected: list[str], found: Iterable[str], remedy: str = "") -> None:
    """Raise unless a nesting has arrays at the same places as before."""
    before, now = dict.fromkeys(expected), dict.fromkeys(found)
    changes = [f"{path or 'the array'} was removed" for path in before if path not in now]
    changes += [f"{path or 'an array'} was added" for path in now if path not in before]
    if changes:
        what = ", ".join(changes)
        raise ValueError(f"params: expected arrays at the same places as before, but {what}{remedy}")


def check_same_arrays(paths: list[str], arrays: list[Array], found: dict[str, Array]) -> None:
    """Raise unless `found`, the arrays that the caller's containers have now, are the given arrays."""
    check_paths(paths, found, "; use add_param_group, or rebind for other arrays")
    for path, array in zip(paths, arrays, strict=True):
        if not same_memory(found[path], array):
            raise ValueError(
                f"params{path}: the container has another array than the one that the optimizer updates; "
                f"write values with params{path}[...] = values, or pass the new arrays to rebind"
            )


def _check_depth(name: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(
            f"{name}: expected at most {MAX_DEPTH} containers inside one another, got more: "
            "does one contain itself?"
        )


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


def explain_mismatch(treedef: TreeDef, tree: Any, path: str = "grads") -> NoReturn:
    """Raise the error that names the element in which `tree` differs from `treedef`."""
    _find_mismatch(treedef, tree, path)
    raise ValueError(f"{path}: expected the nesting of the parameters, got one that changes while it is read")


def _find_mismatch(treedef: TreeDef, tree: Any, path: str) -> None:
    if isinstance(treedef, int) or tree is None:
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
        if not tree.keys() <= treedef.keys():
            raise ValueError(f"{path}: expected {expected}, got {list(tree)}")
        inner = ((key, t, item(key)) for key, t in treedef.items() if key in tree)
    for key, inner_treedef, step in inner:
        _find_mismatch(inner_treedef, tree[key], path + step)
