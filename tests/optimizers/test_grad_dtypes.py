"""Gradients of another floating dtype than the parameter's: as if they were converted before the step."""

import tracemalloc

import numpy as np
import pytest
from rules import MATRIX_RULES, RULES, same_bits

import fastopt
from fastopt import functional

DTYPES = (np.float16, np.float32, np.float64)
PAIRS = [(p, g) for p in (np.float32, np.float64) for g in DTYPES if p is not g]
SHAPES = [(17, 30), (300,), (3, 4, 5), (), (0, 3)]
OPTIONS = {
    "plain": ({}, {}),
    "units": ({"centralize": True, "unit_clip": 0.1}, {}),
    "averages": ({"ema": 0.9, "lookahead": (2, 0.5)}, {"zero_grad": True}),
    "clipping": ({"independent_weight_decay": 0.01}, {"max_norm": 1.0, "clip_value": 0.1, "grad_scale": 0.5}),
    "accumulation": ({"accumulate": 2, "skip_nonfinite": True}, {"zero_grad": True}),
}


def draw(rng, dtype):
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def results_of(opt, params):
    ema = opt.ema if opt.ema is not None else []
    return [*params, *(a for state in opt.state for a in state.values()), *ema]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", [*RULES, *MATRIX_RULES], ids=str)
def test_same_bits_as_after_conversion(rule, options):
    options, step_options = OPTIONS[options]
    refused = rule.optimizer.RULE.REFUSED_OPTIONS
    options = {name: value for name, value in options.items() if name not in refused}
    for dtype, grad_dtype in PAIRS:
        for layout in (np.ascontiguousarray, np.asfortranarray):     # one of them is that of the parameter
            rng = np.random.default_rng(0)
            start = draw(rng, dtype)
            first, second = [p.copy() for p in start], [p.copy() for p in start]
            opt, twin = rule.make(first, **options), rule.make(second, **options)
            for _ in range(3):
                grads = [layout(g).reshape(g.shape) for g in draw(rng, grad_dtype)]
                converted = [np.array(g, dtype, order="C") for g in grads]
                opt.step(grads, **step_options)
                twin.step(converted, **step_options)
                assert not step_options.get("zero_grad") or not any(g.any() for g in grads)
            assert opt.grad_norm == twin.grad_norm
            assert all(map(same_bits, results_of(opt, first), results_of(twin, second)))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_functions(rule):
    rng = np.random.default_rng(1)
    for dtype, grad_dtype in PAIRS:
        p, g = rng.standard_normal(300).astype(dtype), rng.standard_normal(300).astype(grad_dtype)
        q = p.copy()
        states = [
            rule.with_scalar_state({name: np.full_like(p, rule.init_value(name)) for name in rule.state})
            for _ in range(2)
        ]
        function = getattr(functional, rule.function)
        function(p, g, **states[0], **rule.arguments(1))
        function(q, g.astype(dtype), **states[1], **rule.arguments(1))
        assert same_bits(p, q)


@pytest.mark.parametrize("sparse", ["lazy", "exact", "dense"])
@pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS)
def test_rows(sparse, dtype, grad_dtype):
    rng = np.random.default_rng(2)
    p = rng.standard_normal((20, 6)).astype(dtype)
    q = p.copy()
    opt, twin = (fastopt.Adam(a, sparse=sparse, weight_decay=0.1) for a in (p, q))
    for i in range(6):
        rows, g = rng.integers(0, 20, 8), rng.standard_normal((8, 6)).astype(grad_dtype)
        if i == 4:
            rows, g = np.arange(20), rng.standard_normal((20, 6)).astype(grad_dtype)
            opt.step(g, max_norm=1.0)
            twin.step(g.astype(dtype), max_norm=1.0)
        elif i % 2:
            opt.step_rows(p, rows, g)
            twin.step_rows(q, rows, g.astype(dtype))
        else:
            opt.step(fastopt.Rows(rows, g), max_norm=1.0)
            twin.step(fastopt.Rows(rows, g.astype(dtype)), max_norm=1.0)
    opt.catch_up()
    twin.catch_up()
    assert same_bits(p, q) and opt.grad_norm == twin.grad_norm


@pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS)
def test_row_wise(dtype, grad_dtype):
    rng = np.random.default_rng(3)
    p = rng.standard_normal((20, 6)).astype(dtype)
    q = p.copy()
    opt, twin = (fastopt.Adagrad(a, rowwise=True) for a in (p, q))
    for _ in range(3):
        g = rng.standard_normal((20, 6)).astype(grad_dtype)
        twin.step(g.astype(dtype), max_norm=1.0)
        opt.step(g, max_norm=1.0, zero_grad=True)
        assert not g.any()
    assert same_bits(p, q) and same_bits(opt.state[0]["sum"], twin.state[0]["sum"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_float16(dtype, isa):
    """Every value, with subnormals, infinities and NaNs."""
    g = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for start in (0, 1):
        p = np.zeros(g.size - start, dtype)
        fastopt.SGD(p, lr=1.0).step(g[start:])
        np.testing.assert_array_equal(p, -g[start:].astype(dtype))
        is_number = (p != 0) & ~np.isnan(p)
        assert (np.signbit(p) != np.signbit(g[start:]))[is_number].all()


def test_extreme_values(isa):
    """Overflow gives an infinity; subnormal numbers are zero, as everywhere in a step."""
    f32, f64 = np.finfo(np.float32), np.finfo(np.float64)
    g = np.array([1e300, -1e300, np.inf, np.nan, 1e-50, float(f32.tiny), float(f32.tiny) / 2, f64.tiny, 0.0])
    p = np.zeros(g.size, np.float32)
    fastopt.SGD(p, lr=1.0).step(g)
    np.testing.assert_array_equal(p, [-np.inf, np.inf, -np.inf, np.nan, 0, -f32.tiny, 0, 0, 0])
    q = np.zeros(3)
    fastopt.SGD(q, lr=1.0).step(np.array([f32.smallest_subnormal, f32.tiny, f32.max]))
    np.testing.assert_array_equal(q, [0, -float(f32.tiny), -float(f32.max)])


@pytest.mark.parametrize("grad", [1e300, np.inf, np.nan])
def test_a_gradient_that_is_infinite_after_conversion_is_skipped(grad):
    p = np.ones(300, np.float32)
    g = np.ones(300)
    opt = fastopt.SGD(p, lr=1.0, skip_nonfinite=True)
    g[100] = grad
    opt.step(g)
    assert opt.skipped_steps == 1 and (p == 1).all()
    g[100] = 1e30   # the sum of squares is finite in double
    opt.step(g)
    assert opt.steps == 1


def test_the_norm_is_that_of_the_converted_gradient():
    g = np.array([1 / 3, 1e-60, 7.0])
    opt = fastopt.SGD(np.zeros(3, np.float32))
    opt.step(g, max_norm=1.0)
    assert opt.grad_norm == np.sqrt((g.astype(np.float32).astype(np.float64) ** 2).sum())


def test_the_dtype_may_change_from_step_to_step(threads):
    threads(3)
    rng = np.random.default_rng(4)
    p = [rng.standard_normal(n).astype(np.float32) for n in (100, 300_000)]
    q = [a.copy() for a in p]
    opt, twin = fastopt.Adam(p), fastopt.Adam(q)
    for dtype in (*DTYPES, np.float16, np.float64, np.float32):
        grads = [rng.standard_normal(a.size).astype(dtype) for a in p]
        opt.step(grads)
        twin.step([g.astype(np.float32) for g in grads])
    assert all(map(same_bits, p, q))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_buffer_that_is_viewed_in_another_dtype(dtype):
    """The same address and shape do not make it the gradient of the last step."""
    memory = np.zeros(100, np.float64)
    p = np.zeros(20, np.float32)
    opt = fastopt.SGD(p, lr=1.0)
    for other in (*DTYPES, dtype):
        g = memory.view(other)[:20]
        g[...] = 0.5
        p[...] = 0
        opt.step(g)
        assert (p == -0.5).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_that_overlaps_its_parameter(dtype):
    memory = np.zeros(100, np.float32)
    p, g = memory[:20], memory[10:].view(dtype)[:20]
    g[...] = 1
    p[...] = 3
    expected = (p - g).astype(np.float32)
    fastopt.SGD(p, lr=1.0).step(g)
    assert same_bits(p, expected)


@pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS)
def test_converting_allocates_nothing(dtype, grad_dtype):
    p, g = np.ones(100_000, dtype), np.ones(100_000, grad_dtype)
    opt = fastopt.Adam(p, lr=0.1)
    opt.step(g, max_norm=1.0), opt.step(g, max_norm=1.0)    # after the first step the state is no longer new
    tracemalloc.start()
    opt.step(g, max_norm=1.0)
    assert tracemalloc.get_traced_memory()[1] < 2000
    tracemalloc.stop()


class Network:
    """Least squares in float32, with gradients as `np.random.randn` data give them."""

    def __init__(self):
        self.params = [[np.zeros((3, 2), np.float32), np.zeros(2, np.float32)]]

    def train_step(self, X, y):
        (W, b), = self.params
        error = X.astype(np.float64) @ W + b - y
        return float((error**2).sum()), [(X.T.astype(np.float64) @ error / len(X), error.mean(axis=0))]

    def predict(self, X):
        (W, b), = self.params
        return X @ W + b


def test_networks_with_float64_gradients():
    rng = np.random.default_rng(5)
    X = rng.standard_normal((64, 3))
    y = X @ rng.standard_normal((3, 2)) + 1
    net = Network()
    fastopt.Trainer(net, fastopt.Adam(net.params, lr=0.1)).fit(X, y, epochs=60, batch_size=16)
    assert np.abs(net.predict(X) - y).max() < 0.05
