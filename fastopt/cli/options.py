"""Options that several commands share, and converters from text to their values."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection
from typing import TypeAlias, TypeVar

from fastopt._core.validation import suggest
from fastopt.cli import registry
from fastopt.cli.parser import Parser
from fastopt.nn.callbacks.backup import parse_frequency
from fastopt.nn.layers import ACTIVATIONS

Container: TypeAlias = argparse._ActionsContainer   # a parser, or a group of its options

_MAX_COUNT = 2**31 - 1  # keeps array sizes within NumPy's range
_NORMS = ("none", "batch", "layer")
_N = TypeVar("_N", int, float)
_T = TypeVar("_T")


def add_data_options(command: Parser) -> None:
    """Add the options that select the data set."""
    group = command.add_argument_group("data")
    add = group.add_argument
    add("--config", metavar="FILE.toml",
        help="read options from this file; options on the command line take precedence")
    add("--data", default="digits", metavar="PATH",
        help="folder of IDX files; .npz file; or table: .csv, .tsv, .txt, .data, also compressed, or "
             ".parquet (default: the packaged digits)")
    add("--validation", metavar="PATH", help="validation data (default: a part of the training data)")
    add("--validation-split", type=fraction, default=0.1, metavar="FRACTION",
        help="fraction of the training data for validation, 0 for none (default: %(default)s)")
    add("--test", metavar="PATH",
        help="test data (default: the test part of the data set if it has one, else a fifth of the samples)")
    add("--task", choices=("auto", "classification", "regression"), default="auto", metavar="TASK",
        help="classification or regression (default: inferred from --loss, else from the labels)")
    table = command.add_argument_group("tables")
    add_table_options(table)
    add = table.add_argument
    add("--categorical", type=_columns, metavar="COLUMNS",
        help="comma-separated names or indices of numeric columns to treat as categories")
    add("--no-standardize", action="store_true", help="do not standardize numeric columns")


def add_table_options(group: Container) -> None:
    """Add the options that describe a table."""
    add = group.add_argument
    add("--label", type=_column, metavar="COLUMN",
        help="name or index of the label column (default: the last column, or that used in training)")
    add("--sep", type=_separator, metavar="CHARACTER",
        help="separator of the columns: a character, tab, or blanks (default: detected)")
    add("--decimal", choices=(".", ","), metavar="CHARACTER", help=". or , (default: detected)")
    header = group.add_mutually_exclusive_group().add_argument
    header("--header", action="store_true", help="the first line holds column names (default: detected)")
    header("--no-header", action="store_true", help="the first line holds data (default: detected)")
    add("--na-values", type=_list_of(str), metavar="STRINGS",
        help="comma-separated strings for missing values, in addition to ?, NA, NaN and the empty string")
    add("--thousands", metavar="CHARACTER", help="separator of thousands in numbers (default: none)")
    add("--encoding", metavar="NAME", help="encoding of the text, for example latin-1 (default: utf-8)")
    add("--ignore", type=_columns, metavar="COLUMNS",
        help="comma-separated names or indices of columns to leave out, such as an id")


def add_model_options(command: Parser) -> None:
    """Add the options that define the network."""
    add = command.add_argument_group("network").add_argument
    add("--hidden", type=_list_of(positive_int), default=(128,), metavar="SIZES",
        help="sizes of the hidden layers, for example 256,128 (default: 128)")
    add("--activation", type=_list_of(_one_of(ACTIVATIONS)), default=("relu",), metavar="NAMES",
        help=f"one, or one per hidden layer, of {', '.join(ACTIVATIONS)} (default: relu)")
    add("--norm", type=_list_of(_one_of(_NORMS)), default=("none",), metavar="NAMES",
        help=f"normalization: one, or one per hidden layer, of {', '.join(_NORMS)} (default: none)")
    add("--dropout", type=_list_of(fraction), default=(0.0,), metavar="RATES",
        help="dropout probability: one, or one per hidden layer (default: 0)")
    losses = [name for group in registry.LOSSES.values() for name in group]
    add("--loss", type=registry.parse_loss, default="auto", metavar="NAME",
        help=f"one of {', '.join(losses)}, for example 'huber(delta=2)' (default: depends on the task)")
    add("--label-smoothing", type=fraction, default=0.0, metavar="FRACTION",
        help="fraction of the target spread evenly over all classes (default: %(default)s)")
    add("--l2", type=_nonnegative, default=0.0, metavar="NUMBER",
        help="add 0.5 * NUMBER * sum(W**2) to the loss (default: %(default)s)")
    add("--seed", type=_seed, default=0, metavar="N",
        help="seed of the initial weights, dropout and the order of the samples (default: %(default)s)")


def add_epochs_option(command: Container) -> None:
    """Add ``--epochs``."""
    command.add_argument("--epochs", type=positive_int, default=20, metavar="N",
                         help="passes over the training set (default: %(default)s)")


def add_training_options(command: Parser) -> Container:
    """Add the options of the training loop; return their group, to which a command adds its own."""
    group = command.add_argument_group("training")
    add = group.add_argument
    add("--batch-size", type=positive_int, default=32, metavar="N",
        help="samples per minibatch (default: %(default)s)")
    add("--class-weight", choices=("none", "balanced"), default="none", metavar="MODE",
        help="balanced: weight classes inversely to their frequency (default: none)")
    add("--max-norm", type=positive_or_inf, default=math.inf, metavar="NORM",
        help="clip the gradients to this global norm (default: inf)")
    return group


def add_optimizer_options(command: Parser) -> Container:
    """Add the options that select the optimizer; return their group, to which a command adds its own."""
    group = command.add_argument_group("optimizer")
    add = group.add_argument
    add("--optimizer", type=registry.parse_optimizer, default="adam", metavar="NAME",
        help=f"one of {', '.join(registry.OPTIMIZERS)}; hyperparameters are set as in 'adam(eps=1e-7)' "
             "(default: %(default)s)")
    add("--weight-decay", type=_nonnegative, metavar="NUMBER",
        help="weight decay (default: depends on the optimizer)")
    return group


def _number(kind: Callable[[str], _N], is_valid: Callable[[_N], bool], expected: str) -> Callable[[str], _N]:
    """Return a converter to numbers that satisfy `is_valid`."""
    def convert(text: str) -> _N:
        try:
            number = kind(text)
            if is_valid(number):
                return number
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return convert


positive_int = _number(int, lambda n: 1 <= n <= _MAX_COUNT, "a positive integer")
steps = _number(int, lambda n: 10 <= n <= _MAX_COUNT, "an integer of at least 10")
positive_float = _number(float, lambda x: 0.0 < x < math.inf, "a positive number")
positive_or_inf = _number(float, lambda x: x > 0.0, "a positive number or inf")
fraction = _number(float, lambda x: 0.0 <= x < 1.0, "a number from 0 to below 1")
_seed = _number(int, lambda n: n >= 0, "a non-negative integer")
_nonnegative = _number(float, lambda x: 0.0 <= x < math.inf, "a non-negative number")


def save_freq(text: str) -> str | int:
    """Return a number of batches, or ``"epoch"`` or a time such as ``"30s"``."""
    try:
        frequency: str | int = int(text)
    except ValueError:
        frequency = text
    try:
        parse_frequency(frequency)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("save_freq: ")) from None
    return frequency


def _column(text: str) -> int | str:
    """Return the index or the name of a column."""
    try:
        return int(text)
    except ValueError:
        return text


def _columns(text: str) -> tuple[int | str, ...]:
    return tuple(map(_column, text.split(",")))


def _separator(text: str) -> str:
    known = {"tab": "\t", r"\t": "\t", "blanks": r"\s+"}
    if len(text) == 1 or text in known or text in known.values():
        return known.get(text, text)
    raise argparse.ArgumentTypeError(f"expected a character, tab or blanks, got {text!r}")


def _one_of(names: Collection[str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text in names:
            return text
        raise argparse.ArgumentTypeError(f"unknown name {text!r}; {suggest(text, names)}")

    return convert


def _list_of(convert: Callable[[str], _T]) -> Callable[[str], tuple[_T, ...]]:
    return lambda text: tuple(convert(item) for item in text.split(","))
