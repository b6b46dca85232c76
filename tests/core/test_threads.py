"""Results do not depend on the number of threads; the pool survives forks, exits and concurrent callers."""

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

SERIAL_BELOW = 1 << 18  # steps touching fewer bytes run serially
LARGE = 1 << 21


def parallel_size(rule, dtype):
    """Elements from which a step of a rule with EMA runs in parallel."""
    return SERIAL_BELOW // (np.dtype(dtype).itemsize * (3 + len(rule.state)))


def run(rule, dtype, lengths):
    """Take steps with many options, and return all arrays that they write."""
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(n).astype(dtype) for n in lengths]
    saved = [rng.standard_normal(n).astype(dtype) for n in lengths]
    grads = [g.copy() for g in saved]
    opt = rule.make(params, ema=0.9)
    norms = []
    for step in range(3):
        for g, original in zip(grads, saved, strict=True):
            np.multiply(original, dtype(1 + step), out=g)
        opt.step(grads, max_norm=10.0, clip_value=0.5, grad_scale=2.0, zero_grad=True)
        norms.append(opt.grad_norm)
        assert not any(g.any() for g in grads)
    return [*params, *(a for s in opt.state for a in s.values()), *opt.ema, np.array(norms)]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_do_not_depend_on_threads(rule, dtype, isa, threads):
    size = parallel_size(rule, dtype)
    for lengths in ([size - 1], [size], [size + 1], [1, 8191, 0, 8193, 70001, 3, 511]):
        threads(1)
        expected = run(rule, dtype, lengths)
        for n in (2, 3, 7):
            threads(n)
            actual = run(rule, dtype, lengths)
            assert all(same_bits(a, b) for a, b in zip(actual, expected, strict=True)), (lengths, n)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_do_not_depend_on_the_instruction_set(dtype, monkeypatch):
    from fastopt._core import dispatch

    for rule in RULES:
        results = []
        for name in dispatch.runnable():
            monkeypatch.setattr(dispatch, "kernels", dispatch.load("fastopt._core.kernels", name))
            results.append(run(rule, dtype, [1, 513, parallel_size(rule, dtype) + 5]))
        for other in results[1:]:
            assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


def large_step():
    p = np.zeros(LARGE, np.float32)
    fastopt.SGD(p, lr=1.0).step(np.ones_like(p))
    return bool((p == -1).all())


@pytest.mark.skipif(sys.platform != "linux", reason="reads thread times from /proc")
def test_workers_take_part_in_the_shortest_parallel_step(threads):
    runtime.stop_workers()
    before = set(os.listdir("/proc/self/task"))
    threads(2)
    p = np.zeros(SERIAL_BELOW // 8, np.float32)
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
def test_forked_child_starts_its_own_workers(threads):
    threads(3)
    assert large_step() and runtime.live_workers() == 2
    child = os.fork()
    if child == 0:
        ok = runtime.live_workers() == 0 and large_step() and runtime.live_workers() == 2
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert large_step()


def test_optimizers_step_in_several_threads(threads):
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


def test_number_of_threads_can_change_between_steps(threads):
    for n in (1, 2, 5, 3, 1, 4, 2):
        threads(n)
        assert fastopt.get_num_threads() == n
        assert large_step()
    assert runtime.live_workers() <= 4


def test_threadpoolctl_limits_the_pool(threads):
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    threads(3)
    (entry,) = (e for e in threadpoolctl.threadpool_info() if e["user_api"] == "fastopt")
    assert entry["num_threads"] == 3 and entry["version"] == fastopt.__version__
    for limits in (1, {"fastopt": 2}):
        with threadpoolctl.threadpool_limits(limits):
            assert fastopt.get_num_threads() == (1 if limits == 1 else 2)
            assert large_step()
        assert fastopt.get_num_threads() == 3


@pytest.mark.parametrize("modules", ["fastopt, threadpoolctl", "threadpoolctl, fastopt"])
def test_threadpoolctl_limits_the_pool_in_any_import_order(modules):
    pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")
    result = run_python(
        f"""
        import {modules}
        import inspect
        with threadpoolctl.threadpool_limits(1):
            print(fastopt.get_num_threads())
        print(fastopt.get_num_threads(), "def threadpool_info" in inspect.getsource(threadpoolctl))
        """,
        FASTOPT_NUM_THREADS="3",
    )
    assert (result.stdout.split(), result.stderr) == (["1", "3", "True"], "")


def test_import_loads_almost_no_modules_beyond_those_of_numpy():
    result = run_python(
        """
        import sys
        import numpy
        if numpy.__version__.startswith("2.0."):
            import inspect      # later versions import it
        before = set(sys.modules)
        import fastopt
        own = ("fastopt", "__future__", "atexit", "cython_runtime", "_cython", "importlib")
        print([name for name in set(sys.modules) - before if not name.startswith(own)])
        """
    )
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("n", "error"),
    [(0, ValueError), (-1, ValueError), (10**20, ValueError), (1.5, TypeError), (True, TypeError)],
)
def test_invalid_number_of_threads(n, error):
    with pytest.raises(error, match="n: expected"):
        fastopt.set_num_threads(n)


def test_small_steps_start_no_workers():
    runtime.stop_workers()
    p = np.zeros(SERIAL_BELOW // 8 - 1, np.float32)
    fastopt.SGD(p).step(p + 1)
    assert runtime.live_workers() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_restarting_the_pool_leaks_nothing(threads):
    threads(4)

    def count():
        time.sleep(0.01)    # a joined thread stays listed for a moment
        return len(os.listdir("/proc/self/task"))

    def memory():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    runtime.stop_workers()
    large_step()
    with_pool, before = count(), None
    for i in range(100):
        runtime.stop_workers()
        assert any(count() == with_pool - 3 for _ in range(100))
        assert large_step()
        if i == 20:
            before = memory()
    assert memory() - before < 1 << 21


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False,
    )


def test_interpreter_exits_with_live_workers():
    result = run_python(
        """
        import numpy as np, fastopt
        p = np.zeros(1 << 21, np.float32)
        opt = fastopt.SGD(p, lr=1.0)
        opt.step(np.ones_like(p))
        print(fastopt._core.runtime.live_workers())
        """,
        FASTOPT_NUM_THREADS="4",
    )
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "3", "")


def test_interpreter_exits_while_a_daemon_thread_steps():
    result = run_python(
        """
        import threading, time
        import numpy as np, fastopt
        p = np.zeros(1 << 22, np.float32)
        g = np.ones_like(p)
        opt = fastopt.Adam(p)
        def step_forever():
            while True:
                opt.step(g)
        threading.Thread(target=step_forever, daemon=True).start()
        while opt.steps < 3:
            time.sleep(0.01)
        print("exiting")
        """,
        FASTOPT_NUM_THREADS="2",
    )
    assert (result.returncode, result.stdout.strip()) == (0, "exiting")


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"FASTOPT_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, "3"),
        ({"FASTOPT_NUM_THREADS": "", "OMP_NUM_THREADS": "5,2"}, "5"),
        ({"FASTOPT_NUM_THREADS": "", "OMP_NUM_THREADS": "9" * 20}, "256"),
    ],
)
def test_environment_sets_the_number_of_threads(environment, threads):
    result = run_python("import fastopt; print(fastopt.get_num_threads())", **environment)
    assert result.stdout.strip() == threads


@pytest.mark.parametrize("value", ["0", "-1", "two", "9" * 20, "9" * 5000])
def test_invalid_environment_variable_is_named(value):
    result = run_python("import fastopt", FASTOPT_NUM_THREADS=value)
    assert "ValueError: FASTOPT_NUM_THREADS: expected" in result.stderr


def test_cpu_quota_of_the_control_group(tmp_path):
    from fastopt._core.threads import _cpu_quota

    assert _cpu_quota(tmp_path) == float("inf")
    for text, expected in (("max 100000", float("inf")), ("150000 100000", 2), ("50000 100000", 1)):
        (tmp_path / "cpu.max").write_text(text)
        assert _cpu_quota(tmp_path) == expected
