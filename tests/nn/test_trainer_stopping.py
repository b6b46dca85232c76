"""fastopt.Trainer: output, interruption, stopping and time limits."""

import io
import re
import signal
import sys

import numpy as np
import pytest
from trainer_helpers import Interrupt, Recorder, RecordingNet, rows

import fastopt
from fastopt.callbacks import Callback
from fastopt.nn import MLP, Trainer

# --- Output ----------------------------------------------------------------------------------


def test_verbose_0_prints_nothing(capsys):
    net = RecordingNet()
    X, y = rows(8)
    trainer = Trainer(net, fastopt.SGD(net.params), [Interrupt(5)])
    trainer.fit(X, y, 2, epochs=3, validation_data=(X, y), verbose=0)
    assert capsys.readouterr() == ("", "")


def test_output_has_the_format_of_the_article(capsys):
    net = RecordingNet()
    X, y = rows(8)
    trainer = Trainer(net, fastopt.SGD(net.params))
    trainer.fit(X, y, 8, validation_data=(X, y[::-1]))
    trainer.fit(X, y, 8)
    trainer.fit(X, y, 8, training_accuracy=False)
    out, err = capsys.readouterr()
    assert out == (
        "Epoch 1\nLoss = 1.0000 | Training Accuracy = 1.0000 | Validation Accuracy = 0.0000\n"
        "Epoch 2\nLoss = 2.0000 | Training Accuracy = 1.0000\n"
        "Epoch 3\nLoss = 3.0000\n"
    )
    assert err == ""


def test_output_of_a_regression_has_only_losses(capsys):
    X = np.linspace(0, 1, 8)[:, None]
    net = MLP([1, 1], seed=0)
    Trainer(net, fastopt.SGD(net.params)).fit(X, X, validation_data=(X, X))
    Trainer(net, fastopt.SGD(net.params)).fit(X, X)
    out = capsys.readouterr().out
    assert re.fullmatch(
        r"Epoch 1\nLoss = \d\.\d{4} \| Validation Loss = \d\.\d{4}\nEpoch 1\nLoss = \d\.\d{4}\n", out
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fit_on_a_terminal(monkeypatch, *callbacks, **options):
    """Return standard output and standard error of a fit of two epochs."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    net = RecordingNet()
    Trainer(net, fastopt.SGD(net.params), callbacks).fit(*rows(8), 1, epochs=2, **options)
    return sys.stdout.getvalue(), sys.stderr.getvalue()


class OnlyWrites:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("verbose", [1, 2])
@pytest.mark.parametrize("make", [lambda: None, closed, OnlyWrites, io.StringIO])
def test_fit_on_any_standard_output(monkeypatch, make, verbose):
    """A process without console has none; a program may close it, or replace it by an object that writes."""
    stream = make()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    net = RecordingNet()
    history = Trainer(net, fastopt.SGD(net.params)).fit(*rows(8), 1, epochs=2, verbose=verbose)
    assert history.epoch == [0, 1]
    if isinstance(stream, OnlyWrites):
        assert stream.text == LINES


LINES = (
    "Epoch 1\nLoss = 4.5000 | Training Accuracy = 1.0000\n"
    "Epoch 2\nLoss = 12.5000 | Training Accuracy = 1.0000\n"
)


def test_a_terminal_shows_one_progress_bar_over_all_epochs(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr("fastopt.nn.history._SECONDS", 0.0)  # update after every batch
    out, shown = fit_on_a_terminal(monkeypatch)
    assert out == LINES
    frames = [frame.strip() for frame in shown.split("\r") if "%" in frame]
    # Bar, elapsed time, remaining time, mean loss, learning rate.
    assert re.fullmatch(
        r"Epoch 1/2 +19%\|.*\| 00:00<\d\d:\d\d, loss=2\.0000, lr=0\.001",
        next(frame for frame in frames if "19%" in frame),
    )
    assert any(frame.startswith("Epoch 2/2 100%") and "loss=12.5000" in frame for frame in frames)
    assert shown.endswith("\r") and not shown.split("\r")[-2].strip()  # removed at the end


def test_messages_of_callbacks_appear_above_the_bar(monkeypatch):
    tqdm = pytest.importorskip("tqdm").tqdm
    monkeypatch.setattr("fastopt.nn.history._SECONDS", 0.0)
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


def test_output_without_progress_bar(monkeypatch):
    assert fit_on_a_terminal(monkeypatch, verbose=2) == (LINES, "")
    assert fit_on_a_terminal(monkeypatch, verbose=0) == ("", "")


def test_a_terminal_without_tqdm_has_no_progress_bar(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert fit_on_a_terminal(monkeypatch) == (LINES, "")


# --- Interruption and stopping ---------------------------------------------------------------


@pytest.mark.parametrize("where", ["callback", "net"])
def test_interruption_keeps_the_weights(capsys, ctrl_c, where):
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
    assert (net.params[0][0] == -10 - (where == "net")).all()
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


# --- Time limit ------------------------------------------------------------------------------


class Clock:
    """A replacement of `time.perf_counter` that tests advance."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


class AdvanceClock(Callback):
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
        (6, 1, 0, 6, 2, "max_time"),  # reached with the sixth batch
        (5.5, 1, 0, 6, 2, "max_time"),
        (0.5, 1, 0, 1, 1, "max_time"),  # at least one batch is trained
        (4, 1, 0, 4, 1, "max_time"),  # reached with the last batch of an epoch
        (12, 1, 0, 12, 3, None),  # reached with the last batch of the fit
        (5, 1, 2, 4, 1, "max_time"),  # reached in the evaluation
    ],
)
def test_max_time(monkeypatch, max_time, batch, evaluation, batches, epochs, stopped_by):
    net = RecordingNet()
    advance = AdvanceClock(Clock(monkeypatch), batch, evaluation)
    trainer = Trainer(net, fastopt.SGD(net.params), [advance])
    history = trainer.fit(*rows(8), 2, epochs=3, verbose=0, max_time=max_time)
    assert len(net.batches) == batches
    assert len(history.epoch) == epochs and history.stopped_by == stopped_by


def test_max_time_applies_to_each_fit(monkeypatch, capsys):
    net = RecordingNet()
    trainer = Trainer(net, fastopt.SGD(net.params), [AdvanceClock(Clock(monkeypatch), 1)])
    assert trainer.fit(*rows(8), 2, epochs=9, max_time=3).stopped_by == "max_time"
    assert capsys.readouterr().out.endswith("Stopped after 1 epoch by max_time.\n")
    assert trainer.fit(*rows(8), 2, epochs=1, max_time=5).stopped_by is None
    assert len(net.batches) == 3 + 4


def test_the_first_reason_to_stop_is_recorded():
    class Stop(Callback):
        def on_epoch_end(self, epoch, logs):
            self.trainer.stop_training = True

    class Late(Stop):
        pass

    net = RecordingNet()
    trainer = Trainer(net, fastopt.SGD(net.params), [Callback(), Stop(), Late()])
    assert trainer.fit(*rows(8), epochs=2, verbose=0).stopped_by == "Stop"


def test_stop_training_set_outside_of_callbacks():
    class Net(RecordingNet):
        def train_step(self, X, y):
            trainer.stop_training = len(self.batches) == 5
            return super().train_step(X, y)

    net = Net()
    trainer = Trainer(net, fastopt.SGD(net.params))
    history = trainer.fit(*rows(8), 2, epochs=4, verbose=0)
    assert history.stopped_by == "stop_training" and len(net.batches) == 6
