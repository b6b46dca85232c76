"""Files that a command writes are checked before it does its work."""

from __future__ import annotations

import os

from fastopt import plots

__all__ = ["check_plot", "check_writable", "same_file"]


def check_writable(option: str, path: str, *inputs: str) -> None:
    """Raise if `path` cannot be written, or is one of the files that are read."""
    if any(same_file(path, other) for other in inputs):
        raise ValueError(f"{option}: {path} would overwrite another file of this command")
    is_new = not os.path.lexists(path)
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise ValueError(f"{option}: cannot write {path}: {error.strerror}") from None
    if is_new:
        os.remove(path)


def check_plot(path: str | None, *inputs: str, moving: bool = False) -> None:
    """Raise if a picture, where one is wanted, could not be drawn or written there; `moving`: a GIF can."""
    if path is not None:
        plots.check_path(path, "--plot", moving)
        check_writable("--plot", path, *inputs)


def same_file(path: str, other: str) -> bool:
    """Whether two paths lead to one file, be it there or not."""
    if os.path.exists(path) and os.path.exists(other):
        return os.path.samefile(path, other)
    return os.path.abspath(path) == os.path.abspath(other)
