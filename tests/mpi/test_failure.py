"""A rank that fails ends the job with its error, and the run is resumed on another number of ranks."""

import re
import subprocess
import sys
import time

import pytest
from mpi.launch import launch, launch_python, needs_mpi

pytestmark = needs_mpi

TRAIN = ("-m", "fastopt", "train")
OPTIONS = ("--epochs=3", "--batch-size=256", "--dropout=0.2", "--norm=batch", "--ema=0.9", "--save-freq=1")


def is_running(process):
    """Whether a process has not ended; one that nobody has waited for may still have an entry."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", process], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip(" \nZ+sl<N"))


def check_ended(done):
    """Check the exit status of a job, and that its processes end."""
    assert done.returncode != 0
    processes = re.findall(r"process (\d+)", done.stdout)
    assert len(processes) == 3
    deadline = time.monotonic() + 10
    while any(map(is_running, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("rank", (0, 2))
@pytest.mark.parametrize(
    ("how", "message"),
    [("raise", "RuntimeError: the disk is full"), ("nan", "ValueError: X: expected finite")],
)
def test_error_on_one_rank(how, message, rank):
    done = launch(3, "fail.py", how, rank, check=False)
    check_ended(done)
    assert f"Rank {rank} of 3 failed" in done.stderr and message in done.stderr
    assert done.stderr.count("Traceback") == 1


def test_killed_rank():
    check_ended(launch(3, "fail.py", "kill", 1, check=False))


@pytest.mark.parametrize("rank", (0, 2))
@pytest.mark.parametrize("how", ("exit", "leave"))
def test_rank_that_exits_while_others_wait_for_it(how, rank):
    done = launch(3, "fail.py", how, rank, check=False)
    check_ended(done)
    assert f"Rank {rank} of 3 has exited, but rank {(rank + 1) % 3} waits for it" in done.stderr


@pytest.mark.parametrize("status", (0, 3))
def test_ranks_exit_at_different_times(status):
    """Also if some of them train alone, and the others do not use fastopt.mpi."""
    program = (
        "import sys, time; import numpy as np; from mpi4py import MPI; import fastopt\n"
        "rank = MPI.COMM_WORLD.rank\n"
        "if rank < 2: from fastopt import mpi; mpi.DistributedOptimizer(fastopt.SGD(np.zeros(3)), {comm})\n"
        "time.sleep(rank); print('end of', rank); sys.exit({status})"
    )
    for n, comm in ((2, None), (3, "MPI.COMM_SELF")):
        done = launch_python(n, "-c", program.format(comm=comm, status=status), check=False)
        assert done.returncode == status and done.stdout.count("end of") == n
        assert "waits" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "missing.csv"], "missing.csv"),
        (["train", "--epoch=3"], "unrecognized arguments"),
        (["train", "--micro-shards=2"], "shards: expected at least the number of ranks"),
        (["info"], "only 'train' runs on several ranks"),
    ],
)
def test_error_on_all_ranks_is_printed_once(arguments, message):
    done = launch_python(3, "-m", "fastopt", *arguments, check=False)
    assert done.returncode == 2
    assert done.stderr.count("fastopt: ") == 1 and message in done.stderr


def test_error_of_the_main_rank_in_a_command(tmp_path):
    """Only rank 0 looks at the folder of the run; the others wait for it."""
    (tmp_path / "file").touch()
    done = launch_python(3, *TRAIN, "--out", tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.count("is not empty") == 1


@pytest.fixture(scope="session")
def expected(tmp_path_factory):
    """The model of a run in a process that no launcher has started."""
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, *TRAIN, *OPTIONS, "--micro-shards=8", "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "model.npz").read_bytes()


@pytest.mark.parametrize("n", (1, 2, 4))
def test_command_on_several_ranks(expected, n, tmp_path):
    done = launch_python(n, *TRAIN, *OPTIONS, "--out", tmp_path)
    assert done.stdout.count("Saved the run") == 1
    assert (tmp_path / "model.npz").read_bytes() == expected


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 1), (1, 3)])
def test_resumed_on_other_ranks(expected, before, after, tmp_path):
    """A rank is killed in the second epoch. One rank is resumed without a launcher."""
    train = ["train", *OPTIONS, "--out", tmp_path]
    done = launch(before, "killed.py", before - 1, tmp_path, 7, *train, check=False)
    assert done.returncode != 0 and not (tmp_path / "model.npz").exists()
    resume = [*TRAIN, "--resume", str(tmp_path)]
    if after == 1:
        subprocess.run([sys.executable, *resume], check=True, capture_output=True)
    else:
        launch_python(after, *resume)
    assert (tmp_path / "model.npz").read_bytes() == expected
