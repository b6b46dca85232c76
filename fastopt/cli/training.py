"""Steps shared by the commands that train: load the data, build the network, fit, and describe them."""

from __future__ import annotations

import argparse
import math
import os
import warnings
from typing import Any, Literal

import numpy as np

from fastopt._core.typing import AnyArray
from fastopt.cli import registry, tables
from fastopt.cli.model import Model
from fastopt.cli.parser import print_warning
from fastopt.nn import History, Trainer, data, metrics
from fastopt.nn.data import Dataset
from fastopt.nn.typing import Task


def load(args: argparse.Namespace) -> Dataset:
    """Return the data set, or raise if the options do not match its labels. Warnings are printed."""
    tables.check_options(args)
    label = -1 if args.label is None else args.label
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = data.load(
            args.data, label=label, task=_task(args), validation_size=args.validation_split,
            validation=args.validation, test=args.test, layout=tables.make_layout(args),
            ignore=args.ignore or (), categorical=args.categorical or (), standardize=not args.no_standardize,
        )
    for warning in caught:
        print_warning(str(warning.message))
    is_regression = dataset.classes is None
    if dataset.classes is not None and len(dataset.classes) < 2:
        raise ValueError(f"{args.data}: expected at least two classes, got one")
    _check_loss(args, dataset, "regression" if is_regression else "classification")
    if is_regression and args.label_smoothing:
        raise ValueError("--label-smoothing: expected a classification, got a regression")
    if is_regression and args.class_weight != "none":
        raise ValueError("--class-weight: expected a classification, got a regression")
    return tables.standardize_target(args, dataset)


def _task(args: argparse.Namespace) -> Task:
    """Return the task of ``--task``, else that of ``--loss``."""
    selected: Task = args.task
    of_loss = (task for task, losses in registry.LOSSES.items() if args.loss.name in losses)
    return next(of_loss, selected) if selected == "auto" else selected


def _check_loss(
    args: argparse.Namespace, dataset: Dataset, task: Literal["classification", "regression"]
) -> None:
    loss = args.loss.name
    if loss not in ("auto", *registry.LOSSES[task]):
        valid = ", ".join(registry.LOSSES[task])
        raise ValueError(f"--loss: expected a loss for {task}, {valid}; got {loss}")
    classes = () if dataset.classes is None else dataset.classes
    if loss == "binary_cross_entropy" and len(classes) > 2:
        raise ValueError(f"--loss: {loss} needs two classes, got {len(classes)}")
    if loss == "poisson" and min(dataset.y_train.min(), dataset.y_test.min()) < 0.0:
        raise ValueError(f"--loss: {loss} needs non-negative labels, and {args.data} has negative ones")


def make_model(args: argparse.Namespace, dataset: Dataset) -> Model:
    """Return the network that the options define, with initial weights from ``--seed``."""
    loss = args.loss.name
    if dataset.classes is None:
        n_outputs, default_loss = math.prod(dataset.y_train.shape[1:]), "mse"
    else:
        n_outputs = 1 if loss == "binary_cross_entropy" else len(dataset.classes)
        default_loss = "cross_entropy"
    return registry.make(
        "--loss", args.loss, Model,
        classes=dataset.classes, table=dataset.table,
        sizes=[dataset.X_train.shape[1], *args.hidden, n_outputs],
        loss=default_loss if loss == "auto" else loss, seed=args.seed, l2=args.l2,
        label_smoothing=args.label_smoothing, **args.loss.arguments,
        **{name: _per_layer(name, args) for name in ("activation", "dropout", "norm")},
    )


def _per_layer(option: str, args: argparse.Namespace) -> Any:
    """Return one value for all hidden layers, or a list with one per layer."""
    values, n_layers = getattr(args, option), len(args.hidden)
    n = len(values)
    if n not in (1, n_layers):
        raise ValueError(f"--{option}: expected one value, or one per hidden layer ({n_layers}), got {n}")
    return none_if_off(values[0]) if n == 1 else [none_if_off(value) for value in values]


def none_if_off(value: Any) -> Any:
    """Return the value of an option, or None for ``none`` and ``inf``."""
    return None if value in ("none", math.inf) else value


def fit(trainer: Trainer, args: argparse.Namespace, dataset: Dataset, **options: Any) -> History:
    """Train with the batch size, epochs, seed and class weights of the options."""
    # A diverging loss is reported as such; NumPy's warnings would only garble the output.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return trainer.fit(
            dataset.X_train, dataset.y_train, batch_size=args.batch_size, epochs=args.epochs,
            validation_data=dataset.validation_data, seed=args.seed,
            class_weight=none_if_off(args.class_weight), **options,
        )


def describe(args: argparse.Namespace, dataset: Dataset, net: Model) -> str:
    """Return lines about the data and the network."""
    classes = dataset.classes
    outputs = plural(net.sizes[-1], "output") if classes is None else f"{len(classes)} classes"
    n_val = 0 if dataset.X_val is None else len(dataset.X_val)
    table = "" if dataset.table is None else tables.describe(dataset, dataset.table)
    layers = [
        "/".join(args.activation),
        *[f"{'/'.join(args.norm)} norm"] * any(norm != "none" for norm in args.norm),
        *[f"dropout {'/'.join(f'{rate:g}' for rate in args.dropout)}"] * any(args.dropout),
    ]
    return (
        f"Data: {args.data}\n{table}"
        f"Samples: {len(dataset.X_train)} training, {n_val} validation, {len(dataset.X_test)} test; "
        f"{plural(net.sizes[0], 'feature')}, {outputs}\n"
        f"Network: {'-'.join(map(str, net.sizes))}, {', '.join(layers)}, {count_parameters(net)} parameters"
    )


def data_name(args: argparse.Namespace) -> str:
    """Return the name of the data set for a title."""
    name: str = os.path.basename(os.path.abspath(args.data))
    return name


def count_parameters(net: Model) -> int:
    """Return the number of trainable parameters."""
    return sum(array.size for layer in net.params for array in layer)


def plural(n: int, noun: str) -> str:
    """Return a count with its noun, such as ``1 epoch`` or ``2 epochs``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def format_float(value: float, limit: float, digits: int) -> str:
    """Return four decimals below `limit`, and scientific notation with `digits` decimals from there on."""
    return f"{value:.4f}" if abs(value) < limit else f"{value:.{digits}e}"


def score(y: AnyArray, predicted: AnyArray, classes: AnyArray | None) -> tuple[str, float]:
    """Return name and value of the score: accuracy, or R2 for a regression."""
    if classes is None:
        return "R2", metrics.r2_score(y, predicted.reshape(y.shape))
    return "Accuracy", metrics.accuracy(y, predicted)


def format_score(name: str, value: float) -> str:
    """Return a score as text."""
    return f"{name} = {value:.4f}"
