"""Configuration of the installation: versions, instruction set, threads and BLAS."""

from __future__ import annotations

import platform

import numpy as np

from fastopt._core import dispatch
from fastopt._core.threads import get_num_threads
from fastopt._version import __version__
from fastopt.nn._core.blas import blas


def show_config() -> None:
    """Print versions, instruction set, number of threads and BLAS."""
    for name, value in config().items():
        print(f"{name:16} {value}")


def config() -> dict[str, str]:
    """Return the configuration as a dict of str."""
    numpy_blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "fastopt": __version__,
        "instruction set": f"{dispatch.isa} (runnable: {', '.join(dispatch.runnable())})",
        "threads": str(get_num_threads()),
        "NumPy": np.__version__,
        "BLAS": blas.name if blas.direct else f"{numpy_blas['name']} {numpy_blas['version']}, through NumPy",
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
