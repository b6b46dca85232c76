"""Options in a TOML file: ``--config run.toml``, and the file that a run leaves of its own."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

from fastopt._config import config as versions
from fastopt.cli.calls import what_is_known

if TYPE_CHECKING:
    import argparse

    from fastopt.cli.options import Parser

__all__ = ["format_config", "read_words"]

# A run's file lacks what says where the options come from and where the results go.
_NOT_OF_A_RUN = ("config", "out", "overwrite")


def read_words(path: str, command: Parser, known: Parser) -> list[str]:
    """Return the options of a file as words of a command line.

    Parameters
    ----------
    path : str
        TOML, with the options' names as keys, and numbers, strings, booleans or lists as values.
    command : Parser
        What the words are for.
    known : Parser
        The command whose options may stand in the file; those that `command` has not are left out.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If the file is no TOML, has a key that is no option, or a value of another kind.
    """
    with open(path, "rb") as file:
        try:
            given = tomllib.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not a TOML file: {error}") from None
    allowed = {name: action for name, action in known.options().items() if name != "config"}
    words: list[str] = []
    for name, value in given.items():
        if name not in allowed:
            raise ValueError(f"{path}: unknown key {name!r}, {what_is_known(name, allowed)}")
        if name in command.options():
            words += _words(path, name, value, is_flag=allowed[name].nargs == 0)
    return words


def format_config(args: argparse.Namespace, command: Parser) -> str:
    """Return the text of a file that repeats a run.

    Parameters
    ----------
    args : argparse.Namespace
        What the run was started with; None counts as not given.
    command : Parser
        The command it was started with.

    Returns
    -------
    str
    """
    lines = ["# fastopt train --config with this file repeats the run; with these versions, to the last bit:"]
    lines += [f"#   {name:16} {value}" for name, value in versions().items()]
    for name, action in command.options().items():
        value = getattr(args, action.dest)
        if name not in _NOT_OF_A_RUN and value is not None:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _words(path: str, name: str, value: Any, is_flag: bool) -> list[str]:
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
    # TOML's strings are JSON's but for one control character.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
