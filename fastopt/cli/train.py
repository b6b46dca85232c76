"""``fastopt train``: train a network and save the run in a folder."""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from typing import Any

from fastopt import callbacks, mpi
from fastopt.cli import options, outputs, registry, resume, training
from fastopt.cli.config import format_config
from fastopt.cli.model import Model
from fastopt.cli.parser import FAILED, INTERRUPTED, Parser, print_error
from fastopt.cli.report import Results, format_report
from fastopt.mpi.communicator import is_launched
from fastopt.nn import Callback, History, Trainer, metrics
from fastopt.nn.callbacks.backup import remove_backups
from fastopt.nn.data import Dataset
from fastopt.nn.ranks import ranks_of
from fastopt.optimizers.api import arguments_of

EXAMPLES = """
fastopt train
fastopt train --data iris.csv --label species --epochs 50
fastopt train --data images/ --hidden 256,128 --batch-size 128 --dropout 0.2
fastopt train --lr-schedule cosine --callbacks "early_stopping(patience=5)"
fastopt train --config fastopt-run/config.toml --seed 1
fastopt train --resume fastopt-run --epochs 40
"""

_MICRO_SHARDS = 8               # of a minibatch under mpiexec
_MAX_CONFUSION_CLASSES = 100    # beyond which a confusion matrix is too large to read


def add_options(command: Parser) -> None:
    """Declare the options of ``fastopt train``."""
    options.add_data_options(command)
    options.add_model_options(command)
    add = options.add_optimizer_options(command).add_argument
    add("--lr", type=options.positive_float, metavar="RATE",
        help="learning rate (default: depends on the optimizer)")
    add("--lr-schedule", type=registry.parse_schedule, default="constant", metavar="NAME",
        help=f"one of {', '.join(registry.SCHEDULES)}, for example 'cosine(min_lr=1e-5)' "
             "(default: %(default)s)")
    add("--ema", type=options.fraction, default=0.0, metavar="DECAY",
        help="decay rate of an exponential moving average (EMA) of the parameters, for example 0.999; "
             "the averages are evaluated and saved (default: %(default)s, no average)")
    group = options.add_training_options(command)
    options.add_epochs_option(group)
    add = group.add_argument
    add("--max-time", type=options.positive_or_inf, default=math.inf, metavar="SECONDS",
        help="stop after the minibatch in which this time has passed (default: inf)")
    add("--callbacks", type=registry.parse_callbacks, default="", metavar="LIST",
        help=f"comma-separated list of {', '.join(registry.CALLBACKS)}, for example "
             "'early_stopping(patience=5)' (default: none)")
    add("--micro-shards", type=options.positive_int, metavar="N",
        help="split each minibatch into N parts whose gradients are added up in a fixed order, so that the "
             "model is the same for any number of MPI ranks up to N (default: 8 under mpiexec, else off)")
    add = command.add_argument_group("results").add_argument
    add("--out", metavar="FOLDER",
        help="folder of the run (default: the first unused name of fastopt-run, fastopt-run-2, ...)")
    add("--overwrite", action="store_true", help="replace the run in this folder")
    add("--resume", metavar="FOLDER",
        help="resume the run in this folder with its options; --epochs, --max-time and --save-freq "
             "can be changed")
    add("--save-freq", type=options.save_freq, default="30s", metavar="FREQ",
        help="how often to save the training state for --resume: epoch, a number of batches, or seconds such "
             "as 30s (default: %(default)s; it is also saved at the end and after Ctrl-C or SIGTERM)")
    add("--model-format", choices=outputs.MODELS, default="npz", metavar="NAME",
        help=f"{' or '.join(outputs.MODELS)} (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Train and save the run; return the exit status."""
    _resolve_defaults(args)
    dataset = training.load(args)
    net = training.make_model(args, dataset)
    steps = args.epochs * -(-len(dataset.X_train) // args.batch_size)
    lr = registry.make_schedule(args.lr_schedule, args.lr, steps)
    opt: Any = registry.make_optimizer(
        args.optimizer, net.params, lr, weight_decay=args.weight_decay, ema=args.ema or None
    )
    registry.check_callbacks(args.callbacks, args.lr_schedule, dataset)
    if args.micro_shards is not None:
        opt = mpi.DistributedOptimizer(opt, shards=args.micro_shards)
    ranks = ranks_of(opt)
    config = format_config(args, args.command)
    config.encode()     # raises if a name is not text
    with tempfile.TemporaryDirectory() as temporary:    # raises if the model cannot be saved in this format
        net.save(os.path.join(temporary, outputs.MODELS[args.model_format]))
    inputs = [path for path in (args.data, args.validation, args.test) if path is not None]
    folder = args.resume or ranks.from_main(
        lambda: outputs.create_folder(args.out, args.overwrite, *inputs)
    )
    ranks.from_main(lambda: outputs.write_config(folder, config))
    print(training.describe(args, dataset, net))
    schedule = "" if args.lr_schedule.name == "constant" else f", {args.lr_schedule}"
    print(f"Optimizer: {args.optimizer}, learning rate {args.lr:g}{schedule}, batch size {args.batch_size}\n")

    kept = resume.RunOptions(config, args.data, dataset)
    backup = resume.RunBackup(folder, args.save_freq, args.epochs)
    run_callbacks = [*_make_callbacks(args, folder), kept, backup]
    trainer = Trainer(net, opt, run_callbacks, max_norm=training.none_if_off(args.max_norm))
    start = time.perf_counter()
    history = training.fit(trainer, args, dataset, max_time=training.none_if_off(args.max_time))
    seconds = time.perf_counter() - start
    if history.epoch and not math.isfinite(history.last()["loss"]):
        ranks.from_main(lambda: remove_backups(folder))
        return print_error(
            f"fastopt: training diverged in epoch {len(history.epoch)}, and no model was saved in {folder}; "
            f"try a lower --lr than {args.lr:g}",
            FAILED,
        )
    in_steps = f", {sum(history.history.get('seconds', ())):.2f} s of it in training steps"
    # The history lacks the epoch that Ctrl-C has interrupted.
    print(f"\nTime: {seconds:.2f} s{'' if history.interrupted else in_steps}")
    if ranks.is_main:
        _save_results(args, dataset, net, history, folder)
        if not (history.interrupted or history.stopped_by == "max_time"):
            resume.keep_newest_backup(folder)
    return INTERRUPTED if history.interrupted else 0


def _resolve_defaults(args: argparse.Namespace) -> None:
    """Replace options that are None by the defaults of the optimizer, and by those under mpiexec."""
    cls, lr, _ = registry.OPTIMIZERS[args.optimizer.name]
    if args.lr is None:
        args.lr = lr
    if args.weight_decay is None:
        decay = arguments_of(cls).get("weight_decay")
        args.weight_decay = 0.0 if decay is None else decay.default
    if args.micro_shards is None and is_launched():
        args.micro_shards = max(_MICRO_SHARDS, mpi.size())


def _make_callbacks(args: argparse.Namespace, folder: str) -> list[Callback]:
    # A schedule-free optimizer, too, is evaluated at averaged parameters.
    has_average = bool(args.ema) or hasattr(registry.OPTIMIZERS[args.optimizer.name][0], "averaged")
    return [
        *[callbacks.SwapEMAWeights(swap_on_epoch=True)] * has_average,
        *registry.make_callbacks(args.callbacks, folder),
        callbacks.CSVLogger(os.path.join(folder, outputs.HISTORY)),
        callbacks.TerminateOnNaN(),
    ]


def _save_results(
    args: argparse.Namespace, dataset: Dataset, net: Model, history: History, folder: str
) -> None:
    """Evaluate the network, print its score, and write the model, summary, tables and plots."""
    predicted = net.predict(dataset.X_test)
    score = training.score(dataset.y_test, predicted, dataset.classes)
    print(f"Test {training.format_score(*score)}")
    net.save(os.path.join(folder, outputs.MODELS[args.model_format]))
    summary = _summary(dataset, net, history, score)
    matrix = None
    if dataset.classes is not None and len(dataset.classes) <= _MAX_CONFUSION_CLASSES:
        matrix = metrics.confusion_matrix(dataset.y_test, predicted, len(dataset.classes))
        outputs.write_confusion_matrix(folder, matrix, dataset.classes)
    results = Results(history, summary, score, predicted, matrix)
    outputs.write_report(folder, format_report(args, dataset, net, results, folder))
    try:
        title = f"{training.data_name(args)}, {args.optimizer}"
        outputs.write_plots(folder, history, matrix, dataset.classes, title)
    except ImportError as error:
        print(f"No plots: {error}")
    outputs.write_summary(folder, summary)  # last, because it has checksums of the other files
    print(f"Saved the run in {folder}")


def _summary(dataset: Dataset, net: Model, history: History, score: tuple[str, float]) -> dict[str, Any]:
    name, value = score
    return {
        "epochs": len(history.epoch),
        "stopped_by": history.stopped_by,
        "seconds": sum(history.history.get("seconds", ())),
        "parameters": training.count_parameters(net),
        "samples": {
            "training": len(dataset.X_train),
            "validation": 0 if dataset.X_val is None else len(dataset.X_val),
            "test": len(dataset.X_test),
        },
        "test": {"loss": float(net.evaluate(dataset.X_test, dataset.y_test)), name.lower(): value},
    }
