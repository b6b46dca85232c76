"""Resumption on other numbers of ranks, memory of sharded state, uses as with Horovod, and errors."""

import os

import numpy as np
import pytest
from mpi.launch import launch, needs_mpi

import fastopt
from fastopt.nn._core.blas import blas

pytestmark = needs_mpi


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Files of training that ended after three steps on four ranks, and of six steps on one."""
    directory = tmp_path_factory.mktemp("resume")
    nbytes = launch(4, "resume.py", directory, "begin").stdout
    (directory / "nbytes").write_text(nbytes)
    launch(1, "resume.py", directory, "whole")
    return directory


@pytest.mark.parametrize("n", (1, 2, 3))
def test_resumed_on_other_ranks(directory, n):
    launch(n, "resume.py", directory, "resume")
    names = [path.name.removesuffix("-whole.npz") for path in directory.glob("*-whole.npz")]
    assert len(names) == 5
    for name in names:
        whole, resumed = (dict(np.load(directory / f"{name}-{part}.npz")) for part in ("whole", "resume"))
        assert whole.keys() == resumed.keys()
        for key in whole:
            assert np.array_equal(whole[key], resumed[key]), (name, key)


def test_state_loads_into_an_ordinary_optimizer(directory):
    params = {"W": np.zeros((300, 140), "f4"), "it's": np.zeros(7, "f4"), "sums": np.zeros((200, 100), "f4")}
    opt = fastopt.Adam(params, ema=0.9, accumulate=2)
    opt.load(directory / "adam.npz")
    assert opt.steps == 1 and opt.state[0]["exp_avg"].any() and opt.ema["sums"].any()


def test_memory_of_sharded_state(directory):
    lines = [line.split() for line in (directory / "nbytes").read_text().splitlines()]
    nbytes = {name: [*map(int, own)] for name, *own in lines}
    n_elements = 300 * 140 + 7 + 200 * 100
    assert sum(nbytes["adam"]) == 2 * 4 * n_elements
    assert max(nbytes["adam"]) < 1.2 * 2 * n_elements
    assert sum(nbytes["muon"]) == 4 * n_elements + 4 * 7       # of whole parameters, and Adam for the vector


@pytest.mark.parametrize("n", (2, 3))
def test_uses(n):
    done = launch(n, "horovod.py", OMP_NUM_THREADS="", OPENBLAS_NUM_THREADS="", FASTOPT_NUM_THREADS="")
    available = int(min(len(os.sched_getaffinity(0)), os.cpu_count()))
    assert done.stdout.count("rank") == n
    if fastopt.get_num_threads() == available:
        assert done.stdout.count(f"threads {max(1, available // n)} ") == n
        assert blas.n_threads is None or done.stdout.count(f"of the BLAS {max(1, available // n)}\n") == n


def test_number_of_threads_of_the_environment():
    done = launch(2, "horovod.py", FASTOPT_NUM_THREADS="3", OPENBLAS_NUM_THREADS="2")
    assert done.stdout.count("threads 3 ") == 2
    assert blas.n_threads is None or done.stdout.count("of the BLAS 2\n") == 2
