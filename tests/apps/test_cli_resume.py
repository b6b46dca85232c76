"""``fastopt train --resume``: runs that were interrupted, killed or are to be longer."""

import csv
import importlib.util
import itertools
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import cli
from fastopt.checkpoint import load_tree, read_arrays, save_tree
from fastopt.cli import outputs, resume, training
from fastopt.nn.callbacks.backup import find_backups

ROOT = Path(__file__).parents[2]
# 8 batches per epoch.
QUICK = ["--hidden=8", "--epochs=3", "--batch-size=162", "--dropout=0.3", "--ema=0.9"]


@pytest.fixture(autouse=True)
def folder(memory_path, monkeypatch):
    monkeypatch.chdir(memory_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)     # drawing takes longer than training
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield memory_path
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def train(capsys):
    def train(*args):
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        status = cli.main(["train", *map(str, args)])
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        return status, *capsys.readouterr()

    return train


def signal_after(monkeypatch, number, n):
    """Send a signal after the n-th batch of the process."""
    calls, original = itertools.count(1), resume.RunBackup.on_train_batch_end

    def on_train_batch_end(self, batch, logs):
        original(self, batch, logs)
        if next(calls) == n:
            signal.raise_signal(number)

    monkeypatch.setattr(resume.RunBackup, "on_train_batch_end", on_train_batch_end)


def results(name):
    """Return what a resumed run must have in common with an uninterrupted one, by file."""
    found = {path.name: None for path in Path(name).iterdir()}
    found["model.npz"] = Path(name, "model.npz").read_bytes()
    with open(Path(name, "history.csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found["history.csv"] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return found


def assert_equal_runs(name, other):
    """Say which files differ and how."""
    found, expected = results(name), results(other)
    assert sorted(found) == sorted(expected)
    assert found["history.csv"] == expected["history.csv"]
    if found["model.npz"] != expected["model.npz"]:
        arrays, others = (read_arrays(Path(folder, "model.npz")) for folder in (name, other))
        assert {key: array.tolist() for key, array in arrays.items()} == {
            key: array.tolist() for key, array in others.items()
        }
        pytest.fail("the models are equal, but not the bytes of their files")
    outputs.read_summary(name)      # raises if a checksum is wrong


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("n", [1, 8, 13, 24])
@pytest.mark.parametrize("step", [0.0, 31.0], ids=["still", "jumps"])     # --save-freq is 30 s
def test_resumed_run_equals_an_uninterrupted_one(train, monkeypatch, number, n, step):
    # A clock that stands still, or that jumps at every look, as if the process had been stopped in between.
    clock = itertools.count(step=step)
    monkeypatch.setattr(fastopt.Trainer, "clock", lambda self: next(clock))
    assert train(*QUICK, "--out=full")[0] == 0
    with monkeypatch.context() as patch:
        signal_after(patch, number, n)
        status, out, err = train(*QUICK, "--out=cut")
    backups = find_backups("cut")
    assert len(backups) == (2 if step else 1)
    assert status == 128 + number and err == ("" if number == signal.SIGINT else "fastopt: terminated\n")
    assert f"Saved the training state in {backups[-1]}\nResume with: fastopt train --resume cut\n" in out
    assert Path("cut", "model.npz").exists() == (number == signal.SIGINT)
    status, out, err = train("--resume", "cut")
    epochs, batches = divmod(n, 8) if n % 8 else (n // 8 - 1, 8)
    passed = f"{epochs} epoch{'' if epochs == 1 else 's'} and batch {batches} of the next one"
    assert out.startswith(f"Resuming from {backups[-1]}, after {passed}\n")
    assert (status, err) == (0, "")
    assert_equal_runs("cut", "full")
    assert sorted(results("cut")) == [
        "backup-1.npz", "config.toml", "confusion_matrix.csv", "history.csv", "model.npz", "report.html",
        "summary.json",
    ]
    assert Path("cut", "config.toml").read_bytes() == Path("full", "config.toml").read_bytes()


def test_more_epochs(train):
    train(*QUICK, "--epochs=5", "--out=full")
    train(*QUICK, "--out=run")
    assert train("--resume", "run", "--epochs", 5)[0] == 0
    assert_equal_runs("run", "full")
    assert Path("run", "config.toml").read_bytes() == Path("full", "config.toml").read_bytes()
    status, out, _ = train("--resume", "run")
    assert status == 0 and "after 5 epochs\n" in out
    assert_equal_runs("run", "full")


def test_a_run_that_a_callback_has_stopped_stays_stopped(train):
    stop = "--callbacks=early_stopping(monitor='loss', patience=1, min_delta=9)"
    assert "Stopped after 2 epochs by EarlyStopping" in train(*QUICK, stop, "--out=run")[1]
    before = results("run")
    assert "Stopped after 2 epochs by EarlyStopping" in train("--resume=run", "--epochs=9")[1]
    assert results("run") == before


def test_a_damaged_backup_falls_back_to_the_one_before(train, monkeypatch):
    train(*QUICK, "--out=full")
    with monkeypatch.context() as patch:
        signal_after(patch, signal.SIGTERM, 13)
        train(*QUICK, "--out=cut", "--save-freq=5")
    older, newest = find_backups("cut")
    newest.write_bytes(newest.read_bytes()[:-9])
    status, out, err = train("--resume=cut", "--save-freq=30s")
    assert status == 0 and out.startswith(f"Resuming from {older}, after 1 epoch and batch 2 of the next one")
    assert err == (
        f"fastopt: {newest}: damaged, or not an .npz file of plain arrays; using the backup before it, "
        f"{older}\n"
    )
    assert_equal_runs("cut", "full")


def test_before_the_first_backup(train):
    train(*QUICK, "--out=full")
    Path("run").mkdir()
    Path("run", "config.toml").write_bytes(Path("full", "config.toml").read_bytes())
    status, out, _ = train("--resume=run")
    assert status == 0 and out.startswith("run has no training state yet: the run starts from the beginning")
    assert_equal_runs("run", "full")


def test_what_cannot_be_resumed(train):
    X = np.random.default_rng(0).standard_normal((60, 2))
    np.savez("data.npz", X=X, y=(X[:, 0] > 0).astype(int))
    train(*QUICK, "--data=data.npz", "--out=run")
    before = results("run")

    def check(message, *args):
        status, out, err = train(*args)
        assert status == 2 and message in err and err.count("\n") == 1

    message = "--resume: expected no options but --epochs, --max-time, --save-freq; got --lr"
    check(message, "--resume=run", "--lr=1")
    check("--resume: none has neither config.toml nor a backup of a run", "--resume=none")
    check("argument --save-freq: expected 'epoch', a number of batches, or seconds", "--save-freq=often")
    np.savez("data.npz", X=X + 1, y=(X[:, 0] > 0).astype(int))
    check("--resume: data.npz does not contain the samples that the run started with", "--resume=run")
    assert results("run") == before
    Path("other").mkdir()
    save_tree("other/backup-1.npz", {"a": 1})
    check("other/backup-1.npz: not a backup of 'fastopt train'", "--resume=other")
    Path("other", "backup-1.npz").write_bytes(b"half")
    check("other: no backup can be read: other/backup-1.npz: damaged", "--resume=other")
    check("--out: run is not empty; choose another folder, replace the run with --overwrite, or", "--out=run")
    check("would overwrite a file of the run", "--callbacks=model_checkpoint(filepath='backup-7.npz')")
    assert train(*QUICK, "--out=run", "--overwrite")[0] == 0


def test_signals_outside_training(train, monkeypatch):
    load = training.load
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        monkeypatch.setattr(training, "load", lambda args, n=number: [load(args), signal.raise_signal(n)])
        assert train(*QUICK, "--out=run")[0] == status
    assert not Path("run").exists()


def test_a_run_that_ends_by_time_is_resumed(train):
    train(*QUICK, "--out=run", "--max-time=1e-9")
    assert load_tree(find_backups("run")[-1])["epoch"] == [0]
    assert train("--resume=run", "--max-time=inf")[0] == 0
    assert len(results("run")["history.csv"]) == 3


def test_killed_runs(tmp_path):
    spec = importlib.util.spec_from_file_location("kill_runs", ROOT / "tools" / "kill_runs.py")
    kill_runs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kill_runs)
    assert kill_runs.check(tmp_path, kills=2, kills_per_run=2, seed=1)[0] >= 1
