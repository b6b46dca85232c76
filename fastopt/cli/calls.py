"""Options that name things with arguments of their own: ``early_stopping(patience=5), csv_logger(...)``.

What is written like Python is only read as such: names from a table, and values that are literals or, where
one is taken, another such call. Nothing is ever evaluated.
"""

from __future__ import annotations

import argparse
import ast
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Table = Mapping[str, Collection[str]]

_LARGEST = 2**63 - 1  # of a whole number: a double cannot hold any, and no count is so large

__all__ = ["Call", "parse_call", "parse_calls", "what_is_known"]


@dataclass(frozen=True)
class Call:
    """A name of a table and the arguments that came with it.

    Attributes
    ----------
    name : str
    arguments : dict
        Literals, or `Call` objects.
    text : str
        As it can be parsed again.
    """

    name: str
    arguments: dict[str, Any]
    text: str

    def __str__(self) -> str:
        return self.text


def parse_calls(text: str, table: Table, nested: Collection[str] = ()) -> tuple[Call, ...]:
    """Return the calls of a comma-separated list.

    Parameters
    ----------
    text : str
        ``name`` or ``name(argument=value, ...)``, none or several of them.
    table : mapping of str to collection of str
        The names that may be called, and the names of each one's arguments.
    nested : collection of str
        The arguments whose value may be a call of the same table.

    Returns
    -------
    tuple of Call

    Raises
    ------
    argparse.ArgumentTypeError
        If a name is not in the table, or it is not written so; the nearest known name is given.
    """
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if not isinstance(tree, ast.List):
        raise argparse.ArgumentTypeError(f"expected name(argument=value, ...), got {text!r}")
    return tuple(_call(node, table, nested) for node in tree.elts)


def parse_call(text: str, table: Table, nested: Collection[str] = ()) -> Call:
    """Return the one call that `text` is; as `parse_calls` otherwise."""
    calls = parse_calls(text, table, nested)
    if len(calls) != 1:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(table)}; got {text!r}")
    return calls[0]


def what_is_known(word: str, known: Collection[str]) -> str:
    """Return the end of an error about an unknown word: the known one that looks like it, else all."""
    nearest = difflib.get_close_matches(word, known, n=1)
    return f"the nearest known one is {nearest[0]!r}" if nearest else f"known are {', '.join(known)}"


def _call(node: ast.expr, table: Table, nested: Collection[str]) -> Call:
    text = ast.unparse(node)
    function = node.func if isinstance(node, ast.Call) else node
    if not isinstance(function, ast.Name) or function.id not in table:
        found = ast.unparse(function)
        raise argparse.ArgumentTypeError(
            f"unknown name {found!r}, {what_is_known(found, table)}"
        )
    keywords = node.keywords if isinstance(node, ast.Call) else []
    named = [(keyword.arg, keyword.value) for keyword in keywords if keyword.arg is not None]
    if isinstance(node, ast.Call) and (node.args or len(named) < len(keywords)):
        raise argparse.ArgumentTypeError(f"expected arguments as in name(argument=value), got {text!r}")
    arguments = {}
    for name, value in named:
        _check_argument(function.id, name, table[function.id])
        arguments[name] = _value(name, value, table, nested)
    return Call(function.id, arguments, text)


def _check_argument(name: str, argument: str, known: Collection[str]) -> None:
    if not known:
        raise argparse.ArgumentTypeError(f"{name} takes no arguments here, got {argument!r}")
    if argument not in known:
        raise argparse.ArgumentTypeError(
            f"{name} has no argument {argument!r} here, {what_is_known(argument, known)}"
        )


def _value(name: str, node: ast.expr, table: Table, nested: Collection[str]) -> Any:
    if name in nested and isinstance(node, ast.Call | ast.Name):
        return _call(node, table, nested)
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{name}: expected a number, a string, True, False, None or a list of these; "
            f"got {ast.unparse(node)!r}"
        ) from None
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise argparse.ArgumentTypeError(f"{name}: expected at most {_LARGEST}, got {value}")
    return value
