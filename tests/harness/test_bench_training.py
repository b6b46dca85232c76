"""The suite `training`: workloads, floor, contenders, and the reports of a run."""

import importlib.util
import json

import numpy as np
import pytest

measure = pytest.importorskip("benchmarks.measure", reason="benchmarks/ is not next to tests/")
cli = pytest.importorskip("benchmarks.__main__", reason="benchmarks/ is not next to tests/")
training, report = measure.training, cli.report
numpy = training.numpy      # the contenders

TINY = "8-6-3/16/100"       # seven minibatches, the last one of four samples


def installed_peers():
    modules = {"optax": "optax", "torch-fused": "torch", "numpy": "numpy", "sklearn": "sklearn"}
    return [name for name, module in modules.items() if importlib.util.find_spec(module)]


@pytest.mark.parametrize(
    ("name", "sizes", "batch", "rows", "n_steps"),
    [("fashion-128", (784, 256, 128, 10), 128, 60_000, 469), (TINY, (8, 6, 3), 16, 100, 7),
     ("fashion-32", (784, 256, 128, 10), 32, 60_000, 1875), ("digits-32", (64, 32, 10), 32, 1437, 45),
     ("5-2/7", (5, 2), 7, 10_000, 1429)],
)
def test_sizes_of_a_workload(name, sizes, batch, rows, n_steps):
    workload = training.find(name)
    actual = workload.sizes, workload.batch, workload.rows, len(workload.batches)
    assert actual == (sizes, batch, rows, n_steps)
    assert sum(workload.batches) == rows
    assert max(workload.batches) == batch


@pytest.mark.parametrize(
    "name", ["", "1e3", "784/32", "784-10", "784-10/0", "784-1/32", "784-0-10/32", "8-3/4/5/6", "8-3/-4"]
)
def test_unknown_workload_is_refused(name):
    with pytest.raises(ValueError, match=r"workloads: expected fashion-128, .*got"):
        training.find(name)


@pytest.mark.parametrize("sizes", [(5, 3), (784, 256, 128, 10), (9, 8, 7, 6, 5)])
def test_the_floor_is_the_products_of_a_step(sizes):
    """The products are those that autodiff of a linear network needs, and no others."""
    workload = training.Workload("", sizes, 32, 64)
    weights = [W for W, _ in workload.make_params()]
    listed = numpy.products(weights, workload.batch)
    assert len(listed) == 3 * len(weights) - 1
    flops = sum(2 * left.shape[0] * left.shape[1] * right.shape[1] for left, right, _ in listed)
    assert flops == workload.flops
    assert all(left.dtype == right.dtype == out.dtype == np.float32 for left, right, out in listed)
    assert all(a.ctypes.data % numpy.ALIGN == 0 for product in listed for a in product)
    for left, right, out in listed:
        np.matmul(left, right, out=out)
        assert out.any()
    shapes = [out.shape for _, _, out in listed]
    assert shapes[: len(weights)] == [(32, W.shape[1]) for W in weights]
    assert [shape for shape in shapes[len(weights):] if shape[0] != 32] == [W.shape for W in weights[::-1]]
    assert (32, sizes[0]) not in shapes[len(weights):]          # no gradient of the data


def test_flops_are_those_of_an_average_step():
    workload = training.find(TINY)
    assert len(workload.batches) * workload.flops == pytest.approx(2 * 100 * (2 * 8 * 6 + 3 * 6 * 3))


def test_the_floor_has_every_batch_of_an_epoch(monkeypatch):
    floor, rows = numpy.Floor(threads=1), []
    floor.setup(training.find(TINY))
    monkeypatch.setattr(np, "matmul", lambda left, right, out: rows.append(len(left)))
    floor.train(2)
    assert len(rows) == 2 * 7 * 5
    assert rows[::5] == [16] * 6 + [4] + [16] * 6 + [4]         # the first product of each step


def test_gradients_of_numpy():
    """Compare with central differences of the loss that all contenders are probed with."""
    peer = numpy.NumPyTraining(threads=1)
    peer.setup(training.find("5-4-6-3/16/40"))
    X, y = peer.X.astype(np.float64), peer.y
    peer.net = [[W.astype(np.float64), np.full(len(b), 0.1)] for W, b in peer.net]     # off relu's kink
    grads = peer.gradients(X, y)
    assert peer.loss == pytest.approx(training.mean_loss(peer.net, X, y), rel=1e-12)
    for layer, gradients in zip(peer.net, grads, strict=True):
        for p, g in zip(layer, gradients, strict=True):
            index = np.unravel_index(np.argmax(abs(g)), g.shape)
            p[index] += 1e-6
            above = training.mean_loss(peer.net, X, y)
            p[index] -= 2e-6
            below = training.mean_loss(peer.net, X, y)
            p[index] += 1e-6
            assert g[index] == pytest.approx((above - below) / 2e-6, rel=1e-6)


def test_fastopt_and_numpy_learn_the_same():
    """Both draw the samples in the same order, and start from the same weights."""
    params = []
    for make in (training.fastopt.FastOptTraining, numpy.NumPyTraining):
        peer = make(threads=1)
        peer.setup(training.find(TINY))
        peer.train(30)
        params.append(peer.params())
    for actual, expected in zip(*params, strict=True):
        for p, q in zip(actual, expected, strict=True):
            np.testing.assert_allclose(p, q, atol=1e-4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A measured run of all installed libraries with a tiny network."""
    path = tmp_path_factory.mktemp("bench") / "run.json"
    status = cli.main([
        "training", "--workloads", TINY, "--peers", ",".join(["floor", *installed_peers()]),
        "--threads", "1", "--rounds", "2", "--seconds", "0.001", "--json", str(path),
    ])
    assert status == 0
    return path


def test_a_run_has_every_result(saved):
    run = json.loads(saved.read_text())
    expected = {"floor", "fastopt", *installed_peers()}
    assert {(r["contender"], r["threads"]) for r in run["results"]} == {(name, 1) for name in expected}
    assert run["suite"] == "training"
    assert [note for note in run["notes"] if "Other processes" not in note] == []    # all learn alike
    floor = report.shown(run, TINY, "floor")["median"]
    assert floor > 0
    for name in expected - {"floor"}:
        assert report.ratio(run, TINY, name) == report.shown(run, TINY, name)["median"] / floor


def test_a_saved_run_can_be_shown_again(saved, capsys):
    assert cli.main(["show", str(saved)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "8-6-3, batch 16" in text
    assert "the ratio to the floor" in text
    assert "python -m benchmarks training --workloads" in text


def test_a_contender_that_does_not_train_is_noted(monkeypatch):
    """A contender that leaves the weights unchanged has another loss than fastopt."""
    workload, probes = training.find("digits-32"), {}
    for name, make in (("fastopt", training.fastopt.FastOptTraining), ("numpy", numpy.NumPyTraining)):
        peer = make(1)
        if name == "numpy":
            monkeypatch.setattr(peer, "update", lambda: None)
        process = type("Process", (), {"name": name})()
        probes[process] = training.TrainingBench(peer, workload).probe
    run = {"notes": []}
    measure.Measurement(run, training.SUITE, workload).compare(probes)
    assert [note.partition(": expected")[0] for note in run["notes"]] == [
        "numpy at 64-32-10, batch 32: loss"
    ]


@pytest.fixture
def invented(make_run):
    """All contenders with round numbers: floor and torch are faster with one thread."""
    workload = training.WORKLOADS[0]
    times = {
        "floor": (1e-4, 2e-4), "fastopt": (1e-4, 1.5e-4), "optax": (4e-4, 2e-4), "torch-fused": (3e-4, 9e-4),
        "numpy": (8e-4, 8e-4), "sklearn": (2e-3, 1e-3),
    }
    return make_run("training", [workload], [
        (workload.name, name, threads, median)
        for name, medians in times.items() for threads, median in zip((1, 2), medians, strict=True)
    ])


def test_markdown(invented, rows_of):
    rate = f"{training.WORKLOADS[0].flops / 1e-4 / 1e9:.0f}"
    assert rows_of(report.markdown(invented), "784-256-128-10, batch 128")[0] == [
        "784-256-128-10, batch 128", rate, "100 (1 t)",
        "150 (1.50, 2 t)",      # fastopt: not the better number of threads
        "200 (2.00, 2 t)", "300 (3.00, 1 t)", "800 (8.00, 1 t)", "1000 (10.0, 2 t)",
    ]


def test_text_has_80_columns(invented):
    text = report.text(invented, details=True)
    assert "150 (1.50, 2 t)" in text
    assert max(map(len, text.splitlines())) <= 80
