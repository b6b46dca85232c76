"""Training gives the same bits on any number of ranks, also with sharded state."""

import functools
import json

import pytest
from mpi.launch import launch, needs_mpi
from mpi.programs import train

pytestmark = needs_mpi

# On 3 and 8 ranks only the options are tested: waiting ranks use up the processors.
CASES = {n: list(train.CASES)[: None if n in (1, 2, 4) else train.N_OPTIONS] for n in (1, 2, 3, 4, 8)}


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """Hashes that the ranks have written, by number of ranks and rank."""

    @functools.cache
    def run(n):
        directory = tmp_path_factory.mktemp(f"ranks-{n}")
        launch(n, "train.py", directory, len(CASES[n]))
        return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(n)]

    return run


@pytest.mark.parametrize(("n", "case"), [(n, case) for n, cases in CASES.items() for case in cases])
def test_same_bits(results, n, case):
    expected = results(1)[0][f"{case} False"]
    assert len(expected) > 4
    for found in results(n):
        assert found[f"{case} False"] == expected
        if case not in train.NOT_SHARDED:
            assert found[f"{case} True"] == expected
