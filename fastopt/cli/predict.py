"""``fastopt predict``: print the predictions of a trained network."""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import sys

import numpy as np

from fastopt._core.typing import AnyArray
from fastopt.cli import options, outputs, registry, tables, training
from fastopt.cli.model import load_model
from fastopt.cli.parser import Parser, print_warning
from fastopt.nn import MLP, data

EXAMPLES = """
fastopt predict fastopt-run new.csv > predictions.csv
fastopt predict fastopt-run new.csv --proba
cat new.csv | fastopt predict fastopt-run -
"""


def add_options(command: Parser) -> None:
    """Declare the options of ``fastopt predict``."""
    add = command.add_argument
    add("model", metavar="RUN", help="folder written by 'fastopt train', or a model file")
    add("data", metavar="DATA",
        help="samples to predict, in a format of 'fastopt train --data'; - reads a table from standard input")
    add("--output", metavar="PATH", help="write the predictions to this file (default: standard output)")
    add("--proba", action="store_true", help="print the probability of each class instead of a label")
    options.add_table_options(command.add_argument_group("tables"))


def run(args: argparse.Namespace) -> int:
    """Predict; return the exit status."""
    path = outputs.find_model(args.model)
    if args.output is None and getattr(sys.stdout, "name", None) == os.devnull:
        raise ValueError("standard output is closed; write the predictions to a file with --output")
    tables.check_options(args)
    if args.output is not None:
        outputs.check_writable("--output", args.output, args.data, path)
    net, classes, table = load_model(path)
    is_regression = net.loss in registry.LOSSES["regression"]
    if args.proba and is_regression:
        raise ValueError("--proba: expected a classification, got a regression model")
    X, y = _read_samples(args, net, table)
    predicted = net.predict(X)
    if is_regression and table is not None:
        predicted = table.unscale_target(predicted).astype(np.float32)
    if classes is not None:
        predicted = classes[predicted]
    score = None if y is None else _score(args.data, y, predicted, net, classes)
    names = np.arange(max(net.sizes[-1], 2)) if classes is None else classes
    header = names.tolist() if args.proba else _header(table)
    rows = net.predict_proba(X) if args.proba else predicted.reshape(len(predicted), -1)
    with contextlib.ExitStack() as stack:
        file = sys.stdout
        if args.output is not None:
            file = stack.enter_context(open(args.output, "w", newline="", encoding="utf-8"))
        writer = csv.writer(file, lineterminator="\n")
        if header is not None:
            writer.writerow(header)
        writer.writerows(map(str, row) for row in rows)
    if score is not None:
        n_samples = training.plural(len(predicted), "sample")
        print(f"{training.format_score(*score)} ({n_samples})", file=sys.stderr)
    return 0


def _header(table: data.TablePreprocessor | None) -> list[str] | None:
    """Return the name of the label column, if the training data had a header."""
    return None if table is None or not table.named or table.label is None else [table.label]


def _read_samples(
    args: argparse.Namespace, net: MLP, table: data.TablePreprocessor | None
) -> tuple[AnyArray, AnyArray | None]:
    """Return samples and labels, or None if there are no labels; of split data, return the test part."""
    if table is not None and data.is_table(args.data):
        return _read_table(args, table)
    n_features = net.sizes[0]
    unlabeled = n_features if args.label is None else None
    label = -1 if args.label is None else args.label
    header = tables.make_layout(args).header
    X, y = data.read(args.data, label=label, header=header, features=unlabeled)[-1]
    if table is not None:
        X, y = table.transform_arrays(args.data, X), None if y is None else y.astype(str)
    if X.shape[1] != n_features:
        raise ValueError(
            f"{args.data}: expected {n_features} features per sample, as the model has, got {X.shape[1]}"
        )
    return X, y


def _read_table(
    args: argparse.Namespace, table: data.TablePreprocessor
) -> tuple[AnyArray, AnyArray | None]:
    """Return the preprocessed samples of a table, and its labels as strings or numbers."""
    layout = tables.make_layout(args)
    given = {name: value for name, value in vars(layout).items() if value not in (None, "auto", ())}
    read = table.read(args.data, given, args.label, args.ignore or ())
    for name, texts in table.unknown_categories(read).items():
        print_warning(
            f"{args.data}: column {name!r} has values that are not in the training data, "
            f"{', '.join(map(repr, texts[:5]))}; they belong to none of its categories"
        )
    X = table.transform(read)
    if read.labels is None:
        return X, None
    return X, read.target() if table.classes is None else np.array(table.classes)[table.encode(read)]


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
