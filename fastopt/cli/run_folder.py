"""The folder that a training leaves: what is in it, and how two runs are kept apart."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastopt import plots
from fastopt.cli.files import same_file

if TYPE_CHECKING:
    from fastopt._core.typing import AnyArray
    from fastopt.nn import History

__all__ = [
    "HISTORY", "MODELS", "OWN_FILES", "create_folder", "find_model", "write_config",
    "write_confusion_matrix", "write_pictures", "write_summary",
]

CONFIG = "config.toml"
HISTORY = "history.csv"
SUMMARY = "summary.json"
CURVES = "curves.png"
CONFUSION_TABLE = "confusion_matrix.csv"
CONFUSION_PICTURE = "confusion_matrix.png"
MODELS = {"npz": "model.npz", "safetensors": "model.safetensors"}
OWN_FILES = {
    CONFIG, HISTORY, SUMMARY, CURVES, CONFUSION_TABLE, CONFUSION_PICTURE, *MODELS.values(), "model.json",
}
_DEFAULT = "fastopt-run"


def create_folder(path: str | None, overwrite: bool, data: str) -> str:
    """Make the folder of a run, which then holds nothing of another one.

    Parameters
    ----------
    path : str or None
        None takes the first free name of fastopt-run, fastopt-run-2, fastopt-run-3, ...
    overwrite : bool
        Remove the files of the run that is there. A folder that holds anything else is refused: it
        is not known whose that is.
    data : str
        What is read, and must not be removed.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If the folder cannot be made, or is not empty and not to be overwritten.
    """
    try:
        if path is None and not overwrite:
            return _next_default()
        path = _DEFAULT if path is None else path
        os.makedirs(path, exist_ok=True)
        _empty(path, overwrite, data)
        return path
    except OSError as error:
        raise ValueError(f"--out: cannot write {error.filename}: {error.strerror}") from None


def _next_default() -> str:
    number = 1
    while True:
        path = _DEFAULT if number == 1 else f"{_DEFAULT}-{number}"
        try:
            os.mkdir(path)
            return path
        except FileExistsError:
            number += 1


def _empty(path: str, overwrite: bool, data: str) -> None:
    there = set(os.listdir(path))
    if there and not overwrite:
        raise ValueError(
            f"--out: {path} is not empty; give another name, or --overwrite to replace the run in it"
        )
    foreign = sorted(there - OWN_FILES)
    if foreign:
        raise ValueError(f"--overwrite: {path} holds {foreign[0]}, which is no run's; nothing was removed")
    own = [os.path.join(path, name) for name in sorted(there)]
    for file in own:
        if same_file(file, data):
            raise ValueError(f"--overwrite: {file} is read by this command; nothing was removed")
    for file in own:
        os.remove(file)


def write_config(folder: str, text: bytes) -> None:
    """Write the options of the run, as bytes."""
    with open(os.path.join(folder, CONFIG), "wb") as file:
        file.write(text)


def write_summary(folder: str, summary: Mapping[str, Any]) -> None:
    """Write a dict of numbers, words and further dicts as JSON; what is not finite becomes null."""
    with open(os.path.join(folder, SUMMARY), "w", encoding="utf-8") as file:
        json.dump(_finite(summary), file, indent=2)
        file.write("\n")


def write_confusion_matrix(folder: str, matrix: AnyArray, classes: AnyArray) -> None:
    """Write the counts as a table: a row for each true class, a column for each predicted one."""
    labels = classes.tolist()
    with open(os.path.join(folder, CONFUSION_TABLE), "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *labels])
        writer.writerows([label, *row] for label, row in zip(labels, matrix.tolist(), strict=True))


def write_pictures(folder: str, history: History, matrix: AnyArray | None, classes: AnyArray | None) -> None:
    """Draw the curves and, where there is one, the confusion matrix.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    if history.epoch:
        plots.plot_history(history, os.path.join(folder, CURVES))
    if matrix is not None:
        plots.plot_confusion_matrix(matrix, classes, os.path.join(folder, CONFUSION_PICTURE))


def find_model(path: str) -> str:
    """Return the file of the model: that of a run's folder, or `path` itself."""
    if not os.path.isdir(path):
        return path
    for name in MODELS.values():
        if os.path.exists(os.path.join(path, name)):
            return os.path.join(path, name)
    raise ValueError(f"{path}: found no {' or '.join(MODELS.values())} in this folder")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
