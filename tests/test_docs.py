"""The Python on the pages runs, from the first block of a page to its last, and does what it says."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import fastopt
from fastopt.cli import parts

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if BLOCK.search(page.read_text(encoding="utf-8"))
]
# What a page's code needs beside NumPy.
EXTRAS = {"command-line.md": "matplotlib", "scikit-learn.md": "sklearn", "scipy.md": "scipy"}


def readme_trains(names):
    assert names["history"].history["val_accuracy"][-1] >= 0.9


def article_trains(names):
    assert names["solver"].accuracy(names["y_test"], names["net"].predict(names["X_test"])) >= 0.93


# What a page's code must have come to, by the names that it leaves; the others assert it themselves.
RESULTS = {"README.md": readme_trains, "article.md": article_trains}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_the_page_runs(page, tmp_path, monkeypatch, capsys):
    if page.name in EXTRAS:
        pytest.importorskip(EXTRAS[page.name])
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    names = {}
    for block in BLOCK.finditer(text):
        above = "\n" * text.count("\n", 0, block.start(1))  # so that errors give the page's lines
        exec(compile(above + block[1], str(page), "exec"), names)
    if page.name in RESULTS:
        RESULTS[page.name](names)


def test_the_pages_are_found():
    names = {page.name for page in PAGES}
    assert {"README.md", "article.md", "command-line.md", "schedules.md"} <= names
    assert EXTRAS.keys() | RESULTS.keys() <= names


@pytest.mark.parametrize("page", ["README.md", "docs/rules.md"])
def test_every_rule_is_in_the_table(page):
    """In the first column of some table; in the README with its functions beside it."""
    rows = [line.split("|") for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if "|" in line]
    first = {name for row in rows for name in re.findall(r"`(\w+)[`(]", row[1])}
    assert set(fastopt.optimizers.__all__) - {"Optimizer"} <= first
    if page == "README.md":
        named = {name for row in rows if len(row) > 2 for name in re.findall(r"`(\w+_)`", row[2])}
        assert named == set(fastopt.functional.__all__) == set(fastopt.reference.__all__)


def test_the_page_on_adding_a_rule_quotes_the_code():
    """Its blocks are found in the sources, line by line."""
    package = ROOT / "fastopt"
    sources = [*package.glob("*.py*"), *package.glob("optimizers/*.py"), ROOT / "tests" / "rules.py"]
    lines = {line for path in sources for line in path.read_text(encoding="utf-8").splitlines()}
    text = (ROOT / "docs" / "add-a-rule.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.M | re.S)
    quoted = [line for block in blocks for line in block.splitlines()]
    assert len(quoted) > 30 and [line for line in quoted if line not in lines] == []


@pytest.mark.parametrize("family", ["adagrad", "adam", "rmsprop", "sgd"])
def test_the_examples_of_docstrings(family):
    module = importlib.import_module(f"fastopt.optimizers.{family}")
    result = doctest.testmod(module)
    assert result.attempted >= 5 and result.failed == 0


def test_the_optimizers_of_the_command_line():
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)`[^|]*\| ([\d.]+) \|$", text, re.M)
    expected = [(name, rule.__name__, f"{lr:g}") for name, (rule, lr, _) in parts.OPTIMIZERS.items()]
    assert rows == expected
