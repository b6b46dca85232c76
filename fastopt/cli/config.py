"""Options in TOML files: ``--config run.toml``, and the ``config.toml`` that a training run writes."""

from __future__ import annotations

import argparse
import json
import tomllib
from typing import Any

from fastopt._config import config as versions
from fastopt._core.validation import suggest
from fastopt.cli.parser import Parser

_NOT_SAVED = ("config", "out", "overwrite", "resume")  # input and output of the run, not its settings


def read_config(path: str, command: Parser, train: Parser) -> list[str]:
    """Return the options of a TOML file as command-line arguments, see `parse_config`."""
    with open(path, "rb") as file:
        try:
            text = file.read().decode()
        except ValueError as error:
            raise ValueError(f"{path}: not a TOML file: {error}") from None
    return parse_config(path, text, command, train)


def parse_config(path: str, text: str, command: Parser, train: Parser) -> list[str]:
    """Return the options in the text of a TOML file as command-line arguments.

    The options of `train` are allowed in it; those that `command` does not have are skipped.
    """
    try:
        settings = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from None
    allowed = {name: action for name, action in train.options().items() if name not in ("config", "resume")}
    arguments: list[str] = []
    for name, value in settings.items():
        if name not in allowed:
            raise ValueError(f"{path}: unknown key {name!r}; {suggest(name, allowed)}")
        if name in command.options():
            arguments += _format_argument(path, name, value, is_flag=allowed[name].nargs == 0)
    return arguments


def format_config(args: argparse.Namespace, command: Parser) -> str:
    """Return the text of a TOML file that repeats a run; options that are None are left out."""
    lines = [
        "# 'fastopt train --config' with this file repeats the run, bit for bit with these versions:",
        *(f"#   {name:16} {value}" for name, value in versions().items()),
    ]
    for name, action in command.options().items():
        value = getattr(args, action.dest)
        if name not in _NOT_SAVED and value is not None:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _format_argument(path: str, name: str, value: Any, is_flag: bool) -> list[str]:
    if is_flag:
        if not isinstance(value, bool):
            raise ValueError(f"{path}: {name}: expected true or false, got {value!r}")
        return [f"--{name}"] if value else []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float) for item in values):
        raise ValueError(f"{path}: {name}: expected a number, a string, or a list of these; got {value!r}")
    return [f"--{name}={','.join(map(str, values))}"]


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        items = [_toml(item) for item in value]
        return items[0] if len(items) == 1 else f"[{', '.join(items)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    # TOML strings are JSON strings, except for the control character DEL, which TOML escapes.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
