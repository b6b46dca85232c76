"""fastopt.MLP: gradients, losses, files, copies and everything it refuses."""

import copy
import json
import pickle
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt.nn import MLP, check_gradients, network
from fastopt.nn._core import blas
from fastopt.nn._core.gemm import Blas
from fastopt.nn.layers import ACTIVATIONS
from fastopt.nn.losses import LOSSES

N, FEATURES, OUTPUTS = 9, 5, 4


def batch(loss, seed=0, n=N, dtype=np.float64):
    """Return X and targets that suit a loss."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, FEATURES)).astype(dtype)
    y = {
        "cross_entropy": lambda: rng.integers(0, OUTPUTS, n),
        "binary_cross_entropy": lambda: rng.integers(0, 2, (n, OUTPUTS)),
        "poisson": lambda: rng.poisson(2.0, (n, OUTPUTS)).astype(float),
    }.get(loss, lambda: rng.standard_normal((n, OUTPUTS)))()
    return X, y


def make(loss="cross_entropy", **options):
    return MLP([FEATURES, 7, 6, OUTPUTS], loss=loss, **{"seed": 1, **options})


def flat(layers):
    return [array for layer in layers for array in layer]


# --- Gradients and losses --------------------------------------------------------------------


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_central_differences(activation, loss, l2):
    net = make(loss, activation=activation, dtype="float64", l2=l2)
    assert check_gradients(net, *batch(loss), eps=1e-5) < 1e-7


OPTIONS = {
    "dropout": {"dropout": [0.3, 0.0]},
    "batch norm": {"norm": "batch"},
    "layer norm": {"norm": ["layer", None]},
    "mixed": {"norm": ["batch", "layer"], "dropout": 0.2, "activation": ["gelu", "silu"], "l2": 0.1},
    "smoothing": {"label_smoothing": 0.2},
    "sum": {"reduction": "sum"},
    "huber": {"delta": 0.3},
    "quantile": {"quantile": 0.9},
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_with_options_are_those_of_central_differences(options, loss, weighted):
    """Thirty-five rows are three blocks, the last one short."""
    net = make(loss, **{"activation": "tanh", "dtype": "float64", **options})
    X, y = batch(loss, n=35)
    weight = np.random.default_rng(3).uniform(0, 2, 35) if weighted else None
    assert check_gradients(net, X, y, weight, eps=1e-5) < 1e-7


def test_check_gradients_finds_a_wrong_gradient_and_leaves_the_net_as_it_was():
    net = make(dtype="float64", dropout=0.3, norm="batch")
    X, y = batch("cross_entropy")
    before, draw = net.state_dict(), net._pass.step
    assert check_gradients(net, X, y) < 1e-6
    assert net._pass.step == draw
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])

    class Wrong(MLP):
        def train_step(self, *args):
            loss, grads = super().train_step(*args)
            grads[1][0][2, 3] += 1e-3
            return loss, grads

    wrong = Wrong([FEATURES, 7, 6, OUTPUTS], dtype="float64", seed=1)
    assert check_gradients(wrong, X, y) == pytest.approx(1e-3, rel=0.01)
    with pytest.raises(TypeError, match=r"params\[0\]\[0\]: expected float64"):
        check_gradients(make(), X, y)


def softmax(z):
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_is_the_textbook_formula(loss):
    net = make(loss, activation="tanh", dtype="float64", l2=0.2)
    X, y = batch(loss)
    (W1, b1), (W2, b2), (W3, b3) = net.params
    z = np.tanh(np.tanh(X @ W1 + b1) @ W2 + b2) @ W3 + b3
    s = 1 / (1 + np.exp(-z))
    data = {
        "cross_entropy": lambda: -np.log(softmax(z)[np.arange(N), y]).mean(),
        "binary_cross_entropy": lambda: -(y * np.log(s) + (1 - y) * np.log(1 - s)).mean(),
        "mse": lambda: ((z - y) ** 2).mean(),
        "squared_error": lambda: ((z - y) ** 2).mean() / 2,
        "huber": lambda: np.where(abs(z - y) <= 1, (z - y) ** 2 / 2, abs(z - y) - 0.5).mean(),
        "quantile": lambda: abs(z - y).mean() / 2,
        "poisson": lambda: (np.exp(z) - y * z).mean(),
    }[loss]()
    penalty = 0.5 * 0.2 * sum((W**2).sum() for W in (W1, W2, W3))
    value, _ = net.train_step(X, y)
    assert type(value) is float
    assert value == pytest.approx(data + penalty, rel=1e-13)
    assert net.evaluate(X, y) == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("loss", "y", "logits", "expected"),
    [
        ("cross_entropy", [0, 1], [[1000.0, 0.0], [1000.0, 0.0]], 500.0),
        ("cross_entropy", [0], [[-3e4, -3e4]], np.log(2)),
        ("binary_cross_entropy", [[1, 0], [0, 1]], [[1000.0, -1000.0], [1000.0, -1000.0]], 500.0),
        ("binary_cross_entropy", [[1, 0]], [[20.0, -20.0]], np.log1p(np.exp(-20))),
    ],
)
def test_losses_are_stable_for_large_logits(loss, y, logits, expected, dtype):
    """A net of zero weights whose one layer passes its input on."""
    net = MLP([2, 2], loss=loss, dtype=dtype)
    net.params[0][0][...] = np.eye(2)
    value, grads = net.train_step(logits, y)
    assert value == pytest.approx(expected, rel=1e-6)
    assert all(np.isfinite(g).all() for g in flat(grads))
    assert np.isfinite(net.predict_proba(logits)).all()


def test_l2_spares_biases():
    plain, decayed = make(l2=0.0), make(l2=0.5)
    X, y = batch("cross_entropy")
    _, expected = plain.train_step(X, y)
    _, grads = decayed.train_step(X, y)
    for (W, _), (dW0, db0), (dW, db) in zip(decayed.params, expected, grads, strict=True):
        np.testing.assert_array_equal(dW, dW0 + np.float32(0.5) * W)
        np.testing.assert_array_equal(db, db0)


# --- Arrays: layout, identity, reuse ---------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_fill_one_contiguous_array(dtype):
    net = make(dtype=dtype)
    assert [p.shape for p in flat(net.params)] == [(5, 7), (7,), (7, 6), (6,), (6, 4), (4,)]
    address = net.params[0][0].ctypes.data
    assert address % 64 == 0
    for p in flat(net.params):
        assert p.base is net.params[0][0].base and p.flags.c_contiguous and p.dtype == dtype
        assert p.ctypes.data == address
        address += p.nbytes


def test_gradients_are_the_same_arrays_every_step_in_the_order_of_params():
    net = make()
    _, first = net.train_step(*batch("cross_entropy"))
    _, second = net.train_step(*batch("cross_entropy", n=3))
    assert net.grads_reversed is False
    assert all(a is b for a, b in zip(flat(first), flat(second), strict=True))
    assert [g.shape for g in flat(first)] == [p.shape for p in flat(net.params)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_leaves_nothing_to_the_next(activation, loss):
    """Batches of any sizes in any order give what a fresh net gives for each."""
    net = make(loss, activation=activation)
    for n in (5, 9, 2, 9, 1):
        X, y = batch(loss, seed=n, n=n, dtype=np.float32)
        value, grads = net.train_step(X, y)
        expected_value, expected = make(loss, activation=activation).train_step(X, y)
        assert value == expected_value
        for g, e in zip(flat(grads), flat(expected), strict=True):
            np.testing.assert_array_equal(g, e)


def test_a_step_allocates_no_array_of_the_size_of_an_activation():
    net = MLP([200, 300, 100, 10], loss="cross_entropy", seed=0, l2=0.1)
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((256, 200)).astype(np.float32), rng.integers(0, 10, 256)
    bytes_X = (X * 100).astype(np.uint8)
    net.train_step(bytes_X, y)
    tracemalloc.start()
    net.train_step(X, y)
    net.train_step(bytes_X, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000  # one activation takes 307 kB


@pytest.mark.parametrize("kind", ["uint8", "int64", "bool", "float16", "float32", "float64"])
def test_any_real_input_is_converted(kind):
    X = np.random.default_rng(0).integers(0, 2, (N, FEATURES)).astype(kind)
    _, y = batch("cross_entropy")
    value, _ = make().train_step(X, y)
    assert value == make().train_step(X.astype(np.float32), y)[0]


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda X: X[:, ::-1][:, ::-1], np.flip])
def test_strided_input_is_read_right(layout):
    X, y = batch("cross_entropy", dtype=np.float32)
    strided = layout(X)
    a, grads = make().train_step(strided, y)
    b, expected = make().train_step(np.ascontiguousarray(strided), y)
    assert a == pytest.approx(b, rel=1e-6)
    for g, e in zip(flat(grads), flat(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-7)


def test_inputs_are_not_written_to():
    X, y = batch("mse", dtype=np.float32)
    kept = X.copy(), y.copy()
    net = make("mse", activation="elu")
    net.train_step(X, y)
    net.predict(X)
    np.testing.assert_array_equal(X, kept[0])
    np.testing.assert_array_equal(y, kept[1])


# --- Choice of the loss, predictions ---------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "outputs", "expected"),
    [
        (np.array([0, 2, 1]), 3, "cross_entropy"),
        (np.array([True, False, True]), 2, "cross_entropy"),
        (np.array([0, 1, 1], np.uint8), 1, "binary_cross_entropy"),
        (np.array([True, False, True]), 1, "binary_cross_entropy"),
        (np.array([[0], [1], [1]]), 1, "binary_cross_entropy"),
        (np.eye(3, dtype=int), 3, "binary_cross_entropy"),
        (np.eye(3), 3, "mse"),
        (np.array([0.5, 1, 2]), 1, "mse"),
        (np.array([[0.5], [1], [2]], np.float32), 1, "mse"),
    ],
)
def test_auto_loss_goes_by_the_first_targets(y, outputs, expected):
    X = np.ones((3, 2))
    net = MLP([2, outputs], seed=0)
    assert net.loss == "auto"
    value, _ = net.train_step(X, y)
    assert net.loss == expected
    assert value == MLP([2, outputs], seed=0, loss=expected).train_step(X, y)[0]


def test_auto_loss_is_not_decided_by_evaluation_nor_by_refused_targets():
    net = MLP([2, 3])
    net.evaluate(np.ones((2, 2)), np.ones((2, 3)))
    assert net.loss == "auto"
    with pytest.raises(ValueError):
        net.train_step(np.ones((2, 2)), [0, 3])
    with pytest.raises(ValueError):
        net.train_step(np.full((2, 2), np.nan), [0, 1])
    assert net.loss == "auto"


def test_predictions_of_classes():
    net = make("cross_entropy")
    X, _ = batch("cross_entropy")
    p = net.predict_proba(X)
    assert p.shape == (N, OUTPUTS) and p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    labels = net.predict(X)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, p.argmax(axis=1))


def test_predictions_of_two_classes():
    net = MLP([FEATURES, 6, 1], loss="binary_cross_entropy", seed=3)
    X, _ = batch("cross_entropy", n=50)
    p = net.predict_proba(X)
    assert p.shape == (50, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    labels = net.predict(X)
    assert labels.shape == (50,) and labels.dtype == np.int64 and 0 < labels.sum() < 50
    np.testing.assert_array_equal(labels, p[:, 1] > 0.5)


def test_predictions_of_many_labels():
    net = make("binary_cross_entropy")
    X, _ = batch("binary_cross_entropy")
    p, labels = net.predict_proba(X), net.predict(X)
    assert p.shape == labels.shape == (N, OUTPUTS) and labels.dtype == np.int64
    np.testing.assert_array_equal(labels, p > 0.5)


@pytest.mark.parametrize(("outputs", "shape"), [(1, (N,)), (3, (N, 3))])
def test_predictions_of_values(outputs, shape):
    net = MLP([FEATURES, outputs], loss="mse", seed=0)
    X, _ = batch("mse", dtype=np.float32)
    W, b = net.params[0]
    values = net.predict(X)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, (X @ W + b).reshape(shape), rtol=1e-6)
    with pytest.raises(ValueError, match="classifier"):
        net.predict_proba(X)


@pytest.mark.parametrize("loss", LOSSES)
def test_many_rows_are_evaluated_in_chunks(loss):
    net = make(loss, dtype="float64")
    X, y = batch(loss, n=2500)
    whole, _ = net.train_step(X, y)
    assert net.evaluate(X, y) == pytest.approx(whole, rel=1e-12)
    parts = [net.predict(X[i : i + 700]) for i in range(0, 2500, 700)]
    np.testing.assert_allclose(net.predict(X), np.concatenate(parts), rtol=1e-12)


def test_memory_of_predict_is_bounded():
    net = MLP([2, 2000, 2], loss="cross_entropy", seed=0)
    X = np.zeros((50_000, 2), np.float32)
    tracemalloc.start()
    net.predict(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6  # all rows at once would take 400 MB


def test_predictions_from_many_threads():
    net = MLP([20, 64, 5], loss="cross_entropy", seed=0)
    batches = np.random.default_rng(0).standard_normal((40, 700, 20)).astype(np.float32)
    expected = [net.predict_proba(X) for X in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, e in zip(pool.map(net.predict_proba, batches), expected, strict=True):
            np.testing.assert_array_equal(found, e)


# --- Initial weights -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "init", "hidden", "last"),
    [
        ("relu", "auto", "he", "glorot"),
        ("gelu", "auto", "he", "glorot"),
        ("tanh", "auto", "glorot", "glorot"),
        ("logistic", "auto", "glorot", "glorot"),
        ("tanh", "he", "he", "he"),
        ("relu", "glorot", "glorot", "glorot"),
    ],
)
def test_initial_weights_have_the_variance_of_their_scheme(activation, init, hidden, last):
    net = MLP([400, 300, 200], activation=activation, init=init, seed=0)
    for (W, b), scheme in zip(net.params, (hidden, last), strict=True):
        n, m = W.shape
        variance = 2 / n if scheme == "he" else 2 / (n + m)
        assert W.var() == pytest.approx(variance, rel=0.03)
        assert abs(W.mean()) < 0.02 * np.sqrt(variance)
        if scheme == "glorot":
            assert np.abs(W).max() <= np.float32(np.sqrt(3 * variance))
        assert not b.any()


def test_seed_fixes_the_weights_of_both_dtypes():
    a, b, c = make(seed=5), make(seed=5, dtype="float64"), make(seed=6)
    for x, y, z in zip(flat(a.params), flat(b.params), flat(c.params), strict=True):
        np.testing.assert_array_equal(x, y.astype(np.float32))
        assert not x.any() or (x != z).any()


# --- Files and copies ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["model", "npz", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_save_and_load(tmp_path, dtype, suffix):
    if suffix == "safetensors":
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    net = make(activation=["elu", "gelu"], dtype=dtype, l2=0.25, init="he", norm=["batch", "layer"])
    X, y = batch("cross_entropy")
    net.train_step(X, y)
    path = tmp_path / f"net.{suffix}"
    net.save(path)
    loaded = MLP.load(path)
    np.testing.assert_array_equal(loaded.predict_proba(X), net.predict_proba(X))
    assert loaded.train_step(X, y)[0] == net.train_step(X, y)[0]
    assert repr(loaded) == repr(net) and loaded._config() == net._config()
    assert len(list(tmp_path.iterdir())) == 1 + (suffix == "safetensors")


def test_a_file_holds_plain_arrays(tmp_path):
    make().save(tmp_path / "net.npz")
    with np.load(tmp_path / "net.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_safetensors_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"fastopt\[safetensors\]"):
        make().save(tmp_path / "net.safetensors")


def test_an_undecided_loss_survives_saving(tmp_path):
    make("auto").save(tmp_path / "net.npz")
    assert MLP.load(tmp_path / "net.npz").loss == "auto"


def rewritten(path, config=None, **changes):
    """Save a net at `path` with some arrays, or entries of its description, replaced (None: left out)."""
    net = make()
    net.save(path)
    with np.load(path) as file:
        arrays = dict(file) | changes
    if config:
        described = {k: v for k, v in (net._config() | config).items() if v is not None}
        arrays["fastopt_mlp"] = np.array(json.dumps(described))
    with open(path, "wb") as file:
        np.savez(file, **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fastopt_mlp": None}, "not a saved"),
        ({"fastopt_mlp": np.array(1)}, "does not describe"),
        ({"fastopt_mlp": np.array("{")}, "does not describe"),
        ({"config": {"format": 99}}, "expected format 2, got 99"),
        ({"W2": None}, "'W2' is missing"),
        ({"config": {"l2": None}}, "'l2' is missing"),
        ({"b1": np.zeros(3, np.float32)}, r"'b1'\]: expected float32 of shape \(7,\)"),
        ({"W2": np.zeros((7, 6))}, r"'W2'\]: expected float32"),
        ({"config": {"activation": "cubic"}}, "activation: expected one of"),
        ({"config": {"sizes": [5]}}, "sizes"),
        ({"config": {"sizes": [5.0, 7.0]}}, "sizes"),
        ({"config": {"color": 3}}, "color"),
        ({"W1": np.array([[{}]])}, "plain arrays"),
    ],
)
def test_load_refuses_what_is_not_a_saved_net(tmp_path, changes, message):
    path = tmp_path / "net.npz"
    rewritten(path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        MLP.load(path)
    assert str(path) in str(error.value)


def test_load_refuses_damaged_safetensors(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "net.safetensors"
    make().save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"net\.safetensors"):
        MLP.load(path)


def test_state_dict_goes_back_in_whole_or_not_at_all():
    net = make(norm="batch")
    net.train_step(*batch("cross_entropy"))
    kept = net.state_dict()
    assert sorted(kept) == sorted(
        [f"{name}{i}" for name in ("W", "b", "scale", "mean", "variance") for i in (1, 2)] + ["W3", "b3"]
    )
    net.train_step(*batch("cross_entropy", seed=5))
    for array in flat(net.params):
        array += 1
    for broken in ({"b3": kept["b3"][:-1]}, {"b3": kept["b3"].astype(float)}):
        with pytest.raises(ValueError, match="'b3'"):
            net.load_state_dict(kept | broken)
    with pytest.raises(ValueError, match="'variance2' is missing"):
        net.load_state_dict({name: array for name, array in kept.items() if name != "variance2"})
    assert (net.params[0][0] == kept["W1"] + 1).all()
    net.load_state_dict(kept)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, kept[name])


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 0.999))
def test_load_refuses_truncated_files(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("nets") / "net.npz"
    make().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(ValueError, match="npz"):
        MLP.load(path)


def through_pickle(graph):
    return pickle.loads(pickle.dumps(graph))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_copies_share_parameters_with_a_copied_optimizer(duplicate):
    X, y = batch("cross_entropy", dtype=np.float32)
    net = make()
    opt = fastopt.Adam(net.params, lr=0.01)
    for _ in range(3):
        opt.step(net.train_step(X, y)[1])
    twin, twin_opt = duplicate((net, opt))
    for p, q in zip(flat(net.params), flat(twin.params), strict=True):
        assert not np.shares_memory(p, q)
    assert all(p is q for p, q in zip(flat(twin.params), flat(twin_opt.params), strict=True))
    for _ in range(3):
        opt.step(net.train_step(X, y)[1])
        twin_opt.step(twin.train_step(X, y)[1])
    for p, q in zip(flat(net.params), flat(twin.params), strict=True):
        np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_pickle])
def test_copies_have_gradients_of_their_own(duplicate):
    X, y = batch("cross_entropy")
    net = make()
    _, grads = net.train_step(X, y)
    kept = [g.copy() for g in flat(grads)]
    twin = duplicate(net)
    twin.train_step(X[:2], y[:2])
    for g, k in zip(flat(grads), kept, strict=True):
        np.testing.assert_array_equal(g, k)


# --- What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sizes": [3]}, ValueError, "sizes: expected at least two"),
        ({"sizes": []}, ValueError, "sizes: expected at least two"),
        ({"sizes": [3, 0, 2]}, ValueError, r"sizes\[1\]: expected at least 1, got 0"),
        ({"sizes": [3, -1]}, ValueError, r"sizes\[1\]: expected at least 1, got -1"),
        ({"sizes": [3, 2.5]}, TypeError, r"sizes\[1\]: expected a whole number, got 2.5"),
        ({"sizes": 3}, TypeError, "sequence of integers"),
        ({"activation": "cubic"}, ValueError, "activation: expected one of .*'cubic'"),
        ({"activation": None}, ValueError, "activation: expected one of"),
        ({"loss": "hinge"}, ValueError, "loss: expected one of"),
        ({"loss": "cross_entropy", "sizes": [3, 1]}, ValueError, "needs sizes"),
        ({"dtype": "float16"}, ValueError, "dtype: expected one of"),
        ({"dtype": "number"}, ValueError, "dtype: expected one of"),
        ({"dtype": None}, ValueError, "dtype: expected one of"),
        ({"init": "zeros"}, ValueError, "init: expected one of"),
        ({"l2": -1.0}, ValueError, "l2: expected a finite number in"),
        ({"l2": "1e-4x"}, TypeError, "l2: expected a number"),
        ({"activation": ["relu"]}, ValueError, "activation: expected one value, or 0"),
        ({"sizes": [3, 4, 2], "activation": ["relu"] * 2}, ValueError, "expected one value, or 1"),
        ({"dropout": 1.0}, ValueError, r"dropout: expected a finite number in \[0, 1\)"),
        ({"dropout": -0.1}, ValueError, "dropout: expected a finite number in"),
        ({"norm": "group"}, ValueError, "norm: expected one of None, batch, layer"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing: expected a finite number in"),
        ({"reduction": "none"}, ValueError, "reduction: expected one of"),
        ({"delta": 0.0}, ValueError, r"delta: expected a finite number in \(0, inf\)"),
        ({"quantile": 1.0}, ValueError, "quantile: expected a finite number in"),
        ({"l2": float("nan")}, ValueError, "l2: expected a finite number in"),
    ],
)
def test_constructor_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        MLP(**{"sizes": [3, 2], **arguments})


X_GOOD = np.ones((3, 2))
BAD_BATCHES = [
    ("cross_entropy", X_GOOD, [0, 1, 3], "labels from 0 to 2"),
    ("cross_entropy", X_GOOD, [0, -1, 1], "labels from 0 to 2"),
    ("cross_entropy", X_GOOD, [0.0, 1.0, 1.0], "integer or boolean labels"),
    ("cross_entropy", X_GOOD, ["a", "b", "c"], "integer or boolean labels"),
    ("cross_entropy", X_GOOD, np.eye(3, dtype=int), "one label per sample"),
    ("cross_entropy", X_GOOD, [0, 1], "y: expected 3 targets, as many as X has samples"),
    ("cross_entropy", X_GOOD, 0, "y: expected 3 targets, as many as X has samples"),
    ("binary_cross_entropy", X_GOOD, np.full((3, 3), 2), "labels 0 and 1"),
    ("binary_cross_entropy", X_GOOD, -np.eye(3, dtype=int), "labels 0 and 1"),
    ("binary_cross_entropy", X_GOOD, np.eye(3), "integer or boolean labels"),
    ("binary_cross_entropy", X_GOOD, np.ones((3, 2), int), "shape"),
    ("binary_cross_entropy", X_GOOD, [0, 1, 1], "shape"),
    ("mse", X_GOOD, np.ones((3, 2)), "shape"),
    ("mse", X_GOOD, [0.0, 1.0, 2.0], "shape"),
    ("mse", X_GOOD, [[1, 2, np.nan]] * 3, "finite"),
    ("mse", X_GOOD, [["a"] * 3] * 3, "real numbers"),
    ("poisson", X_GOOD, -np.eye(3), "expected values of at least 0"),
    ("auto", X_GOOD, ["a", "b", "c"], "labels or real values"),
    ("auto", X_GOOD, [0, 1, 3], "labels from 0 to 2"),
    ("cross_entropy", np.ones((3, 4)), [0, 1, 2], r"shape \(n, 2\), got \(3, 4\)"),
    ("cross_entropy", np.ones(2), [0, 1], "shape"),
    ("cross_entropy", np.ones((3, 2, 1)), [0, 1, 2], "shape"),
    ("cross_entropy", np.ones((0, 2)), np.zeros(0, int), "at least one sample"),
    ("cross_entropy", np.ones((3, 2), complex), [0, 1, 2], "real numbers"),
    ("cross_entropy", [["a", "b"]] * 3, [0, 1, 2], "real numbers"),
    ("cross_entropy", [[1, 2], [np.nan, 1], [0, 0]], [0, 1, 2], "finite"),
    ("cross_entropy", [[1, 2], [1, np.inf], [0, 0]], [0, 1, 2], "finite"),
    ("cross_entropy", [[1, 2], [1, 2], [-np.inf, 0]], [0, 1, 2], "finite"),
]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("loss", "X", "y", "message"), BAD_BATCHES)
def test_bad_batches_are_refused_before_anything_is_written(loss, X, y, message):
    net = MLP([2, 4, 3], activation="tanh", loss=loss, seed=0)
    good = {"binary_cross_entropy": np.eye(3, dtype=int), "mse": np.eye(3), "poisson": np.eye(3)}.get(
        loss, [0, 1, 2]
    )
    probe = MLP([2, 4, 3], activation="tanh", loss=loss, seed=0)
    probe.train_step(X_GOOD, good)
    if loss != "auto":
        net.train_step(X_GOOD, good)
    params = [p.copy() for p in flat(net.params)]
    grads = [g.copy() for g in flat(net._grads)]
    with pytest.raises(ValueError, match=message):
        net.train_step(X, y)
    with pytest.raises(ValueError, match=message):
        net.evaluate(X, y)
    assert net.loss == loss
    for now, kept in zip(flat(net.params) + flat(net._grads), params + grads, strict=True):
        np.testing.assert_array_equal(now, kept)
    value, after = net.train_step(X_GOOD, good)
    expected_value, expected = probe.train_step(X_GOOD, good)
    assert value == expected_value
    for g, e in zip(flat(after), flat(expected), strict=True):
        np.testing.assert_array_equal(g, e)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("method", ["predict", "predict_proba"])
@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ones((3, 4)), "shape"),
        (np.ones((0, 2)), "at least one sample"),
        ([[np.nan, 1]], "finite"),
        ([[np.inf, 1]], "finite"),
    ],
)
def test_bad_input_is_refused_by_predictions(method, X, message):
    net = MLP([2, 4, 3], loss="cross_entropy", seed=0)
    with pytest.raises(ValueError, match=message):
        getattr(net, method)(X)


def test_prediction_needs_a_decided_loss():
    with pytest.raises(ValueError, match="there was none yet"):
        MLP([2, 3]).predict(np.ones((1, 2)))


def test_diverged_weights_are_not_blamed_on_the_input():
    net = MLP([2, 3], loss="mse", seed=0)
    net.params[0][0][...] = np.nan
    value, _ = net.train_step(np.ones((1, 2)), np.ones((1, 3)))
    assert np.isnan(value)


# --- Dropout, normalization, weights, sparse data, the BLAS -------------------------------------


def test_dropout_is_drawn_anew_in_each_step_from_the_seed_and_not_in_predictions():
    X, y = batch("cross_entropy", n=40)
    net, twin, other = make(dropout=0.5), make(dropout=0.5), make(dropout=0.5, seed=2)
    other.load_state_dict({k: v for k, v in net.state_dict().items() if k != "dropout"})
    losses = [[n.train_step(X, y)[0] for _ in range(3)] for n in (net, twin, other)]
    assert losses[0] == losses[1] != losses[2]
    assert len(set(losses[0])) == 3
    assert net.evaluate(X, y) == pytest.approx(make().evaluate(X, y))
    copied = pickle.loads(pickle.dumps(net))
    other.load_state_dict(net.state_dict())
    loss = twin.train_step(X, y)[0]
    assert copied.train_step(X, y)[0] == other.train_step(X, y)[0] == loss
    with pytest.raises(ValueError, match="'dropout'"):
        net.load_state_dict(net.state_dict() | {"dropout": np.zeros(3)})


def test_dropout_keeps_the_mean_of_the_outputs():
    """One wide layer of equal outputs: what comes through is their share, scaled up."""
    net = MLP([1, 20_000, 1], activation="identity", loss="mse", dropout=0.3, seed=0, dtype="float64")
    for array in flat(net.params):
        array[...] = 1.0
    _, grads = net.train_step(np.zeros((4, 1)), np.zeros(4))
    # The gradient of the last weights is the mean over rows of 2 z a, and a is 0 or 1 / 0.7.
    z = np.sqrt(net.train_step(np.zeros((1, 1)), np.zeros(1))[0])
    assert z == pytest.approx(20_001, rel=0.02)
    kept = net.train_step(np.zeros((1, 1)), np.zeros(1))[1][1][0] != 0
    assert kept.mean() == pytest.approx(0.7, abs=0.02)


def test_batch_norm_predicts_with_running_averages():
    net = make("mse", norm="batch", activation="identity", dtype="float64")
    X, y = batch("mse", n=300)
    for _ in range(200):
        net.train_step(X, y)
    h = X @ net.params[0][0]
    np.testing.assert_allclose(net.running[0][0], h.mean(0), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(net.running[0][1], h.var(0, ddof=1), rtol=1e-6)
    one_by_one = np.concatenate([net.predict(X[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(net.predict(X)[:5], one_by_one, rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_of_weight_two_counts_as_two_rows_and_one_of_weight_zero_as_none(loss):
    net = make(loss, dtype="float64", l2=0.1)
    X, y = batch(loss, n=20)
    weight = np.random.default_rng(0).integers(0, 3, 20)
    many = np.repeat(np.arange(20), weight)
    expected, grads = net.train_step(X[many], y[many])
    grads = [g.copy() for g in flat(grads)]
    found, weighted = net.train_step(X, y, weight)
    assert found == pytest.approx(expected, rel=1e-12)
    assert net.evaluate(X, y, weight) == pytest.approx(expected, rel=1e-12)
    for g, e in zip(flat(weighted), grads, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("weight", "message"),
    [([1, 2], "9 real numbers"), ([-1] * 9, "of at least 0"), ([np.nan] * 9, "finite"), (["a"] * 9, "real")],
)
def test_bad_weights_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        make().train_step(*batch("cross_entropy"), weight)


def test_weights_of_zero_alone_give_no_gradient():
    value, grads = make().train_step(*batch("cross_entropy"), np.zeros(N))
    assert value == 0 and not any(g.any() for g in flat(grads))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sparse_rows_are_those_of_the_dense_matrix(dtype):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    X, y = batch("cross_entropy", n=40)
    X[np.random.default_rng(0).random(X.shape) < 0.7] = 0
    X[3] = 0
    net, twin = make(dtype=dtype), make(dtype=dtype)
    rows = sparse.csr_matrix(X)
    for matrix in (rows, sparse.coo_array(X), rows.astype(np.float32)[:, ::-1][:, ::-1]):
        assert net.train_step(matrix, y)[0] == pytest.approx(twin.train_step(X, y)[0], rel=1e-6)
    np.testing.assert_array_equal(net.predict_proba(rows), twin.predict_proba(X))
    order = np.random.default_rng(1).permutation(40)
    assert net.bind_data(rows, y).step(order, 5, 20) == twin.bind_data(X, y).step(order, 5, 20)
    rows.data[0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        net.train_step(rows, y)


@pytest.mark.parametrize("kind", ["float32", "float64", "uint8"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_feed_takes_the_rows_that_it_is_told(dtype, kind):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 9, (50, FEATURES)).astype(kind), rng.integers(0, OUTPUTS, 50)
    weight = rng.uniform(0, 1, 50)
    net, twin = make(dtype=dtype), make(dtype=dtype)
    order = rng.permutation(50)
    feed = net.bind_data(X, y, weight)
    for begin, rows in ((0, 20), (20, 20), (40, 10), (7, 1)):
        taken = order[begin : begin + rows]
        expected, grads = twin.train_step(X[taken], y[taken], weight[taken])
        assert feed.step(order, begin, rows) == expected
        for g, e in zip(flat(feed.grads), flat(grads), strict=True):
            np.testing.assert_array_equal(g, e)
        there = slice(begin, begin + rows)
        assert feed.step(None, begin, rows) == twin.train_step(X[there], y[there], weight[there])[0]
    for order, begin, rows in (([50], 0, 1), ([-1], 0, 1), ([0], 0, 2), ([0], -1, 1)):
        with pytest.raises(IndexError):
            feed.step(np.array(order), begin, rows)


OPTIMIZERS = {
    "adam": lambda params: fastopt.AdamW(params, lr=fastopt.schedules.Cosine(0.01, steps=10), ema=0.9),
    "momentum": lambda params: fastopt.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3, maximize=True),
    "groups": lambda params: fastopt.RMSprop([{"params": layer, "lr": 0.01} for layer in params]),
}


@pytest.mark.parametrize(
    "options", [{}, {"norm": "layer"}, {"norm": "batch", "dropout": 0.3, "l2": 0.1}], ids=str
)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_an_update_right_after_the_gradient_is_the_same_update(rule, options):
    """Wide enough that the weights of a layer are several pieces of work."""
    rng = np.random.default_rng(0)
    X, y, order = rng.standard_normal((300, 200)), rng.integers(0, 10, 300), rng.permutation(300)
    nets = [MLP([200, 150, 90, 10], loss="cross_entropy", seed=0, **options) for _ in range(2)]
    opts = [OPTIMIZERS[rule](net.params) for net in nets]
    feeds = [net.bind_data(X, y) for net in nets]
    assert opts[0]._can_lease(nets[0].params) == (rule != "groups")
    for begin in (0, 100, 200, 290):
        rows = min(100, 300 - begin)
        losses = [feeds[0].step(order, begin, rows, opts[0] if rule != "groups" else None), None]
        if rule == "groups":
            opts[0].step(feeds[0].grads)
        losses[1] = feeds[1].step(order, begin, rows)
        opts[1].step(feeds[1].grads)
        assert losses[0] == losses[1]
    assert opts[0].steps == opts[1].steps == 4
    for a, b in zip(flat(nets[0].params), flat(nets[1].params), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(opts[0].state, opts[1].state, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_step_on_bad_data_updates_nothing():
    net = make()
    opt = fastopt.Adam(net.params)
    X, y = batch("cross_entropy")
    X[4, 2] = np.nan
    before = net.state_dict()
    with pytest.raises(ValueError, match="finite"):
        net.bind_data(X, y).step(None, opt=opt)
    assert opt.steps == 0 and not opt.state[0]["exp_avg"].any()
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    net.bind_data(X[:4], y[:4]).step(None, opt=opt)
    assert opt.steps == 1 and (net.params[0][0] != before["W1"]).any()


@pytest.mark.parametrize(
    ("make_opt", "options"),
    [
        (fastopt.Adam, {}),
        (fastopt.Adam, {"max_norm": 0.1}),
        (lambda params: fastopt.Adam(params, skip_nonfinite=True), {}),
        (lambda params: fastopt.Adam(params, accumulate=2), {}),
        (lambda params: fastopt.SGD(params, lookahead=(2, 0.5)), {}),
        (fastopt.LAMB, {}),
        (fastopt.Prodigy, {}),
        (fastopt.Adafactor, {}),
        (lambda params: fastopt.Adam(flat(params)), None),
    ],
)
def test_the_trainer_takes_the_steps_that_a_loop_would(make_opt, options):
    X, y = batch("cross_entropy", n=50)
    net, twin = (MLP([FEATURES, 300, 40, OUTPUTS], seed=1) for _ in range(2))
    opt, twin_opt = make_opt(net.params), make_opt(twin.params)
    if options is None:     # an optimizer that takes the gradients in another nesting
        opt.step, options = (lambda grads, step=opt.step: step(flat(grads))), {}
        twin_step, twin_opt.step = twin_opt.step, lambda grads: twin_step(flat(grads))
    history = fastopt.Trainer(net, opt, **options).fit(X, y, batch_size=16, epochs=2, verbose=0, seed=3)
    rng, losses = np.random.default_rng(3), []
    for _ in range(2):
        order, total = rng.permutation(50), 0.0
        for begin in range(0, 50, 16):
            rows = order[begin : begin + 16]
            loss, grads = twin.train_step(X[rows], y[rows])
            twin_opt.step(grads, **options)
            total += loss * len(rows)
        losses.append(total / 50)
    assert history.history["loss"] == losses
    for a, b in zip(flat(net.params), flat(twin.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("inputs", [1, 2, 63, 64, 65, 129])
def test_few_inputs_and_a_wide_layer(inputs):
    """The first layer is so large that it would be cut in halves, if there were columns for two."""
    rng = np.random.default_rng(0)
    net = MLP([inputs, -(-70_000 // inputs), 2], activation="tanh", seed=0)
    X, y = rng.standard_normal((3, inputs), np.float32), rng.standard_normal((3, 2), np.float32)
    (W1, b1), (W2, b2) = net.params
    a = np.tanh(X @ W1 + b1)
    delta = (a @ W2 + b2 - y) / 3
    below = delta @ W2.T * (1 - a * a)
    _, grads = net.train_step(X, y)
    for g, e in zip(flat(grads), (X.T @ below, below.sum(0), a.T @ delta, delta.sum(0)), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-3, atol=1e-5)


WIDE = {"norm": ["batch", "layer"], "dropout": 0.2, "activation": ["gelu", "relu"], "seed": 0}


def wide_step():
    """A step that is worth several threads."""
    net = MLP([300, 200, 150, 10], loss="cross_entropy", **WIDE)
    rng = np.random.default_rng(0)
    loss, grads = net.train_step(rng.standard_normal((200, 300)), rng.integers(0, 10, 200))
    return loss, [g.copy() for g in flat(grads)]


def test_the_number_of_threads_changes_no_bit():
    before = fastopt.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            fastopt.set_num_threads(threads)
            results.append(wide_step())
    finally:
        fastopt.set_num_threads(before)
    for loss, grads in results[1:]:
        assert loss == results[0][0]
        for g, e in zip(grads, results[0][1], strict=True):
            np.testing.assert_array_equal(g, e)


@pytest.mark.parametrize("small", [0, 20_000])
def test_where_the_blas_is_not_known_numpy_multiplies(monkeypatch, small):
    """Nor does it matter in which pieces matrices are multiplied."""
    loss, grads = wide_step()
    found = blas.find() if small else {}
    monkeypatch.setattr(network, "blas", Blas(**{"name": "another", **found, "small": small}))
    other_loss, other = wide_step()
    assert other_loss == pytest.approx(loss, rel=1e-5)
    for g, e in zip(other, grads, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-3, atol=1e-5)


def test_the_threads_of_the_blas_are_given_back():
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")

    def threads():
        return [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]

    before = threads()
    make().train_step(*batch("cross_entropy"))
    with pytest.raises(ValueError, match="finite"):
        make().train_step(np.full((2, FEATURES), np.nan), [0, 1])
    assert threads() == before


def test_summary_counts_the_parameters():
    text = MLP([784, 256, 10], norm="batch", dropout=0.25, seed=0).summary()
    assert text.splitlines()[1].split() == ["1", "784", "->", "256", "batch", "relu", "0.25", "201,216"]
    assert text.splitlines()[-1] == "203,786 parameters, float32, loss auto"
    assert max(map(len, text.splitlines())) <= 80


# --- Learning --------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", list(ACTIVATIONS)[1:])
def test_learns_exclusive_or(activation):
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    y = np.array([0, 1, 1, 0])
    net = MLP([2, 16, 1], activation=activation, seed=0)
    opt = fastopt.Adam(net.params, lr=0.05)
    for _ in range(300):
        loss, grads = net.train_step(X, y)
        opt.step(grads)
    assert loss < 0.05
    np.testing.assert_array_equal(net.predict(X), y)
