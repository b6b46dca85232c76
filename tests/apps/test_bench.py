"""`fastopt bench`: its works, its arithmetic, what it writes, and one small run of the real thing."""

import importlib.util
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt import bench, cli
from fastopt._core import dispatch
from fastopt.bench import report, rules, steps, training, worker
from fastopt.optimizers.jobs import kernel_of

HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_NUMBA = importlib.util.find_spec("numba") is not None
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


# --- Works ---------------------------------------------------------------------------------------


def test_resnet50_is_that_of_the_paper():
    shapes = steps.resnet50()
    assert len(shapes) == 161
    assert sum(map(math.prod, shapes)) == 25_557_032
    assert shapes[0] == (64, 3, 7, 7)
    assert shapes[-2:] == ((1000, 2048), (1000,))


@pytest.mark.parametrize(
    ("name", "arrays", "size", "bytes_each"),
    [("mlp", 6, 235_146, 28), ("100x1024", 100, 102_400, 28), ("clip-4e7", 1, 40_000_000, 44),
     ("3e2", 1, 300, 28)],
)
def test_a_work_knows_its_size(name, arrays, size, bytes_each):
    work = steps.find_work(name)
    assert (len(work.shapes), work.size, work.bytes) == (arrays, size, size * bytes_each)


@pytest.mark.parametrize("name", ["", "resnet", "0", "-3", "nan", "inf"])
def test_an_unknown_work_is_refused(name):
    with pytest.raises(ValueError, match=r"works: expected .*resnet50"):
        steps.find_work(name)


def test_all_contenders_get_the_same_numbers():
    first, second = (steps.make_numbers(steps.find_work("mlp")) for _ in range(2))
    for ours, theirs in zip(first[0] + first[1], second[0] + second[1], strict=True):
        assert (ours == theirs).all()
        assert ours.any()


def test_the_limits_streams_lie_apart_and_on_cache_lines():
    streams = [[a for _ in range(2) for a in steps.make_numbers(steps.find_work("17"))[k]]
               for k in (0, 1)]
    whole, arrays = steps._carve(streams)
    assert all(stream.ctypes.data % steps.ALIGN == 0 for stream in whole)
    assert all(view.ctypes.data % steps.ALIGN == 0 for views in arrays for view in views)
    for k, stream in enumerate(streams):
        for array, views in zip(stream, arrays, strict=True):
            assert (views[k] == array).all()
    assert whole[0].ctypes.data + whole[0].nbytes <= whole[1].ctypes.data


@pytest.mark.parametrize("n", [0, 1, 16, 100, 4096])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_cover_all_numbers_once(n, parts):
    cuts = [steps._cut(n, k, parts) for k in range(parts + 1)]
    assert cuts[0] == 0
    assert cuts[-1] == n
    assert cuts == sorted(cuts)


# --- A run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A real run: NumPy and fastopt, two small works, one thread."""
    path = tmp_path_factory.mktemp("bench") / "run.json"
    status = cli.main([
        "bench", "--works", "1e3,clip-mlp", "--peers", "numpy", "--threads", "1", "--rounds", "2",
        "--seconds", "0.001", "--json", str(path),
    ])
    assert status == 0
    return path


@pytest.fixture
def run(saved):
    return json.loads(saved.read_text())


def test_a_run_holds_every_result(run):
    measured = {(r["work"], r["contender"], r["threads"]) for r in run["results"]}
    assert measured == {
        (work, *who) for work in ("1e3", "clip-mlp") for who in (("fastopt", 1), ("numpy", None))
    }
    assert [work["name"] for work in run["works"]] == ["1e3", "clip-mlp"]
    assert set(run["versions"]) == {"fastopt", "numpy"}
    assert run["threads"] == [1]
    assert "--peers numpy" in run["command"]
    assert {"cpu", "cores", "caches", "system", "python"} <= set(run["machine"])


def test_times_are_plausible(run):
    for result in run["results"]:
        assert len(result["rounds"]) == 2
        low, high = result["quartiles"]
        assert 0 < result["min"] <= low <= result["median"] <= high < 10


def test_contenders_agree_and_nobody_fails(run):
    assert run["absent"] == {}
    unexpected = [n for n in run["notes"] if "Other processes" not in n and "the limit" not in n]
    assert unexpected == []


def test_without_the_limit_there_are_no_ratios(run):
    assert report.ratio(run, "1e3", "numpy") is None
    assert any("no ratios" in note for note in run["notes"])


def test_a_saved_run_can_be_shown_again(saved, capsys):
    assert cli.main(["bench", "--from", str(saved), "--details"]) == 0
    text = capsys.readouterr().out
    assert "1 array of 1e3" in text
    assert "shortest" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.skipif(not HAS_NUMBA, reason="the limit needs numba")
def test_the_limit_is_the_best_of_its_variants():
    run = bench.measure(
        [steps.find_work("1e3")], ["limit", "fastopt"], [1], rounds=2, seconds=0.001
    )
    variants = [r for r in run["results"] if r["contender"] == "limit"]
    assert {r["variant"] for r in variants} == {"arrays", "serial"}
    limit = report.best(run, "1e3", "limit", 1)
    assert limit["median"] == min(r["median"] for r in variants)
    ours = report.best(run, "1e3", "fastopt", 1)
    assert report.ratio(run, "1e3", "fastopt") == ours["median"] / limit["median"]


def test_a_missing_library_is_told(monkeypatch):
    """A contender whose library cannot be imported says so in its own process."""
    worker_file = Path(worker.__file__)
    script = "import sys; sys.modules['torch'] = None; import runpy; sys.argv = ['', 'steps', 'torch', '1']; "
    script += f"runpy.run_path({str(worker_file)!r}, run_name='__main__')"
    plain = bench.subprocess.Popen
    monkeypatch.setattr(
        bench.subprocess, "Popen",
        lambda command, **rest: plain([command[0], "-c", script], **rest),
    )
    run = bench.measure([], ["torch"], [1], rounds=1, seconds=0.001)
    assert run["absent"]["torch"].startswith("not installed (import of torch halted")
    assert any("torch: not installed" in line for line in report.notes(run))


@pytest.mark.skipif(os.name != "posix", reason="the interpreter is a shell script")
@pytest.mark.parametrize(
    ("script", "told"),
    [("echo 'out of luck' >&2", "has ended: out of luck"), ("echo hello", "it answered 'hello'")],
)
def test_a_contender_that_fails_is_told(tmp_path, script, told):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    run = bench.measure([], ["torch"], [1], rounds=1, seconds=0.001, pythons={"torch": str(python)})
    assert told in run["absent"]["torch"]


def test_a_contender_that_fails_at_a_work_is_told_and_the_others_go_on(monkeypatch):
    plain = bench.Worker.ask

    def ask(self, do, **values):
        if do == "round" and self.name == "numpy":
            raise bench.WorkerError("out of luck")
        return plain(self, do, **values)

    monkeypatch.setattr(bench.Worker, "ask", ask)
    run = bench.measure(
        [steps.find_work("1e3")], ["fastopt", "numpy"], [1], rounds=2, seconds=0.001
    )
    assert [r["contender"] for r in run["results"]] == ["fastopt"]
    assert "numpy at 1 array of 1e3: out of luck" in run["notes"]


def test_a_work_too_large_for_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(bench, "_memory_available", lambda: 1000)
    run = bench.measure([steps.find_work("1e3")], ["numpy"], [1], rounds=1, seconds=0.001)
    assert run["results"] == []
    assert any("left out" in note for note in run["notes"])


def test_different_parameters_are_noted():
    class Process:
        def __init__(self, name):
            self.name = name

    run = {"suite": "steps", "notes": []}
    work = steps.find_work("1e3")
    bench._compare(run, {
        Process("fastopt"): {"probe": [0.5, 1.0]},
        Process("good"): {"probe": [0.5, 1.0 + 1e-7]},
        Process("bad"): {"probe": [0.5, 1.001]},
        Process("worse"): {"probe": [0.5, math.nan]},
    }, work)
    assert [note.split()[0] for note in run["notes"]] == ["bad", "worse"]


@pytest.mark.parametrize(
    "argv",
    [["--works", "huge"], ["--peers", "caffe"], ["--threads", "0"], ["--rounds", "-1"],
     ["--python", "torch"], ["--trainer", "--works", "1e3"], ["--trainer", "--peers", "limit"],
     ["--trainer", "--plot", "run.png"], ["--rules", "--trainer"], ["--rules", "--plot", "run.png"],
     ["--rules", "--works", "1e3"], ["--rules", "--size", "0"], ["--rules", "--peers", "numpy"],
     ["--size", "1e3"], ["--from", "no such file"],
     ["--json", "no such directory/run.json"]],
)
def test_wrong_arguments_end_with_status_2(argv, capsys):
    assert cli.main(["bench", *argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_does_not_tell_where_interpreters_lie():
    words = ["bench", "--quick", "--python", "optax=/usr/bin/python"]
    command = bench._command(words, [("optax", "/usr/bin/python")])
    assert command == "fastopt bench --quick --python optax=PATH"


@pytest.mark.parametrize(("own", "others"), [(10.0, None), (4.0, "0.60"), (9.7, None)])
def test_work_of_others_is_noted(monkeypatch, own, others):
    """Ten processor seconds in ten seconds, of which so many were our own."""
    monkeypatch.setattr(bench, "perf_counter", lambda: 110.0)
    monkeypatch.setattr(bench, "_busy_all", lambda: 60.0)
    monkeypatch.setattr(bench, "_busy_own", lambda: 5.0 + own)
    notes = bench._note_others(100.0, 50.0, 5.0)
    assert notes == (
        [f"Other processes kept {others} processors busy: do not trust these times."] if others else []
    )


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="reads /proc/stat")
def test_the_whole_machine_is_at_least_as_busy_as_this_process():
    busy, own = bench._busy_all(), bench._busy_own()
    while bench._busy_own() < own + 0.3:
        pass
    assert bench._busy_all() - busy > 0.2


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="plots need matplotlib")
def test_what_cannot_be_drawn_ends_with_status_2(saved, tmp_path, capsys):
    assert cli.main(["bench", "--from", str(saved), "--plot", str(tmp_path / "run.png")]) == 2
    assert "plot: expected a run with" in capsys.readouterr().err


def test_list_names_all(capsys):
    assert cli.main(["bench", "--list"]) == 0
    text = capsys.readouterr().out
    for suite in bench.SUITES.values():
        assert all(work.name in text for work in suite.WORKS)
        assert all(name in text for name in suite.CONTENDERS)


# --- What is shown -------------------------------------------------------------------------------


def result(work, contender, threads, median, variant="step"):
    return {
        "work": work, "contender": contender, "threads": threads, "variant": variant,
        "median": median, "quartiles": [0.9 * median, 1.1 * median], "min": 0.8 * median,
        "rounds": [median],
    }


SOME_RUN = {
    "format": bench.FORMAT, "date": "2000-01-01 00:00 UTC", "command": "fastopt bench",
    "machine": {
        "cpu": "Some CPU", "cores": 2, "system": "Linux", "python": "3.11.0",
        "caches": [{"level": 1, "bytes": 49152, "cores": 1}, {"level": 3, "bytes": 33554432, "cores": 2}],
    },
    "settings": {"rounds": 1, "seconds": 1}, "threads": [1, 2],
}


@pytest.fixture
def made():
    """A run with round numbers."""
    works = [steps.find_work(name) for name in ("1e3", "4e6", "denormal")]
    results = []
    for work, factor in zip(works, (1, 100, 500), strict=True):
        for threads, speed in ((1, 1.0), (2, 2.0)):
            results += [
                result(work.name, "limit", threads, 1e-4 / speed, "arrays"),
                result(work.name, "limit", threads, 2e-4 / speed, "serial"),
                result(work.name, "fastopt", threads, 2e-4 / speed),
                result(work.name, "torch-fused", threads, factor * 1e-6 / speed),
            ]
        results.append(result(work.name, "numpy", None, 1e-3))
    return {
        **SOME_RUN, "suite": "steps", "yardstick": "limit", "unit": "GB/s",
        "versions": dict.fromkeys(("limit", "fastopt", "torch-fused", "numpy"), "1.0"),
        "absent": {"thinc": "not installed (no such module)"},
        "works": [work.record() for work in works],
        "results": results, "notes": ["Something happened."],
    }


def test_table(made):
    lines = report.table(made).splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("1 array of 1e3"))
    assert lines[row].split()[-4:] == ["50.0", "100", "0.50", "1000"]
    assert lines[row + 1].split() == ["2.00x", "0.01x", "20.0x"]
    text = " ".join(" ".join(lines).split())
    assert "Denormal state costs, times the normal: fastopt 1.00, torch-fused 5.00, numpy 1.00" in text
    assert "thinc: not installed (no such module)" in lines
    assert "Something happened." in lines


def test_speed_of_two_threads_over_one(made):
    lines = report.speedups(made)
    assert lines[0] == "Speed of 2 threads over that of 1."
    row = next(line for line in lines if line.startswith("1 array of 1e3"))
    assert row.split()[-3:] == ["2.00", "2.00", "2.00"]     # NumPy knows but one thread


def test_markdown_says_what_ran_where(made):
    text = report.markdown(made)
    for part in ("2000-01-01", "Some CPU, 2 cores", "L1 48 KiB a core", "L3 32768 KiB for 2 cores",
                 "`fastopt bench`", "- thinc: not installed"):
        assert part in text
    row = next(line for line in text.splitlines() if line.startswith("| 1 array of 1e3"))
    gigabytes = f"{1000 * 28 / 50e-6 / 1e9:.0f}"
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "1 array of 1e3", gigabytes, "50.0", "100 (2.00)", "0.50 (0.01)", "1000 (20.0)"
    ]
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5.234e-7, "0.52"), (5.234e-6, "5.23"), (52.34e-6, "52.3"), (0.5, "500000"), (1.52, "1.52e6")],
)
def test_microseconds(seconds, text):
    assert report.microseconds(seconds) == text


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="plots need matplotlib")
def test_plot(made, tmp_path):
    path = tmp_path / "run.png"
    report.plot(made, path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="plots need matplotlib")
def test_a_plot_needs_two_sizes(made, tmp_path):
    made["works"] = made["works"][:1]
    with pytest.raises(ValueError, match="plot: expected a run with"):
        report.plot(made, tmp_path / "run.png")


# --- Trainings -----------------------------------------------------------------------------------

TINY = "8-6-3/16/100"       # seven minibatches, the last of four rows


def installed_peers():
    modules = {"optax": "optax", "torch-fused": "torch", "numpy": "numpy", "sklearn": "sklearn"}
    return [name for name, module in modules.items() if importlib.util.find_spec(module)]


@pytest.mark.parametrize(
    ("name", "sizes", "batch", "rows", "steps_each"),
    [("fashion-128", (784, 256, 128, 10), 128, 60_000, 469), (TINY, (8, 6, 3), 16, 100, 7),
     ("fashion-32", (784, 256, 128, 10), 32, 60_000, 1875), ("digits-32", (64, 32, 10), 32, 1437, 45),
     ("5-2/7", (5, 2), 7, 10_000, 1429)],
)
def test_a_training_knows_its_size(name, sizes, batch, rows, steps_each):
    work = training.find_work(name)
    assert (work.sizes, work.batch, work.rows, len(work.batches)) == (sizes, batch, rows, steps_each)
    assert sum(work.batches) == rows
    assert max(work.batches) == batch


@pytest.mark.parametrize(
    "name", ["", "1e3", "784/32", "784-10", "784-10/0", "784-1/32", "784-0-10/32", "8-3/4/5/6", "8-3/-4"]
)
def test_an_unknown_training_is_refused(name):
    with pytest.raises(ValueError, match=r"works: expected fashion-128, .*got"):
        training.find_work(name)


@pytest.mark.parametrize("sizes", [(5, 3), (784, 256, 128, 10), (9, 8, 7, 6, 5)])
def test_the_floor_is_the_products_of_a_step(sizes):
    """All gradients of the chain of products: what autodiff of a linear net needs, and no more."""
    work = training.Work("", sizes, 32, 64)
    weights = [W for W, _ in training.make_params(work)]
    listed = training.products(weights, work.batch)
    assert len(listed) == 3 * len(weights) - 1
    flops = sum(2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right, _ in listed)
    assert flops == work.flops
    assert all(left.dtype == right.dtype == out.dtype == np.float32 for left, right, out in listed)
    assert all(a.ctypes.data % steps.ALIGN == 0 for product in listed for a in product)
    for left, right, out in listed:
        np.matmul(left, right, out=out)
        assert out.any()
    shapes = [out.shape for _, _, out in listed]
    assert shapes[: len(weights)] == [(32, W.shape[1]) for W in weights]
    assert [shape for shape in shapes[len(weights):] if shape[0] != 32] == [W.shape for W in weights[::-1]]
    assert (32, sizes[0]) not in shapes[len(weights):]          # no gradient of the data


def test_flops_are_those_of_an_average_step():
    work = training.find_work(TINY)
    assert len(work.batches) * work.flops == pytest.approx(2 * 100 * (2 * 8 * 6 + 3 * 6 * 3))


def test_the_floor_takes_every_batch_of_an_epoch(monkeypatch):
    work, rows = training.find_work(TINY), []
    floor = training.Floor(threads=1)
    floor.prepare(work)
    monkeypatch.setattr(training.np, "matmul", lambda left, right, out: rows.append(len(left)))
    floor.train(2)
    assert len(rows) == 2 * 7 * 5
    assert rows[::5] == [16] * 6 + [4] + [16] * 6 + [4]         # the first product of each step


def test_numpy_has_the_gradients_of_the_loss():
    """Against central differences of the function that all contenders are probed with."""
    work = training.find_work("5-4-6-3/16/40")
    peer = training.NumPy(threads=1)
    peer.prepare(work)
    X, y = peer.X.astype(np.float64), peer.y
    peer.net = [[W.astype(np.float64), np.full(len(b), 0.1)] for W, b in peer.net]     # off relu's kink
    grads = peer.gradients(X, y)
    assert peer.loss == pytest.approx(training.mean_loss(peer.net, X, y), rel=1e-12)
    for layer, gradients in zip(peer.net, grads, strict=True):
        for p, g in zip(layer, gradients, strict=True):
            place = np.unravel_index(np.argmax(abs(g)), g.shape)
            p[place] += 1e-6
            above = training.mean_loss(peer.net, X, y)
            p[place] -= 2e-6
            below = training.mean_loss(peer.net, X, y)
            p[place] += 1e-6
            assert g[place] == pytest.approx((above - below) / 2e-6, rel=1e-6)


def test_fastopt_and_numpy_learn_the_same():
    """Both draw the rows in the same order; from the same weights they come to the same."""
    work = training.find_work(TINY)
    params = []
    for peer in (training.FastOpt(threads=1), training.NumPy(threads=1)):
        peer.prepare(work)
        peer.train(30)
        params.append(peer.params())
    for ours, theirs in zip(*params, strict=True):
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p, q, atol=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A real run of all that is installed, with one tiny net."""
    path = tmp_path_factory.mktemp("bench") / "run.json"
    status = cli.main([
        "bench", "--trainer", "--works", TINY, "--peers", ",".join(["floor", *installed_peers()]),
        "--threads", "1", "--rounds", "2", "--seconds", "0.001", "--json", str(path),
    ])
    assert status == 0
    return path


def test_a_run_of_the_trainer_holds_every_result(trained):
    run = json.loads(trained.read_text())
    expected = {"floor", "fastopt", *installed_peers()}
    assert {(r["contender"], r["threads"]) for r in run["results"]} == {(name, 1) for name in expected}
    assert (run["suite"], run["yardstick"]) == ("training", "floor")
    assert [note for note in run["notes"] if "Other processes" not in note] == []    # all learn alike
    floor = report.shown(run, TINY, "floor")["median"]
    assert floor > 0
    for name in expected - {"floor"}:
        assert report.ratio(run, TINY, name) == report.shown(run, TINY, name)["median"] / floor


def test_a_run_of_the_trainer_can_be_shown_again(trained, capsys):
    assert cli.main(["bench", "--from", str(trained)]) == 0
    text = capsys.readouterr().out
    assert "8-6-3, batch 16" in text
    assert "the ratio to the floor" in " ".join(text.split())
    assert "fastopt bench --trainer --works" in " ".join(text.split())


def test_who_does_not_train_is_noted(monkeypatch):
    """A contender that leaves the weights as they were has another loss than fastopt."""
    work = training.find_work("digits-32")
    answers = {}
    for name, peer in (("fastopt", training.FastOpt(1)), ("numpy", training.NumPy(1))):
        if name == "numpy":
            monkeypatch.setattr(peer, "update", lambda grads: None)
        process = type("Process", (), {"name": name})()
        answers[process] = {"probe": training.Bench(peer, work).probe}
    run = {"suite": "training", "notes": []}
    bench._compare(run, answers, work)
    assert [note.partition(" than")[0] for note in run["notes"]] == [
        "numpy at 64-32-10, batch 32: other loss"
    ]


@pytest.fixture
def made_training():
    """Fashion with all contenders and round numbers: floor and torch are faster with one thread."""
    work = training.WORKS[0]
    times = {
        "floor": (1e-4, 2e-4), "fastopt": (1e-4, 1.5e-4), "optax": (4e-4, 2e-4), "torch-fused": (3e-4, 9e-4),
        "numpy": (8e-4, 8e-4), "sklearn": (2e-3, 1e-3),
    }
    return {
        **SOME_RUN, "suite": "training", "yardstick": "floor", "unit": "GFLOP/s",
        "versions": dict.fromkeys(times, "1.0"), "absent": {}, "notes": [], "works": [work.record()],
        "results": [
            result(work.name, name, threads, median)
            for name, medians in times.items() for threads, median in zip((1, 2), medians, strict=True)
        ],
    }


def test_table_of_the_trainer(made_training):
    lines = report.table(made_training).splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("784-256-128-10, batch 128"))
    assert lines[row].split()[-6:] == ["100", "150", "200", "300", "800", "1000"]
    assert lines[row + 1].split() == ["1.50x", "2.00x", "3.00x", "8.00x", "10.0x"]
    assert lines[row + 2].split() == ["threads", "1", "2", "2", "1", "1", "2"]  # ours: not the better
    assert max(map(len, lines)) <= 80


def test_markdown_of_the_trainer(made_training):
    rows = report.markdown(made_training).splitlines()
    row = next(line for line in rows if line.startswith("| 784-256-128-10, batch 128"))
    rate = f"{training.WORKS[0].flops / 1e-4 / 1e9:.0f}"
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "784-256-128-10, batch 128", rate, "100 (1 t)", "150 (1.50, 2 t)", "200 (2.00, 2 t)",
        "300 (3.00, 1 t)", "800 (8.00, 1 t)", "1000 (10.0, 2 t)",
    ]


# --- Rules ---------------------------------------------------------------------------------------


def made_for(work):
    """A parameter of a dozen steps ago, its optimizer and the names of the states it keeps."""
    param = rules.make_param(work)
    opt = getattr(fastopt, work.optimizer)(param, **work.options)
    for k in range(rules.WARM_STEPS):
        opt.step(rules.gradient(work, k))
    return param, opt


def test_every_optimizer_and_every_kernel_has_a_row():
    kinds = {name for name in fastopt.optimizers.__all__ if name != "Optimizer"}
    assert {work.optimizer for work in rules.WORKS} == kinds
    kernels = set()
    for work in rules.WORKS:
        opt = made_for(rules.find_work(f"{work.rule}/100"))[1]
        kernels |= {kernel_of(type(opt), rule) for rule in opt._rules}
    assert kernels == set(dispatch.kernels.RULES)


@pytest.mark.parametrize("work", rules.WORKS, ids=lambda work: work.rule)
def test_a_rule_has_the_streams_of_its_state(work):
    """Nothing that the optimizer keeps is left out of the limit, and nothing else is in it but p and g."""
    small = rules.find_work(f"{work.rule}/100")
    param, opt = made_for(small)
    full = [array for array in opt.state[0].values() if array.shape == param.shape]
    letters = {letter for one in work.passes for letter in "".join(one)}
    assert letters >= {"p", "g"}
    assert len(letters - {"p", "g", "o"} if work.rule == "muon" else letters - {"p", "g"}) == len(full)
    assert opt._rules[0] in opt.STATES
    kernels = dispatch.kernels
    assert work.elementwise == (opt._rules[0] not in {*kernels.SURVEYS, *kernels.ROWWISE, *opt.DIRECTED})
    assert len(work.passes) == 1 or not work.elementwise


@pytest.mark.parametrize("work", rules.WORKS, ids=lambda work: work.rule)
def test_a_warm_rule_moves_and_stays_finite(work):
    small = rules.find_work(f"{work.rule}/100")
    param, opt = made_for(small)
    g = rules.gradient(small, rules.WARM_STEPS - 1)
    for _ in range(300):
        before = param.copy()
        opt.step(g)
    assert np.isfinite(param).all()
    assert (param != before).any()


@pytest.mark.parametrize(
    ("name", "shape", "streams", "amount"),
    [("adam", (4_000_000,), (4, 3), 112e6), ("lamb", (2000, 2000), (7, 3), 160e6),
     ("prodigy/1e2", (10, 10), (8, 4), 4800), ("adam-cautious/10", (3, 3), (6, 3), 324),
     ("adan/1e3", (1000,), (6, 5), 44_000)],
)
def test_a_rule_knows_its_streams(name, shape, streams, amount):
    work = rules.find_work(name)
    assert (work.shape, work.streams, work.record()["amount"]) == (shape, streams, amount)


@pytest.mark.parametrize("name", ["", "1e3", "Adam", "adam/", "adam/0", "adam/x", "adam/1e3/1e3", "/10"])
def test_an_unknown_rule_is_refused(name):
    with pytest.raises(ValueError, match=r"works: expected sgd, .*got"):
        rules.find_work(name)


def test_gradients_differ_from_step_to_step_and_not_between_contenders():
    work = rules.find_work("adam/100")
    first, second = rules.gradient(work, 0).copy(), rules.gradient(work, 1).copy()
    assert not np.array_equal(first, second)
    rules._noise.cache_clear()
    assert np.array_equal(first, rules.gradient(work, 0))


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
@pytest.mark.parametrize("work", [w for w in rules.WORKS if w.kind != "none"], ids=lambda work: work.rule)
def test_torch_has_the_modes_that_are_measured_and_no_other(work):
    small = rules.find_work(f"{work.rule}/100")
    ours = rules.Bench(rules.FastOpt(1), small)
    for contender in (rules.Torch, rules.TorchForeach, rules.TorchFused):
        if work.kind in contender.kinds:
            theirs = rules.Bench(contender(1), small)
            np.testing.assert_allclose(theirs.probe, ours.probe, atol=rules.TOLERANCE)
        else:
            with pytest.raises((RuntimeError, TypeError, ValueError)):
                rules.Bench(contender(1), small)


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
def test_a_rule_that_torch_has_is_measured_beside_it():
    import torch

    unmeasured = {work.optimizer for work in rules.WORKS if work.kind == "none"}
    measured = {work.optimizer for work in rules.WORKS if work.kind != "none"}
    assert all(hasattr(torch.optim, name) for name in measured)
    assert not any(hasattr(torch.optim, name) for name in unmeasured - measured)


@pytest.mark.skipif(not HAS_NUMBA, reason="the limit needs numba")
@pytest.mark.parametrize("reads", [0, 1, 3])
@pytest.mark.parametrize("writes", [0, 1, 5])
def test_the_limit_passes_over_any_streams(reads, writes):
    if not reads + writes:
        pytest.skip("no stream")
    for loop in steps.limit_loops(2, reads):
        streams = [np.full(100, k + 1, np.float32) for k in range(reads + writes)]
        total = loop(*streams)
        x = sum(range(1, reads + 1))
        assert total == 100 * x
        for k, stream in enumerate(streams):
            expected = k + 1 if k < reads else 0.9 * (k + 1) + 0.1 * x
            np.testing.assert_allclose(stream, np.full(100, expected), rtol=1e-6)


RULES_RUN = ("sgd", "adam", "rprop", "lamb", "muon")


@pytest.fixture(scope="module")
def ruled(tmp_path_factory):
    """A real run of some rules, tiny, with all that is installed."""
    path = tmp_path_factory.mktemp("bench") / "run.json"
    status = cli.main([
        "bench", "--rules", "--works", ",".join(RULES_RUN), "--size", "1e3", "--threads", "1",
        "--rounds", "2", "--seconds", "0.001", "--json", str(path),
    ])
    assert status == 0
    return path


def test_a_run_of_rules_holds_every_result(ruled):
    run = json.loads(ruled.read_text())
    expected = {
        (f"{name}/1e3", contender) for name in RULES_RUN for contender, maker in rules.CONTENDERS.items()
        if rules.find_work(name).kind in maker.kinds
        and {"limit": HAS_NUMBA, "fastopt": True}.get(contender, HAS_TORCH)
    }
    assert {(r["work"], r["contender"]) for r in run["results"]} == expected
    unexpected = [n for n in run["notes"] if "Other processes" not in n and "the limit" not in n]
    assert unexpected == []         # torch has the same parameters


def test_a_run_of_rules_can_be_shown_again(ruled, capsys):
    assert cli.main(["bench", "--from", str(ruled), "--details"]) == 0
    text = capsys.readouterr().out
    assert "Elementwise rules: 1,000 float32, 1 thread\n" in text
    assert "matrices: 31 x 31 float32, 1 thread\n" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.fixture
def made_rules():
    """Three rules with round numbers."""
    works = [rules.find_work(name) for name in ("rmsprop-centered-momentum", "lion", "lamb")]
    results = []
    for work in works:
        for threads, speed in ((1, 1.0), (2, 2.0)):
            ours = 1.5e-3 if work.rule == "lion" else 1.2e-3
            times = {"limit": 1e-3, "fastopt": ours}
            if work.kind != "none":
                times |= {"torch": 9e-3, "torch-foreach": 6e-3}
            results += [result(work.name, name, threads, t / speed) for name, t in times.items()]
    return {
        **SOME_RUN, "suite": "rules", "yardstick": "limit", "unit": "GB/s", "absent": {},
        "notes": ["So it is."],
        "versions": dict.fromkeys(rules.CONTENDERS, "1.0"), "works": [work.record() for work in works],
        "results": results,
    }


def test_table_of_rules(made_rules):
    lines = report.table(made_rules).splitlines()
    rows = [line.split() for line in lines if line.startswith("rmsprop-centered-momentum")]
    assert rows == [
        ["rmsprop-centered-momentum", "5+4", "36", *times, "foreach", "5.00"]
        for times in (["500", "600", "1.20", "3000"], ["1000", "1200", "1.20", "6000"])
    ]
    assert next(line.split() for line in lines if line.startswith("lamb")) == [
        "lamb", "7+3", "40", "500", "600", "1.20"
    ]
    assert "Above 1.25 of the limit with 1 thread: lion 1.50." in lines
    assert "Above 1.25 of the limit with 2 threads: lion 1.50." in lines
    assert "So it is." in lines
    assert max(map(len, lines)) <= 80


def test_markdown_of_rules(made_rules):
    text = report.markdown(made_rules)
    assert "| lion | 3+2 | 20 | 500 | 750 | 1.50 |  |  |  |" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [4, 4, 3, 3]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


# --- The machine ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("48K", 49152), ("2M", 2097152), ("512", 512)])
def test_sizes_of_caches(text, size):
    assert bench._bytes(text) == size


@pytest.mark.parametrize(("text", "count"), [("0", 1), ("0-3", 4), ("0-1,8-9,12", 5)])
def test_lists_of_processors(text, count):
    assert bench._count(text) == count


def test_caches_are_read_from_sysfs(tmp_path):
    for k, (kind, level, size) in enumerate(
        [("Data", 1, "48K"), ("Instruction", 1, "32K"), ("Unified", 2, "2M")]
    ):
        index = tmp_path / f"index{k}"
        index.mkdir()
        for name, value in (("type", kind), ("level", level), ("size", size),
                            ("shared_cpu_list", "0-1")):
            (index / name).write_text(f"{value}\n")
    assert bench._caches(tmp_path) == [
        {"level": 1, "bytes": 49152, "cores": 2}, {"level": 2, "bytes": 2097152, "cores": 2}
    ]
