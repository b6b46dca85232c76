"""Callbacks that set the learning rate."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from fastopt._core.validation import check_float, check_int
from fastopt.nn.callbacks.base import Callback
from fastopt.nn.callbacks.monitor import monitored_value, resolve_mode
from fastopt.optimizers.hyperparameters import check_number, is_schedule
from fastopt.schedules import ReduceOnPlateau

if TYPE_CHECKING:
    from fastopt.nn.typing import Logs, Mode

__all__ = ["LearningRateScheduler", "ReduceLROnPlateau"]


class ReduceLROnPlateau(Callback):
    """Reduce the learning rate when a metric has not improved for a number of epochs.

    This callback follows Keras's definitions of the arguments and can monitor any metric. The schedule
    `fastopt.schedules.ReduceOnPlateau`, which it uses internally, follows PyTorch's and monitors the
    validation loss. The learning rates of all parameter groups are reduced.

    Parameters
    ----------
    monitor : str, default "val_loss"
        Metric of the history to monitor.
    factor : float, default 0.1
        Factor of a reduction, above 0 and below 1.
    patience : int, default 10
        Number of consecutive epochs without improvement after which the learning rate is reduced. (The
        schedule waits for one more.)
    verbose : int, default 0
        1 prints a message on each reduction.
    mode : {"auto", "min", "max"}, default "auto"
        Whether a smaller or a larger value is better. ``"auto"`` infers it for the loss and the accuracy.
    min_delta : float, default 1e-4
        Smallest change that counts as an improvement.
    cooldown : int, default 0
        Epochs after a reduction during which the patience does not run.
    min_lr : float, default 0.0
        Lower bound of the learning rate.

    Raises
    ------
    ValueError
        In `Trainer.fit`, if the learning rate is a schedule, which cannot be set.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: Mode = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        self.monitor = monitor
        self.mode = resolve_mode(mode, monitor)
        self.verbose = verbose
        # The epoch that exhausts the patience or the cooldown counts in Keras, but not in the schedule.
        self._options: dict[str, Any] = {
            "mode": self.mode,
            "factor": factor,
            "patience": max(check_int("patience", patience, 0) - 1, 0),
            "threshold": abs(check_float("min_delta", min_delta)),
            "threshold_mode": "abs",
            "cooldown": max(check_int("cooldown", cooldown, 0) - 1, 0),
            "min_lr": min_lr,
            "eps": 0.0,
        }
        ReduceOnPlateau(0.0, **self._options)  # raises if an option is invalid
        self.reset()

    def reset(self) -> None:
        """Discard the state of all parameter groups."""
        self.plateaus: list[ReduceOnPlateau] = []  # one per parameter group, all with the same reports

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each parameter group."""
        return {"plateaus": [plateau.state_dict() for plateau in self.plateaus]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""
        plateaus = []
        for saved in state["plateaus"]:
            plateaus.append(ReduceOnPlateau(0.0, **self._options))
            plateaus[-1].load_state_dict(saved)
        self.plateaus = plateaus

    def on_train_begin(self, logs: Logs) -> None:
        """Raise before training if the learning rate cannot be set."""
        groups = _groups_with_settable_lr(self)
        if not self.plateaus:
            self.plateaus = [ReduceOnPlateau(group["lr"], **self._options) for group in groups]

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Report the metric; reduce the learning rate if the patience is exhausted."""
        value = monitored_value(self, self.monitor, logs)
        for group, plateau in zip(_groups_with_settable_lr(self), self.plateaus, strict=True):
            before = plateau.current_lr = group["lr"]  # another callback may have set it
            plateau.report(value)
            if plateau.current_lr != before:
                group["lr"] = plateau.current_lr
                if self.verbose:
                    self.trainer.write(
                        f"Epoch {epoch + 1}: reduced the learning rate to {plateau.current_lr:.4g}"
                    )


class LearningRateScheduler(Callback):
    """Set the learning rate at the beginning of each epoch.

    Schedules are called at every step and are saved with the optimizer: see `fastopt.schedules`.

    Parameters
    ----------
    schedule : callable
        ``schedule(epoch, lr) -> lr``, with epochs numbered from 0. Called once per parameter group.
    verbose : int, default 0
        1 prints the learning rate.

    Raises
    ------
    ValueError
        In `Trainer.fit`, if the learning rate is already a schedule, or `schedule` returns an invalid
        value.

    Examples
    --------
    >>> halve = fastopt.callbacks.LearningRateScheduler(lambda epoch, lr: lr / 2 if epoch else lr)
    """

    def __init__(self, schedule: Callable[[int, float], float], verbose: int = 0) -> None:
        if not callable(schedule):
            raise TypeError(f"schedule: expected a function of the epoch and the rate, got {schedule!r}")
        self.schedule = schedule
        self.verbose = verbose

    def on_train_begin(self, logs: Logs) -> None:
        """Raise before training if the learning rate cannot be set."""
        _groups_with_settable_lr(self)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Set the learning rate."""
        for group in _groups_with_settable_lr(self):
            group["lr"] = check_number("lr", self.schedule(epoch, group["lr"]))
            if self.verbose:
                self.trainer.write(f"Epoch {epoch + 1}: set the learning rate to {group['lr']:.4g}")


def _groups_with_settable_lr(callback: Callback) -> Sequence[MutableMapping[str, Any]]:
    """Return the parameter groups of the optimizer, or raise if a learning rate is a schedule."""
    name, opt = type(callback).__name__, callback.trainer.opt
    groups: Sequence[MutableMapping[str, Any]] | None = getattr(opt, "groups", None)
    if not groups:
        raise TypeError(f"opt: {name} expected an object with 'groups', got {type(opt).__name__}")
    for i, group in enumerate(groups):
        if is_schedule(group["lr"]):
            raise ValueError(
                f"{name}: it sets the learning rate, but that of group {i} is a schedule, "
                f"{group['lr']!r}; give the optimizer a number as lr, or leave {name} out"
            )
    return groups
