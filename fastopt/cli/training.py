"""What the commands that train share: data, net, optimizer, and the lines about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from fastopt.cli import parts
from fastopt.cli.model import Model
from fastopt.nn import data, metrics
from fastopt.optimizers import arguments_of

if TYPE_CHECKING:
    import argparse

    from fastopt._core.typing import AnyArray
    from fastopt.nn import History, Trainer
    from fastopt.nn.data import Dataset

__all__ = [
    "count", "count_parameters", "describe", "diverged", "finite", "fit", "format_score", "label_column",
    "load", "make_net", "on", "resolve", "score",
]

_T = TypeVar("_T")

# --- Data ----------------------------------------------------------------------------------------


def load(args: argparse.Namespace) -> Dataset:
    """Return the data set to train on; raise if its labels are not what the options are for."""
    dataset = data.load(args.data, label=label_column(args), task=_task(args))
    is_regression = dataset.classes is None
    if dataset.classes is not None and len(dataset.classes) < 2:
        raise ValueError(f"{args.data}: expected two classes or more, all labels are the same")
    _check_loss(args, dataset, "regression" if is_regression else "classification")
    if is_regression and args.label_smoothing:
        raise ValueError("--label-smoothing: a regression has no classes")
    if is_regression and args.class_weight != "none":
        raise ValueError("--class-weight: a regression has no classes")
    return dataset


def label_column(args: argparse.Namespace) -> int | str:
    """Return the column of the labels, or raise if it is given for data that have no columns."""
    if args.label is not None and not args.data.lower().endswith((".csv", ".csv.gz")):
        raise ValueError(f"--label: {args.data} is not a CSV and has no columns")
    return -1 if args.label is None else args.label


def _task(args: argparse.Namespace) -> data.Task:
    """Return the task that the options ask for; a loss asks for its own."""
    asked: data.Task = args.task
    if asked == "auto":
        for task, losses in parts.LOSSES.items():
            if args.loss.name in losses:
                return task
    return asked


def _check_loss(
    args: argparse.Namespace, dataset: Dataset, task: Literal["classification", "regression"]
) -> None:
    loss = args.loss.name
    if loss not in ("auto", *parts.LOSSES[task]):
        raise ValueError(f"--loss: {loss} is not for a {task}, expected {', '.join(parts.LOSSES[task])}")
    classes = () if dataset.classes is None else dataset.classes
    if loss == "binary_cross_entropy" and len(classes) > 2:
        raise ValueError(f"--loss: {loss} is for two classes, got {len(classes)}")
    if loss == "poisson" and min(dataset.y_train.min(), dataset.y_test.min()) < 0.0:
        raise ValueError(f"--loss: {loss} is for counts, and {args.data} has negative labels")


# --- Net and optimizer ---------------------------------------------------------------------------


def make_net(args: argparse.Namespace, dataset: Dataset) -> Model:
    """Return the net of the options for the data, with the seed's initial weights."""
    loss = args.loss.name
    if dataset.classes is None:
        outputs, usual = math.prod(dataset.y_train.shape[1:]), "mse"
    else:
        outputs, usual = 1 if loss == "binary_cross_entropy" else len(dataset.classes), "cross_entropy"
    return parts.make(
        "--loss", args.loss, Model,
        classes=dataset.classes,
        sizes=[dataset.X_train.shape[1], *args.hidden, outputs],
        activation=_a_layer("--activation", args.activation, args),
        loss=usual if loss == "auto" else loss,
        seed=args.seed,
        l2=args.l2,
        dropout=_a_layer("--dropout", args.dropout, args),
        norm=_a_layer("--norm", args.norm, args),
        label_smoothing=args.label_smoothing,
        **args.loss.arguments,
    )


def _a_layer(option: str, values: Sequence[Any], args: argparse.Namespace) -> Any:
    """Return one value for all hidden layers, or a list with one for each."""
    if len(values) not in (1, len(args.hidden)):
        raise ValueError(
            f"{option}: expected one value, or one for each of {count(len(args.hidden), 'hidden layer')}; "
            f"got {len(values)}"
        )
    return on(values[0]) if len(values) == 1 else [on(value) for value in values]


def resolve(args: argparse.Namespace) -> None:
    """Put in the numbers which the optimizer decides where no option does."""
    rule, lr, _ = parts.OPTIMIZERS[args.optimizer.name]
    if args.lr is None:
        args.lr = lr
    if args.weight_decay is None:
        decay = arguments_of(rule).get("weight_decay")
        args.weight_decay = 0.0 if decay is None else decay.default


def on(word: _T | Literal["none"]) -> _T | None:
    """Return what an option says, or None for ``none``."""
    return None if word == "none" else word


def finite(number: float) -> float | None:
    """Return a number, or None for infinity: no limit."""
    return None if math.isinf(number) else number


# --- Training ------------------------------------------------------------------------------------


def fit(trainer: Trainer, args: argparse.Namespace, dataset: Dataset, **options: Any) -> History:
    """Train on the data with what the options say of batches, epochs and weights."""
    # Where a training diverges, its loss tells so; NumPy's warnings would only tear the output.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return trainer.fit(
            dataset.X_train,
            dataset.y_train,
            batch_size=args.batch_size,
            epochs=args.epochs,
            validation_data=(dataset.X_test, dataset.y_test),
            seed=args.seed,
            class_weight=on(args.class_weight),
            **options,
        )


def diverged(history: History) -> bool:
    """Whether a training ended with a loss that is NaN or infinite."""
    return bool(history.epoch) and not math.isfinite(history.last()["loss"])


# --- Words ---------------------------------------------------------------------------------------


def describe(args: argparse.Namespace, dataset: Dataset, net: Model) -> str:
    """Return lines about the data and the net."""
    classes = dataset.classes
    outputs = count(net.sizes[-1], "output") if classes is None else f"{len(classes)} classes"
    kinds = [
        "/".join(args.activation),
        *[f"{'/'.join(args.norm)} norm"] * any(norm != "none" for norm in args.norm),
        *[f"dropout {'/'.join(f'{rate:g}' for rate in args.dropout)}"] * any(args.dropout),
    ]
    return (
        f"Data: {args.data}\n"
        f"Rows: {len(dataset.X_train)} for training, {len(dataset.X_test)} for test; "
        f"{count(net.sizes[0], 'feature')}, {outputs}\n"
        f"Net: {'-'.join(map(str, net.sizes))}, {', '.join(kinds)}, {count_parameters(net)} parameters"
    )


def count_parameters(net: Model) -> int:
    """Return how many numbers the net learns."""
    return sum(array.size for layer in net.params for array in layer)


def count(n: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def score(y: AnyArray, predicted: AnyArray, classes: AnyArray | None) -> tuple[str, float]:
    """Return the name and the value of what tells how good predictions are: accuracy, or R2 of values."""
    if classes is None:
        return "R2", metrics.r2_score(y, predicted.reshape(y.shape))
    return "Accuracy", metrics.accuracy(y, predicted)


def format_score(name: str, value: float) -> str:
    """Return a score in words."""
    return f"{name} = {value:.4f}"
