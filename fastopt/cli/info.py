"""``fastopt info``: print the results of a run, or versions, instruction set, threads and BLAS."""

import argparse
import json

from fastopt._config import show_config
from fastopt.cli import outputs
from fastopt.cli.parser import Parser

EXAMPLES = """
fastopt info
fastopt info fastopt-run
"""


def add_options(command: Parser) -> None:
    """Declare the options of ``fastopt info``."""
    command.add_argument(
        "run_folder", nargs="?", metavar="RUN",
        help="folder written by 'fastopt train'; verifies the checksums of its files and prints its results",
    )


def run(args: argparse.Namespace) -> int:
    """Print the configuration or the summary of a run; return the exit status."""
    if args.run_folder is None:
        show_config()
    else:
        print(json.dumps(outputs.read_summary(args.run_folder), indent=2))
    return 0
