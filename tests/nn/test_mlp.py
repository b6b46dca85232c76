"""fastopt.MLP: gradients, losses, arrays, predictions and initial weights."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mlp_helpers import FEATURES, OUTPUTS, N, batch, flat, make

from fastopt.nn import MLP, check_gradients
from fastopt.nn.layers import ACTIVATIONS, LOSSES

# --- Gradients and losses --------------------------------------------------------------------


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_match_central_differences(activation, loss, l2):
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
def test_gradients_with_options_match_central_differences(options, loss, weighted):
    """Thirty-five samples form three blocks, the last one incomplete."""
    net = make(loss, **{"activation": "tanh", "dtype": "float64", **options})
    X, y = batch(loss, n=35)
    weight = np.random.default_rng(3).uniform(0, 2, 35) if weighted else None
    assert check_gradients(net, X, y, weight, eps=1e-5) < 1e-7


def test_check_gradients_detects_a_wrong_gradient_and_leaves_the_model_unchanged():
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
    rounded = Wrong([FEATURES, 7, 6, OUTPUTS], dtype="float32", seed=1)
    assert check_gradients(rounded, X.astype(np.float32), y) < 1e-2


def softmax(z):
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_matches_the_textbook_formula(loss):
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
    """A model whose only layer returns its input."""
    net = MLP([2, 2], loss=loss, dtype=dtype)
    net.params[0][0][...] = np.eye(2)
    value, grads = net.train_step(logits, y)
    assert value == pytest.approx(expected, rel=1e-6)
    assert all(np.isfinite(g).all() for g in flat(grads))
    assert np.isfinite(net.predict_proba(logits)).all()


def test_l2_excludes_biases():
    plain, decayed = make(l2=0.0), make(l2=0.5)
    X, y = batch("cross_entropy")
    _, expected = plain.train_step(X, y)
    _, grads = decayed.train_step(X, y)
    for (W, _), (dW0, db0), (dW, db) in zip(decayed.params, expected, grads, strict=True):
        np.testing.assert_array_equal(dW, dW0 + np.float32(0.5) * W)
        np.testing.assert_array_equal(db, db0)


# --- Arrays: layout, identity and reuse ------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_are_views_of_one_contiguous_array(dtype):
    net = make(dtype=dtype)
    assert [p.shape for p in flat(net.params)] == [(5, 7), (7,), (7, 6), (6,), (6, 4), (4,)]
    address = net.params[0][0].ctypes.data
    assert address % 64 == 0
    for p in flat(net.params):
        assert p.base is net.params[0][0].base and p.flags.c_contiguous and p.dtype == dtype
        assert p.ctypes.data == address
        address += p.nbytes


def test_gradients_are_the_same_arrays_at_every_step_in_the_order_of_params():
    net = make()
    _, first = net.train_step(*batch("cross_entropy"))
    _, second = net.train_step(*batch("cross_entropy", n=3))
    assert net.grads_reversed is False
    assert all(a is b for a, b in zip(flat(first), flat(second), strict=True))
    assert [g.shape for g in flat(first)] == [p.shape for p in flat(net.params)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_steps_are_independent(activation, loss):
    """A sequence of batches of any sizes gives the same results as a new model for each batch."""
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
    assert peak < 20_000  # one activation array takes 307 kB


@pytest.mark.parametrize("kind", ["uint8", "int64", "bool", "float16", "float32", "float64"])
def test_any_real_input_is_converted(kind):
    X = np.random.default_rng(0).integers(0, 2, (N, FEATURES)).astype(kind)
    _, y = batch("cross_entropy")
    value, _ = make().train_step(X, y)
    assert value == make().train_step(X.astype(np.float32), y)[0]


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda X: X[:, ::-1][:, ::-1], np.flip])
def test_strided_input_is_read_correctly(layout):
    X, y = batch("cross_entropy", dtype=np.float32)
    strided = layout(X)
    a, grads = make().train_step(strided, y)
    b, expected = make().train_step(np.ascontiguousarray(strided), y)
    assert a == pytest.approx(b, rel=1e-6)
    for g, e in zip(flat(grads), flat(expected), strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-7)


def test_inputs_are_not_modified():
    X, y = batch("mse", dtype=np.float32)
    originals = X.copy(), y.copy()
    net = make("mse", activation="elu")
    net.train_step(X, y)
    net.predict(X)
    np.testing.assert_array_equal(X, originals[0])
    np.testing.assert_array_equal(y, originals[1])


# --- Loss selection and predictions ----------------------------------------------------------


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
def test_auto_loss_depends_on_the_first_targets(y, outputs, expected):
    X = np.ones((3, 2))
    net = MLP([2, outputs], seed=0)
    assert net.loss == "auto"
    value, _ = net.train_step(X, y)
    assert net.loss == expected
    assert value == MLP([2, outputs], seed=0, loss=expected).train_step(X, y)[0]


def test_auto_loss_is_not_resolved_by_evaluation_or_invalid_targets():
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


def test_predictions_of_multiple_labels():
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
def test_evaluation_in_chunks(loss):
    net = make(loss, dtype="float64")
    X, y = batch(loss, n=2500)
    loss_of_all, _ = net.train_step(X, y)
    assert net.evaluate(X, y) == pytest.approx(loss_of_all, rel=1e-12)
    parts = [net.predict(X[i : i + 700]) for i in range(0, 2500, 700)]
    np.testing.assert_allclose(net.predict(X), np.concatenate(parts), rtol=1e-12)


def test_memory_of_predict_is_bounded():
    net = MLP([2, 2000, 2], loss="cross_entropy", seed=0)
    X = np.zeros((50_000, 2), np.float32)
    tracemalloc.start()
    net.predict(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6  # all samples at once would take 400 MB


def test_predictions_from_several_threads():
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
def test_variance_of_initial_weights(activation, init, hidden, last):
    net = MLP([400, 300, 200], activation=activation, init=init, seed=0)
    for (W, b), scheme in zip(net.params, (hidden, last), strict=True):
        n, m = W.shape
        variance = 2 / n if scheme == "he" else 2 / (n + m)
        assert W.var() == pytest.approx(variance, rel=0.03)
        assert abs(W.mean()) < 0.02 * np.sqrt(variance)
        if scheme == "glorot":
            assert np.abs(W).max() <= np.float32(np.sqrt(3 * variance))
        assert not b.any()


def test_seed_determines_the_weights_of_both_dtypes():
    a, b, c = make(seed=5), make(seed=5, dtype="float64"), make(seed=6)
    for x, y, z in zip(flat(a.params), flat(b.params), flat(c.params), strict=True):
        np.testing.assert_array_equal(x, y.astype(np.float32))
        assert not x.any() or (x != z).any()


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_predictions_of_few_samples_use_the_current_weights(norm):
    """The pass that is kept for them is not used with other arrays, nor by two threads at once."""
    X, y = batch("cross_entropy")
    net, few, other = make("cross_entropy", norm=norm), X[:2], make("cross_entropy", norm=norm, seed=5)
    for _ in range(3):
        net.train_step(X, y)
        for layer, grads in zip(net.params, net._grads, strict=True):
            for p, g in zip(layer, grads, strict=True):
                p -= g
        expected = net.predict_proba(X)[:2]
        for _ in range(2):
            np.testing.assert_allclose(net.predict_proba(few), expected, rtol=1e-6)
    net.params[1][0] = other.params[1][0].copy()        # replaced arrays
    for layer in net.running:
        layer[:] = [array + 1 for array in layer]
    np.testing.assert_allclose(net.predict_proba(few), net.predict_proba(X)[:2], rtol=1e-6)
    samples = np.repeat(X, 20, axis=0)
    expected = net.predict_proba(samples)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: net.predict_proba(samples[i : i + 1]), range(len(samples))))
    np.testing.assert_allclose(np.concatenate(results), expected, rtol=1e-6)
