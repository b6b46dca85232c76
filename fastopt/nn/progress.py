"""The progress bar of a training."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Progress"]

_T = TypeVar("_T")

_SECONDS = 0.1  # between two looks of the bar
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class Progress:
    """One bar over all epochs of a fit, on a terminal where tqdm is installed; else nothing.

    Parameters
    ----------
    last : int
        Number of the last epoch, as people count.
    batches : int, default 0
        How many there are to come, in all epochs.
    shown : bool, default False
    """

    def __init__(self, last: int = 0, batches: int = 0, shown: bool = False) -> None:
        self._last = last
        self._bar = _make_bar(batches) if shown else None
        self._done = 0  # since the bar was last looked at
        self._after = time.perf_counter() + _SECONDS

    def over(self, batches: Iterable[_T], epoch: int, numbers: Callable[[], str]) -> Iterable[_T]:
        """Return `batches`, the bar moving on as they are taken.

        Parameters
        ----------
        batches : iterable
        epoch : int
            From 0.
        numbers : callable
            Returns the text to show, the metrics of now; not called before the first batch is done.
        """
        return batches if self._bar is None else self._watched(self._bar, batches, epoch, numbers)

    def _watched(
        self, bar: tqdm[Any], batches: Iterable[_T], epoch: int, numbers: Callable[[], str]
    ) -> Iterator[_T]:
        bar.set_description_str(f"Epoch {epoch + 1}/{self._last}", refresh=False)
        for batch in batches:
            yield batch
            self._done += 1
            if time.perf_counter() >= self._after:
                bar.set_postfix_str(numbers(), refresh=False)
                bar.update(self._done)
                self._done, self._after = 0, time.perf_counter() + _SECONDS

    def paused(self) -> AbstractContextManager[None]:
        """``with progress.paused():`` what is printed stands above the bar."""
        if self._bar is None:
            return contextlib.nullcontext()
        paused: AbstractContextManager[None] = self._bar.external_write_mode(file=sys.stdout)
        return paused

    def close(self) -> None:
        """Take the bar from the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _make_bar(batches: int) -> tqdm[Any] | None:
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(
        total=batches,
        leave=False,
        bar_format=_FORMAT,
        dynamic_ncols=True,
        mininterval=0.0,  # `_watched` decides when to look
        delay=_SECONDS,
        smoothing=0.0,  # epochs end with an evaluation: the time left goes by the mean speed
    )
