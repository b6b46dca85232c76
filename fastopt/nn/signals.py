"""SIGINT and SIGTERM during a training run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(KeyboardInterrupt):
    """Raised where a training run can be left and resumed, after a signal has been received."""


class DeferredSignals:
    """Handlers that record the first SIGINT or SIGTERM; a second one has the effect it had before.

    Signals that are ignored or handled by code other than Python's are left alone; so are all signals if
    `install` is called in a thread other than the main one.

    Parameters
    ----------
    is_shared : bool, default False
        Whether a signal counts only when all ranks of a training run know of it, see `agree`.

    Attributes
    ----------
    received : int or None
        The signal that has been received.
    """

    def __init__(self, is_shared: bool = False) -> None:
        self.received: int | None = None
        self._counts = not is_shared
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int] = {}
        self._is_raising = False

    def install(self) -> None:
        """Replace the handlers of the process."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is not None and handler is not signal.SIG_IGN:
                self._before[number] = handler
                signal.signal(number, self._handle)

    def restore(self) -> None:
        """Restore the handlers of before."""
        while self._before:
            number, handler = next(iter(self._before.items()))
            signal.signal(number, handler)
            del self._before[number]

    def close(self) -> None:
        """Restore the handlers, and pass a deferred signal on to its handler, unless it was Ctrl-C.

        Of Ctrl-C, `Trainer.fit` returns instead, if its handler is that of Python.
        """
        received = self.received
        is_ctrl_c = received is not None and self._before.get(received) is signal.default_int_handler
        self.restore()
        if received is not None and not is_ctrl_c:
            signal.raise_signal(received)

    def agree(self, number: int) -> None:
        """Let a signal count that some rank has received; 0 stands for none."""
        if number:
            self.received, self._counts = number, True

    def check(self) -> None:
        """Raise an Interruption if a signal has been received."""
        if self.received is not None and self._counts:
            raise Interruption

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Return a context in which a signal raises an Interruption; the training state must not change."""
        self._is_raising = True
        try:
            self.check()
            yield
        finally:
            self._is_raising = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self.restore()
            signal.raise_signal(number)
            return
        self.received = number
        if self._is_raising and self._counts:
            raise Interruption
