"""State of fewer bits: every optimizer equals float32 and rounding, bit for bit."""

import inspect

import numpy as np
import pytest
from formats import DTYPES, STATE_DTYPES, Twin
from rules import RULES

import fastopt
from fastopt import functional, reference
from fastopt import reference_formats as oracle
from fastopt._core.encoded import Encoded, from_export
from fastopt._core.formats import BFLOAT16, FLOAT32, decode, encode

ANY_STATE = pytest.mark.parametrize("state_dtype", STATE_DTYPES)
SUPPORTED = [rule for rule in RULES if "state_dtype" not in rule.optimizer.RULE.REFUSED_OPTIONS]
SHAPES = [(70, 61), (3,), (0, 4)]       # the first one is not a multiple of a block
# Kinds of the state arrays of functions, by argument.
KINDS = {
    "adam_": {"exp_avg": "signed", "exp_avg_sq": "nonnegative"},
    "adagrad_": {"acc": "precise"},
    "lion_": {"exp_avg": "signed"},
    "momentum_": {"buf": "signed"},
    "ftrl_": {"accumulator": "precise", "linear": None},
    "lamb_": {"exp_avg": "signed", "exp_avg_sq": "nonnegative"},
    "adan_": {
        "exp_avg": "signed", "exp_avg_diff": "signed", "exp_avg_sq": "nonnegative", "pre_grad": "signed",
    },
}
PARAM_DTYPES = {"float32": FLOAT32, **DTYPES}


@pytest.mark.parametrize("rule", SUPPORTED, ids=str)
@ANY_STATE
def test_every_optimizer_equals_float32_and_rounding(rule, state_dtype, isa):
    for seed, (dtype, block_size) in enumerate(zip(PARAM_DTYPES.values(), (256, 512, 128), strict=True)):
        rng = np.random.default_rng(seed)
        twin = Twin(
            rule.make, [rng.standard_normal(s) for s in SHAPES], dtype, seed=seed, state_dtype=state_dtype,
            block_size=block_size,
        )
        for step in range(3):
            twin.step([encode(rng.standard_normal(s) * 10.0**-step, BFLOAT16) for s in SHAPES])


@ANY_STATE
def test_bits_do_not_depend_on_threads(state_dtype, isa, threads):
    results = set()
    for n in (1, 2, 3):
        threads(n)
        rng = np.random.default_rng(3)
        p = [rng.standard_normal(size).astype(np.float32) for size in (70_001, 1, 300_000)]
        opt = fastopt.AdamW(p, seed=9, state_dtype=state_dtype)
        for _ in range(2):
            opt.step([rng.standard_normal(a.size).astype(np.float32) for a in p])
        results.add(b"".join(a.tobytes() for a in [*p, *(s for state in opt.state for s in state.values())]))
    assert len(results) == 1


def state_of(state_dtype, kind, size, block_size):
    """Zeros as a state argument of a function."""
    if kind is None:
        return np.zeros(size, np.float32)
    if state_dtype == "bfloat16" or kind == "precise":
        return np.zeros(size, BFLOAT16)
    codes = np.zeros(size, np.int8 if kind == "signed" else np.uint8)
    return codes, np.zeros(-(-size // block_size), np.float32)


@pytest.mark.parametrize("function", ["adam_", "adagrad_", "lion_", "momentum_", "ftrl_", "lamb_", "adan_"])
@ANY_STATE
def test_functions_equal_the_reference(function, state_dtype, isa):
    size, rng = 1000, np.random.default_rng(2)
    update = getattr(functional, function)
    names = [n for n in inspect.signature(update).parameters if n in KINDS[function]]
    for block_size, dtype in ((128, FLOAT32), (256, BFLOAT16), (512, FLOAT32)):
        p = encode(rng.standard_normal(size), dtype)
        q = p.copy()
        states, others = (
            {n: state_of(state_dtype, KINDS[function][n], size, block_size) for n in names} for _ in range(2)
        )
        for step in (1, 2, 3):
            g = rng.standard_normal(size).astype(np.float32)
            more = {"step": step} if "step" in inspect.signature(update).parameters else {}
            update(p, g, **states, lr=0.1, seed=step, **more)
            getattr(reference, function)(q, g, **others, lr=0.1, seed=step, **more)
            assert p.tobytes() == q.tobytes()
            for name in names:
                for a, b in zip(*(memory(s[name]) for s in (states, others)), strict=True):
                    assert a.tobytes() == b.tobytes()
        assert all(any(a.tobytes()) for name in names for a in memory(states[name]))


def memory(state):
    return state if isinstance(state, tuple) else (state,)


def test_bad_state_of_functions():
    def step(m, v, p=None):
        p = np.ones(300, np.float32) if p is None else p
        functional.adam_(p, np.ones(300, np.float32), m, v, lr=0.1, step=1)

    m, v = (state_of("int8", kind, 300, 256) for kind in ("signed", "nonnegative"))
    step(m, v)
    before = [a.tobytes() for a in (*m, *v)]
    shared = np.zeros(300, np.int8)
    for first, second, message in (
        (v, v, "exp_avg: expected float32, bfloat16 or codes of int8, got uint8"),
        ((m[0][1:], m[1]), v, "exp_avg: expected shape and memory layout of p"),
        ((m[0], np.zeros(5, np.float32)), v, "scales: expected one per block of 128, 256, 512 codes, got 5"),
        ((shared, m[1]), (shared.view(np.uint8), v[1]), "exp_avg and exp_avg_sq share memory"),
        (m, np.zeros(300, np.float64), "exp_avg_sq: expected"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            step(first, second)
    with pytest.raises(TypeError, match="exp_avg: expected float64 with these arrays, got fewer bits"):
        step(m, v, np.ones(300))
    with pytest.raises(TypeError, match="z: expected float32, got bfloat16"):
        functional.sgd_schedule_free_(np.ones(300, np.float32), np.ones(300, np.float32),
                                      np.zeros(300, BFLOAT16), {}, lr=0.1, step=1)
    assert before == [a.tobytes() for a in (*m, *v)]


def encoded_arrays(opt):
    return [a for state in opt.state for a in state.stored.values() if isinstance(a, Encoded)]


@ANY_STATE
@pytest.mark.parametrize("like", [np.array, np.asfortranarray, lambda a: np.array(a)[::-1].copy()[::-1]])
def test_state_dicts_resume_bit_for_bit(state_dtype, like, tmp_path):
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal((70, 61)), rng.standard_normal((6, 70, 61)).astype(np.float32)

    def make(values):
        p = like(np.asarray(values, np.float32))
        return p, fastopt.Adam(p, state_dtype=state_dtype, seed=4)

    p, opt = make(start)
    for g in grads[:3]:
        opt.step(g)
    opt.save(tmp_path / "state.npz")
    q, resumed = make(p)
    resumed.load(tmp_path / "state.npz")
    for g in grads[3:]:
        opt.step(g), resumed.step(g)
    assert p.tobytes() == q.tobytes()
    for a, b in zip(encoded_arrays(opt), encoded_arrays(resumed), strict=True):
        assert a.stored.tobytes() == b.stored.tobytes() and a.scales.tobytes() == b.scales.tobytes()
    assert len(encoded_arrays(opt)) == 2


@ANY_STATE
def test_states_are_converted_when_the_storage_differs(state_dtype):
    """From and to float32 state, another block size and another memory layout."""
    rng = np.random.default_rng(1)
    p = rng.standard_normal((70, 61)).astype(np.float32)
    opt = fastopt.Adam(p, state_dtype=state_dtype)
    opt.step(p.copy())
    saved = opt.state_dict()
    q = np.asfortranarray(p)
    for other in (
        fastopt.Adam(p.copy()), fastopt.Adam(p.copy(), state_dtype="int8", block_size=128),
        fastopt.Adam(q, state_dtype=state_dtype),
    ):
        other.load_state_dict(saved)
        for name in ("exp_avg", "exp_avg_sq"):
            np.testing.assert_allclose(other.state[0][name], opt.state[0][name], rtol=0.1, atol=3e-3)
    plain = fastopt.Adam(p.copy())
    plain.load_state_dict(saved)
    np.testing.assert_array_equal(plain.state[0]["exp_avg_sq"], opt.state[0]["exp_avg_sq"])
    opt.load_state_dict(plain.state_dict())
    tolerance = 0.0 if state_dtype == "bfloat16" else 0.1      # the scale of a block may change
    np.testing.assert_allclose(
        opt.state[0]["exp_avg"], plain.state[0]["exp_avg"], rtol=tolerance, atol=tolerance / 30
    )


def test_reading_and_setting_state():
    p = np.ones(5000, np.float32)
    opt = fastopt.Adam([p, np.ones(10, np.float32)], state_dtype="int8")
    opt.step([p.copy(), np.ones(10, np.float32)])
    state = opt.state[0]
    assert state["exp_avg"].dtype == np.float32 and not state["exp_avg"].flags.writeable
    np.testing.assert_allclose(state["exp_avg"], 0.1, rtol=0.02)
    state["exp_avg_sq"] = np.linspace(0, 1, 5000)
    np.testing.assert_allclose(state["exp_avg_sq"], np.linspace(0, 1, 5000), rtol=0.04, atol=1e-5)
    assert opt.state[1].stored["exp_avg"].dtype == np.float32
    assert opt.state_nbytes == 2 * (5000 + 4 * 20) + 2 * 4 * 10
    with pytest.raises(ValueError, match="exp_avg: expected shape"):
        state["exp_avg"] = np.ones(3)


@pytest.mark.parametrize(
    ("state_dtype", "nbytes"), [("float32", 8 * 8192), ("bfloat16", 4 * 8192), ("int8", 2 * (8192 + 4 * 32))]
)
def test_bytes_of_the_state(state_dtype, nbytes):
    assert fastopt.AdamW(np.ones(8192, np.float32), state_dtype=state_dtype).state_nbytes == nbytes


@pytest.mark.parametrize("signed", [True, False])
def test_codes(signed):
    """Every code is encoded to itself; values between two codes to one of them, right on average."""
    every = np.arange(256, dtype=np.uint8)
    every = every[every != 0x80] if signed else every       # minus zero
    block = np.concatenate([every, np.zeros(256 - len(every), np.uint8)])
    values = oracle.decode_blocks(block, np.ones(1, np.float32), signed, 256)
    scale = abs(values).max()
    for seed in range(3):
        codes, _ = oracle.encode_blocks(values / scale, signed, 256, oracle.noise(seed, 1, 0, 1, 256))
        again = oracle.decode_blocks(codes, np.ones(1, np.float32), signed, 256)
        assert (abs(codes.astype(int) - block) <= 1).all()
        np.testing.assert_allclose(again, values, rtol=0.07, atol=0.01)
    rng = np.random.default_rng(0)
    x = np.append(rng.random(255), 1.0).astype(np.float32) ** 4
    total = np.zeros(256)
    for step in range(2000):
        codes, scales = oracle.encode_blocks(x, signed, 256, oracle.noise(0, step, 0, 1, 256))
        total += oracle.decode_blocks(codes, scales, signed, 256)
    spacing = np.maximum(x, 0.07) / 16 if signed else np.maximum(x / 16, 1e-6)
    is_exact = x > (0 if signed else 2e-6)
    assert (abs(total / 2000 - x) <= 5 * spacing / np.sqrt(2000) + 1e-6)[is_exact].all()


@pytest.mark.parametrize("factor", [1e-37, 1e-30, 1e-10, 1.0, 1e10, 1e30, 3e38])
def test_values_of_any_size(factor, isa):
    """A second moment that is not zero is not stored as zero; blocks of zeros stay zero."""
    rng = np.random.default_rng(5)
    v = np.zeros(5120, np.float32)
    v[256:] = rng.random(4864) ** 8 * np.float32(factor)
    v[-1] = factor
    v[abs(v) < np.finfo(np.float32).tiny] = 0
    p = np.zeros(5120, np.float32)
    opt = fastopt.RMSprop(p, alpha=0.5, state_dtype="int8")
    opt.state[0]["square_avg"] = v
    stored = opt.state[0].stored["square_avg"]
    assert ((stored.stored != 0) == (v != 0)).all()
    with np.errstate(all="ignore"):
        smallest = max(factor, 2.0**-108) * 2e-6
        np.testing.assert_allclose(opt.state[0]["square_avg"], v, rtol=0.04, atol=smallest)
    before = opt.state[0]["square_avg"]
    opt.step(np.zeros(5120, np.float32))
    after = opt.state[0]["square_avg"]
    np.testing.assert_allclose(after, 0.5 * before, rtol=0.07, atol=max(factor * 2e-6, 2e-38))
    assert (after[before > max(factor * 1e-5, 1e-36)] > 0).all() and not after[:256].any()


@ANY_STATE
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_block(state_dtype, bad, isa):
    p = np.ones(5120, np.float32)
    g = np.ones(5120, np.float32)
    g[300] = bad
    opt = fastopt.Adam(p, state_dtype=state_dtype, skip_nonfinite=True)
    opt.step(np.ones(5120, np.float32))
    before = [a.tobytes() for a in (p, *opt.state[0].values())]
    assert not opt.step(g) and before == [a.tobytes() for a in (p, *opt.state[0].values())]
    opt.skip_nonfinite = False
    opt.step(g), opt.step(np.ones(5120, np.float32))
    spoiled = ~np.isfinite(p)
    affected = slice(256, 512) if state_dtype == "int8" else slice(300, 301)
    assert spoiled[300] and np.isfinite(np.delete(p, affected)).all()
    assert np.isfinite(np.delete(opt.state[0]["exp_avg_sq"], affected)).all()
    assert not np.isfinite(opt.state[0]["exp_avg"][300])


@ANY_STATE
def test_rows(state_dtype):
    rng = np.random.default_rng(6)
    p = rng.standard_normal((100, 50)).astype(np.float32)
    q = p.copy()
    lazy, dense = (
        fastopt.Adam(a, state_dtype=state_dtype, sparse=s) for a, s in ((p, "lazy"), (q, "dense"))
    )
    g, rows = rng.standard_normal((100, 50)).astype(np.float32), rng.permutation(100)
    dense.step_rows(q, rows, g[rows])
    if state_dtype == "int8":
        with pytest.raises(ValueError, match="this optimizer steps whole arrays"):
            lazy.step_rows(p, rows, g[rows])
        return
    lazy.step_rows(p, rows, g[rows])
    assert p.tobytes() == q.tobytes()
    for name, array in lazy.state[0].items():
        assert array.tobytes() == dense.state[0][name].tobytes()


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (fastopt.Adam, {"state_dtype": "int4"}, ValueError, "state_dtype: expected one of float32, bf"),
        (fastopt.Adam, {"state_dtype": 8}, ValueError, "state_dtype: expected one of"),
        (fastopt.Adam, {"block_size": 100}, ValueError, "block_size: expected one of 128, 256, 51"),
        (fastopt.Adam, {"block_size": "x"}, TypeError, "block_size: expected an integer"),
        (fastopt.Adam, {"state_dtype": "int8", "sparse": "exact"}, ValueError, "state_dtype: 'int8' can"),
        (fastopt.Muon, {"state_dtype": "int8"}, ValueError, "state_dtype: not supported by this opt"),
        (fastopt.ASGD, {"state_dtype": "bfloat16"}, ValueError, "state_dtype: not supported by this opt"),
    ],
)
def test_bad_input(kind, options, error, message):
    with pytest.raises(error, match=f"^{message}"):
        kind(np.ones((3, 2), np.float32), **options)
    with pytest.raises(ValueError, match=r"^state_dtype: 'int8' needs .* got float64 for params\[0\]"):
        fastopt.Adam([np.ones(3)], state_dtype="int8")


def test_damaged_state_is_refused():
    p = np.ones((70, 61), np.float32)
    opt = fastopt.Adam(p, state_dtype="int8")
    opt.step(p.copy())
    saved = opt.state_dict()
    (key,) = saved["state"]
    good = saved["state"][key]["exp_avg"]
    assert from_export("x", good).read().shape == (70, 61)
    changes = [
        {"encoding": "signed9"}, {"stored": good["stored"][1:]}, {"stored": good["stored"].astype(int)},
        {"scales": good["scales"][1:]}, {"scales": None}, {"block_size": 100}, {"strides": [1, 1]},
        {"strides": [61]}, {"shape": [70, 62]}, {"shape": [-70, -61]}, {"shape": "x"},
    ]
    before = opt.state[0].stored["exp_avg"].stored.copy()
    for change in changes:
        saved["state"][key]["exp_avg"] = {**good, **change}
        with pytest.raises(ValueError, match=r"state.*exp_avg"):
            opt.load_state_dict(saved)
    assert (opt.state[0].stored["exp_avg"].stored == before).all()
    with np.errstate(all="ignore"):
        assert decode(encode(1.0, BFLOAT16)) == 1
