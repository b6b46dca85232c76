"""fastopt.callbacks: what each does, by sequences worked out by hand from Keras's documentation."""

import copy
import csv
import math
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt import callbacks, schedules
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
from fastopt.nn.data import load_digits, read_arrays
from fastopt.nn.files import atomic_write, load_tree, save_tree

X, Y = np.zeros((4, 1)), np.zeros(4)


class CountingNet:
    """Its one weight counts the steps taken; its validation losses are given."""

    def __init__(self, val_losses=()):
        self.params = [[np.zeros(1)], []]
        self.val_losses = list(val_losses)
        self.evaluated = []

    def train_step(self, X, y):
        return 1.0, [[], [np.full(1, -1.0)]]

    def predict(self, X):
        return np.zeros(len(X))

    def evaluate(self, X, y):
        self.evaluated.append(self.weight)
        return self.val_losses[len(self.evaluated) - 1]

    @property
    def weight(self):
        return float(self.params[0][0][0])


def feeding(val_losses, *made, lr=1.0, **options):
    """Return a trainer whose epochs are one step each, and have these validation losses."""
    net = CountingNet(val_losses)
    return Trainer(net, fastopt.SGD(net.params, lr=lr, **options), made)


def run(trainer, epochs=None, **options):
    epochs = len(trainer.net.val_losses) if epochs is None else epochs
    return trainer.fit(X, Y, 4, epochs, (X, Y), verbose=0, **options)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits()
    return X[:400].astype(np.float32), y[:400], (X[400:600].astype(np.float32), y[400:600])


# --- Callback and LambdaCallback ---------------------------------------------------------------

HOOKS = [
    "on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_train_batch_end",
    "on_test_begin", "on_test_end", "on_epoch_end", "on_train_end",
]  # fmt: skip


def test_a_lambda_is_run_at_each_hook():
    events = []

    def write(name):
        return lambda *args: events.append((name, *args[:-1]))

    hooks = LambdaCallback(**{name: write(name) for name in HOOKS})
    trainer = feeding([1.0], hooks)
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
def test_a_lambda_has_no_other_hooks(hooks, message):
    with pytest.raises(TypeError, match=message):
        LambdaCallback(**hooks)


def test_numbers_added_after_the_evaluation_are_in_the_history_and_can_be_watched():
    scores = iter([0.1, 0.3, 0.2, 0.2])
    measure = LambdaCallback(on_test_end=lambda logs: logs.update(val_f1=next(scores)))
    stop = EarlyStopping("val_f1", mode="max", patience=2)
    trainer = feeding([1.0] * 9, measure, stop)
    history = run(trainer)
    assert history.history["val_f1"] == [0.1, 0.3, 0.2, 0.2]
    assert history.stopped_by == "EarlyStopping"


def test_callbacks_are_closed_whatever_happens():
    closed = []

    class Closing(Callback):
        def close(self):
            closed.append(True)
            raise OSError("and this does not keep the next from being closed")

    def fail(epoch, logs):
        raise RuntimeError("out of luck")

    with pytest.raises(OSError):
        run(feeding([1.0], Closing(), Closing(), LambdaCallback(on_epoch_end=fail)))
    assert len(closed) == 2


@pytest.mark.parametrize("name", callbacks.__all__)
def test_every_callback_is_documented_and_is_one(name):
    made = getattr(callbacks, name)
    assert issubclass(made, Callback) and made.__doc__
    assert made.__name__ == name


# --- EarlyStopping -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "stopped", "best"),
    [
        ([3, 2, 2.5, 1], {}, 2, 1),
        ([3, 2, 2.5, 1], {"patience": 1}, 2, 1),
        ([3, 2, 2.5, 2.4, 1], {"patience": 2}, 3, 1),
        ([3, 2, 2.5, 1.9, 2, 2, 0], {"patience": 2}, 5, 3),
        ([3, 2, 2, 2], {"patience": 2}, 3, 1),
        ([3, 2, 1], {"patience": 1}, None, 2),
        ([3, 2.6, 2.4, 2.2, 2.0, 0], {"patience": 2, "min_delta": 0.5}, 4, 2),
        ([3, 2.6, 2.4, 2.2, 2.0, 0], {"patience": 2, "min_delta": -0.5}, 4, 2),
        ([1, 2, 3, 3, 3, 9], {"patience": 2, "mode": "max"}, 4, 2),
        ([1, 1.4, 1.6, 2.0, 1.9, 9], {"patience": 2, "mode": "max", "min_delta": 0.5}, 4, 2),
        # As long as no epoch beats the baseline, patience runs out; but not while there is progress.
        ([0.9, 0.8, 0.7, 0.71, 0.72, 0.73], {"patience": 5, "baseline": 0.5}, 4, 2),
        ([0.9, 0.8, 0.7, 0.6, 0.61], {"patience": 2, "baseline": 0.5}, 4, 3),
        ([0.9, 0.4, 0.45, 0.45, 0.45], {"patience": 2, "baseline": 0.5}, 3, 1),
        ([1, 9, 8, 7, 7, 7, 7], {"patience": 2, "start_from_epoch": 1}, 5, 3),
        ([1, 2, 3, 4], {"patience": 0, "start_from_epoch": 2}, 3, 2),
        ([math.nan, 3, 2, math.nan, math.nan, 1], {"patience": 2}, 4, 2),
    ],
)
@pytest.mark.parametrize("restore", [False, True])
def test_early_stopping(values, options, stopped, best, restore):
    stop = EarlyStopping(restore_best_weights=restore, **options)
    trainer = feeding(values, stop)
    history = run(trainer)
    assert stop.stopped_epoch == stopped
    assert history.stopped_by == (None if stopped is None else "EarlyStopping")
    assert len(history.epoch) == (len(values) if stopped is None else stopped + 1)
    assert (stop.best_epoch, stop.best) == (best, values[best])
    # After epoch e the weight is e + 1.
    assert trainer.net.weight == (best + 1 if restore else len(history.epoch))


def test_patience_of_kerass_own_example():
    losses = [10.0, 9.0, 8.0, 9.0, 8.9, 8.8, 8.7, 8.6, 8.5]
    for patience in range(4):
        stop = EarlyStopping(patience=patience)
        run(feeding(losses, stop))
        assert stop.stopped_epoch == max(patience, 1) + 2


def test_restores_where_nothing_was_better_or_somebody_else_stopped():
    trainer = feeding([math.nan] * 3, EarlyStopping(patience=9, restore_best_weights=True))
    run(trainer)
    assert trainer.net.weight == 1

    def stop(epoch, logs):
        trainer.stop_training = epoch == 2

    trainer = feeding([2, 1, 3, 0], EarlyStopping(patience=9, restore_best_weights=True))
    trainer.callbacks.append(LambdaCallback(on_epoch_end=stop))
    assert run(trainer).stopped_by == "LambdaCallback"
    assert trainer.net.weight == 2


def test_a_further_fit_goes_on_with_the_patience_left():
    stop = EarlyStopping(patience=2)
    trainer = feeding([1, 2, 3, 4], stop)
    for epochs in ([0], [0, 1], [0, 1, 2]):
        assert run(trainer, 1).epoch == epochs
    assert stop.stopped_epoch == 2


def test_a_further_fit_after_the_stop_has_the_whole_patience():
    stop = EarlyStopping(patience=2)
    trainer = feeding([1, 2, 3, 4, 5, 6], stop)
    assert run(trainer).epoch == [0, 1, 2]
    assert run(trainer).epoch == [0, 1, 2, 3, 4]
    assert stop.best == 1


def test_another_trainer_begins_anew():
    stop = EarlyStopping(patience=1, restore_best_weights=True)
    run(feeding([1, 2], stop))
    trainer = feeding([5, 4, 6], stop)
    assert run(trainer).epoch == [0, 1, 2]
    assert stop.best == 4 and trainer.net.weight == 2


def test_restores_the_running_statistics(digits):
    X, y, test = digits
    net = MLP([64, 16, 10], norm="batch", seed=0)
    stop = EarlyStopping(patience=99, restore_best_weights=True)
    kept = {}

    def keep(epoch, logs):
        kept[logs["val_loss"]] = net.state_dict()

    trainer = Trainer(net, fastopt.Adam(net.params, lr=0.3), [stop, LambdaCallback(on_epoch_end=keep)])
    history = trainer.fit(X, y, epochs=6, validation_data=test, verbose=0, seed=0)
    assert min(history.history["val_loss"]) != history.history["val_loss"][-1]
    assert net.evaluate(*test) == min(history.history["val_loss"])
    best = kept[min(kept)]
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, best[name])


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("loss", "min"), ("val_loss", "min"), ("accuracy", "max"), ("val_accuracy", "max")],
)
@pytest.mark.parametrize("made", [EarlyStopping, ReduceLROnPlateau])
def test_mode_by_name(made, monitor, mode):
    assert made(monitor).mode == mode
    assert made(monitor, mode="min" if mode == "max" else "max").mode != mode


@pytest.mark.parametrize("made", [EarlyStopping, ReduceLROnPlateau])
def test_a_number_that_is_not_there(made):
    with pytest.raises(ValueError) as error:
        feeding([1.0], made()).fit(X, Y, verbose=0)
    assert str(error.value) == (
        f"monitor: {made.__name__} finds no 'val_loss', expected one of loss, lr, seconds; "
        "Trainer.fit needs validation_data for it"
    )
    with pytest.raises(ValueError, match=r"finds no 'f1', expected one of loss, lr, seconds, val_loss$"):
        run(feeding([1.0], made("f1", mode="max")))


def test_what_it_says(capsys):
    stop = EarlyStopping(patience=1, restore_best_weights=True, verbose=1)
    feeding([2, 1, 3], stop).fit(X, Y, 4, 5, (X, Y), verbose=1)
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "Epoch 3: early stopping",
        "Restored the weights of the best epoch: 2",
        "Stopped after 3 epochs by EarlyStopping.",
    ]
    run(feeding([2, 1, 3], EarlyStopping(patience=1, restore_best_weights=True)))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "low"}, ValueError, "mode: expected one of auto, min, max, got 'low'"),
        ({"monitor": "f1"}, ValueError, "mode: cannot infer whether to minimize or maximize 'f1'"),
        ({"patience": -1}, ValueError, "patience: expected at least 0, got -1"),
        ({"patience": 1.5}, TypeError, "patience: expected a whole number, got 1.5"),
        ({"min_delta": "1"}, TypeError, "min_delta: expected a number, got '1'"),
        ({"min_delta": math.nan}, ValueError, "min_delta: expected a finite number, got nan"),
        ({"baseline": True}, TypeError, "baseline: expected a number, got True"),
        ({"start_from_epoch": -1}, ValueError, "start_from_epoch: expected at least 0"),
    ],
)
def test_early_stopping_refuses(options, error, message):
    with pytest.raises(error, match=message):
        EarlyStopping(**options)


# --- ReduceLROnPlateau -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "rates"),
    [
        # Rates that the epochs were trained with: what an epoch decides holds from the next one on.
        ([1, 1, 1, 1], {"patience": 1}, [1, 1, 0.5, 0.25]),
        ([1, 1, 1, 1], {"patience": 0}, [1, 1, 0.5, 0.25]),
        ([1, 1, 1, 1, 1, 1], {"patience": 2}, [1, 1, 1, 0.5, 0.5, 0.25]),
        ([1, 1, 0.5, 1, 1, 1], {"patience": 2}, [1, 1, 1, 1, 1, 0.5]),
        ([1, 1, 1, 1, 1, 1], {"patience": 1, "cooldown": 1}, [1, 1, 0.5, 0.25, 0.125, 0.0625]),
        ([1, 1, 1, 1, 1, 1], {"patience": 1, "cooldown": 2}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ([1, 1, 1, 1, 1, 1], {"patience": 2, "cooldown": 2}, [1, 1, 1, 0.5, 0.5, 0.5]),
        ([1, 0.95, 0.9, 0.85], {"patience": 2, "min_delta": 0.2}, [1, 1, 1, 0.5]),
        ([1, 0.95, 0.9, 0.85], {"patience": 2, "min_delta": 0.01}, [1, 1, 1, 1]),
        ([1, 1, 1, 1], {"patience": 1, "min_lr": 0.3}, [1, 1, 0.5, 0.3]),
        ([1, 2, 3, 4], {"patience": 1, "mode": "max"}, [1, 1, 1, 1]),
        ([math.nan] * 4, {"patience": 1}, [1, 0.5, 0.25, 0.125]),
    ],
)
def test_reduce_on_plateau(values, options, rates):
    trainer = feeding(values, ReduceLROnPlateau(factor=0.5, **options))
    assert run(trainer).history["lr"] == rates


def keras_rates(values, patience, cooldown, min_delta, factor, min_lr):
    """The documented meaning, for "min": the rate after each epoch."""
    best, waited, cooling, lr, rates = math.inf, 0, 0, 1.0, []
    for value in values:
        cooling = max(cooling - 1, 0)
        better = value < best - min_delta
        best = value if better else best
        waited = 0 if better or cooling else waited + 1
        if not better and not cooling and waited >= patience and lr > min_lr:
            lr, waited, cooling = max(lr * factor, min_lr), 0, cooldown
        rates.append(lr)
    return rates


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.integers(0, 6).map(lambda n: n / 4), min_size=1, max_size=25),
    patience=st.integers(0, 4),
    cooldown=st.integers(0, 4),
    min_delta=st.sampled_from([0.0, 0.25, 0.3]),
    min_lr=st.sampled_from([0.0, 0.1]),
)
def test_reduce_on_plateau_is_kerass(values, patience, cooldown, min_delta, min_lr):
    options = {
        "patience": patience, "cooldown": cooldown, "min_delta": min_delta, "factor": 0.5,
        "min_lr": min_lr,
    }  # fmt: skip
    after = []
    trainer = feeding(values, ReduceLROnPlateau(**options))
    trainer.callbacks.append(
        LambdaCallback(on_epoch_end=lambda epoch, logs: after.append(trainer.opt.groups[0]["lr"]))
    )
    run(trainer)
    assert after == pytest.approx(keras_rates(values, **options), rel=1e-15)


def test_reduce_on_plateau_lowers_every_group_and_heeds_what_others_set(capsys):
    net = CountingNet([1.0] * 4)
    groups = [{"params": [net.params[0]], "lr": 0.5}, {"params": [np.zeros(1)], "lr": 4.0}]
    opt = fastopt.SGD(groups)
    opt.step = lambda grads: None

    def set_lr(epoch, logs):
        if epoch == 1:
            opt.groups[0]["lr"] = 0.8

    made = [LambdaCallback(on_epoch_end=set_lr), ReduceLROnPlateau(factor=0.25, patience=1, verbose=1)]
    Trainer(net, opt, made).fit(X, Y, 4, 2, (X, Y), verbose=0)
    assert [group["lr"] for group in opt.groups] == [0.2, 1.0]
    assert capsys.readouterr().out.splitlines() == [
        "Epoch 2: reduced the learning rate to 0.2",
        "Epoch 2: reduced the learning rate to 1",
    ]


def test_two_fits_reduce_as_one():
    once = feeding([1.0] * 6, ReduceLROnPlateau(factor=0.5, patience=2))
    twice = feeding([1.0] * 6, ReduceLROnPlateau(factor=0.5, patience=2))
    run(once, 6)
    for _ in range(6):
        run(twice, 1)
    assert once.history.history["lr"] == twice.history.history["lr"] == [1, 1, 1, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, "factor: expected a number below 1, got 1.0"),
        ({"factor": 0.0}, "factor"),
        ({"patience": -1}, "patience: expected at least 0"),
        ({"cooldown": -1}, "cooldown: expected at least 0"),
        ({"min_lr": -1.0}, "min_lr"),
        ({"min_delta": math.inf}, "min_delta: expected a finite number"),
        ({"monitor": "f1"}, "mode: cannot infer whether to minimize or maximize 'f1'"),
    ],
)
def test_reduce_on_plateau_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        ReduceLROnPlateau(**options)


# --- LearningRateScheduler ---------------------------------------------------------------------


def test_learning_rate_scheduler(capsys):
    seen = []

    def schedule(epoch, lr):
        seen.append((epoch, lr))
        return lr / 2 if epoch else np.float32(0.5)

    trainer = feeding([1.0] * 3, LearningRateScheduler(schedule, verbose=1))
    assert run(trainer, 2).history["lr"] == [0.5, 0.25]
    assert run(trainer, 1).history["lr"] == [0.5, 0.25, 0.125]
    assert seen == [(0, 1.0), (1, 0.5), (2, 0.25)]
    assert capsys.readouterr().out.splitlines()[1] == "Epoch 2: set the learning rate to 0.25"


def test_learning_rate_scheduler_of_groups():
    net = CountingNet([1.0])
    opt = fastopt.SGD([{"params": net.params, "lr": 1.0}, {"params": [np.zeros(1)], "lr": 3.0}])
    opt.step = lambda grads: None
    Trainer(net, opt, [LearningRateScheduler(lambda epoch, lr: 2 * lr)]).fit(X, Y, verbose=0)
    assert [group["lr"] for group in opt.groups] == [2.0, 6.0]


@pytest.mark.parametrize("value", [None, "0.1", lambda step: 0.1, -1.0, math.nan])
def test_learning_rate_scheduler_refuses_what_is_no_rate(value):
    trainer = feeding([1.0], LearningRateScheduler(lambda epoch, lr: value))
    with pytest.raises((TypeError, ValueError), match="lr: expected a"):
        run(trainer)
    assert trainer.net.weight == 0.0


def test_learning_rate_scheduler_wants_a_function():
    with pytest.raises(TypeError, match="schedule: expected a function"):
        LearningRateScheduler(0.1)


@pytest.mark.parametrize(
    "made", [ReduceLROnPlateau(), LearningRateScheduler(lambda epoch, lr: lr)], ids=["reduce", "set"]
)
def test_a_learning_rate_that_is_a_schedule_cannot_be_set(made):
    trainer = feeding([1.0], made, lr=schedules.Cosine(0.1, 10))
    who = type(made).__name__
    with pytest.raises(ValueError) as error:
        run(trainer)
    assert str(error.value) == (
        f"{who}: it sets the learning rate, but that of group 0 is a schedule, "
        f"Cosine(lr=0.1, steps=10, min_lr=0.0); give the optimizer a number as lr, or leave {who} out"
    )
    assert trainer.net.weight == 0.0

    class Descent:
        def step(self, grads):
            pass

    with pytest.raises(TypeError, match=f"opt: {who} expected an object with 'groups', got Descent"):
        Trainer(CountingNet(), Descent(), [made]).fit(X, Y, verbose=0)


# --- ModelCheckpoint ---------------------------------------------------------------------------


def weights(path):
    """The step whose weight a file has."""
    return float(read_arrays(path)["params[0][0]"][0])


def test_a_file_for_each_epoch(tmp_path):
    save = ModelCheckpoint(tmp_path / "a" / "{epoch:02d}-{val_loss:.2f}.npz", save_weights_only=True)
    run(feeding([3.0, 1.0, 2.127], save))
    files = {path.name: weights(path) for path in (tmp_path / "a").iterdir()}
    assert files == {"01-3.00.npz": 1, "02-1.00.npz": 2, "03-2.13.npz": 3}


@pytest.mark.parametrize(
    ("values", "options", "saved", "best"),
    [
        ([3, 1, 2, 1, 0.5], {}, [1, 2, 5], 0.5),
        ([3, 1, 4, 4], {"mode": "max"}, [1, 3], 4),
        ([3, 1, 2, 0.5], {"initial_value_threshold": 2.5}, [2, 4], 0.5),
        ([3, 3, 3], {"initial_value_threshold": 2.5}, [], 2.5),
        ([math.nan, 1, math.nan], {}, [2], 1),
    ],
)
def test_only_the_best(tmp_path, values, options, saved, best):
    path = tmp_path / "best.npz"
    save = ModelCheckpoint(path, save_best_only=True, save_weights_only=True, **options)
    found = []

    def look(epoch, logs):
        if path.exists():
            found.append(weights(path))

    run(feeding(values, save, LambdaCallback(on_epoch_end=look)))
    assert sorted(set(found)) == saved and save.best == best


def test_best_of_several_fits(tmp_path):
    save = ModelCheckpoint(tmp_path / "best.npz", save_best_only=True, save_weights_only=True)
    trainer = feeding([3, 1, 2], save)
    for _ in range(3):
        run(trainer, 1)
    assert weights(tmp_path / "best.npz") == 2


def test_saving_by_the_batch_goes_on_through_epochs(tmp_path):
    save = ModelCheckpoint(
        tmp_path / "{epoch}-{batch}-{loss:.1f}.npz", save_freq=3, save_weights_only=True
    )
    trainer = feeding([1.0] * 4, save)
    trainer.fit(X, Y, 2, 4, verbose=0)  # two batches an epoch
    files = {path.name: weights(path) for path in tmp_path.iterdir()}
    assert files == {"2-1-1.0.npz": 3, "3-2-1.0.npz": 6}


def test_a_saved_net_can_be_loaded(tmp_path, digits):
    X, y, test = digits
    net = MLP([64, 16, 10], seed=0, norm="batch")
    whole = ModelCheckpoint(tmp_path / "net.npz", save_best_only=True, monitor="val_accuracy")
    arrays = ModelCheckpoint(tmp_path / "arrays.npz", save_weights_only=True)
    Trainer(net, fastopt.Adam(net.params, lr=0.01), [whole, arrays]).fit(
        X, y, epochs=3, validation_data=test, verbose=0, seed=0
    )
    assert whole.best > 0.5
    loaded = MLP.load(tmp_path / "net.npz")
    assert np.mean(loaded.predict(test[0]) == test[1]) == whole.best
    other = MLP([64, 16, 10], seed=1, norm="batch")
    other.load_state_dict(dict(np.load(tmp_path / "arrays.npz")))
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], array)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays.npz", "net.npz"]


def test_a_crash_leaves_the_file_before(tmp_path):
    class Net(CountingNet):
        def save(self, path):
            path.write_text("half")
            if self.weight == 2:
                raise OSError("no space left on device")
            path.write_text(f"whole {self.weight}")

    net = Net([2.0, 1.0])
    trainer = Trainer(net, fastopt.SGD(net.params, lr=1.0), [ModelCheckpoint(tmp_path / "net")])
    with pytest.raises(OSError, match="no space left"):
        run(trainer)
    assert (tmp_path / "net").read_text() == "whole 1.0"
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_file_is_replaced_not_rewritten(tmp_path):
    path = tmp_path / "net.npz"
    save_tree(path, {"a": 1})
    os.link(path, tmp_path / "read by somebody")
    save_tree(path, {"a": 2})
    assert load_tree(tmp_path / "read by somebody") == {"a": 1} and load_tree(path) == {"a": 2}


def test_files_beside_come_along(tmp_path):
    with atomic_write(tmp_path / "net.safetensors") as temporary:
        temporary.write_text("new")
        temporary.with_suffix(".json").write_text("described")
        assert list(tmp_path.glob("net*")) == []
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "net.safetensors": "new", "net.json": "described"
    }  # fmt: skip


def test_a_net_of_safetensors(tmp_path, digits):
    pytest.importorskip("safetensors")
    X, y, test = digits
    net = MLP([64, 10], seed=0)
    save = ModelCheckpoint(tmp_path / "net.safetensors")
    Trainer(net, fastopt.Adam(net.params), [save]).fit(X, y, verbose=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.json", "net.safetensors"]
    loaded = MLP.load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(loaded.predict(test[0]), net.predict(test[0]))


def test_what_the_checkpoint_says(tmp_path, capsys):
    save = ModelCheckpoint(tmp_path / "w.npz", save_best_only=True, save_weights_only=True, verbose=1)
    run(feeding([3.0, 4.0, 1.0], save))
    assert capsys.readouterr().out.splitlines() == [
        f"Epoch 1: val_loss improved from inf to 3.00000, saved {tmp_path / 'w.npz'}",
        f"Epoch 3: val_loss improved from 3.00000 to 1.00000, saved {tmp_path / 'w.npz'}",
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"save_freq": 0}, ValueError, "save_freq: expected at least 1, got 0"),
        ({"save_freq": "batch"}, TypeError, "save_freq: expected a whole number, got 'batch'"),
        ({"save_weights_only": True, "filepath": "w.h5"}, ValueError, "filepath: .*npz.*got 'w.h5'"),
        ({"save_best_only": True, "monitor": "f1"}, ValueError, "mode: cannot infer .* maximize 'f1'"),
        ({"mode": "best", "save_best_only": True}, ValueError, "mode: expected one of auto, min, max"),
        ({"initial_value_threshold": "1"}, TypeError, "initial_value_threshold: expected a number"),
    ],
)
def test_checkpoint_refuses(options, error, message):
    with pytest.raises(error, match=message):
        ModelCheckpoint(**{"filepath": "w.npz", **options})


def test_checkpoint_refuses_in_time(tmp_path):
    trainer = feeding([1.0], ModelCheckpoint(tmp_path / "net.npz"))
    with pytest.raises(TypeError, match=r"net: ModelCheckpoint expected .* 'save', got CountingNet; save_w"):
        run(trainer)
    assert trainer.net.weight == 0.0
    for filepath, field in (("{val_f1}.npz", "'val_f1'"), ("{}.npz", "")):
        save = ModelCheckpoint(tmp_path / filepath, save_weights_only=True)
        with pytest.raises(ValueError, match=rf"filepath: .* has the field .*{field}.*expected one of ep"):
            run(feeding([1.0], save))
    save = ModelCheckpoint(
        tmp_path / "w.npz", save_weights_only=True, save_best_only=True, save_freq=1
    )
    with pytest.raises(ValueError, match="finds no 'val_loss', expected one of batch, loss"):
        run(feeding([1.0], save))
    assert not list(tmp_path.iterdir())


# --- CSVLogger ---------------------------------------------------------------------------------


def table(path, separator=","):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=separator))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_holds_the_history(tmp_path, separator):
    path = tmp_path / "log.csv"
    history = run(feeding([0.1, 1 / 3], CSVLogger(path, separator))).history
    rows = table(path, separator)
    assert [row.pop("epoch") for row in rows] == ["0", "1"]
    assert {name: [float(row[name]) for row in rows] for name in rows[0]} == history
    assert path.read_text().count(separator) == 3 * len(history)


def test_csv_is_written_as_epochs_come(tmp_path):
    lines = []

    def look(epoch, logs):
        lines.append(len((tmp_path / "log.csv").read_text().splitlines()))

    run(feeding([1.0] * 3, CSVLogger(tmp_path / "log.csv"), LambdaCallback(on_epoch_end=look)))
    assert lines == [2, 3, 4]


def test_csv_of_further_fits_and_further_numbers(tmp_path):
    path = tmp_path / "log.csv"
    trainer = feeding([0.5, 0.25], CSVLogger(path))
    trainer.fit(X, Y, verbose=0)
    run(trainer, 1)
    trainer.fit(X, Y, verbose=0)
    rows = table(path)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [row["val_loss"] for row in rows] == ["NA", "0.5", "NA"]
    assert list(rows[0]) == ["epoch", "loss", "lr", "seconds", "val_loss"]


@pytest.mark.parametrize(("append", "epochs"), [(False, ["0"]), (True, ["0", "1", "0"])])
def test_csv_appends_or_begins_anew(tmp_path, append, epochs):
    path = tmp_path / "log.csv"
    run(feeding([1.0, 2.0], CSVLogger(path)))
    run(feeding([3.0], CSVLogger(path, append=append)))
    assert [row["epoch"] for row in table(path)] == epochs
    assert table(path)[-1]["val_loss"] == "3.0"


def test_csv_logger_for_another_trainer_begins_anew(tmp_path):
    log = CSVLogger(tmp_path / "log.csv")
    run(feeding([1.0, 2.0], log))
    run(feeding([3.0], log))
    assert [row["val_loss"] for row in table(tmp_path / "log.csv")] == ["3.0"]


def test_csv_of_a_training_that_goes_on_after_an_older_one(tmp_path):
    path = tmp_path / "log.csv"
    run(feeding([9.0] * 4, CSVLogger(path)))
    first = feeding([1.0, 2.0, 3.0], CSVLogger(path, append=True))
    run(first, 1)
    state = first.state_dict()
    run(first, 2)  # what a crash has undone
    second = feeding([4.0, 5.0], CSVLogger(path, append=True))
    second.load_state_dict(state)
    run(second, 2)
    assert [row["epoch"] for row in table(path)] == ["0", "1", "2", "3", "0", "1", "2"]
    assert [row["val_loss"] for row in table(path)[4:]] == ["1.0", "4.0", "5.0"]


def test_csv_refuses(tmp_path):
    with pytest.raises(ValueError, match="separator: expected one character, got ', '"):
        CSVLogger("log.csv", separator=", ")
    (tmp_path / "other.csv").write_text("name,age\n")
    for made, error in (
        (CSVLogger(tmp_path / "no" / "log.csv"), FileNotFoundError),
        (CSVLogger(tmp_path / "other.csv", append=True), ValueError),
    ):
        trainer = feeding([1.0], made)
        with pytest.raises(error, match="filename: "):
            run(trainer)
        assert trainer.net.weight == 0.0
    assert (tmp_path / "other.csv").read_text() == "name,age\n"


# --- TerminateOnNaN ----------------------------------------------------------------------------


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


# --- SwapEMAWeights ----------------------------------------------------------------------------


def averages(steps, ema=0.5):
    """The average of the weights 0, 1, 2, ... after so many steps."""
    average = 0.0
    for weight in range(1, steps + 1):
        average = ema * average + (1.0 - ema) * weight
    return average


def test_evaluation_and_end_see_the_averages():
    trained = []
    look = LambdaCallback(
        on_train_batch_end=lambda batch, logs: trained.append(trainer.net.weight),
        on_epoch_end=lambda epoch, logs: trained.append(trainer.net.weight),
    )
    trainer = feeding([1.0] * 3, SwapEMAWeights(), look, ema=0.5)
    run(trainer)
    assert trainer.net.evaluated == [averages(1), averages(2), averages(3)]
    assert trained == [1, 1, 2, 2, 3, 3]
    assert trainer.net.weight == averages(3) == trainer.opt.ema[0][0][0]
    run(trainer, 0)
    assert trainer.net.weight == averages(3)


def test_averages_at_the_end_of_an_epoch(tmp_path):
    made = [
        SwapEMAWeights(swap_on_epoch=True),
        EarlyStopping(patience=2, restore_best_weights=True),
        ModelCheckpoint(tmp_path / "best.npz", save_best_only=True, save_weights_only=True),
    ]
    trainer = feeding([3.0, 1.0, 2.0, 2.0], *made, ema=0.5)
    trainer.callbacks.append(
        LambdaCallback(on_train_batch_begin=lambda batch, logs: before.append(trainer.net.weight))
    )
    before = []
    assert run(trainer).stopped_by == "EarlyStopping"
    assert before == [0, 1, 2, 3]
    assert weights(tmp_path / "best.npz") == averages(2)
    assert trainer.net.weight == averages(2)
    assert trainer.opt.ema[0][0][0] == averages(4)


def test_a_schedule_free_rule_is_evaluated_at_its_average():
    """At the end it goes on from there."""
    net = CountingNet([1.0] * 3)
    opt = fastopt.SGDScheduleFree(net.params, lr=1.0)
    path = []

    def look(batch, logs):
        with opt.averaged():
            path.append(net.weight)

    trainer = Trainer(net, opt, [LambdaCallback(on_train_batch_end=look), SwapEMAWeights()])
    run(trainer)
    assert net.evaluated == path and net.weight == path[-1] == opt.state[0]["z"][0]
    opt.step([[-np.ones(1)], []])
    assert path[-1] < net.weight < opt.state[0]["z"][0] == path[-1] + 1.0


@pytest.mark.parametrize("hook", ["on_test_begin", "on_test_end", "on_epoch_end", "on_train_end"])
@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_an_error_leaves_the_weights(hook, swap_on_epoch):
    def fail(*args):
        raise RuntimeError("out of luck")

    failing = LambdaCallback(**{hook: fail})
    swap = SwapEMAWeights(swap_on_epoch)
    made = [swap, failing] if hook != "on_train_end" else [failing, swap]
    trainer = feeding([1.0], *made, ema=0.5)
    with pytest.raises(RuntimeError, match="out of luck"):
        run(trainer)
    assert trainer.net.weight == 1.0
    trainer.opt.step([[-np.ones(1)], []])  # refused while the averages are in the net
    assert trainer.net.weight == 2.0


def test_interrupting_the_evaluation_ends_with_the_averages():
    class Net(CountingNet):
        def evaluate(self, X, y):
            raise KeyboardInterrupt

    net = Net([1.0])
    trainer = Trainer(net, fastopt.SGD(net.params, lr=1.0, ema=0.5), [SwapEMAWeights()])
    assert run(trainer).stopped_by == "interrupt"
    assert net.weight == averages(1)
    trainer.opt.step([[-np.ones(1)], []])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([EarlyStopping(restore_best_weights=True), SwapEMAWeights(True)], "EarlyStopping would monitor"),
        ([SwapEMAWeights(), EarlyStopping(restore_best_weights=True)], "EarlyStopping would monitor"),
        ([SwapEMAWeights(), ModelCheckpoint("w", save_best_only=True)], "ModelCheckpoint would monitor"),
    ],
)
def test_nobody_keeps_other_weights_than_were_watched(made, message):
    trainer = feeding([1.0], *made, ema=0.5)
    trainer.net.save = lambda path: None
    with pytest.raises(ValueError, match=message):
        run(trainer)
    assert trainer.net.weight == 0.0


def test_no_averages():
    with pytest.raises(ValueError, match=r"the optimizer keeps no averages; create it with ema=0\.999"):
        run(feeding([1.0], SwapEMAWeights()))


# --- BackupAndRestore, and the trainer's state -------------------------------------------------


def resumable(folder, *further, seed=0, **net_options):
    """A training with all that has a state."""
    net = MLP([64, 16, 10], seed=seed, dtype="float32", **net_options)
    beta = schedules.ReduceOnPlateau(0.9, mode="max", factor=0.9, patience=1)
    opt = fastopt.Adam(net.params, lr=0.02, ema=0.9, betas=(beta, 0.99))
    made = [
        SwapEMAWeights(swap_on_epoch=True),
        ReduceLROnPlateau(factor=0.5, patience=1, cooldown=1),
        EarlyStopping(patience=4, restore_best_weights=True),
        CSVLogger(folder / "log.csv"),
        *further,
        BackupAndRestore(folder / "backup"),
    ]
    return Trainer(net, opt, made, max_norm=1.0)


def all_but_seconds(history):
    return {name: values for name, values in history.history.items() if name != "seconds"}


class Crash(Callback):
    """Fails at a hook of an epoch, if there is one."""

    def __init__(self, hook, epoch):
        self.epoch = epoch
        setattr(self, hook, self.fail)

    def fail(self, *args):
        if len(self.trainer.history.epoch) == self.epoch:
            raise RuntimeError("crash")


@pytest.mark.parametrize(
    ("hook", "epoch"),
    [("on_epoch_begin", 3), ("on_train_batch_end", 5), ("on_test_end", 1), ("on_epoch_end", 4)],
)
@pytest.mark.parametrize("options", [{}, {"norm": "batch", "dropout": 0.2}], ids=["plain", "norm"])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, digits, hook, epoch, options):
    X, y, test = digits
    fit = {"X": X, "y": y, "epochs": 8, "validation_data": test, "verbose": 0, "seed": 3}
    (tmp_path / "whole").mkdir()
    expected = resumable(tmp_path / "whole", Crash(hook, 99), **options)
    expected.fit(**fit)

    with pytest.raises(RuntimeError, match="crash"):
        resumable(tmp_path, Crash(hook, epoch), **options).fit(**fit)
    kept = tmp_path / "backup" / "backup.npz"
    assert kept.exists() == (hook != "on_epoch_end" or epoch > 1)
    resumed = resumable(tmp_path, Crash(hook, 99), seed=9, **options)
    history = resumed.fit(**fit)

    assert history.epoch == expected.history.epoch
    assert all_but_seconds(history) == all_but_seconds(expected.history)
    assert history.stopped_by == expected.history.stopped_by
    mine, others = resumed.net.state_dict(), expected.net.state_dict()
    assert mine.keys() == others.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], others[name])
    assert resumed.opt.steps == expected.opt.steps
    assert [int(row["epoch"]) for row in table(tmp_path / "log.csv")] == history.epoch
    assert not kept.exists()


@pytest.mark.parametrize(
    ("end", "stays"), [("all", False), ("callback", False), ("interrupt", True), ("max_time", True)]
)
def test_the_backup_of_a_training_that_is_over_is_deleted(tmp_path, end, stays):
    def act(epoch, logs):
        if end == "callback":
            trainer.stop_training = True
        if end == "interrupt" and epoch == 1:
            raise KeyboardInterrupt

    def work(tmp_path, **options):
        net = CountingNet([1.0] * 9)
        backup = BackupAndRestore(tmp_path, **options)
        return Trainer(net, fastopt.SGD(net.params), [LambdaCallback(on_epoch_begin=act), backup])

    trainer = work(tmp_path)
    run(trainer, 3, max_time=1e-9 if end == "max_time" else None)
    assert (tmp_path / "backup.npz").exists() == stays
    trainer = work(tmp_path / "kept", delete_checkpoint=False)
    run(trainer, 3, max_time=1e-9 if end == "max_time" else None)
    assert (tmp_path / "kept" / "backup.npz").exists()


def test_a_trainer_that_has_trained_is_not_set_back(tmp_path):
    trainer = feeding([1.0] * 9, BackupAndRestore(tmp_path, delete_checkpoint=False))
    run(trainer, 2)
    backup = (tmp_path / "backup.npz").read_bytes()
    run(trainer, 1)
    (tmp_path / "backup.npz").write_bytes(backup)
    assert run(trainer, 1).epoch == [0, 1, 2, 3] and trainer.net.weight == 4


def test_backup_refuses(tmp_path):
    with pytest.raises(ValueError, match="BackupAndRestore: it must be the last of the callbacks"):
        run(feeding([1.0], BackupAndRestore(tmp_path), TerminateOnNaN()))
    (tmp_path / "backup.npz").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"backup\.npz: damaged, or not an \.npz file"):
        run(feeding([1.0], BackupAndRestore(tmp_path)))
    np.savez(tmp_path / "backup.npz", X=X)
    with pytest.raises(ValueError, match=r"backup\.npz: not a saved training state"):
        run(feeding([1.0], BackupAndRestore(tmp_path)))


def trained(*made, opt=fastopt.Adam, sizes=(64, 8, 10), **options):
    X, y = load_digits()
    net = MLP(sizes, seed=0)
    trainer = Trainer(net, opt(net.params, **options), made)
    trainer.fit(X[:100], y[:100], epochs=2, verbose=0, seed=0)
    return trainer


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"sizes": (64, 9, 10)}, "W1"),
        ({"opt": fastopt.SGD}, "expected one of SGD, got one of Adam"),
        ({"made": [CSVLogger("log.csv")]}, r"that of the callbacks \['CSVLogger'\], got .* \['EarlyS"),
        ({"made": [TerminateOnNaN()]}, r"that of the callbacks \[\], got that of \['EarlyStopping'\]"),
    ],
)
def test_the_state_of_another_training_is_refused_and_changes_nothing(
    other, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    state = trained(EarlyStopping("loss", patience=1)).state_dict()
    other = {"made": [EarlyStopping("loss", patience=9)], **other}
    trainer = trained(*other.pop("made"), **other)
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(ValueError, match=message):
        trainer.load_state_dict(state)
    same(trainer.state_dict(), before)


def test_callbacks_without_a_state_may_differ():
    stop = EarlyStopping("loss", patience=1)
    state = trained(TerminateOnNaN(), stop).state_dict()
    other = EarlyStopping("loss", patience=1)
    trainer = trained(other, LambdaCallback())
    trainer.load_state_dict(state)
    assert other.state_dict() == stop.state_dict()


@pytest.mark.parametrize("state", [None, {}, {"net": {}}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ValueError, match="state: expected a dict with the keys callbacks, epoch, his"):
        trained().load_state_dict(state)


def test_a_damaged_callback_state_is_refused_and_changes_nothing():
    trainer = trained(EarlyStopping("loss", patience=1))
    state = trainer.state_dict()
    X, y = load_digits()
    trainer.fit(X[:100], y[:100], verbose=0)
    before = copy.deepcopy(trainer.state_dict())
    state["callbacks"][0][1].pop("wait")
    with pytest.raises(ValueError, match="state of EarlyStopping: expected the keys"):
        trainer.load_state_dict(state)
    same(trainer.state_dict(), before)


def same(a, b):
    """Assert that two nestings are equal, arrays and NaN included."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b or (a != a and b != b)


def test_an_optimizer_without_a_state():
    class Descent:
        def step(self, grads):
            pass

    with pytest.raises(TypeError, match="opt: expected an object with 'state_dict', got Descent"):
        Trainer(CountingNet(), Descent()).state_dict()


def test_trees_come_back(tmp_path):
    tree = {
        "array": np.arange(3, dtype=np.float32),
        "dict": {"array": [1, 2.5, None, True, "x", math.inf, 2**100], "": np.zeros((0, 2))},
        "numbers": (np.float64(0.1), np.int64(7)),
    }
    save_tree(tmp_path / "tree", tree)
    back = load_tree(tmp_path / "tree")
    assert back.pop("numbers") == [0.1, 7]
    tree.pop("numbers")
    same(back, tree)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


# --- Copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
@pytest.mark.parametrize(
    "made",
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
    ids=lambda made: type(made).__name__,
)
def test_callbacks_can_be_copied(made, clone):
    assert vars(clone(made)).keys() == vars(made).keys()


def test_a_pickled_trainer_goes_on(digits):
    X, y, test = digits
    fit = {"X": X, "y": y, "validation_data": test, "verbose": 0, "seed": 1}
    net = MLP([64, 16, 10], seed=0)
    made = [ReduceLROnPlateau(patience=1, factor=0.5), EarlyStopping(patience=5)]
    trainer = Trainer(net, fastopt.Adam(net.params, lr=0.1), made)
    trainer.fit(epochs=3, **fit)
    other = pickle.loads(pickle.dumps(trainer))
    expected = all_but_seconds(trainer.fit(epochs=3, **fit))
    assert all_but_seconds(other.fit(epochs=3, **fit)) == expected
    assert expected["lr"][-1] < 0.1
