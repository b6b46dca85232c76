"""`tools/check_words.py` finds the words of its table in prose, and nothing in code."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "check_words.py"


@pytest.mark.parametrize("name, text, expected", [
    ("page.md", "Two arrays.\n\nA net beside\nanother.\n", [(3, "A net"), (3, "beside"), (3, "net")]),
    ("page.md", "A run goes\non.\n", [(1, "goes on")]),
    ("page.md", "It costs 20 bytes a\nstep.\n", [(1, "bytes a step")]),
    ("page.md", "`net`, [a](net.md), $net$\n\n```python\nnet = 1\n```\n\n    net\n", []),
    ("page.md", "an update rule, stand-alone, in place\n", []),
    ("module.py", 'def f():\n    """Return it anew."""  # goes on\n', [(2, "anew"), (2, "goes on")]),
    ("module.py", 'net = "net", "anew"\n', []),
    ("module.py", 'raise ValueError(f"x: expected a whole number, got {anew!r}")\n', [(1, "whole number")]),
    ("module.pyx", "cdef inline int f(int* p) noexcept nogil:   # stands here\n    pass\n", [(1, "stands")]),
    ("file.c", "int anew; // anew\n/* a\n   whole number */\n", [(1, "anew"), (3, "whole number")]),
])
def test_words_are_found_with_their_lines(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    result = subprocess.run([sys.executable, TOOL, name], cwd=tmp_path, capture_output=True, text=True)
    found = [line.split(": write ")[0] for line in result.stdout.splitlines()]
    assert sorted(found) == sorted(f"{name}:{line}: {word!r}" for line, word in expected)
    assert (result.returncode, result.stderr) == (bool(expected), "")
