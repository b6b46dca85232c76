"""``fastopt predict``: print the predictions of a trained network."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys

import numpy as np

from fastopt._core.typing import AnyArray
from fastopt.cli import options, outputs, registry, training
from fastopt.cli.model import load_model
from fastopt.cli.parser import Parser
from fastopt.nn import MLP, data

EXAMPLES = """
fastopt predict fastopt-run new.csv > predictions.csv
"""


def add_options(command: Parser) -> None:
    """Declare the options of ``fastopt predict``."""
    add = command.add_argument
    add("model", metavar="RUN", help="folder written by 'fastopt train', or a model file")
    add("data", metavar="DATA", help="samples to predict, in a format of 'fastopt train --data'")
    options.add_label_option(command)
    add("--output", metavar="PATH", help="write the predictions to this file (default: standard output)")


def run(args: argparse.Namespace) -> int:
    """Predict; return the exit status."""
    path = outputs.find_model(args.model)
    if args.output is None and getattr(sys.stdout, "name", None) == os.devnull:
        raise ValueError("standard output is closed; write the predictions to a file with --output")
    if args.output is not None:
        outputs.check_writable("--output", args.output, args.data, path)
    net, classes = load_model(path)
    X, y = _read_samples(args, net.sizes[0])
    predicted = net.predict(X)
    if classes is not None:
        predicted = classes[predicted]
    score = None if y is None else _score(args.data, y, predicted, net, classes)
    with contextlib.ExitStack() as stack:
        file = sys.stdout
        if args.output is not None:
            file = stack.enter_context(open(args.output, "w", encoding="utf-8"))
        rows = predicted.reshape(len(predicted), -1)
        file.writelines(f"{','.join(map(str, row))}\n" for row in rows)
    if score is not None:
        n_samples = training.plural(len(predicted), "sample")
        print(f"{training.format_score(*score)} ({n_samples})", file=sys.stderr)
    return 0


def _read_samples(args: argparse.Namespace, n_features: int) -> tuple[AnyArray, AnyArray | None]:
    """Return samples and labels, or None if there are no labels; of split data, return the test part."""
    unlabeled = n_features if args.label is None else None
    X, y = data.read(args.data, label=training.label_column(args), features=unlabeled)[-1]
    if X.shape[1] != n_features:
        raise ValueError(
            f"{args.data}: expected {n_features} features per sample, as the model has, got {X.shape[1]}"
        )
    return X, y


def _score(
    path: str, y: AnyArray, predicted: AnyArray, net: MLP, classes: AnyArray | None
) -> tuple[str, float]:
    """Return name and value of the score, or raise if the labels do not match the model."""
    if net.loss in registry.LOSSES["regression"]:
        if y.dtype.kind not in "biuf" or y.size != predicted.size:
            raise ValueError(
                f"{path}: expected {training.plural(net.sizes[-1], 'value')} per sample as labels, "
                f"got shape {y.shape} and type {y.dtype}"
            )
        return training.score(y, predicted, None)
    known = np.arange(max(net.sizes[-1], 2)) if classes is None else classes
    unknown = sorted(set(y.ravel().tolist()).difference(known.tolist()))
    if unknown:
        raise ValueError(f"{path}: expected labels among the classes of the model, got {unknown[0]!r}")
    return training.score(y.reshape(predicted.shape) if y.size == predicted.size else y, predicted, known)
