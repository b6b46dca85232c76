"""What is written about the repository agrees with the repository."""

import ast
import re
import subprocess
from pathlib import Path, PurePosixPath

import pytest

import fastopt

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tracked():
    """All files under version control, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone, but a source archive")
    command = ["git", "-c", "safe.directory=*", "ls-files"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [PurePosixPath(line) for line in result.stdout.splitlines()]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_citation_and_changelog_have_the_version():
    assert re.findall(r"^version: (.+)$", read("CITATION.cff"), re.M) == [fastopt.__version__]
    assert re.search(r"^## (\S+)", read("CHANGELOG.md"), re.M)[1] == fastopt.__version__


def map_of_the_tree():
    """The paths in CONTRIBUTING's first column; a bare name is in the folder of the one before."""
    section = read("CONTRIBUTING.md").partition("\n## Repository layout\n")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| (`.+?) \|", section, re.M):
        folder = PurePosixPath()
        for name in re.findall(r"`(.+?)`", row):
            path = PurePosixPath(name)
            if name.startswith("fastopt/"):
                folder = path.parent
            yield path if path.parts[0] == "fastopt" else folder / path


def test_the_map_names_what_is_there(tracked):
    """Everything in the root, and every module and package in fastopt/ but for stubs, and nothing else."""
    modules = [path for path in tracked if path.suffix != ".pyi"]
    there = {PurePosixPath(*path.parts[: 2 if path.parts[0] == "fastopt" else 1]) for path in modules}
    named = list(map_of_the_tree())
    assert len(named) == len(set(named)) > 40
    assert set(named) == there


def sessions():
    """Names of the sessions in noxfile.py."""
    functions = (node for node in ast.parse(read("noxfile.py")).body if isinstance(node, ast.FunctionDef))
    return {function.name for function in functions if function.decorator_list}


def test_workflows_run_sessions_that_exist(tracked):
    workflows = [path for path in tracked if path.parent.name == "workflows"]
    text = "\n".join(map(read, workflows))
    lists = re.findall(r"session: \[(.+?)\]|session: (\w+)|nox -s (\w+)|ci_local\.sh (.+)", text)
    named = {name for groups in lists for name in re.split(r"[ ,]+", " ".join(groups).strip())}
    assert named == sessions()


def test_the_clean_clone_runs_sessions_that_exist(tracked):
    named = re.search(r"^tools/ci_local\.sh (.+)$", read(".ci/run"), re.M)[1].split()
    assert {"lint", "sanitize"} <= set(named) <= sessions()
