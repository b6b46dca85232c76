"""Files that are replaced atomically, and the removal of what killed processes have left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # on Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from _typeshed import StrPath

_PREFIX = ".fastopt-tmp-"  # of temporary folders
_LOCK = ".fastopt-lock"  # the file in a temporary folder that its process keeps locked
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # errors of file systems without locks


@contextlib.contextmanager
def atomic_write(path: StrPath) -> Iterator[Path]:
    """Yield a temporary path; the file written there replaces `path` when the block ends.

    The replacement is atomic: a reader, or a crash, sees either the old file or the complete new one, which
    has reached the disk before. Files written next to the temporary path are moved as well, before it.
    Missing folders are created. Temporary files of processes that no longer run are removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    # In the same folder, because a file can be renamed only within one file system.
    folder, lock = _create_locked_folder(path.parent)
    try:
        yield folder / path.name
        files = [file for file in folder.iterdir() if file.name != _LOCK]
        for file in sorted(files, key=lambda file: file.name == path.name):
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
            os.replace(file, path.parent / file.name)
        fsync_folder(path.parent)
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: StrPath) -> None:
    """Remove the temporary files in a folder whose processes no longer run."""
    for leftover in Path(folder).glob(f"{_PREFIX}*"):
        # Somebody else may remove it at the same time, or we may not be allowed to.
        with contextlib.suppress(OSError):
            _remove_leftover(leftover)


def fsync_folder(folder: StrPath) -> None:
    """Wait until the names of the files in a folder have reached the disk."""
    if fcntl is None:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot do this
            raise
    finally:
        os.close(descriptor)


def _create_locked_folder(parent: Path) -> tuple[Path, int]:
    """Create a temporary folder; return it and the open lock file in it.

    Another process may take the folder for a leftover before it is locked; then the next one is created.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        try:
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR)
            try:
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(lock)
                    raise
            if (folder / _LOCK).exists():
                return folder, lock
            os.close(lock)
        except (FileNotFoundError, BlockingIOError):
            pass
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _remove_leftover(folder: Path) -> None:
    """Remove a temporary folder, or raise an OSError if its process still runs."""
    path = folder / _LOCK
    try:
        lock = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        folder.rmdir()  # unless another process has just begun to write in it
        return
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()   # before the lock is released: a process that has just created the file notices it
            shutil.rmtree(folder)
            return
    finally:
        os.close(lock)
    path.unlink()
    shutil.rmtree(folder)
