"""Fixtures of the tests of the command line."""

import pytest

from fastopt import cli


@pytest.fixture
def run(capsys):
    """Call the command line; return the exit status and what it printed."""

    def run(*args):
        status = cli.main([str(arg) for arg in args])
        return status, *capsys.readouterr()

    return run
