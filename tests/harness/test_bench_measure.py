"""Runs of the benchmarks: contenders that fail, comparisons, memory, and the machine."""

import math
import os
import subprocess
import sys

import pytest

measure = pytest.importorskip("benchmarks.measure", reason="benchmarks/ is not next to tests/")
machine, steps = measure.machine, measure.steps
ONCE = {"rounds": 1, "seconds": 0.001}


def test_a_missing_library_is_reported(monkeypatch):
    """A contender whose library cannot be imported sends the reason from its process."""
    script = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    script += "runpy.run_path(sys.argv[0], run_name='__main__')"
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen",
        lambda command, **options: start([*command[:2], "-c", script, *command[2:]], **options),
    )
    run = measure.measure(steps.SUITE, [], ["torch"], [1], **ONCE)
    assert run["absent"]["torch"].startswith("ModuleNotFoundError: import of torch halted")


@pytest.mark.skipif(os.name != "posix", reason="the interpreter is a shell script")
@pytest.mark.parametrize(
    ("script", "expected"),
    [("echo 'out of luck' >&2", "has ended: out of luck"), ("echo hello", "in JSON, got 'hello'")],
)
def test_an_interpreter_that_fails_is_reported(tmp_path, script, expected):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    run = measure.measure(steps.SUITE, [], ["torch"], [1], pythons={"torch": str(python)}, **ONCE)
    assert expected in run["absent"]["torch"]


def test_the_interpreter_of_a_contender_can_be_given():
    run = measure.measure(
        steps.SUITE, [steps.find("10")], ["numpy"], [1], pythons={"numpy": sys.executable}, **ONCE
    )
    assert [result["contender"] for result in run["results"]] == ["numpy"]


def test_a_contender_that_fails_at_a_workload_is_reported_and_the_others_continue(monkeypatch):
    call = measure.Worker.call

    def fail(self, method, **values):
        if method == "round" and self.name == "numpy":
            raise measure.WorkerError("out of luck")
        return call(self, method, **values)

    monkeypatch.setattr(measure.Worker, "call", fail)
    run = measure.measure(
        steps.SUITE, [steps.find("1e3")], ["fastopt", "numpy"], [1], rounds=2, seconds=0.001
    )
    assert [result["contender"] for result in run["results"]] == ["fastopt"]
    assert "numpy at 1 array of 1e3: out of luck" in run["notes"]


def test_a_workload_too_large_for_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(machine, "memory_available", lambda: 1000)
    run = measure.measure(steps.SUITE, [steps.find("1e3")], ["numpy"], [1], **ONCE)
    assert run["results"] == []
    assert any("left out" in note for note in run["notes"])


def test_different_parameters_are_noted():
    class Process:
        def __init__(self, name):
            self.name = name

    run = {"notes": []}
    measure.Measurement(run, steps.SUITE, steps.find("1e3")).compare({
        Process("fastopt"): [0.5, 1.0],
        Process("good"): [0.5, 1.0 + 1e-7],
        Process("bad"): [0.5, 1.001],
        Process("worse"): [0.5, math.nan],
    })
    assert [note.split()[0] for note in run["notes"]] == ["bad", "worse"]


# --- The machine ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "others"), [(10.0, None), (4.0, "0.60"), (9.7, None)])
def test_other_processes_are_noted(monkeypatch, own, others):
    """The machine is busy for ten seconds of ten, of which this process uses some."""
    disturbance = machine.Disturbance()
    disturbance.start = 100.0, 50.0, 5.0
    monkeypatch.setattr(machine, "perf_counter", lambda: 110.0)
    monkeypatch.setattr(machine, "busy_all", lambda: 60.0)
    monkeypatch.setattr(machine, "busy_own", lambda: 5.0 + own)
    assert disturbance.notes() == (
        [f"Other processes kept {others} processors busy: do not trust these times."] if others else []
    )


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="reads /proc/stat")
def test_the_whole_machine_is_at_least_as_busy_as_this_process():
    busy, own = machine.busy_all(), machine.busy_own()
    while machine.busy_own() < own + 0.3:
        pass
    assert machine.busy_all() - busy > 0.2


@pytest.mark.parametrize(("text", "size"), [("48K", 49152), ("2M", 2097152), ("512", 512)])
def test_sizes_of_caches(text, size):
    assert machine.parse_bytes(text) == size


@pytest.mark.parametrize(("text", "count"), [("0", 1), ("0-3", 4), ("0-1,8-9,12", 5)])
def test_lists_of_processors(text, count):
    assert machine.count_processors(text) == count


def test_caches_are_read_from_sysfs(tmp_path):
    for k, (kind, level, size) in enumerate(
        [("Data", 1, "48K"), ("Instruction", 1, "32K"), ("Unified", 2, "2M")]
    ):
        index = tmp_path / f"index{k}"
        index.mkdir()
        for name, value in (("type", kind), ("level", level), ("size", size),
                            ("shared_cpu_list", "0-1")):
            (index / name).write_text(f"{value}\n")
    assert machine.caches(tmp_path) == [
        {"level": 1, "bytes": 49152, "cores": 2}, {"level": 2, "bytes": 2097152, "cores": 2}
    ]
