"""fastopt.Trainer: the loop, its history, what it prints, Ctrl-C, callbacks and schedules."""

import io
import math
import re
import signal
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt import schedules
from fastopt.callbacks import Callback
from fastopt.nn import MLP, History, Trainer, data
from fastopt.nn.weighting import combined_weights


class RecordingNet:
    """The article's protocol at its barest: remembers its batches, predicts the last column."""

    def __init__(self):
        self.params = [[np.zeros(2)], [], [np.zeros((1, 3)), np.zeros(3)]]
        self.batches = []

    def train_step(self, X, y):
        self.batches.append((X.copy(), y.copy()))
        grads = [[np.full(p.shape, i + 1.0) for p in layer] for i, layer in enumerate(self.params)]
        return np.float64(len(self.batches)), grads[::-1]

    def predict(self, X):
        return X.reshape(len(X), -1)[:, -1].astype(int)


class Recorder(Callback):
    """Writes down every hook it is called at."""

    def __init__(self):
        self.events = []

    def on_train_begin(self, logs):
        self.events.append(("train_begin", dict(logs)))

    def on_epoch_begin(self, epoch, logs):
        self.events.append(("epoch_begin", epoch))

    def on_train_batch_end(self, batch, logs):
        self.events.append(("batch_end", batch, logs["loss"]))

    def on_epoch_end(self, epoch, logs):
        self.events.append(("epoch_end", epoch, dict(logs)))

    def on_train_end(self, logs):
        self.events.append(("train_end", dict(logs)))


class Interrupt(Callback):
    """Presses Ctrl-C after a number of batches."""

    def __init__(self, batches):
        self.left = batches

    def on_train_batch_end(self, batch, logs):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def flat(layers):
    return [array for layer in layers for array in layer]


def rows(n):
    """Return n rows that can be told apart, their last column also being their label."""
    X = np.stack([np.arange(n) + 0.5, np.arange(n)], axis=1)
    return X, np.arange(n)


def digits_trainer(opt=fastopt.Adam, callbacks=(), loss="auto", **options):
    net = MLP([64, 32, 10], seed=0, loss=loss)
    return Trainer(net, opt(net.params, **options), callbacks)


@pytest.fixture(scope="module")
def digits():
    X_train, X_test, y_train, y_test = data.train_test_split(*data.load_digits())
    return X_train, y_train, (X_test, y_test)


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
def test_learns_digits(digits, opt, options):
    X, y, test = digits
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
def test_every_row_comes_once_an_epoch(n, batch_size, shuffle):
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


def test_rows_are_shuffled_anew_each_epoch():
    net = RecordingNet()
    Trainer(net, fastopt.SGD(net.params)).fit(*rows(50), 50, epochs=3, verbose=0, seed=0)
    orders = [tuple(y) for _, y in net.batches]
    assert len(set(orders)) == 3 and tuple(range(50)) not in orders


@pytest.mark.parametrize("shape", [(7,), (7, 2), (7, 3, 4), (7, 2, 2, 2)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "<U3", bool])
def test_rows_of_any_rank_and_type(shape, dtype):
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


# --- Gradients' order ------------------------------------------------------------------------


@pytest.mark.parametrize("flag", [None, True, False])
def test_gradients_are_reversed_unless_the_net_says_otherwise(flag):
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


# --- History, and going on -------------------------------------------------------------------


def test_history_of_a_plain_net():
    net = RecordingNet()
    X, y = rows(10)
    trainer = Trainer(net, fastopt.SGD(net.params, lr=0.25))
    history = trainer.fit(X, y, 4, epochs=2, validation_data=(X, y[::-1]), verbose=0)
    assert isinstance(history, History) and history is trainer.history
    assert history.epoch == [0, 1]
    # Losses 1, 2, 3 of 4, 4 and 2 rows, then 4, 5, 6.
    assert history.history["loss"] == pytest.approx([1.8, 4.8])
    assert history.history["accuracy"] == [1.0, 1.0]
    assert history.history["val_accuracy"] == [0.0, 0.0]
    assert history.history["lr"] == [0.25, 0.25]
    assert all(s > 0 for s in history.history["seconds"])
    assert "val_loss" not in history.history  # the protocol has no loss without gradients
    assert history.interrupted is False


def test_two_fits_are_one(digits):
    X, y, test = digits
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


def test_another_seed_shuffles_anew():
    def orders(*seeds):
        net = RecordingNet()
        trainer = Trainer(net, fastopt.SGD(net.params))
        for seed in seeds:
            trainer.fit(*rows(20), 20, verbose=0, seed=seed)
        return [tuple(y) for _, y in net.batches]

    assert orders(1) == orders(1) != orders(2)
    assert orders(1, 2)[1] == orders(2)[0]


def test_history_pads_what_an_epoch_did_not_have():
    net = RecordingNet()
    X, y = rows(6)
    trainer = Trainer(net, fastopt.SGD(net.params))
    trainer.fit(X, y, verbose=0, training_accuracy=False)
    trainer.fit(X, y, verbose=0, validation_data=(X, y))
    history = trainer.fit(X, y, verbose=0).history
    np.testing.assert_array_equal(history["accuracy"], [np.nan, 1, 1])
    np.testing.assert_array_equal(history["val_accuracy"], [np.nan, 1, np.nan])
    assert {len(values) for values in history.values()} == {3}


def test_no_epochs():
    net = RecordingNet()
    recorder = Recorder()
    history = Trainer(net, fastopt.SGD(net.params), [recorder]).fit(*rows(3), epochs=0)
    assert history.epoch == [] and history.history == {} and not net.batches
    assert recorder.events == [("train_begin", {}), ("train_end", {})]


def test_learning_rate_of_a_schedule_is_that_of_the_last_step():
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


# --- What is printed -------------------------------------------------------------------------


def test_nothing_is_printed_when_not_verbose(capsys):
    net = RecordingNet()
    X, y = rows(8)
    trainer = Trainer(net, fastopt.SGD(net.params), [Interrupt(5)])
    trainer.fit(X, y, 2, epochs=3, validation_data=(X, y), verbose=0)
    assert capsys.readouterr() == ("", "")


def test_lines_are_the_articles(capsys):
    net = RecordingNet()
    X, y = rows(8)
    trainer = Trainer(net, fastopt.SGD(net.params))
    trainer.fit(X, y, 8, validation_data=(X, y[::-1]))
    trainer.fit(X, y, 8)
    trainer.fit(X, y, 8, training_accuracy=False)
    out, err = capsys.readouterr()
    assert out == (
        "Epoch 1\nLoss = 1.0000 | Training Accuracy = 1.0000 | Test Accuracy = 0.0000\n"
        "Epoch 2\nLoss = 2.0000 | Training Accuracy = 1.0000\n"
        "Epoch 3\nLoss = 3.0000\n"
    )
    assert err == ""


def test_lines_of_a_regression_have_losses_alone(capsys):
    X = np.linspace(0, 1, 8)[:, None]
    net = MLP([1, 1], seed=0)
    Trainer(net, fastopt.SGD(net.params)).fit(X, X, validation_data=(X, X))
    Trainer(net, fastopt.SGD(net.params)).fit(X, X)
    out = capsys.readouterr().out
    assert re.fullmatch(
        r"Epoch 1\nLoss = \d\.\d{4} \| Test Loss = \d\.\d{4}\nEpoch 1\nLoss = \d\.\d{4}\n", out
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fit_on_a_terminal(monkeypatch, *callbacks, **options):
    """Return what a fit of two epochs writes to standard output and to standard error."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    net = RecordingNet()
    Trainer(net, fastopt.SGD(net.params), callbacks).fit(*rows(8), 1, epochs=2, **options)
    return sys.stdout.getvalue(), sys.stderr.getvalue()


LINES = (
    "Epoch 1\nLoss = 4.5000 | Training Accuracy = 1.0000\n"
    "Epoch 2\nLoss = 12.5000 | Training Accuracy = 1.0000\n"
)


def test_a_terminal_shows_one_progress_bar_over_all_epochs(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("fastopt.nn.progress._SECONDS", 0.0)  # look after every batch
    out, shown = fit_on_a_terminal(monkeypatch)
    assert out == LINES
    frames = [frame.strip() for frame in shown.split("\r") if "%" in frame]
    # The bar, time so far and time left, the mean loss so far, the rate.
    assert re.fullmatch(
        r"Epoch 1/2 +19%\|.*\| 00:00<\d\d:\d\d, loss=2\.0000, lr=0\.001",
        next(frame for frame in frames if "19%" in frame),
    )
    assert any(frame.startswith("Epoch 2/2 100%") and "loss=12.5000" in frame for frame in frames)
    assert shown.endswith("\r") and not shown.split("\r")[-2].strip()  # it is gone at the end


def test_what_callbacks_say_stands_above_the_bar(monkeypatch):
    tqdm = pytest.importorskip("tqdm").tqdm
    monkeypatch.setattr("fastopt.nn.progress._SECONDS", 0.0)
    cleared = []
    clear = tqdm.clear
    monkeypatch.setattr(tqdm, "clear", lambda *args, **kwargs: cleared.append(clear(*args, **kwargs)))

    class Say(Callback):
        def on_epoch_end(self, epoch, logs):
            before = len(cleared)
            self.trainer.write(f"said {epoch}")
            assert len(cleared) > before

    out, _ = fit_on_a_terminal(monkeypatch, Say())
    first, second = LINES.split("Epoch 2")
    assert out == f"{first}said 0\nEpoch 2{second}said 1\n"


def test_lines_alone(monkeypatch):
    assert fit_on_a_terminal(monkeypatch, verbose=2) == (LINES, "")
    assert fit_on_a_terminal(monkeypatch, verbose=0) == ("", "")


def test_a_terminal_without_tqdm_shows_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert fit_on_a_terminal(monkeypatch) == (LINES, "")


# --- Ctrl-C and stopping ---------------------------------------------------------------------


@pytest.mark.parametrize("where", ["callback", "net"])
def test_interruption_keeps_what_is_learned(capsys, ctrl_c, where):
    class Net(RecordingNet):
        def train_step(self, X, y):
            if where == "net" and len(self.batches) == 10:
                signal.raise_signal(signal.SIGINT)
            return super().train_step(X, y)

    net = Net()
    recorder = Recorder()
    callbacks = [recorder, Interrupt(10)] if where == "callback" else [recorder]
    trainer = Trainer(net, fastopt.SGD(net.params, lr=1.0), callbacks)
    X, y = rows(8)
    history = trainer.fit(X, y, 2, epochs=5)
    assert history.interrupted is True and history.stopped_by == "interrupt"
    assert history.epoch == [0, 1]
    assert (net.params[0][0] == -10).all() and trainer.opt.steps == 10
    assert "Interrupted after 2 epochs" in capsys.readouterr().out
    assert recorder.events[-1][0] == "train_end" and recorder.events[-1][1]["loss"] == 6.5
    net.batches.clear()
    assert trainer.fit(X, y, 2, epochs=1).epoch == [0, 1, 2]
    assert history.interrupted is False


def test_other_errors_pass_through():
    class Net(RecordingNet):
        def train_step(self, X, y):
            raise RuntimeError("out of luck")

    net = Net()
    with pytest.raises(RuntimeError, match="out of luck"):
        Trainer(net, fastopt.SGD(net.params)).fit(*rows(3), verbose=0)


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_train_batch_end", "on_epoch_end"])
def test_a_callback_stops_the_training(hook):
    class Stop(Callback):
        pass

    def stop(self, number, logs):
        if len(self.trainer.net.batches) >= 5:
            self.trainer.stop_training = True

    setattr(Stop, hook, stop)
    net = RecordingNet()
    trainer = Trainer(net, fastopt.SGD(net.params), [Stop()])
    X, y = rows(8)
    history = trainer.fit(X, y, 2, epochs=9, verbose=0)
    assert (
        len(net.batches) == {"on_epoch_begin": 9, "on_train_batch_end": 5, "on_epoch_end": 8}[hook]
    )
    assert len(history.epoch) == -(-len(net.batches) // 4)
    before = len(net.batches)
    trainer.callbacks.clear()
    trainer.fit(X, y, 2, epochs=1, verbose=0)
    assert len(net.batches) == before + 4


# --- Time ------------------------------------------------------------------------------------


class Clock:
    """Time in the trainer, which passes only where a test says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("fastopt.nn.trainer.time.perf_counter", lambda: self.now)


class Waiting(Callback):
    def __init__(self, clock, batch=0.0, evaluation=0.0):
        self.clock, self.batch, self.evaluation = clock, batch, evaluation

    def on_train_batch_end(self, batch, logs):
        self.clock.now += self.batch

    def on_test_end(self, logs):
        self.clock.now += self.evaluation


@pytest.mark.parametrize(
    ("max_time", "batch", "evaluation", "batches", "epochs", "stopped_by"),
    [
        (None, 1, 0, 12, 3, None),
        (100, 1, 0, 12, 3, None),
        (6, 1, 0, 6, 2, "max_time"),  # it runs out with the sixth batch
        (5.5, 1, 0, 6, 2, "max_time"),
        (0.5, 1, 0, 1, 1, "max_time"),  # there is always one
        (4, 1, 0, 4, 1, "max_time"),  # with the last batch of an epoch
        (12, 1, 0, 12, 3, None),  # with the very last: nothing is left to stop
        (5, 1, 2, 4, 1, "max_time"),  # in the evaluation
    ],
)
def test_max_time(monkeypatch, max_time, batch, evaluation, batches, epochs, stopped_by):
    net = RecordingNet()
    waiting = Waiting(Clock(monkeypatch), batch, evaluation)
    trainer = Trainer(net, fastopt.SGD(net.params), [waiting])
    history = trainer.fit(*rows(8), 2, epochs=3, verbose=0, max_time=max_time)
    assert len(net.batches) == batches
    assert len(history.epoch) == epochs and history.stopped_by == stopped_by


def test_time_of_a_further_fit_is_its_own(monkeypatch, capsys):
    net = RecordingNet()
    trainer = Trainer(net, fastopt.SGD(net.params), [Waiting(Clock(monkeypatch), 1)])
    assert trainer.fit(*rows(8), 2, epochs=9, max_time=3).stopped_by == "max_time"
    assert capsys.readouterr().out.endswith("Stopped after 1 epoch by max_time.\n")
    assert trainer.fit(*rows(8), 2, epochs=1, max_time=5).stopped_by is None
    assert len(net.batches) == 3 + 4


def test_the_first_reason_to_stop_counts():
    class Stop(Callback):
        def on_epoch_end(self, epoch, logs):
            self.trainer.stop_training = True

    class Late(Stop):
        pass

    net = RecordingNet()
    trainer = Trainer(net, fastopt.SGD(net.params), [Callback(), Stop(), Late()])
    assert trainer.fit(*rows(8), epochs=2, verbose=0).stopped_by == "Stop"


def test_somebody_else_may_stop_it():
    class Net(RecordingNet):
        def train_step(self, X, y):
            trainer.stop_training = len(self.batches) == 5
            return super().train_step(X, y)

    net = Net()
    trainer = Trainer(net, fastopt.SGD(net.params))
    history = trainer.fit(*rows(8), 2, epochs=4, verbose=0)
    assert history.stopped_by == "stop_training" and len(net.batches) == 6


# --- Clipping --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({}, [1, 3]),
        ({"clip_value": 2.0}, [1, 2]),
        # Gradients are 2 ones and 6 threes: their norm is sqrt(56).
        ({"max_norm": 1.0}, [1 / math.sqrt(56), 3 / math.sqrt(56)]),
        ({"max_norm": 1.0, "clip_value": 0.2}, [1 / math.sqrt(56), 0.2]),
    ],
)
def test_clipping(options, moved):
    net = RecordingNet()
    opt = fastopt.SGD(net.params, lr=1.0)
    Trainer(net, opt, **options).fit(*rows(4), 4, verbose=0)
    for layer, by in zip((net.params[0], net.params[2]), moved, strict=True):
        for param in layer:
            np.testing.assert_allclose(param, -by, rtol=1e-6)
    assert opt.grad_norm == (pytest.approx(math.sqrt(56)) if "max_norm" in options else None)


# --- Weights of rows and classes -------------------------------------------------------------


class WeighingNet(RecordingNet):
    """Remembers weights, too; its loss is the weighted mean of the labels."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def train_step(self, X, y, sample_weight=None):
        self.weights.append(None if sample_weight is None else sample_weight.copy())
        return np.average(y, weights=sample_weight), super().train_step(X, y)[1]

    def evaluate(self, X, y, sample_weight=None):
        return np.average(y, weights=sample_weight)


@pytest.mark.parametrize("shuffle", [False, True])
def test_weights_go_with_their_rows(shuffle):
    net = WeighingNet()
    X, y = rows(10)
    weight = np.arange(10) / 10
    trainer = Trainer(net, fastopt.SGD(net.params))
    history = trainer.fit(
        X, y, 4, epochs=2, verbose=0, shuffle=shuffle, seed=0, sample_weight=list(weight)
    )
    for (_, labels), weights in zip(net.batches, net.weights, strict=True):
        np.testing.assert_array_equal(weights, labels / 10)
    # The mean over an epoch is that over its rows, however they fell into batches.
    assert history.history["loss"] == pytest.approx([np.average(y, weights=weight)] * 2)


def test_without_weights_the_net_is_not_given_any():
    net = WeighingNet()
    X, y = rows(10)
    history = Trainer(net, fastopt.SGD(net.params)).fit(X, y, 4, validation_data=(X, y), verbose=0)
    assert net.weights == [None] * 3
    assert history.history["loss"] == [4.5] == history.history["val_loss"]


def test_batches_without_weight_are_passed_over():
    net = WeighingNet()
    X, y = rows(12)
    weight = np.repeat([1.0, 0.0, 2.0], 4)
    recorder = Recorder()
    trainer = Trainer(net, fastopt.SGD(net.params), [recorder])
    history = trainer.fit(X, y, 4, verbose=0, shuffle=False, sample_weight=weight)
    assert [labels[0] for _, labels in net.batches] == [0, 8] and trainer.opt.steps == 2
    assert history.history["loss"] == pytest.approx([np.average(y, weights=weight)])
    assert [event[1] for event in recorder.events if event[0] == "batch_end"] == [0, 2]


def test_accuracy_counts_rows_by_their_weights_but_not_classes():
    net = WeighingNet()
    X, y = rows(4)
    wrong = np.array([0, 1, 7, 7])
    history = Trainer(net, fastopt.SGD(net.params)).fit(
        X,
        wrong,
        verbose=0,
        sample_weight=[1, 2, 3, 4],
        class_weight={7: 100.0},
        validation_data=(X, wrong, [4, 3, 2, 1]),
    )
    assert history.history["accuracy"] == [pytest.approx(3 / 10)]
    assert history.history["val_accuracy"] == [pytest.approx(7 / 10)]
    assert history.history["val_loss"] == [pytest.approx((3 + 2 * 7 + 7) / 10)]


@pytest.mark.parametrize(
    ("y", "class_weight", "sample_weight", "expected"),
    [
        ([0, 0, 0, 1], "balanced", None, [4 / 6, 4 / 6, 4 / 6, 2]),
        ([0, 0, 0, 1], {0: 0.5, 1: 2}, None, [0.5, 0.5, 0.5, 2]),
        ([0, 0, 0, 1], {1: 3}, None, [1, 1, 1, 3]),
        ([0, 0, 0, 1], {0: 2, 1: 3, 2: 4}, None, [2, 2, 2, 3]),
        ([0, 0, 0, 1], {1: 3}, [1, 0, 2, 3], [1, 0, 2, 9]),
        ([0, 0, 0, 1], None, [1, 0, 2, 3], [1, 0, 2, 3]),
        ([[0], [2], [2], [2]], {0: 4}, None, [4, 1, 1, 1]),
        (["a", "b", "a", "a"], {"b": 3}, None, [1, 3, 1, 1]),
        ([True, False, True, True], {True: 3}, None, [3, 1, 3, 3]),
        (["a", "b", "a", "a"], "balanced", [1, 1, 1, 2], [4 / 6, 2, 4 / 6, 8 / 6]),
    ],
)
def test_class_weights(y, class_weight, sample_weight, expected):
    net = WeighingNet()
    net.predict = lambda X: np.zeros(len(X))
    net.train_step = lambda X, y, w: net.weights.append(w.copy()) or (1.0, net.params[::-1])
    trainer = Trainer(net, fastopt.SGD(net.params))
    trainer.fit(
        np.zeros((4, 2)), y, 4, verbose=0, shuffle=False, class_weight=class_weight,
        sample_weight=sample_weight,
    )  # fmt: skip
    np.testing.assert_allclose(net.weights[0], expected, rtol=1e-15)


def test_balanced_classes_are_scikit_learns():
    weights = pytest.importorskip("sklearn.utils.class_weight")
    y = np.random.default_rng(0).integers(0, 5, 200)
    np.testing.assert_allclose(
        combined_weights(y, class_weight="balanced"), weights.compute_sample_weight("balanced", y)
    )


def test_a_doubled_weight_is_a_doubled_row(digits):
    X, y, test = digits
    X, y = X[:200].astype(np.float64), y[:200]
    twice = np.concatenate([np.arange(200), np.arange(50)])

    def trained(X, y, weight, weight_of_test=None):
        net = MLP([64, 8, 10], seed=0, dtype="float64")
        trainer = Trainer(net, fastopt.SGD(net.params, lr=0.1))
        return trainer.fit(
            X, y, len(X), epochs=5, verbose=0, validation_data=(X, y, weight), sample_weight=weight
        ).history

    weighted = trained(X, y, np.where(np.arange(200) < 50, 2.0, 1.0))
    doubled = trained(X[twice], y[twice], None)
    for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
        np.testing.assert_allclose(weighted[name], doubled[name], rtol=1e-10)


# --- Sparse rows -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csr_array", "coo_array", "csr_matrix"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_sparse_rows_train_as_dense_ones(digits, form, shuffle):
    sparse = pytest.importorskip("scipy.sparse")
    X, y, (X_test, y_test) = digits
    convert = getattr(sparse, form)
    histories = []
    for kind in (np.asarray, convert):
        fit = {"validation_data": (kind(X_test), y_test), "shuffle": shuffle, "seed": 0}
        trainer = digits_trainer()
        histories.append(trainer.fit(kind(X), y, epochs=2, verbose=0, **fit).history)
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-4)


# --- Callbacks -------------------------------------------------------------------------------


def test_hooks_in_their_order():
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


# --- Schedules that want reports -------------------------------------------------------------


class Listener:
    """A schedule that writes down what it is told."""

    def __init__(self, value=0.1):
        self.value = value
        self.reports = []

    def __call__(self, step):
        return self.value

    def report(self, value):
        self.reports.append(value)


def test_schedules_hear_the_validation_loss_or_else_the_training_loss(digits):
    X, y, test = digits
    lr, beta = Listener(0.001), Listener(0.9)
    trainer = digits_trainer(lr=lr, betas=(beta, 0.999))
    history = trainer.fit(X, y, epochs=2, validation_data=test, verbose=0).history
    assert lr.reports == beta.reports == history["val_loss"]
    trainer.fit(X, y, epochs=1, verbose=0)
    assert lr.reports[2:] == history["loss"][2:]


def test_a_schedule_in_many_places_hears_once():
    net = RecordingNet()
    shared = Listener(0.5)
    opt = fastopt.SGD(net.params, lr=shared, momentum=shared)
    Trainer(net, opt).fit(*rows(4), epochs=3, verbose=0)
    assert len(shared.reports) == 3


def test_reduce_on_plateau_lowers_the_rate():
    net = RecordingNet()  # whose loss only grows
    opt = fastopt.SGD(net.params, lr=schedules.ReduceOnPlateau(0.8, factor=0.5, patience=0))
    history = Trainer(net, opt).fit(*rows(4), epochs=4, verbose=0)
    assert history.history["lr"] == [0.8, 0.8, 0.4, 0.2]


# --- What is refused -------------------------------------------------------------------------

X3, Y3 = rows(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"y": Y3[:2]}, ValueError, "y: expected 3 labels, as many as X has samples, got 2"),
        ({"X": X3[:0], "y": Y3[:0]}, ValueError, "X: expected at least one sample, got none"),
        ({"X": 1.0}, ValueError, "X: expected one entry a sample"),
        ({"y": 1}, ValueError, "y: expected one entry a sample"),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
        ({"batch_size": -4}, ValueError, "batch_size: expected at least 1, got -4"),
        ({"batch_size": 2.0}, TypeError, "batch_size: expected a whole number, got 2.0"),
        ({"batch_size": True}, TypeError, "batch_size: expected a whole number, got True"),
        ({"epochs": -1}, ValueError, "epochs: expected at least 0, got -1"),
        ({"epochs": 1.5}, TypeError, "epochs: expected a whole number, got 1.5"),
        ({"validation_data": X3}, ValueError, "validation_data: expected a pair"),
        ({"validation_data": (X3,)}, ValueError, "validation_data: expected a pair"),
        ({"validation_data": (X3, Y3, Y3, Y3)}, ValueError, "validation_data: expected a pair"),
        ({"validation_data": (X3, Y3, Y3[:2])}, ValueError, r"validation_data\[2\]: expected one"),
        ({"validation_data": (X3, Y3, [0, 0, 0])}, ValueError, r"validation_data\[2\]: expected at"),
        ({"validation_data": (X3, Y3[:2])}, ValueError, r"validation_data\[1\]: expected 3 labels"),
        ({"validation_data": (X3[:0], Y3[:0])}, ValueError, r"validation_data\[0\]: expected at least"),
        ({"validation_data": (X3[:, :1], Y3)}, ValueError, r"samples of the shape \(2,\), got \(1,\)"),
        ({"max_time": 0}, ValueError, r"max_time: expected a finite number in \(0, inf\), got 0"),
        ({"max_time": -1.0}, ValueError, r"max_time: expected a finite number in \(0, inf\), got -1.0"),
        ({"max_time": math.nan}, ValueError, r"max_time: expected a finite number in \(0, inf\), got nan"),
        ({"max_time": math.inf}, ValueError, r"max_time: expected a finite number in \(0, inf\), got inf"),
        ({"max_time": "1"}, TypeError, "max_time: expected a number, got '1'"),
        ({"sample_weight": [1, 1]}, ValueError, r"sample_weight: .* shape \(3,\), got \(2,\)"),
        ({"sample_weight": [[1], [1], [1]]}, ValueError, r"sample_weight: .* got \(3, 1\)"),
        ({"sample_weight": [1, -1, 1]}, ValueError, "sample_weight: expected finite numbers of at"),
        ({"sample_weight": [1, math.nan, 1]}, ValueError, "sample_weight: expected finite numbers"),
        ({"sample_weight": [0, 0, 0]}, ValueError, "sample_weight: expected at least one positive"),
        ({"sample_weight": list("abc")}, TypeError, "sample_weight: expected real numbers, got <U1"),
        ({"sample_weight": [1, 1, 1]}, TypeError, "a model with train_step.X, y, sample_weight., got"),
        ({"class_weight": "even"}, TypeError, "class_weight: expected a dict or 'balanced', got 'even'"),
        ({"class_weight": [1, 2, 3]}, TypeError, "class_weight: expected a dict or 'balanced'"),
        ({"class_weight": {0: -1}}, ValueError, "class_weight: expected finite numbers of at least 0"),
        ({"class_weight": {0: "1"}}, TypeError, "class_weight: expected real numbers"),
        ({"class_weight": {0: 0, 1: 0, 2: 0}}, ValueError, "class_weight: expected a positive weight"),
        ({"class_weight": {"0": 2.0}}, ValueError, r"labels \[0, 1, 2\] of y have no weight, and \['0'\]"),
        ({"class_weight": "balanced", "y": [0.5, 1, 2]}, ValueError, "one label per sample, got float64"),
        ({"class_weight": {0: 1}, "y": np.eye(3, dtype=int)}, ValueError, r"got int64 of shape \(3, 3\)"),
    ],
)
def test_fit_refuses_before_anything_is_trained(arguments, error, message):
    net = RecordingNet()
    recorder = Recorder()
    trainer = Trainer(net, fastopt.SGD(net.params), [recorder])
    with pytest.raises(error, match=message):
        trainer.fit(**{"X": X3, "y": Y3, "verbose": 0, **arguments})
    assert not net.batches and not recorder.events and not trainer.history.epoch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": object()}, "net: expected an object with 'params', got object"),
        ({"opt": object()}, "opt: expected an object with 'step', got object"),
        ({"callbacks": [print]}, "callbacks: expected Callback objects"),
        ({"max_norm": "1"}, "max_norm: expected a number, got str"),
        ({"clip_value": True}, "clip_value: expected a number, got bool"),
    ],
)
def test_trainer_refuses(change, message):
    net = RecordingNet()
    with pytest.raises(TypeError, match=message):
        Trainer(**{"net": net, "opt": fastopt.SGD(net.params), **change})


@pytest.mark.parametrize("change", [{"max_norm": -1.0}, {"clip_value": math.nan}])
def test_trainer_refuses_numbers_out_of_range(change):
    net = RecordingNet()
    with pytest.raises(ValueError, match=f"{next(iter(change))}: expected a finite number in"):
        Trainer(net, fastopt.SGD(net.params), **change)


def test_weights_of_the_validation_data_want_a_net_that_takes_them():
    class Net(RecordingNet):
        def evaluate(self, X, y):
            return 0.0

    net = Net()
    message = r"validation_data\[2\]: expected a model with evaluate\(X, y, sample_weight\)"
    with pytest.raises(TypeError, match=message):
        Trainer(net, fastopt.SGD(net.params)).fit(X3, Y3, validation_data=(X3, Y3, [1, 1, 1]))
    assert not net.batches
