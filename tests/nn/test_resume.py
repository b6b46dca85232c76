"""A training run that is resumed, from whatever batch, gives the bits of one that was never stopped."""

import csv
import functools
import itertools
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from faults import frozen
from trainer_helpers import LinearNet

import fastopt
from fastopt import schedules
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
from fastopt.checkpoint import load_tree
from fastopt.nn import MLP, Trainer
from fastopt.nn.callbacks.backup import find_backups

RNG = np.random.default_rng(0)
N, BATCH = 44, 10
X, Y = RNG.standard_normal((N, 5)).astype(np.float32), RNG.integers(0, 3, N)
WEIGHT = np.repeat([1.0, 0.0, 2.0, 0.5], 11)


def mlp(hidden=8, **options):
    return MLP([5, hidden, 3], seed=0, **options)


class BFloat16Net(LinearNet):
    """A model whose parameters are bfloat16."""

    def __init__(self):
        super().__init__()
        ml_dtypes = pytest.importorskip("ml_dtypes")
        self.params = [[np.asarray(array, ml_dtypes.bfloat16) for array in layer] for layer in self.params]


def plateau_betas():
    return schedules.ReduceOnPlateau(0.9, mode="max", factor=0.9, patience=1), 0.99


# Model, optimizer options, trainer options, callbacks of the run, options of fit.
RUNS = {
    "plain": (mlp, {}, {}, list, {}),
    "dropout and norm": (functools.partial(mlp, dropout=0.3, norm="batch"), {}, {}, list, {}),
    "one call": (functools.partial(mlp, 1100, dropout=0.3), {}, {}, list, {}),
    "own model": (LinearNet, {}, {"clip_value": 0.1}, list, {}),
    "accumulation": (mlp, {"accumulate": 3, "ema": 0.9}, {}, list, {}),
    "weights": (mlp, {}, {"max_norm": 1.0}, list, {"sample_weight": WEIGHT, "class_weight": "balanced"}),
    "no shuffling": (mlp, {"lookahead": (3, 0.5)}, {}, list, {"shuffle": False}),
    "generator": (mlp, {}, {}, list, {"seed": lambda: np.random.Generator(np.random.MT19937(3))}),
    "schedules": (
        mlp,
        {"lr": lambda: schedules.LinearWarmup(3, schedules.Cosine(0.02, 12)), "betas": plateau_betas},
        {}, list, {},
    ),
    "callbacks": (
        mlp, {"ema": 0.9}, {},
        lambda: [
            SwapEMAWeights(swap_on_epoch=True), ReduceLROnPlateau(factor=0.5, patience=1),
            LearningRateScheduler(lambda epoch, lr: 0.9 * lr), EarlyStopping(patience=3),
            ModelCheckpoint("net.npz", save_freq=3, save_weights_only=True), CSVLogger("log.csv"),
        ],
        {},
    ),
    "layers": (
        lambda: MLP([5, 6, 6, 6, 3], activation=["tanh", "gelu", "leaky_relu"], norm=["layer", "batch", None],
                    dropout=[0.2, 0.0, 0.5], dtype="float64", l2=1e-3, seed=0),
        {"ema": 0.9, "weight_decay": 0.1}, {}, lambda: [SwapEMAWeights(swap_on_epoch=True)], {},
    ),
    "int8": (mlp, {"state_dtype": "int8", "ema": 0.9}, {"max_norm": 1.0}, list, {}),
    "bfloat16 state": (functools.partial(mlp, norm="batch"), {"state_dtype": "bfloat16"}, {}, list, {}),
    "bfloat16 parameters": (BFloat16Net, {"state_dtype": "bfloat16", "accumulate": 2}, {}, list, {}),
    "split parameters": (BFloat16Net, {"state_dtype": "int8", "master_weights": "split"}, {}, list, {}),
    "all callbacks": (
        mlp, {"ema": 0.9}, {},
        lambda: [
            SwapEMAWeights(swap_on_epoch=True), TerminateOnNaN(),
            EarlyStopping("val_accuracy", patience=9, restore_best_weights=True),
            ReduceLROnPlateau(factor=0.5, patience=0, cooldown=1, min_delta=9.0),
            ModelCheckpoint("best-{epoch}.npz", save_best_only=True), CSVLogger("log.csv"),
        ],
        {"validation_data": None, "validation_split": 0.25},
    ),
    "early stopping": (
        mlp, {"lr": 0.2}, {},
        lambda: [EarlyStopping("loss", patience=0, min_delta=10.0, restore_best_weights=True)], {},
    ),
}  # fmt: skip


def call(value):
    return value() if callable(value) else value


def make_trainer(name, *further):
    make_net, opt_options, options, make_callbacks, fit_options = RUNS[name]
    net = make_net()
    opt = fastopt.Adam(net.params, **{"lr": 0.01, **{key: call(v) for key, v in opt_options.items()}})
    trainer = Trainer(net, opt, [*make_callbacks(), *further], **options)
    fit_options = {key: call(v) for key, v in fit_options.items()}
    return trainer, {
        "X": X, "y": Y, "batch_size": BATCH, "epochs": 3, "validation_data": (X, Y), "verbose": 0, "seed": 5,
        **fit_options,
    }


def final_state(trainer):
    """Return everything that training has produced, except the times it took."""
    state = trainer.state_dict()
    state["history"].pop("seconds", None)
    for name, each in state["callbacks"]:
        if name == "CSVLogger":
            each["lines"] = list(csv.DictReader(each["lines"]))
            for row in each["lines"]:
                del row["seconds"]
    return frozen([state, trainer.history.stopped_by])


def log_without_seconds():
    with open("log.csv") as file:
        return [line.rpartition(",")[0] if "seconds" in line else line for line in file]


class Crashed(Exception):
    pass


class Crash(Callback):
    """Raise an error at the n-th call of its hooks."""

    HOOKS = ("on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_test_begin", "on_test_end",
             "on_epoch_end")  # fmt: skip

    def __init__(self, n=-1):
        self.left = n
        for hook in self.HOOKS:
            setattr(self, hook, self.count)

    def count(self, *args):
        self.left -= 1
        if self.left == -1:
            raise Crashed


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("save_freq", [1, 3])
def test_resumed_from_any_batch(name, save_freq, memory_path, monkeypatch):
    monkeypatch.chdir(memory_path)
    trainer, options = make_trainer(name)
    trainer.fit(**options)
    expected = final_state(trainer)
    resumed_at = set()
    for n in itertools.count(0, 1 if save_freq == 1 else 2):
        folder = memory_path / f"run-{n}"

        def make(n, folder=folder):
            return make_trainer(name, Crash(n), BackupAndRestore(folder, save_freq))

        trainer, options = make(n)
        try:
            trainer.fit(**options)
        except Crashed:
            pass
        else:
            break
        trainer, options = make(-1)
        trainer.fit(**options)
        resumed_at.add(n)
        assert final_state(trainer) == expected, n
        assert not folder.exists()
    assert len(resumed_at) > (10 if save_freq == 1 else 5) or name == "early stopping"


def test_a_second_and_a_third_crash(memory_path):
    trainer, options = make_trainer("dropout and norm")
    trainer.fit(**options)
    expected = final_state(trainer)
    for n in (9, 6, 9, 3, -1):
        trainer, options = make_trainer("dropout and norm", Crash(n), BackupAndRestore(memory_path / "b", 2))
        try:
            trainer.fit(**options)
        except Crashed:
            assert n >= 0
    assert final_state(trainer) == expected


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize(
    "name", ["plain", "dropout and norm", "accumulation", "callbacks", "int8", "bfloat16 parameters"]
)
def test_save_and_load(name, suffix, memory_path, monkeypatch):
    """Save after some batches; another trainer loads the file and finishes the run."""
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    monkeypatch.chdir(memory_path)
    path = memory_path / f"state.{suffix}"

    def save(batch, logs):
        if batch == 2 and len(trainer.history.epoch) == 1:
            trainer.save(path)

    trainer, options = make_trainer(name, LambdaCallback(on_train_batch_end=save))
    trainer.fit(**options)
    other, options = make_trainer(name, LambdaCallback())
    other.load(path)
    assert other.history.epoch == [0] and not other.is_untrained
    assert frozen(other.state_dict()["partial_epoch"]) == frozen(load_tree(path)["partial_epoch"])
    other.fit(**options | {"epochs": 2})
    assert final_state(other) == final_state(trainer)


def test_load_between_epochs(memory_path):
    trainer, options = make_trainer("dropout and norm")
    trainer.fit(**options)
    trainer.save(memory_path / "state")
    trainer.fit(**options)
    other, options = make_trainer("dropout and norm")
    other.load(memory_path / "state")
    other.fit(**options)
    assert final_state(other) == final_state(trainer)


def test_a_loaded_model_predicts_before_a_step(memory_path):
    """Its loss, which the first step of the saved run has resolved, is part of the state."""
    trainer, options = make_trainer("plain")
    trainer.fit(**options)
    trainer.save(memory_path / "state")
    other, _ = make_trainer("plain")
    other.load(memory_path / "state")
    assert (other.net.predict(X) == trainer.net.predict(X)).all()
    net = MLP([5, 8, 3], loss="mse", seed=0)
    third = Trainer(net, fastopt.Adam(net.params))
    with pytest.raises(ValueError, match="state: expected that of a model with the loss 'mse', got 'cr"):
        third.load(memory_path / "state")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, "batch_size: expected 10, with which the epoch that is resumed began, got 9"),
        ({"X": X[1:], "y": Y[1:]}, "X: expected 44 samples, with which the epoch that is resumed began, got"),
        ({"shuffle": False}, "shuffle: expected True, with which the epoch that is resumed began, got False"),
    ],
)
def test_other_data_in_the_middle_of_an_epoch(changes, message, memory_path):
    trainer, options = make_trainer("plain", Crash(5), BackupAndRestore(memory_path, 1))
    with pytest.raises(Crashed):
        trainer.fit(**options)
    trainer, options = make_trainer("plain", BackupAndRestore(memory_path, 1))
    with pytest.raises(ValueError, match=message):
        trainer.fit(**options | changes)
    assert trainer.opt.steps == 2
    trainer.fit(**options)
    assert trainer.opt.steps == 15


def test_frequency_in_seconds(memory_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    saved = []

    class Backup(BackupAndRestore):
        def _save(self):
            saved.append((len(self.trainer.history.epoch), now[0]))
            return super()._save()

    def tick(batch, logs):
        now[0] += 10.0

    advance = LambdaCallback(on_train_batch_end=tick)
    trainer, options = make_trainer("plain", advance, Backup(memory_path, "25s"))
    trainer.fit(**options)
    assert saved == [(0, 30.0), (1, 60.0), (1, 90.0), (2, 120.0), (2, 150.0)]


# --- Signals --------------------------------------------------------------------------------------------


class Recorder(Callback):
    def __init__(self):
        self.hooks = []

    def on_interrupt(self, logs):
        self.hooks.append("interrupt")

    def on_train_end(self, logs):
        self.hooks.append("train end")


def raise_at(trainer, where, number, n=7):
    """Let a method of the model raise a signal at its n-th call."""
    calls = itertools.count(1)
    if where == "predict" and isinstance(trainer.net, MLP):
        where = "evaluation_sums"
    method = getattr(trainer.net, where)

    def wrapped(*args):
        if next(calls) == n:
            signal.raise_signal(number)
        return method(*args)

    setattr(trainer.net, where, wrapped)


@pytest.fixture
def received():
    """Signals that reach the handlers of the test."""
    received = []
    before = {n: signal.signal(n, lambda number, frame: received.append(number)) for n in (signal.SIGTERM,)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("where", ["train_step", "predict"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["own model", "callbacks"])
def test_a_signal_ends_the_fit_after_a_batch(name, number, where, memory_path, monkeypatch, received, capsys):
    monkeypatch.chdir(memory_path)
    trainer, options = make_trainer(name)
    trainer.fit(**options)
    expected = final_state(trainer)

    recorder = Recorder()
    trainer, options = make_trainer(name, recorder, BackupAndRestore(memory_path / "backup"))
    n = {"train_step": 7, "predict": 2 if name == "callbacks" else 4}[where]
    if name == "callbacks" and where == "train_step":
        calls = itertools.count(1)
        recorder.on_train_batch_begin = lambda b, logs: next(calls) == n and signal.raise_signal(number)
    else:
        raise_at(trainer, where, number, n)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    history = trainer.fit(**options)
    assert recorder.hooks == ["interrupt", "train end"]
    assert history.interrupted and history.stopped_by == {2: "interrupt", 15: "SIGTERM"}[number]
    assert history.epoch == [0]
    assert received == ([signal.SIGTERM] if number == signal.SIGTERM else [])
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert f"Saved the training state in {memory_path / 'backup' / 'backup-2.npz'}" in capsys.readouterr().out
    partial = load_tree(memory_path / "backup" / "backup-2.npz")["partial_epoch"]
    assert partial["batch"] == (2 if where == "train_step" else 5)

    trainer, options = make_trainer(name, Recorder(), BackupAndRestore(memory_path / "backup"))
    trainer.fit(**options)
    assert final_state(trainer) == expected


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_stops_at_once(first, received):
    trainer, options = make_trainer("own model", recorder := Recorder())
    raise_at(trainer, "train_step", signal.SIGINT, 7)
    raise_at(trainer, "train_step", first, 7)   # is called before the other one
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(**options)
    assert recorder.hooks == [] and trainer.opt.steps == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_are_left_alone_in_other_threads_and_if_they_are_ignored(received):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trainer, options = make_trainer("own model")
    raise_at(trainer, "train_step", signal.SIGTERM, 7)
    assert trainer.fit(**options).stopped_by is None
    signal.signal(signal.SIGTERM, before)

    seen = []
    trainer, options = make_trainer(
        "plain", LambdaCallback(on_epoch_begin=lambda e, logs: seen.append(signal.getsignal(signal.SIGTERM)))
    )
    thread = threading.Thread(target=lambda: trainer.fit(**options))
    thread.start()
    thread.join()
    assert seen == [before] * 3


def test_a_signal_is_passed_on_if_a_callback_fails(received):
    def fail(batch, logs):
        signal.raise_signal(signal.SIGTERM)
        raise Crashed

    trainer, options = make_trainer("plain", LambdaCallback(on_train_batch_end=fail))
    with pytest.raises(Crashed):
        trainer.fit(**options)
    assert received == [signal.SIGTERM]


PROGRAM = """
import sys
import numpy as np
import fastopt
from fastopt.callbacks import BackupAndRestore, LambdaCallback

net = fastopt.MLP([20, 50, 3], seed=0, dropout=0.2)
X = np.random.default_rng(0).standard_normal((2000, 20))
backup = BackupAndRestore(sys.argv[1])
started = LambdaCallback(on_epoch_end=lambda epoch, logs: print("epoch", flush=True))
fastopt.Trainer(net, fastopt.Adam(net.params), [started, backup]).fit(X, X[:, 0] > 0, epochs=10**6, verbose=0)
"""


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
def test_sigterm_ends_a_program(memory_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, memory_path / "b"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "epoch\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM and err == ""
    newest = find_backups(memory_path / "b")[-1]
    assert out.endswith(f"Saved the training state in {newest}\n")
    assert load_tree(newest)["epoch"]
