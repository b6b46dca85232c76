"""``fastopt train``: trains a net and leaves a folder of everything about it."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastopt.cli import options, parts, run_folder, training
from fastopt.cli.config import format_config
from fastopt.cli.status import FAILED, INTERRUPTED, complain
from fastopt.nn import Trainer, callbacks, metrics

if TYPE_CHECKING:
    import argparse

    from fastopt.cli.model import Model
    from fastopt.cli.options import Parser
    from fastopt.nn import Callback, History
    from fastopt.nn.data import Dataset
    from fastopt.optimizers import Optimizer

__all__ = ["add_options", "run"]


def add_options(command: Parser) -> None:
    """Declare the options of ``fastopt train``."""
    options.add_data_options(command)
    options.add_net_options(command)
    _add_optimizer_options(options.add_optimizer_options(command).add_argument)
    _add_training_options(options.add_training_options(command))
    add = command.add_argument_group("results").add_argument
    add("--out", metavar="FOLDER",
        help="what the run leaves (default: the first new one of fastopt-run, fastopt-run-2, ...)")
    add("--overwrite", action="store_true", help="replace the run that is in the folder")
    add("--model-format", choices=run_folder.MODELS, default="npz", metavar="NAME",
        help=f"{' or '.join(run_folder.MODELS)} (default: %(default)s)")


def _add_optimizer_options(add: Callable[..., argparse.Action]) -> None:
    add("--lr", type=options.rate, metavar="RATE", help="learning rate (default: by the optimizer)")
    add("--lr-schedule", type=parts.schedule_call, default="constant", metavar="NAME",
        help=f"{', '.join(parts.SCHEDULES)}; as in 'cosine(min_lr=1e-5)' (default: %(default)s)")
    add("--ema", type=options.share, default=0.0, metavar="WEIGHT",
        help="average the weights, with this weight of the past, as 0.999 (default: %(default)s, off)")


def _add_training_options(group: Any) -> None:
    options.add_epochs_option(group)
    add = group.add_argument
    add("--max-time", type=options.limit, default=math.inf, metavar="SECONDS",
        help="end the training after the batch in which they are over (default: inf)")
    add("--callbacks", type=parts.callback_calls, default="", metavar="LIST",
        help=f"{', '.join(parts.CALLBACKS)}; as in 'early_stopping(patience=5)' (default: none)")


def run(args: argparse.Namespace) -> int:
    """Train; return the exit status."""
    training.resolve(args)
    dataset = training.load(args)
    net = training.make_net(args, dataset)
    opt = _make_optimizer(args, net, dataset)
    parts.check_callbacks(args.callbacks, args.lr_schedule, dataset.classes)
    config = format_config(args, args.command).encode()
    _check_saving(args, net)
    folder = run_folder.create_folder(args.out, args.overwrite, args.data)
    run_folder.write_config(folder, config)
    print(training.describe(args, dataset, net))
    print(f"Optimizer: {_describe_optimizer(args)}\n")

    trainer = Trainer(net, opt, _make_callbacks(args, folder), max_norm=training.finite(args.max_norm))
    start = time.perf_counter()
    history = training.fit(trainer, args, dataset, max_time=training.finite(args.max_time))
    seconds = time.perf_counter() - start
    if training.diverged(history):
        what = f"the training diverged in epoch {len(history.epoch)}, and no model was saved in {folder}"
        return complain(f"fastopt: {what}; try a lower --lr than {args.lr:g}", FAILED)

    print(f"\nTime: {seconds:.2f} s{_time_of_steps(history)}")
    _report(args, dataset, net, history, folder)
    return INTERRUPTED if history.interrupted else 0


def _make_optimizer(args: argparse.Namespace, net: Model, dataset: Dataset) -> Optimizer:
    steps = args.epochs * -(-len(dataset.X_train) // args.batch_size)
    return parts.make_optimizer(
        args.optimizer,
        net.params,
        parts.make_schedule(args.lr_schedule, args.lr, steps),
        weight_decay=args.weight_decay,
        ema=args.ema or None,
    )


def _check_saving(args: argparse.Namespace, net: Model) -> None:
    """Raise if the model cannot be saved as it is to be, before it is trained."""
    with tempfile.TemporaryDirectory() as folder:
        net.save(os.path.join(folder, run_folder.MODELS[args.model_format]))


def _make_callbacks(args: argparse.Namespace, folder: str) -> list[Callback]:
    return [
        *[callbacks.SwapEMAWeights(swap_on_epoch=True)] * (bool(args.ema) or parts.averages(args.optimizer)),
        *parts.make_callbacks(args.callbacks, folder),
        callbacks.CSVLogger(os.path.join(folder, run_folder.HISTORY)),
        callbacks.TerminateOnNaN(),
    ]


def _describe_optimizer(args: argparse.Namespace) -> str:
    schedule = "" if args.lr_schedule.name == "constant" else f", {args.lr_schedule}"
    return f"{args.optimizer}, learning rate {args.lr:g}{schedule}, batch size {args.batch_size}"


def _time_of_steps(history: History) -> str:
    """Return how much of the time went into steps; an epoch broken off is not in the history."""
    if history.interrupted:
        return ""
    return f", {sum(history.history['seconds']):.2f} s of it in training steps"


def _report(args: argparse.Namespace, dataset: Dataset, net: Model, history: History, folder: str) -> None:
    """Print how good the net is, and write what a run's folder holds beside config and history."""
    predicted = net.predict(dataset.X_test)
    score = training.score(dataset.y_test, predicted, dataset.classes)
    print(f"Test {training.format_score(*score)}")
    net.save(os.path.join(folder, run_folder.MODELS[args.model_format]))
    run_folder.write_summary(folder, _summary(dataset, net, history, score))
    matrix = None
    if dataset.classes is not None:
        matrix = metrics.confusion_matrix(dataset.y_test, predicted, len(dataset.classes))
        run_folder.write_confusion_matrix(folder, matrix, dataset.classes)
    print(f"Saved the run in {folder}")
    try:
        run_folder.write_pictures(folder, history, matrix, dataset.classes)
    except ImportError as error:
        print(f"No pictures: {error}")


def _summary(dataset: Dataset, net: Model, history: History, score: tuple[str, float]) -> dict[str, Any]:
    name, value = score
    return {
        "epochs": len(history.epoch),
        "stopped_by": history.stopped_by,
        "seconds": sum(history.history.get("seconds", ())),
        "parameters": training.count_parameters(net),
        "rows": {"training": len(dataset.X_train), "test": len(dataset.X_test)},
        "test": {"loss": float(net.evaluate(dataset.X_test, dataset.y_test)), name.lower(): value},
    }
