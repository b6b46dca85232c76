"""``fastopt predict``: what a trained net makes of rows."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import numpy as np

from fastopt.cli import files, options, parts, run_folder, training
from fastopt.cli.model import load_model
from fastopt.nn import data

if TYPE_CHECKING:
    import argparse

    from fastopt._core.typing import AnyArray
    from fastopt.cli.options import Parser
    from fastopt.nn import MLP

__all__ = ["add_options", "run"]


def add_options(command: Parser) -> None:
    """Declare the options of ``fastopt predict``."""
    add = command.add_argument
    add("model", metavar="RUN", help="a folder that 'fastopt train' left, or a model file")
    add("data", metavar="DATA", help="rows to predict: files as for 'fastopt train --data'")
    options.add_label_option(command)
    add("--output", metavar="PATH", help="write the predictions there, not to standard output")


def run(args: argparse.Namespace) -> int:
    """Predict; return the exit status."""
    path = run_folder.find_model(args.model)
    if args.output is not None:
        files.check_writable("--output", args.output, args.data, path)
    net, classes = load_model(path)
    X, y = _read_rows(args, net.sizes[0])
    predicted = net.predict(X)
    if classes is not None:
        predicted = classes[predicted]
    score = None if y is None else _score_of_file(args.data, y, predicted, net, classes)
    _write_lines(predicted, args.output)
    if score is not None:
        print(f"{training.format_score(*score)} ({training.count(len(predicted), 'row')})", file=sys.stderr)
    return 0


def _read_rows(args: argparse.Namespace, features: int) -> tuple[AnyArray, AnyArray | None]:
    """Return the rows of the data in their order, and their labels; None where there are none.

    Data that come as training and test part give the test part.
    """
    unlabeled = features if args.label is None else None
    X, y = data.read(args.data, label=training.label_column(args), features=unlabeled)[-1]
    if X.shape[1] != features:
        raise ValueError(f"{args.data}: the model takes {features} features a row, got {X.shape[1]}")
    return X, y


def _score_of_file(
    path: str, y: AnyArray, predicted: AnyArray, net: MLP, classes: AnyArray | None
) -> tuple[str, float]:
    """Return the score, or raise if the file's labels are not of the model's kind."""
    if net.loss in parts.LOSSES["regression"]:
        if y.dtype.kind not in "biuf" or y.size != predicted.size:
            raise ValueError(
                f"{path}: the model predicts {training.count(net.sizes[-1], 'value')} a row, got labels "
                f"of shape {y.shape} and type {y.dtype}"
            )
        return training.score(y, predicted, None)
    known = np.arange(max(net.sizes[-1], 2)) if classes is None else classes
    strange = sorted(set(y.ravel().tolist()).difference(known.tolist()))
    if strange:
        raise ValueError(f"{path}: the label {strange[0]!r} is none of the model's classes")
    return training.score(y.reshape(predicted.shape) if y.size == predicted.size else y, predicted, known)


def _write_lines(predicted: AnyArray, path: str | None) -> None:
    rows = predicted.reshape(len(predicted), -1)
    with contextlib.ExitStack() as stack:
        file = sys.stdout
        if path is not None:
            file = stack.enter_context(open(path, "w", encoding="utf-8"))
        file.writelines(f"{','.join(map(str, row))}\n" for row in rows)
