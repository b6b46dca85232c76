"""Kernels equal the reference bit for bit, for every instruction set, length and alignment."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import RULES, arrays, same_bits

from fastopt import functional

NEVER_NEGATIVE = ("acc", "accumulator", "square_avg", "acc_delta", "exp_avg_sq", "max_exp_avg_sq", "exp_inf",
                  "step_size", "exp_avg_var")
# Prodigy starts with a small d, whose square makes products with small gradients subnormal.
NORMAL_RULES = [rule for rule in RULES if not rule.couples_arrays]
LENGTHS = (0, 1, 15, 16, 17, 511, 512, 513, 10007)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_function_equals_reference(rule, dtype, isa):
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        for offset in (0, 1, 3) if length < 1000 else (1,):
            p, *state = arrays(rng, dtype, length, 1 + len(rule.state), offset)
            state = rule.with_scalar_state(dict(zip(rule.state, (abs(s) for s in state), strict=True)))
            q, reference_state = p.copy(), {n: s.copy() for n, s in state.items()}
            for step in (1, 2, 3):
                (g,) = arrays(rng, dtype, length, 1, offset)
                before = g.copy()
                getattr(functional, rule.function)(p, g, **state, **rule.arguments(step))
                rule.reference_step(q, g, reference_state, step)
                assert same_bits(p, q), (length, offset, step)
                assert all(same_bits(state[n], reference_state[n]) for n in rule.state)
                assert state.get("numbers") == reference_state.get("numbers")
                assert same_bits(g, before)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_optimizer_equals_reference(rule, dtype, isa):
    rng = np.random.default_rng(1)
    shapes = [(513,)] if rule.couples_arrays else [(3, 5), (), (0, 4), (513,), (2, 3, 4)]
    params = [np.array(rng.standard_normal(s), dtype) for s in shapes]
    ref_params = [p.copy() for p in params]
    states = [
        rule.with_scalar_state({n: np.full_like(p, rule.init_value(n)) for n in rule.state}) for p in params
    ]
    opt = rule.make(params)
    for step in range(1, 6):
        grads = [np.array(rng.standard_normal(s), dtype) for s in shapes]
        opt.step(grads)
        for p, q, g, state, actual in zip(params, ref_params, grads, states, opt.state, strict=True):
            rule.reference_step(q, g, state, step)
            assert same_bits(p, q)
            # Some state arrays have another name in the optimizer than in the function.
            expected = sorted(state[n].tobytes() for n in rule.state)
            assert sorted(a.tobytes() for a in actual.values()) == expected
    assert opt.steps == 5


@settings(max_examples=300, deadline=None)
@given(
    rule=st.sampled_from(NORMAL_RULES),
    dtype=st.sampled_from([np.float32, np.float64]),
    length=st.integers(0, 3000),
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-12, 12),
)
def test_any_input_equals_reference(rule, dtype, length, seed, exponent):
    """Random lengths and magnitudes, far from subnormal numbers, which kernels flush to zero."""
    rng = np.random.default_rng(seed)
    p, g = arrays(rng, dtype, length, 2)
    g *= dtype(10.0**exponent)
    state = rule.with_scalar_state({n: np.zeros_like(p) for n in rule.state})
    q, reference_state = p.copy(), {n: s.copy() for n, s in state.items()}
    with np.errstate(all="ignore"):
        getattr(functional, rule.function)(p, g, **state, **rule.arguments(1))
        rule.reference_step(q, g, reference_state, 1)
    assert same_bits(p, q)
    assert all(same_bits(state[n], reference_state[n]) for n in rule.state)


@pytest.mark.parametrize("rule", NORMAL_RULES, ids=str)
def test_special_values_equal_the_reference(rule, isa):
    """All combinations of NaN, infinities, large and small normal values and signed zeros."""
    values = [0.0, -0.0, 1.0, -1.0, 3e38, -3e38, 1e-30, -1e-30, np.inf, -np.inf, np.nan]
    count = 2 + len(rule.state)
    if count > 4:
        values = [v for v in values if v not in (-3e38, -1e-30, -np.inf)]
    grid = np.meshgrid(*[np.array(values, np.float32)] * count)
    p, g, *state = (np.ascontiguousarray(array.ravel()) for array in grid)
    state = rule.with_scalar_state({
        n: abs(s) if n in NEVER_NEGATIVE else s for n, s in zip(rule.state, state, strict=True)
    })
    q, expected = p.copy(), {n: s.copy() for n, s in state.items()}
    getattr(functional, rule.function)(p, g, **state, **rule.arguments(2))
    with np.errstate(all="ignore"):
        rule.reference_step(q, g, expected, 2)
    normal = np.finfo(np.float32).tiny
    for a, b in ((p, q), *((state[n], expected[n]) for n in rule.state)):
        flushed = abs(b) < normal
        np.testing.assert_array_equal(np.where(flushed, 0, a), np.where(flushed, 0, b))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_nan_and_infinity_are_not_hidden(rule, isa):
    for bad in (np.nan,) if rule.saturates else (np.nan, np.inf):
        p, g = np.ones(40, np.float32), np.ones(40, np.float32)
        g[7] = bad
        opt = rule.make(p)
        opt.step(g)
        opt.step(np.ones(40, np.float32))
        assert not np.isfinite(p[7])
        assert np.isfinite(np.delete(p, 7)).all() or rule.couples_elements
