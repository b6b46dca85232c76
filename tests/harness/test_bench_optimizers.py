"""The suite `optimizers`: workloads, their streams, and the reports of a run."""

import importlib.util
import json

import numpy as np
import pytest

import fastopt
from fastopt._core import dispatch

measure = pytest.importorskip("benchmarks.measure", reason="benchmarks/ is not next to tests/")
cli = pytest.importorskip("benchmarks.__main__", reason="benchmarks/ is not next to tests/")
optimizers, report = measure.optimizers, cli.report

HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_NUMBA = importlib.util.find_spec("numba") is not None


def warm(workload):
    """Return a parameter after some steps, and its optimizer."""
    (param,) = workload.make_params()
    opt = getattr(fastopt, workload.optimizer)(param, **workload.options)
    for k in range(optimizers.WARM_STEPS):
        opt.step(workload.gradient(k))
    return param, opt


def test_every_optimizer_and_every_kernel_is_measured():
    names = {name for name in fastopt.optimizers.__all__ if name != "Optimizer"}
    assert {workload.optimizer for workload in optimizers.WORKLOADS} == names
    kernels = set()
    for workload in optimizers.WORKLOADS:
        opt = warm(optimizers.find(f"{workload.row}/100"))[1]
        kernels |= {"apply_update" if k in opt.RULE.PRECOMPUTED else k for k in opt._kernels}
    assert kernels == set(dispatch.kernels.KERNEL_INDEX)


@pytest.mark.parametrize("workload", optimizers.WORKLOADS, ids=lambda workload: workload.row)
def test_a_workload_has_the_streams_of_its_state(workload):
    """The streams are the parameter, the gradient, and all state of the parameter's size."""
    small = optimizers.find(f"{workload.row}/100")
    param, opt = warm(small)
    full = [array for array in opt.state[0].values() if array.shape == param.shape]
    letters = {letter for streams in workload.passes for letter in "".join(streams)}
    assert letters >= {"p", "g"}
    others = {"p", "g", "o"} if workload.row == "muon" else {"p", "g"}
    assert len(letters - others) == len(full)
    assert opt._kernels[0] in opt.RULE.STATES
    kernels = dispatch.kernels
    combines = opt._kernels[0] in {*kernels.TWO_PASS, *kernels.ROWWISE, *opt.RULE.PRECOMPUTED}
    assert workload.elementwise == (not combines)
    assert len(workload.passes) == 1 or not workload.elementwise


@pytest.mark.parametrize("workload", optimizers.WORKLOADS, ids=lambda workload: workload.row)
def test_a_warm_optimizer_moves_and_stays_finite(workload):
    small = optimizers.find(f"{workload.row}/100")
    param, opt = warm(small)
    g = small.gradient(optimizers.WARM_STEPS - 1)
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
def test_shape_and_streams_of_a_workload(name, shape, streams, amount):
    workload = optimizers.find(name)
    assert (workload.shape, workload.streams, workload.record()["amount"]) == (shape, streams, amount)


@pytest.mark.parametrize("name", ["", "1e3", "Adam", "adam/", "adam/0", "adam/x", "adam/1e3/1e3", "/10"])
def test_unknown_workload_is_refused(name):
    with pytest.raises(ValueError, match=r"workloads: expected sgd, .*got"):
        optimizers.find(name)


def test_gradients_differ_between_steps_and_not_between_contenders():
    workload = optimizers.find("adam/100")
    first, second = workload.gradient(0).copy(), workload.gradient(1).copy()
    assert not np.array_equal(first, second)
    optimizers._noise.cache_clear()
    assert np.array_equal(first, workload.gradient(0))


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
@pytest.mark.parametrize("workload", [w for w in optimizers.WORKLOADS if w.torch], ids=lambda w: w.row)
def test_torch_has_the_measured_modes_and_no_other(workload):
    small = optimizers.find(f"{workload.row}/100")
    expected = optimizers.OptimizerBench(optimizers.fastopt.FastOpt(1), small).probe
    for name, contender in optimizers.SUITE.contenders.items():
        if name.startswith("torch"):
            if contender.supports(workload):
                actual = optimizers.OptimizerBench(contender(1), small).probe
                np.testing.assert_allclose(actual, expected, atol=optimizers.SUITE.tolerance)
            else:
                with pytest.raises((RuntimeError, TypeError, ValueError)):
                    optimizers.OptimizerBench(contender(1), small)


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
def test_every_optimizer_of_torch_is_measured():
    import torch

    measured = {workload.optimizer for workload in optimizers.WORKLOADS if workload.torch}
    others = {workload.optimizer for workload in optimizers.WORKLOADS if not workload.torch} - measured
    assert all(hasattr(torch.optim, name) for name in measured)
    assert not any(hasattr(torch.optim, name) for name in others)


# --- A run ---------------------------------------------------------------------------------------


ROWS = ("sgd", "adam", "rprop", "lamb", "muon")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A measured run of some optimizers, tiny, with all installed libraries."""
    path = tmp_path_factory.mktemp("bench") / "run.json"
    status = cli.main([
        "optimizers", "--workloads", ",".join(ROWS), "--size", "1e3", "--threads", "1", "--rounds", "2",
        "--seconds", "0.001", "--json", str(path),
    ])
    assert status == 0
    return path


def test_a_run_has_every_result(saved):
    run = json.loads(saved.read_text())
    expected = {
        (f"{row}/1e3", name) for row in ROWS for name, contender in optimizers.SUITE.contenders.items()
        if contender.supports(optimizers.find(row))
        and {"limit": HAS_NUMBA, "fastopt": True}.get(name, HAS_TORCH)
    }
    assert {(r["workload"], r["contender"]) for r in run["results"]} == expected
    unexpected = [n for n in run["notes"] if "Other processes" not in n and "the limit" not in n]
    assert unexpected == []         # torch has the same parameters


def test_a_saved_run_can_be_shown_again(saved, capsys):
    assert cli.main(["show", str(saved), "--details"]) == 0
    text = capsys.readouterr().out
    assert "Elementwise: 1,000 float32, 1 thread\n" in text
    assert "matrices: 31 x 31 float32, 1 thread\n" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.fixture
def invented(make_run):
    """Three optimizers with round numbers."""
    workloads = [optimizers.find(name) for name in ("rmsprop-centered-momentum", "lion", "lamb")]
    results = []
    for workload in workloads:
        for threads, speed in ((1, 1.0), (2, 2.0)):
            times = {"limit": 1e-3, "fastopt": 1.5e-3 if workload.row == "lion" else 1.2e-3}
            if workload.torch:
                times |= {"torch": 9e-3, "torch-foreach": 6e-3}
            results += [(workload.name, name, threads, time / speed) for name, time in times.items()]
    return make_run("optimizers", workloads, results)


def test_text(invented):
    lines = report.text(invented).splitlines()
    rows = [line.split() for line in lines if line.startswith("rmsprop-centered-momentum")]
    assert rows == [
        ["rmsprop-centered-momentum", "5+4", *times, "foreach", "5.00"]
        for times in (["500", "600", "1.20", "3000"], ["1000", "1200", "1.20", "6000"])
    ]
    assert next(line.split() for line in lines if line.startswith("lamb")) == [
        "lamb", "7+3", "500", "600", "1.20"
    ]
    assert "Above 1.25 of the limit with 1 thread: lion 1.50." in lines
    assert "Above 1.25 of the limit with 2 threads: lion 1.50." in lines
    assert "Something happened." in lines
    assert max(map(len, lines)) <= 80


def test_markdown(invented, rows_of):
    text = report.markdown(invented)
    assert ["lion", "3+2", "20", "500", "750", "1.50", "", "", "", ""] in rows_of(text, "lion")
    assert "7.50" in rows_of(text, "rmsprop-centered-momentum")[0]
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert [len(table) for table in tables] == [4, 4, 3, 3]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1
