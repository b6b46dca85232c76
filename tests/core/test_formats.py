"""Arrays of 16 bits: rounding, and every optimizer with them, equal to the reference bit for bit."""

import itertools

import numpy as np
import pytest
from formats import DTYPES, ROUNDINGS, Twin, bits_of, rounded
from rules import MATRIX_RULES, RULES

import fastopt
from fastopt import functional, reference
from fastopt import reference_formats as oracle
from fastopt._core.formats import BFLOAT16, FLOAT16, decode, encode

SHAPES = [(3, 5), (), (0, 4), (513,), (300, 2)]
ANY_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
GRAD_DTYPES = [np.dtype(np.float32), np.dtype(np.float64), FLOAT16, BFLOAT16]


def set_to(values, dtype, rounding="stochastic", seed=0):
    """Bits that a kernel stores for float32 values: a step of SGD with learning rate -1 from zero."""
    p = encode(np.zeros(len(values), np.float32), dtype)
    fastopt.SGD(p, lr=1.0, maximize=True, rounding=rounding, seed=seed).step(values)
    return bits_of(p)


def interesting_values():
    """Around every 16-bit number of both formats, and what has no neighbor."""
    every = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # of signaling NaNs, on aarch64
        half = every.view(np.float16).astype(np.float32)
    wide = (every.astype(np.uint32) << 16).view(np.float32)
    distances = (0, 1, 0xFFF, 0x1000, 0x7FFF, 0x8000)
    around = [x.view(np.uint32) + np.uint32(d) for x in (half, wide) for d in distances]
    values = np.concatenate(around).view(np.float32)
    is_subnormal = (abs(values) < np.finfo(np.float32).tiny) & (values != 0)
    return values[~is_subnormal]


# --- Rounding ----------------------------------------------------------------------------------------


@ANY_DTYPE
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_value_is_rounded_as_by_the_reference(dtype, rounding, isa):
    values = interesting_values()
    with np.errstate(invalid="ignore"):
        expected = rounded(0 + values, dtype, rounding, 3, 1, 0)
    np.testing.assert_array_equal(set_to(values, dtype, rounding, 3), expected)


def test_rounding_to_nearest_is_numpys():
    values = interesting_values()
    values = values[~np.isnan(values)]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(oracle.round_float16(values), values.astype(np.float16).view(np.uint16))


def test_rounding_to_nearest_is_that_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    values = interesting_values()
    values = values[~np.isnan(values)]
    expected = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(oracle.round_bfloat16(values), expected)
    np.testing.assert_array_equal(bits_of(encode(values, BFLOAT16)), expected)


@ANY_DTYPE
def test_numbers_of_the_format_stay(dtype, isa):
    """Also infinities and NaNs; zero keeps its sign."""
    every = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        values = decode(every.view(dtype))
    if dtype == BFLOAT16:       # flushed to zero
        is_subnormal = (abs(values) < np.finfo(np.float32).tiny) & (values != 0)
        every, values = every[~is_subnormal], values[~is_subnormal]
    for seed in range(3):
        p = every.view(dtype).copy()
        fastopt.SGD(p, lr=0.0, seed=seed).step(np.zeros(len(p), np.float32))
        is_nan = np.isnan(values)
        np.testing.assert_array_equal(bits_of(p)[~is_nan], every[~is_nan])
        assert np.isnan(decode(p)[is_nan]).all()


@ANY_DTYPE
@pytest.mark.parametrize("value", [1.0, 1.001, -0.3337, 3e-6, -1e-7, 123.456])
def test_stochastic_rounding_is_right_on_average(dtype, value):
    """Over elements and over steps: the mean is within five standard errors of the value."""
    x = np.float32(value)
    n = 20_000
    over_elements = decode(set_to(np.full(n, x), dtype).view(dtype))
    over_steps = decode(np.array([
        rounded(np.full(300, x), dtype, "stochastic", 7, step, 0)[257] for step in range(1, 4001)
    ]).view(dtype))
    below, above = over_elements.min(), over_elements.max()
    assert below <= x <= above and set(np.unique(over_elements)) <= {below, above}
    spacing = float(above) - float(below)
    for sample in (over_elements, over_steps):
        assert abs(sample.mean(dtype=float) - float(x)) <= 5 * spacing / 2 / np.sqrt(len(sample))


def test_noise_differs_by_everything_it_depends_on():
    words = {
        oracle.noise(*key, 512).tobytes()
        for key in itertools.product((0, 1, 2**64 - 1), (1, 2, 1 << 40), (0, 1), (0, 1))
    }
    assert len(words) == 36
    one, two = oracle.noise(0, 1, 0, 0, 100_000), oracle.noise(0, 2, 0, 0, 100_000)
    for bit in range(32):
        assert 0.48 < (one >> bit & 1).mean() < 0.52
        assert 0.48 < ((one ^ two) >> bit & 1).mean() < 0.52
    np.testing.assert_array_equal(oracle.noise(0, 1, 0, 0, 300), one[:300])


# --- Optimizers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [*RULES, *MATRIX_RULES], ids=str)
@ANY_DTYPE
def test_every_optimizer_equals_float32_and_rounding(rule, dtype, isa):
    rng = np.random.default_rng(0)
    for i, rounding in enumerate(ROUNDINGS):
        twin = Twin(rule.make, [rng.standard_normal(s) for s in SHAPES], dtype, rounding, i)
        for step in range(3):
            dtypes = [GRAD_DTYPES[(step + k) % 4] for k in range(len(SHAPES))]
            twin.step([encode(rng.standard_normal(s), d) for s, d in zip(SHAPES, dtypes, strict=True)])


@pytest.mark.parametrize("rule", RULES, ids=str)
@ANY_DTYPE
def test_functions_equal_the_reference(rule, dtype, isa):
    rng = np.random.default_rng(1)
    for rounding in ROUNDINGS:
        p = encode(rng.standard_normal(700), dtype)
        q = p.copy()
        states = [
            rule.with_scalar_state({n: np.full(700, rule.init_value(n), np.float32) for n in rule.state})
            for _ in range(2)
        ]
        for step in (1, 2):
            g = encode(rng.standard_normal(700), GRAD_DTYPES[step])
            more = {**rule.arguments(step), "rounding": rounding, "seed": step}
            getattr(functional, rule.function)(p, g, **states[0], **more)
            getattr(reference, rule.function)(q, g, **states[1], **more)
            np.testing.assert_array_equal(bits_of(p), bits_of(q))
            assert all((states[0][n] == states[1][n]).all() for n in rule.state)


@pytest.mark.parametrize("param_dtype", [np.dtype(np.float32), np.dtype(np.float64)])
def test_gradients_of_bfloat16(param_dtype, isa):
    rng = np.random.default_rng(2)
    p = rng.standard_normal(5000).astype(param_dtype)
    q = p.copy()
    opt, twin = fastopt.AdamW(p), fastopt.AdamW(q)
    for max_norm in (None, 1.0):
        g = encode(rng.standard_normal(5000), BFLOAT16)
        opt.step(g, max_norm=max_norm, zero_grad=True)
        assert not bits_of(g).any()
    rng = np.random.default_rng(2)
    rng.standard_normal(5000)
    for max_norm in (None, 1.0):
        twin.step(decode(encode(rng.standard_normal(5000), BFLOAT16), param_dtype), max_norm=max_norm)
    assert p.tobytes() == q.tobytes() and opt.grad_norm == twin.grad_norm


@ANY_DTYPE
def test_bits_do_not_depend_on_threads(dtype, isa, threads):
    results = set()
    for n in (1, 2, 3):
        threads(n)
        rng = np.random.default_rng(3)
        p = [encode(rng.standard_normal(size), dtype) for size in (70_001, 1, 300_000)]
        opt = fastopt.AdamW(p, seed=9)
        for _ in range(2):
            opt.step([encode(rng.standard_normal(a.size), dtype) for a in p])
        results.add(b"".join(a.tobytes() for a in p))
    assert len(results) == 1


@ANY_DTYPE
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_have_the_bits_of_a_dense_step(dtype, order):
    """Of rows in C order, a step on all of them is the dense one; any step equals the oracle's rows."""
    rng = np.random.default_rng(4)
    start = rng.standard_normal((50, 7))
    p, q = (np.array(encode(start, dtype), order=order) for _ in range(2))
    lazy, dense = fastopt.AdamW(p, seed=1), fastopt.AdamW(q, seed=1, sparse="dense")
    for _ in range(3):
        g = encode(rng.standard_normal((50, 7)), dtype)
        rows = rng.permutation(50)
        lazy.step_rows(p, rows, g[rows])
        dense.step_rows(q, rows, g[rows])
        if order == "C":
            assert p.tobytes() == q.tobytes()
        assert (abs(decode(p) - decode(q)) <= 0.1).all()
    before = p.copy()
    lazy.step_rows(p, [3, 4, 3], encode(np.ones((3, 7)), dtype))
    changed = (bits_of(p) != bits_of(before)).any(axis=1)
    assert changed.tolist() == [i in (3, 4) for i in range(50)]


@ANY_DTYPE
def test_rowwise_adagrad(dtype):
    rng = np.random.default_rng(5)
    twin = Twin(lambda p, **more: fastopt.Adagrad(p, lr=0.1, rowwise=True, **more),
                [rng.standard_normal((40, 6)).astype(np.float32)], dtype)
    for _ in range(3):
        twin.step([encode(rng.standard_normal((40, 6)), dtype)])


@ANY_DTYPE
def test_other_layouts(dtype):
    rng = np.random.default_rng(6)
    for like in (np.asfortranarray, lambda a: a[::-1].copy()[::-1]):
        twin = Twin(fastopt.Adam, [rng.standard_normal((40, 6))], dtype, "nearest", like=like)
        for _ in range(3):
            twin.step([encode(rng.standard_normal((40, 6)), dtype)])


@ANY_DTYPE
def test_averages_keep_their_bits(dtype):
    """`swapped_ema` rounds the float32 averages into the parameters, and gives both back."""
    rng = np.random.default_rng(7)
    p = encode(rng.standard_normal((30, 4)), dtype)
    for opt, context in (
        (fastopt.Adam(p, ema=0.9, lr=0.1), "swapped_ema"), (fastopt.SGDScheduleFree(p, lr=0.1), "averaged"),
    ):
        for _ in range(3):
            opt.step(rng.standard_normal((30, 4)).astype(np.float32))
        before = p.copy()
        average = opt.ema.copy() if context == "swapped_ema" else opt._averages()[0]
        with getattr(opt, context)():
            np.testing.assert_array_equal(bits_of(p), bits_of(encode(average, dtype)))
        assert p.tobytes() == before.tobytes()
        if context == "swapped_ema":
            assert opt.ema.dtype == np.float32 and opt.ema.tobytes() == average.tobytes()
            with opt.swapped_ema():
                p[0, 0] = encode(5.0, dtype)
            assert opt.ema[0, 0] == 5.0 and opt.ema[1:].tobytes() == average[1:].tobytes()
        else:
            opt.keep_average()
            np.testing.assert_array_equal(bits_of(p), bits_of(encode(average, dtype)))


def test_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    rng = np.random.default_rng(8)
    p = {"W": rng.standard_normal((64, 10)).astype(ml_dtypes.bfloat16), "b": np.zeros(10, np.float32)}
    q = {"W": p["W"].view(BFLOAT16).copy(), "b": p["b"].copy()}
    opt, twin = fastopt.Adam(p), fastopt.Adam(q)
    for _ in range(3):
        g = {"W": rng.standard_normal((64, 10)), "b": np.ones(10)}
        g = {name: a.astype(ml_dtypes.bfloat16) for name, a in g.items()}
        opt.step(g)
        twin.step({name: a.view(BFLOAT16) for name, a in g.items()})
    assert p["W"].dtype == ml_dtypes.bfloat16 and p["W"].tobytes() == q["W"].tobytes()
    assert p["b"].tobytes() == q["b"].tobytes()
    opt.step_rows(p["W"], [1], np.ones((1, 10), ml_dtypes.bfloat16))
    swapped = p["W"].astype(p["W"].dtype.newbyteorder())
    if swapped.dtype.byteorder != p["W"].dtype.byteorder:
        with pytest.raises(TypeError, match="another byte order"):
            fastopt.Adam(swapped)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rounding": "up"}, ValueError, "rounding: expected one of stochastic, nearest, got 'up'"),
        ({"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"seed": 2**64}, ValueError, r"seed: expected less than 2\*\*64, got 18446744073709551616"),
        ({"seed": 1.5}, TypeError, "seed: expected an integer, got 1.5"),
        ({"sparse": "exact"}, ValueError, "sparse: 'exact' needs parameters of float32 or float64, got bf"),
    ],
)
def test_bad_input(options, error, message):
    p = encode(np.ones((3, 2)), BFLOAT16)
    with pytest.raises(error, match=f"^{message}"):
        fastopt.Adam(p, **options)
    if "sparse" not in options:
        with pytest.raises(error, match=f"^{message}"):
            functional.sgd_(p, p.copy(), lr=0.1, **options)
    assert bits_of(p).tolist() == bits_of(encode(np.ones((3, 2)), BFLOAT16)).tolist()


def test_unknown_argument_of_a_function():
    with pytest.raises(TypeError, match=r"sgd_\(\): got an unexpected keyword argument 'rounds'"):
        functional.sgd_(np.ones(3), np.ones(3), lr=0.1, rounds="nearest")
