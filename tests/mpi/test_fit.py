"""`Trainer` with a `DistributedOptimizer`: the same weights, state and metrics on any number of ranks."""

import csv
import functools
import subprocess
import sys

import numpy as np
import pytest
from mpi.launch import PROGRAMS, launch, launch_python, needs_mpi
from mpi.programs import fit

pytestmark = needs_mpi

CASES = [case.__name__ for case in fit.CASES]


@pytest.fixture(scope="session")
def fits(tmp_path_factory):
    """Directory of the files of each number of ranks, and what they have printed."""

    @functools.cache
    def run(n):
        directory = tmp_path_factory.mktemp(f"fit-{n}")
        return directory, launch(n, "fit.py", directory).stdout

    return run


def load(directory, case, rank):
    with np.load(directory / f"{case}-{rank}.npz") as file:
        return {name: (array.dtype, array.shape, array.tobytes()) for name, array in file.items()}


@pytest.mark.parametrize("n", (2, 3, 4))
@pytest.mark.parametrize("case", CASES)
def test_same_bits(fits, case, n):
    expected = load(fits(1)[0], case, 0)
    assert any(name.startswith("net.") for name in expected)
    for rank in range(n):
        assert load(fits(n)[0], case, rank) == expected


def test_rank_0_alone_prints_and_writes(fits):
    expected, printed = fits(1)
    actual, same = fits(4)
    assert printed and same == printed
    logs = [list(csv.DictReader((path / "log.csv").read_text().splitlines())) for path in (expected, actual)]
    for row in (*logs[0], *logs[1]):
        del row["seconds"]
    assert logs[0] and logs[1] == logs[0]
    assert (actual / "best.npz").read_bytes() == (expected / "best.npz").read_bytes()
    assert not (actual / "b").exists()      # the backup of a run that has ended


def test_without_mpi(fits, tmp_path):
    """The same program in a process that no launcher has started."""
    subprocess.run([sys.executable, PROGRAMS / "fit.py", tmp_path], check=True, capture_output=True)
    for case in CASES:
        assert load(tmp_path, case, 0) == load(fits(4)[0], case, 0)


def test_sharded_state_gives_the_same_bits(fits):
    directory = fits(4)[0]
    for whole, sharded in (
        ("dropout_and_penalty", "sharded_dropout_and_penalty"), ("resumed_in_an_epoch", "sharded_and_resumed")
    ):
        assert load(directory, sharded, 0) == load(directory, whole, 0)


def test_classifier_of_the_examples():
    pytest.importorskip("sklearn")
    example = PROGRAMS.parents[2] / "examples/mpi_classifier.py"
    printed = {launch_python(n, example).stdout for n in (1, 2, 4)}
    assert len(printed) == 1 and printed.pop().startswith("Test accuracy 0.9")
