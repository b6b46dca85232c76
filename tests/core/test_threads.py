"""The same bits for any number of threads, and a pool that survives what Python does to it."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from rules import RULES, same_bits

import fastopt
from fastopt._core import runtime

GATE = 1 << 19  # bytes of arrays from which on a step is shared out
MANY = 1 << 21


def at_the_gate(rule, dtype):
    """Elements with which a step of a rule, with an average, comes to the gate."""
    return GATE // (np.dtype(dtype).itemsize * (3 + len(rule.state)))


def run(rule, dtype, lengths):
    """Steps with everything switched on; all that they leave behind."""
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(n).astype(dtype) for n in lengths]
    given = [rng.standard_normal(n).astype(dtype) for n in lengths]
    grads = [g.copy() for g in given]
    opt = rule.make(params, ema=0.9)
    norms = []
    for step in range(3):
        for g, kept in zip(grads, given, strict=True):
            np.multiply(kept, dtype(1 + step), out=g)
        opt.step(grads, max_norm=10.0, clip_value=0.5, grad_scale=2.0, zero_grad=True)
        norms.append(opt.grad_norm)
        assert not any(g.any() for g in grads)
    return [*params, *(a for s in opt.state for a in s.values()), *opt.ema, np.array(norms)]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_do_not_change_a_bit(rule, dtype, isa, threads):
    gate = at_the_gate(rule, dtype)
    for lengths in ([gate - 1], [gate], [gate + 1], [1, 8191, 0, 8193, 70001, 3, 511]):
        threads(1)
        expected = run(rule, dtype, lengths)
        for n in (2, 3, 7):
            threads(n)
            found = run(rule, dtype, lengths)
            assert all(same_bits(a, b) for a, b in zip(expected, found, strict=True)), (lengths, n)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_instruction_sets_do_not_change_a_bit(dtype, monkeypatch):
    from fastopt._core import dispatch

    for rule in RULES:
        results = []
        for name in dispatch.runnable():
            monkeypatch.setattr(dispatch, "kernels", dispatch.load("fastopt._core.kernels", name))
            results.append(run(rule, dtype, [1, 513, at_the_gate(rule, dtype) + 5]))
        for other in results[1:]:
            assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


def big_step():
    p = np.zeros(MANY, np.float32)
    fastopt.SGD(p, lr=1.0).step(np.ones_like(p))
    return bool((p == -1).all())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads threads' times in /proc")
def test_workers_do_their_share(threads):
    """A step as short as the gate lets through is really shared out."""
    runtime.stop_workers()
    before = set(os.listdir("/proc/self/task"))
    threads(2)
    p = np.zeros(GATE // 8, np.float32)
    opt, g = fastopt.SGD(p), np.ones_like(p)
    opt.step(g)
    (worker,) = set(os.listdir("/proc/self/task")) - before

    def seconds():
        return int(Path(f"/proc/self/task/{worker}/schedstat").read_text().split()[0]) * 1e-9

    start, steps = seconds(), 0
    while seconds() < start + 0.002 and steps < 100_000:
        opt.step(g)
        steps += 1
    assert seconds() > start + 0.002


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_steps_with_workers_of_its_own(threads):
    threads(3)
    assert big_step() and runtime.live_workers() == 2
    child = os.fork()
    if child == 0:
        ok = runtime.live_workers() == 0 and big_step() and runtime.live_workers() == 2
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert big_step()


def test_two_threads_step_two_optimizers(threads):
    threads(2)
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((20, 200_000)).astype(np.float32)

    def train(p):
        opt = fastopt.Adam(p)
        for g in grads:
            opt.step(g, max_norm=1.0)

    expected = np.ones(200_000, np.float32)
    train(expected)
    params = [np.ones(200_000, np.float32) for _ in range(4)]
    workers = [threading.Thread(target=train, args=(p,)) for p in params]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(same_bits(p, expected) for p in params)


def test_the_number_of_threads_changes_while_idle(threads):
    for n in (1, 2, 5, 3, 1, 4, 2):
        threads(n)
        assert fastopt.get_num_threads() == n
        assert big_step()
    assert runtime.live_workers() <= 4


def test_threadpoolctl_limits_the_pool(threads):
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    threads(3)
    (entry,) = (e for e in threadpoolctl.threadpool_info() if e["user_api"] == "fastopt")
    assert entry["num_threads"] == 3 and entry["version"] == fastopt.__version__
    for limits in (1, {"fastopt": 2}):
        with threadpoolctl.threadpool_limits(limits):
            assert fastopt.get_num_threads() == (1 if limits == 1 else 2)
            assert big_step()
        assert fastopt.get_num_threads() == 3


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_a_bad_number_of_threads(n, error):
    with pytest.raises(error, match="n: expected"):
        fastopt.set_num_threads(n)


def test_small_steps_start_no_thread():
    runtime.stop_workers()
    p = np.zeros(GATE // 8 - 1, np.float32)
    fastopt.SGD(p).step(p + 1)
    assert runtime.live_workers() == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_pools_come_and_go_and_leave_nothing(threads):
    threads(4)

    def count():
        time.sleep(0.01)    # a thread that was joined is listed for a moment more
        return len(os.listdir("/proc/self/task"))

    def memory():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    runtime.stop_workers()
    big_step()
    with_pool, held = count(), None
    for i in range(100):
        runtime.stop_workers()
        assert any(count() == with_pool - 3 for _ in range(100))
        assert big_step()
        if i == 20:
            held = memory()
    assert memory() - held < 1 << 21


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )


def test_the_interpreter_exits_with_a_live_pool():
    done = python(
        """
        import numpy as np, fastopt
        p = np.zeros(1 << 21, np.float32)
        opt = fastopt.SGD(p, lr=1.0)
        opt.step(np.ones_like(p))
        print(fastopt._core.runtime.live_workers())
        """,
        FASTOPT_NUM_THREADS="4",
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "3", "")


def test_the_interpreter_exits_while_a_daemon_thread_steps():
    done = python(
        """
        import threading, time
        import numpy as np, fastopt
        p = np.zeros(1 << 22, np.float32)
        g = np.ones_like(p)
        opt = fastopt.Adam(p)
        def forever():
            while True:
                opt.step(g)
        threading.Thread(target=forever, daemon=True).start()
        while opt.steps < 3:
            time.sleep(0.01)
        print("leaving")
        """,
        FASTOPT_NUM_THREADS="2",
    )
    assert (done.returncode, done.stdout.strip()) == (0, "leaving")


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"FASTOPT_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, "3"),
        ({"FASTOPT_NUM_THREADS": "", "OMP_NUM_THREADS": "5,2"}, "5"),
    ],
)
def test_the_environment_sets_the_threads(environment, threads):
    assert python("import fastopt; print(fastopt.get_num_threads())", **environment).stdout.strip() == threads


def test_the_quota_of_a_control_group_limits_the_threads(tmp_path):
    from fastopt._core.threads import _quota

    assert _quota(tmp_path) == float("inf")
    for text, expected in (("max 100000", float("inf")), ("150000 100000", 2), ("50000 100000", 1)):
        (tmp_path / "cpu.max").write_text(text)
        assert _quota(tmp_path) == expected
