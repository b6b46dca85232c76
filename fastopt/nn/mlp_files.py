"""Files of saved models: arrays and the constructor's arguments, without pickle."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.nn.files import read_arrays

if TYPE_CHECKING:
    from types import ModuleType

    from _typeshed import StrPath

    from fastopt._core.typing import AnyArray

__all__ = ["is_safetensors", "read_model", "write_model"]

_CONFIG = "fastopt_mlp"  # the member of an .npz file that holds the arguments as JSON


def is_safetensors(path: StrPath) -> bool:
    """Whether a model is saved at `path` in the format of safetensors."""
    return os.fspath(path).endswith(".safetensors")


def write_model(path: StrPath, config: Mapping[str, Any], arrays: dict[str, AnyArray]) -> None:
    """Write a model, see `fastopt.MLP.save`.

    Parameters
    ----------
    path : str or path-like
        The file.
    config : dict
        The format version, as ``"format"``, and the arguments of the constructor.
    arrays : dict of ndarray
        The arrays by name.
    """
    import json

    if is_safetensors(path):
        with open(_config_path(path), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=1)
        _safetensors().save_file(arrays, path)
    else:
        members = {_CONFIG: np.array(json.dumps(config)), **arrays}
        with open(path, "wb") as file:
            np.savez(file, **members)  # type: ignore[arg-type]  # no name is allow_pickle


def read_model(
    path: StrPath, version: int, required: Collection[str]
) -> tuple[dict[str, Any], dict[str, AnyArray]]:
    """Return the arguments and the arrays of a model that `write_model` wrote.

    Parameters
    ----------
    path : str or path-like
        The file.
    version : int
        The supported format version.
    required : collection of str
        Names of the arguments that the file must have.

    Raises
    ------
    ValueError
        If the file is damaged or not a saved model.
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
        return _parse_config(text, version, required), arrays
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parse_config(text: str, version: int, required: Collection[str]) -> dict[str, Any]:
    import json

    try:
        config: dict[str, Any] = json.loads(text)
        actual = config.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("the file does not describe a fastopt.MLP") from None
    if actual != version:
        raise ValueError(f"expected format {version}, got {actual}")
    if missing := set(required) - config.keys():
        raise ValueError(f"{min(missing)!r} is missing")
    return config


def _config_path(path: StrPath) -> str:
    return os.fspath(path).removesuffix(".safetensors") + ".json"


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("this format needs safetensors: pip install 'fastopt[safetensors]'") from None
    return safetensors.numpy
