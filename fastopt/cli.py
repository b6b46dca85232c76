"""The command line: ``fastopt train``, ``predict``, ``compare``, ``bench`` and ``info``.

Each command is a function that takes the parsed arguments and returns an exit status, and one that
declares its options. Whatever is wrong with the arguments or their files becomes an exception; the
only place that prints it is `main`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
import zipfile

import numpy as np

from fastopt import bench, plots
from fastopt._threads import show_config
from fastopt._version import __version__
from fastopt.nn import MLP, Callback, Trainer, data, metrics
from fastopt.nn.layers import ACTIVATIONS
from fastopt.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop

__all__ = ["main"]

_LARGEST = 2**31 - 1  # of a count: more than anyone has, and NumPy's sizes stay in range
FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130  # exit statuses; 130 is what a shell makes of Ctrl-C

# Class, learning rate and what else makes it that rule. The rates suit a small net.
OPTIMIZERS = {
    "sgd": (SGD, 0.1, {}),
    "momentum": (SGD, 0.02, {"momentum": 0.9}),
    "nesterov": (SGD, 0.02, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (Adagrad, 0.02, {}),
    "rmsprop": (RMSprop, 0.001, {}),
    "adam": (Adam, 0.001, {}),
    "adamw": (AdamW, 0.001, {}),
    "amsgrad": (Adam, 0.001, {"amsgrad": True}),
}
COMPARED = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam")


def main(argv=None):
    """Run a command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit status: 0; 1 if the training diverged; 2 if an argument or a file is not right, with
        one line on standard error that says what is wrong; 130 after Ctrl-C.
    """
    try:
        words = sys.argv[1:] if argv is None else argv
        args = _parser().parse_args(words, argparse.Namespace(words=words))
        status = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _complain("fastopt: interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader has gone (`fastopt predict ... | head`); without this the interpreter would
        # fail once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except _UsageError as error:
        return _complain(str(error), WRONG_USE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return _complain(f"fastopt: {where}{error.strerror or error}", WRONG_USE)
    except (ValueError, MemoryError, ImportError) as error:
        return _complain(f"fastopt: {error}", WRONG_USE)


def _complain(message, status):
    print(" ".join(message.split()), file=sys.stderr)
    return status


# --- train -----------------------------------------------------------------------------------


def _train(args):
    _check_writable("--save", args.save, args.data)
    _check_plot(args.plot, args.data, args.save)
    dataset = _load(args)
    net = _make_net(args, dataset)
    lr = OPTIMIZERS[args.optimizer][1] if args.lr is None else args.lr
    opt = _make_optimizer(args.optimizer, net, lr)
    print(_describe(args, dataset, net))
    print(f"Optimizer: {args.optimizer}, learning rate {lr:g}, batch size {args.batch_size}\n")

    start = time.perf_counter()
    history = _fit(Trainer(net, opt, [_StopWhenDiverged()]), args, dataset, verbose=1)
    seconds = time.perf_counter() - start
    if _diverged(history):
        message = f"the training diverged in epoch {len(history.epoch)}, and no model was saved"
        return _complain(f"fastopt: {message}; try a lower --lr than {lr:g}", FAILED)

    print(f"\nTime: {seconds:.2f} s{_time_of_steps(history)}")
    print(f"Test {_score(dataset.y_test, net.predict(dataset.X_test), dataset.classes)}")
    _save(net, dataset.classes, args.save)
    print(f"Saved the model to {args.save}")
    if args.plot is not None:
        _draw(args.plot, plots.plot_history, history, len(history.epoch))
    return INTERRUPTED if history.interrupted else 0


def _time_of_steps(history):
    """Return how much of the time went into steps; an epoch broken off is not in the history."""
    if history.interrupted:
        return ""
    return f", {sum(history.history['seconds']):.2f} s of it in training steps"


def _draw(path, plot, what, count):
    """Draw curves, unless the training was interrupted before there were any."""
    if count:
        plot(what, path)
        print(f"Drew the curves in {path}")
    else:
        print("Drew no curves: no epoch was finished")


def _fit(trainer, args, dataset, verbose):
    # Where a training diverges, its loss tells so; NumPy's warnings would only tear the output.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return trainer.fit(
            dataset.X_train,
            dataset.y_train,
            batch_size=args.batch_size,
            epochs=args.epochs,
            validation_data=(dataset.X_test, dataset.y_test),
            verbose=verbose,
            seed=args.seed,
            training_accuracy=bool(verbose),
        )


class _StopWhenDiverged(Callback):
    """Ends a training whose loss is NaN or infinite: it does not come back from there."""

    def on_epoch_end(self, epoch, logs):
        if not math.isfinite(logs["loss"]):
            self.trainer.stop_training = True


def _diverged(history):
    return bool(history.epoch) and not math.isfinite(history.last()["loss"])


def _describe(args, dataset, net):
    if dataset.classes is None:
        outputs = _count(net.sizes[-1], "output")
    else:
        outputs = f"{len(dataset.classes)} classes"
    parameters = sum(W.size + b.size for W, b in net.params)
    return (
        f"Data: {args.data}\n"
        f"Rows: {len(dataset.X_train)} for training, {len(dataset.X_test)} for test; "
        f"{_count(net.sizes[0], 'feature')}, {outputs}\n"
        f"Net: {'-'.join(map(str, net.sizes))}, {net.activation}, {parameters} parameters"
    )


def _count(n, noun):
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _score(y, predicted, classes):
    """Return how good predictions are, in words: accuracy of labels, R2 of values."""
    if classes is None:
        return f"R2 = {metrics.r2_score(y, predicted.reshape(y.shape)):.4f}"
    return f"Accuracy = {metrics.accuracy(y, predicted):.4f}"


# --- compare ---------------------------------------------------------------------------------

_COLUMNS = ("Optimizer", "Learning rate", "Loss", "Test loss", "Test accuracy", "Time (s)")
_ROW = "{:<11}{:>14}{:>11}{:>12}{:>16}{:>11}"


def _compare(args):
    _check_plot(args.plot, args.data)
    dataset = _load(args)
    print(_describe(args, dataset, _make_net(args, dataset)))
    print(f"Training: {_count(args.epochs, 'epoch')}, batch size {args.batch_size}\n")
    columns = [c for c in _COLUMNS if dataset.classes is not None or c != "Test accuracy"]
    print(_row(dict(zip(columns, columns, strict=True))), flush=True)

    histories, interrupted = {}, False
    for name in COMPARED:
        history = _train_one(name, args, dataset)
        interrupted = history.interrupted
        if history.epoch:
            histories[name] = history
            print(_row(_results(name, history)), flush=True)
        if interrupted:
            print("Interrupted: the last row may have fewer epochs than the others.")
            break
    print("\nLoss: mean over the last epoch's training rows. Time: training steps alone.")
    if args.plot is not None:
        _draw(args.plot, plots.plot_comparison, histories, len(histories))
    return INTERRUPTED if interrupted else 0


def _train_one(name, args, dataset):
    """Train from the seed's initial weights, the same for every optimizer."""
    net = _make_net(args, dataset)
    opt = _make_optimizer(name, net, OPTIMIZERS[name][1])
    callbacks = [_StopWhenDiverged()]
    if sys.stdout.isatty():
        callbacks.append(_Status(name, args.epochs))
    return _fit(Trainer(net, opt, callbacks), args, dataset, verbose=0)


def _results(name, history):
    last = history.last()
    results = {
        "Optimizer": name,
        "Learning rate": f"{last['lr']:g}",
        "Loss": _decimals(last["loss"]),
        "Test loss": _decimals(last["val_loss"]),
        "Time (s)": f"{sum(history.history['seconds']):.2f}",
    }
    if "val_accuracy" in last:
        results["Test accuracy"] = f"{last['val_accuracy']:.4f}"
    return results


def _decimals(loss):
    return f"{loss:.4f}" if abs(loss) < 1e5 else f"{loss:.2e}"


def _row(cells):
    return _ROW.format(*(cells.get(column, "") for column in _COLUMNS))


class _Status(Callback):
    """Shows on a terminal what is being trained, on a line that the table's next row replaces."""

    def __init__(self, name, epochs):
        self._name = name
        self._epochs = epochs

    def on_epoch_begin(self, epoch, logs):
        self._show(f"{self._name}: epoch {epoch + 1} of {self._epochs}")

    def on_train_end(self, logs):
        self._show("")

    def _show(self, text):
        print(f"\r{text:<40}\r", end="", flush=True)


# --- predict ---------------------------------------------------------------------------------


def _predict(args):
    if args.output is not None:
        _check_writable("--output", args.output, args.data, args.model)
    net, classes = _load_model(args.model)
    X, y = _read_rows(args, net.sizes[0])
    predicted = net.predict(X)
    if net.loss != "mse" and classes is not None:
        predicted = classes[predicted]
    score = None if y is None else _score_of_file(args.data, y, predicted, net, classes)
    _write_lines(predicted, args.output)
    if score is not None:
        print(f"{score} ({_count(len(y), 'row')})", file=sys.stderr)
    return 0


def _read_rows(args, features):
    """Return the rows of the data in their order, and their labels; None where there are none.

    Data that come as training and test part give the test part.
    """
    unlabeled = features if args.label is None else None
    X, y = data.read(args.data, label=_label(args), features=unlabeled)[-1]
    if X.shape[1] != features:
        raise ValueError(f"{args.data}: the model takes {features} features a row, got {X.shape[1]}")
    return X, y


def _score_of_file(path, y, predicted, net, classes):
    """Return the score in words, or raise if the file's labels are not of the model's kind."""
    if net.loss == "mse":
        if y.dtype.kind not in "biuf" or y.size != predicted.size:
            raise ValueError(
                f"{path}: the model predicts {_count(net.sizes[-1], 'value')} a row, got labels "
                f"of shape {y.shape} and type {y.dtype}"
            )
        return _score(y, predicted, None)
    known = np.arange(max(net.sizes[-1], 2)) if classes is None else classes
    strange = sorted(set(y.ravel().tolist()).difference(known.tolist()))
    if strange:
        raise ValueError(f"{path}: the label {strange[0]!r} is none of the model's classes")
    return _score(y.reshape(predicted.shape) if y.size == predicted.size else y, predicted, known)


def _write_lines(predicted, path):
    rows = predicted.reshape(len(predicted), -1)
    with contextlib.ExitStack() as stack:
        file = sys.stdout
        if path is not None:
            file = stack.enter_context(open(path, "w", encoding="utf-8"))
        file.writelines(f"{','.join(map(str, row))}\n" for row in rows)


# --- info ------------------------------------------------------------------------------------


def _info(args):
    show_config()
    return 0


# --- Data, net, optimizer, model files ---------------------------------------------------------


def _load(args):
    dataset = data.load(args.data, label=_label(args), task=args.task)
    if dataset.classes is not None and len(dataset.classes) < 2:
        raise ValueError(f"{args.data}: expected two classes or more, all labels are the same")
    return dataset


def _label(args):
    """Return the column of the labels, or raise if it is given for data that have no columns."""
    if args.label is not None and not _is_csv(args.data):
        raise ValueError(f"--label: {args.data} is not a CSV and has no columns")
    return -1 if args.label is None else args.label


def _is_csv(path):
    return path.lower().endswith((".csv", ".csv.gz"))


def _make_net(args, dataset):
    if dataset.classes is None:
        outputs, loss = math.prod(dataset.y_train.shape[1:]), "mse"
    else:
        outputs, loss = len(dataset.classes), "cross_entropy"
    sizes = [dataset.X_train.shape[1], *args.hidden, outputs]
    return MLP(sizes, activation=args.activation, loss=loss, seed=args.seed)


def _make_optimizer(name, net, lr):
    rule, _, others = OPTIMIZERS[name]
    return rule(net.params, lr=lr, **others)


def _save(net, classes, path):
    """Save the net, and beside its arrays the label that each output stands for."""
    net.save(path)
    if classes is not None:
        with zipfile.ZipFile(path, "a") as archive, archive.open("classes.npy", "w") as member:
            np.lib.format.write_array(member, classes, allow_pickle=False)


def _load_model(path):
    """Return the net and its classes; None where it was saved without."""
    net = MLP.load(path)
    classes = data.read_arrays(path).get("classes")
    if classes is not None and classes.shape != (net.sizes[-1],):
        raise ValueError(f"{path}: expected {net.sizes[-1]} classes, got {classes.shape}")
    return net, classes


def _check_writable(option, path, *inputs):
    """Raise if `path` cannot be written, or is one of the files that are read."""
    if any(_same_file(path, other) for other in inputs):
        raise ValueError(f"{option}: {path} would overwrite another file of this command")
    is_new = not os.path.lexists(path)
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise ValueError(f"{option}: cannot write {path}: {error.strerror}") from None
    if is_new:
        os.remove(path)


def _same_file(path, other):
    if os.path.exists(path) and os.path.exists(other):
        return os.path.samefile(path, other)
    return os.path.abspath(path) == os.path.abspath(other)


def _check_plot(path, *others):
    if path is not None:
        plots.check_path(path, "--plot")
        _check_writable("--plot", path, *others)


# --- Arguments ---------------------------------------------------------------------------------


class _UsageError(Exception):
    """The arguments are wrong."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without a page on the usage."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        raise _UsageError(f"{self.prog}: {message}")


def _parser():
    parser = _Parser(prog="fastopt", description="Train neural networks with compiled optimizers.")
    parser.add_argument("--version", action="version", version=f"fastopt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.set_defaults(
        run=lambda args: parser.error(f"expected a command: {', '.join(commands.choices)}")
    )
    for name, run, add_options, purpose in (
        ("train", _train, _add_train_options, "train a net and save it"),
        ("predict", _predict, _add_predict_options, "print what a saved net predicts"),
        ("compare", _compare, _add_compare_options, "train with six optimizers, side by side"),
        ("bench", bench.run, bench.add_options, "time a step beside other libraries"),
        ("info", _info, None, "print version, instruction set, threads and BLAS"),
    ):
        command = commands.add_parser(name, help=purpose, description=purpose.capitalize() + ".")
        command.set_defaults(run=run)
        if add_options is not None:
            add_options(command)
    return parser


def _add_train_options(command):
    _add_training_options(command)
    add = command.add_argument
    add("--optimizer", choices=OPTIMIZERS, default="adam", metavar="NAME",
        help=f"{', '.join(OPTIMIZERS)} (default: %(default)s)")
    add("--lr", type=_rate, metavar="RATE", help="learning rate (default: by the optimizer)")
    add("--save", default="fastopt-model.npz", metavar="PATH",
        help="where to save the model (default: %(default)s)")
    add("--plot", metavar="FILE.png", help="draw loss and accuracy against epochs")


def _add_compare_options(command):
    _add_training_options(command)
    command.add_argument(
        "--plot", metavar="FILE.png", help="draw the losses against epochs and against seconds"
    )


def _add_predict_options(command):
    add = command.add_argument
    add("model", metavar="MODEL", help="a file that 'fastopt train' saved")
    add("data", metavar="DATA", help="rows to predict: files as for 'fastopt train --data'")
    _add_label_option(command)
    add("--output", metavar="PATH", help="write the predictions there, not to standard output")


def _add_training_options(command):
    add = command.add_argument
    add("--data", default="digits", metavar="PATH",
        help="folder of IDX files, or .npz, .csv, .csv.gz (default: the digits of the package)")
    _add_label_option(command)
    add("--task", choices=("auto", "classification", "regression"), default="auto",
        metavar="TASK", help="classification or regression (default: by the type of the labels)")
    add("--hidden", type=_sizes, default=(128,), metavar="SIZES",
        help="widths of the hidden layers, as in 256,128 (default: 128)")
    add("--activation", choices=ACTIVATIONS, default="relu", metavar="NAME",
        help=f"{', '.join(ACTIVATIONS)} (default: %(default)s)")
    add("--epochs", type=_positive, default=20, metavar="N", help="(default: %(default)s)")
    add("--batch-size", type=_positive, default=32, metavar="N", help="(default: %(default)s)")
    add("--seed", type=_seed, default=0, metavar="N",
        help="of the initial weights and the order of the rows (default: %(default)s)")


def _add_label_option(command):
    command.add_argument("--label", type=_column, metavar="COLUMN",
                         help="name or place of a CSV's column of labels (default: the last)")


def _column(text):
    """Return a place as an int, a name as it is."""
    try:
        return int(text)
    except ValueError:
        return text


def _sizes(text):
    try:
        return tuple(_positive(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers from 1 on, as in 256,128; got {text!r}"
        ) from None


def _positive(text):
    return _number(text, int, lambda n: 1 <= n <= _LARGEST, "a whole number from 1 on")


def _seed(text):
    return _number(text, int, lambda n: n >= 0, "a whole number from 0 on")


def _rate(text):
    return _number(text, float, lambda x: 0.0 < x < math.inf, "a positive number")


def _number(text, kind, is_right, expected):
    try:
        number = kind(text)
        if is_right(number):
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
