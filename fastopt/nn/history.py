"""The results of training, epoch by epoch, and their display on a terminal."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

    from fastopt.nn.typing import Logs

_T = TypeVar("_T")

_SECONDS = 0.1  # between two updates of the bar
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class History:
    """Metrics of each epoch.

    Attributes
    ----------
    epoch : list of int
        Indices of the finished epochs, from 0.
    history : dict of list of float
        One entry per epoch for each metric, NaN if an epoch did not have it:

        ``"loss"``: mean training loss over the batches, each computed before its step;
        ``"val_loss"``: loss of the validation data, if the model has `evaluate`;
        ``"accuracy"``: fraction of the training samples predicted correctly, if predictions are labels. For
        `fastopt.MLP` it is a running mean over the batches, as in Keras, computed in the training step:
        before the update and with dropout. For a custom model it is estimated after the epoch: `predict` is
        called with all samples if there are fewer than 512, else with evenly spaced ones, at least 256 and at
        least a sixteenth of all samples;
        ``"val_accuracy"``: fraction of the validation samples predicted correctly after the epoch. Both
        accuracies are weighted by sample weights but not by class weights. A sample with several labels is
        correct if all of them are;
        ``"lr"``: learning rate of the last step of the epoch, of the first parameter group;
        ``"seconds"``: wall-clock time of the training steps of the epoch, without evaluation;
        and metrics added by callbacks, see `Callback.on_test_end`.
    stopped_by : str or None
        Reason why the last `Trainer.fit` ended early: ``"max_time"``; ``"interrupt"`` for Ctrl-C;
        ``"SIGTERM"``; or the class name of a callback, such as ``"EarlyStopping"``. None if all epochs were
        completed.
    """

    def __init__(self) -> None:
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}
        self.stopped_by: str | None = None

    def __repr__(self) -> str:
        return f"History({len(self.epoch)} epochs: {', '.join(self.history)})"

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM ended the last `Trainer.fit`."""
        return self.stopped_by in ("interrupt", "SIGTERM")

    def record(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Append the metrics of an epoch.

        Parameters
        ----------
        epoch : int
            Index of the epoch.
        logs : dict of float
            Its metrics by name.
        """
        n = len(self.epoch)
        for name in logs:
            if name not in self.history:
                self.history[name] = [math.nan] * n
        lists: list[list[Any]] = [*self.history.values(), self.epoch]
        values = [*(logs.get(name, math.nan) for name in self.history), epoch]
        try:
            # Without Python code in between, in which a signal handler could run.
            deque(map(list.append, lists, values), maxlen=0)
        except MemoryError:
            for each in lists:
                del each[n:]
            raise

    def last(self) -> Logs:
        """Return the metrics of the last epoch as a dict, which is empty before the first epoch."""
        # After an interrupted `record` of the first epoch there may be empty lists.
        return {name: values[-1] for name, values in self.history.items() if values}


def format_logs(logs: Mapping[str, float], evaluated: str = "Validation") -> str:
    """Return the line that reports an epoch, in the format of the article.

    `evaluated` is the name of the data that the metrics ``val_...`` are of.
    """
    metric = "accuracy" if "val_accuracy" in logs else "loss"
    names = {"loss": "Loss", "accuracy": "Training Accuracy"}
    names[f"val_{metric}"] = f"{evaluated} {metric.title()}"
    return " | ".join(f"{text} = {logs[name]:.4f}" for name, text in names.items() if name in logs)


def format_stop(history: History) -> str:
    """Return the line that reports why training ended early."""
    n = len(history.epoch)
    epochs = f"{n} epoch{'' if n == 1 else 's'}"
    if history.interrupted:
        return f"Interrupted after {epochs}: the weights trained so far are kept."
    return f"Stopped after {epochs} by {history.stopped_by}."


class Progress:
    """One bar for all epochs of a fit; shown only on a terminal where tqdm is installed.

    `last` is the number of the last epoch, counted from 1; `n_batches` is the total of all epochs.
    """

    def __init__(self, last: int = 0, n_batches: int = 0, shown: bool = False) -> None:
        self._last = last
        self._bar = _make_bar(n_batches) if shown else None
        self._n_pending = 0  # batches since the last update of the bar
        self._next_update = time.perf_counter() + _SECONDS

    def track(self, batches: Iterator[_T], epoch: int, metrics: Callable[[], str]) -> Iterator[_T]:
        """Return `batches`, advancing the bar. `metrics` is called only after the first batch is done."""
        return batches if self._bar is None else self._advance(self._bar, batches, epoch, metrics)

    def _advance(
        self, bar: Any, batches: Iterator[_T], epoch: int, metrics: Callable[[], str]
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


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal; one that is None, closed or without `isatty` is not."""
    if stream is None or getattr(stream, "closed", False):
        return False
    return hasattr(stream, "isatty") and bool(stream.isatty())


def print_line(text: str) -> None:
    """Print a line to standard output, and nothing if that is None or closed."""
    if sys.stdout is not None and not getattr(sys.stdout, "closed", False):
        print(text, flush=hasattr(sys.stdout, "flush"))


def _make_bar(n_batches: int) -> tqdm[Any] | None:
    if not (is_terminal(sys.stdout) and is_terminal(sys.stderr)):
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    # The interval is 0 because `track` limits the updates. The speed is the mean (smoothing 0), because
    # epochs end with an evaluation.
    return tqdm(
        total=n_batches, leave=False, bar_format=_FORMAT, dynamic_ncols=True, mininterval=0.0,
        delay=_SECONDS, smoothing=0.0,
    )
