"""Options with values such as ``early_stopping(patience=5), csv_logger(filename='log.csv')``.

The syntax is Python's, but nothing is evaluated: names must be in a table, and values must be literals or,
where an argument allows it, another call.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fastopt._core.validation import suggest

Table = Mapping[str, Collection[str]]   # arguments by name

_MAX_INT = 2**63 - 1  # larger integers overflow in compiled code


@dataclass(frozen=True)
class Call:
    """A name and its keyword arguments."""

    name: str
    arguments: dict[str, Any]   # literals or calls
    text: str                   # which `parse_call` accepts

    def __str__(self) -> str:
        return self.text


def parse_calls(text: str, table: Table, nested: Collection[str] = ()) -> tuple[Call, ...]:
    """Parse a comma-separated list of ``name`` or ``name(argument=value, ...)``.

    `table` has the allowed names and arguments; the value of a `nested` argument may be another call, or a
    list of calls.
    """
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if not isinstance(tree, ast.List):
        raise argparse.ArgumentTypeError(f"expected name(argument=value, ...), got {text!r}")
    return tuple(_parse_node(node, table, nested) for node in tree.elts)


def parse_call(text: str, table: Table, nested: Collection[str] = ()) -> Call:
    """Parse exactly one call; see `parse_calls`."""
    calls = parse_calls(text, table, nested)
    if len(calls) != 1:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(table)}; got {text!r}")
    return calls[0]


def _parse_node(node: ast.expr, table: Table, nested: Collection[str]) -> Call:
    text = ast.unparse(node)
    function = node.func if isinstance(node, ast.Call) else node
    if not isinstance(function, ast.Name) or function.id not in table:
        name = ast.unparse(function)
        raise argparse.ArgumentTypeError(f"unknown name {name!r}; {suggest(name, table)}")
    keywords = node.keywords if isinstance(node, ast.Call) else []
    named = [(keyword.arg, keyword.value) for keyword in keywords if keyword.arg is not None]
    if isinstance(node, ast.Call) and (node.args or len(named) < len(keywords)):
        raise argparse.ArgumentTypeError(f"expected arguments as in name(argument=value), got {text!r}")
    arguments, known = {}, table[function.id]
    for name, value in named:
        if not known:
            raise argparse.ArgumentTypeError(f"{function.id} takes no arguments here, got {name!r}")
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"{function.id} has no argument {name!r} here; {suggest(name, known)}"
            )
        arguments[name] = _parse_value(name, value, table, nested)
    return Call(function.id, arguments, text)


def _parse_value(name: str, node: ast.expr, table: Table, nested: Collection[str]) -> Any:
    if name in nested and isinstance(node, ast.Call | ast.Name):
        return _parse_node(node, table, nested)
    if name in nested and isinstance(node, ast.List):
        return [_parse_value(name, item, table, nested) for item in node.elts]
    try:
        value = ast.literal_eval(node)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{name}: expected a number, a string, True, False, None or a list of these; "
            f"got {ast.unparse(node)!r}"
        ) from None
    if isinstance(value, int) and abs(value) > _MAX_INT:
        raise argparse.ArgumentTypeError(f"{name}: expected at most {_MAX_INT}, got {value}")
    return value
