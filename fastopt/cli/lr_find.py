"""``fastopt lr-find``: the learning rate to train with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastopt.cli import files, options, parts, training
from fastopt.cli.status import FAILED, complain
from fastopt.nn import lr_find

if TYPE_CHECKING:
    import argparse

    from fastopt.cli.options import Parser
    from fastopt.nn.lr_find import LRFind

__all__ = ["add_options", "run"]

_ROWS = 20  # of the table, at most


def add_options(command: Parser) -> None:
    """Declare the options of ``fastopt lr-find``."""
    options.add_data_options(command)
    options.add_net_options(command)
    options.add_optimizer_options(command)
    options.add_training_options(command)
    add = command.add_argument_group("search").add_argument
    add("--start-lr", type=options.rate, default=1e-7, metavar="RATE", help="(default: %(default)s)")
    add("--end-lr", type=options.rate, default=10.0, metavar="RATE", help="(default: %(default)s)")
    add("--steps", type=options.steps, default=200, metavar="N",
        help="learning rates to try, one a minibatch (default: %(default)s)")
    add("--plot", metavar="FILE.png", help="draw the loss against the learning rate")


def run(args: argparse.Namespace) -> int:
    """Try the learning rates and print what the loss does; return the exit status."""
    if args.start_lr >= args.end_lr:
        raise ValueError(f"--start-lr: expected less than --end-lr {args.end_lr:g}, got {args.start_lr:g}")
    files.check_plot(args.plot, args.data)
    dataset = training.load(args)
    net = training.make_net(args, dataset)
    opt = parts.make_optimizer(args.optimizer, net.params, args.start_lr, weight_decay=args.weight_decay)
    print(training.describe(args, dataset, net))
    print(f"Optimizer: {args.optimizer}, batch size {args.batch_size}\n")
    found = lr_find(
        net,
        opt,
        dataset.X_train,
        dataset.y_train,
        args.batch_size,
        start_lr=args.start_lr,
        end_lr=args.end_lr,
        steps=args.steps,
        seed=args.seed,
        class_weight=training.on(args.class_weight),
        max_norm=training.finite(args.max_norm),
    )
    _print_table(found)
    if args.plot is not None:
        found.plot(args.plot)
        print(f"Drew the losses in {args.plot}")
    if found.suggestion is None:
        return complain("fastopt: no suggestion, as the loss never falls", FAILED)
    print(f"Suggestion: --lr {found.suggestion:.2g}, where the loss falls fastest")
    return 0


def _print_table(found: LRFind) -> None:
    every = -(-len(found.lr) // _ROWS)
    print(f"{'Learning rate':>13}{'Loss':>12}")
    for lr, loss in zip(found.lr[::every], found.smoothed[::every], strict=True):
        print(f"{lr:>13.2g}{loss:>12.4f}")
    print("\nLoss: moving average over the minibatches so far.")
