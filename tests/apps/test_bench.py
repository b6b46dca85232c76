"""``fastopt bench``: contenders, timing, processes, output, and a small measured run."""

import importlib.util
import json
import os
import subprocess
import time

import numpy as np
import pytest

from fastopt import cli
from fastopt.cli import bench, bench_worker

MODULES = {"torch": "torch", "optax": "optax", "numba": "numba", "numpy": "numpy", "limit": "fastopt"}
INSTALLED = [name for name, module in MODULES.items() if importlib.util.find_spec(module)]
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


# --- Contenders and timing -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in INSTALLED if name not in ("limit", "optax", "torch")])
def test_contenders_update_the_parameters_as_fastopt(name):
    params = []
    for contender in ("fastopt", name):
        p, g = bench_worker.make_arrays([(37,), (3, 5)])
        for step in bench_worker.CONTENDERS[contender](1).adam(p, g).values():
            step()
            step()
        params.append(p)
    for actual, expected in zip(*params, strict=True):
        if name != "numba":     # has two variants, and both have taken steps
            np.testing.assert_allclose(actual, expected, atol=1e-6)
        assert np.isfinite(actual).all()


def test_the_limit_moves_as_many_bytes_as_adam():
    p, g = bench_worker.make_arrays([(1000,), (200,)])
    step = bench_worker.CONTENDERS["limit"](1).adam(p, g)["step"]
    (grad,) = step.args
    assert 12 * sum(a.size for a in grad) == pytest.approx(28 * 1200, rel=0.01)


def test_all_contenders_get_the_same_arrays():
    first, second = (bench_worker.make_arrays([(5, 3), (7,)]) for _ in range(2))
    for actual, expected in zip(first[0] + first[1], second[0] + second[1], strict=True):
        assert actual.dtype == np.float32
        assert (actual == expected).all()
        assert actual.any()


def test_time_steps_calls_refill_before_each_step():
    calls = []
    times = bench_worker.time_steps(
        lambda: calls.append("step"), lambda: calls.append("finish"), 0.001, lambda: calls.append("refill")
    )
    assert 0 < times["min"] <= times["median"] < 1
    assert set(zip(calls[::3], calls[1::3], calls[2::3], strict=True)) == {("refill", "step", "finish")}


def test_time_steps_is_patient_with_slow_steps():
    calls = []
    times = bench_worker.time_steps(lambda: (calls.append(None), time.sleep(0.01)), lambda: None, 0.001)
    assert len(calls) == 4      # one untimed, and three samples
    assert times["min"] >= 0.01


@pytest.mark.parametrize(("text", "size"), [("3e4", 30_000), ("17", 17), ("0", 0), ("-3", 0), ("nan", 0),
                                            ("inf", 0), ("", 0), ("many", 0)])
def test_parse_size(text, size):
    assert bench_worker.parse_size(text) == size


# --- Processes -----------------------------------------------------------------------------------


def test_a_failed_request_does_not_end_the_process():
    worker = bench.Worker("numpy", 1)
    try:
        assert worker.version == f"NumPy {np.__version__}"
        with pytest.raises(bench.WorkerError, match="AttributeError"):
            worker.call("no_such_method")
        worker.call("setup", size=10)
        assert worker.call("round", seconds=0.001) > 0
        assert worker.idle
    finally:
        worker.close()


def test_a_missing_library_is_reported(monkeypatch):
    script = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    script += "runpy.run_path(sys.argv[0], run_name='__main__')"
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen",
        lambda command, **options: start([*command[:2], "-c", script, *command[2:]], **options),
    )
    run = bench.measure({"10": 10}, ["fastopt", "torch"], 1, rounds=1, seconds=0.001)
    assert run["failed"]["torch"].startswith("ModuleNotFoundError: import of torch halted")
    assert "torch: ModuleNotFoundError" in bench.report(run)
    assert set(run["seconds"]["10"]) == {"fastopt"}


@pytest.mark.skipif(os.name != "posix", reason="the interpreter is a shell script")
@pytest.mark.parametrize(
    ("script", "expected"),
    [("echo 'out of luck' >&2", "has ended: out of luck"), ("echo hello", "in JSON, got 'hello'")],
)
def test_an_interpreter_that_fails_is_reported(tmp_path, script, expected):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    with pytest.raises(bench.WorkerError, match=expected):
        bench.Worker("numpy", 1, python=str(python))


def test_a_contender_that_fails_is_reported_and_the_others_continue(monkeypatch):
    call = bench.Worker.call

    def fail(self, method, **values):
        if method == "round" and self.name == "numpy":
            raise bench.WorkerError("out of luck")
        return call(self, method, **values)

    monkeypatch.setattr(bench.Worker, "call", fail)
    run = bench.measure({"10": 10, "20": 20}, ["fastopt", "numpy"], 1, rounds=2, seconds=0.001)
    assert run["failed"] == {"numpy": "out of luck"}
    assert [set(seconds) for seconds in run["seconds"].values()] == [{"fastopt"}, {"fastopt"}]


def test_the_first_worker_changes_from_round_to_round():
    assert "".join(bench.turn_order("abc", 4)) == "abcbcacababc"
    assert list(bench.turn_order([], 3)) == []


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A measured run of fastopt, NumPy and the limit."""
    path = tmp_path_factory.mktemp("bench") / "run.json"
    status = cli.main([
        "bench", "--sizes", "100,1e3", "--peers", "limit,numpy", "--threads", "1", "--rounds", "2",
        "--seconds", "0.001", "--json", str(path),
    ])
    assert status == 0
    return path


def test_a_run_has_every_result(saved):
    run = json.loads(saved.read_text())
    assert run["threads"] == 1
    assert run["failed"] == {}
    assert list(run["versions"]) == ["limit", "fastopt", "numpy"]
    assert list(run["seconds"]) == ["100", "1e3"]
    for seconds in run["seconds"].values():
        assert set(seconds) == {"limit", "fastopt", "numpy"}
        assert all(0 < time < 10 for time in seconds.values())


@pytest.mark.parametrize("name", [name for name in INSTALLED if name in ("torch", "optax", "numba")])
def test_installed_peers_are_measured(name):
    run = bench.measure({"100": 100}, ["fastopt", name], 1, rounds=1, seconds=0.001)
    assert run["failed"] == {}
    assert set(run["seconds"]["100"]) == {"fastopt", name}


INVENTED = {
    "threads": 2, "versions": {"limit": "fastopt 1.0", "fastopt": "fastopt 1.0", "numpy": "NumPy 2.0"},
    "failed": {"torch": "ModuleNotFoundError: No module named 'torch'"},
    "seconds": {
        "1e3": {"limit": 1e-6, "fastopt": 2e-6, "numpy": 18e-6}, "1e6": {"limit": 3e-4, "fastopt": 3e-4},
    },
}


def test_report():
    lines = bench.report(INVENTED).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["elements"] == ["limit", "fastopt", "numpy"]
    assert rows["1e3"] == ["1.00", "2.00", "(2.00)", "18.0", "(18.0)"]
    assert rows["1e6"] == ["300", "300", "(1.00)"]
    assert "torch: ModuleNotFoundError: No module named 'torch'" in lines
    assert lines.count("fastopt 1.0") == 1
    assert max(map(len, lines)) <= 80


def test_wide_tables_continue_below():
    head = ["elements", *(f"contender {k}" for k in range(10))]
    table = bench.text_table(head, [["1e3", *map(str, range(10))]])
    blocks = [block.splitlines() for block in table.split("\n\n")]
    assert max(len(line) for block in blocks for line in block) <= 80
    assert all(block[0].startswith("elements") and block[1].startswith("1e3") for block in blocks)
    assert [number for block in blocks for number in block[1].split()[1:]] == list(map(str, range(10)))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5234, "0.52"), (5.234, "5.23"), (52.34, "52.3"), (500_000, "500000"), (1_520_000, "1.52e6")],
)
def test_short(value, text):
    assert bench.short(value) == text


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="plots need matplotlib")
def test_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", lambda *args: INVENTED)
    path = tmp_path / "run.png"
    assert cli.main(["bench", "--sizes", "1e3,1e6", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_status_is_1_if_fastopt_fails(monkeypatch, capsys):
    run = {"threads": 1, "versions": {}, "failed": {"fastopt": "out of luck"}, "seconds": {"1e3": {}}}
    monkeypatch.setattr(bench, "measure", lambda *args: run)
    assert cli.main(["bench"]) == 1
    assert "fastopt: out of luck" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [["--sizes", "huge"], ["--sizes", "1e3,0"], ["--peers", "caffe"], ["--threads", "0"], ["--rounds", "-1"],
     ["--seconds", "0"], ["--json", "no such directory/run.json"]],
)
def test_wrong_arguments_end_with_status_2(argv, capsys):
    assert cli.main(["bench", *argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1
