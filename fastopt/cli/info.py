"""``fastopt info``: print versions, instruction set, threads and BLAS."""

from fastopt._config import show_config

EXAMPLES = "fastopt info"


def add_options(command: object) -> None:
    """Add no options."""


def run(args: object) -> int:
    """Print the configuration; return the exit status."""
    show_config()
    return 0
