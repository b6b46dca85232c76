"""``fastopt lr-find``: suggest a learning rate."""

from __future__ import annotations

import argparse

from fastopt.cli import options, outputs, registry, training
from fastopt.cli.parser import FAILED, Parser, print_error
from fastopt.lr_finder import lr_find

_MAX_ROWS = 20  # of the printed table

EXAMPLES = """
fastopt lr-find --data iris.csv
fastopt lr-find --optimizer momentum --plot lr.png
"""


def add_options(command: Parser) -> None:
    """Declare the options of ``fastopt lr-find``."""
    options.add_data_options(command)
    options.add_model_options(command)
    options.add_optimizer_options(command)
    options.add_training_options(command)
    add = command.add_argument_group("search").add_argument
    add("--start-lr", type=options.positive_float, default=1e-7, metavar="RATE",
        help="first learning rate (default: %(default)s)")
    add("--end-lr", type=options.positive_float, default=10.0, metavar="RATE",
        help="last learning rate (default: %(default)s)")
    add("--steps", type=options.steps, default=200, metavar="N",
        help="number of learning rates to try, one per minibatch (default: %(default)s)")
    add("--plot", metavar="FILE.png", help="draw the loss against the learning rate")


def run(args: argparse.Namespace) -> int:
    """Try increasing learning rates and print the losses; return the exit status."""
    if args.start_lr >= args.end_lr:
        raise ValueError(f"--start-lr: expected less than --end-lr {args.end_lr:g}, got {args.start_lr:g}")
    outputs.check_plot(args.plot, args.data)
    dataset = training.load(args)
    net = training.make_model(args, dataset)
    opt = registry.make_optimizer(args.optimizer, net.params, args.start_lr, weight_decay=args.weight_decay)
    print(training.describe(args, dataset, net))
    print(f"Optimizer: {args.optimizer}, batch size {args.batch_size}\n")
    result = lr_find(
        net, opt, dataset.X_train, dataset.y_train, args.batch_size,
        start_lr=args.start_lr, end_lr=args.end_lr, steps=args.steps, seed=args.seed,
        class_weight=training.none_if_off(args.class_weight), max_norm=training.none_if_off(args.max_norm),
    )
    every = -(-len(result.lr) // _MAX_ROWS)
    print(f"{'Learning rate':>13}{'Loss':>12}")
    for lr, loss in zip(result.lr[::every], result.smoothed[::every], strict=True):
        print(f"{lr:>13.2g}{loss:>12.4f}")
    print("\nLoss: moving average over the minibatches so far.")
    if args.plot is not None:
        result.plot(args.plot, title=f"{training.data_name(args)}, {args.optimizer}")
        print(f"Saved the plot in {args.plot}")
    if result.suggestion is None:
        reason = "the loss does not decrease by more than its noise"
        return print_error(f"fastopt: no suggestion, as {reason}", FAILED)
    print(f"Suggestion: --lr {result.suggestion:.2g}, at two thirds of the decrease of the loss")
    return 0
