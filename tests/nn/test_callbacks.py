"""Callback, LambdaCallback, TerminateOnNaN, and copies of all callbacks."""

import copy
import math
import pickle

import pytest
from callback_helpers import CountingNet, X, Y, make_trainer, run, small_digits, without_seconds

import fastopt
from fastopt import callbacks
from fastopt.callbacks import (
    BackupAndRestore,
    Callback,
    CSVLogger,
    EarlyStopping,
    LambdaCallback,
    LearningRateScheduler,
    ModelCheckpoint,
    ReduceLROnPlateau,
    SwapEMAWeights,
    TerminateOnNaN,
)
from fastopt.nn import MLP, Trainer

# --- Callback and LambdaCallback -------------------------------------------------------------


HOOKS = [
    "on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_train_batch_end",
    "on_test_begin", "on_test_end", "on_epoch_end", "on_train_end",
]  # fmt: skip


def test_lambda_callback_runs_at_each_hook():
    events = []

    def write(name):
        return lambda *args: events.append((name, *args[:-1]))

    hooks = LambdaCallback(**{name: write(name) for name in HOOKS})
    trainer = make_trainer([1.0], hooks)
    trainer.fit(X, Y, 2, validation_data=(X, Y), verbose=0)
    assert events == [
        ("on_train_begin",),
        ("on_epoch_begin", 0),
        ("on_train_batch_begin", 0),
        ("on_train_batch_end", 0),
        ("on_train_batch_begin", 1),
        ("on_train_batch_end", 1),
        ("on_test_begin",),
        ("on_test_end",),
        ("on_epoch_end", 0),
        ("on_train_end",),
    ]


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"on_epoch": print}, "'on_epoch' is not a method of Callback"),
        ({"trainer": print}, "'trainer' is not a method"),
        ({"on_epoch_end": 3}, "on_epoch_end: expected a function, got 3"),
        ({"on_test_end": 3}, "on_test_end: expected a function, got 3"),
    ],
)
def test_lambda_callback_refuses_unknown_hooks(hooks, message):
    with pytest.raises(TypeError, match=message):
        LambdaCallback(**hooks)


def test_metrics_added_in_on_test_end_are_recorded_and_can_be_monitored():
    scores = iter([0.1, 0.3, 0.2, 0.2])
    measure = LambdaCallback(on_test_end=lambda logs: logs.update(val_f1=next(scores)))
    stop = EarlyStopping("val_f1", mode="max", patience=2)
    trainer = make_trainer([1.0] * 9, measure, stop)
    history = run(trainer)
    assert history.history["val_f1"] == [0.1, 0.3, 0.2, 0.2]
    assert history.stopped_by == "EarlyStopping"


def test_callbacks_are_closed_after_an_error():
    closed = []

    class Closing(Callback):
        def close(self):
            closed.append(True)
            raise OSError("and this does not keep the next from being closed")

    def fail(epoch, logs):
        raise RuntimeError("out of luck")

    with pytest.raises(OSError):
        run(make_trainer([1.0], Closing(), Closing(), LambdaCallback(on_epoch_end=fail)))
    assert len(closed) == 2


@pytest.mark.parametrize("name", callbacks.__all__)
def test_every_public_callback_is_a_documented_subclass(name):
    cls = getattr(callbacks, name)
    assert issubclass(cls, Callback) and cls.__doc__
    assert cls.__name__ == name


# --- TerminateOnNaN --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("raise_error", [False, True])
def test_terminate_on_nan(bad, raise_error):
    losses = iter([1.0, 2.0, 3.0, bad, 4.0])

    class Net(CountingNet):
        def train_step(self, X, y):
            return next(losses), super().train_step(X, y)[1]

    net = Net()
    trainer = Trainer(net, fastopt.SGD(net.params), [TerminateOnNaN(raise_error=raise_error)])
    if raise_error:
        with pytest.raises(RuntimeError, match=f"the loss of batch 1 of epoch 1 is {bad}"):
            trainer.fit(X, Y, 2, 5, verbose=0)
        assert trainer.history.epoch == [0]
    else:
        history = trainer.fit(X, Y, 2, 5, verbose=0)
        assert history.epoch == [0, 1] and history.stopped_by == "TerminateOnNaN"
    assert next(losses) == 4.0


# --- Copies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
@pytest.mark.parametrize(
    "callback",
    [
        EarlyStopping(patience=3),
        ModelCheckpoint("w.npz", save_best_only=True),
        ReduceLROnPlateau(patience=3),
        LearningRateScheduler(max),
        CSVLogger("log.csv"),
        TerminateOnNaN(),
        SwapEMAWeights(),
        LambdaCallback(on_epoch_end=print),
        BackupAndRestore("folder"),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_callbacks_can_be_copied(callback, clone):
    assert vars(clone(callback)).keys() == vars(callback).keys()


def test_a_pickled_trainer_continues_identically():
    X, y, test = small_digits()
    fit = {"X": X, "y": y, "validation_data": test, "verbose": 0, "seed": 1}
    net = MLP([64, 16, 10], seed=0)
    used = [ReduceLROnPlateau(patience=1, factor=0.5), EarlyStopping(patience=5)]
    trainer = Trainer(net, fastopt.Adam(net.params, lr=0.1), used)
    trainer.fit(epochs=3, **fit)
    other = pickle.loads(pickle.dumps(trainer))
    expected = without_seconds(trainer.fit(epochs=3, **fit))
    assert without_seconds(other.fit(epochs=3, **fit)) == expected
    assert expected["lr"][-1] < 0.1
