"""The parser of the command line, exit statuses, and error output."""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130  # shells report 130 after Ctrl-C


class UsageError(Exception):
    """Invalid arguments; ``args`` holds the program or command, and the message."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations that raises `UsageError` if arguments are invalid."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def options(self) -> dict[str, argparse.Action]:
        """Return the options by name, without the leading dashes."""
        return {
            action.option_strings[-1].removeprefix("--"): action
            for action in self._actions
            if action.option_strings and action.dest != "help"
        }

    def error(self, message: str) -> NoReturn:
        raise UsageError(self.prog, message)


def print_error(message: str, status: int) -> int:
    """Print a message on one line of standard error; return the exit status."""
    print(" ".join(message.split()), file=sys.stderr)
    return status
