"""fastopt.Trainer: learning, batches, history, hooks and schedules."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_helpers import Recorder, RecordingNet, digits_trainer, flat, rows, split_digits

import fastopt
from fastopt import schedules
from fastopt.nn import MLP, History, Trainer

# --- Learning --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opt", "options"),
    [
        (fastopt.SGD, {"lr": 0.1, "momentum": 0.9}),
        (fastopt.Adagrad, {"lr": 0.05}),
        (fastopt.RMSprop, {"lr": 0.003}),
        (fastopt.Adam, {"lr": 0.005}),
        (fastopt.AdamW, {"lr": 0.005}),
    ],
)
def test_learns_digits(opt, options):
    X, y, test = split_digits()
    trainer = digits_trainer(opt, **options)
    history = trainer.fit(X, y, epochs=8, validation_data=test, verbose=0, seed=0).history
    assert history["val_accuracy"][-1] > 0.95
    assert history["accuracy"][-1] > 0.97
    assert history["loss"][-1] < 0.2 * history["loss"][0]
    assert history["val_loss"][-1] == trainer.net.evaluate(*test)


def test_learns_a_regression():
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (512, 1))
    y = np.sin(2 * X[:, 0])
    net = MLP([1, 32, 1], activation="tanh", seed=0)
    trainer = Trainer(net, fastopt.Adam(net.params, lr=0.02))
    history = trainer.fit(X, y, epochs=60, validation_data=(X[:50], y[:50]), verbose=0, seed=0)
    assert history.history["val_loss"][-1] < 0.01
    assert "accuracy" not in history.history and "val_accuracy" not in history.history


# --- Batches ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 30), batch_size=st.integers(1, 40), shuffle=st.booleans())
def test_every_sample_is_used_once_per_epoch(n, batch_size, shuffle):
    X, y = rows(n)
    net = RecordingNet()
    trainer = Trainer(net, fastopt.SGD(net.params))
    trainer.fit(X, y, batch_size, epochs=2, verbose=0, shuffle=shuffle, seed=1)
    sizes = [len(b) for b, _ in net.batches]
    expected = [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)
    assert sizes == expected * 2
    for epoch in np.array_split(np.arange(len(sizes)), 2):
        seen = np.concatenate([net.batches[i][0] for i in epoch])
        labels = np.concatenate([net.batches[i][1] for i in epoch])
        np.testing.assert_array_equal(seen[:, 1], labels)
        order = np.argsort(labels) if shuffle else slice(None)
        np.testing.assert_array_equal(seen[order], X)


def test_samples_are_reshuffled_each_epoch():
    net = RecordingNet()
    Trainer(net, fastopt.SGD(net.params)).fit(*rows(50), 50, epochs=3, verbose=0, seed=0)
    orders = [tuple(y) for _, y in net.batches]
    assert len(set(orders)) == 3 and tuple(range(50)) not in orders


@pytest.mark.parametrize("shape", [(7,), (7, 2), (7, 3, 4), (7, 2, 2, 2)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "<U3", bool])
def test_samples_of_any_rank_and_dtype(shape, dtype):
    X = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    net = RecordingNet()
    net.predict = lambda X: np.zeros(len(X))
    trainer = Trainer(net, fastopt.SGD(net.params))
    trainer.fit(X, np.arange(7), 3, verbose=0, seed=0)
    seen = np.concatenate([b for b, _ in net.batches])
    labels = np.concatenate([y for _, y in net.batches])
    assert seen.dtype == X.dtype
    np.testing.assert_array_equal(seen[np.argsort(labels)], X)


def test_batches_reuse_one_buffer():
    addresses = set()

    class Net(RecordingNet):
        def train_step(self, X, y):
            addresses.add((X.ctypes.data, y.ctypes.data))
            return super().train_step(X, y)

    net = Net()
    Trainer(net, fastopt.SGD(net.params)).fit(*rows(50), 8, epochs=3, verbose=0)
    assert len(addresses) == 1


def test_batches_in_order_are_not_copied():
    X, y = rows(20)

    class Net(RecordingNet):
        def train_step(self, X_batch, y_batch):
            assert np.shares_memory(X_batch, X) and np.shares_memory(y_batch, y)
            return super().train_step(X_batch, y_batch)

    net = Net()
    Trainer(net, fastopt.SGD(net.params)).fit(X, y, 8, verbose=0, shuffle=False)
    assert len(net.batches) == 3


# --- Order of gradients ----------------------------------------------------------------------


@pytest.mark.parametrize("flag", [None, True, False])
def test_gradients_are_reversed_unless_grads_reversed_is_false(flag):
    class Net(RecordingNet):
        def train_step(self, X, y):
            loss, grads = super().train_step(X, y)
            return loss, grads if flag in (None, True) else grads[::-1]

    net = Net()
    if flag is not None:
        net.grads_reversed = flag
    Trainer(net, fastopt.SGD(net.params, lr=1.0)).fit(*rows(4), 4, verbose=0)
    assert (net.params[0][0] == -1).all() and net.params[1] == []
    assert all((p == -3).all() for p in net.params[2])


# --- History, and further fits ---------------------------------------------------------------


def test_history_of_a_minimal_model():
    net = RecordingNet()
    X, y = rows(10)
    trainer = Trainer(net, fastopt.SGD(net.params, lr=0.25))
    history = trainer.fit(X, y, 4, epochs=2, validation_data=(X, y[::-1]), verbose=0)
    assert isinstance(history, History) and history is trainer.history
    assert history.epoch == [0, 1]
    # Losses 1, 2, 3 of 4, 4 and 2 samples, then 4, 5, 6.
    assert history.history["loss"] == pytest.approx([1.8, 4.8])
    assert history.history["accuracy"] == [1.0, 1.0]
    assert history.history["val_accuracy"] == [0.0, 0.0]
    assert history.history["lr"] == [0.25, 0.25]
    assert all(s > 0 for s in history.history["seconds"])
    assert "val_loss" not in history.history  # the model has no evaluate
    assert history.interrupted is False


def test_two_fits_equal_one():
    X, y, test = split_digits()
    once, twice = digits_trainer(), digits_trainer()
    once.fit(X, y, epochs=4, validation_data=test, verbose=0, seed=7)
    twice.fit(X, y, epochs=1, validation_data=test, verbose=0, seed=7)
    twice.fit(X, y, epochs=2, validation_data=test, verbose=0, seed=7)
    twice.fit(X, y, epochs=1, validation_data=test, verbose=0)
    for p, q in zip(flat(once.net.params), flat(twice.net.params), strict=True):
        np.testing.assert_array_equal(p, q)
    assert twice.history.epoch == [0, 1, 2, 3]
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "lr"):
        assert once.history.history[name] == twice.history.history[name]


def test_a_different_seed_restarts_the_shuffling():
    def orders(*seeds):
        net = RecordingNet()
        trainer = Trainer(net, fastopt.SGD(net.params))
        for seed in seeds:
            trainer.fit(*rows(20), 20, verbose=0, seed=seed)
        return [tuple(y) for _, y in net.batches]

    assert orders(1) == orders(1) != orders(2)
    assert orders(1, 2)[1] == orders(2)[0]


def test_history_pads_missing_metrics_with_nan():
    net = RecordingNet()
    X, y = rows(6)
    trainer = Trainer(net, fastopt.SGD(net.params))
    trainer.fit(X, y, verbose=0, training_accuracy=False)
    trainer.fit(X, y, verbose=0, validation_data=(X, y))
    history = trainer.fit(X, y, verbose=0).history
    np.testing.assert_array_equal(history["accuracy"], [np.nan, 1, 1])
    np.testing.assert_array_equal(history["val_accuracy"], [np.nan, 1, np.nan])
    assert {len(values) for values in history.values()} == {3}


def test_zero_epochs():
    net = RecordingNet()
    recorder = Recorder()
    history = Trainer(net, fastopt.SGD(net.params), [recorder]).fit(*rows(3), epochs=0)
    assert history.epoch == [] and history.history == {} and not net.batches
    assert recorder.events == [("train_begin", {}), ("train_end", {})]


def test_recorded_learning_rate_of_a_schedule_is_that_of_the_last_step():
    net = RecordingNet()
    opt = fastopt.SGD(net.params, lr=lambda step: 1.0 / (step + 1))
    history = Trainer(net, opt).fit(*rows(10), 5, epochs=3, verbose=0)
    assert history.history["lr"] == [1 / 2, 1 / 4, 1 / 6]


def test_an_optimizer_needs_only_step():
    class Descent:
        def step(self, grads):
            self.last = grads

    net = RecordingNet()
    opt = Descent()
    history = Trainer(net, opt).fit(*rows(4), verbose=0)
    assert opt.last[1] == [] and len(opt.last[2]) == 2
    assert "lr" not in history.history


@pytest.mark.parametrize("labels", [np.array(["a", "b"] * 4), np.eye(8, dtype=int)])
def test_accuracy_of_labels_of_any_kind(labels):
    net = RecordingNet()
    net.predict = lambda X: labels[: len(X)]
    history = Trainer(net, fastopt.SGD(net.params)).fit(np.zeros((8, 2)), labels, verbose=0)
    assert history.history["accuracy"] == [1.0]


def test_accuracy_of_labels_in_a_column():
    X = np.linspace(-1, 1, 40)[:, None]
    y = (X > 0).astype(int)
    net = MLP([1, 1], seed=0)
    trainer = Trainer(net, fastopt.Adam(net.params, lr=0.3))
    history = trainer.fit(X, y, epochs=20, validation_data=(X, y), verbose=0, seed=0)
    assert net.loss == "binary_cross_entropy" and history.history["accuracy"][-1] > 0.9


# --- Callbacks -------------------------------------------------------------------------------


def test_order_of_hooks():
    net = RecordingNet()
    recorder = Recorder()
    trainer = Trainer(net, fastopt.SGD(net.params), [recorder])
    X, y = rows(4)
    trainer.fit(X, y, 2, epochs=1, verbose=0)
    trainer.fit(X, y, 2, epochs=1, verbose=0, validation_data=(X, y))
    names = ["train_begin", "epoch_begin", "batch_end", "batch_end", "epoch_end", "train_end"]
    assert [event[0] for event in recorder.events] == names * 2
    assert recorder.events[1] == ("epoch_begin", 0) and recorder.events[7] == ("epoch_begin", 1)
    assert recorder.events[2:4] == [("batch_end", 0, 1.0), ("batch_end", 1, 2.0)]
    _, epoch, logs = recorder.events[10]
    assert epoch == 1 and logs.keys() == {"loss", "accuracy", "val_accuracy", "lr", "seconds"}
    assert recorder.trainer is trainer


# --- Reports to schedules --------------------------------------------------------------------


class RecordingSchedule:
    """A schedule that records its reports."""

    def __init__(self, value=0.1):
        self.value = value
        self.reports = []

    def __call__(self, step):
        return self.value

    def report(self, value):
        self.reports.append(value)


def test_schedules_receive_the_validation_loss_or_else_the_training_loss():
    X, y, test = split_digits()
    lr, beta = RecordingSchedule(0.001), RecordingSchedule(0.9)
    trainer = digits_trainer(lr=lr, betas=(beta, 0.999))
    history = trainer.fit(X, y, epochs=2, validation_data=test, verbose=0).history
    assert lr.reports == beta.reports == history["val_loss"]
    trainer.fit(X, y, epochs=1, verbose=0)
    assert lr.reports[2:] == history["loss"][2:]


def test_a_shared_schedule_receives_one_report_per_epoch():
    net = RecordingNet()
    shared = RecordingSchedule(0.5)
    opt = fastopt.SGD(net.params, lr=shared, momentum=shared)
    Trainer(net, opt).fit(*rows(4), epochs=3, verbose=0)
    assert len(shared.reports) == 3


def test_reduce_on_plateau_schedule_reduces_the_rate():
    net = RecordingNet()  # whose loss increases
    opt = fastopt.SGD(net.params, lr=schedules.ReduceOnPlateau(0.8, factor=0.5, patience=0))
    history = Trainer(net, opt).fit(*rows(4), epochs=4, verbose=0)
    assert history.history["lr"] == [0.8, 0.8, 0.4, 0.2]


# --- validation_split ----------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, np.arange(1.0, 11.0)], ids=["plain", "weights"])
def test_validation_split_takes_the_last_samples(weights):
    X, y = np.random.default_rng(0).normal(size=(10, 2)), np.arange(10) % 2
    parts = [None if array is None else (array[:8], array[8:]) for array in (X, y, weights)]
    validation = (parts[0][1], parts[1][1]) if weights is None else tuple(part[1] for part in parts)
    results = []
    for options in (
        {"X": X, "y": y, "sample_weight": weights, "validation_split": 0.25},
        {
            "X": parts[0][0], "y": parts[1][0], "sample_weight": None if weights is None else parts[2][0],
            "validation_data": validation,
        },
    ):
        net = MLP([2, 4, 2], seed=0)
        trainer = Trainer(net, fastopt.Adam(net.params))
        results.append(trainer.fit(batch_size=4, epochs=2, verbose=0, seed=0, **options).history)
    for name in ("loss", "val_loss", "val_accuracy"):
        assert results[0][name] == results[1][name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_split": 1.0}, "validation_split: expected a finite number in"),
        ({"validation_split": -0.1}, "validation_split: expected a finite number in"),
        ({"validation_split": 0.05}, "validation_split: 0.05 of 10 samples leaves one part empty"),
        (
            {"validation_split": 0.5, "validation_data": (np.zeros((2, 2)), np.zeros(2, int))},
            "validation_split: expected either this or validation_data, got both",
        ),
    ],
)
def test_invalid_validation_split(options, message):
    net = MLP([2, 2], seed=0)
    with pytest.raises(ValueError, match=message):
        Trainer(net, fastopt.Adam(net.params)).fit(np.zeros((10, 2)), np.arange(10) % 2, verbose=0, **options)
