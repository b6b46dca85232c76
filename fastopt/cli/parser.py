"""The parser of the command line, exit statuses, and error output."""

from __future__ import annotations

import argparse
import sys
import textwrap
from typing import Any, NoReturn

FAILED, USAGE_ERROR, INTERRUPTED, TERMINATED = 1, 2, 130, 143  # the last two as shells report signals


class UsageError(Exception):
    """Invalid arguments; ``args`` holds the program or command, and the message."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations that raises `UsageError` if arguments are invalid.

    Errors about unknown names suggest the closest known one. `examples` are shown at the end of ``--help``.
    """

    def __init__(self, *, examples: str = "", **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.set_examples(examples)

    def set_examples(self, examples: str) -> None:
        """Set the examples that ``--help`` shows, one per line."""
        self.epilog = f"examples:\n{textwrap.indent(examples.strip(), '  ')}" if examples else None

    def options(self) -> dict[str, argparse.Action]:
        """Return the options by name, without the leading dashes."""
        return {
            action.option_strings[-1].removeprefix("--"): action
            for action in self._actions
            if action.option_strings and action.dest != "help"
        }

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:    # type: ignore[override]
        parsed: argparse.Namespace
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            from fastopt._core.validation import suggest

            options = getattr(parsed, "command", self).options()
            closest = suggest(unknown[0].partition("=")[0].removeprefix("--"), options)
            hint = f"; {closest}".replace("'", "'--", 1) if closest.startswith("did you mean") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            from fastopt._core.validation import suggest

            hint = suggest(str(value), map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}; {hint}")

    def error(self, message: str) -> NoReturn:
        raise UsageError(self.prog, message)


def print_warning(message: str) -> None:
    """Print a warning on one line of standard error."""
    print_error(f"fastopt: warning: {message}", 0)


def print_error(message: str, status: int) -> int:
    """Print a message on one line of standard error; return the exit status."""
    print(" ".join(message.split()), file=sys.stderr)
    return status
