"""Files: each system call of a write fails, once or for good, or the process is killed before it."""

from pathlib import Path

from faults import run_preloaded

PROGRAM = """
import contextlib
import ctypes
import errno
import os
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import faults
import fastopt
from fastopt.cli import outputs

shim = ctypes.CDLL(None)
data = np.random.default_rng(0).standard_normal((3, 20_000)).astype(np.float32)


class Optimizer:
    '''The state of an optimizer; `value` is its number of steps.'''

    def write(self, path, value):
        opt = fastopt.Adam(data.copy())
        for _ in range(value):
            opt.step(data)
        opt.save(path)

    def read(self, path):
        opt = fastopt.Adam(data.copy())
        opt.load(path)
        return opt.steps


class Network:
    '''A model; `value` is one of its parameters.'''

    def write(self, path, value):
        net = fastopt.MLP([30, 300, 3], seed=0)
        net.params[0][1][:] = value
        net.save(path)

    def read(self, path):
        net = fastopt.MLP.load(path)
        (value,) = set(net.params[0][1].tolist())
        assert (net.params[0][0] == fastopt.MLP([30, 300, 3], seed=0).params[0][0]).all()
        return int(value)


class Summary:
    '''The text file of a run.'''

    def write(self, path, value):
        outputs.write_summary(path.parent, {"value": value, "rest": "x" * 20_000})

    def read(self, path):
        return outputs.read_summary(path.parent)["value"]


CASES = [
    ("opt.npz", Optimizer()), ("opt.safetensors", Optimizer()), ("net.npz", Network()),
    ("net.safetensors", Network()), (outputs.SUMMARY, Summary()),
]


def check(path, subject, error, lasts):
    '''Overwrite a file with each call failing in turn; return the number of calls.'''
    for n in range(10_000):
        subject.write(path, 1)
        raised = None
        shim.fault_arm(ctypes.c_long(n), error, lasts)
        try:
            subject.write(path, 2)
        except OSError as e:
            raised = e
        failed = shim.fault_disarm()
        value = subject.read(path)
        assert value in (1, 2), (n, value)
        assert raised is not None or value == 2, n
        assert raised is None or failed, n
        subject.write(path, 3)
        assert subject.read(path) == 3
        assert os.listdir(path.parent) == [path.name], (n, os.listdir(path.parent))
        if not failed:
            return n


def check_killed(path, subject):
    for n in range(10_000):
        subject.write(path, 1)
        child = os.fork()
        if child == 0:
            shim.fault_arm(ctypes.c_long(n), 0, 0)
            subject.write(path, 2)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL)
        value = subject.read(path)
        assert value in (1, 2)
        subject.write(path, 3)
        assert subject.read(path) == 3
        assert os.listdir(path.parent) == [path.name], (n, os.listdir(path.parent))
        if status == 0:
            return n


fastopt.set_num_threads(1)
for name, subject in CASES:
    if name.endswith(".safetensors"):
        try:
            import safetensors
        except ImportError:
            continue
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        path = Path(folder, name)
        counts = [check(path, subject, e, lasts) for e in (errno.ENOSPC, errno.EIO) for lasts in (0, 1)]
        counts.append(check_killed(path, subject))
        print(name, *counts, flush=True)
"""


def test_failing_system_calls_of_a_write(tmp_path, memory_path):
    source = Path(__file__).with_name("failing_calls.c")
    output = run_preloaded(source, PROGRAM, tmp_path, memory_path)
    counts = [list(map(int, line.split()[1:])) for line in output.splitlines()]
    assert len(counts) in (3, 5)
    assert all(count > 10 for case in counts for count in case), counts
