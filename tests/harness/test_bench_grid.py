"""The suites `grid` and `estimators`: cells, forms of the data, contenders, parts of a run, heat map."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

measure = pytest.importorskip("benchmarks.measure", reason="benchmarks/ is not next to tests/")
cli = pytest.importorskip("benchmarks.__main__", reason="benchmarks/ is not next to tests/")
grid, estimators, report = measure.grid, measure.estimators, cli.report
numpy_contenders = measure.training.numpy

HAS = {name: importlib.util.find_spec(name) is not None for name in ("sklearn", "matplotlib")}


# --- Cells -----------------------------------------------------------------------------------------


def test_the_grid_has_every_width_depth_and_batch_that_is_not_too_slow():
    cells = {(len(c.sizes) - 2, c.sizes[1], c.batch) for c in grid.WHOLE if not c.form}
    for depth in grid.DEPTHS:
        for width in grid.WIDTHS:
            for batch in grid.BATCHES:
                sizes = (784, *[width] * depth, 10)
                assert ((depth, width, batch) in cells) == (grid.estimate(sizes, batch) <= grid.LONGEST)
    assert {w for _, w, _ in cells} == {*grid.WIDTHS}
    assert {c.form for c in grid.WHOLE} == {"", *grid.FORMS}
    assert {c.name for c in grid.DEFAULT} <= {c.name for c in grid.WHOLE} | {"256x4/1"}
    assert len({c.name for c in grid.WHOLE}) == len(grid.WHOLE)


@pytest.mark.parametrize("cell", grid.WHOLE, ids=lambda cell: cell.name)
def test_an_epoch_has_whole_batches_and_a_limited_length(cell):
    assert grid.find(cell.name) == cell
    assert set(cell.batches) == {cell.batch}
    assert 2 <= len(cell.batches) <= 256
    assert cell.rows <= max(grid.MOST_ROWS, 2 * cell.batch)
    seconds = len(cell.batches) * grid.estimate(cell.sizes, cell.batch)
    assert seconds <= max(2 * grid.LONGEST, 1.5 * grid.EPOCH)
    assert cell.rows >= grid.LEAST_ROWS >= grid.OUTPUTS
    assert cell.memory(12) < 20 << 30


@pytest.mark.parametrize(
    "name", ["", "64", "64x2", "0x2/4", "64x0/4", "64x2/0", "64x2/4/float16", "64x2/4/", "a"]
)
def test_unknown_cells_are_refused(name):
    with pytest.raises(ValueError, match=r"^workloads: expected a width, a depth and a batch size"):
        grid.find(name)


@pytest.mark.parametrize("form", ["", *grid.FORMS])
def test_data_and_parameters_of_a_form(form):
    if form == "sparse":
        pytest.importorskip("scipy")
    cell = grid.make_cell(8, 2, 16, form)
    X, y = cell.make_data()
    expected = {"float64": np.float64, "uint8": np.uint8}.get(form, np.float32)
    assert X.dtype == expected and X.shape == (cell.rows, 784) and y.shape == (cell.rows,)
    assert hasattr(X, "tocsr") == (form == "sparse")
    assert {a.dtype for layer in cell.make_params() for a in layer} == {cell.dtype}
    products = numpy_contenders.products([W for W, _ in cell.make_params()], cell.batch)
    assert {a.dtype for product in products for a in product} == {cell.dtype}


CONTENDERS = {
    "fastopt": None, "numpy": None, "sklearn": "sklearn", "torch-fused": "torch",
}


@pytest.mark.parametrize("form", ["", *grid.FORMS])
@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_train_every_form_that_they_support(name, form):
    cell, make = grid.make_cell(8, 2, 16, form), grid.SUITE.contenders[name]
    if not make.supports(cell):
        pytest.skip(f"{name} has no {form}")
    for module in (CONTENDERS[name], "scipy" if form == "sparse" else None):
        if module:
            pytest.importorskip(module)
    contender = make(1)
    contender.setup(cell)
    contender.train(1)
    params = [[np.array(a) for a in layer[:2]] for layer in contender.params()]
    if name != "sklearn":       # which draws its own weights
        for layer, initial in zip(params, cell.make_params(), strict=True):
            assert layer[0].dtype == cell.dtype
            assert 0 < np.abs(layer[0] - initial[0]).max() < 1
    if cell.compared:
        X, y = cell.make_data()
        before = grid.make_cell(8, 2, 16).make_params()
        assert measure.training.mean_loss(params, X, y) < measure.training.mean_loss(before, X, y) or (
            name == "sklearn"
        )


def test_fastopt_has_the_network_of_the_form():
    def network(form):
        contender = grid.SUITE.contenders["fastopt"](1)
        contender.setup(grid.make_cell(8, 2, 16, form))
        return contender.net

    assert network("batch-norm").norm == ("batch", "batch")
    assert network("dropout").dropout == (0.5, 0.5)
    assert network("float64").dtype == np.float64
    assert network("").norm == (None, None)


# --- A run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Two parts of a measured run of small cells."""
    folder = tmp_path_factory.mktemp("grid")
    paths = [folder / f"{k}.json" for k in (1, 2)]
    for k, path in enumerate(paths, 1):
        assert cli.main([
            "grid", "--workloads", "4x1/8,4x2/8,6x1/16,6x1/16/float64", "--peers", "floor,numpy", "--part",
            f"{k}/2", "--threads", "1", "--rounds", "2", "--seconds", "0.001", "--json", str(path),
        ]) == 0
    return [*map(str, paths)]


def load(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def test_parts_of_a_run_are_shown_together(parts, capsys, tmp_path):
    runs = [*map(load, parts)]
    assert [[w["name"] for w in run["workloads"]] for run in runs] == [
        ["4x1/8", "6x1/16"], ["4x2/8", "6x1/16/float64"]
    ]
    markdown = tmp_path / "run.md"
    assert cli.main(["show", *parts, "--markdown", str(markdown)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for title in ("4 x 1, batch 8", "4 x 2, batch 8", "6 x 1, batch 16", "6 x 1, batch 16, float64"):
        assert title in out
        assert f"\n| {title} |" in markdown.read_text()
    assert "Largest ratio of fastopt to the floor: " in out
    assert "Largest ratio of fastopt to the fastest peer: " in out
    assert "expected" not in " ".join(note for run in runs for note in run["notes"])    # all learn alike


@pytest.mark.parametrize("change", ["again", "threads"])
def test_runs_that_do_not_belong_together_are_refused(parts, change, tmp_path, capsys):
    run = load(parts[1])
    if change == "threads":
        run["threads"] = [1, 2]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(run))
    with pytest.raises(SystemExit):
        cli.main(["show", *parts, str(other)])
    expected = "different workloads, got '4x2/8' twice" if change == "again" else "the same threads"
    assert expected in capsys.readouterr().err


def test_the_worst_cell_is_named():
    run = {
        "suite": "grid", "threads": [1, 2],
        "versions": dict.fromkeys(("floor", "fastopt", "numpy", "optax"), ""),
        "workloads": [{"name": name, "title": name.upper()} for name in "ab"],
        "results": [
            {"workload": n, "contender": c, "threads": t, "variant": "epochs", "median": m, "rounds": [m]}
            for n, c, t, m in (
                ("a", "floor", 1, 1.0), ("a", "floor", 2, 2.0), ("a", "fastopt", 1, 0.5),
                ("a", "fastopt", 2, 1.5), ("a", "numpy", 1, 2.0), ("a", "optax", 2, 1.0),
                ("b", "floor", 2, 2.0), ("b", "fastopt", 2, 4.0), ("b", "numpy", 2, 5.0),
            )
        ],
    }
    assert report.worst_notes(run) == [
        "Largest ratio of fastopt to the floor: 2.00 at B; above 1.05 at 2 of 2 workloads.",
        "Largest ratio of fastopt to the fastest peer: 1.50 at A; above 1.05 at 1 of 2 workloads.",
    ]


@pytest.mark.skipif(not HAS["matplotlib"], reason="plots need matplotlib")
def test_the_heat_map(parts, tmp_path, monkeypatch, capsys):
    from benchmarks import heat_map

    figures, make = [], heat_map.plots.make_figure
    monkeypatch.setattr(heat_map.plots, "make_figure", lambda **k: figures.append(make(**k)) or figures[-1])
    path = tmp_path / "grid.png"
    assert cli.main(["show", *parts, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    panels = [axes for axes in figures[0].axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["1 hidden layer", "2 hidden layers"] * 2
    assert [len(axes.texts) for axes in panels] == [2, 1, 2, 1]
    assert sum(len(axes.patches) for axes in panels) == 2       # the largest ratios have a frame
    run = measure.merge([*map(load, parts)])
    assert panels[1].texts[0].get_text() == f"{report.ratio(run, '4x2/8', 'fastopt'):.2f}"
    assert panels[3].texts[0].get_text() == f"{report.peer_ratio(run, '4x2/8'):.2f}"


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/"])
def test_wrong_parts_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        cli.main(["grid", "--part", text])
    assert "expected K/N" in capsys.readouterr().err


def test_a_slow_cell_gets_two_turns_and_one_number_of_threads():
    calls = []

    class Fake:
        error, idle = "", True

        def __init__(self, name, threads):
            self.name, self.threads = name, threads

        def attempt(self, method, **values):
            calls.append((self.name, self.threads, method))
            return {"epochs": {"median": 1.0, "min": 1.0}} if method == "round" else None

    cell = grid.find("4096x2/256")
    assert grid.SUITE.is_large(cell) and not grid.SUITE.is_large(grid.find("64x2/16"))
    run = {"threads": [1, 2], "workloads": [], "results": [], "notes": []}
    workers = [Fake(name, threads) for name in ("floor", "fastopt") for threads in (1, 2)]
    measure.Measurement(run, grid.SUITE, cell).measure(workers, 9, 0.1, limit=0.0)
    assert {threads for _, threads, _ in calls} == {2}
    assert calls.count(("fastopt", 2, "round")) == calls.count(("floor", 2, "round")) == 2
    assert [len(result["rounds"]) for result in run["results"]] == [2, 2]


# --- Estimators ----------------------------------------------------------------------------------------


def test_the_calls_of_estimators():
    names = [call.name for call in estimators.WORKLOADS]
    assert len(set(names)) == len(names) == 4 * 3 + 4 * 4
    for call in estimators.WORKLOADS:
        assert estimators.find(call.name) == call
    call = estimators.find("256-128/predict/1")
    assert call.sizes == (784, 256, 128, 10) and call.flops == 2 * (784 * 256 + 256 * 128 + 128 * 10)
    for name in ("", "256/score/1", "fit/1", "256/fit/0", "256/predict/4001"):
        with pytest.raises(ValueError, match=r"^workloads: expected hidden layers"):
            estimators.find(name)


@pytest.mark.skipif(not HAS["sklearn"], reason="needs scikit-learn")
def test_estimators_are_measured(tmp_path, capsys):
    path = tmp_path / "run.json"
    assert cli.main([
        "estimators", "--workloads", "3/fit/1000,3/predict/1,3/predict_proba/9", "--threads", "1", "--rounds",
        "1", "--seconds", "0.001", "--json", str(path),
    ]) == 0
    run = json.loads(path.read_text())
    assert [note for note in run["notes"] if "Other processes" not in note] == []       # the same results
    assert {(r["workload"], r["contender"]) for r in run["results"]} == {
        (w["name"], name) for w in run["workloads"] for name in ("fastopt", "sklearn")
    }
    out = " ".join(capsys.readouterr().out.split())
    assert "(3) fit, batch 1000" in out and "Largest ratio of fastopt to the fastest peer" in out
