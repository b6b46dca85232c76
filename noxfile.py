"""The checks, one session each; the workflows, `.ci/run` and `tools/ci_local.sh` run these and no others.

nox -l                          say which there are; those with a star need no more than Linux
nox -s lint tests               run some; without -s all that have a star
nox -P 3.13 -s tests -- -k adam on another Python; what follows -- is for the command inside, here pytest
nox -R -s tests                 again, in the environment that is there

Each makes an environment of its own under .nox and installs there what it needs.
"""

import platform
import shutil
import sys
import tarfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.10"
nox.options.error_on_missing_interpreters = True

TOOLS = ["pytest", "hypothesis"]  # without which there are no tests


@nox.session
def lint(session):
    """Whatever looks at files alone: all hooks of .pre-commit-config.yaml."""
    session.install("--group", "lint")
    session.run("pre-commit", "run", "--all-files", "--show-diff-on-failure")


@nox.session
def typing(session):
    """The public surface is typed, and the stubs say what the compiled modules have."""
    session.install("-e", ".[test]", "--group", "typing")  # in place, as mypy reads the source folder
    session.run("mypy")
    options = ["--mypy-config-file", "pyproject.toml", "--allowlist", "tools/stubtest.txt"]
    stubbed = [".".join(stub.with_suffix("").parts) for stub in Path("fastopt").rglob("*.pyi")]
    session.run("python", "-m", "mypy.stubtest", *options, *stubbed)
    session.run("pytest", "tests/test_typing.py")
    session.run("pyright")


@nox.session
def tests(session):
    """Everything, with all optional dependencies, each as new as it gets."""
    session.install(".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def tests_oldest(session):
    """Everything, with the oldest NumPy allowed."""
    session.install(".[test]", "numpy==2.0.*")
    session.run("pytest", *session.posargs)


@nox.session
def tests_bare(session):
    """What NumPy alone is enough for."""
    session.install(".", *TOOLS)
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def tests_unlocked(session):
    """What a free-threaded Python can have: all but safetensors, which has no packages for it."""
    session.install(".[progress,plot,data,sklearn,scipy]", "threadpoolctl", *TOOLS)
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def tests_peers(session):
    """Everything, with the libraries whose results are to be met, gigabytes on Linux."""
    session.install(".[test]", "torch", "optax")
    session.run("pytest", *session.posargs)


@nox.session
def mpi(session):
    """Training on several MPI ranks, with MPICH."""
    session.install("-e", ".[test,mpi]", "--group", "mpi")
    session.run("pytest", "-rs", *(session.posargs or ["tests/mpi"]))


@nox.session
def sanitize(session):
    """What is compiled, under sanitizers; posargs name those of tools/sanitize.sh."""
    session.install("--group", "build", "numpy", *TOOLS)
    session.run("tools/sanitize.sh", *session.posargs, external=True)


@nox.session
def vectorized(session):
    """Every loop over arrays is vectorized."""
    if platform.machine() != "x86_64":
        session.skip("of x86-64 alone")
    session.install("--group", "build")
    session.run("python", "tools/check_vectorized.py", *session.posargs)


@nox.session
def avx512(session):
    """The kernels for AVX-512, under an emulator where the processor has none."""
    session.install(".", *TOOLS)
    session.run("tools/avx512.sh", *session.posargs, external=True)


@nox.session
def cross(session):
    """All modules, compiled and linked for the wheels' platforms; posargs are those of tools/cross.py."""
    session.install("--group", "build", "--group", "cross")
    session.run("python", "tools/cross.py", *session.posargs)


@nox.session
def emulate(session):
    """On another platform, under qemu, Wine or musl if installed; posargs are those of tools/emulate.sh."""
    session.install("--group", "build", "--group", "cross", "numpy", *TOOLS)
    session.run("tools/emulate.sh", *(session.posargs or ["x86_64-v2"]), external=True)


@nox.session
def dist(session):
    """Source archive and wheel into dist/: what they hold, and the tests of the one on the other."""
    session.install("--group", "build")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("python", "tools/check_distributions.py", "dist")
    (wheel,), (source,) = Path("dist").glob("*.whl"), Path("dist").glob("*.tar.gz")
    session.install(f"{wheel}[test]")
    with tarfile.open(source) as archive:
        archive.extractall(session.create_tmp(), filter="data")
    session.chdir(Path(session.create_tmp(), source.name.removesuffix(".tar.gz")))
    session.run("pytest", *session.posargs)


@nox.session(default=False)
def wheels(session):
    """The wheels of this machine's platform into dist/, from the source archive there; Linux needs Docker."""
    session.install("--group", "wheels")
    (source,) = Path("dist").glob("*.tar.gz")
    session.run("cibuildwheel", "--output-dir", "dist", *session.posargs, str(source))


@nox.session
def docs(session):
    """The site into docs/_build; a warning is an error. Posargs are packages for further examples."""
    session.install(".[test]", "--group", "docs", *session.posargs)
    session.run("sphinx-build", "-W", "--keep-going", "docs", "docs/_build")


@nox.session(default=False)
def bench(session):
    """Times of steps and training relative to another commit, in turns: nox -s bench -- main [FILE]"""
    base, *paths = session.posargs
    there = Path(session.create_tmp()).resolve()
    session.run("git", "archive", "-o", f"{there}/base.tar", base, external=True)
    with tarfile.open(there / "base.tar") as archive:
        archive.extractall(there / "base", filter="data")
    session.run(sys.executable, "-m", "venv", "--clear", f"{there}/venv", external=True)
    pythons = [f"{there}/venv/bin/python", f"{session.bin}/python"]
    for python, tree in zip(pythons, [there / "base", "."], strict=True):
        session.run(python, "-m", "pip", "install", "--quiet", str(tree), external=True)
    session.run("python", "tools/compare_bench.py", *pythons, *paths)
