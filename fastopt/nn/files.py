"""Weights of models in memory; files of models, written without pickle."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.arena import copy_all
from fastopt._core.pytree import item
from fastopt.checkpoint import read_file, write_file

if TYPE_CHECKING:
    from _typeshed import StrPath

    from fastopt._core.typing import AnyArray

_CONFIG = "fastopt_mlp"  # the name of the text that holds the arguments as JSON


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
    copy_all(list(arrays.values()), [weights[name] for name in arrays])


def _named_arrays(net: Any) -> Iterator[tuple[str, AnyArray]]:
    def walk(tree: Any, name: str) -> Iterator[tuple[str, AnyArray]]:
        if isinstance(tree, dict):
            for key, inner in tree.items():
                yield from walk(inner, name + item(key))
        elif isinstance(tree, (list, tuple)):
            for i, inner in enumerate(tree):
                yield from walk(inner, f"{name}[{i}]")
        else:
            yield name, tree

    return walk(net.params, "params")


def write_model(path: StrPath, config: Mapping[str, Any], arrays: Mapping[str, AnyArray]) -> None:
    """Write a model, see `fastopt.MLP.save`: the constructor's arguments, ``"format"`` and arrays.

    ``config["extra"]``, if it is there, is not an argument; `read_model` returns it separately.
    """
    write_file(path, _CONFIG, json.dumps(config), arrays)


def read_model(
    path: StrPath, version: int, required: Collection[str]
) -> tuple[dict[str, Any], dict[str, AnyArray], Any]:
    """Return the arguments, those `required` among them, arrays and the extra that `write_model` wrote.

    Raises a ValueError if the file is damaged or not a model of this format version.
    """
    text, arrays = read_file(path, _CONFIG)
    if not text:
        raise ValueError(f"{path}: not a saved fastopt.MLP")
    try:
        config: dict[str, Any] = json.loads(text)
        actual, extra = config.pop("format"), config.pop("extra", None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{path}: the file does not describe a fastopt.MLP") from None
    if actual != version:
        raise ValueError(f"{path}: expected format {version}, got {actual}")
    if missing := set(required) - config.keys():
        raise ValueError(f"{path}: {min(missing)!r} is missing")
    return config, arrays, extra
