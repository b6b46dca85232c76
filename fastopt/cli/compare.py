"""``fastopt compare``: six optimizers side by side, on the same net, or some on a surface."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastopt import plots
from fastopt.cli import files, options, parts, surface, training
from fastopt.cli.calls import Call
from fastopt.cli.status import INTERRUPTED
from fastopt.nn import Callback, Trainer, callbacks

if TYPE_CHECKING:
    import argparse

    from fastopt.cli.options import Parser
    from fastopt.nn import History
    from fastopt.nn.data import Dataset
    from fastopt.nn.typing import Logs

__all__ = ["COMPARED", "add_options", "run"]

COMPARED = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam")

_COLUMNS = ("Optimizer", "Learning rate", "Loss", "Test loss", "Test accuracy", "Time (s)")
_ROW = "{:<11}{:>14}{:>11}{:>12}{:>16}{:>11}"


def add_options(command: Parser) -> None:
    """Declare the options of ``fastopt compare``."""
    options.add_data_options(command)
    options.add_net_options(command)
    options.add_epochs_option(options.add_training_options(command))
    surface.add_options(command, COMPARED)
    command.add_argument(
        "--plot", metavar="FILE.png",
        help="draw the losses against epochs and against seconds, or the paths; those move in a FILE.gif",
    )


def run(args: argparse.Namespace) -> int:
    """Train once with each optimizer and print a row about it; return the exit status."""
    surface.check_options(args)
    if args.surface is not None:
        return surface.run(args)
    files.check_plot(args.plot, args.data)
    dataset = training.load(args)
    print(training.describe(args, dataset, training.make_net(args, dataset)))
    print(f"Training: {training.count(args.epochs, 'epoch')}, batch size {args.batch_size}\n")
    columns = [c for c in _COLUMNS if dataset.classes is not None or c != "Test accuracy"]
    print(_row(dict(zip(columns, columns, strict=True))), flush=True)

    histories: dict[str, History] = {}
    interrupted = False
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
        _draw(args.plot, histories)
    return INTERRUPTED if interrupted else 0


def _train_one(name: str, args: argparse.Namespace, dataset: Dataset) -> History:
    """Train from the seed's initial weights, the same for every optimizer."""
    net = training.make_net(args, dataset)
    lr = parts.OPTIMIZERS[name][1]
    opt = parts.make_optimizer(Call(name, {}, name), net.params, lr)
    hooks: list[Callback] = [callbacks.TerminateOnNaN()]
    if sys.stdout.isatty():
        hooks.append(_Status(name, args.epochs))
    trainer = Trainer(net, opt, hooks, max_norm=training.finite(args.max_norm))
    return training.fit(trainer, args, dataset, verbose=0, training_accuracy=False)


def _results(name: str, history: History) -> dict[str, str]:
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


def _decimals(loss: float) -> str:
    return f"{loss:.4f}" if abs(loss) < 1e5 else f"{loss:.2e}"


def _row(cells: Mapping[str, str]) -> str:
    return _ROW.format(*(cells.get(column, "") for column in _COLUMNS))


def _draw(path: str, histories: Mapping[str, History]) -> None:
    if histories:
        plots.plot_comparison(histories, path)
        print(f"Drew the curves in {path}")
    else:
        print("Drew no curves: no epoch was finished")


class _Status(Callback):
    """Shows on a terminal what is being trained, on a line that the table's next row replaces."""

    def __init__(self, name: str, epochs: int) -> None:
        self._name = name
        self._epochs = epochs

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        self._show(f"{self._name}: epoch {epoch + 1} of {self._epochs}")

    def on_train_end(self, logs: Logs) -> None:
        self._show("")

    def _show(self, text: str) -> None:
        print(f"\r{text:<40}\r", end="", flush=True)
