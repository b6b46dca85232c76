"""Fixtures: every instruction set of this machine, a thread count that is put back, other libraries."""

import contextlib
import importlib
import importlib.util
import os
import signal
import tempfile
from pathlib import Path

import pytest

import fastopt
from fastopt._core import dispatch, runtime
from fastopt.nn._core import dispatch as nn_dispatch

# Interpreters that a test starts take the fastopt under test, not the source in the current folder.
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Run the whole suite in two processes if pytest-xdist is installed."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ     # which must not start workers of its own
    is_whole_suite = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if is_whole_suite and not is_worker and getattr(config.option, "numprocesses", 0) is None:
        config.option.numprocesses = 2


@pytest.fixture(params=dispatch.runnable())
def isa(request, monkeypatch):
    """Run the test on what is compiled for one instruction set."""
    for module, package in ((dispatch, "fastopt._core.kernels"), (nn_dispatch, "fastopt.nn._core.layers")):
        monkeypatch.setattr(module, package.rpartition(".")[2], dispatch.load(package, request.param))
    return request.param


@pytest.fixture
def threads():
    """`set_num_threads`, undone after the test; workers are woken for steps of any length."""
    before, waking = fastopt.get_num_threads(), runtime.set_wake_threshold(0)
    yield fastopt.set_num_threads
    fastopt.set_num_threads(before)
    runtime.set_wake_threshold(waking)


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt here and in child processes, even if pytest was started ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def memory_path(tmp_path):
    """An empty folder in memory, if there is such a file system, where waiting for the disk takes no time."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


# Libraries in double precision, for tests of parity: skipped where they are not installed.


@pytest.fixture
def torch():
    """torch, which computes its scalars in double as we do."""
    module = pytest.importorskip("torch", reason="torch is not installed")
    before = module.get_default_dtype()
    module.set_default_dtype(module.float64)
    yield module
    module.set_default_dtype(before)


@pytest.fixture
def keras():
    """keras on a backend that is there: its NumPy backend multiplies in single."""
    has_jax = importlib.util.find_spec("jax") is not None
    os.environ.setdefault("KERAS_BACKEND", "jax" if has_jax else "torch")
    module = pytest.importorskip("keras", reason="keras, or a backend of it, is not installed",
                                 exc_type=ImportError)
    before = module.config.floatx()
    module.config.set_floatx("float64")
    with importlib.import_module("jax").enable_x64(True) if has_jax else contextlib.nullcontext():
        yield module
    module.config.set_floatx(before)


@pytest.fixture
def optax():
    module = pytest.importorskip("optax", reason="optax is not installed")
    with importlib.import_module("jax").enable_x64(True):
        yield module


@pytest.fixture
def sklearn():
    """The module of scikit-learn's optimizers."""
    return pytest.importorskip("sklearn.neural_network._stochastic_optimizers",
                               reason="scikit-learn is not installed")
