"""fastopt.MLP: dropout, normalization, weights, sparse data, optimizers and threads."""

import pickle

import numpy as np
import pytest
from mlp_helpers import FEATURES, OUTPUTS, N, batch, flat, make

import fastopt
from fastopt.nn import MLP, network
from fastopt.nn._core import blas
from fastopt.nn._core.gemm import Blas
from fastopt.nn.layers import ACTIVATIONS, LOSSES


def test_dropout_differs_per_step_depends_on_the_seed_and_is_off_in_predictions():
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


def test_dropout_preserves_the_mean_of_the_outputs():
    """A wide layer of equal outputs: the outputs that remain are scaled up."""
    net = MLP([1, 20_000, 1], activation="identity", loss="mse", dropout=0.3, seed=0, dtype="float64")
    for array in flat(net.params):
        array[...] = 1.0
    _, grads = net.train_step(np.zeros((4, 1)), np.zeros(4))
    # The gradient of the last weights is the mean over samples of 2 z a, and a is 0 or 1 / 0.7.
    z = np.sqrt(net.train_step(np.zeros((1, 1)), np.zeros(1))[0])
    assert z == pytest.approx(20_001, rel=0.02)
    is_kept = net.train_step(np.zeros((1, 1)), np.zeros(1))[1][1][0] != 0
    assert is_kept.mean() == pytest.approx(0.7, abs=0.02)


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
def test_weight_two_equals_two_samples_and_weight_zero_equals_none(loss):
    net = make(loss, dtype="float64", l2=0.1)
    X, y = batch(loss, n=20)
    weight = np.random.default_rng(0).integers(0, 3, 20)
    many = np.repeat(np.arange(20), weight)
    expected, grads = net.train_step(X[many], y[many])
    grads = [g.copy() for g in flat(grads)]
    actual, weighted = net.train_step(X, y, weight)
    assert actual == pytest.approx(expected, rel=1e-12)
    assert net.evaluate(X, y, weight) == pytest.approx(expected, rel=1e-12)
    for g, e in zip(flat(weighted), grads, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("weight", "message"),
    [([1, 2], "9 real numbers"), ([-1] * 9, "of at least 0"), ([np.nan] * 9, "finite"), (["a"] * 9, "real")],
)
def test_invalid_weights_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        make().train_step(*batch("cross_entropy"), weight)


def test_zero_weights_give_zero_gradients():
    value, grads = make().train_step(*batch("cross_entropy"), np.zeros(N))
    assert value == 0 and not any(g.any() for g in flat(grads))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sparse_data_match_dense_data(dtype):
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
def test_training_data_step_uses_the_selected_samples(dtype, kind):
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
def test_an_update_within_the_backward_pass_equals_a_separate_step(rule, options):
    """The layers are wide enough for their weights to be split into several tasks."""
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


def test_a_step_on_invalid_data_updates_nothing():
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


def accumulating(params):
    return fastopt.Adam(params, accumulate=3)


@pytest.mark.parametrize(
    ("make_opt", "options"),
    [
        (fastopt.Adam, {}),
        (fastopt.Adam, {"max_norm": 0.1}),
        (lambda params: fastopt.Adam(params, skip_nonfinite=True), {}),
        (accumulating, {}),
        (lambda params: fastopt.SGD(params, lookahead=(2, 0.5)), {}),
        (fastopt.LAMB, {}),
        (fastopt.Prodigy, {}),
        (fastopt.Adafactor, {}),
        (lambda params: fastopt.Adam(flat(params)), None),
    ],
)
def test_the_trainer_equals_a_plain_loop(make_opt, options):
    X, y = batch("cross_entropy", n=50)
    net, twin = (MLP([FEATURES, 300, 40, OUTPUTS], seed=1) for _ in range(2))
    opt, twin_opt = make_opt(net.params), make_opt(twin.params)
    if options is None:     # an optimizer whose parameters have another nesting
        opt.step, options = (lambda grads, step=opt.step: step(flat(grads))), {}
        twin_step, twin_opt.step = twin_opt.step, lambda grads: twin_step(flat(grads))
    history = fastopt.Trainer(net, opt, **options).fit(X, y, batch_size=16, epochs=2, verbose=0, seed=3)
    rng, losses = np.random.default_rng(3), []
    for _ in range(2):
        order, total = rng.permutation(50), 0.0
        for begin in range(0, 50, 16):
            rows = order[begin : begin + 16]
            loss, grads = twin.train_step(X[rows], y[rows])
            is_accumulated = make_opt is accumulating
            twin_opt.step(grads, **options, **({"weight": len(rows)} if is_accumulated else {}))
            total += loss * len(rows)
        if is_accumulated:
            twin_opt.flush()
        losses.append(total / 50)
    assert history.history["loss"] == losses
    for a, b in zip(flat(net.params), flat(twin.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("inputs", [1, 2, 63, 64, 65, 129])
def test_few_inputs_and_a_wide_layer(inputs):
    """The first layer is large enough to be split into halves, but may have too few columns."""
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


LARGE = {"norm": ["batch", "layer"], "dropout": 0.2, "activation": ["gelu", "relu"], "seed": 0}


def large_step():
    """A step large enough for several threads."""
    net = MLP([300, 200, 150, 10], loss="cross_entropy", **LARGE)
    rng = np.random.default_rng(0)
    loss, grads = net.train_step(rng.standard_normal((200, 300)), rng.integers(0, 10, 200))
    return loss, [g.copy() for g in flat(grads)]


def test_results_are_identical_for_any_number_of_threads():
    before = fastopt.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            fastopt.set_num_threads(threads)
            results.append(large_step())
    finally:
        fastopt.set_num_threads(before)
    for loss, grads in results[1:]:
        assert loss == results[0][0]
        for g, e in zip(grads, results[0][1], strict=True):
            np.testing.assert_array_equal(g, e)


# Sizes at which products are divided differently: on blocks of few and of many samples; by the inputs or in
# pieces of columns because there are few samples; in pieces of columns and rows because there are many
# weights; products with vectors; tiles of whole rows, and of some columns.
DIVISIONS = [
    ((64, 48, 10), 3), ((64, 48, 10), 700), ((600, 256, 130, 10), 1), ((600, 256, 130, 10), 17),
    ((600, 256, 130, 10), 80), ((600, 256, 130, 10), 300), ((600, 256, 130, 1), 130), ((784, 300, 2), 40),
    ((530, 523, 540, 3), 5), ((530, 523, 540, 3), 640), ((20, 4100, 70), 33), ((401, 33, 10), 61),
]


@pytest.fixture(params=[0, 20_000, 1_000_000])
def small_products(monkeypatch, request):
    """Multiplications up to which a BLAS does not pack; larger products are divided on any processor."""
    monkeypatch.setattr(network, "blas", Blas(**blas.find() | {"small": request.param}))


def division_data(sizes, rows):
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, sizes[0])), rng.standard_normal((rows, sizes[-1]))


@pytest.mark.usefixtures("small_products")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("sizes", "rows"), DIVISIONS)
def test_every_division_of_the_products_computes_the_gradients(sizes, rows, dtype):
    net = MLP(sizes, "tanh", "squared_error", dtype, 0, l2=0.01)
    X, y = (array.astype(dtype) for array in division_data(sizes, rows))
    values = [X]
    for W, b in net.params:
        values.append(np.tanh(values[-1] @ W + b) if b is not net.params[-1][1] else values[-1] @ W + b)
    delta = (values[-1] - y) / y.size
    loss, grads = net.train_step(X, y)
    squares = sum(float((W * W).sum()) for W, _ in net.params)
    assert loss == pytest.approx(0.5 * ((values[-1] - y) ** 2).mean() + 0.005 * squares, rel=1e-5)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    for a, (W, _), (dW, db) in zip(values[-2::-1], net.params[::-1], grads[::-1], strict=True):
        np.testing.assert_allclose(dW, a.T @ delta + 0.01 * W, rtol=1e-3, atol=tolerance)
        np.testing.assert_allclose(db, delta.sum(0), rtol=1e-3, atol=tolerance)
        delta = delta @ W.T * (1 - a * a)
    expected = values[-1].reshape(net.predict(X).shape)     # a single output has the shape (n,)
    np.testing.assert_allclose(net.predict(X), expected, rtol=1e-3, atol=100 * tolerance)


@pytest.mark.parametrize(("sizes", "rows"), DIVISIONS)
def test_every_division_reads_pixels_and_sparse_data_as_their_values(sizes, rows):
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(0)
    X = rng.integers(0, 4, (rows + 5, sizes[0])).astype("uint8")
    y = rng.standard_normal((rows + 5, sizes[-1])).astype("float32")
    index = rng.permutation(rows + 5)[:rows]
    results = []
    for data in X.astype("float32"), X, sparse.csr_matrix(X.astype("float32")):
        net = MLP(sizes, "tanh", "squared_error", seed=0)
        opt = fastopt.SGD(net.params, lr=0.01)
        losses = [net.bind_data(data, y).step(index, 0, rows, opt) for _ in range(2)]
        results.append([losses, *flat(net.params)])
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("small_products")
@pytest.mark.parametrize("options", [{}, {"norm": "batch", "dropout": 0.3, "activation": "gelu"}])
@pytest.mark.parametrize(("sizes", "rows"), DIVISIONS)
def test_every_division_has_the_same_results_for_any_number_of_threads(sizes, rows, options):
    """Of training steps with and without an optimizer in the pass, and of predictions."""
    if options and rows == 1:
        pytest.skip("batch normalization needs several samples")
    X, y = division_data(sizes, rows)
    before = fastopt.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            fastopt.set_num_threads(threads)
            net = MLP(sizes, loss="mse", seed=0, l2=0.1, **options)
            loss, grads = net.train_step(X, y)
            grads = [g.copy() for g in flat(grads)]
            opt = fastopt.Adam(net.params)
            data = net.bind_data(X, y)
            leased = opt._can_lease(net.params)
            losses = [data.step(None, opt=opt) for _ in range(2)]
            results.append((loss, losses, leased, [*grads, *flat(net.params), net.predict(X)]))
    finally:
        fastopt.set_num_threads(before)
    assert results[0][2]
    for *scalars, arrays in results[1:]:
        assert scalars == list(results[0][:3])
        for a, b in zip(arrays, results[0][3], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("small", [0, 20_000])
def test_numpy_multiplies_if_the_blas_is_unknown(monkeypatch, small):
    """The result does not depend on how products are split."""
    loss, grads = large_step()
    detected = blas.find() if small else {}
    monkeypatch.setattr(network, "blas", Blas(**{"name": "another", **detected, "small": small}))
    other_loss, other = large_step()
    assert other_loss == pytest.approx(loss, rel=1e-5)
    for g, e in zip(other, grads, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-3, atol=1e-5)


def test_the_thread_count_of_the_blas_is_restored():
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="threadpoolctl is not installed")

    def threads():
        return [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]

    before = threads()
    make().train_step(*batch("cross_entropy"))
    with pytest.raises(ValueError, match="finite"):
        make().train_step(np.full((2, FEATURES), np.nan), [0, 1])
    assert threads() == before


def test_the_thread_count_of_the_blas():
    if (before := blas.blas.n_threads) is None:
        pytest.skip("the BLAS of NumPy cannot set its number of threads")
    try:
        blas.blas.n_threads = 2
        make().train_step(*batch("cross_entropy"))
        assert blas.blas.n_threads == 2
    finally:
        blas.blas.n_threads = before
    other = Blas("another")
    assert other.n_threads is None
    with pytest.raises(AttributeError, match="the number of threads of another cannot be set"):
        other.n_threads = 2


def test_summary_counts_the_parameters():
    text = MLP([784, 256, 10], norm="batch", dropout=0.25, seed=0).summary()
    assert text.splitlines()[1].split() == ["1", "784", "->", "256", "batch", "relu", "0.25", "201,216"]
    assert text.splitlines()[-1] == "203,786 parameters, float32, loss auto"
    assert max(map(len, text.splitlines())) <= 80


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
