"""What a type checker makes of typical code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typing_cases
import typing_nets

import fastopt

CASES = (typing_cases, typing_nets)


@pytest.mark.parametrize("cases", CASES)
def test_what_is_right_runs(cases):
    cases.right()


@pytest.mark.parametrize("cases", CASES)
def test_mypy_takes_what_is_right_and_nothing_else(cases, tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    source = Path(cases.__file__)
    root = str(Path(fastopt.__file__).parents[1])
    command = [
        sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path),
        "--no-error-summary", "--hide-error-context", str(source),
    ]
    # mypy knows what is installed, but not what is imported in place.
    paths = {} if "site-packages" in root else {"MYPYPATH": root}
    result = subprocess.run(command, env=os.environ | paths, cwd=tmp_path, capture_output=True, text=True)
    assert result.stderr == ""
    found = re.findall(rf"^.*{source.name}:(\d+): error: .*\[([\w-]+)\]$", result.stdout, re.M)
    lines = source.read_text(encoding="utf-8").splitlines()
    expected = [
        (str(number), error[1])
        for number, line in enumerate(lines, 1)
        if (error := re.search(r"  # E: ([\w-]+)$", line))
    ]
    assert len(expected) > 10 and found == expected, result.stdout
