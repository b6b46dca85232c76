"""``fastopt info``: print versions, instruction set, threads and BLAS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastopt._config import show_config

if TYPE_CHECKING:
    import argparse

    from fastopt.cli.parser import Parser

__all__ = ["add_options", "run"]


def add_options(command: Parser) -> None:
    """Declare the options of ``fastopt info``: there are none."""


def run(args: argparse.Namespace) -> int:
    """Print the configuration; return the exit status."""
    show_config()
    return 0
