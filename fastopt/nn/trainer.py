"""The loop around a net and an optimizer."""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.validation import check_float, check_int, check_X_y
from fastopt.nn.batches import Batches, make_batches
from fastopt.nn.callbacks import Callback
from fastopt.nn.metrics import accuracy
from fastopt.nn.progress import Progress
from fastopt.nn.snapshot import put_weights, take_weights
from fastopt.nn.weighting import check_weights, row_weights
from fastopt.optimizers.groups import check_number

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastopt._core.typing import AnyArray
    from fastopt.nn.typing import ClassWeight, Logs, Net, Samples, Stepper, Validation

    _Evaluated = tuple[AnyArray, AnyArray, AnyArray | None]

__all__ = ["History", "Trainer"]


class History:
    """What each epoch of a training gave.

    Attributes
    ----------
    epoch : list of int
        Numbers of the finished epochs, from 0.
    history : dict of list of float
        One entry an epoch, NaN where an epoch had no such number:

        ``"loss"``: mean training loss, taken while the net was learning;
        ``"val_loss"``: loss of the validation data, if the net has `evaluate`;
        ``"accuracy"``, ``"val_accuracy"``: share of rows predicted right after the epoch, where
        predictions are labels; rows that have weights count by them, but class weights do not;
        ``"lr"``: learning rate of the epoch's last step, of the optimizer's first group;
        ``"seconds"``: wall-clock time of the epoch's training steps, evaluation not counted;
        and what callbacks have added, see `Callback.on_test_end`.
    stopped_by : str or None
        What ended the last `Trainer.fit` early: ``"max_time"``; ``"interrupt"`` for Ctrl-C; the name
        of a callback's class, such as ``"EarlyStopping"``. None where all its epochs were trained.
    """

    def __init__(self) -> None:
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}
        self.stopped_by: str | None = None

    def __repr__(self) -> str:
        return f"History({len(self.epoch)} epochs: {', '.join(self.history)})"

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the last `Trainer.fit`."""
        return self.stopped_by == "interrupt"

    def record(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Add an epoch's numbers.

        Parameters
        ----------
        epoch : int
        logs : dict of float
        """
        for name in logs:
            self.history.setdefault(name, [math.nan] * len(self.epoch))
        for name, values in self.history.items():
            values.append(logs.get(name, math.nan))
        self.epoch.append(epoch)

    def last(self) -> Logs:
        """Return the numbers of the last epoch, a dict; an empty one before the first."""
        return {name: values[-1] for name, values in self.history.items()}


class Trainer:
    """Trains a net with an optimizer, in minibatches drawn anew each epoch.

    Parameters
    ----------
    net : object
        `fastopt.MLP`, or anything with ``params``, a list of layers, each a list of arrays (it may
        be empty); ``train_step(X, y) -> (loss, grads)``; and ``predict(X)``. Gradients are taken to
        come in reverse layer order unless ``net.grads_reversed`` is false. If the net has
        ``evaluate(X, y) -> float``, that gives the validation loss. Where rows have weights, both
        are given them as a third argument, and their loss is the weighted mean.
    opt : object
        A fastopt optimizer of ``net.params``, or anything with ``step(grads)``.
    callbacks : iterable of Callback, default ()
        Run in this order at every hook, see `fastopt.callbacks`.
    max_norm, clip_value : float, optional
        Clip the gradients of every step: given on to ``opt.step``.

    Attributes
    ----------
    net, opt, callbacks
        As given.
    history : History
        Of all calls of `fit`.
    stop_training : bool
        Set it, from a callback, to end the training after the present batch.

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
                raise TypeError(f"net must have {name!r}, but a {type(net).__name__} has not")
        if not hasattr(opt, "step"):
            raise TypeError(f"opt must have 'step', but a {type(opt).__name__} has not")
        # What these have beyond the protocols, a callback's writer knows.
        self.net: Any = net
        self.opt: Any = opt
        self.callbacks: list[Callback] = list(callbacks)
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be Callback objects, got {callback!r}")
        clipping = {"max_norm": max_norm, "clip_value": clip_value}
        self._step_options = {
            name: check_number(name, value) for name, value in clipping.items() if value is not None
        }
        self.history: History = History()
        self.stop_training: bool = False
        self._rng: np.random.Generator | None = None
        self._seed: int | np.random.Generator | None = None
        self._progress = Progress()

    def fit(
        self,
        X: Samples,
        y: ArrayLike,
        batch_size: int = 32,
        epochs: int = 1,
        validation_data: Validation | None = None,
        verbose: int = 1,
        shuffle: bool = True,
        seed: int | np.random.Generator | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        class_weight: ClassWeight | None = None,
        max_time: float | None = None,
        training_accuracy: bool = True,
    ) -> History:
        """Train for a number of epochs; called again, go on where it stopped.

        The optimizer keeps its state, epochs are numbered on, and so is the order of the rows:
        two calls of one epoch each do what one call of two epochs does.

        Parameters
        ----------
        X : array_like or scipy.sparse matrix, shape (n, ...)
        y : array_like, shape (n, ...)
        batch_size : int, default 32
            The last batch of an epoch may be smaller.
        epochs : int, default 1
            How many more.
        validation_data : (X, y) or (X, y, sample_weight), optional
            Evaluated after each epoch.
        verbose : int, default 1
            0 prints nothing. Otherwise each epoch prints a line to standard output; with 1 there is
            a progress bar as well, if that is a terminal and tqdm is installed
            (``pip install 'fastopt[progress]'``).
        shuffle : bool, default True
            False takes the rows in their order, without copying them.
        seed : int, optional
            Of the shuffling. Given again, it does not start the shuffling anew; another one does.
        sample_weight : array_like, shape (n,), optional
            How much each row counts, at least 0. A batch of zeros alone is passed over.
        class_weight : dict or "balanced", optional
            Weight of each label; 1 for those that are not in the dict. ``"balanced"``:
            ``n / (classes * rows of the class)``, as in scikit-learn. Multiplied by `sample_weight`
            where both are given.
        max_time : float, optional
            Seconds after which no further batch is begun. The epoch that is cut short is evaluated
            and recorded like any other.
        training_accuracy : bool, default True
            Whether to predict the training data after each epoch; False saves the time it takes.

        Returns
        -------
        History
            The trainer's `history`, with all epochs so far; ``history.stopped_by`` tells what ended
            the training early. Ctrl-C does so, too, and keeps what is learned; the epoch it breaks
            off is not recorded.

        Raises
        ------
        TypeError, ValueError
            If an argument is of the wrong kind; nothing is trained then.

        Notes
        -----
        Where a hyperparameter of the optimizer is a schedule with a method ``report(value)``, it is
        told the validation loss after each epoch, or the training loss where there is none.
        """
        X, y = check_X_y("X", X, "y", y)
        batch_size = check_int("batch_size", batch_size, 1)
        epochs = check_int("epochs", epochs, 0)
        weights = row_weights(y, sample_weight, class_weight)
        validation = _check_validation(validation_data, X)
        _check_protocol(self.net, weights, validation)
        deadline = math.inf if max_time is None else time.perf_counter() + _seconds(max_time)
        if self._rng is None or (seed is not None and seed != self._seed):
            self._rng, self._seed = np.random.default_rng(seed), seed

        columns = (X, y) if weights is None else (X, y, weights)
        batches = make_batches(self.net, columns, batch_size, self._rng if shuffle else None)
        evaluated: dict[str, _Evaluated] = {}
        if training_accuracy:
            own = None if sample_weight is None else np.asarray(sample_weight)
            evaluated[""] = (X, y, own)
        if validation is not None:
            evaluated["val_"] = validation

        history = self.history
        history.stopped_by, self.stop_training = None, False
        last = len(history.epoch) + epochs
        with contextlib.ExitStack() as closing:
            self._adopt_callbacks(closing)
            try:
                self._call("on_train_begin", {})
                left = (last - len(history.epoch)) * len(batches)
                self._progress = Progress(last, left, verbose == 1)
                closing.callback(self._progress.close)
                while len(history.epoch) < last and not history.stopped_by:
                    self._run(len(history.epoch), batches, evaluated, deadline, verbose)
                    if len(history.epoch) < last and time.perf_counter() >= deadline:
                        self._note_stop("max_time")
            except KeyboardInterrupt:
                history.stopped_by = "interrupt"
            self._progress.close()
            self._call("on_train_end", history.last())
            if verbose and history.stopped_by:
                print(_farewell(history), flush=True)
        return history

    def write(self, text: str) -> None:
        """Print a line, above the progress bar if there is one.

        Parameters
        ----------
        text : str
        """
        with self._progress.paused():
            print(text, flush=True)

    # --- Saving and loading ------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that another trainer, made alike, needs to go on exactly, between two epochs.

        Returns
        -------
        dict
            ``net``, its weights; ``opt``, the optimizer's ``state_dict()``; ``epoch`` and
            ``history``; ``seed`` and ``rng``, the order of the rows to come; ``callbacks``, the
            states of those that have one. Arrays are copies, everything else plain numbers.

        Raises
        ------
        TypeError
            If the optimizer has no ``state_dict``.
        """
        if not hasattr(self.opt, "state_dict"):
            raise TypeError(f"opt must have 'state_dict', but a {type(self.opt).__name__} has not")
        return {
            "net": take_weights(self.net),
            "opt": self.opt.state_dict(),
            "epoch": list(self.history.epoch),
            "history": {name: list(values) for name, values in self.history.history.items()},
            "seed": self._seed,
            "rng": None if self._rng is None else self._rng.bit_generator.state,
            "callbacks": [[type(c).__name__, c.state_dict()] for c in self._stateful_callbacks()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the trainer stood that `state` was taken from.

        Parameters
        ----------
        state : dict
            As `state_dict` returns it.

        Raises
        ------
        ValueError, TypeError
            If it came from another kind of net, optimizer or callbacks; nothing has been changed then.
        """
        if not isinstance(state, Mapping) or not state.keys() >= _STATE:
            raise ValueError(f"state: expected a dict with the keys {', '.join(sorted(_STATE))}")
        own = [type(callback).__name__ for callback in self._stateful_callbacks()]
        saved = [name for name, _ in state["callbacks"]]
        if saved != own:
            raise ValueError(f"state: expected that of the callbacks {own}, got that of {saved}")
        before = self.state_dict()
        try:
            self._load(state)
        except Exception:
            self._load(before)
            raise

    def _load(self, state: Mapping[str, Any]) -> None:
        put_weights(self.net, state["net"])
        self.opt.load_state_dict(state["opt"])
        self.history.epoch[:] = state["epoch"]
        self.history.history = {name: list(values) for name, values in state["history"].items()}
        self._seed = state["seed"]
        if state["rng"] is None:
            self._rng = None
        else:
            # The generator that a fit under way already draws from is the one to be set.
            self._rng = np.random.default_rng() if self._rng is None else self._rng
            self._rng.bit_generator.state = state["rng"]
        callbacks = self._stateful_callbacks()
        for callback, (_, kept) in zip(callbacks, state["callbacks"], strict=True):
            callback.trainer = self
            callback.load_state_dict(kept)

    # --- The loop ----------------------------------------------------------------------------

    def _run(
        self, epoch: int, batches: Batches, evaluated: Mapping[str, _Evaluated], deadline: float,
        verbose: int,
    ) -> None:
        """An epoch, from its first hook to its last."""
        self._call("on_epoch_begin", epoch, {})
        logs = self._run_epoch(epoch, batches, deadline)
        self._call("on_test_begin", {})
        logs |= self._evaluate(evaluated)
        self._call("on_test_end", logs)
        self.history.record(epoch, logs)
        if verbose:
            self.write(f"Epoch {epoch + 1}\n{format_logs(logs)}")
        _report_to_schedules(self.opt, logs.get("val_loss", logs["loss"]))
        self._call("on_epoch_end", epoch, logs)

    def _run_epoch(self, epoch: int, batches: Batches, deadline: float) -> Logs:
        """Take a step for each batch; return the epoch's loss, learning rate and seconds."""
        opt, options = self.opt, self._step_options
        before, after = self._hooked("on_train_batch_begin"), self._hooked("on_train_batch_end")
        total = rows = 0.0

        def numbers() -> str:
            lr = "".join(f", lr={lr:.3g}" for lr in _learning_rate(opt).values())
            return f"loss={total / rows:.4f}{lr}" if rows else ""

        start = time.perf_counter()
        for number, (begin, end) in enumerate(self._progress.over(batches, epoch, numbers)):
            weight = batches.weight(begin, end)
            if not weight:
                continue
            if before:
                self._call("on_train_batch_begin", number, {}, among=before)
            loss = batches.step(begin, end, opt, options)
            total += loss * weight
            rows += weight
            if after:
                self._call("on_train_batch_end", number, {"loss": loss}, among=after)
            if self.stop_training:
                self._note_stop("stop_training")
                break
            if time.perf_counter() >= deadline and number + 1 < len(batches):
                self._note_stop("max_time")
                break
        seconds = time.perf_counter() - start
        return {"loss": total / rows, **_learning_rate(opt), "seconds": seconds}

    def _evaluate(self, evaluated: Mapping[str, _Evaluated]) -> Logs:
        """Return the numbers of the data sets whose names begin with the keys of `evaluated`."""
        logs: Logs = {}
        for prefix, (X, y, weights) in evaluated.items():
            logs |= self._accuracy(f"{prefix}accuracy", X, y, weights)
            if prefix and hasattr(self.net, "evaluate"):
                rows = (X, y) if weights is None else (X, y, weights)
                logs[f"{prefix}loss"] = float(self.net.evaluate(*rows))
        return logs

    def _accuracy(self, name: str, X: AnyArray, y: AnyArray, weights: AnyArray | None) -> Logs:
        """Return ``{name: accuracy}``, or nothing where predictions are values, not labels."""
        if y.dtype.kind in "fc":
            return {}
        predicted = np.asarray(self.net.predict(X))
        if predicted.dtype.kind in "fc" or predicted.size != y.size:
            return {}
        return {name: accuracy(y, predicted.reshape(y.shape), weights)}

    # --- Callbacks ---------------------------------------------------------------------------

    def _stateful_callbacks(self) -> list[Callback]:
        return [callback for callback in self.callbacks if callback.state_dict()]

    def _adopt_callbacks(self, closing: contextlib.ExitStack) -> None:
        for callback in self.callbacks:
            if callback.trainer is not self:
                callback.trainer = self
                callback.reset()
            closing.callback(callback.close)

    def _call(self, hook: str, *args: Any, among: list[Callback] | None = None) -> None:
        for callback in self.callbacks if among is None else among:
            getattr(callback, hook)(*args)
            if self.stop_training:
                self._note_stop(type(callback).__name__)

    def _note_stop(self, reason: str) -> None:
        """Remember what ended the training: the first that did."""
        if self.history.stopped_by is None:
            self.history.stopped_by = reason

    def _hooked(self, hook: str) -> list[Callback]:
        """Return the callbacks that do something at a hook: the others cost each batch nothing."""
        nothing = getattr(Callback, hook)
        return [
            callback
            for callback in self.callbacks
            if getattr(getattr(callback, hook), "__func__", None) is not nothing
        ]


_STATE = frozenset(("net", "opt", "epoch", "history", "seed", "rng", "callbacks"))


def format_logs(logs: Mapping[str, float]) -> str:
    """Return the line about an epoch, as the article prints it."""
    test = "accuracy" if "val_accuracy" in logs else "loss"
    names = {"loss": "Loss", "accuracy": "Training Accuracy", f"val_{test}": f"Test {test.title()}"}
    return " | ".join(f"{text} = {logs[name]:.4f}" for name, text in names.items() if name in logs)


def _farewell(history: History) -> str:
    done = f"{len(history.epoch)} epoch{'' if len(history.epoch) == 1 else 's'}"
    if history.interrupted:
        return f"Interrupted after {done}: the net keeps what it has learned."
    return f"Stopped after {done} by {history.stopped_by}."


def _learning_rate(opt: Any) -> Logs:
    """Return ``{"lr": value}`` of the last step, or nothing where the optimizer does not tell."""
    groups = getattr(opt, "groups", None)
    if not groups or "lr" not in groups[0]:
        return {}
    lr = groups[0]["lr"]
    value: Any = lr(max(opt.steps - 1, 0)) if callable(lr) else lr
    return {"lr": float(value)}


def _report_to_schedules(opt: Any, value: float) -> None:
    """Tell `value` to every schedule that wants it, once each."""
    numbers: list[Any] = []
    for group in getattr(opt, "groups", ()):
        for name, hyperparameter in group.items():
            if name != "params":
                numbers += hyperparameter if isinstance(hyperparameter, tuple) else [hyperparameter]
    for schedule in {id(number): number for number in numbers}.values():
        if hasattr(schedule, "report"):
            schedule.report(value)


def _check_validation(data: Validation | None, X: AnyArray) -> _Evaluated | None:
    """Return ``(X, y, weights or None)``, or None."""
    if data is None:
        return None
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise ValueError(
            "validation_data must be a pair (X, y) or a triple (X, y, sample_weight), "
            f"got {type(data).__name__}"
        )
    X_val, y_val = check_X_y("validation_data[0]", data[0], "validation_data[1]", data[1])
    if X_val.shape[1:] != X.shape[1:]:
        raise ValueError(
            f"validation_data[0] must have rows of the shape {X.shape[1:]}, got {X_val.shape[1:]}"
        )
    if len(data) == 2 or data[2] is None:
        return X_val, y_val, None
    return X_val, y_val, check_weights("validation_data[2]", data[2], len(y_val))


def _check_protocol(net: Net, weights: AnyArray | None, validation: _Evaluated | None) -> None:
    """Refuse weights where the net does not take them."""
    wanted = []
    if weights is not None:
        wanted.append(("sample_weight and class_weight", "train_step"))
    if validation is not None and validation[2] is not None and hasattr(net, "evaluate"):
        wanted.append(("validation_data[2]", "evaluate"))
    for argument, method in wanted:
        try:
            signature = inspect.signature(getattr(net, method))
        except ValueError:  # a compiled method may not tell its arguments
            continue
        try:
            signature.bind(None, None, None)
        except TypeError:
            raise TypeError(
                f"{argument}: the net's {method} must take (X, y, sample_weight), "
                f"but that of a {type(net).__name__} takes {signature}"
            ) from None


def _seconds(max_time: float) -> float:
    if not check_float("max_time", max_time) > 0.0:
        raise ValueError(f"max_time: expected more than 0 seconds, got {max_time!r}")
    return float(max_time)
