"""Training gives the same bits on any number of ranks, also with sharded state."""

import importlib.util
import json

import pytest
from mpi.launch import PROGRAMS, launch, needs_mpi

pytestmark = needs_mpi

def load_program(name):
    spec = importlib.util.spec_from_file_location(name, PROGRAMS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train = load_program("train")
# On 3 and 8 ranks only the options are tested: waiting ranks use up the processors.
CASES = {n: list(train.CASES)[: None if n in (1, 2, 4) else train.N_OPTIONS] for n in (1, 2, 3, 4, 8)}


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """Hashes that the ranks have written, by number of ranks and rank."""
    known = {}

    def run(n):
        if n not in known:
            directory = tmp_path_factory.mktemp(f"ranks-{n}")
            launch(n, "train.py", directory, len(CASES[n]))
            known[n] = [json.loads((directory / f"{rank}.json").read_text()) for rank in range(n)]
        return known[n]

    return run


@pytest.mark.parametrize(("n", "case"), [(n, case) for n, cases in CASES.items() for case in cases])
def test_same_bits(results, n, case):
    expected = results(1)[0][f"{case} False"]
    assert len(expected) > 4
    for found in results(n):
        assert found[f"{case} False"] == expected
        if case not in train.NOT_SHARDED:
            assert found[f"{case} True"] == expected
