"""Training gives the same bits on any number of ranks, also with sharded state."""

import importlib.util
import json

import pytest
from mpi.launch import PROGRAMS, launch, needs_mpi

pytestmark = needs_mpi

RANKS = (1, 2, 3, 4, 8)


def load_program(name):
    spec = importlib.util.spec_from_file_location(name, PROGRAMS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train = load_program("train")


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """Hashes that the ranks have written, by number of ranks and rank."""
    known = {}

    def run(n):
        if n not in known:
            directory = tmp_path_factory.mktemp(f"ranks-{n}")
            launch(n, "train.py", directory)
            known[n] = [json.loads((directory / f"{rank}.json").read_text()) for rank in range(n)]
        return known[n]

    return run


@pytest.mark.parametrize("n", RANKS)
@pytest.mark.parametrize("case", train.CASES)
def test_same_bits(results, case, n):
    expected = results(1)[0][f"{case} False"]
    assert len(expected) > 4
    for found in results(n):
        assert found[f"{case} False"] == expected
        if case not in train.NOT_SHARDED:
            assert found[f"{case} True"] == expected
