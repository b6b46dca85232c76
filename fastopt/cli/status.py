"""Exit statuses, and the one line on standard error that goes with them."""

from __future__ import annotations

import sys

__all__ = ["FAILED", "INTERRUPTED", "WRONG_USE", "complain"]

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130  # 130 is what a shell makes of Ctrl-C


def complain(message: str, status: int) -> int:
    """Print what is wrong in one line; return the exit status."""
    print(" ".join(message.split()), file=sys.stderr)
    return status
