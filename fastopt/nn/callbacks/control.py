"""Callbacks that change the course of training."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.validation import check_float, check_int
from fastopt.nn.callbacks.base import Callback, MonitorCallback
from fastopt.nn.files import get_weights, set_weights
from fastopt.optimizers.hyperparameters import check_number, is_schedule
from fastopt.schedules import ReduceOnPlateau

if TYPE_CHECKING:
    from fastopt._core.typing import AnyArray
    from fastopt.nn.typing import Logs, Mode


class EarlyStopping(MonitorCallback):
    """Stop training when a metric has not improved for a number of epochs.

    Parameters
    ----------
    monitor : str, default "val_loss"
        Metric of the history to monitor.
    min_delta : float, default 0
        Smallest change that counts as an improvement.
    patience : int, default 0
        Number of consecutive epochs without improvement after which training stops.
    verbose : int, default 0
        1 prints a message on stopping and on restoring weights.
    mode : {"auto", "min", "max"}, default "auto"
        Whether a smaller or a larger value is better. ``"auto"`` infers it for the loss and the accuracy.
    baseline : float, optional
        An epoch counts as an improvement only if the metric is also better than this value.
    restore_best_weights : bool, default False
        When `Trainer.fit` ends, for whatever reason, restore the weights of the best epoch, whether or not it
        was better than `baseline`. The state of the optimizer is not restored.
    start_from_epoch : int, default 0
        Number of epochs before monitoring starts.

    Attributes
    ----------
    best : float
        Best value so far.
    best_epoch : int
        Epoch of the best value.
    wait : int
        Epochs since the last improvement.
    stopped_epoch : int or None
        Epoch after which the callback stopped training. A further fit starts with the full patience.

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
        self, monitor: str = "val_loss", min_delta: float = 0, patience: int = 0, verbose: int = 0,
        mode: Mode = "auto", baseline: float | None = None, restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience: int = check_int("patience", patience, 0)
        self.verbose = verbose
        self.baseline: float | None = None if baseline is None else check_float("baseline", baseline)
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch: int = check_int("start_from_epoch", start_from_epoch, 0)
        self.reset()

    def initial_state(self) -> dict[str, Any]:
        return {"best": self.worst, "best_epoch": 0, "best_weights": None, "wait": 0, "stopped_epoch": None}

    def on_train_begin(self, logs: Logs) -> None:
        """Reset the patience if the callback stopped the previous fit.

        If the model has other parameters than in the previous fit, the best epoch of that fit cannot be
        restored, and monitoring starts again.
        """
        if self.best_weights is not None:
            weights = get_weights(self.trainer.net)
            if _shapes(weights) != _shapes(self.best_weights):
                self.reset()
        if self.stopped_epoch is not None:
            self.wait, self.stopped_epoch = 0, None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        value = self.monitored_value(logs)
        if epoch < self.start_from_epoch:
            return
        is_better = self.is_better(value, self.best)
        changes: dict[str, Any] = {"wait": self.wait + 1}
        if self.restore_best_weights and (is_better or self.best_weights is None):
            changes |= {"best_weights": get_weights(self.trainer.net), "best_epoch": epoch}
        if is_better:
            changes |= {"best": value, "best_epoch": epoch}
            if self.baseline is None or self.is_better(value, self.baseline):
                changes["wait"] = 0
        self.__dict__.update(changes)  # all at once: an interrupt cannot leave the weights of another epoch
        if is_better:
            return
        if self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.trainer.stop_training = True
            if self.verbose:
                self.trainer.write(f"Epoch {epoch + 1}: early stopping")

    def on_train_end(self, logs: Logs) -> None:
        if self.best_weights is not None:
            set_weights(self.trainer.net, self.best_weights)
            if hasattr(self.trainer.opt, "sync_params"):
                self.trainer.opt.sync_params()
            if self.verbose:
                self.trainer.write(f"Restored the weights of the best epoch: {self.best_epoch + 1}")


class TerminateOnNaN(Callback):
    """Stop training after the first batch whose loss is NaN or infinite.

    Parameters
    ----------
    raise_error : bool, default False
        Raise a RuntimeError instead. `Trainer.fit` then ends without `on_train_end`.
    """

    def __init__(self, raise_error: bool = False) -> None:
        self.raise_error = raise_error

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        if math.isfinite(logs["loss"]):
            return
        if self.raise_error:
            epoch = len(self.trainer.history.epoch)
            raise RuntimeError(f"the loss of batch {batch} of epoch {epoch} is {logs['loss']}")
        self.trainer.stop_training = True


class ReduceLROnPlateau(MonitorCallback):
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
        Number of epochs after a reduction that do not count towards the patience.
    min_lr : float, default 0.0
        Lower bound of the learning rate.

    Raises
    ------
    ValueError
        In `Trainer.fit`, if the learning rate is a schedule, which cannot be set.
    """

    def __init__(
        self, monitor: str = "val_loss", factor: float = 0.1, patience: int = 10, verbose: int = 0,
        mode: Mode = "auto", min_delta: float = 1e-4, cooldown: int = 0, min_lr: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.verbose = verbose
        self.min_lr: float = check_float("min_lr", min_lr, 0.0)
        # The epoch that exhausts the patience or the cooldown counts in Keras, but not in the schedule.
        self._schedule = ReduceOnPlateau(
            1.0, mode=self.mode, factor=factor, patience=max(check_int("patience", patience, 0) - 1, 0),
            threshold=self.min_delta, threshold_mode="abs",
            cooldown=max(check_int("cooldown", cooldown, 0) - 1, 0), eps=0.0,
        )
        self.reset()

    def reset(self) -> None:
        self._plateau = replace(self._schedule)

    def state_dict(self) -> dict[str, Any]:
        return self._plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._plateau.load_state_dict(state)

    def on_train_begin(self, logs: Logs) -> None:
        _groups_with_settable_lr(self)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Reduce the current learning rates of all groups if the metric has not improved for long enough."""
        value = self.monitored_value(logs)
        groups = _groups_with_settable_lr(self)
        self._plateau.current_lr = 1.0
        self._plateau.report(value)
        if self._plateau.current_lr == 1.0:
            return
        for group in groups:
            reduced = max(group["lr"] * self._plateau.factor, self.min_lr)
            if reduced < group["lr"]:
                group["lr"] = reduced
                if self.verbose:
                    self.trainer.write(f"Epoch {epoch + 1}: reduced the learning rate to {group['lr']:.4g}")


class LearningRateScheduler(Callback):
    """Set the learning rate at the beginning of each epoch.

    The schedules of `fastopt.schedules` need no callback: the optimizer calls them at every step, and their
    state is saved with it.

    Parameters
    ----------
    schedule : callable
        ``schedule(epoch) -> lr`` or ``schedule(epoch, lr) -> lr``, with epochs numbered from 0 and the
        current learning rate. Called once per parameter group.
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

    def __init__(
        self, schedule: Callable[[int], float] | Callable[[int, float], float], verbose: int = 0
    ) -> None:
        self._n_arguments = _count_arguments(schedule)
        self.schedule: Callable[..., float] = schedule
        self.verbose = verbose

    def on_train_begin(self, logs: Logs) -> None:
        _groups_with_settable_lr(self)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        groups = _groups_with_settable_lr(self)
        rates = [
            check_number("lr", self.schedule(*(epoch, group["lr"])[: self._n_arguments])) for group in groups
        ]
        for group, lr in zip(groups, rates, strict=True):
            group["lr"] = lr
            if self.verbose:
                self.trainer.write(f"Epoch {epoch + 1}: set the learning rate to {group['lr']:.4g}")


def _count_arguments(schedule: Callable[..., float]) -> int:
    """Return 2 if `schedule` takes the epoch and the learning rate, 1 if it takes the epoch only."""
    if callable(schedule):
        try:
            signature = inspect.signature(schedule)
        except ValueError:  # compiled functions may have no signature
            return 2
        for n in (2, 1):
            with contextlib.suppress(TypeError):
                signature.bind(*range(n))
                return n
    raise TypeError(
        f"schedule: expected a function of the epoch, or of the epoch and the learning rate, got {schedule!r}"
    )


def _shapes(weights: dict[str, AnyArray]) -> dict[str, tuple[int, ...]]:
    return {name: np.shape(array) for name, array in weights.items()}


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


class SwapEMAWeights(Callback):
    """Use the averaged weights for evaluation and at the end of training.

    The averages are those kept by the optimizer: an exponential moving average of the parameters
    (``fastopt.Adam(net.params, ema=0.999)``), or the evaluation weights of a schedule-free optimizer
    (``fastopt.AdamWScheduleFree``). The model holds them while an epoch is evaluated, and keeps them at
    the end of the fit; a further fit continues from there.

    Place it before callbacks that store weights, and let it swap at the end of the epoch, too::

        [SwapEMAWeights(swap_on_epoch=True), ModelCheckpoint("best.npz", save_best_only=True)]

    Place it after callbacks whose `on_test_end` evaluates the model.

    Parameters
    ----------
    swap_on_epoch : bool, default False
        Whether the model holds the averages when the following callbacks run `on_epoch_end`.

    Raises
    ------
    ValueError
        In `Trainer.fit`, if the optimizer keeps no averages; or if another callback would select the
        best epoch by the metrics of the averages but store the weights themselves.

    Notes
    -----
    Only the parameters that the optimizer updates are averaged. The running statistics of batch normalization
    remain those of the weights. The training accuracy of an MLP is also that of the weights, because it is
    counted in the training steps.
    """

    def __init__(self, swap_on_epoch: bool = False) -> None:
        self.swap_on_epoch = swap_on_epoch
        self._swap: AbstractContextManager[None] | None = None

    @property
    def swapped(self) -> bool:
        """Whether the model holds the averages."""
        return self._swap is not None

    def on_train_begin(self, logs: Logs) -> None:
        opt, callbacks = self.trainer.opt, self.trainer.callbacks
        if not (self._has_ema() or hasattr(opt, "averaged")):
            raise ValueError(
                "SwapEMAWeights: the optimizer keeps no averages; create it with ema=0.999, for example"
            )
        for i, callback in enumerate(callbacks):
            keeps_best = any(getattr(callback, n, False) for n in ("save_best_only", "restore_best_weights"))
            if keeps_best and not (self.swap_on_epoch and i > callbacks.index(self)):
                raise ValueError(
                    f"SwapEMAWeights: {type(callback).__name__} would monitor the averages and store the "
                    "weights; place it after SwapEMAWeights(swap_on_epoch=True)"
                )

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        self.swap_out()

    def on_test_begin(self, logs: Logs) -> None:
        self.swap_in()

    def on_test_end(self, logs: Logs) -> None:
        self.swap_out()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.swap_on_epoch:
            self.swap_in()

    def on_train_end(self, logs: Logs) -> None:
        self.swap_out()
        if self._has_ema():
            with self.trainer.opt.swapped_ema():
                averages = get_weights(self.trainer.net)
            set_weights(self.trainer.net, averages)
        else:
            self.trainer.opt.keep_average()

    def close(self) -> None:
        self.swap_out()

    def _has_ema(self) -> bool:
        return getattr(self.trainer.opt, "ema", None) is not None

    def swap_in(self) -> None:
        """Copy the averages into the model, unless it already holds them."""
        if not self.swapped:
            opt = self.trainer.opt
            self._swap = opt.swapped_ema() if self._has_ema() else opt.averaged()
            self._swap.__enter__()

    def swap_out(self) -> None:
        """Restore the weights, unless the model already holds them."""
        if self._swap is not None:
            self._swap.__exit__(None, None, None)  # does nothing if an interrupt came before it was entered
            self._swap = None


class LambdaCallback(Callback):
    """Call a function at each of the given hooks.

    Parameters
    ----------
    on_epoch_begin, on_epoch_end : callable, optional
        Function of ``(epoch, logs)``.
    on_train_begin, on_train_end : callable, optional
        Function of ``(logs)``.
    on_train_batch_begin, on_train_batch_end : callable, optional
        Function of ``(batch, logs)``.
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
            "on_epoch_begin": on_epoch_begin, "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin, "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin, "on_train_batch_end": on_train_batch_end,
        }
        for name, function in hooks.items():
            if function is None:
                continue
            if name.startswith("_") or not callable(getattr(Callback, name, None)):
                raise TypeError(f"LambdaCallback: {name!r} is not a method of Callback")
            if not callable(function):
                raise TypeError(f"{name}: expected a function, got {function!r}")
            setattr(self, name, function)
