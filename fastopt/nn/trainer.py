"""The training loop."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastopt._core.validation import check_float, check_int, check_X_y
from fastopt.nn.batches import Batches, accumulates, is_distributed, make_batches
from fastopt.nn.callbacks.base import Callback
from fastopt.nn.epoch import PartialEpoch
from fastopt.nn.evaluation import (
    check_accepts_weights,
    check_validation_data,
    combined_weights,
    split_validation,
    subset,
)
from fastopt.nn.gradients import leaves
from fastopt.nn.history import History, Progress, format_logs, format_stop, print_line
from fastopt.nn.ranks import ranks_of
from fastopt.nn.saving import Saving
from fastopt.nn.signals import DeferredSignals, Interruption
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.hyperparameters import check_number
from fastopt.schedules.base import report_to_optimizer

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastopt.nn.evaluation import EvaluationData
    from fastopt.nn.typing import ClassWeight, Logs, Net, Samples, Stepper, Validation

T = TypeVar("T")


class Trainer(Saving):
    """Train a model with an optimizer on minibatches.

    Parameters
    ----------
    net : object
        `fastopt.MLP`, or any object with ``params``, a list of layers, each an array or a list of arrays
        (it may be empty), or any other nesting of arrays; ``train_step(X, y) -> (loss, grads)``; and
        ``predict(X)``. Gradients have the order of ``params`` or start with the last layer. If their shapes
        match both orders, the attribute ``net.grads_reversed`` must select one; True means that the last
        layer comes first. A gradient may have a dtype different from that of its parameter, or a shape that
        can be broadcast, if NumPy can subtract it in place. If the model has ``evaluate(X, y) -> float``, it
        computes the validation loss. With sample weights, both are called with a third argument, the weights,
        and return the weighted mean loss.
    opt : object
        A fastopt optimizer of ``net.params``, or any object with ``step(grads)``. With a
        `fastopt.mpi.DistributedOptimizer`, the ranks share the work, see the notes of `fit`.
    callbacks : iterable of Callback, default ()
        Callbacks, run in this order at every hook; see `fastopt.callbacks`.
    max_norm, clip_value : float, optional
        Gradient clipping, passed to ``opt.step``.

    Attributes
    ----------
    net, opt, callbacks
        As passed to the constructor.
    history : History
        Metrics of all calls of `fit`.
    stop_training : bool
        A callback sets it to stop training after the current batch.

    Examples
    --------
    >>> net = fastopt.MLP([64, 32, 10], seed=0)
    >>> trainer = fastopt.Trainer(net, fastopt.Adam(net.params))
    >>> history = trainer.fit(X, y, epochs=10, validation_data=(X_test, y_test), seed=0)
    >>> history.history["val_accuracy"][-1]
    """

    def __init__(
        self, net: Net, opt: Stepper, callbacks: Iterable[Callback] = (), *, max_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        for name in ("params", "train_step", "predict"):
            if not hasattr(net, name):
                raise TypeError(f"net: expected an object with {name!r}, got {type(net).__name__}")
        if not hasattr(opt, "step"):
            raise TypeError(f"opt: expected an object with 'step', got {type(opt).__name__}")
        _check_same_arrays(net, opt.opt if is_distributed(opt) else opt)    # type: ignore[attr-defined]
        # Callbacks may use attributes beyond the protocols.
        self.net: Any = net
        self.opt: Any = opt
        self.callbacks: list[Callback] = list(callbacks)
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks: expected Callback objects, got {callback!r}")
        clipping = {"max_norm": max_norm, "clip_value": clip_value}
        self._step_options = {
            name: check_number(name, value) for name, value in clipping.items() if value is not None
        }
        self.history: History = History()
        self.stop_training: bool = False
        self._rng: np.random.Generator | None = None
        self._seed: int | np.random.Generator | None = None
        self._progress = Progress()
        self._running = self._resumed = None
        self._ranks = ranks_of(opt)

    def fit(
        self, X: Samples, y: ArrayLike, batch_size: int = 32, epochs: int = 1,
        validation_data: Validation | None = None, verbose: int = 1, shuffle: bool = True,
        seed: int | np.random.Generator | None = None, *, sample_weight: ArrayLike | None = None,
        class_weight: ClassWeight | None = None, max_time: float | None = None,
        training_accuracy: bool = True, validation_split: float = 0.0,
    ) -> History:
        """Train for a number of epochs. Further calls continue where the previous one stopped.

        The state of the optimizer, the epoch numbers and the random order of the samples continue: two
        calls with one epoch each equal one call with two epochs.

        Parameters
        ----------
        X : array_like or scipy.sparse matrix, shape (n, ...)
            Training samples.
        y : array_like, shape (n, ...)
            Targets.
        batch_size : int, default 32
            Samples per batch. The last batch of an epoch may be smaller.
        epochs : int, default 1
            Number of further epochs.
        validation_data : (X, y) or (X, y, sample_weight), optional
            Data evaluated after each epoch.
        verbose : int, default 1
            0 prints nothing; otherwise each epoch prints a line to standard output. 1 also shows a
            progress bar if standard output is a terminal and tqdm is installed
            (``pip install 'fastopt[progress]'``).
        shuffle : bool, default True
            False uses the samples in their original order, without copying them.
        seed : int, optional
            Seed of the shuffling. Passing the same seed again continues the random sequence; a different
            one restarts it.
        sample_weight : array_like, shape (n,), optional
            Weights of the samples, at least 0. A batch whose weights are all zero is skipped.
        class_weight : dict or "balanced", optional
            Weight of each label; labels that are not in the dict have weight 1. ``"balanced"`` uses
            ``n / (n_classes * n_samples_of_the_class)``, as in scikit-learn. Multiplied by
            `sample_weight` if both are given.
        max_time : float, optional
            Seconds after which no further batch is started. The epoch that is cut short is evaluated
            and recorded like any other.
        training_accuracy : bool, default True
            Whether to record the accuracy of the training data, see `History`.
        validation_split : float, default 0
            Fraction of the samples to use as validation data if `validation_data` is not given: the last
            ones, as in Keras, so shuffle data that is sorted, or use
            `fastopt.nn.data.train_test_split`. Each call of `fit` needs the same data and fraction.

        Returns
        -------
        History
            The trainer's `history`, with all epochs so far. ``history.stopped_by`` is the reason if
            training ended early. Ctrl-C also ends it, after the current batch, and keeps the weights
            trained so far; the interrupted epoch is not recorded.

        Notes
        -----
        Ctrl-C (SIGINT) and SIGTERM end the fit after the current batch, or within an evaluation; callbacks
        can save the state in `Callback.on_interrupt`. After SIGTERM the previous handler of this signal
        runs, which by default ends the process. A second signal takes effect at once. Handlers are replaced
        only if `fit` is called in the main thread, and restored at its end.

        If a hyperparameter of the optimizer is a schedule with a method ``report(value)``, the method is
        called after each epoch with the validation loss, or with the training loss if there is none.

        With an optimizer that accumulates gradients (``accumulate=n``), each batch is a micro-batch whose
        weight is the number of its samples, or the sum of their weights, so a step uses the mean over all
        samples. The micro-batches that are left at the end of an epoch make a step with a smaller batch.

        With a `fastopt.mpi.DistributedOptimizer`, all ranks call `fit` with the same arguments; the weights,
        the order of the samples and the times are those of rank 0. `batch_size` is the number of samples of
        all ranks together. Each batch is split into the micro-shards of the optimizer, and each rank computes
        the gradients of its own micro-shards. Dropout masks depend on the micro-shard and the sample's
        position in it, and batch normalization uses the mean and variance of a micro-shard; its running
        averages are averaged over the micro-shards of a batch. The results therefore have the same bits for
        any number of ranks, except ``history["seconds"]``, if the gradients of the model do not depend on the
        number of threads, which holds for `fastopt.MLP`. Callbacks run on all ranks with the same logs and
        must make the same decisions; those of fastopt write files on rank 0 only, as `write` does. All ranks
        evaluate an MLP; rank 0 evaluates any other model.
        """
        if validation_split:
            if validation_data is not None:
                raise ValueError("validation_split: expected either this or validation_data, got both")
            X, y, sample_weight, validation_data = split_validation(X, y, sample_weight, validation_split)
        X, y = check_X_y("X", X, "y", y)
        batch_size = check_int("batch_size", batch_size, 1)
        epochs = check_int("epochs", epochs, 0)
        weights = combined_weights(y, sample_weight, class_weight)
        validation = check_validation_data(validation_data, X)
        check_accepts_weights(self.net, weights, validation)
        ranks = self._ranks
        ranks.synchronize(self.net, len(y), batch_size, epochs)
        deadline = math.inf
        if max_time is not None:
            deadline = ranks.clock() + check_float("max_time", max_time, 0.0, open_low=True)
        if self._rng is None or (seed is not None and seed != self._seed):
            drawn = ranks.from_main(lambda: np.random.SeedSequence().entropy) if seed is None else seed
            self._rng, self._seed = np.random.default_rng(drawn), seed

        columns = (X, y) if weights is None else (X, y, weights)
        batches = make_batches(self.net, columns, batch_size, self._rng if shuffle else None)
        evaluated: dict[str, EvaluationData] = {}
        if training_accuracy:
            counted = combined_weights(y, sample_weight)
            if not batches.count_correct(counted):
                evaluated[""] = subset(X, y, counted)
        if validation is not None:
            evaluated["val_"] = validation

        history = self.history
        history.stopped_by, self.stop_training = None, False
        signals = ranks.signals = DeferredSignals(is_shared=is_distributed(self.opt))
        last = len(history.epoch) + epochs
        with contextlib.ExitStack() as stack:
            stack.callback(signals.close)
            stack.callback(setattr, self, "_running", None)
            stack.callback(setattr, ranks, "signals", None)
            for callback in self.callbacks:
                self._adopt(callback)
                stack.callback(callback.close)
            signals.install()
            try:
                self._call("on_train_begin", {})
                done = 0 if self._resumed is None else self._resumed["batch"]
                n_batches = (last - len(history.epoch)) * len(batches) - done
                self._progress = Progress(last, n_batches, verbose == 1 and self.is_main)
                stack.callback(self._progress.close)
                while len(history.epoch) < last and (self._resumed is not None or not history.stopped_by):
                    self._run_epoch(len(history.epoch), batches, evaluated, deadline, verbose, signals)
                    signals.check()
                    if len(history.epoch) < last and self.clock() >= deadline:
                        self._record_stop("max_time")
            except Interruption:
                self._call("on_interrupt", {})
                history.stopped_by = "interrupt" if signals.received == signal.SIGINT else "SIGTERM"
            except KeyboardInterrupt:
                if signals.received is not None:
                    raise  # the second signal
                history.stopped_by = "interrupt"
            self._running = None
            self._progress.close()
            self._call("on_train_end", history.last())
            if verbose and history.stopped_by:
                self.write(format_stop(history))
        return history

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files: False on ranks other than 0."""
        return self._ranks.is_main

    def clock(self) -> float:
        """Return the time in seconds; on all ranks, it is that of rank 0 after the last step."""
        return self._ranks.clock()

    def from_main(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 only, and return its result on all ranks."""
        return self._ranks.from_main(function)

    def _adopt(self, callback: Callback) -> None:
        """Reset a callback that another trainer has used."""
        before = callback.trainer
        if before is not self:
            callback.trainer = self
            try:
                callback.reset()
            except BaseException:
                callback.trainer = before
                raise

    def write(self, text: str) -> None:
        """Print a line of text, above the progress bar if there is one; only on rank 0."""
        if self.is_main:
            with self._progress.paused():
                print_line(text)

    def _run_epoch(
        self, epoch: int, batches: Batches, evaluated: Mapping[str, EvaluationData], deadline: float,
        verbose: int, signals: DeferredSignals,
    ) -> None:
        """Train, evaluate and record an epoch, and run its hooks; or those parts that are not done yet."""
        if self._resumed is None:
            self._running = PartialEpoch.begin(batches), batches
            self._call("on_epoch_begin", epoch, {})
        else:
            self._running = PartialEpoch.resume(self._resumed, batches), batches
            self._resumed = None
        partial, _ = self._running
        partial.shuffle(batches)
        logs = self._train_epoch(epoch, partial, batches, deadline, signals)
        self._call("on_test_begin", {})
        logs |= self._ranks.evaluate(self.net, evaluated)
        self._call("on_test_end", logs)
        self.history.record(epoch, logs)
        self._running = None
        if verbose:
            self.write(f"Epoch {epoch + 1}\n{format_logs(logs)}")
        report_to_optimizer(self.opt, logs.get("val_loss", logs["loss"]))
        self._call("on_epoch_end", epoch, logs)

    def _train_epoch(
        self, epoch: int, partial: PartialEpoch, batches: Batches, deadline: float, signals: DeferredSignals
    ) -> Logs:
        """Take a step on each batch; return the epoch's loss, learning rate, seconds and metrics."""
        opt, options = self.opt, self._step_options
        before = _overriding(self.callbacks, "on_train_batch_begin")
        after = _overriding(self.callbacks, "on_train_batch_end")
        is_accumulated = accumulates(opt)
        step, clock = self._ranks.make_step(batches, self.net, opt), self._ranks.clock

        def metrics() -> str:
            lr = "".join(f", lr={lr:.3g}" for lr in _learning_rate(opt).values())
            return f"loss={partial.loss / partial.weight:.4f}{lr}" if partial.weight else ""

        # A run that a callback has stopped in this epoch takes no further step when it is resumed.
        is_over = partial.batch and self.history.stopped_by is not None
        ranges = batches.ranges(len(batches) if is_over else partial.batch)
        start = clock() - partial.seconds
        for i, (begin, end) in enumerate(self._progress.track(ranges, epoch, metrics), partial.batch):
            weight = batches.weight(begin, end)
            if not weight:
                continue
            if before:
                self._call("on_train_batch_begin", i, {}, callbacks=before)
            loss = step(begin, end, {**options, "weight": weight} if is_accumulated else options)
            now = clock()
            partial.add(i, loss, weight, now - start)
            if after:
                self._call("on_train_batch_end", i, {"loss": loss}, callbacks=after)
                now = clock()
            if self.stop_training:
                self._record_stop("stop_training")
                break
            signals.check()
            if now >= deadline and i + 1 < len(batches):
                self._record_stop("max_time")
                break
        if is_accumulated:
            opt.flush(**options)
        partial.seconds = clock() - start
        partial.batch = len(batches)
        logs = {"loss": partial.loss / partial.weight, **_learning_rate(opt), "seconds": partial.seconds}
        return logs | batches.metrics()

    def _call(self, hook: str, *args: Any, callbacks: list[Callback] | None = None) -> None:
        for callback in self.callbacks if callbacks is None else callbacks:
            getattr(callback, hook)(*args)
            if self.stop_training:
                self._record_stop(type(callback).__name__)

    def _record_stop(self, reason: str) -> None:
        """Record why training stops, unless another reason came first."""
        if self.history.stopped_by is None:
            self.history.stopped_by = reason


def _check_same_arrays(net: Net, opt: Any) -> None:
    """Raise if a fastopt optimizer updates an array that is not one of the model's."""
    if not isinstance(opt, Optimizer):
        return
    own = [array for array in leaves(net.params) if isinstance(array, np.ndarray)]
    known = {*map(id, own)}
    for group in opt.groups:
        for array in leaves(group["params"]):
            if id(array) not in known and not any(np.may_share_memory(array, other) for other in own):
                raise ValueError(
                    "opt: expected an optimizer of net.params, got one that updates an array of shape "
                    f"{array.shape} of another model; create it from the parameters of this one, for example "
                    "fastopt.Adam(net.params)"
                )


def _overriding(callbacks: list[Callback], hook: str) -> list[Callback]:
    """Return the callbacks that override a hook, so that the others cost nothing per batch."""
    default = getattr(Callback, hook)
    return [c for c in callbacks if getattr(getattr(c, hook), "__func__", None) is not default]


def _learning_rate(opt: Any) -> Logs:
    """Return ``{"lr": value}`` of the last step, or an empty dict if the optimizer has no groups."""
    groups = getattr(opt, "groups", None)
    if not groups or "lr" not in groups[0]:
        return {}
    lr = groups[0]["lr"]
    value: Any = lr(max(opt.steps - 1, 0)) if callable(lr) else lr
    return {"lr": float(value)}
