"""Nestings of arrays: taken apart once, compared with others when they do not match.

The *shape* of a nesting has an integer where an array stood (its place in the flat list), a tuple for
a list or tuple, a dict for a dict. The span table walks gradients along it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.runtime import address

if TYPE_CHECKING:
    from fastopt._core.typing import Array, Shape

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def flatten(tree: Any, name: str = "params") -> tuple[Shape, list[Array], list[str]]:
    """Take a nesting of parameter arrays apart, checking every array.

    Returns
    -------
    shape
        The nesting, with integers for arrays.
    arrays : list of ndarray
    places : list of str
        Where each array stands: ``[2]["W"]``.

    Raises
    ------
    TypeError, ValueError
        If something is not an array that a kernel can update in place, if an array comes twice, if
        two share memory, or if there is none; the message says where.
    """
    arrays: list[Array] = []
    places: list[str] = []
    shape = _take_apart(tree, name, "", arrays, places)
    if not arrays:
        raise ValueError(f"{name}: expected at least one array, got none")
    _check_disjoint(arrays, places, name)
    return shape, arrays, places


def _take_apart(tree: Any, name: str, place: str, arrays: list[Array], places: list[str]) -> Shape:
    if isinstance(tree, (list, tuple)):
        return tuple(
            _take_apart(inner, name, f"{place}[{i}]", arrays, places) for i, inner in enumerate(tree)
        )
    if isinstance(tree, dict):
        return {
            key: _take_apart(inner, name, place + item(key), arrays, places)
            for key, inner in tree.items()
        }
    check_updatable(tree, name + place)
    arrays.append(tree)
    places.append(place)
    return len(arrays) - 1


def count_places(shape: Shape) -> int:
    """How many arrays a shape has."""
    if isinstance(shape, int):
        return 1
    return sum(map(count_places, shape.values() if isinstance(shape, dict) else shape))


def item(key: object) -> str:
    """How a dict's item is written in an error: ``["W"]``."""
    return f'["{key}"]' if isinstance(key, str) else f"[{key!r}]"


def check_updatable(array: Any, name: str) -> None:
    """Raise unless `array` can be updated in place by a kernel."""
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected a NumPy array of float32 or float64, got {type(array).__name__}"
        )
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


def _check_disjoint(arrays: list[Array], places: list[str], name: str) -> None:
    starts = [address(array) for array in arrays]
    ranges = sorted((starts[i], starts[i] + a.nbytes, i) for i, a in enumerate(arrays) if a.nbytes)
    for (_, end, i), (start, _, k) in pairwise(ranges):
        if start < end:
            first, second = sorted((i, k))
            what = "are the same array" if arrays[i] is arrays[k] else "share memory"
            raise ValueError(
                f"{name}{places[first]} and {name}{places[second]} {what}: "
                "each number can be updated only once a step"
            )


def explain(shape: Shape, tree: Any, place: str = "grads") -> None:
    """Raise the error that says where `tree` departs from `shape`."""
    if isinstance(shape, int):
        return
    if isinstance(shape, tuple):
        if not isinstance(tree, (list, tuple)):
            raise TypeError(
                f"{place}: expected a list of {len(shape)} as the parameters have, "
                f"got {type(tree).__name__}"
            )
        if len(tree) != len(shape):
            raise ValueError(
                f"{place}: expected {len(shape)} entries as the parameters have, got {len(tree)}"
            )
        inner = ((i, s, f"[{i}]") for i, s in enumerate(shape))
    else:
        if not isinstance(tree, dict):
            raise TypeError(
                f"{place}: expected a dict with keys {list(shape)} as the parameters have, "
                f"got {type(tree).__name__}"
            )
        if tree.keys() != shape.keys():
            raise ValueError(
                f"{place}: expected keys {list(shape)} as the parameters have, got {list(tree)}"
            )
        inner = ((key, s, item(key)) for key, s in shape.items())
    for key, inner_shape, step in inner:
        explain(inner_shape, tree[key], place + step)
