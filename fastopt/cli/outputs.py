"""Files that commands write: checks of their paths, and the folder of a training run."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from fastopt import plots
from fastopt._core.typing import AnyArray
from fastopt.atomic_write import atomic_write, remove_leftovers
from fastopt.checkpoint import checksum
from fastopt.nn import History
from fastopt.nn.callbacks.backup import backup_number, find_backups

CONFIG = "config.toml"
HISTORY = "history.csv"
SUMMARY = "summary.json"
REPORT = "report.html"
CURVES = "curves.png"
CONFUSION_TABLE = "confusion_matrix.csv"
CONFUSION_PLOT = "confusion_matrix.png"
MODELS = {"npz": "model.npz", "safetensors": "model.safetensors"}
_CHECKSUMS = "crc32"    # the entry of the summary with a checksum for each file
RUN_FILES = {CONFIG, HISTORY, SUMMARY, REPORT, CURVES, CONFUSION_TABLE, CONFUSION_PLOT, *MODELS.values()}
_DEFAULT_FOLDER = "fastopt-run"


def is_run_file(name: str) -> bool:
    """Whether a run writes a file of this name."""
    return name in RUN_FILES or backup_number(name) > 0


def check_writable(option: str, path: str, *inputs: str) -> None:
    """Raise if `path` cannot be written, or is one of the input files."""
    if any(_is_same_file(path, other) for other in inputs):
        raise ValueError(f"{option}: {path} would overwrite another file of this command")
    is_new = not os.path.lexists(path)
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise ValueError(f"{option}: cannot write {path}: {error.strerror}") from None
    if is_new:
        os.remove(path)


def check_plot(path: str | None, *inputs: str, animated: bool = False) -> None:
    """Raise if the path of ``--plot`` is given, and matplotlib is missing or cannot write that file."""
    if path is not None:
        plots.check_path(path, "--plot", animated)
        check_writable("--plot", path, *inputs)


def _is_same_file(path: str, other: str) -> bool:
    if os.path.exists(path) and os.path.exists(other):
        return os.path.samefile(path, other)
    return os.path.abspath(path) == os.path.abspath(other)


def create_folder(path: str | None, overwrite: bool, *inputs: str) -> str:
    """Create an empty folder for a run and return its path.

    If `path` is None, it is the first unused name of fastopt-run, fastopt-run-2, fastopt-run-3, ... With
    `overwrite`, the files of an earlier run are removed, but none of the input files and no other file.
    """
    try:
        if path is None and not overwrite:
            return _create_default_folder()
        path = _DEFAULT_FOLDER if path is None else path
        os.makedirs(path, exist_ok=True)
        _remove_run(path, overwrite, inputs)
        return path
    except OSError as error:
        raise ValueError(f"--out: cannot write {error.filename}: {error.strerror}") from None


def _create_default_folder() -> str:
    number = 1
    while True:
        path = _DEFAULT_FOLDER if number == 1 else f"{_DEFAULT_FOLDER}-{number}"
        try:
            os.mkdir(path)
            return path
        except FileExistsError:
            number += 1


def _remove_run(path: str, overwrite: bool, inputs: Sequence[str]) -> None:
    remove_leftovers(path)
    names = set(os.listdir(path))
    if names and not overwrite:
        raise ValueError(
            f"--out: {path} is not empty; choose another folder, replace the run with --overwrite, or resume "
            "it with --resume"
        )
    foreign = min(names - RUN_FILES - {backup.name for backup in find_backups(path)}, default=None)
    if foreign is not None:
        raise ValueError(f"--overwrite: {path} contains {foreign}, which no run writes; nothing was removed")
    files = [os.path.join(path, name) for name in sorted(names)]
    for file in files:
        if any(_is_same_file(file, data) for data in inputs):
            raise ValueError(f"--overwrite: {file} is the data set of this run; nothing was removed")
    for file in files:
        os.remove(file)


def write_config(folder: str, text: str) -> None:
    """Write the options of a run in TOML."""
    with _replacing(folder, CONFIG) as file:
        file.write(text)


def write_summary(folder: str, summary: Mapping[str, Any]) -> None:
    """Write a nested dict as JSON, with checksums of itself and of the other files of the run.

    NaN and infinity become null.
    """
    content = _replace_nonfinite(summary)
    names = sorted(RUN_FILES.intersection(os.listdir(folder)) - {SUMMARY})
    content[_CHECKSUMS] = {name: _checksum_file(folder, name) for name in names}
    content[_CHECKSUMS][SUMMARY] = _checksum_json(content)
    with _replacing(folder, SUMMARY) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_summary(folder: str) -> dict[str, Any]:
    """Return what `write_summary` wrote, without the checksums.

    Raises a ValueError if a file of the run does not have its checksum.
    """
    path = os.path.join(folder, SUMMARY)
    with open(path, "rb") as file:
        text = file.read()
    try:
        content: dict[str, Any] = json.loads(text)
        expected: dict[str, str] = content[_CHECKSUMS]
        is_complete = expected.pop(SUMMARY) == _checksum_json(content)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        is_complete = False
    if not is_complete:
        raise ValueError(f"{path}: damaged, or not the summary of a run")
    for name in content.pop(_CHECKSUMS):
        if not os.path.exists(os.path.join(folder, name)):
            raise ValueError(f"{folder}: {name} is missing")
        if _checksum_file(folder, name) != expected[name]:
            raise ValueError(f"{os.path.join(folder, name)}: damaged, or changed after the end of the run")
    return content


def _checksum_file(folder: str, name: str) -> str:
    with open(os.path.join(folder, name), "rb") as file:
        return checksum(file.read())


def _checksum_json(content: Mapping[str, Any]) -> str:
    return checksum(json.dumps(content, sort_keys=True).encode())


def write_report(folder: str, text: str) -> None:
    """Write the page of a run."""
    with _replacing(folder, REPORT) as file:
        file.write(text)


def write_confusion_matrix(folder: str, matrix: AnyArray, classes: AnyArray) -> None:
    """Write the counts as CSV, with one row per true class and one column per predicted class."""
    labels = classes.tolist()
    with _replacing(folder, CONFUSION_TABLE) as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *labels])
        writer.writerows([label, *row] for label, row in zip(labels, matrix.tolist(), strict=True))


def write_plots(
    folder: str, history: History, matrix: AnyArray | None, classes: AnyArray | None, title: str
) -> None:
    """Draw the training curves and, for a classification, the confusion matrix of the test data."""
    if history.epoch:
        with atomic_write(os.path.join(folder, CURVES)) as path:
            plots.plot_history(history, path, title=title)
    if matrix is not None:
        with atomic_write(os.path.join(folder, CONFUSION_PLOT)) as path:
            title = f"Confusion matrix of the test data: {title}"
            plots.plot_confusion_matrix(matrix, classes, path, title=title)


@contextlib.contextmanager
def _replacing(folder: str, name: str) -> Iterator[TextIO]:
    """Yield a text file that replaces the file of this name in a folder when it is complete."""
    with (
        atomic_write(os.path.join(folder, name)) as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        yield file


def find_model(path: str) -> str:
    """Return the path of the model file: that in the folder of a run, or `path` itself."""
    if not os.path.isdir(path):
        return path
    for name in MODELS.values():
        if os.path.exists(os.path.join(path, name)):
            return os.path.join(path, name)
    raise ValueError(f"{path}: found no {' or '.join(MODELS.values())} in this folder")


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _replace_nonfinite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
