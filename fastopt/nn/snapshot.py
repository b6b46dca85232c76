"""Copies of a model's weights in memory, of any model that the trainer accepts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fastopt._core.typing import AnyArray

__all__ = ["get_weights", "set_weights"]


def get_weights(net: Any) -> dict[str, AnyArray]:
    """Return copies of a model's arrays by name.

    Parameters
    ----------
    net : object
        A model with ``state_dict()``, whose result is returned; or with ``params``, a list of layers,
        each a list of arrays, which are named by their indices: ``"params[0][1]"``.

    Returns
    -------
    dict of ndarray
    """
    if hasattr(net, "state_dict"):
        state: dict[str, AnyArray] = net.state_dict()
        return state
    return {name: array.copy() for name, array in _named_arrays(net)}


def set_weights(net: Any, weights: Mapping[str, AnyArray]) -> None:
    """Copy `weights` into the arrays of a model.

    Parameters
    ----------
    net : object
        The model.
    weights : dict of ndarray
        As returned by `get_weights`.

    Raises
    ------
    ValueError
        If the names or shapes differ from the model's. Nothing has been changed then.
    """
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
