"""The base classes of callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from fastopt._core.validation import check_choice, check_float, suggest

if TYPE_CHECKING:
    from _typeshed import StrPath

    from fastopt.nn.history import History
    from fastopt.nn.typing import Logs, Mode

T = TypeVar("T")

# Whether a smaller or a larger value is better, by the metric's name without "val_".
_MODES: dict[str, Literal["min", "max"]] = {"loss": "min", "accuracy": "max"}


class TrainerProtocol(Protocol):
    """The attributes and methods of `fastopt.Trainer` that callbacks use."""

    net: Any
    opt: Any
    callbacks: list[Callback]
    history: History
    stop_training: bool

    @property
    def is_main(self) -> bool: ...
    def clock(self) -> float: ...
    def from_main(self, function: Callable[[], T]) -> T: ...
    def write(self, text: str) -> None: ...
    @property
    def is_untrained(self) -> bool: ...
    def save(self, path: StrPath) -> None: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Callback:
    """Base class of callbacks. Its hooks do nothing; override those that you need.

    Epochs are numbered from 0 over the lifetime of the trainer, batches from 0 in each epoch. ``logs``
    is a dict of floats: those of an epoch are described in `fastopt.History`; those of a batch are
    ``{"loss": loss_of_the_batch}``. Set ``self.trainer.stop_training = True`` to stop training after
    the current batch. Print with ``self.trainer.write(text)``, which keeps the progress bar intact. If
    several ranks train together, hooks run on all of them; write files if ``self.trainer.is_main``.

    Attributes
    ----------
    trainer : Trainer
        Set before `on_train_begin`. Its attributes `net`, `opt` and `history` give access to the model,
        the optimizer and the results so far.
    """

    trainer: TrainerProtocol = None  # type: ignore[assignment]  # set by the trainer before any hook

    def on_train_begin(self, logs: Logs) -> None:
        """Run at the start of `Trainer.fit`; `logs` is empty."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Run before the first batch of an epoch; `logs` is empty."""

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Run before each optimizer step; `logs` is empty."""

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Run after each optimizer step."""

    def on_test_begin(self, logs: Logs) -> None:
        """Run after the last batch of an epoch, before its evaluation; `logs` is empty."""

    def on_test_end(self, logs: Logs) -> None:
        """Run after the evaluation of an epoch. Values added to `logs` are recorded in the history."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Run after an epoch has been recorded in the history."""

    def on_interrupt(self, logs: Logs) -> None:
        """Run when Ctrl-C or SIGTERM ends `Trainer.fit`, before `on_train_end`; `logs` is empty.

        The current batch has been finished, so `Trainer.state_dict` returns a state from which training
        resumes exactly.
        """

    def on_train_end(self, logs: Logs) -> None:
        """Run at the end of `Trainer.fit`, even after Ctrl-C; `logs` are those of the last epoch."""

    def reset(self) -> None:
        """Discard all state of a training run. Called when the callback is used by another trainer."""

    def close(self) -> None:
        """Release resources. Called when `Trainer.fit` returns or raises an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume training: arrays, numbers and strings."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""


class StatefulCallback(Callback):
    """A callback whose state is the attributes named by `initial_state`."""

    def initial_state(self) -> dict[str, Any]:
        """Return the attributes of the state and their values at the start of training."""
        raise NotImplementedError

    def reset(self) -> None:
        self.__dict__.update(self.initial_state())

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.initial_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        expected = self.initial_state()
        if set(state) != set(expected):
            raise ValueError(
                f"state of {type(self).__name__}: expected the keys {sorted(expected)}, got {sorted(state)}"
            )
        self.__dict__.update(state)


class MonitorCallback(StatefulCallback):
    """A callback that compares a metric with its best value so far."""

    def __init__(self, monitor: str, mode: Mode, min_delta: float = 0.0) -> None:
        check_choice("mode", mode, ("auto", "min", "max"))
        if mode == "auto":
            metric = monitor.removeprefix("val_") if isinstance(monitor, str) else ""
            if metric not in _MODES:
                closest = suggest(str(monitor), [f"{part}{name}" for part in ("", "val_") for name in _MODES])
                raise ValueError(
                    f"mode: cannot infer whether to minimize or maximize {monitor!r}; pass mode='min' or "
                    f"mode='max'{f', or {closest}' if closest.startswith('did') else ''}"
                )
            mode = _MODES[metric]
        self.monitor = monitor
        self.mode = mode
        self.min_delta: float = abs(check_float("min_delta", min_delta))

    @property
    def worst(self) -> float:
        """The value that every finite value improves on."""
        return math.inf if self.mode == "min" else -math.inf

    def is_better(self, value: float, reference: float) -> bool:
        """Whether `value` improves on `reference` by more than `min_delta`; NaN never does."""
        if self.mode == "min":
            return value + self.min_delta < reference
        return value - self.min_delta > reference

    def monitored_value(self, logs: Logs) -> float:
        """Return the value of the metric, or raise if `logs` does not have it."""
        if self.monitor in logs:
            return logs[self.monitor]
        is_missing = self.monitor.startswith("val_") and not any(name.startswith("val_") for name in logs)
        hint = suggest(self.monitor, sorted(logs))
        if is_missing:
            hint = f"expected one of {', '.join(sorted(logs))}; Trainer.fit needs validation_data for it"
        raise ValueError(f"monitor: {type(self).__name__} finds no {self.monitor!r}, {hint}")
