"""The parser of the arguments, and the options that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from fastopt.cli import parts
from fastopt.cli.calls import what_is_known
from fastopt.nn.layers import ACTIVATIONS

if TYPE_CHECKING:
    _Container = argparse._ActionsContainer     # a parser, or a group of its options

__all__ = [
    "Parser", "UsageError", "add_data_options", "add_epochs_option", "add_label_option", "add_net_options",
    "add_optimizer_options", "add_training_options", "limit", "positive", "rate", "share", "steps",
]

_LARGEST = 2**31 - 1  # of a count: more than anyone has, and NumPy's sizes stay in range
_T = TypeVar("_T")
_N = TypeVar("_N", int, float)
_NORMS = ("none", "batch", "layer")


class UsageError(Exception):
    """The arguments are wrong: who says so, and what."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without a page on the usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def options(self) -> dict[str, argparse.Action]:
        """Return the options by their names without dashes."""
        return {
            action.option_strings[-1].removeprefix("--"): action
            for action in self._actions
            if action.option_strings and action.dest != "help"
        }

    def error(self, message: str) -> NoReturn:
        raise UsageError(self.prog, message)


# --- Options of several commands -----------------------------------------------------------------


def add_data_options(command: Parser) -> None:
    """Add what says which data to train on."""
    group = command.add_argument_group("data")
    add = group.add_argument
    add("--config", metavar="FILE.toml", help="take options from there; those given here win")
    add("--data", default="digits", metavar="PATH",
        help="folder of IDX files, or .npz, .csv, .csv.gz (default: the digits of the package)")
    add_label_option(group)
    add("--task", choices=("auto", "classification", "regression"), default="auto", metavar="TASK",
        help="classification or regression (default: by --loss, or by the type of the labels)")


def add_label_option(command: _Container) -> None:
    """Add ``--label``."""
    command.add_argument("--label", type=_column, metavar="COLUMN",
                         help="name or place of a CSV's column of labels (default: the last)")


def add_net_options(command: Parser) -> None:
    """Add what says how the net is made."""
    add = command.add_argument_group("net").add_argument
    add("--hidden", type=_list_of(positive), default=(128,), metavar="SIZES",
        help="widths of the hidden layers, as in 256,128 (default: 128)")
    add("--activation", type=_list_of(_one_of(ACTIVATIONS)), default=("relu",), metavar="NAMES",
        help=f"one, or one a hidden layer: {', '.join(ACTIVATIONS)} (default: relu)")
    add("--norm", type=_list_of(_one_of(_NORMS)), default=("none",), metavar="NAMES",
        help=f"normalization, one or one a hidden layer: {', '.join(_NORMS)} (default: none)")
    add("--dropout", type=_list_of(share), default=(0.0,), metavar="RATES",
        help="share of a layer's outputs to drop, one or one a hidden layer (default: 0)")
    losses = [name for group in parts.LOSSES.values() for name in group]
    add("--loss", type=parts.loss_call, default="auto", metavar="NAME",
        help=f"{', '.join(losses)}; as in 'huber(delta=2)' (default: by the task)")
    add("--label-smoothing", type=share, default=0.0, metavar="SHARE",
        help="part of the target spread over all classes (default: %(default)s)")
    add("--l2", type=_nonnegative, default=0.0, metavar="NUMBER",
        help="add 0.5 * NUMBER * sum(W**2) to the loss (default: %(default)s)")
    add("--seed", type=_seed, default=0, metavar="N",
        help="of the initial weights and the order of the rows (default: %(default)s)")


def add_epochs_option(command: _Container) -> None:
    """Add ``--epochs``."""
    command.add_argument("--epochs", type=positive, default=20, metavar="N",
                         help="times that each row is seen (default: %(default)s)")


def add_training_options(command: Parser) -> _Container:
    """Add what says how the rows are taken in; return the group, for further options."""
    group = command.add_argument_group("training")
    add = group.add_argument
    add("--batch-size", type=positive, default=32, metavar="N", help="(default: %(default)s)")
    add("--class-weight", choices=("none", "balanced"), default="none", metavar="HOW",
        help="balanced: every class counts as much as every other (default: none)")
    add("--max-norm", type=limit, default=math.inf, metavar="NORM",
        help="scale down gradients whose norm is larger (default: inf)")
    return group


def add_optimizer_options(command: Parser) -> _Container:
    """Add what says which rule changes the weights; return the group, for further options."""
    group = command.add_argument_group("optimizer")
    add = group.add_argument
    add("--optimizer", type=parts.optimizer_call, default="adam", metavar="NAME",
        help=f"{', '.join(parts.OPTIMIZERS)}; as in 'adam(eps=1e-7)' with numbers of its own "
             "(default: %(default)s)")
    add("--weight-decay", type=_nonnegative, metavar="NUMBER",
        help="pull of the weights towards 0 (default: by the optimizer)")
    return group


# --- Values --------------------------------------------------------------------------------------


def _number(kind: Callable[[str], _N], is_right: Callable[[_N], bool], expected: str) -> Callable[[str], _N]:
    """Return a type for an option: numbers of a `kind` for which `is_right`; `expected` says which."""
    def convert(text: str) -> _N:
        try:
            number = kind(text)
            if is_right(number):
                return number
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return convert


positive = _number(int, lambda n: 1 <= n <= _LARGEST, "a whole number from 1 on")
steps = _number(int, lambda n: 10 <= n <= _LARGEST, "a whole number from 10 on")
rate = _number(float, lambda x: 0.0 < x < math.inf, "a positive number")
_seed = _number(int, lambda n: n >= 0, "a whole number from 0 on")
share = _number(float, lambda x: 0.0 <= x < 1.0, "a number from 0 on and below 1")
_nonnegative = _number(float, lambda x: 0.0 <= x < math.inf, "a number from 0 on")
limit = _number(float, lambda x: x > 0.0, "a positive number or inf")


def _column(text: str) -> int | str:
    """Return a place as an int, a name as it is."""
    try:
        return int(text)
    except ValueError:
        return text


def _one_of(names: Collection[str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text in names:
            return text
        raise argparse.ArgumentTypeError(f"unknown name {text!r}, {what_is_known(text, names)}")

    return convert


def _list_of(convert: Callable[[str], _T]) -> Callable[[str], tuple[_T, ...]]:
    return lambda text: tuple(convert(part) for part in text.split(","))
