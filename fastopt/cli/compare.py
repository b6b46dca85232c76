"""``fastopt compare``: train one network with six optimizers, or compare their paths on a surface."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from fastopt import callbacks, plots
from fastopt.cli import options, outputs, registry, surface, training
from fastopt.cli.calls import Call
from fastopt.cli.parser import INTERRUPTED, Parser
from fastopt.nn import Callback, History, Trainer
from fastopt.nn.data import Dataset
from fastopt.nn.history import is_terminal, print_line
from fastopt.nn.typing import Logs

COMPARED = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam")

_COLUMNS = ("Optimizer", "Learning rate", "Loss", "Val. loss", "Val. accuracy", "Time (s)")
_ROW = "{:>14}{:>11}{:>12}{:>16}{:>11}"

EXAMPLES = """
fastopt compare --data iris.csv --plot losses.png
fastopt compare --optimizers "adam, lion, sgd(lr=0.05, momentum=0.9)"
fastopt compare --surface rosenbrock --plot paths.gif
"""


def add_options(command: Parser) -> None:
    """Declare the options of ``fastopt compare``."""
    options.add_data_options(command)
    options.add_model_options(command)
    options.add_epochs_option(options.add_training_options(command))
    surface.add_options(command)
    command.add_argument(
        "--optimizers", type=registry.parse_optimizers, default=", ".join(COMPARED), metavar="LIST",
        help="comma-separated list, for example 'adam, sgd(lr=0.001, momentum=0.9)'; optimizers "
             "without lr use the default of 'fastopt train' or, with --surface, the best of several rates "
             "(default: %(default)s)",
    )
    command.add_argument(
        "--plot", metavar="FILE.png",
        help="draw the losses against epochs and time or, with --surface, the paths (animated if .gif)",
    )


def run(args: argparse.Namespace) -> int:
    """Train once per optimizer and print a row of results for each; return the exit status."""
    surface.check_options(args)
    if args.surface is not None:
        return surface.run(args)
    outputs.check_plot(args.plot, args.data)
    dataset = training.load(args)
    net = training.make_model(args, dataset)
    calls = registry.label_calls(args.optimizers)
    for call in calls.values():     # raises before anything is printed
        registry.make_optimizer(call, net.params, registry.OPTIMIZERS[call.name][1])
    print(training.describe(args, dataset, net))
    print(f"Training: {training.plural(args.epochs, 'epoch')}, batch size {args.batch_size}\n")
    columns = [c for c in _COLUMNS if dataset.classes is not None or c != "Val. accuracy"]
    if dataset.validation_data is None:
        columns = [c for c in columns if not c.startswith("Val.")]
    width = max(len(label) for label in ("Optimizer", *calls)) + 2
    print_line(_format_row(dict(zip(columns, columns, strict=True)), width))

    histories: dict[str, History] = {}
    interrupted = False
    for label, call in calls.items():
        history = _train(label, call, args, dataset)
        interrupted = history.interrupted
        if history.epoch:
            histories[label] = history
            print_line(_format_row(_results(label, history), width))
        if interrupted:
            print("Interrupted: the last row may have fewer epochs than the others.")
            break
    print("\nLoss: mean over the samples of the last epoch. Time: training steps only.")
    print("Val.: of the validation data after the last epoch.")
    if args.plot is not None and histories:
        plots.plot_comparison(histories, args.plot, title=f"Training loss: {training.data_name(args)}")
        print(f"Saved the plot in {args.plot}")
    elif args.plot is not None:
        print("Nothing to plot: no epoch was finished")
    return INTERRUPTED if interrupted else 0


def _train(label: str, call: Call, args: argparse.Namespace, dataset: Dataset) -> History:
    """Train with one optimizer. The initial weights depend on the seed only."""
    net = training.make_model(args, dataset)
    opt = registry.make_optimizer(call, net.params, registry.OPTIMIZERS[call.name][1])
    hooks: list[Callback] = [callbacks.TerminateOnNaN()]
    if is_terminal(sys.stdout):
        hooks.append(_Status(label, args.epochs))
    trainer = Trainer(net, opt, hooks, max_norm=training.none_if_off(args.max_norm))
    return training.fit(trainer, args, dataset, verbose=0, training_accuracy=False)


def _results(name: str, history: History) -> dict[str, str]:
    last = history.last()
    return {
        "Optimizer": name,
        "Learning rate": f"{last['lr']:g}",
        "Loss": training.format_float(last["loss"], 1e5, 2),
        "Val. loss": training.format_float(last["val_loss"], 1e5, 2) if "val_loss" in last else "",
        "Val. accuracy": f"{last['val_accuracy']:.4f}" if "val_accuracy" in last else "",
        "Time (s)": f"{sum(history.history['seconds']):.2f}",
    }


def _format_row(cells: Mapping[str, str], width: int) -> str:
    first, *others = (cells.get(column, "") for column in _COLUMNS)
    return f"{first:<{width}}" + _ROW.format(*others)


class _Status(Callback):
    """Shows the current epoch on a terminal, on a line that the next row of the table overwrites."""

    def __init__(self, name: str, epochs: int) -> None:
        self._name, self._epochs = name, epochs

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        print(f"\r{f'{self._name}: epoch {epoch + 1} of {self._epochs}':<40}\r", end="", flush=True)

    def on_train_end(self, logs: Logs) -> None:
        print(f"\r{'':<40}\r", end="", flush=True)
