"""The command line: ``fastopt train``, ``predict``, ``compare``, ``lr-find``, ``bench`` and ``info``.

Each command is a module with a function that takes the parsed arguments and returns an exit status, and
one that declares its options. Whatever is wrong with the arguments or their files becomes an exception;
the only place that prints it is `main`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from fastopt import bench
from fastopt._config import show_config
from fastopt._version import __version__
from fastopt.cli import compare, config, lr_find, predict, train
from fastopt.cli.options import Parser, UsageError
from fastopt.cli.status import FAILED, INTERRUPTED, WRONG_USE, complain

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit status: 0; 1 if the training diverged; 2 if an argument or a file is not right, with
        one line on standard error that says what is wrong; 130 after Ctrl-C.
    """
    try:
        args = _parse(sys.argv[1:] if argv is None else argv)
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return complain("fastopt: interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader has gone (`fastopt predict ... | head`); without this the interpreter would
        # fail once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except UsageError as error:
        return complain(": ".join(error.args), WRONG_USE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        return complain(f"fastopt: {where}{error.strerror or error}", WRONG_USE)
    except (ValueError, MemoryError, ImportError) as error:
        return complain(f"fastopt: {error}", WRONG_USE)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; those of a ``--config`` come before the words of the command line."""
    parser, commands = _parsers()
    args = parser.parse_args(words, argparse.Namespace(words=words))
    if getattr(args, "config", None) is None:
        return args
    name, *rest = words
    from_file = config.read_words(args.config, commands[name], commands["train"])
    try:
        parser.parse_args([name, *from_file])
    except UsageError as error:
        who, message = error.args
        raise UsageError(who, f"{args.config}: {message}") from None
    return parser.parse_args([name, *from_file, *rest], argparse.Namespace(words=words))


def _parsers() -> tuple[Parser, Mapping[str, Parser]]:
    """Return the parser of everything, and those of the commands by name."""
    parser = Parser(prog="fastopt", description="Train neural networks with compiled optimizers.")
    parser.add_argument("--version", action="version", version=f"fastopt {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.set_defaults(
        run=lambda args: parser.error(f"expected a command: {', '.join(commands.choices)}")
    )
    for name, run, add_options, purpose in (
        ("train", train.run, train.add_options, "train a net and leave a folder about it"),
        ("predict", predict.run, predict.add_options, "print what a trained net predicts"),
        ("compare", compare.run, compare.add_options, "train with six optimizers, side by side"),
        ("lr-find", lr_find.run, lr_find.add_options, "find the learning rate to train with"),
        ("bench", bench.run, bench.add_options, "time a step beside other libraries"),
        ("info", _info, None, "print version, instruction set, threads and BLAS"),
    ):
        command = commands.add_parser(name, help=purpose, description=purpose.capitalize() + ".")
        command.set_defaults(run=run, command=command)
        if add_options is not None:
            add_options(command)
    return parser, commands.choices


def _info(args: argparse.Namespace) -> int:
    show_config()
    return 0
