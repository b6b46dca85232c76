"""The progress bar of a training run."""

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

_SECONDS = 0.1  # between two updates of the bar
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class Progress:
    """One bar for all epochs of a fit; shown only on a terminal where tqdm is installed.

    Parameters
    ----------
    last : int
        Number of the last epoch, counted from 1.
    n_batches : int, default 0
        Number of batches in all epochs.
    shown : bool, default False
        Whether to show the bar.
    """

    def __init__(self, last: int = 0, n_batches: int = 0, shown: bool = False) -> None:
        self._last = last
        self._bar = _make_bar(n_batches) if shown else None
        self._n_pending = 0  # batches since the last update of the bar
        self._next_update = time.perf_counter() + _SECONDS

    def track(self, batches: Iterable[_T], epoch: int, metrics: Callable[[], str]) -> Iterable[_T]:
        """Return `batches`; iterating over them advances the bar.

        Parameters
        ----------
        batches : iterable
            The batches of an epoch.
        epoch : int
            Index of the epoch, from 0.
        metrics : callable
            Returns the current metrics as text. Called only after the first batch is done.
        """
        return batches if self._bar is None else self._track(self._bar, batches, epoch, metrics)

    def _track(
        self, bar: tqdm[Any], batches: Iterable[_T], epoch: int, metrics: Callable[[], str]
    ) -> Iterator[_T]:
        bar.set_description_str(f"Epoch {epoch + 1}/{self._last}", refresh=False)
        for batch in batches:
            yield batch
            self._n_pending += 1
            if time.perf_counter() >= self._next_update:
                bar.set_postfix_str(metrics(), refresh=False)
                bar.update(self._n_pending)
                self._n_pending, self._next_update = 0, time.perf_counter() + _SECONDS

    def paused(self) -> AbstractContextManager[None]:
        """Return a context in which text may be printed; it appears above the bar."""
        if self._bar is None:
            return contextlib.nullcontext()
        paused: AbstractContextManager[None] = self._bar.external_write_mode(file=sys.stdout)
        return paused

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _make_bar(n_batches: int) -> tqdm[Any] | None:
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(
        total=n_batches,
        leave=False,
        bar_format=_FORMAT,
        dynamic_ncols=True,
        mininterval=0.0,  # `_track` limits the updates
        delay=_SECONDS,
        smoothing=0.0,  # the mean speed, because epochs end with an evaluation
    )
