"""The Python on the pages runs, from the first block of a page to its last, and does what it says."""

import doctest
import importlib
import inspect
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from files import write_idx_folder

import fastopt
from fastopt import cli
from fastopt.cli import registry
from fastopt.optimizers import BY_NAME

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(?:python|\{code-cell\})\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^\$ (?:.*&& )?(fastopt (?:.*\\\n)*.*)$", re.M)
TEXTS = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
    if "_build" not in page.parts
}
PAGES = [name for name, text in TEXTS.items() if BLOCK.search(text)]
# What a page's code needs in addition to NumPy.
EXTRAS = {
    "docs/accumulation-clipping-ema.md": "matplotlib",
    "docs/checkpoint-resume.md": "matplotlib",
    "docs/command-line.md": "matplotlib",
    "docs/course.md": "matplotlib",
    "docs/from-torch.md": "torch",
    "docs/interop.md": "torch",
    "docs/pytorch.md": "torch",
    "docs/scikit-learn.md": "sklearn",
    "docs/scipy.md": "scipy",
    "docs/story.md": "matplotlib",
    "docs/table-classifier.md": "matplotlib pandas",
    "docs/tables.md": "pandas",
}


def readme_trains(names):
    assert names["history"].history["val_accuracy"][-1] >= 0.9


def article_trains(names):
    assert names["solver"].accuracy(names["y_test"], names["net"].predict(names["X_test"])) >= 0.93


# What a page's code must have come to, by the names that it leaves; the others assert it themselves.
RESULTS = {"README.md": readme_trains, "docs/article.md": article_trains}


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_the_page_runs(page, tmp_path, monkeypatch, capsys):
    for module in EXTRAS.get(page, "").split():
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    write_wine(Path("wine.csv"), Path("new-wine.csv"))
    text, names = TEXTS[page], {}
    for block in BLOCK.finditer(text):
        above = "\n" * text.count("\n", 0, block.start(1))  # so that errors give the page's lines
        exec(compile(above + block[1], str(ROOT / page), "exec"), names)
    if page in RESULTS:
        RESULTS[page](names)


def test_the_pages_are_found():
    assert {"README.md", "docs/article.md", "docs/schedules.md", "docs/optimizers/Adam.md"} <= set(PAGES)
    assert EXTRAS.keys() | RESULTS.keys() <= set(PAGES)


def write_data():
    """What the commands of the pages read, in the working folder."""
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (100, 28, 28), np.uint8), np.arange(100, dtype=np.uint8) % 10
    for folder in ("fashion-mnist", "images"):
        Path(folder).mkdir()
        write_idx_folder(Path(folder), {"train": (X, y), "t10k": (X, y)})
    np.savetxt("new.csv", X.reshape(100, -1), "%d", ",")
    rows = [f"{x:.3f},{height:.3f},{tree}" for tree, height in (("ash", 0), ("birch", 5), ("cedar", 10)) * 100
            for x in rng.normal(size=1)]
    Path("trees.csv").write_text("\n".join(["age,height,tree", *rows]))
    write_wine(Path("wine.csv"), Path("new-wine.csv"))


def write_wine(path, new):
    """A table with semicolons, decimal commas, texts, missing values and an id; three rows without label."""
    rng = np.random.default_rng(0)
    lines = ["id;color;acidity;sugar;quality"]
    for i in range(243):
        quality = rng.integers(4, 7)
        color = "red" if rng.random() < 0.3 * (quality - 3.5) else "white"
        sugar = "?" if i % 10 == 9 else f"{rng.normal(20 * quality, 8):.1f}"
        lines.append(f"{i + 1};{color};{rng.normal(quality, 0.5):.2f};{sugar};{quality}".replace(".", ","))
    path.write_text("\n".join(lines[:241]) + "\n")
    cells = [line.split(";") for line in [lines[0], *lines[241:]]]
    new.write_text("".join(f"{sugar};{color};{acidity}\n" for _, color, acidity, sugar, _ in cells))


@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if COMMAND.search(text)])
def test_the_commands_of_the_page_run(page, tmp_path, monkeypatch, capsys):
    """In their order; benchmarks, which take minutes and other libraries, are only understood."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    write_data()
    for command in COMMAND.findall(TEXTS[page]):
        _, *words = shlex.split(command.replace("\\\n", " ").partition(">")[0])
        if words[0] == "bench":
            assert cli.parse_args(words).run
        else:
            assert (cli.main(words), words) == (0, words)


def test_the_output_on_the_page_of_tables_is_real(tmp_path, monkeypatch, capsys):
    """But for digits, which matrix products may round otherwise on another machine."""
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    write_data()
    for block in re.findall(r"^```console\n\$ fastopt (.*?)^```", TEXTS["docs/tables.md"], re.M | re.S):
        command, *shown = block.splitlines()
        assert cli.main(shlex.split(command)) == 0
        printed = iter(re.sub(r"\d+", "0", capsys.readouterr().out).splitlines())
        for line in shown:      # in this order, with gaps where it says so
            assert line == "..." or re.sub(r"\d+", "0", line) in printed, line
            assert len(line) <= 80


def test_the_head_of_the_table_on_its_page(tmp_path):
    write_wine(tmp_path / "wine.csv", tmp_path / "new.csv")
    lines = (tmp_path / "wine.csv").read_text().splitlines()[:4]
    assert "\n".join(f"    {line}" for line in lines) in TEXTS["docs/tables.md"]


def test_the_commands_are_found():
    commands = [command for text in TEXTS.values() for command in COMMAND.findall(text)]
    assert {command.split()[1] for command in commands} == set(cli.COMMANDS)



# --- The page of each rule ------------------------------------------------------------------------


FORMULA_OF_DOCSTRING = re.compile(r"^\.\. math::\n((?:    .*\n)+)", re.M)
FORMULA_OF_PAGE = re.compile(r"^\$\$\n(.*?)^\$\$$", re.M | re.S)
QUOTED = re.compile(
    r"^```\{literalinclude\} ../../fastopt/reference\.py\n:language: python\n:pyobject: (\w+)\n```$", re.M
)


def formulas(pattern, text):
    return {" ".join(formula.split()) for formula in pattern.findall(text)}


@pytest.mark.parametrize("rule", BY_NAME.values(), ids=BY_NAME)
def test_every_rule_has_its_page(rule):
    """With its name, formula and symbols, advice, an example, its NumPy code and path, papers, arguments."""
    text = TEXTS[f"docs/optimizers/{rule.__name__}.md"]
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.M)
    sections = [
        "Hyperparameters", "Example", "NumPy implementation", "Path on a surface", "When to use it",
        "References", "API",
    ]
    assert re.match(rf"{rule.__name__}(: | and )\w", titles[0]) and titles[1:] == sections
    _, sentences, *others = text.partition("\n## ")[0].split("\n\n")
    assert len(re.findall(r"\.\s|\.$", sentences)) >= 2
    assert others[0].startswith("$$") and any(part.startswith("Here $") for part in others)
    assert f"(../images/paths/{rule.__name__}.svg)" in text
    assert re.findall(r"^\*\*(Use|Avoid) it when\*\* ", text, re.M) == ["Use", "Avoid"]
    shown = formulas(FORMULA_OF_PAGE, text)
    assert shown and formulas(FORMULA_OF_DOCSTRING, inspect.getdoc(rule)) <= shown
    quoted = QUOTED.findall(text)
    assert quoted and all(hasattr(fastopt.reference, name) for name in quoted)
    assert f"```{{eval-rst}}\n.. autoclass:: fastopt.{rule.__name__}\n```" in text
    papers = re.search(r"^## References$(.*?)^## ", text, re.M | re.S)[1]
    authors = re.search(r"References\n-+\n(.*?)(?:\n\n|\Z)", inspect.getdoc(rule), re.S)[1]
    first = re.findall(r"^([A-Z][\w-]+)[ ,]", authors, re.M)
    assert first and [name for name in first if name not in papers] == []
    assert "](https://" in papers


def test_every_path_is_drawn():
    """By tools/draw_paths.py."""
    drawn = {path.stem for path in (DOCS / "images" / "paths").iterdir()}
    assert drawn == {rule.__name__ for rule in BY_NAME.values()}


def test_every_line_of_the_reference_is_on_a_page():
    pages = [TEXTS[f"docs/optimizers/{rule.__name__}.md"] for rule in BY_NAME.values()]
    assert set(fastopt.reference.__all__) <= {name for page in pages for name in QUOTED.findall(page)}
    assert f"{len(pages)} optimizers" in TEXTS["docs/index.md"]


# --- The site -------------------------------------------------------------------------------------


def documented():
    """Names that the pages make an entry of, by the directives of Sphinx, each as often as they do."""
    names, module = Counter(), "fastopt"
    for text in TEXTS.values():
        for kind, name, options in re.findall(
            r"^\.\. (auto\w+|currentmodule):: ([\w.]+)\n((?:   .*\n)*)", text, re.M
        ):
            if kind == "currentmodule":
                module = name
            elif kind == "automodule":
                names.update(f"{name}.{public}" for public in importlib.import_module(name).__all__)
                assert ":members:" in options
            elif kind != "automethod":
                names[name if name.startswith("fastopt.") else f"{module}.{name}"] += 1
    return names


def public_names():
    """Every name in the ``__all__`` of a module that is neither private nor a command, with its object."""
    names = {f"fastopt.{name}": getattr(fastopt, name) for name in fastopt.__all__}
    for module in pkgutil.walk_packages(fastopt.__path__, "fastopt."):
        *_, last = parts = module.name.split(".")
        if any(part.startswith("_") for part in parts) or parts[1] in ("cli", "torch") or last == "api":
            continue
        found = importlib.import_module(module.name)
        names |= {f"{module.name}.{name}": getattr(found, name) for name in getattr(found, "__all__", ())}
    return {name: value for name, value in names.items() if not inspect.ismodule(value)}


def resolve(name):
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def test_every_public_name_is_documented_once():
    pytest.importorskip("sklearn")
    pytest.importorskip("scipy")
    entries = documented()
    assert {name: n for name, n in entries.items() if n > 1} == {}
    names = public_names()
    assert {"fastopt.Adam", "fastopt.nn.data.load_digits", "fastopt.sklearn.MLPClassifier"} <= names.keys()
    # a name that is imported from another module is documented there
    shown = {id(resolve(name)) for name in entries}
    missing = {name for name, value in names.items() if name not in entries and id(value) not in shown}
    assert missing == set()
    in_torch = set(re.findall(r"^(?:\.\. py:class::|   ) +(\w+)\(?", TEXTS["docs/api/torch.md"], re.M))
    assert {rule.__name__ for rule in BY_NAME.values()} | {"Optimizer"} <= in_torch


def test_the_tests_that_pages_name_are_there():
    files = list((ROOT / "tests").rglob("*.py"))
    there = {path.stem for path in files} | {
        name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.M)
    }
    named = {name for text in TEXTS.values() for name in re.findall(r"\btest_\w+", BLOCK.sub("", text))}
    named -= {"test_size", "test_"}
    assert len(named) > 30 and named - there == set()


# What readers look for, and the search of the site finds as a title or an entry of the index.
SEARCHED = {
    "gradient accumulation", "resume training", "sample weights", "parameter groups", "bias correction",
    "8-bit optimizer", "torch drop-in",
}


def test_the_site_is_built_without_a_warning(tmp_path):
    """And its map for language models names every page."""
    extensions = ("sphinx", "myst_nb", "furo", "latex2mathml", "sphinx_copybutton", "sphinx_gallery")
    for needed in (*extensions, "sklearn", "scipy"):
        pytest.importorskip(needed)
    command = [sys.executable, "-P", "-m", "sphinx", "-q", "-W", "--keep-going", DOCS, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    links = re.findall(r"\]\((.+?)\)", (tmp_path / "llms.txt").read_text("utf-8"))
    pages = {name.removeprefix("docs/").replace(".md", ".html") for name in TEXTS if name != "README.md"}
    pages |= {f"examples/{path.stem}.html" for path in (DOCS / "gallery").glob("*.py")}
    pages.add("examples/index.html")
    assert sorted(links) == sorted(pages - {"index.html"})
    assert all((tmp_path / link).exists() for link in links)
    index = json.loads((tmp_path / "searchindex.js").read_text("utf-8").removeprefix("Search.setIndex(")[:-1])
    found = {term for term, places in index["indexentries"].items() if any(is_main for *_, is_main in places)}
    found |= {title.lower() for title in index["alltitles"]}
    assert SEARCHED - found == set()


LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#[^)\s]*)?\)")


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    links = [link for link in LINK.findall(BLOCK.sub("", TEXTS[page])) if link]
    assert [link for link in links if not (folder / link).exists()] == []


def test_every_optimizer_is_in_the_readme_and_in_the_table():
    rows = [line.split("|")[1] for line in TEXTS["docs/optimizers.md"].splitlines() if line.startswith("|")]
    for first in (" ".join(rows), TEXTS["README.md"].partition("## Optimizers")[2]):
        assert set(fastopt.optimizers.__all__) - {"Optimizer"} <= set(re.findall(r"`(\w+)[`(]", first))


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_the_page_on_adding_a_rule_quotes_the_code():
    """Its blocks are found in the sources, line by line."""
    package = ROOT / "fastopt"
    sources = [*package.rglob("*.py"), *package.rglob("*.pyx"), ROOT / "tests" / "rules.py"]
    lines = {line for path in sources for line in path.read_text(encoding="utf-8").splitlines()}
    blocks = re.findall(r"^```\n(.*?)^```$", TEXTS["docs/add-an-optimizer.md"], re.M | re.S)
    shown = [line for block in blocks for line in block.splitlines()]
    assert len(shown) > 30 and [line for line in shown if line not in lines] == []


@pytest.mark.parametrize("family", ["adagrad", "adam", "rmsprop", "sgd"])
def test_the_examples_of_docstrings(family):
    module = importlib.import_module(f"fastopt.optimizers.{family}")
    result = doctest.testmod(module)
    assert result.attempted >= 5 and result.failed == 0


def test_the_optimizers_of_the_command_line():
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)`[^|]*\| ([\d.]+) \|$", text, re.M)
    expected = [(name, rule.__name__, f"{lr:g}") for name, (rule, lr, _) in registry.OPTIMIZERS.items()]
    assert rows == expected
