"""The command line: ``fastopt train``, ``predict``, ``compare``, ``lr-find``, ``bench`` and ``info``.

Each command is a module with ``add_options(parser)``, ``EXAMPLES`` for its ``--help``, and ``run(args)``,
which returns an exit status. It is imported only if the command is on the command line. Errors are
exceptions; only `main` prints them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from types import FrameType

from fastopt._version import __version__
from fastopt.cli.parser import FAILED, INTERRUPTED, TERMINATED, USAGE_ERROR, Parser, UsageError, print_error
from fastopt.cli.ranks import find_ranks, only_main_prints
from fastopt.mpi.communicator import Communicator
from fastopt.mpi.failure import end_job, let_main_report

__all__ = ["COMMANDS", "main"]

# Module and one-line description by command.
COMMANDS = {
    "train": ("fastopt.cli.train", "train a network and save the run in a folder"),
    "predict": ("fastopt.cli.predict", "print the predictions of a trained network"),
    "compare": ("fastopt.cli.compare", "train with six optimizers and compare the results"),
    "lr-find": ("fastopt.cli.lr_find", "suggest a learning rate"),
    "bench": ("fastopt.cli.bench", "time optimizer steps and compare with other libraries"),
    "info": ("fastopt.cli.info", "print versions, instruction set, threads and BLAS, or results of a run"),
}

_EXAMPLES = """
fastopt train                                train on the packaged digits
fastopt train --data table.csv --label price train on a table
fastopt predict fastopt-run new.csv          predict with the trained network
fastopt COMMAND --help                       list the options of a command
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command with the arguments in `argv`, by default those of the process.

    Return the exit status: 0 on success; 1 if training diverged; 2 if an argument or a file is invalid, with
    a one-line message on standard error; 130 after Ctrl-C, 143 after SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else argv
    ranks = Communicator()
    with contextlib.ExitStack() as stack:
        _replace_closed_streams(stack)
        _handle_sigterm(stack)
        try:
            ranks = find_ranks()
            with only_main_prints(ranks, " ".join(argv[:1])):
                return _run(argv)
        except BaseException as error:
            let_main_report(ranks)
            status = _print_exception(error, ranks)
            end_job(ranks, status)
            return status


def _run(argv: Sequence[str]) -> int:
    """Run a command and return its exit status."""
    args = parse_args(argv)
    status: int = args.run(args)
    if hasattr(sys.stdout, "flush"):
        sys.stdout.flush()
    return status


def _print_exception(error: BaseException, ranks: Communicator) -> int:
    """Print the error that an exception stands for, and return the exit status; raise it if it is unknown."""
    status = USAGE_ERROR
    match error:
        case KeyboardInterrupt():
            message, status = "fastopt: interrupted", INTERRUPTED
        case Terminated():
            message, status = "fastopt: terminated", TERMINATED
        case BrokenPipeError():
            # The reader closed the pipe (`fastopt predict ... | head`). Redirecting standard output keeps the
            # interpreter from failing again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        case UsageError():
            message = ": ".join(error.args)
        case OSError():
            where = f"{error.filename}: " if error.filename is not None else ""
            message = f"fastopt: {where}{error.strerror or error}"
        case ValueError() | MemoryError() | ImportError():
            message = f"fastopt: {error}"
        case _:
            raise error
    return print_error(f"rank {ranks.rank}: {message}" if ranks.rank else message, status)


def _replace_closed_streams(stack: contextlib.ExitStack) -> None:
    """Discard output if standard output or standard error is closed, or missing as in a windowed process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            discard = open(os.devnull, "w")     # noqa: SIM115 (closed by the stack)
            stack.callback(discard.close)
            stack.callback(setattr, sys, name, stream)
            setattr(sys, name, discard)


class Terminated(BaseException):
    """Raised by SIGTERM, so that temporary files are removed before the process ends."""


def _handle_sigterm(stack: contextlib.ExitStack) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated

    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        stack.callback(signal.signal, signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, handle)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; options of a ``--config`` file are inserted before those of `argv`."""
    parser = Parser(
        prog="fastopt", description="Train neural networks with compiled optimizers.", examples=_EXAMPLES
    )
    parser.add_argument("--version", action="version", version=f"fastopt {__version__}")
    parser.set_defaults(run=lambda args: _print_help(parser))
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, (module, description) in COMMANDS.items():
        command = subparsers.add_parser(name, help=description, description=_sentence(description))
        if name in argv:
            _load(command, module)
    args = parser.parse_args(argv, argparse.Namespace(argv=argv))
    folder = getattr(args, "resume", None)
    if getattr(args, "config", None) is None and folder is None:
        return args

    from fastopt.cli.config import parse_config, read_config

    train = Parser()
    _load(train, COMMANDS["train"][0])
    command, name, options = args.command, argv[0], argv[1:]
    if folder is None:
        path = args.config
        from_file = read_config(path, command, train)
    else:
        from fastopt.cli.resume import read_options

        path, text = read_options(folder, options)
        from_file = parse_config(path, text, command, train)
    try:
        parser.parse_args([name, *from_file])
    except UsageError as error:
        prog, message = error.args
        raise UsageError(prog, f"{path}: {message}") from None
    return parser.parse_args([name, *from_file, *options], argparse.Namespace(argv=argv))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _print_help(parser: Parser) -> int:
    parser.print_help()
    return 0


def _load(parser: Parser, module: str) -> None:
    """Import the module of a command and add its options to the parser."""
    command = import_module(module)
    command.add_options(parser)
    parser.set_examples(command.EXAMPLES)
    parser.set_defaults(run=command.run, command=parser)
