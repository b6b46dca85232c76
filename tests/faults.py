"""Fault injection: an operation that fails at any point has either not happened, or happened as a whole.

An `Operation` makes a subject, such as an optimizer with its parameters, and does something to it. `check`
runs it on one subject after the other, each time with another fault, and compares the subject with an
untouched twin: with one of its *stages*, which are snapshots before, after, and between indivisible parts of
the operation. Afterwards the operation is repeated without a fault, so the subject must still be usable.

To cover another operation, add it to the table of a test; to inject another fault, write another generator
like `failing_allocations`.
"""

import contextlib
import ctypes
import dataclasses
import dis
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

try:
    import _testcapi
except ImportError:     # not part of every installation of Python
    _testcapi = None
CAN_FAIL = hasattr(_testcapi, "set_nomemory")


class InjectedError(BaseException):
    """Not an Exception, like KeyboardInterrupt, which is what a signal handler usually raises."""


# CPython raises a SystemError or RuntimeError in some places where it cannot allocate memory.
RAISED = (InjectedError, MemoryError, SystemError, RuntimeError)


def frozen(value):
    """Return a nesting of arrays and numbers in a form that can be compared, bit for bit."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, Mapping):
        return tuple((name, frozen(v)) for name, v in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(frozen, value))
    return repr(value)


@dataclasses.dataclass
class Operation:
    """Something that may fail.

    `make` returns a new subject, always in the same state; `parts` are functions that do something to it, and
    are indivisible; `snapshot` returns its state. `stages` returns all permitted snapshots in the order in
    which they are reached; by default, those before the operation and after each part.
    """

    name: str
    make: Callable[[], Any]
    parts: Sequence[Callable[[Any], None]]
    snapshot: Callable[[Any], Any]
    stages: Callable[[], list[Any]] | None = None

    def __str__(self):
        return self.name

    def run(self, subject):
        for part in self.parts:
            part(subject)

    def expected_stages(self):
        if self.stages is not None:
            return self.stages()
        subject = self.make()
        stages = [self.snapshot(subject)]
        for part in self.parts:
            part(subject)
            stages.append(self.snapshot(subject))
        assert len(set(stages)) > len(self.parts), f"{self}: a part has no effect"
        return stages


def in_child(function, *args):
    """Call a function in a forked child process, and fail if it raises an error or crashes.

    The child has no other threads, in which an injected fault could occur, such as those of pytest-xdist.
    """
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            function(*args)
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        message = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (status, message) == (0, ""), f"status {status}\n{message}"


def check(operation, faults):
    """Run an operation with every fault: context managers that `faults` yields.

    `faults` is sent whether the operation raised an error.
    """
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    in_child(check_some, operation, operation.expected_stages(), faults)


def check_some(operation, stages, faults):
    assert check_here(operation, stages, faults), f"{operation}: no fault raised an error"


def check_here(operation, stages, faults):
    """Do what `check` does, in this process. Returns the number of faults that raised an error."""
    raised = 0
    fault = next(faults)
    while fault is not None:
        subject, error = operation.make(), None
        with no_errors_in_compiled_code():
            try:
                with fault:
                    operation.run(subject)
            except RAISED as e:
                error = e
        snapshot = operation.snapshot(subject)
        if error is None:
            assert snapshot == stages[-1], f"{operation}: succeeded in spite of {fault}, with another result"
        else:
            assert snapshot in stages, f"{operation}: half done after {fault} with {error!r}"
            operation.run(subject)      # is not blocked
        raised += error is not None
        try:
            fault = faults.send(error is not None)
        except StopIteration:
            break
    return raised


@contextlib.contextmanager
def no_errors_in_compiled_code():
    """Fail if an error was ignored in a compiled function; in a closed generator it does not matter."""
    ignored, before = [], sys.unraisablehook
    sys.unraisablehook = lambda args: ignored.append((str(args.object), args.err_msg))
    try:
        yield
    finally:
        sys.unraisablehook = before
    assert not [each for each in ignored if each[0].startswith("fastopt.")], ignored


# --- Faults -------------------------------------------------------------------------------------------


class FailingAllocation:
    def __init__(self, n):
        self.n = n

    def __repr__(self):
        return f"the failure of allocation {self.n}"

    def __enter__(self):
        _testcapi.set_nomemory(self.n, self.n + 1)

    def __exit__(self, *_):
        _testcapi.remove_mem_hooks()


def failing_allocations(first=0, step=1):
    """Python's memory functions, which compiled modules use, too, fail at one allocation after the other."""
    if not CAN_FAIL:
        pytest.skip("this Python has no _testcapi.set_nomemory")
    return _failing_allocations(first, step)


def _failing_allocations(first, step):
    succeeded = 0
    for n in itertools.count(first, step):
        raised = yield FailingAllocation(n)
        # An error may be handled where it occurs; after the last allocation there is none.
        succeeded = 0 if raised else succeeded + 1
        if succeeded == 25:
            return


class _FailingMalloc:
    """Fails one allocation of an extension module, by the library of failing_malloc.c, which is preloaded."""

    def __init__(self, n):
        self.n, self.failed, self.shim = n, False, ctypes.CDLL(None)

    def __repr__(self):
        return f"the failure of malloc {self.n}"

    def __enter__(self):
        self.shim.fault_arm(ctypes.c_long(self.n))

    def __exit__(self, *_):
        self.failed = not self.shim.fault_is_armed()
        self.shim.fault_arm(ctypes.c_long(-1))


def failing_mallocs():
    """Each allocation of NumPy's and fastopt's modules fails once."""
    for n in itertools.count():
        fault = _FailingMalloc(n)
        yield fault
        if not fault.failed:
            return


# After these instructions Python runs signal handlers.
_INTERRUPTIBLE = {"RESUME", "JUMP_BACKWARD", "CALL", "CALL_FUNCTION_EX", "CALL_KW", "INSTRUMENTED_RESUME"}


class Interrupt:
    """Raises an error the n-th time that Python could run a signal handler in the block."""

    def __init__(self, n, error=InjectedError, package="fastopt/"):
        self.n, self.error, self.package = n, error, package

    def __repr__(self):
        return f"interrupt {self.n} at {self.where}"

    def __enter__(self):
        self.left, self.where, self.previous = self.n, None, {}
        sys.settrace(self.trace)

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, arg):
        if self.package not in frame.f_code.co_filename and "contextlib" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            last = self.previous.get(frame)
            self.previous[frame] = opcode_at(frame.f_code, frame.f_lasti)
            if last in _INTERRUPTIBLE:
                if self.left == 0:
                    self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                    raise self.error
                self.left -= 1
        return self.trace


_OPCODES = {}


def opcode_at(code, offset):
    if code not in _OPCODES:
        _OPCODES[code] = {i.offset: i.opname for i in dis.get_instructions(code)}
    return _OPCODES[code].get(offset, "")


def interrupts(first=0, step=1):
    """An exception at points in the package where Python could run a signal handler."""
    for n in itertools.count(first, step):
        if not (yield Interrupt(n)):
            return


class _Signal:
    """A signal after some microseconds, whose handler raises an InjectedError if the block still runs."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __repr__(self):
        return f"a signal after {self.seconds * 1e6:.0f} us"

    def __enter__(self):
        def handle(signum, frame):
            raise InjectedError

        self.before = signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_):
        # The handler may run in this method, too, until it is replaced.
        with contextlib.suppress(InjectedError):
            signal.setitimer(signal.ITIMER_REAL, 0)
        with contextlib.suppress(InjectedError):
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, self.before)


def signals(operation, count, seed=0):
    """Signals at random moments of the duration of an operation."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("this system has no interval timers")
    rng = random.Random(seed)
    subject = operation.make()
    start = time.perf_counter()
    operation.run(subject)
    duration = time.perf_counter() - start
    return _each(_Signal(rng.uniform(1e-6, duration)) for _ in range(count))


def _each(faults):
    for fault in faults:  # noqa: UP028 (it is sent values)
        yield fault


def run_preloaded(source, program, folder, *arguments):
    """Run a Python program that has functions of a C file in place of those of the C library.

    Returns what it printed.

    The file is compiled in `folder`. The program can import the modules next to this one.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}) or not os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("functions of the C library can be replaced for glibc only")
    library = folder / "preloaded.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    program = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{program}"
    environment = os.environ | {"LD_PRELOAD": str(library)}
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
