"""The command line: what it prints, writes, refuses, and with which exit status."""

import gzip
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from files import write, write_idx_folder

import fastopt
from fastopt import cli
from fastopt.nn import MLP, Callback, data

LINE = r"Loss = \d+\.\d{4} \| Training Accuracy = [01]\.\d{4} \| Test Accuracy = [01]\.\d{4}"
QUICK = ["--hidden", "8", "--epochs", "2"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own, where relative paths lead."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(capsys):
    def run(*args):
        status = cli.main([str(arg) for arg in args])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def refused(run, folder):
    """Run what must be refused: status 2, one line on standard error, no file, no output."""

    def refused(*args):
        before = sorted(folder.iterdir())
        status, out, err = run(*args)
        assert (status, out) == (2, "")
        assert err.startswith("fastopt") and err.endswith("\n") and err.count("\n") == 1
        assert sorted(folder.iterdir()) == before
        return err

    return refused


# --- Data made for the tests -----------------------------------------------------------------


def blobs(n=90, seed=0):
    """Return three clouds of points, far apart, and the number of each point's cloud."""
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
    """Write dark and bright images by turns, 60 for training and 30 for test."""
    rng = np.random.default_rng(0)
    parts = {}
    for prefix, n in (("train", 60), ("t10k", 30)):
        y = (np.arange(n) % 2).astype(np.uint8)
        X = rng.integers(0, 60, (n, 2, 3), dtype=np.uint8)
        X[y == 1] += 180
        parts[prefix] = X, y
    write_idx_folder(folder, parts)


# --- train -----------------------------------------------------------------------------------


def test_train_prints_the_lines_and_saves(run, folder):
    status, out, err = run("train")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:4] == [
        "Data: digits",
        "Rows: 1438 for training, 359 for test; 64 features, 10 classes",
        "Net: 64-128-10, relu, 9610 parameters",
        "Optimizer: adam, learning rate 0.001, batch size 32",
    ]
    assert lines[4] == "" and lines[5:45:2] == [f"Epoch {n}" for n in range(1, 21)]
    assert all(re.fullmatch(LINE, line) for line in lines[6:45:2])
    assert re.fullmatch(r"Time: \d+\.\d\d s, \d+\.\d\d s of it in training steps", lines[46])
    assert lines[44].endswith(f"| Test {lines[47].removeprefix('Test ')}")
    assert lines[48:] == ["Saved the model to fastopt-model.npz"]
    assert max(map(len, lines)) <= 80
    assert [path.name for path in folder.iterdir()] == ["fastopt-model.npz"]


@pytest.mark.parametrize("seed", range(10))
def test_train_learns_the_digits_whatever_the_seed(run, seed):
    status, out, _ = run("train", "--seed", seed)
    assert status == 0
    assert float(re.search(r"^Test Accuracy = (.*)$", out, re.M)[1]) >= 0.95


def test_saved_model_is_the_trained_net(run):
    _, out, _ = run("train", *QUICK, "--save", "deep.model", "--activation", "tanh")
    net = MLP.load("deep.model")
    assert (net.sizes, net.activation, net.loss) == ((64, 8, 10), "tanh", "cross_entropy")
    digits = data.load("digits")
    right = (net.predict(digits.X_test) == digits.y_test).mean()
    assert f"\nTest Accuracy = {right:.4f}\n" in out


def without_times(out):
    return re.sub(r"(Time: .*|\d+\.\d\d$)", "", out, flags=re.M)


def test_seed_fixes_everything(run):
    first, again, other = (run("train", *QUICK, "--seed", seed)[1] for seed in (3, 3, 4))
    assert without_times(first) == without_times(again) != without_times(other)


@pytest.mark.parametrize("name", cli.OPTIMIZERS)
def test_every_optimizer_is_the_one_of_its_name(run, name):
    """The same net trained by hand ends at the same bits."""
    makers = {
        "sgd": lambda p: fastopt.SGD(p, lr=0.01),
        "momentum": lambda p: fastopt.SGD(p, lr=0.01, momentum=0.9),
        "nesterov": lambda p: fastopt.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        "adagrad": lambda p: fastopt.Adagrad(p, lr=0.01),
        "rmsprop": lambda p: fastopt.RMSprop(p, lr=0.01),
        "adam": lambda p: fastopt.Adam(p, lr=0.01),
        "adamw": lambda p: fastopt.AdamW(p, lr=0.01),
        "amsgrad": lambda p: fastopt.Adam(p, lr=0.01, amsgrad=True),
    }
    X, y = blobs()
    np.savez("blobs.npz", X=X, y=y)
    options = ["--data", "blobs.npz", *QUICK, "--batch-size", 16, "--seed", 5]
    status, out, _ = run("train", *options, "--optimizer", name, "--lr", 0.01)
    assert status == 0 and f"Optimizer: {name}, learning rate 0.01, batch size 16\n" in out
    dataset = data.load("blobs.npz")
    net = MLP([2, 8, 3], seed=5)
    trainer = fastopt.nn.Trainer(net, makers[name](net.params))
    trainer.fit(dataset.X_train, dataset.y_train, 16, 2, verbose=0, seed=5)
    saved = MLP.load("fastopt-model.npz")
    for ours, theirs in zip(net.params, saved.params, strict=True):
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(p, q)


def test_default_rates_learn(run):
    X, y = blobs()
    np.savez("blobs.npz", X=X, y=y)
    for name in cli.OPTIMIZERS:
        _, out, _ = run("train", "--data", "blobs.npz", "--optimizer", name, "--epochs", 40)
        assert float(re.search(r"^Test Accuracy = (.*)$", out, re.M)[1]) >= 0.9, name


def test_train_on_idx_folder(run, folder):
    write_images(folder)
    status, out, _ = run("train", "--data", ".", "--hidden", "8,4", "--epochs", 60, "--lr", 0.01)
    assert status == 0
    assert "Rows: 60 for training, 30 for test; 6 features, 2 classes\n" in out
    assert "Net: 6-8-4-2, relu, 102 parameters\n" in out
    assert "\nTest Accuracy = 1.0000\n" in out


def test_regression(run):
    X, _ = blobs(200)
    write_csv("line.csv", X, 3.0 * X[:, 0] - X[:, 1] + 0.5)
    status, out, _ = run("train", "--data", "line.csv", "--epochs", 60, "--lr", 0.01)
    assert status == 0
    assert "2 features, 1 output\n" in out
    assert re.search(r"^Loss = \S+ \| Test Loss = \S+$", out, re.M)
    assert float(re.search(r"^Test R2 = (.*)$", out, re.M)[1]) > 0.98

    status, out, err = run("predict", "fastopt-model.npz", "line.csv")
    assert status == 0
    values = np.array([float(line) for line in out.splitlines()])
    assert np.corrcoef(values, 3.0 * X[:, 0] - X[:, 1])[0, 1] > 0.99
    assert re.fullmatch(r"R2 = 0\.9\d{3} \(200 rows\)\n", err)


def test_task_overrides_the_type_of_the_labels(run):
    X, y = blobs()
    write_csv("whole.csv", X, y)
    assert "1 output\n" in run("train", "--data", "whole.csv", *QUICK, "--task", "regression")[1]
    write_csv("real.csv", X, y.astype(float))
    options = ["--data", "real.csv", *QUICK, "--task", "classification"]
    assert "3 classes\n" in run("train", *options)[1]


def test_diverged_training_stops_and_saves_nothing(run, folder):
    status, out, err = run("train", "--optimizer", "sgd", "--lr", 1e12)
    assert status == 1
    assert err == (
        "fastopt: the training diverged in epoch 1, and no model was saved; "
        "try a lower --lr than 1e+12\n"
    )
    assert "Epoch 2" not in out and not list(folder.iterdir())


def test_train_draws_curves(run, folder):
    pytest.importorskip("matplotlib")
    status, out, _ = run("train", *QUICK, "--plot", "curves.png")
    assert status == 0 and out.endswith("Drew the curves in curves.png\n")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


class InterruptIn(Callback):
    """Presses Ctrl-C in an epoch, or rather does what that does."""

    def __init__(self, epoch):
        self._epoch = epoch

    def on_epoch_begin(self, epoch, logs):
        if epoch == self._epoch:
            raise KeyboardInterrupt


def interrupt_in(monkeypatch, epoch):
    real = cli.Trainer
    monkeypatch.setattr(
        cli, "Trainer", lambda net, opt, callbacks: real(net, opt, [*callbacks, InterruptIn(epoch)])
    )


@pytest.mark.parametrize("done", [0, 3])
def test_interrupted_training_is_saved(run, folder, monkeypatch, done):
    pytest.importorskip("matplotlib")
    interrupt_in(monkeypatch, done)
    status, out, err = run("train", "--plot", "curves.png")
    assert (status, err) == (130, "")
    assert f"Interrupted after {done} epochs" in out and "Saved the model" in out
    assert MLP.load("fastopt-model.npz").sizes == (64, 128, 10)
    assert (folder / "curves.png").exists() == (done > 0)
    assert ("Drew no curves: no epoch was finished" in out) == (done == 0)


# --- predict ---------------------------------------------------------------------------------


@pytest.fixture
def model(run):
    """A model of the three clouds, whose labels are names."""
    X, y = blobs()
    write_csv("train.csv", X, NAMES[y])
    assert run("train", "--data", "train.csv", "--epochs", 60, "--save", "model.npz")[0] == 0
    return "model.npz"


def test_predict_names_in_the_order_of_the_rows(run, model):
    X, y = blobs(50, seed=1)
    write_csv("new.csv", X, NAMES[y])
    status, out, err = run("predict", model, "new.csv")
    assert status == 0
    right = (np.array(out.split("\n")[:-1]) == NAMES[y]).mean()
    assert right > 0.9
    assert err == f"Accuracy = {right:.4f} (50 rows)\n"


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


def test_predict_refuses_another_number_of_features(refused, model):
    X, y = blobs(5)
    write_csv("wide.csv", np.column_stack([X, X]))
    write_csv("names.csv", X[:, :1], NAMES[y])
    np.savez("flat.npz", X=X[:, 0])
    assert "wide.csv: the model takes 2 features a row, got 3" in refused("predict", model, "wide.csv")
    assert "is not a finite number" in refused("predict", model, "names.csv")
    assert "X must have at least two dimensions" in refused("predict", model, "flat.npz")


def test_predict_with_a_column_of_labels_elsewhere(run, model):
    X, y = blobs(50, seed=1)
    write_csv("first.csv", X, NAMES[y], names=["tree", "a", "b"], first=True)
    assert run("predict", model, "first.csv", "--label", "tree")[1:] == run(
        "predict", model, "first.csv", "--label", "0"
    )[1:]
    assert "Accuracy = " in run("predict", model, "first.csv", "--label", "-3")[2]


def test_predict_to_a_file(run, model, folder):
    printed = run("predict", model, "train.csv")
    written = run("predict", model, "train.csv", "--output", "labels.txt")
    assert written == (0, "", printed[2])
    assert (folder / "labels.txt").read_text() == printed[1]


def test_predict_takes_the_test_part(run, folder):
    write_images(folder)
    run("train", "--data", ".", "--epochs", 60, "--lr", 0.01, "--save", "model.npz")
    status, out, err = run("predict", "model.npz", ".")
    assert (status, out, err) == (0, "0\n1\n" * 15, "Accuracy = 1.0000 (30 rows)\n")


def test_predict_with_a_net_saved_from_python(run):
    net = MLP([64, 10], loss="cross_entropy", seed=0)
    net.save("net.npz")
    X, y = data.load_digits()
    status, out, err = run("predict", "net.npz", "digits")
    assert status == 0
    np.testing.assert_array_equal([int(line) for line in out.splitlines()], net.predict(X))
    assert err == f"Accuracy = {(net.predict(X) == y).mean():.4f} (1797 rows)\n"


# --- compare ---------------------------------------------------------------------------------


def test_compare_prints_a_table(run, folder):
    pytest.importorskip("matplotlib")
    status, out, err = run("compare", "--epochs", 3, "--plot", "curves.png")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[3] == "Training: 3 epochs, batch size 32"
    assert re.split(r"  +", lines[5]) == [
        "Optimizer", "Learning rate", "Loss", "Test loss", "Test accuracy", "Time (s)",
    ]
    rows = [line.split() for line in lines[6:12]]
    assert [row[0] for row in rows] == list(cli.COMPARED)
    assert {len(line) for line in lines[5:12]} == {len(lines[5])}
    assert all(0.5 < float(row[4]) <= 1.0 for row in rows)
    assert lines[12] == "" and lines[14:] == ["Drew the curves in curves.png"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_compare_and_train_agree(run):
    """All six start from the weights that `train` starts from, and go the same way."""
    _, table, _ = run("compare", *QUICK, "--seed", 7)
    for name in cli.COMPARED:
        _, out, _ = run("train", *QUICK, "--seed", 7, "--optimizer", name)
        loss, accuracy = re.findall(r"^Loss = (\S+) .* Test Accuracy = (\S+)$", out, re.M)[-1]
        row = re.search(rf"^{name} .*$", table, re.M)[0].split()
        assert (row[2], row[4]) == (loss, accuracy)


def test_compare_regressions(run):
    X, _ = blobs(60)
    write_csv("line.csv", X * 1e4, X[:, 0] * 1e6)
    status, out, _ = run("compare", "--data", "line.csv", *QUICK)
    assert status == 0 and "Test accuracy" not in out
    table = out.splitlines()[5:12]
    assert {len(line) for line in table} == {len(table[0])}
    assert "nan" in table[1]  # plain gradient descent diverges on such numbers


def test_interrupted_compare_keeps_the_rows(run, monkeypatch):
    interrupt_in(monkeypatch, 1)
    status, out, err = run("compare", "--epochs", 3)
    assert (status, err) == (130, "")
    assert re.search(r"^sgd .*\nInterrupted", out, re.M) and "momentum" not in out


# --- info ------------------------------------------------------------------------------------


def test_info(run, capsys):
    fastopt.show_config()
    shown = capsys.readouterr().out
    assert run("info") == (0, shown, "")
    for word in (fastopt.__version__, "instruction set", "threads", "BLAS"):
        assert word in shown


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version(capsys, option):
    with pytest.raises(SystemExit) as exit:
        cli.main([option])
    assert exit.value.code == 0
    assert "fastopt" in capsys.readouterr().out


# --- What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "expected a command: train, predict, compare, bench, info"),
        ("fit", "argument COMMAND: invalid choice: 'fit'"),
        ("train more", "unrecognized arguments: more"),
        ("train --opt sgd", "unrecognized arguments: --opt sgd"),
        ("train --optimizer sdg", "argument --optimizer: invalid choice: 'sdg'"),
        ("train --activation soft", "argument --activation: invalid choice: 'soft'"),
        ("train --task guess", "argument --task: invalid choice: 'guess'"),
        ("train --lr fast", "argument --lr: expected a positive number, got 'fast'"),
        ("train --lr 0", "argument --lr: expected a positive number, got '0'"),
        ("train --lr nan", "argument --lr: expected a positive number, got 'nan'"),
        ("train --lr inf", "argument --lr: expected a positive number, got 'inf'"),
        ("train --lr", "argument --lr: expected one argument"),
        ("train --epochs 0", "--epochs: expected a whole number from 1 on, got '0'"),
        ("compare --epochs 1.5", "--epochs: expected a whole number from 1 on, got '1.5'"),
        ("train --batch-size -1", "--batch-size: expected a whole number from 1 on, got '-1'"),
        ("train --seed -1", "--seed: expected a whole number from 0 on, got '-1'"),
        ("train --hidden 64,", "--hidden: expected whole numbers from 1 on, as in 256,128"),
        ("train --hidden 0", "--hidden: expected whole numbers from 1 on, as in 256,128"),
        ("train --hidden 99999999999", "--hidden: expected whole numbers from 1 on"),
        ("train --hidden 2000000000,2000000000", "fastopt: "),
        ("train --data none.npz", "no such file or folder: none.npz"),
        ("compare --data none.npz", "no such file or folder: none.npz"),
        ("train --data .", "the file train-images-idx3-ubyte (or .gz) is missing"),
        ("train --label 3", "--label: digits is not a CSV and has no columns"),
        ("train --save none/m.npz", "--save: cannot write none/m.npz: No such file"),
        ("train --save .", "--save: cannot write .: "),
        ("train --plot none/c.png", "--plot: cannot write none/c.png: No such file"),
        ("compare --plot none/c.png", "--plot: cannot write none/c.png: No such file"),
        ("train --plot c.doc", "--plot: expected a name that ends in"),
        ("train --save c.png --plot c.png", "--plot: c.png would overwrite another file"),
        ("predict", "the following arguments are required: MODEL, DATA"),
        ("predict none.npz digits", "none.npz: No such file"),
        ("predict . digits", "fastopt: .: "),
    ],
)
def test_wrong_arguments(refused, args, message):
    if "--plot" in args:
        pytest.importorskip("matplotlib")
    assert message in refused(*args.split())


def test_damaged_files(refused, folder):
    pytest.importorskip("pandas")
    X, y = blobs()
    np.savez("data.npz", X=X, y=y)
    whole = (folder / "data.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.csv.gz").write_bytes(gzip.compress(b"1,2,0\n3,4,1\n" * 50)[:30])
    (folder / "words.csv").write_text("1,2,a\n3,four,b\n")
    assert "cut.npz: damaged, or not an .npz file" in refused("train", "--data", "cut.npz")
    assert "cut.csv.gz: not a sound CSV file" in refused("train", "--data", "cut.csv.gz")
    assert "row 2 of column 1 is not a finite number" in refused("train", "--data", "words.csv")
    assert "cut.npz: damaged, or not an .npz file" in refused("predict", "cut.npz", "digits")
    assert "data.npz: not a saved fastopt.MLP" in refused("predict", "data.npz", "digits")


def test_labels_that_do_not_fit(refused, model):
    X, y = blobs()
    np.savez("short.npz", X=X, y=y[:-1])
    write_csv("one.csv", X, ["ash"] * len(X))
    write_csv("strange.csv", X, np.array(["ash", "birch", "oak"])[y])
    np.savez("numbers.npz", X=X, y=y)
    assert "X has 90 rows, y has 89" in refused("train", "--data", "short.npz")
    assert "all labels are the same" in refused("train", "--data", "one.csv")
    assert "no column 'tree'" in refused("train", "--data", "one.csv", "--label", "tree")
    assert "label=3 is not one of the 3 columns" in refused(
        "train", "--data", "one.csv", "--label", "3"
    )
    assert "the label 'oak' is none of the model's classes" in refused(
        "predict", model, "strange.csv"
    )
    assert "the label 0 is none of the model's classes" in refused("predict", model, "numbers.npz")
    assert "the model takes 2 features a row, got 64" in refused("predict", model, "digits")


def test_files_in_use_are_not_overwritten(refused, model, folder):
    before = (folder / "train.csv").read_bytes()
    os.link("train.csv", "link.csv")
    for args in (
        ["train", "--data", "train.csv", "--save", "train.csv"],
        ["train", "--data", "train.csv", "--save", "link.csv"],
        ["predict", model, "train.csv", "--output", "train.csv"],
        ["predict", model, "train.csv", "--output", model],
    ):
        assert "would overwrite another file of this command" in refused(*args)
    assert (folder / "train.csv").read_bytes() == before


def test_plot_without_matplotlib(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in ("train", "compare"):
        assert "pip install 'fastopt[plot]'" in refused(command, "--plot", "curves.png")


# --- As a process ----------------------------------------------------------------------------


def start(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "fastopt", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_module_is_the_command():
    process = start("train", *QUICK)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert re.search(LINE, out)

    process = start("train", "--lr", "fast")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == "fastopt train: argument --lr: expected a positive number, got 'fast'\n"


@pytest.mark.skipif(os.name == "nt", reason="a signal to one process of a Windows console")
def test_real_interrupt(folder):
    process = start("train", "--epochs", "1000000")
    for line in process.stdout:
        if line.startswith("Epoch 3"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "Interrupted after" in out and "Saved the model to fastopt-model.npz" in out
    assert (folder / "fastopt-model.npz").exists()


@pytest.mark.skipif(os.name == "nt", reason="a broken pipe is another error on Windows")
def test_reader_that_leaves(run):
    run("train", *QUICK, "--save", "model.npz")
    X, _ = data.load_digits()
    np.savez("many.npz", X=np.tile(X, (30, 1)))
    process = start("predict", "model.npz", "many.npz")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1
