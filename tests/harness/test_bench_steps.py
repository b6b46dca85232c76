"""The suite `steps`: workloads, arrays, and the reports of a run."""

import importlib.util
import json
import math
import os

import numpy as np
import pytest

measure = pytest.importorskip("benchmarks.measure", reason="benchmarks/ is not next to tests/")
cli = pytest.importorskip("benchmarks.__main__", reason="benchmarks/ is not next to tests/")
steps, report = measure.steps, cli.report
numba = steps.numba     # the contenders; numba itself is imported when one is created

HAS_NUMBA = importlib.util.find_spec("numba") is not None
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


# --- Workloads -----------------------------------------------------------------------------------


def test_resnet50_has_the_shapes_of_the_paper():
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
def test_size_and_bytes_of_a_workload(name, arrays, size, bytes_each):
    workload = steps.find(name)
    assert (len(workload.shapes), workload.size, workload.bytes) == (arrays, size, size * bytes_each)


@pytest.mark.parametrize("name", ["", "resnet", "0", "-3", "nan", "inf"])
def test_unknown_workload_is_refused(name):
    with pytest.raises(ValueError, match=r"workloads: expected .*resnet50"):
        steps.find(name)


def test_all_contenders_get_the_same_arrays():
    first, second = (steps.find("mlp").make_arrays() for _ in range(2))
    for actual, expected in zip(first[0] + first[1], second[0] + second[1], strict=True):
        assert (actual == expected).all()
        assert actual.any()


# --- The limit -----------------------------------------------------------------------------------


def test_streams_of_the_limit_are_apart_and_aligned():
    streams = [[a for _ in range(2) for a in arrays] for arrays in steps.find("17").make_arrays()]
    whole, arrays = numba.carve(streams)
    assert all(stream.ctypes.data % numba.ALIGN == 0 for stream in whole)
    assert all(view.ctypes.data % numba.ALIGN == 0 for views in arrays for view in views)
    for k, stream in enumerate(streams):
        for array, views in zip(stream, arrays, strict=True):
            assert (views[k] == array).all()
    assert whole[0].ctypes.data + whole[0].nbytes <= whole[1].ctypes.data


@pytest.mark.parametrize("n", [0, 1, 16, 100, 4096])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_cover_all_elements_once(n, parts):
    starts = [numba.part_start(n, k, parts) for k in range(parts + 1)]
    assert starts[0] == 0
    assert starts[-1] == n
    assert starts == sorted(starts)


@pytest.mark.skipif(not HAS_NUMBA, reason="the limit needs numba")
@pytest.mark.parametrize("reads", [0, 1, 3])
@pytest.mark.parametrize("writes", [0, 1, 5])
def test_the_limit_passes_over_any_streams(reads, writes):
    if not reads + writes:
        pytest.skip("no stream")
    for loop in numba.limit_loops(2, reads):
        streams = [np.full(100, k + 1, np.float32) for k in range(reads + writes)]
        total = loop(*streams)
        x = sum(range(1, reads + 1)) if reads else 1
        assert total == 100 * x
        for k, stream in enumerate(streams):
            expected = k + 1 if k < reads else 0.9 * (k + 1) + 0.1 * x
            np.testing.assert_allclose(stream, np.full(100, expected), rtol=1e-6)


@pytest.mark.skipif(not HAS_NUMBA, reason="the limit needs numba")
@pytest.mark.parametrize("name", ["mlp", "clip-mlp"])
def test_variants_of_the_limit(name):
    limit = numba.Limit(threads=2)
    variants = limit.setup(steps.find(name))
    assert set(variants) == {"whole", "arrays", "serial"}
    for step in variants.values():
        limit.refill()
        step()
    assert limit.grads.any()


# --- A run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A measured run: NumPy and fastopt, two small workloads, one thread."""
    path = tmp_path_factory.mktemp("bench") / "run.json"
    status = cli.main([
        "steps", "--workloads", "1e3,clip-mlp", "--peers", "numpy", "--threads", "1", "--rounds", "2",
        "--seconds", "0.001", "--json", str(path),
    ])
    assert status == 0
    return path


@pytest.fixture
def run(saved):
    return json.loads(saved.read_text())


def test_a_run_has_every_result(run):
    measured = {(r["workload"], r["contender"], r["threads"]) for r in run["results"]}
    assert measured == {
        (workload, *who) for workload in ("1e3", "clip-mlp") for who in (("fastopt", 1), ("numpy", None))
    }
    assert [workload["name"] for workload in run["workloads"]] == ["1e3", "clip-mlp"]
    assert set(run["versions"]) == {"fastopt", "numpy"}
    assert run["threads"] == [1]
    assert "--peers numpy" in run["command"]
    assert {"cpu", "cores", "caches", "system", "python"} <= set(run["machine"])


def test_times_are_plausible(run):
    for result in run["results"]:
        assert len(result["rounds"]) == 2
        assert 0 < result["min"] <= min(result["rounds"]) <= result["median"] <= max(result["rounds"]) < 10
        assert report.spread(result) >= 0


def test_contenders_agree_and_none_fails(run):
    assert run["absent"] == {}
    unexpected = [n for n in run["notes"] if "Other processes" not in n and "the limit" not in n]
    assert unexpected == []


def test_without_the_limit_there_are_no_ratios(run):
    assert report.ratio(run, "1e3", "numpy") is None
    assert any("no ratios" in note for note in run["notes"])


def test_a_saved_run_can_be_shown_again(saved, capsys):
    assert cli.main(["show", str(saved), "--details"]) == 0
    text = capsys.readouterr().out
    assert "1 array of 1e3" in text
    assert "Shortest" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.skipif(not HAS_NUMBA, reason="the limit needs numba")
def test_the_limit_is_the_fastest_of_its_variants():
    run = measure.measure(
        steps.SUITE, [steps.find("1e3")], ["limit", "fastopt"], [2], rounds=2, seconds=0.001
    )
    variants = [r for r in run["results"] if r["contender"] == "limit"]
    assert {r["variant"] for r in variants} == {"whole", "serial"}
    limit = report.best(run, "1e3", "limit", 2)
    assert limit["median"] == min(r["median"] for r in variants)
    local = report.best(run, "1e3", "fastopt", 2)
    assert report.ratio(run, "1e3", "fastopt") == local["median"] / limit["median"]


# --- Reports -------------------------------------------------------------------------------------


@pytest.fixture
def invented(make_run):
    """A run with round numbers."""
    workloads = [steps.find(name) for name in ("1e3", "4e6", "denormal")]
    results = []
    for workload, factor in zip(workloads, (1, 100, 500), strict=True):
        for threads, speed in ((1, 1.0), (2, 2.0)):
            results += [
                (workload.name, "limit", threads, 1e-4 / speed, "arrays"),
                (workload.name, "limit", threads, 2e-4 / speed, "serial"),
                (workload.name, "fastopt", threads, 2e-4 / speed),
                (workload.name, "torch-fused", threads, factor * 1e-6 / speed),
            ]
        results.append((workload.name, "numpy", None, 1e-3))
    return make_run("steps", workloads, results)


def test_text(invented):
    lines = report.text(invented).splitlines()
    row = next(line for line in lines if line.startswith("1 array of 1e3"))
    assert row.split()[-7:] == ["50.0", "100", "(2.00)", "0.50", "(0.01)", "1000", "(20.0)"]
    text = " ".join(" ".join(lines).split())
    denormal = "Time with denormal state relative to normal state: fastopt 1.00, torch-fused 5.00, numpy 1.00"
    assert denormal in text
    assert "thinc: No module named 'thinc'" in lines
    assert "Something happened." in lines
    assert max(map(len, lines)) <= 80


def test_speed_of_two_threads_relative_to_one(invented):
    *_, table = report.tables(invented, is_wide=False)
    assert table.caption == "Speed of 2 threads relative to 1."
    assert table.head == ["workload", "limit", "fastopt", "torch-fused"]        # NumPy knows one thread only
    assert table.rows[0] == ["1 array of 1e3", "2.00", "2.00", "2.00"]


def test_markdown(invented, rows_of):
    text = report.markdown(invented)
    for part in ("2000-01-01", "Some CPU, 2 cores", "L1 48 KiB per core", "L3 32768 KiB for 2 cores",
                 "`python -m benchmarks steps`", "- thinc: No module"):
        assert part in text
    gigabytes = f"{1000 * 28 / 50e-6 / 1e9:.0f}"
    assert rows_of(text, "1 array of 1e3")[0] == [
        "1 array of 1e3", gigabytes, "50.0", "100 (2.00)", "0.50 (0.01)", "1000 (20.0)"
    ]
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="plots need matplotlib")
def test_plot(invented, tmp_path):
    path = tmp_path / "run.png"
    report.plot_steps(invented, path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="plots need matplotlib")
def test_a_plot_needs_two_sizes(invented, tmp_path):
    invented["workloads"] = invented["workloads"][:1]
    with pytest.raises(ValueError, match="plot: expected a run with"):
        report.plot_steps(invented, tmp_path / "run.png")


# --- The command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [["steps", "--workloads", "huge"], ["steps", "--peers", "caffe"], ["steps", "--threads", "0"],
     ["steps", "--rounds", "-1"], ["steps", "--python", "torch"], ["training", "--workloads", "1e3"],
     ["training", "--peers", "limit"], ["training", "--plot", "run.png"], ["optimizers", "--plot", "run.png"],
     ["optimizers", "--workloads", "1e3"], ["optimizers", "--size", "0"], ["optimizers", "--peers", "numpy"],
     ["steps", "--size", "1e3"], ["show", "no such file"], ["steps", "--json", "no such directory/run.json"]],
)
def test_wrong_arguments_end_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="plots need matplotlib")
def test_a_run_that_cannot_be_drawn_ends_with_status_2(saved, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["show", str(saved), "--plot", str(tmp_path / "run.png")])
    assert ended.value.code == 2
    assert "plot: expected a run with" in capsys.readouterr().err


def test_a_saved_command_has_no_paths_of_interpreters():
    command = cli.without_paths("steps --python optax=/usr/bin/python", [("optax", "/usr/bin/python")])
    assert command == "steps --python optax=PATH"


@pytest.mark.parametrize("name", ["steps", "optimizers", "training"])
def test_list(name, capsys):
    assert cli.main([name, "--list"]) == 0
    text = capsys.readouterr().out
    suite = measure.SUITES[name]
    assert all(workload.name in text for workload in suite.workloads)
    assert all(contender in text for contender in suite.contenders)


@pytest.mark.parametrize("name", ["formats", "functions", "learning-rates", "sparse-rows"])
def test_help_of_studies(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert name in capsys.readouterr().out


def test_functions(capsys):
    words = ["functions", "--rounds", "1", "--calls", "2", "--batches", "2"]
    assert cli.main([*words, "--threads", os.environ.get("FASTOPT_NUM_THREADS", "1")]) == 0
    out = capsys.readouterr().out
    assert "float64" in out and out.count("| rmsprop, 784-256-128-10 float32 |") == 2


def test_formats(capsys):
    pytest.importorskip("ml_dtypes")
    words = ["formats", "--rounds", "1", "--sizes", "5000"]
    assert cli.main([*words, "--threads", os.environ.get("FASTOPT_NUM_THREADS", "1")]) == 0
    out = capsys.readouterr().out
    assert out.count("1.00") >= 3 and "split / int8" in out


def test_sparse_rows(capsys):
    words = ["sparse-rows", "--rows", "100", "--width", "4", "--active", "8"]
    assert cli.main([*words, "--threads", os.environ.get("FASTOPT_NUM_THREADS", "1")]) == 0
    assert "Adagrad, row-wise" in capsys.readouterr().out
