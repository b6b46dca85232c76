"""The command line: output, files, errors and exit statuses."""

import contextlib
import csv
import gzip
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from files import write, write_idx_folder
from hypothesis import given
from hypothesis import strategies as st

import fastopt
from fastopt import callbacks, cli, schedules, surfaces
from fastopt.cli import compare, config, outputs, registry, train
from fastopt.nn import MLP, Callback, data, metrics
from fastopt.optimizers import BY_NAME

LINE = r"Loss = \d+\.\d{4} \| Training Accuracy = [01]\.\d{4} \| Validation Accuracy = [01]\.\d{4}"
NO_PLOTS = "No plots: plotting needs matplotlib: pip install 'fastopt[plot]'"
QUICK = ["--hidden", "8", "--epochs", "2"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run every test in a temporary folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_matplotlib(request, monkeypatch):
    """Hide matplotlib from tests without the fixture `plots`, as drawing takes longer than training."""
    if "plots" not in request.fixturenames:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture
def plots():
    pytest.importorskip("matplotlib")


@pytest.fixture
def check_error(run, folder):
    """Run an invalid command: status 2, one line on standard error, no output, no changed file."""

    def check_error(*args):
        before = files(folder)
        status, out, err = run(*args)
        assert (status, out) == (2, "")
        assert err.startswith("fastopt") and err.endswith("\n") and err.count("\n") == 1
        assert files(folder) == before
        return err

    return check_error


def files(folder):
    """Return the contents of all files in a folder by path; None for subfolders."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in sorted(Path(folder).rglob("*"))
    }


# --- Test data -------------------------------------------------------------------------------


def blobs(n=90, seed=0):
    """Return the points of three separate clusters, and the cluster of each point."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    centers = np.array([[0.0, 4.0], [4.0, 0.0], [-4.0, -4.0]])
    return centers[y] + rng.normal(size=(n, 2)), y


NAMES = np.array(["ash", "birch", "cedar"])


def write_csv(path, X, y=None, names=None, first=False):
    pytest.importorskip("pandas")
    rows = [list(map(repr, row.tolist())) for row in X]
    for row, label in zip(rows, () if y is None else y, strict=False):
        row.insert(0 if first else len(row), str(label))
    lines = ([",".join(names)] if names else []) + [",".join(row) for row in rows]
    text = "\n".join(lines) + "\n"
    write(Path(path), text)


def write_images(folder):
    """Write alternating dark and bright images, 60 for training and 30 for test."""
    rng = np.random.default_rng(0)
    parts = {}
    for prefix, n in (("train", 60), ("t10k", 30)):
        y = (np.arange(n) % 2).astype(np.uint8)
        X = rng.integers(0, 60, (n, 2, 3), dtype=np.uint8)
        X[y == 1] += 180
        parts[prefix] = X, y
    write_idx_folder(folder, parts)


# --- train -----------------------------------------------------------------------------------


def test_train_prints_each_epoch_and_saves_the_run(run, folder):
    status, out, err = run("train")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:4] == [
        "Data: digits",
        "Samples: 1294 training, 144 validation, 359 test; 64 features, 10 classes",
        "Network: 64-128-10, relu, 9610 parameters",
        "Optimizer: adam, learning rate 0.001, batch size 32",
    ]
    assert lines[4] == "" and lines[5:45:2] == [f"Epoch {n}" for n in range(1, 21)]
    assert all(re.fullmatch(LINE, line) for line in lines[6:45:2])
    assert re.fullmatch(r"Time: \d+\.\d\d s, \d+\.\d\d s of it in training steps", lines[46])
    assert re.fullmatch(r"Test Accuracy = 0\.9\d{3}", lines[47])
    assert lines[48:] == [NO_PLOTS, "Saved the run in fastopt-run"]
    assert max(map(len, lines)) <= 80
    assert [path.name for path in folder.iterdir()] == ["fastopt-run"]


@pytest.mark.parametrize("seed", range(10))
def test_train_learns_the_digits_with_every_seed(run, seed):
    status, out, _ = run("train", "--seed", seed)
    assert status == 0
    assert float(re.search(r"^Test Accuracy = (.*)$", out, re.M)[1]) >= 0.95


def test_saved_model_is_the_trained_network(run):
    _, out, _ = run("train", *QUICK, "--out", "deep/run", "--activation", "tanh")
    net = MLP.load("deep/run/model.npz")
    assert (net.sizes, net.activation, net.loss) == ((64, 8, 10), ("tanh",), "cross_entropy")
    digits = data.load("digits")
    accuracy = (net.predict(digits.X_test) == digits.y_test).mean()
    assert f"\nTest Accuracy = {accuracy:.4f}\n" in out


def without_times(out):
    return re.sub(r"(Time: .*|\d+\.\d\d$)", "", out, flags=re.M)


def test_seed_determines_the_result(run):
    first, again, other = (
        run("train", *QUICK, "--seed", seed, "--overwrite")[1] for seed in (3, 3, 4)
    )
    assert without_times(first) == without_times(again) != without_times(other)


@pytest.mark.parametrize("name", registry.OPTIMIZERS)
def test_every_optimizer_has_its_name(run, name):
    """Training in Python gives the same bits; schedule-free optimizers are evaluated at their averages."""
    named = {
        "momentum": lambda p: fastopt.SGD(p, lr=0.01, momentum=0.9),
        "nesterov": lambda p: fastopt.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        "amsgrad": lambda p: fastopt.Adam(p, lr=0.01, amsgrad=True),
        "signum": lambda p: fastopt.SignSGD(p, lr=0.01, momentum=0.9),
    }
    make = named.get(name) or (lambda p: BY_NAME[name](p, lr=0.01))
    X, y = blobs()
    np.savez("blobs.npz", X=X, y=y)
    options = ["--data", "blobs.npz", *QUICK, "--batch-size", 16, "--seed", 5]
    status, out, _ = run("train", *options, "--optimizer", name, "--lr", 0.01)
    assert status == 0 and f"Optimizer: {name}, learning rate 0.01, batch size 16\n" in out
    dataset = data.load("blobs.npz", validation_size=0.1)
    net = MLP([2, 8, 3], seed=5)
    opt = make(net.params)
    trainer = fastopt.nn.Trainer(net, opt)
    trainer.fit(dataset.X_train, dataset.y_train, 16, 2, verbose=0, seed=5)
    with opt.averaged() if hasattr(opt, "averaged") else contextlib.nullcontext():
        assert same_net(MLP.load("fastopt-run/model.npz"), net)


def test_optimizer_without_weight_decay(run):
    status, _, err = run("train", *QUICK, "--optimizer", "rprop", "--weight-decay", 0.1)
    assert status == 2 and "--weight-decay: rprop does not support weight decay" in err
    assert run("train", *QUICK, "--optimizer", "rprop", "--weight-decay", 0)[0] == 0


def same_net(net, other):
    return all(
        np.array_equal(p, q)
        for layer, other_layer in zip(net.params, other.params, strict=True)
        for p, q in zip(layer, other_layer, strict=True)
    )


def test_default_rates_learn(run):
    X, y = blobs()
    np.savez("blobs.npz", X=X, y=y)
    for name in registry.OPTIMIZERS:
        _, out, _ = run("train", "--data", "blobs.npz", "--optimizer", name, "--epochs", 40)
        assert float(re.search(r"^Test Accuracy = (.*)$", out, re.M)[1]) >= 0.9, name


def test_train_on_an_idx_folder(run, folder):
    write_images(folder)
    status, out, _ = run("train", "--data", ".", "--hidden", "8,4", "--epochs", 60, "--lr", 0.01)
    assert status == 0
    assert "Samples: 54 training, 6 validation, 30 test; 6 features, 2 classes\n" in out
    assert "Network: 6-8-4-2, relu, 102 parameters\n" in out
    assert "\nTest Accuracy = 1.0000\n" in out


def test_regression(run):
    X, _ = blobs(200)
    write_csv("line.csv", X, 3.0 * X[:, 0] - X[:, 1] + 0.5)
    status, out, _ = run("train", "--data", "line.csv", "--epochs", 60, "--lr", 0.01)
    assert status == 0
    assert "2 features, 1 output\n" in out
    assert re.search(r"^Loss = \S+ \| Validation Loss = \S+$", out, re.M)
    assert float(re.search(r"^Test R2 = (.*)$", out, re.M)[1]) > 0.98

    status, out, err = run("predict", "fastopt-run", "line.csv")
    assert status == 0
    values = np.array([float(line) for line in out.splitlines()])
    assert np.corrcoef(values, 3.0 * X[:, 0] - X[:, 1])[0, 1] > 0.99
    assert re.fullmatch(r"R2 = 0\.9\d{3} \(200 samples\)\n", err)


def test_task_overrides_the_type_of_the_labels(run):
    X, y = blobs()
    write_csv("whole.csv", X, y)
    assert "1 output\n" in run("train", "--data", "whole.csv", *QUICK, "--task", "regression")[1]
    write_csv("real.csv", X, y.astype(float))
    options = ["--data", "real.csv", *QUICK, "--task", "classification"]
    assert "3 classes\n" in run("train", *options)[1]


def test_diverged_training_stops_and_saves_no_model(run, folder):
    status, out, err = run("train", "--optimizer", "sgd", "--lr", 1e12)
    assert status == 1
    assert err == (
        "fastopt: training diverged in epoch 1, and no model was saved in fastopt-run; "
        "try a lower --lr than 1e+12\n"
    )
    assert "Epoch 2" not in out
    assert sorted(path.name for path in (folder / "fastopt-run").iterdir()) == ["config.toml", "history.csv"]


class InterruptIn(Callback):
    """Raises KeyboardInterrupt in an epoch, as Ctrl-C does."""

    def __init__(self, epoch):
        self._epoch = epoch

    def on_epoch_begin(self, epoch, logs):
        if epoch == self._epoch:
            raise KeyboardInterrupt


def interrupt_in(monkeypatch, epoch):
    for module in (train, compare):
        monkeypatch.setattr(
            module, "Trainer", lambda net, opt, callbacks, **options: fastopt.Trainer(
                net, opt, [InterruptIn(epoch), *callbacks], **options
            )
        )


@pytest.mark.parametrize("done", [0, 3])
def test_interrupted_run_is_saved(run, folder, monkeypatch, plots, done):
    interrupt_in(monkeypatch, done)
    status, out, err = run("train")
    assert (status, err) == (130, "")
    assert f"Interrupted after {done} epochs" in out and out.endswith("Saved the run in fastopt-run\n")
    assert MLP.load("fastopt-run/model.npz").sizes == (64, 128, 10)
    assert (folder / "fastopt-run" / "curves.png").exists() == (done > 0)
    assert json.loads(Path("fastopt-run/summary.json").read_text())["epochs"] == done


# --- The folder of a run ---------------------------------------------------------------------

TABLES = [
    "backup-1.npz", "config.toml", "confusion_matrix.csv", "history.csv", "model.npz", "report.html",
    "summary.json",
]
PLOTS = ["confusion_matrix.png", "curves.png"]


def names_in(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def read_history(folder):
    """Return the columns of history.csv except the seconds."""
    with open(Path(folder, "history.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0] if name != "seconds"}


def test_folder_with_plots(run, plots):
    status, out, err = run("train", *QUICK)
    assert (status, err) == (0, "") and out.endswith("\nSaved the run in fastopt-run\n")
    assert names_in("fastopt-run") == sorted(TABLES + PLOTS)
    for name in PLOTS:
        assert Path("fastopt-run", name).read_bytes().startswith(b"\x89PNG")


def test_folder_without_matplotlib(run):
    status, out, err = run("train", *QUICK)
    assert (status, err) == (0, "") and out.endswith(f"\n{NO_PLOTS}\nSaved the run in fastopt-run\n")
    assert names_in("fastopt-run") == TABLES


def test_folder_of_a_regression(run, plots):
    X, _ = blobs(60)
    write_csv("line.csv", X, X[:, 0])
    run("train", "--data", "line.csv", *QUICK)
    tables = [name for name in TABLES if name != "confusion_matrix.csv"]
    assert names_in("fastopt-run") == sorted(["curves.png", *tables])
    assert json.loads(Path("fastopt-run/summary.json").read_text())["test"].keys() == {"loss", "r2"}


def test_contents_of_the_tables(run):
    X, y = blobs()
    np.savez("blobs.npz", X=X, y=NAMES[y])
    _, out, _ = run("train", "--data", "blobs.npz", *QUICK)
    dataset = data.load("blobs.npz")
    net = MLP.load("fastopt-run/model.npz")
    predicted = net.predict(dataset.X_test)

    with open("fastopt-run/confusion_matrix.csv", newline="") as file:
        (corner, *header), *rows = csv.reader(file)
    assert (corner, header) == ("true \\ predicted", NAMES.tolist())
    assert [row[0] for row in rows] == NAMES.tolist()
    counts = np.array([row[1:] for row in rows], int)
    np.testing.assert_array_equal(counts, metrics.confusion_matrix(dataset.y_test, predicted, 3))

    history = read_history("fastopt-run")
    losses = re.findall(r"^Loss = (\S+)", out, re.M)
    assert [f"{float(loss):.4f}" for loss in history["loss"]] == losses

    summary = outputs.read_summary("fastopt-run")
    assert summary.pop("seconds") > 0.0
    assert summary == {
        "epochs": 2,
        "stopped_by": None,
        "parameters": 51,
        "samples": {"training": 65, "validation": 7, "test": 18},
        "test": {
            "loss": net.evaluate(dataset.X_test, dataset.y_test),
            "accuracy": metrics.accuracy(dataset.y_test, predicted),
        },
    }


def test_runs_are_numbered(run, folder):
    Path("fastopt-run-2").touch()  # an unrelated file, which must be kept
    for _ in range(3):
        status, out, _ = run("train", *QUICK)
        assert status == 0
    assert names_in(".") == ["fastopt-run", "fastopt-run-2", "fastopt-run-3", "fastopt-run-4"]
    assert "Saved the run in fastopt-run-4\n" in out
    assert [names_in(f"fastopt-run{n}") for n in ("", "-3", "-4")] == [TABLES] * 3


def test_out_must_be_empty(run, check_error):
    Path("empty").mkdir()
    assert run("train", *QUICK, "--out", "empty")[0] == 0
    message = "--out: empty is not empty; choose another folder, replace the run with --overwrite, or resume"
    assert message in check_error("train", "--out", "empty")
    Path("file").touch()
    assert "--out: cannot write file: File exists" in check_error("train", "--out", "file")
    assert "--out: cannot write file" in check_error("train", "--out", "file/run")


def test_overwrite_removes_only_a_run(run, check_error, plots):
    assert run("train", *QUICK, "--out", "run", "--seed", 1)[0] == 0
    X, _ = blobs(60)
    np.savez("line.npz", X=X, y=X[:, 0])
    assert run("train", *QUICK, "--data", "line.npz", "--out", "run", "--overwrite")[0] == 0
    assert names_in("run") == [
        "backup-1.npz", "config.toml", "curves.png", "history.csv", "model.npz", "report.html",
        "summary.json",
    ]
    assert MLP.load("run/model.npz").sizes == (2, 8, 1)
    Path("run/notes.txt").touch()
    assert "--overwrite: run contains notes.txt, which no run writes" in check_error(
        "train", "--out", "run", "--overwrite"
    )


def test_overwrite_of_the_default_folder(run):
    for _ in range(2):
        assert run("train", *QUICK, "--overwrite")[0] == 0
    assert names_in(".") == ["fastopt-run"]


def test_overwrite_keeps_the_data(check_error):
    X, y = blobs()
    Path("run").mkdir()
    np.savez("run/model.npz", X=X, y=y)
    np.savez("other.npz", X=X, y=y)
    for option in ("data", "validation", "test"):
        args = ["train", "--data", "other.npz", f"--{option}", "run/model.npz", "--out", "run"]
        assert "--out: run is not empty" in check_error(*args)
        assert "--overwrite: run/model.npz is the data set of this run" in check_error(*args, "--overwrite")


def test_model_formats(run):
    pytest.importorskip("safetensors")
    for name in ("npz", "safetensors"):
        run("train", *QUICK, "--model-format", name, "--out", name)
    assert names_in("safetensors") == sorted({*TABLES, "model.safetensors"} - {"model.npz"})
    assert same_net(MLP.load("npz/model.npz"), MLP.load("safetensors/model.safetensors"))
    assert run("predict", "npz", "digits") == run("predict", "safetensors", "digits")


# --- Config files ----------------------------------------------------------------------------

EVERYTHING = """\
data = "blobs.npz"
validation-split = 0.2
task = "classification"
header = false
no-header = false
no-standardize = false
hidden = [8, 6]
activation = ["tanh", "gelu"]
norm = ["batch", "none"]
dropout = [0.1, 0.2]
loss = "cross_entropy"
label-smoothing = 0.1
l2 = 1e-4
seed = 3
optimizer = "adamw(betas=(0.8, 0.99))"
weight-decay = 0.05
lr = 0.01
lr-schedule = "linear_warmup(steps=3, then=cosine(min_lr=1e-05))"
ema = 0.9
epochs = 3
batch-size = 16
class-weight = "balanced"
max-norm = 2.0
max-time = inf
callbacks = ["early_stopping(patience=2)", "csv_logger(filename='more.csv')"]
save-freq = "30s"
model-format = "npz"
"""


def options_in(folder):
    return tomllib.loads(Path(folder, "config.toml").read_text())


@pytest.mark.parametrize("given", ["", EVERYTHING], ids=["defaults", "everything"])
def test_config_repeats_the_run_bit_for_bit(run, given):
    X, y = blobs()
    np.savez("blobs.npz", X=X, y=NAMES[y])
    Path("run.toml").write_text(given)
    argv = [] if given else QUICK
    assert run("train", "--config", "run.toml", *argv)[0] == 0
    assert run("train", "--config", "fastopt-run/config.toml")[0] == 0
    first, again = read_history("fastopt-run"), read_history("fastopt-run-2")
    assert first == again and len(first["loss"]) == (3 if given else 2)
    assert same_net(MLP.load("fastopt-run/model.npz"), MLP.load("fastopt-run-2/model.npz"))
    assert Path("fastopt-run/config.toml").read_bytes() == Path("fastopt-run-2/config.toml").read_bytes()


def test_config_is_complete(run):
    X, y = blobs()
    np.savez("blobs.npz", X=X, y=NAMES[y])
    Path("run.toml").write_text(EVERYTHING)
    run("train", "--config", "run.toml")
    assert options_in("fastopt-run") == tomllib.loads(EVERYTHING)
    comments = [line for line in Path("fastopt-run/config.toml").read_text().splitlines() if line[0] == "#"]
    for word in (fastopt.__version__, np.__version__, "Python", "BLAS", "instruction set"):
        assert any(word in comment for comment in comments), word


def test_config_has_the_defaults_of_the_optimizer(run):
    run("train", *QUICK, "--optimizer", "adamw")
    options = options_in("fastopt-run")
    assert (options["lr"], options["weight-decay"]) == (0.001, 0.01)


def test_command_line_takes_precedence_over_config(run):
    Path("run.toml").write_text("epochs = 2\nhidden = 8\nseed = 5\n")
    _, out, _ = run("train", "--seed", 6, "--config", "run.toml", "--epochs", 1)
    assert "Network: 64-8-10" in out and "Epoch 1\n" in out and "Epoch 2\n" not in out
    options = options_in("fastopt-run")
    assert (options["epochs"], options["hidden"], options["seed"]) == (1, 8, 6)


def test_flags_and_folders_in_a_config(run):
    Path("run.toml").write_text('epochs = 1\nhidden = 8\nout = "here"\noverwrite = true\n')
    for _ in range(2):
        assert run("train", "--config", "run.toml")[0] == 0
    assert names_in(".") == ["here", "run.toml"]
    Path("run.toml").write_text('epochs = 1\nhidden = 8\nout = "here"\noverwrite = false\n')
    assert "--out: here is not empty" in run("train", "--config", "run.toml")[2]


@given(st.text(st.characters(codec="utf-8")))
def test_config_round_trips_any_text(text):
    assert tomllib.loads(f"data = {config._toml(text)}") == {"data": text}


@pytest.mark.skipif(os.name == "nt", reason="file names are text on Windows")
def test_file_name_that_is_not_text(check_error):
    X, y = blobs()
    np.savez("\udcff.npz", X=X, y=y)
    assert "surrogates not allowed" in check_error("train", "--data", "\udcff.npz")


def test_file_name_that_toml_must_quote(run, folder):
    X, y = blobs()
    name = 'a "b"\\ü.npz' if os.name != "nt" else "a ü.npz"
    np.savez(name, X=X, y=y)
    run("train", *QUICK, "--data", name)
    assert options_in("fastopt-run")["data"] == name
    assert run("train", "--config", "fastopt-run/config.toml")[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dropouts = 0.1", "fastopt: run.toml: unknown key 'dropouts'; did you mean 'dropout'?"),
        ("warp = 0.1", "fastopt: run.toml: unknown key 'warp'; expected one of data, validation, "),
        ("batch_size = 3", "run.toml: unknown key 'batch_size'; did you mean 'batch-size'?"),
        ("config = 'run.toml'", "run.toml: unknown key 'config'"),
        ("help = true", "run.toml: unknown key 'help'"),
        ("[optimizer]\nlr = 1", "run.toml: optimizer: expected a number, a string, or a list of these; got"),
        ("lr = 1979-05-27", "run.toml: lr: expected a number, a string, or a list of these; got datetime"),
        ("lr = 'fast'", "fastopt train: run.toml: argument --lr: expected a positive number, got 'fast'"),
        ("epochs = 1.5", "argument --epochs: expected a positive integer, got '1.5'"),
        ("epochs = [1, 2]", "argument --epochs: expected a positive integer, got '1,2'"),
        ("seed = true", "argument --seed: expected a non-negative integer, got 'True'"),
        ("overwrite = 1", "run.toml: overwrite: expected true or false, got 1"),
        ("lr == 2", "run.toml: not a TOML file: Invalid value (at line 1, column 5)"),
    ],
)
def test_invalid_config(check_error, text, message):
    Path("run.toml").write_text(text)
    assert message in check_error("train", "--config", "run.toml")


def test_unreadable_config(check_error):
    Path("run.toml").write_bytes(b"\xff\xfe")
    assert "run.toml: not a TOML file" in check_error("train", "--config", "run.toml")
    assert "none.toml: No such file" in check_error("train", "--config", "none.toml")


def test_compare_skips_config_options_it_does_not_have(run, check_error):
    Path("run.toml").write_text('epochs = 1\nhidden = 8\nlr = 0.1\ncallbacks = "early_stopping"\n')
    status, out, _ = run("compare", "--config", "run.toml")
    assert status == 0 and "Network: 64-8-10" in out and "Training: 1 epoch," in out
    Path("run.toml").write_text("epoch = 1")
    assert "unknown key 'epoch'" in check_error("compare", "--config", "run.toml")


# --- Effects of the options -------------------------------------------------------------------

STEPS = 12  # three epochs of 60 samples in minibatches of 16


def adam(lr=0.001, **options):
    return lambda params: fastopt.Adam(params, lr, **options)


def net_options(argv, **options):
    return pytest.param(argv, options, adam(), {}, {}, id=argv)


def schedule(argv, lr):
    return pytest.param(f"--lr 0.01 --lr-schedule {argv}", {}, adam(lr), {}, {}, id=argv)


@pytest.mark.parametrize(
    ("argv", "net_options", "make_optimizer", "trainer_options", "fit_options"),
    [
        net_options("--activation tanh,gelu", activation=["tanh", "gelu"]),
        net_options("--activation gelu_tanh", activation="gelu_tanh"),
        net_options("--norm batch", norm="batch"),
        net_options("--norm none,layer", norm=[None, "layer"]),
        net_options("--dropout 0.3", dropout=0.3),
        net_options("--dropout 0,0.5", dropout=[0.0, 0.5]),
        net_options("--label-smoothing 0.2", label_smoothing=0.2),
        net_options("--l2 0.1", l2=0.1),
        pytest.param("--weight-decay 0.1", {}, adam(weight_decay=0.1), {}, {}, id="--weight-decay"),
        pytest.param(
            "--optimizer adam(betas=(0.5,0.6))", {}, adam(betas=(0.5, 0.6)), {}, {}, id="--optimizer"
        ),
        pytest.param(
            "--optimizer nesterov(momentum=0.5) --weight-decay 0.1", {},
            lambda p: fastopt.SGD(p, 0.02, momentum=0.5, nesterov=True, weight_decay=0.1), {}, {},
            id="--optimizer with presets",
        ),
        pytest.param("--max-norm 0.01", {}, adam(), {"max_norm": 0.01}, {}, id="--max-norm"),
        pytest.param(
            "--class-weight balanced", {}, adam(), {}, {"class_weight": "balanced"}, id="--class-weight"
        ),
        pytest.param(
            "--ema 0.9", {}, adam(ema=0.9), {"callbacks": [callbacks.SwapEMAWeights()]}, {}, id="--ema"
        ),
        schedule("step(step_size=4)", schedules.Step(0.01, 4)),
        schedule("multi_step(milestones=[2,5],gamma=0.5)", schedules.MultiStep(0.01, [2, 5], 0.5)),
        schedule("exponential(gamma=0.8)", schedules.Exponential(0.01, 0.8)),
        schedule("inverse_time(decay=0.5)", schedules.InverseTime(0.01, 0.5)),
        schedule("polynomial(power=2)", schedules.Polynomial(0.01, STEPS, 2)),
        schedule("cosine", schedules.Cosine(0.01, STEPS)),
        schedule("cosine(steps=3,min_lr=1e-3)", schedules.Cosine(0.01, 3, 1e-3)),
        schedule("cosine_restarts(steps=3)", schedules.CosineRestarts(0.01, 3)),
        schedule("one_cycle", schedules.OneCycle(0.01, STEPS)),
        schedule("linear_warmup(steps=4)", schedules.LinearWarmup(4, 0.01)),
        schedule(
            "linear_warmup(steps=4,then=cosine)", schedules.LinearWarmup(4, schedules.Cosine(0.01, STEPS - 4))
        ),
        schedule(
            "linear_warmup(steps=99,then=polynomial())",
            schedules.LinearWarmup(99, schedules.Polynomial(0.01, 1)),
        ),
        schedule("wsd(decay_steps=3,shape='linear')", schedules.WSD(0.01, STEPS, 3, shape="linear")),
        schedule(
            "join(schedules=[linear_warmup(steps=2),step(step_size=1),cosine],lengths=[3,2])",
            schedules.Join(
                [schedules.LinearWarmup(2, 0.01), schedules.Step(0.01, 1), schedules.Cosine(0.01, STEPS - 5)],
                [3, 2],
            ),
        ),
        schedule(
            "reduce_on_plateau(patience=0,threshold=9.0)",
            schedules.ReduceOnPlateau(0.01, patience=0, threshold=9.0),
        ),
    ],
)
def test_options_equal_python_arguments(run, argv, net_options, make_optimizer, trainer_options, fit_options):
    """Training in Python with these arguments gives the same bits."""
    X, y = blobs()
    np.savez("blobs.npz", X=X[6:], y=np.append(y[6:80], [2] * 10))  # imbalanced classes
    base = ["train", "--data", "blobs.npz", "--hidden", "8,6", "--epochs", 3, "--batch-size", 16, "--seed", 5]
    assert run(*base, *argv.split())[0] == 0
    dataset = data.load("blobs.npz", validation_size=0.1)

    def train(net_options, make_optimizer, trainer_options, fit_options):
        net = MLP([2, 8, 6, 3], seed=5, loss="cross_entropy", **net_options)
        trainer = fastopt.Trainer(net, make_optimizer(net.params), **trainer_options)
        trainer.fit(dataset.X_train, dataset.y_train, 16, 3, dataset.validation_data,
                    verbose=0, seed=5, **fit_options)
        return net

    net = train(net_options, make_optimizer, trainer_options, fit_options)
    assert same_net(MLP.load("fastopt-run/model.npz"), net)
    plain = train({}, adam(0.01 if "--lr" in argv else 0.001), {}, {})
    assert not np.array_equal(net.predict_proba(X), plain.predict_proba(X))  # the option has an effect


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        ("auto", {"loss": "mse"}),
        ("mse", {"loss": "mse"}),
        ("squared_error", {"loss": "squared_error"}),
        ("huber", {"loss": "huber"}),
        ("huber(delta=0.1)", {"loss": "huber", "delta": 0.1}),
        ("quantile(quantile=0.9)", {"loss": "quantile", "quantile": 0.9}),
        ("poisson", {"loss": "poisson"}),
    ],
)
def test_regression_losses(run, argv, options):
    X, _ = blobs()
    y = np.abs(X[:, 0])
    np.savez("line.npz", X=X, y=y)
    assert run("train", "--data", "line.npz", *QUICK, "--loss", argv)[0] == 0
    dataset = data.load("line.npz", validation_size=0.1)
    net = MLP([2, 8, 1], seed=0, **options)
    fastopt.Trainer(net, fastopt.Adam(net.params)).fit(
        dataset.X_train, dataset.y_train, epochs=2, verbose=0, seed=0
    )
    assert same_net(MLP.load("fastopt-run/model.npz"), net)


def test_regression_loss_selects_regression(run):
    X, y = blobs()
    np.savez("counts.npz", X=X, y=y)
    assert "3 classes\n" in run("train", "--data", "counts.npz", *QUICK)[1]
    assert "1 output\n" in run("train", "--data", "counts.npz", *QUICK, "--loss", "poisson")[1]


def test_binary_cross_entropy_has_one_output(run):
    X, y = blobs(200)
    np.savez("two.npz", X=X[y < 2], y=NAMES[y[y < 2]])
    argv = ["--loss", "binary_cross_entropy", "--epochs", 60]
    _, out, _ = run("train", "--data", "two.npz", *argv)
    assert "Network: 2-128-1, relu" in out and "2 classes\n" in out
    status, out, err = run("predict", "fastopt-run", "two.npz")
    assert status == 0 and set(out.split()) == {"ash", "birch"}
    assert float(re.search(r"Accuracy = (\S+)", err)[1]) > 0.95


def test_callbacks_stop_and_restore(run):
    argv = ["--optimizer", "momentum", "--lr", 0.5, "--hidden", "8", "--epochs", 100]
    _, out, _ = run("train", *argv, "--callbacks", "early_stopping(patience=2, restore_best_weights=True)")
    losses = [float(loss) for loss in read_history("fastopt-run")["val_loss"]]
    assert len(losses) < 100 and min(losses) == losses[-3]
    assert json.loads(Path("fastopt-run/summary.json").read_text())["stopped_by"] == "EarlyStopping"
    digits = data.load("digits", validation_size=0.1)
    net = MLP.load("fastopt-run/model.npz")
    assert net.evaluate(digits.X_val, digits.y_val) == min(losses)
    assert f"\nTest Accuracy = {metrics.accuracy(digits.y_test, net.predict(digits.X_test)):.4f}\n" in out


def test_callbacks_monitor_the_averages(run):
    argv = ["--ema", 0.9, "--hidden", "8", "--epochs", 3]
    argv += ["--callbacks", "model_checkpoint(filepath='best.npz', save_best_only=True)"]
    run("train", *argv)
    losses = [float(loss) for loss in read_history("fastopt-run")["val_loss"]]
    digits = data.load("digits", validation_size=0.1)
    assert MLP.load("fastopt-run/best.npz").evaluate(digits.X_val, digits.y_val) == min(losses)


def test_callbacks_write_into_the_folder_of_the_run(run, folder):
    outside = str(folder / "outside.csv")
    text = (
        f"csv_logger(filename='more.csv', separator=';'), csv_logger(filename={outside!r}), "
        "model_checkpoint(filepath='{epoch}.npz')"
    )
    X, y = blobs()
    np.savez("blobs.npz", X=X, y=NAMES[y])
    run("train", "--data", "blobs.npz", *QUICK, "--out", "a{run}", "--callbacks", text)
    assert names_in("a{run}") == sorted([*TABLES, "1.npz", "2.npz", "more.csv"])
    assert names_in(".") == ["a{run}", "blobs.npz", "outside.csv"]
    assert Path("a{run}/more.csv").read_text().replace(";", ",") == Path("outside.csv").read_text()
    labels = run("predict", "a{run}/1.npz", "blobs.npz")[1].split()  # checkpoints contain the classes
    assert set(labels) <= set(NAMES)


def test_checkpoints_by_batch_and_by_name(run):
    run("train", *QUICK, "--batch-size", 720, "--callbacks",
        "model_checkpoint(filepath='each/{epoch:02d}-{batch}.npz', save_freq=1), terminate_on_nan, "
        "model_checkpoint(filepath='{val_accuracy:.1f}.npz', monitor='anything')")
    assert names_in("fastopt-run/each") == ["01-1.npz", "01-2.npz", "02-1.npz", "02-2.npz"]
    history = read_history("fastopt-run")
    shares = {f"{float(share):.1f}.npz" for share in history["val_accuracy"]}
    assert shares <= set(names_in("fastopt-run"))


def test_callbacks_lower_the_learning_rate(run):
    argv = "reduce_lr_on_plateau(monitor='accuracy', patience=1, factor=0.5, min_delta=1.0)"
    run("train", *QUICK, "--epochs", 3, "--callbacks", argv)
    rates = [float(rate) for rate in read_history("fastopt-run")["lr"]]
    assert rates == [0.001, 0.001, 0.0005]


def test_max_time(run):
    status, out, _ = run("train", "--epochs", 1000000, "--max-time", 0.2)
    assert status == 0 and "Saved the run" in out
    assert json.loads(Path("fastopt-run/summary.json").read_text())["stopped_by"] == "max_time"


# --- predict ---------------------------------------------------------------------------------


@pytest.fixture
def model(run):
    """A model of the three clusters, with names as labels."""
    X, y = blobs()
    write_csv("train.csv", X, NAMES[y])
    assert run("train", "--data", "train.csv", "--epochs", 60, "--out", "trees")[0] == 0
    return "trees"


def test_predict_prints_labels_in_order(run, model):
    X, y = blobs(50, seed=1)
    write_csv("new.csv", X, NAMES[y])
    status, out, err = run("predict", model, "new.csv")
    assert status == 0
    right = (np.array(out.split("\n")[:-1]) == NAMES[y]).mean()
    assert right > 0.9
    assert err == f"Accuracy = {right:.4f} (50 samples)\n"


@pytest.mark.parametrize("name", ["new.csv", "new.csv.gz", "new.npz"])
def test_predict_without_labels(run, model, name):
    X, y = blobs(50, seed=1)
    np.savez("labeled.npz", X=X, y=NAMES[y])
    if name.endswith(".npz"):
        np.savez(name, X=X)
    else:
        write_csv(name, X)
    labeled, bare = run("predict", model, "labeled.npz"), run("predict", model, name)
    assert bare == (0, labeled[1], "")
    assert "Accuracy" in labeled[2]


def test_predict_checks_the_number_of_features(check_error, model):
    X, y = blobs(5)
    write_csv("wide.csv", np.column_stack([X, X]))
    write_csv("names.csv", X[:, :1], NAMES[y])
    np.savez("flat.npz", X=X[:, 0])
    message = "wide.csv: expected 3 columns as in the training data, or 2 without the label, got 4"
    assert message in check_error("predict", model, "wide.csv")
    assert "the cell in row 1 of column '1' is 'ash', expected a number" in (
        check_error("predict", model, "names.csv")
    )
    assert "expected at least two dimensions of X" in check_error("predict", model, "flat.npz")


def test_predict_with_another_label_column(run, model):
    X, y = blobs(50, seed=1)
    write_csv("first.csv", X, NAMES[y], names=["tree", "a", "b"], first=True)
    assert run("predict", model, "first.csv", "--label", "tree")[1:] == run(
        "predict", model, "first.csv", "--label", "0"
    )[1:]
    assert "Accuracy = " in run("predict", model, "first.csv", "--label", "-3")[2]


def test_predict_to_a_file(run, model, folder):
    assert run("predict", f"{model}/model.npz", "train.csv") == run("predict", model, "train.csv")
    printed = run("predict", model, "train.csv")
    written = run("predict", model, "train.csv", "--output", "labels.txt")
    assert written == (0, "", printed[2])
    assert (folder / "labels.txt").read_text() == printed[1]


def test_predict_uses_the_test_part(run, folder):
    write_images(folder)
    run("train", "--data", ".", "--epochs", 60, "--lr", 0.01, "--out", "run")
    status, out, err = run("predict", "run", ".")
    assert (status, out, err) == (0, "0\n1\n" * 15, "Accuracy = 1.0000 (30 samples)\n")


def test_predict_with_a_network_saved_in_python(run):
    net = MLP([64, 10], loss="cross_entropy", seed=0)
    net.save("net.npz")
    X, y = data.load_digits()
    status, out, err = run("predict", "net.npz", "digits")
    assert status == 0
    np.testing.assert_array_equal([int(line) for line in out.splitlines()], net.predict(X))
    assert err == f"Accuracy = {(net.predict(X) == y).mean():.4f} (1797 samples)\n"


# --- compare ---------------------------------------------------------------------------------


def test_compare_prints_a_table(run, folder, plots):
    status, out, err = run("compare", "--epochs", 3, "--plot", "curves.png")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[3] == "Training: 3 epochs, batch size 32"
    assert re.split(r"  +", lines[5]) == [
        "Optimizer", "Learning rate", "Loss", "Val. loss", "Val. accuracy", "Time (s)",
    ]
    rows = [line.split() for line in lines[6:12]]
    assert [row[0] for row in rows] == list(compare.COMPARED)
    assert {len(line) for line in lines[5:12]} == {len(lines[5])}
    assert all(0.5 < float(row[4]) <= 1.0 for row in rows)
    assert lines[12] == "" and lines[15:] == ["Saved the plot in curves.png"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_compare_and_train_agree(run):
    """The results of each optimizer equal those of `train` with the same seed."""
    _, table, _ = run("compare", *QUICK, "--seed", 7)
    for name in compare.COMPARED:
        _, out, _ = run("train", *QUICK, "--seed", 7, "--optimizer", name)
        loss, accuracy = re.findall(r"^Loss = (\S+) .* Validation Accuracy = (\S+)$", out, re.M)[-1]
        row = re.search(rf"^{name} .*$", table, re.M)[0].split()
        assert (row[2], row[4]) == (loss, accuracy)


def test_compare_regressions(run):
    X, _ = blobs(60)
    write_csv("line.csv", X * 1e4, X[:, 0] * 1e6)
    status, out, _ = run("compare", "--data", "line.csv", *QUICK)
    assert status == 0 and "Val. accuracy" not in out
    table = re.search(r"^Optimizer .*\n(.+\n){6}", out, re.M)[0].splitlines()
    assert {len(line) for line in table} == {len(table[0])}
    np.savez("line.npz", X=X * 1e4, y=X[:, 0] * 1e6)
    _, out, _ = run("compare", "--data", "line.npz", *QUICK)
    assert "nan" in out.splitlines()[6]  # gradient descent diverges on unscaled data


@pytest.mark.parametrize(
    "argv",
    [
        "--dropout 0.5", "--norm batch", "--activation tanh", "--l2 1", "--label-smoothing 0.5",
        "--class-weight balanced", "--max-norm 1e-3", "--loss cross_entropy --seed 1", "--batch-size 8",
    ],
)
def test_options_of_compare(run, argv):
    X, y = blobs()
    np.savez("blobs.npz", X=X[6:], y=np.append(y[6:80], [2] * 10))
    options = ["compare", "--data", "blobs.npz", *QUICK]
    plain, other = run(*options)[1], run(*options, *argv.split())[1]
    losses = [re.findall(r"^\w+ +\S+ +(\S+)", out.partition("Optimizer")[2], re.M) for out in (plain, other)]
    assert len(losses[0]) == len(losses[1]) == 6
    assert all(loss != changed for loss, changed in zip(*losses, strict=True))


def test_compare_the_given_optimizers(run):
    text = "adam, lion, sgd(lr=0.05, momentum=0.9), sgd(lr=0.1)"
    status, out, err = run("compare", *QUICK, "--optimizers", text)
    assert (status, err) == (0, "")
    table = [re.split(r"  +", line) for line in out.splitlines()[5:10]]
    assert [row[:2] for row in table[1:]] == [
        ["adam", "0.001"], ["lion", "0.0005"], ["sgd(lr=0.05, momentum=0.9)", "0.05"], ["sgd(lr=0.1)", "0.1"],
    ]
    for row, options in ((table[2], ["lion"]), (table[3], ["sgd(momentum=0.9)", "--lr", 0.05])):
        _, out, _ = run("train", *QUICK, "--optimizer", *options)
        assert re.findall(r"^Loss = (\S+)", out, re.M)[-1] == row[2]


def test_interrupted_compare_prints_finished_rows(run, monkeypatch):
    interrupt_in(monkeypatch, 1)
    status, out, err = run("compare", "--epochs", 3)
    assert (status, err) == (130, "")
    assert re.search(r"^sgd .*\nInterrupted", out, re.M) and "momentum" not in out


# --- compare --surface -----------------------------------------------------------------------


def path_rows(out):
    """Return the cells of the table by the label of the optimizer."""
    lines = out.splitlines()
    head = next(k for k, line in enumerate(lines) if line.startswith("Optimizer"))
    rows = [line.rsplit(maxsplit=7) for line in lines[head + 1 : lines.index("", head)]]
    assert re.split(r"  +", lines[head])[1:] == [
        "Learning rate", "Steps", "x", "y", "Value", "Distance", "Arrived",
    ]
    return {label: row for label, *row in rows}


@pytest.mark.parametrize("name", surfaces.SURFACES)
def test_paths_on_a_surface(run, name):
    surface = surfaces.SURFACES[name]
    status, out, err = run("compare", "--surface", name)
    assert (status, err) == (0, "") and max(map(len, out.splitlines())) <= 80
    assert out.startswith(f"Surface: {name}\nMinima of {surface.least:g}: (")
    assert f"\nPaths: {surface.steps} steps from (" in out
    rows = path_rows(out)
    assert list(rows) == list(compare.COMPARED)
    for label, (lr, steps, x, y, value, distance, arrived) in rows.items():
        rule, _, others = registry.OPTIMIZERS[label]
        path = surfaces.descend(surface, lambda p, r=rule, lr=lr, o=others: r(p, lr=float(lr), **o))
        assert (int(steps), x, y) == (len(path) - 1, f"{path[-1][0]:.4f}", f"{path[-1][1]:.4f}")
        assert (value, distance) == (f"{surface.value(*path[-1]):.3g}", f"{surface.distance(path[-1]):.4f}")
        near = surface.distance(path) < 0.1
        if arrived == "-":
            assert not near[-1]
        else:
            assert near[int(arrived):].all() and not near[int(arrived) - 1]


@pytest.mark.parametrize(("suffix", "begin"), [("png", b"\x89PNG"), ("gif", b"GIF89a")])
def test_paths_are_drawn(run, folder, plots, suffix, begin):
    argv = ["--surface", "beale", "--steps", 20, "--optimizers", "sgd, adam", "--plot", f"paths.{suffix}"]
    status, out, _ = run("compare", *argv)
    assert status == 0 and out.endswith(f"\nSaved the plot in paths.{suffix}\n")
    assert (folder / f"paths.{suffix}").read_bytes().startswith(begin)


def test_options_of_paths(run):
    status, out, _ = run(
        "compare", "--surface", "himmelblau", "--start=-1,0.5", "--steps", 7, "--optimizers",
        "adam(lr=0.25, betas=(0.5, 0.9)), adam(lr=0.125), sgd(lr=1e3), amsgrad",
    )
    assert status == 0 and "Paths: 7 steps from (-1, 0.5)\n" in out
    rows = path_rows(out)
    assert list(rows) == ["adam(lr=0.25, betas=(0.5, 0.9))", "adam(lr=0.125)", "sgd", "amsgrad"]
    path = surfaces.descend(
        surfaces.SURFACES["himmelblau"], lambda p: fastopt.Adam(p, 0.25, (0.5, 0.9)), 7, (-1.0, 0.5)
    )
    first, second, third, _ = rows.values()
    assert first[:4] == ["0.25", "7", f"{path[-1][0]:.4f}", f"{path[-1][1]:.4f}"] and second[0] == "0.125"
    assert third[0] == "1000" and int(third[1]) < 7 and third[6] == "-"  # diverged


def test_every_optimizer_on_a_surface(run):
    names = list(registry.OPTIMIZERS)
    assert set(BY_NAME) < set(names)
    status, out, _ = run("compare", "--surface", "saddle", "--steps", 5, "--optimizers", ",".join(names))
    assert status == 0 and list(path_rows(out)) == names


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--surface hill", "argument --surface: invalid choice: 'hill'"),
        ("--surface him", "argument --surface: invalid choice: 'him'; did you mean 'himmelblau'?"),
        ("--surface beale --epochs 3", "--epochs: cannot be combined with --surface"),
        ("--surface beale --data none.npz", "--data: cannot be combined with --surface"),
        ("--surface beale --config run.toml", "--config: cannot be combined with --surface"),
        ("--steps 9", "--steps: requires --surface"),
        ("--start=0,1", "--start: requires --surface"),
        ("--optimizers adam(eps=-1)", "--optimizer: adam: eps: expected a finite number in [0"),
        ("--optimizers lars,sdg", "argument --optimizers: unknown name 'sdg'; did you mean 'sgd'?"),
        ("--optimizers=", "argument --optimizers: expected at least one optimizer"),
        ("--surface beale --steps 0", "argument --steps: expected a positive integer, got '0'"),
        ("--surface beale --start=1", "argument --start: expected two numbers, for example 1.5,-2; got '1'"),
        (
            "--surface beale --start=1,inf",
            "argument --start: expected two numbers, for example 1.5,-2; got '1,i",
        ),
        ("--surface beale --start=9,0", "--start: expected x from -0.5 to 4.5 and y from -2 to 2 for beale"),
        ("--surface beale --optimizers=", "argument --optimizers: expected at least one optimizer"),
        ("--surface beale --optimizers sdg", "unknown name 'sdg'; did you mean 'sgd'?"),
        ("--surface beale --optimizers adam(ema=1)", "adam has no argument 'ema' here"),
        ("--surface beale --optimizers sgd,adam(lr=-1)", "--optimizers: adam: lr: expected a finite number"),
        ("--surface beale --plot none/c.png", "--plot: cannot write none/c.png: No such file"),
        ("--surface beale --plot c.doc", "--plot: expected a name that ends in"),
    ],
)
def test_wrong_paths(check_error, plots, args, message):
    Path("run.toml").write_text("epochs = 1")
    assert message in check_error("compare", *args.split())


# --- lr-find ---------------------------------------------------------------------------------

LR_FIND = ["--hidden", "8", "--steps", "60", "--seed", 3]


def test_lr_find_prints_a_table_and_a_suggestion(run, folder, plots):
    status, out, err = run("lr-find", *LR_FIND, "--batch-size", 16, "--start-lr", 1e-4, "--plot", "lr.png")
    assert (status, err) == (0, "")
    digits = data.load("digits", validation_size=0.1)
    net = MLP([64, 8, 10], seed=3)
    found = fastopt.lr_find(
        net, fastopt.Adam(net.params), digits.X_train, digits.y_train, 16, start_lr=1e-4, steps=60, seed=3
    )
    lines = out.splitlines()
    assert lines[2:4] == ["Network: 64-8-10, relu, 610 parameters", "Optimizer: adam, batch size 16"]
    assert lines[5].split() == ["Learning", "rate", "Loss"]
    rows = [line.split() for line in lines[6 : lines.index("", 6)]]
    assert rows == [
        [f"{lr:.2g}", f"{loss:.4f}"] for lr, loss in zip(found.lr[::3], found.smoothed[::3], strict=True)
    ]
    reason = "at two thirds of the decrease of the loss"
    assert f"\nSuggestion: --lr {found.suggestion:.2g}, {reason}\n" in out
    assert (folder / "lr.png").read_bytes().startswith(b"\x89PNG") and names_in(".") == ["lr.png"]


def test_suggested_learning_rate_learns(run):
    _, out, _ = run("lr-find", "--optimizer", "momentum")
    rate = re.search(r"^Suggestion: --lr (\S+),", out, re.M)[1]
    _, out, _ = run("train", "--optimizer", "momentum", "--lr", rate)
    assert float(re.search(r"^Test Accuracy = (.*)$", out, re.M)[1]) >= 0.93


@pytest.mark.parametrize(
    "argv",
    [
        "--dropout 0.5", "--norm batch", "--activation tanh", "--l2 1", "--label-smoothing 0.5",
        "--optimizer sgd", "--optimizer adam(betas=(0,0.9))", "--weight-decay 1", "--max-norm 1e-3",
        "--end-lr 1", "--batch-size 8",
    ],
)
def test_options_of_lr_find(run, argv):
    plain, other = run("lr-find", *LR_FIND)[1], run("lr-find", *LR_FIND, *argv.split())[1]
    assert plain.partition("Loss")[2] != other.partition("Loss")[2]


def test_lr_find_with_a_config(run):
    Path("run.toml").write_text('hidden = 8\nseed = 3\nlr = 7\nout = "nowhere"\noptimizer = "sgd"\n')
    from_file = run("lr-find", "--config", "run.toml", "--steps", 60)
    assert from_file == run("lr-find", *LR_FIND, "--optimizer", "sgd") and names_in(".") == ["run.toml"]


def test_lr_find_without_a_suggestion(run):
    status, out, err = run("lr-find", *LR_FIND, "--start-lr", 1e3, "--end-lr", 1e4)
    assert status == 1 and err == (
        "fastopt: no suggestion, as the loss does not decrease by more than its noise\n"
    )


# --- info ------------------------------------------------------------------------------------


def test_info(run, capsys):
    fastopt.show_config()
    shown = capsys.readouterr().out
    assert run("info") == (0, shown, "")
    for word in (fastopt.__version__, "instruction set", "threads", "BLAS"):
        assert word in shown


def test_info_of_a_run(run, folder):
    run("train", *QUICK)
    status, out, err = run("info", "fastopt-run")
    shown = json.loads(out)
    assert (status, err) == (0, "") and shown["epochs"] == 2 and "crc32" not in shown
    path = Path("fastopt-run", "summary.json")
    assert json.loads(path.read_text())["crc32"].keys() == set(names_in("fastopt-run")) - {"backup-1.npz"}

    history, text = Path("fastopt-run", "history.csv"), path.read_text()
    history.write_text(history.read_text().replace("1", "2"))
    assert run("info", "fastopt-run")[2] == (
        f"fastopt: {history}: damaged, or changed after the end of the run\n"
    )
    history.unlink()
    assert run("info", "fastopt-run")[2] == "fastopt: fastopt-run: history.csv is missing\n"
    for other in (text.replace('"epochs": 2', '"epochs": 1'), text[:-9], "[]", "[" * 100_000, "{}"):
        path.write_text(other)
        assert run("info", "fastopt-run") == (
            2, "", f"fastopt: {path}: damaged, or not the summary of a run\n"
        )
    path.unlink()
    assert run("info", "fastopt-run")[::2] == (2, f"fastopt: {path}: No such file or directory\n")


def test_no_argument_prints_the_help(run):
    status, out, err = run()
    assert (status, err) == (0, "") and out.startswith("usage: fastopt")
    assert "\nexamples:\n  fastopt train" in out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_has_examples_that_parse(capsys, command):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    for example in out.partition("\nexamples:\n")[2].splitlines():
        words = shlex.split(example.partition("|")[2] or example.partition(" >")[0])
        assert words[:2] == ["fastopt", command] and max(map(len, out.splitlines())) <= 100
        if not {"--config", "--resume"} & set(words):
            assert cli.parse_args(words[1:]).run


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version(capsys, option):
    with pytest.raises(SystemExit) as exit:
        cli.main([option])
    assert exit.value.code == 0
    assert "fastopt" in capsys.readouterr().out


def test_help_imports_no_command():
    code = (
        "import contextlib, sys; from fastopt import cli\n"
        "with contextlib.suppress(SystemExit): cli.main(['--help'])\n"
        "modules = {module for module, _ in cli.COMMANDS.values()}\n"
        "print(sorted(sys.modules.keys() & {*modules, 'numpy', 'fastopt.nn', 'fastopt.optimizers'}))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("\n[]\n")


# --- Invalid arguments -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("fit", "argument COMMAND: invalid choice: 'fit'"),
        ("trian", "argument COMMAND: invalid choice: 'trian'; did you mean 'train'?"),
        ("train --optimiser adam", "unrecognized arguments: --optimiser adam; did you mean '--optimizer'?"),
        ("train --lr_schedule=cosine", "arguments: --lr_schedule=cosine; did you mean '--lr-schedule'?"),
        ("lr-find --end-rate 1", "unrecognized arguments: --end-rate 1; did you mean '--end-lr'?"),
        ("train --task regresion", "--task: invalid choice: 'regresion'; did you mean 'regression'?"),
        ("train more", "unrecognized arguments: more"),
        ("train --opt sgd", "unrecognized arguments: --opt sgd"),
        ("train --save m.npz", "unrecognized arguments: --save m.npz"),
        (
            "train --norm batch,batch,batch --hidden 8,8",
            "--norm: expected one value, or one per hidden layer (2), got 3",
        ),
        ("train --label-smoothing 2", "argument --label-smoothing: expected a number from 0 to below 1"),
        ("train --l2 -1", "argument --l2: expected a non-negative number, got '-1'"),
        ("train --weight-decay nan", "argument --weight-decay: expected a non-negative number, got 'nan'"),
        (
            "train --loss huber --task classification",
            "--loss: expected a loss for classification, cross_entropy,",
        ),
        ("train --loss cross_entropy --task regression", "--loss: expected a loss for regression, mse,"),
        (
            "train --label-smoothing 0.1 --task regression",
            "--label-smoothing: expected a classification, got a regression",
        ),
        (
            "train --class-weight balanced --task regression",
            "--class-weight: expected a classification, got a regression",
        ),
        ("train --class-weight equal", "argument --class-weight: invalid choice: 'equal'"),
        ("train --max-norm 0", "argument --max-norm: expected a positive number or inf, got '0'"),
        ("train --max-time -3", "argument --max-time: expected a positive number or inf, got '-3'"),
        ("train --ema 1", "argument --ema: expected a number from 0 to below 1, got '1'"),
        ("train --model-format onnx", "argument --model-format: invalid choice: 'onnx'"),
        ("train --task guess", "argument --task: invalid choice: 'guess'"),
        ("train --lr fast", "argument --lr: expected a positive number, got 'fast'"),
        ("train --lr 0", "argument --lr: expected a positive number, got '0'"),
        ("train --lr nan", "argument --lr: expected a positive number, got 'nan'"),
        ("train --lr inf", "argument --lr: expected a positive number, got 'inf'"),
        ("train --lr", "argument --lr: expected one argument"),
        (
            "train --callbacks reduce_lr_on_plateau --lr-schedule cosine",
            "--callbacks: reduce_lr_on_plateau and --lr-schedule cosine both set the learning rate",
        ),
        ("train --epochs 0", "--epochs: expected a positive integer, got '0'"),
        ("compare --epochs 1.5", "--epochs: expected a positive integer, got '1.5'"),
        ("compare --lr 1", "unrecognized arguments: --lr 1"),
        ("train --batch-size -1", "--batch-size: expected a positive integer, got '-1'"),
        ("train --seed -1", "--seed: expected a non-negative integer, got '-1'"),
        ("train --hidden 64,", "argument --hidden: expected a positive integer, got ''"),
        ("train --hidden 0", "--hidden: expected a positive integer, got '0'"),
        ("train --hidden 99999999999", "--hidden: expected a positive integer"),
        ("train --hidden 2000000000,2000000000", "fastopt: "),
        ("train --data none.npz", "no such file or folder: none.npz"),
        ("compare --data none.npz", "no such file or folder: none.npz"),
        ("train --data .", "the file train-images-idx3-ubyte (or .gz) is missing"),
        ("train --label 3", "--label: expected a table as data, got digits"),
        ("train --sep tab", "--sep: expected a table as data, got digits"),
        ("train --ignore 3", "--ignore: expected a table as data, got digits"),
        ("train --no-standardize", "--no-standardize: expected a table as data, got digits"),
        ("train --header --no-header", "argument --no-header: not allowed with argument --header"),
        ("train --sep ab", "argument --sep: expected a character, tab or blanks, got 'ab'"),
        ("train --validation-split 1", "argument --validation-split: expected a number from 0 to below 1"),
        ("train --validation none.npz", "no such file or folder: none.npz"),
        ("train --test none.npz", "no such file or folder: none.npz"),
        (
            "train --validation-split 0 --callbacks early_stopping",
            "--callbacks: early_stopping: monitor: unknown metric 'val_loss'",
        ),
        ("compare --plot none/c.png", "--plot: cannot write none/c.png: No such file"),
        ("compare --plot c.doc", "--plot: expected a name that ends in"),
        ("lr-find --plot none/c.png", "--plot: cannot write none/c.png: No such file"),
        ("lr-find --steps 9", "argument --steps: expected an integer of at least 10, got '9'"),
        ("lr-find --start-lr 1 --end-lr 1", "--start-lr: expected less than --end-lr 1, got 1"),
        ("predict", "the following arguments are required: RUN, DATA"),
        ("predict none.npz digits", "none.npz: No such file"),
        ("predict . digits", "fastopt: .: found no model.npz or model.safetensors in this folder"),
    ],
)
def test_wrong_arguments(check_error, plots, args, message):
    assert message in check_error(*args.split())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--activation", "soft", "argument --activation: unknown name 'soft'; expected one of "),
        ("--activation", "relu,tanh", "--activation: expected one value, or one per hidden layer (1)"),
        (
            "--norm", "instance",
            "argument --norm: unknown name 'instance'; expected one of none, batch, layer",
        ),
        ("--dropout", "1", "argument --dropout: expected a number from 0 to below 1, got '1'"),
        ("--dropout", "0.1,", "argument --dropout: expected a number from 0 to below 1, got ''"),
        ("--dropout", "0.1,0.2", "--dropout: expected one value, or one per hidden layer (1), got 2"),
        ("--loss", "hinge", "argument --loss: unknown name 'hinge'; expected one of auto, cross_entropy"),
        ("--loss", "mse(delta=1)", "argument --loss: mse takes no arguments here, got 'delta'"),
        ("--loss", "huber(delta=0)", "--loss: huber: delta"),
        ("--loss", "binary_cross_entropy", "--loss: binary_cross_entropy needs two classes, got 10"),
        ("--optimizer", "sdg", "argument --optimizer: unknown name 'sdg'; did you mean 'sgd'?"),
        ("--optimizer", "adam,sgd", "argument --optimizer: expected one of adabelief, "),
        ("--optimizer", "adam(lr=1)", "argument --optimizer: adam has no argument 'lr' here"),
        ("--optimizer", "adam(bet=1)", "adam has no argument 'bet' here; did you mean 'betas'?"),
        ("--optimizer", "adam(lookahead=3)", "--optimizer: adam: lookahead: expected a pair (k, alpha)"),
        ("--optimizer", "adam(eps=-1)", "--optimizer: adam: eps: expected a finite number in [0"),
        ("--optimizer", "adam(eps='a')", "--optimizer: adam: eps: expected a number, got 'a'"),
        ("--lr-schedule", "one-cycle", "unknown name 'one - cycle'; did you mean 'one_cycle'?"),
        ("--lr-schedule", "cosine(lr=1)", "argument --lr-schedule: cosine has no argument 'lr' here"),
        ("--lr-schedule", "cosine(min_lr=1)", "--lr-schedule: cosine: min_lr: expected at most lr=0.001"),
        ("--lr-schedule", "step", "--lr-schedule: step: missing a required argument: 'step_size'"),
        (
            "--lr-schedule", "linear_warmup(steps=3,then=2)",
            "--lr-schedule: linear_warmup: then: expected a schedule, got 2",
        ),
        (
            "--lr-schedule", "linear_warmup(steps=3,then=x)",
            "--lr-schedule: unknown name 'x'; expected one of ",
        ),
        (
            "--lr-schedule", "join(schedules=[cosine,2],lengths=[3])",
            "--lr-schedule: join: schedules: expected a list of schedules, got [Call",
        ),
        (
            "--lr-schedule", "join(schedules=[cosine,step(step_size=2)])",
            "--lr-schedule: join: missing a required argument: 'lengths'",
        ),
        (
            "--lr-schedule", "join(schedules=[cosine,cosine],lengths=['a'])",
            "--lr-schedule: join: lengths[0]: expected an integer, got 'a'",
        ),
        ("--callbacks", "early_stoping", "unknown name 'early_stoping'; did you mean 'early_stopping'?"),
        ("--callbacks", "early_stopping(5)", "expected arguments as in name(argument=value), got 'early_s"),
        ("--callbacks", "early_stopping(**{})", "expected arguments as in name(argument=value), got 'ear"),
        ("--callbacks", "early_stopping(patience=f())", "patience: expected a number, a string, True, "),
        ("--callbacks", "early_stopping(patience=-1)", "--callbacks: early_stopping: patience: expected"),
        ("--callbacks", "early_stopping(patience='a')", "--callbacks: early_stopping: patience: expected"),
        (
            "--callbacks", "early_stopping(monitor='f1',mode='max')",
            "early_stopping: monitor: unknown metric 'f1'; expected one of loss, accuracy,",
        ),
        ("--callbacks", "early_stopping(monitor='val_acc')", "mode='max', or did you mean 'val_accuracy'?"),
        (
            "--callbacks", "early_stopping(monitor='val_acc',mode='max')",
            "early_stopping: monitor: unknown metric 'val_acc'; did you mean 'val_accuracy'?",
        ),
        ("--callbacks", "early_stopping(", "argument --callbacks: expected name(argument=value, ...), got"),
        ("--callbacks", "terminate_on_nan]+[csv_logger", "expected name(argument=value, ...), got"),
        ("--callbacks", "__import__('os').getcwd()", "--callbacks: unknown name \"__import__('os').getcwd\""),
        ("--callbacks", "model_checkpoint", "model_checkpoint: missing a required argument: 'filepath'"),
        ("--callbacks", "csv_logger(filename=3)", "--callbacks: csv_logger: filename: expected a string"),
        ("--callbacks", "model_checkpoint(filepath=b'a')", "model_checkpoint: filepath: expected a string"),
        ("--callbacks", "terminate_on_nan(raise_error=True)", "terminate_on_nan takes no arguments here"),
        ("--callbacks", "early_stopping(patience=99999999999999999999)", "patience: expected at most 92233"),
        ("--callbacks", "model_checkpoint(filepath='{x}.npz')", "filepath: expected only epoch, loss,"),
        ("--callbacks", "model_checkpoint(filepath='{0}')", "filepath: expected only epoch, loss,"),
        ("--callbacks", "model_checkpoint(filepath='a/')", "filepath: expected a file name, got 'a/'"),
        ("--callbacks", "csv_logger(filename='')", "filename: expected a file name, got ''"),
        ("--callbacks", "csv_logger(filename='\\0')", "filename: expected a file name, got '\\x00'"),
        ("--callbacks", "csv_logger(filename='a/b')", "filename: expected a name without folders, or an abs"),
        (
            "--callbacks", "model_checkpoint(filepath='a', save_freq=2, save_best_only=True)",
            "model_checkpoint: monitor: unknown metric 'val_loss'; did you mean 'loss'?",
        ),
        (
            "--callbacks", "csv_logger(filename='history.csv')",
            "filename: history.csv would overwrite a file of the run",
        ),
        (
            "--callbacks", "model_checkpoint(filepath='./model.npz')",
            "model.npz would overwrite a file of the run",
        ),
    ],
)
def test_wrong_values(check_error, option, value, message):
    assert message in check_error("train", option, value)


def test_damaged_files(check_error, folder):
    pytest.importorskip("pandas")
    X, y = blobs()
    np.savez("data.npz", X=X, y=y)
    whole = (folder / "data.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.csv.gz").write_bytes(gzip.compress(b"1,2,0\n3,4,1\n" * 50)[:30])
    (folder / "argv.csv").write_text("1,2,a\n3,four,b\n")
    assert "cut.npz: damaged, or not an .npz file" in check_error("train", "--data", "cut.npz")
    assert "cut.csv.gz: not a valid CSV file" in check_error("train", "--data", "cut.csv.gz")
    assert "row 2 of column '1' is 'four', expected a number; --na-values four treats it as a missing" in (
        check_error("train", "--data", "argv.csv")
    )
    assert "cut.npz: damaged, or not an .npz file" in check_error("predict", "cut.npz", "digits")
    assert "data.npz: not a saved fastopt.MLP" in check_error("predict", "data.npz", "digits")


def test_invalid_labels(check_error, model):
    X, y = blobs()
    np.savez("short.npz", X=X, y=y[:-1])
    write_csv("one.csv", X, ["ash"] * len(X))
    write_csv("strange.csv", X, np.array(["ash", "birch", "oak"])[y])
    np.savez("numbers.npz", X=X, y=y)
    assert "X has 90 rows, y has 89" in check_error("train", "--data", "short.npz")
    assert "one.csv: expected at least two classes, got one" in check_error("train", "--data", "one.csv")
    assert "label: no column 'tree'; expected one of 0, 1, 2" in (
        check_error("train", "--data", "one.csv", "--label", "tree")
    )
    assert "label=3 is not one of the 3 columns" in check_error(
        "train", "--data", "one.csv", "--label", "3"
    )
    message = "row 3 of column '2' is 'oak', expected labels among the classes of the model"
    assert message in check_error("predict", model, "strange.csv")
    assert "expected labels among the classes of the model, got '0'" in check_error(
        "predict", model, "numbers.npz"
    )
    assert "expected 2 features per sample, as the model has, got 64" in check_error(
        "predict", model, "digits"
    )


def test_poisson_with_negative_labels(check_error):
    X, _ = blobs()
    np.savez("line.npz", X=X, y=X[:, 0])
    assert "--loss: poisson needs non-negative labels, and line.npz has negative ones" in check_error(
        "train", "--data", "line.npz", "--loss", "poisson"
    )


def test_inputs_are_not_overwritten(check_error, model, plots):
    os.link("train.csv", "link.png")
    for args in (
        ["compare", "--data", "train.csv", "--plot", "link.png"],
        ["lr-find", "--data", "train.csv", "--plot", "link.png"],
        ["predict", model, "train.csv", "--output", "train.csv"],
        ["predict", model, "train.csv", "--output", f"{model}/model.npz"],
    ):
        assert "would overwrite another file of this command" in check_error(*args)


def test_plot_without_matplotlib(check_error):
    for command in ("compare", "lr-find"):
        assert "pip install 'fastopt[plot]'" in check_error(command, "--plot", "curves.png")


def test_model_format_without_its_package(check_error, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert "pip install 'fastopt[safetensors]'" in check_error("train", "--model-format", "safetensors")


# --- Standard output -------------------------------------------------------------------------


class OnlyWrites:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


def closed_stream():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [lambda: None, closed_stream, OnlyWrites], ids=["none", "closed", "writes"])
@pytest.mark.parametrize(
    "args",
    [["train", *QUICK], ["compare", *QUICK], ["lr-find"], ["info"], ["compare", "--surface", "beale"], []],
    ids=["train", "compare", "lr-find", "info", "surface", "help"],
)
def test_commands_on_any_standard_output(monkeypatch, make, args):
    streams = make(), make()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert cli.main(args) == 0
    assert (sys.stdout, sys.stderr) == streams
    if isinstance(streams[0], OnlyWrites):
        assert streams[0].text and not streams[1].text


def test_predictions_need_a_standard_output(run, monkeypatch):
    run("train", *QUICK)
    errors = OnlyWrites()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", errors)
    assert cli.main(["predict", "fastopt-run", "digits"]) == 2
    assert errors.text.startswith("fastopt: standard output is closed; write the predictions to a file")
    assert cli.main(["predict", "fastopt-run", "digits", "--output", "labels.txt"]) == 0


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_of_a_process(folder, streams):
    command = f"{shlex.quote(sys.executable)} -m fastopt train --hidden 8 --epochs 1 {streams}"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert names_in("fastopt-run")[-2:] == ["report.html", "summary.json"]


# --- As a process ----------------------------------------------------------------------------


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "fastopt", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_python_m_fastopt():
    process = start("train", *QUICK)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert re.search(LINE, out)

    process = start("train", "--lr", "fast")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == "fastopt train: argument --lr: expected a positive number, got 'fast'\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process")
def test_real_interrupt(folder, ctrl_c):
    process = start("train", "--epochs", "1000000")
    for line in process.stdout:
        if line.startswith("Epoch 3"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "Interrupted after" in out and "Saved the run in fastopt-run" in out
    assert (folder / "fastopt-run" / "model.npz").exists()


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error on Windows")
def test_closed_pipe(run):
    run("train", *QUICK)
    X, _ = data.load_digits()
    np.savez("many.npz", X=np.tile(X, (30, 1)))
    process = start("predict", "fastopt-run", "many.npz")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1
