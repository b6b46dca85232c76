"""Training gives the same bits on any number of ranks."""

import importlib.util

import numpy as np
import pytest
from mpi.launch import PROGRAMS, launch, needs_mpi

pytestmark = needs_mpi

RANKS = (1, 2, 3, 4, 8)


def load_program(name):
    spec = importlib.util.spec_from_file_location(name, PROGRAMS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CASES = [case.__name__ for case in load_program("train").CASES]


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """Directory of the files of each number of ranks, on demand."""
    known = {}

    def run(n):
        if n not in known:
            known[n] = tmp_path_factory.mktemp(f"ranks-{n}")
            launch(n, "train.py", known[n])
        return known[n]

    return run


def load(directory, case, rank=0):
    with np.load(directory / f"{case}-{rank}.npz") as file:
        return {name: (array.dtype, array.shape, array.tobytes()) for name, array in file.items()}


@pytest.mark.parametrize("n", RANKS)
@pytest.mark.parametrize("case", CASES)
def test_same_bits(results, case, n):
    expected = load(results(1), case)
    assert expected
    for rank in range(n):
        assert load(results(n), case, rank) == expected
