"""Run a program on several ranks, for tests that start `mpiexec` themselves."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
MPIEXEC = shutil.which(
    "mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)

needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None, reason="needs mpi4py and mpiexec"
)

# The matrix products of Muon depend on the number of threads, which otherwise depends on that of the ranks.
# The others are for Open MPI, which otherwise starts neither more ranks than cores nor any for root.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def launch(n_ranks, program, *args, **options):
    """Run ``programs/PROGRAM`` on some ranks, and return the completed process with its output as text."""
    return launch_python(n_ranks, PROGRAMS / program, *args, **options)


def launch_python(n_ranks, *args, timeout=300, check=True, **environment):
    """Run Python with some arguments on some ranks, see `launch`."""
    done = subprocess.run(
        [MPIEXEC, "-n", str(n_ranks), sys.executable, *map(str, args)],
        env=os.environ | ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done
