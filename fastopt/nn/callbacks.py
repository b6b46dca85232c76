"""Hooks into :class:`fastopt.Trainer`, under the names and with the meanings that Keras gave them.

Callbacks run in the order in which the trainer has them. Each serves one trainer at a time: given to
another one, it begins anew; in further calls of `Trainer.fit` of the same one it goes on.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import numpy as np

from fastopt._core.validation import check_float, check_int
from fastopt.nn.snapshot import load_tree, put_weights, replacing, save_tree, take_weights
from fastopt.optimizers.groups import check_number, is_schedule
from fastopt.schedules import ReduceOnPlateau

if TYPE_CHECKING:
    from _typeshed import StrPath

    from fastopt._core.typing import AnyArray
    from fastopt.nn.trainer import Trainer
    from fastopt.nn.typing import Logs, Mode

__all__ = [
    "BackupAndRestore",
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "LambdaCallback",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "ReduceLROnPlateau",
    "SwapEMAWeights",
    "TerminateOnNaN",
]

# Which direction is better, by the name without "val_".
_MODES: dict[str, Literal["min", "max"]] = {"loss": "min", "accuracy": "max"}


class Callback:
    """Does nothing at each point of the training; override what you need.

    Epochs are counted from 0 over the whole life of the trainer, batches from 0 in each epoch.
    ``logs`` is a dict of numbers: see `fastopt.History` for those of an epoch; a batch has
    ``"loss"``, its own. Set ``self.trainer.stop_training = True`` to end the training after the
    batch; print with ``self.trainer.write(text)``, which spares the progress bar.

    Attributes
    ----------
    trainer : Trainer
        Set before `on_train_begin`; its `net`, `opt` and `history` are the way to everything else.
    """

    trainer: Trainer = None  # type: ignore[assignment]  # until it meets one, before any hook

    def on_train_begin(self, logs: Logs) -> None:
        """Run at the start of `Trainer.fit`; `logs` is empty."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Run before the first batch of an epoch; `logs` is empty."""

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None:
        """Run before each step of the optimizer; `logs` is empty."""

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Run after each step of the optimizer."""

    def on_test_begin(self, logs: Logs) -> None:
        """Run after an epoch's last batch, before the epoch is evaluated; `logs` is empty."""

    def on_test_end(self, logs: Logs) -> None:
        """Run when an epoch is evaluated; what is added to `logs` here goes into the history."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Run when an epoch is in the history."""

    def on_train_end(self, logs: Logs) -> None:
        """Run at the end of `Trainer.fit`, also after Ctrl-C; `logs` are the last epoch's."""

    def reset(self) -> None:
        """Forget all that was learned from a training: called when the callback meets a trainer."""

    def close(self) -> None:
        """Let go of what is held: called when `Trainer.fit` is left, be it by an error."""

    def state_dict(self) -> dict[str, Any]:
        """What the callback must remember to go on after a restart: arrays, numbers and strings."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class _Remembering(Callback):
    """A callback that has a state: the attributes that `start` names, with their first values."""

    def start(self) -> dict[str, Any]:
        """Return the state at the start of a training."""
        raise NotImplementedError

    def reset(self) -> None:
        """Begin anew."""
        self.__dict__.update(self.start())

    def state_dict(self) -> dict[str, Any]:
        """The state by the names of the attributes."""
        return {name: getattr(self, name) for name in self.start()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises
        ------
        ValueError
            If `state` has other names than `state_dict` gives.
        """
        if set(state) != set(self.start()):
            raise ValueError(
                f"state of {type(self).__name__}: expected the keys {sorted(self.start())}, "
                f"got {sorted(state)}"
            )
        self.__dict__.update(state)


class _Monitor(_Remembering):
    """What `EarlyStopping` and `ModelCheckpoint` share: a number, and what counts as better."""

    def __init__(self, monitor: str, mode: Mode, min_delta: float = 0.0) -> None:
        self.monitor = monitor
        self.mode = _direction(type(self).__name__, monitor, mode)
        self.min_delta: float = abs(check_float("min_delta", min_delta))

    @property
    def worst(self) -> float:
        """Than which every number is better."""
        return math.inf if self.mode == "min" else -math.inf

    def is_better(self, value: float, reference: float) -> bool:
        """Whether `value` is better than `reference` by more than `min_delta`; NaN never is."""
        if self.mode == "min":
            return value + self.min_delta < reference
        return value - self.min_delta > reference


class EarlyStopping(_Monitor):
    """Stops the training when a number has not got better for some epochs.

    Parameters
    ----------
    monitor : str, default "val_loss"
        A number of the history.
    min_delta : float, default 0
        What is better by no more than this does not count as better.
    patience : int, default 0
        Epochs in a row without improvement after which to stop.
    verbose : int, default 0
        1 says so when it stops and restores.
    mode : {"auto", "min", "max"}, default "auto"
        Whether smaller or larger is better; ``"auto"`` knows the loss and the accuracy by their names.
    baseline : float, optional
        Epochs count as without improvement until the number is better than this, too.
    restore_best_weights : bool, default False
        At the end of the fit, however it ended, give the net the weights of its best epoch, be it
        better than `baseline` or not. The optimizer's state stays as it is.
    start_from_epoch : int, default 0
        Epochs to let pass before the first that counts.

    Attributes
    ----------
    best : float
        The best number so far.
    best_epoch : int
        Its epoch.
    wait : int
        Epochs since there was an improvement.
    stopped_epoch : int or None
        The epoch after which it stopped the training. A further fit has the whole patience again.

    Examples
    --------
    >>> stop = fastopt.callbacks.EarlyStopping(patience=5, restore_best_weights=True)
    >>> fastopt.Trainer(net, opt, [stop]).fit(X, y, epochs=100, validation_data=(X_val, y_val))
    """

    best: float
    best_epoch: int
    best_weights: dict[str, AnyArray] | None
    wait: int
    stopped_epoch: int | None

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: Mode = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience: int = check_int("patience", patience, 0)
        self.verbose = verbose
        self.baseline: float | None = None if baseline is None else check_float("baseline", baseline)
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch: int = check_int("start_from_epoch", start_from_epoch, 0)
        self.reset()

    def start(self) -> dict[str, Any]:
        """Return the state at the start of a training."""
        return {
            "best": self.worst, "best_epoch": 0, "best_weights": None, "wait": 0, "stopped_epoch": None
        }

    def on_train_begin(self, logs: Logs) -> None:
        """Be patient again, if the last fit was stopped here."""
        if self.stopped_epoch is not None:
            self.wait, self.stopped_epoch = 0, None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Look whether the epoch was better; stop if there was none for long enough."""
        value = _watched(self, logs)
        if epoch < self.start_from_epoch:
            return
        better = self.is_better(value, self.best)
        if self.restore_best_weights and (better or self.best_weights is None):
            self.best_weights = take_weights(self.trainer.net)
            self.best_epoch = epoch
        self.wait += 1
        if better:
            self.best, self.best_epoch = value, epoch
            if self.baseline is None or self.is_better(value, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.trainer.stop_training = True
            if self.verbose:
                self.trainer.write(f"Epoch {epoch + 1}: early stopping")

    def on_train_end(self, logs: Logs) -> None:
        """Restore the best weights."""
        if self.best_weights is not None:
            put_weights(self.trainer.net, self.best_weights)
            if self.verbose:
                self.trainer.write(f"Restored the weights of the best epoch: {self.best_epoch + 1}")


class ModelCheckpoint(_Monitor):
    """Saves the net after each epoch, or each time it is better than ever.

    A file appears at once and as a whole: a crash leaves the one before it, never half of one.

    Parameters
    ----------
    filepath : str or path-like
        May have fields: ``{epoch}``, the number of the epoch from 1; the numbers of the history, as
        in ``"run/{epoch:02d}-{val_loss:.2f}.npz"``; ``{batch}``, from 1, if saved by the batch.
        Without fields, each file replaces the one before. Folders that are missing are made.
    monitor : str, default "val_loss"
    verbose : int, default 0
        1 says so when it saves.
    save_best_only : bool, default False
        Save only where `monitor` is better than at any time before.
    save_weights_only : bool, default False
        False saves with ``net.save(path)``: for an MLP, see `fastopt.MLP.save`. True saves the
        arrays of the net alone, of any net, to an ``.npz`` file: an MLP takes them back with
        ``net.load_state_dict(dict(numpy.load(path)))``.
    mode : {"auto", "min", "max"}, default "auto"
        Whether smaller or larger is better; ``"auto"`` knows the loss and the accuracy by their names.
    save_freq : "epoch" or int, default "epoch"
        Or after this many batches, when the loss of the batch is all there is to monitor.
    initial_value_threshold : float, optional
        With `save_best_only`: what the first file must be better than.

    Attributes
    ----------
    best : float
        The best number so far.

    Examples
    --------
    >>> save = fastopt.callbacks.ModelCheckpoint("best.npz", save_best_only=True)
    """

    best: float
    batches: int

    def __init__(
        self,
        filepath: StrPath,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: Mode = "auto",
        save_freq: Literal["epoch"] | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        # Without save_best_only nothing is compared, and any name will do.
        super().__init__(monitor, mode if save_best_only else "min")
        self.filepath: str = os.fspath(filepath)
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq: Literal["epoch"] | int = (
            save_freq if save_freq == "epoch" else check_int("save_freq", save_freq, 1)
        )
        if save_weights_only and not self.filepath.endswith(".npz"):
            raise ValueError(
                "filepath: expected a name that ends in .npz, as save_weights_only=True writes, "
                f"got {self.filepath!r}"
            )
        threshold = initial_value_threshold
        self.initial_value_threshold: float | None = (
            None if threshold is None else check_float("initial_value_threshold", threshold)
        )
        self.reset()

    def start(self) -> dict[str, Any]:
        """Return the state at the start of a training."""
        threshold = self.initial_value_threshold
        return {"best": self.worst if threshold is None else threshold, "batches": 0}

    def on_train_begin(self, logs: Logs) -> None:
        """Refuse a net that cannot be saved, before it is trained."""
        net = self.trainer.net
        if not (self.save_weights_only or hasattr(net, "save")):
            raise TypeError(
                f"ModelCheckpoint: net must have 'save', but a {type(net).__name__} has not; "
                "save_weights_only=True saves its arrays"
            )

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Remember the epoch for the names of files."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Save if it is time to."""
        if self.save_freq != "epoch":
            self.batches += 1
            if self.batches >= self.save_freq:
                self.batches = 0
                self._save_if_better(self._epoch, {"batch": batch + 1, **logs})

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Save if it is time to."""
        if self.save_freq == "epoch":
            self._save_if_better(epoch, logs)

    def _save_if_better(self, epoch: int, logs: Logs) -> None:
        why = ""
        if self.save_best_only:
            value = _watched(self, logs)
            if not self.is_better(value, self.best):
                return
            why = f"{self.monitor} improved from {self.best:.5f} to {value:.5f}, "
            self.best = value
        path = self._path({"epoch": epoch + 1, **logs})
        with replacing(path) as temporary:
            if self.save_weights_only:
                weights = take_weights(self.trainer.net)
                np.savez(temporary, **weights)  # type: ignore[arg-type]  # none is allow_pickle
            else:
                self.trainer.net.save(temporary)
        if self.verbose:
            self.trainer.write(f"Epoch {epoch + 1}: {why}saved {path}")

    def _path(self, fields: Mapping[str, float]) -> str:
        try:
            return self.filepath.format(**fields)
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"filepath: {self.filepath!r} has the field {error}, expected one of {', '.join(fields)}"
            ) from None


class ReduceLROnPlateau(Callback):
    """Lowers the learning rate when a number has not got better for some epochs.

    `fastopt.schedules.ReduceOnPlateau` does so as a schedule, with torch's meaning of the arguments,
    and is the mechanism of this callback as well. Use the callback to watch another number than the
    validation loss, or where Keras's meaning is wanted. All groups of the optimizer are lowered.

    Parameters
    ----------
    monitor : str, default "val_loss"
        A number of the history.
    factor : float, default 0.1
        What to multiply by, above 0 and below 1.
    patience : int, default 10
        Epochs in a row without improvement after which to lower. (A schedule lets one more pass.)
    verbose : int, default 0
        1 says so when it lowers.
    mode : {"auto", "min", "max"}, default "auto"
        Whether smaller or larger is better; ``"auto"`` knows the loss and the accuracy by their names.
    min_delta : float, default 1e-4
        What is better by no more than this does not count as better.
    cooldown : int, default 0
        Epochs to wait after a reduction before counting again.
    min_lr : float, default 0.0
        The learning rate is not lowered below this.

    Raises
    ------
    ValueError
        In `Trainer.fit`, if the learning rate is a schedule: it could not be set.
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
        self.mode = _direction(type(self).__name__, monitor, mode)
        self.verbose = verbose
        # The epoch that uses up the patience, or the cooldown, counts there, but not for a schedule.
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
        ReduceOnPlateau(0.0, **self._options)  # raises where an option is wrong
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.plateaus: list[ReduceOnPlateau] = []  # one for each group, all of which hear the same

    def state_dict(self) -> dict[str, Any]:
        """What has been seen, for each group."""
        return {"plateaus": [plateau.state_dict() for plateau in self.plateaus]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        plateaus = []
        for saved in state["plateaus"]:
            plateaus.append(ReduceOnPlateau(0.0, **self._options))
            plateaus[-1].load_state_dict(saved)
        self.plateaus = plateaus

    def on_train_begin(self, logs: Logs) -> None:
        """Refuse a learning rate that cannot be set."""
        groups = _groups_of_numbers(self)
        if not self.plateaus:
            self.plateaus = [ReduceOnPlateau(group["lr"], **self._options) for group in groups]

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Look whether the epoch was better; lower the rate if there was none for long enough."""
        value = _watched(self, logs)
        for group, plateau in zip(_groups_of_numbers(self), self.plateaus, strict=True):
            before = plateau.current_lr = group["lr"]  # somebody else may have set it
            plateau.report(value)
            if plateau.current_lr != before:
                group["lr"] = plateau.current_lr
                if self.verbose:
                    self.trainer.write(
                        f"Epoch {epoch + 1}: reduced the learning rate to {plateau.current_lr:.4g}"
                    )


class LearningRateScheduler(Callback):
    """Sets the learning rate at the beginning of each epoch.

    Schedules of the step are more exact, and are saved with the optimizer: `fastopt.schedules`.

    Parameters
    ----------
    schedule : callable
        ``schedule(epoch, lr) -> lr``, epochs from 0; asked for each group of the optimizer.
    verbose : int, default 0
        1 says what it sets.

    Raises
    ------
    ValueError
        In `Trainer.fit`, if the learning rate is a schedule already, or is set to what is none.

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
        """Refuse a learning rate that cannot be set."""
        _groups_of_numbers(self)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Set the learning rate."""
        for group in _groups_of_numbers(self):
            group["lr"] = check_number("lr", self.schedule(epoch, group["lr"]))
            if self.verbose:
                self.trainer.write(f"Epoch {epoch + 1}: set the learning rate to {group['lr']:.4g}")


class CSVLogger(_Remembering):
    """Writes the numbers of each epoch to a CSV file, as they come.

    The first column is ``epoch``, from 0. A number that comes later than the first epoch gets a column
    of its own; what an epoch has not is ``NA``.

    Parameters
    ----------
    filename : str or path-like
    separator : str, default ","
        One character.
    append : bool, default False
        Whether to go on where a file exists, or to begin anew. Further fits of the same trainer go on
        anyway.
    """

    begun: bool

    def __init__(self, filename: StrPath, separator: str = ",", append: bool = False) -> None:
        if not isinstance(separator, str) or len(separator) != 1:
            raise ValueError(f"separator: expected one character, got {separator!r}")
        self.filename: Path = Path(filename)
        self.separator = separator
        self.append = append
        self.reset()

    def start(self) -> dict[str, Any]:
        """Return the state at the start of a training."""
        return {"begun": bool(self.append)}

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self._resumed = False

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        super().load_state_dict(state)
        self._resumed = True

    def on_train_begin(self, logs: Logs) -> None:
        """Refuse a place where no file can be, or a file of another kind, before the training."""
        if not self.filename.parent.is_dir():
            raise FileNotFoundError(f"filename: there is no folder {self.filename.parent}")
        names = self._names()
        if names and names[0] != "epoch":
            raise ValueError(f"filename: {self.filename} has no column epoch first, but {names[0]!r}")

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write a row."""
        row = {"epoch": epoch, **logs}
        names = self._names()
        if self._resumed or not row.keys() <= set(names):
            names = list(dict.fromkeys([*names, *row]))
            self._write_anew(names, epoch if self._resumed else math.inf)
        with open(self.filename, "a", newline="", encoding="utf-8") as file:
            self._writer(file, names).writerow(row)
        self.begun, self._resumed = True, False

    def _names(self) -> list[str]:
        """Return the columns that the file has so far."""
        if not self.begun or not self.filename.exists():
            return []
        with open(self.filename, newline="", encoding="utf-8") as file:
            return next(csv.reader(file, delimiter=self.separator), [])

    def _write_anew(self, names: list[str], end: float) -> None:
        """Give the file these columns, and take off the last rows if they are of epoch `end` or later."""
        rows = []
        if self._names():
            with open(self.filename, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file, delimiter=self.separator))
        while rows and int(rows[-1]["epoch"]) >= end:
            rows.pop()
        with (
            replacing(self.filename) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = self._writer(file, names)
            writer.writeheader()
            writer.writerows(rows)

    def _writer(self, file: TextIO, names: list[str]) -> csv.DictWriter[str]:
        return csv.DictWriter(file, names, restval="NA", delimiter=self.separator, lineterminator="\n")


class TerminateOnNaN(Callback):
    """Stops the training after the first batch whose loss is NaN or infinite.

    Parameters
    ----------
    raise_error : bool, default False
        Raise a RuntimeError instead: `Trainer.fit` is left at once, with no `on_train_end`.
    """

    def __init__(self, raise_error: bool = False) -> None:
        self.raise_error = raise_error

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        """Look at the loss."""
        if math.isfinite(logs["loss"]):
            return
        if self.raise_error:
            epoch = len(self.trainer.history.epoch)
            raise RuntimeError(f"the loss of batch {batch} of epoch {epoch} is {logs['loss']}")
        self.trainer.stop_training = True


class SwapEMAWeights(Callback):
    """Gives the net the averages of its weights, for evaluation and in the end.

    The averages are those that the optimizer keeps (``fastopt.Adam(net.params, ema=0.999)``): Polyak
    averaging; or those that a schedule-free rule is about (``fastopt.AdamWScheduleFree``). While an
    epoch is evaluated the net has them in place of its weights. When the fit is over, it keeps them: a
    further fit goes on from there.

    Put it before callbacks that keep weights, and let it swap at the end of the epoch, too::

        [SwapEMAWeights(swap_on_epoch=True), ModelCheckpoint("best.npz", save_best_only=True)]

    and after those whose `on_test_end` evaluates the net.

    Parameters
    ----------
    swap_on_epoch : bool, default False
        Whether the callbacks that come after it find the averages in the net at the end of an epoch.

    Raises
    ------
    ValueError
        In `Trainer.fit`, if the optimizer keeps no averages; or if another callback would choose
        weights by what the averages have achieved, but keep the weights themselves.

    Notes
    -----
    Averages are of what the optimizer trains. The running statistics of batch normalization are
    not: they remain those of the weights.
    """

    def __init__(self, swap_on_epoch: bool = False) -> None:
        self.swap_on_epoch = swap_on_epoch
        self.swapped: bool = False

    def on_train_begin(self, logs: Logs) -> None:
        """Refuse an optimizer without averages, and callbacks that would take the wrong weights."""
        opt, callbacks = self.trainer.opt, self.trainer.callbacks
        if not (self._has_ema() or hasattr(opt, "averaged")):
            raise ValueError(
                "SwapEMAWeights: the optimizer keeps no averages, make it with ema=0.999 or the like"
            )
        for place, callback in enumerate(callbacks):
            if _chooses_weights(callback) and not (
                self.swap_on_epoch and place > callbacks.index(self)
            ):
                raise ValueError(
                    f"SwapEMAWeights: {type(callback).__name__} would watch the averages and keep the "
                    "weights; put it after SwapEMAWeights(swap_on_epoch=True)"
                )

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Put the weights back."""
        self.swap_out()

    def on_test_begin(self, logs: Logs) -> None:
        """Put the averages into the net."""
        self.swap_in()

    def on_test_end(self, logs: Logs) -> None:
        """Put the weights back."""
        self.swap_out()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Put the averages into the net, if they are asked for."""
        if self.swap_on_epoch:
            self.swap_in()

    def on_train_end(self, logs: Logs) -> None:
        """Leave the averages in the net."""
        self.swap_out()
        if self._has_ema():
            with self.trainer.opt.swapped_ema():
                averages = take_weights(self.trainer.net)
            put_weights(self.trainer.net, averages)
        else:
            self.trainer.opt.keep_average()

    def close(self) -> None:
        """Put the weights back, if an error has come in between."""
        self.swap_out()

    def _has_ema(self) -> bool:
        return getattr(self.trainer.opt, "ema", None) is not None

    def swap_in(self) -> None:
        """Put the averages into the net; nothing if they are there."""
        if not self.swapped:
            opt = self.trainer.opt
            self._swap = opt.swapped_ema() if self._has_ema() else opt.averaged()
            self._swap.__enter__()
            self.swapped = True

    def swap_out(self) -> None:
        """Put the weights back into the net; nothing if they are there."""
        if self.swapped:
            self._swap.__exit__(None, None, None)
            self.swapped = False


class LambdaCallback(Callback):
    """Runs functions.

    Parameters
    ----------
    on_epoch_begin, on_epoch_end : callable, optional
        Of ``(epoch, logs)``.
    on_train_begin, on_train_end : callable, optional
        Of ``(logs)``.
    on_train_batch_begin, on_train_batch_end : callable, optional
        Of ``(batch, logs)``.
    **hooks : callable
        Any other method of `Callback`, such as ``on_test_end``.

    Examples
    --------
    >>> def f1(logs):
    ...     logs["val_f1"] = f1_score(y_val, net.predict(X_val))
    >>> measure = fastopt.callbacks.LambdaCallback(on_test_end=f1)
    """

    def __init__(
        self,
        on_epoch_begin: Callable[[int, Logs], object] | None = None,
        on_epoch_end: Callable[[int, Logs], object] | None = None,
        on_train_begin: Callable[[Logs], object] | None = None,
        on_train_end: Callable[[Logs], object] | None = None,
        on_train_batch_begin: Callable[[int, Logs], object] | None = None,
        on_train_batch_end: Callable[[int, Logs], object] | None = None,
        **hooks: Callable[..., object] | None,
    ) -> None:
        hooks |= {
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
        }
        for name, function in hooks.items():
            if function is None:
                continue
            if name.startswith("_") or not callable(getattr(Callback, name, None)):
                raise TypeError(f"LambdaCallback: {name!r} is no method of Callback")
            if not callable(function):
                raise TypeError(f"{name}: expected a function, got {function!r}")
            setattr(self, name, function)


class BackupAndRestore(Callback):
    """Keeps a file from which a training that was cut off goes on, as if it had not been.

    After each epoch all that the training is goes into ``backup_dir/backup.npz``: the net, the
    optimizer's state, the history, the order of the rows and what the other callbacks remember. Run
    the same program again after a crash: if the trainer has trained nothing yet and there is a
    backup, `Trainer.fit` begins where that was written, and trains the epochs that were left, to the
    same bits.

    It must be the last of the callbacks, so that it saves what they have done.

    Parameters
    ----------
    backup_dir : str or path-like
        Of one training alone; made if it is missing.
    delete_checkpoint : bool, default True
        Whether to delete the file when the fit is over. It stays in any case if Ctrl-C or `max_time`
        has ended it, or an error.
    """

    def __init__(self, backup_dir: StrPath, *, delete_checkpoint: bool = True) -> None:
        self.path: Path = Path(backup_dir) / "backup.npz"
        self.delete_checkpoint = delete_checkpoint

    def on_train_begin(self, logs: Logs) -> None:
        """Go on from the backup, if there is one."""
        if self.trainer.callbacks[-1] is not self:
            raise ValueError("BackupAndRestore: it must be the last of the callbacks")
        if not self.trainer.history.epoch and self.path.exists():
            self.trainer.load_state_dict(load_tree(self.path))

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Save the training."""
        swaps = [c for c in self.trainer.callbacks if isinstance(c, SwapEMAWeights) and c.swapped]
        for swap in swaps:
            swap.swap_out()
        save_tree(self.path, self.trainer.state_dict())
        for swap in swaps:
            swap.swap_in()

    def on_train_end(self, logs: Logs) -> None:
        """Delete the backup of a training that is over."""
        if self.delete_checkpoint and self.trainer.history.stopped_by not in ("interrupt", "max_time"):
            self.path.unlink(missing_ok=True)


# --- What they share ----------------------------------------------------------------------------


def _direction(who: str, monitor: str, mode: Mode) -> Literal["min", "max"]:
    """Return "min" or "max"."""
    if mode not in ("auto", "min", "max"):
        raise ValueError(f"mode: expected auto, min or max, got {mode!r}")
    if mode != "auto":
        return mode
    if not isinstance(monitor, str) or monitor.removeprefix("val_") not in _MODES:
        raise ValueError(
            f"mode: {who} cannot tell by its name whether {monitor!r} is to be small or large, "
            "say mode='min' or mode='max'"
        )
    return _MODES[monitor.removeprefix("val_")]


def _watched(callback: _Monitor | ReduceLROnPlateau, logs: Logs) -> float:
    """Return the number that a callback monitors."""
    try:
        return logs[callback.monitor]
    except KeyError:
        who, monitor = type(callback).__name__, callback.monitor
        missing = monitor.startswith("val_") and not any(name.startswith("val_") for name in logs)
        hint = "; Trainer.fit needs validation_data for it" if missing else ""
        raise ValueError(
            f"monitor: {who} finds no {monitor!r}, expected one of {', '.join(sorted(logs))}{hint}"
        ) from None


def _groups_of_numbers(callback: Callback) -> Sequence[MutableMapping[str, Any]]:
    """Return the optimizer's groups, once it is known that their learning rates can be set."""
    who, opt = type(callback).__name__, callback.trainer.opt
    groups: Sequence[MutableMapping[str, Any]] | None = getattr(opt, "groups", None)
    if not groups:
        raise TypeError(f"{who}: opt must have 'groups', but a {type(opt).__name__} has not")
    for i, group in enumerate(groups):
        if is_schedule(group["lr"]):
            raise ValueError(
                f"{who}: it sets the learning rate, but that of group {i} is a schedule, "
                f"{group['lr']!r}; give the optimizer a number as lr, or leave {who} out"
            )
    return groups


def _chooses_weights(callback: Callback) -> bool:
    """Whether a callback keeps the weights of the moment at which a number was best."""
    return (isinstance(callback, EarlyStopping) and callback.restore_best_weights) or (
        isinstance(callback, ModelCheckpoint) and callback.save_best_only
    )
