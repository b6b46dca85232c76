"""What stands around any rule: slow parameters, averages, gradients changed as a whole or summed up."""

import copy
import pickle

import numpy as np
import pytest
from rules import MATRIX_RULES, RULES, arrays, same_bits

import fastopt
from fastopt import schedules

EVERY_RULE = pytest.mark.parametrize("rule", RULES + MATRIX_RULES, ids=str)


def pair(rule, rng, dtype, **options):
    """The same parameters under a rule with the options, and without them."""
    params = [np.array(rng.standard_normal(s), dtype) for s in ((5, 7), (300,), ())]
    mirror = [p.copy() for p in params]
    return params, rule.make(params, **options), mirror, rule.make(mirror)


def gradients(rng, params):
    return [np.array(rng.standard_normal(p.shape), p.dtype) for p in params]


def all_same(params, mirror):
    return all(same_bits(p, q) for p, q in zip(params, mirror, strict=True))


# --- Lookahead ---------------------------------------------------------------------------------------


@EVERY_RULE
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lookahead_equals_doing_it_by_hand(rule, dtype, isa):
    rng = np.random.default_rng(0)
    params, opt, mirror, by_hand = pair(rule, rng, dtype, lookahead=(3, 0.4))
    slow = [p.copy() for p in mirror]
    for step in range(1, 8):
        g = gradients(rng, params)
        opt.step(g), by_hand.step(g)
        if step % 3 == 0:
            for s, q in zip(slow, mirror, strict=True):
                s[...] = dtype(1 - 0.4) * s + dtype(1 - (1 - 0.4)) * q
                q[...] = s
        assert all_same(params, mirror), step


@pytest.mark.parametrize("how", ["state_dict", "pickle"])
def test_lookahead_is_saved(how):
    p = np.ones(5)
    opt = fastopt.Adam(p, lr=0.1, lookahead=(3, 0.5), ema=0.9)
    for _ in range(4):
        opt.step(p.copy())
    q = p.copy()
    if how == "state_dict":
        other = fastopt.Adam(q, lr=0.1, lookahead=(3, 0.5), ema=0.9)
        other.load_state_dict(opt.state_dict())
    else:
        other = pickle.loads(pickle.dumps(opt))
        q = other.params
    for _ in range(3):
        g = p.copy()
        opt.step(g), other.step(g)
    assert same_bits(p, q) and same_bits(opt.ema, other.ema)
    with pytest.raises(ValueError, match=r"\['lookahead'\]: expected a list of 0, got 1"):
        fastopt.Adam(p, ema=0.9).load_state_dict(opt.state_dict())


# --- Averages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "every"), [(0, 1), (3, 1), (2, 4)])
def test_swa_is_the_mean(start, every):
    rng = np.random.default_rng(0)
    p = rng.standard_normal(50)
    opt = fastopt.SGD(p, lr=0.1, momentum=0.9, ema=schedules.SWA(start, every))
    seen = []
    for step in range(1, 15):
        opt.step(rng.standard_normal(50))
        if step > start and (step - start) % every == 0:
            seen.append(p.copy())
        np.testing.assert_allclose(opt.ema, np.mean(seen, axis=0) if seen else p, rtol=1e-12)


# --- Decay -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_independent_decay_shrinks_before_the_step(rule, dtype, isa):
    rng = np.random.default_rng(0)
    params, opt, mirror, by_hand = pair(rule, rng, dtype, independent_weight_decay=0.25)
    for _ in range(4):
        g = gradients(rng, params)
        opt.step(g)
        for q in mirror:
            q *= dtype(0.75)
        by_hand.step(g)
        if rule.options.get("convention") == "keras" and rule.options.get("weight_decay"):
            for p, q in zip(params, mirror, strict=True):   # one factor for both decays: rounded once
                np.testing.assert_allclose(p, q, rtol=0, atol=32 * np.finfo(dtype).eps)
        else:
            assert all_same(params, mirror)


def test_independent_decay_is_a_hyperparameter_of_the_group():
    p, q = np.ones(3), np.ones(3)
    opt = fastopt.SGD(
        [{"params": p, "independent_weight_decay": lambda step: 0.5 * (step > 0)}, {"params": q}], lr=0.0
    )
    for _ in range(3):
        opt.step([np.ones(3), np.ones(3)])
    assert (p == 0.25).all() and (q == 1).all()


# --- Gradients as a whole ----------------------------------------------------------------------------


def shaped_by_units(p, g, clipping, centralize, least=1e-3):
    """Both, in NumPy, with the sums of each unit in double and row after row, as the kernels do."""
    p, g, kept = (x.reshape(-1, p.shape[-1] if p.ndim > 1 else 1) for x in (p, g, g))
    total, squares, weights = (
        np.add.reduce(x, axis=0) for x in (g.astype(float), g.astype(float) ** 2, p.astype(float) ** 2)
    )
    factor = np.ones_like(total)
    if clipping is not None:
        norm, bound = np.sqrt(squares), clipping * np.maximum(np.sqrt(weights), least)
        factor = np.where(norm < bound, 1.0, bound / np.maximum(norm, 1e-6))
    mean = factor * total / len(g) if centralize else np.zeros_like(total)
    return factor.astype(g.dtype) * kept - mean.astype(g.dtype)


@EVERY_RULE
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_units_equal_doing_it_by_hand(rule, dtype, isa):
    rng = np.random.default_rng(0)
    params, opt, mirror, by_hand = pair(rule, rng, dtype, centralize=True, unit_clip=0.1)
    for _ in range(3):
        g = gradients(rng, params)
        sign = -1 if rule.options.get("maximize") else 1
        ready = [
            (sign * shaped_by_units(q, sign * x, 0.1, x.ndim > 1)).reshape(x.shape)
            for q, x in zip(mirror, g, strict=True)
        ]
        opt.step(g), by_hand.step(ready)
        tolerances = {
            "rtol": 1e-5 if dtype == np.float32 else 1e-12, "atol": 1e-6 if rule.couples_elements else 1e-7,
        }
        assert all(np.allclose(p, q, **tolerances) for p, q in zip(params, mirror, strict=True))


def moved(p, g, **options):
    """What gradient a step sees."""
    before = p.copy()
    fastopt.SGD(p, lr=1.0, **options).step(g)
    return before - p


@pytest.mark.parametrize("shape", [(6, 4), (700, 3), (2, 1000), (3, 3, 2, 5)])
@pytest.mark.parametrize("step", [{}, {"grad_scale": -0.5, "clip_value": 0.3}])
def test_centralized_gradients_have_no_mean(shape, step, isa):
    rng = np.random.default_rng(0)
    p, g = np.zeros(shape), rng.standard_normal(shape)
    fastopt.SGD(p, lr=1.0, centralize=True).step(g, **step)
    seen = np.clip(g * step.get("grad_scale", 1.0), -step.get("clip_value", 9), step.get("clip_value", 9))
    axes = tuple(range(g.ndim - 1))
    np.testing.assert_allclose(-p, seen - seen.mean(axis=axes, keepdims=True), atol=1e-14)


def test_a_vector_is_not_centralized():
    g = np.random.default_rng(0).standard_normal(7)
    assert same_bits(moved(np.zeros(7), g, centralize=True), g)


@pytest.mark.parametrize("shape", [(6, 4), (700, 3), (6,), (3, 3, 2, 5)])
def test_unit_clip_bounds_the_norm_of_each_unit(shape, isa):
    rng = np.random.default_rng(0)
    p, g = rng.standard_normal(shape), 10 * rng.standard_normal(shape)
    g[..., 0] *= 1e-4
    axes = tuple(range(g.ndim - 1)) or None
    bound = 0.3 * np.sqrt((p * p).sum(axis=axes))
    clipped = moved(p, g, unit_clip=0.3)
    norm = np.sqrt((clipped * clipped).sum(axis=axes))
    assert (norm <= bound * (1 + 1e-12)).all() and (np.sign(clipped) == np.sign(g)).all()
    if g.ndim > 1:
        np.testing.assert_allclose(clipped[..., 0], g[..., 0], atol=1e-12)


def test_unit_clip_is_optaxs():
    optax = pytest.importorskip("optax", reason="optax is not installed")
    rng = np.random.default_rng(0)
    for shape in ((6, 4), (6,), (3, 3, 2, 5)):
        p, g = rng.standard_normal(shape).astype("f4"), rng.standard_normal(shape).astype("f4")
        theirs, _ = optax.adaptive_grad_clip(0.1).update(g, None, p)
        np.testing.assert_allclose(moved(p, g, unit_clip=0.1), np.asarray(theirs), rtol=1e-5, atol=1e-6)


# --- Accumulation ------------------------------------------------------------------------------------


@EVERY_RULE
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_accumulated_gradients_are_their_mean(rule, dtype):
    rng = np.random.default_rng(0)
    params, opt, mirror, by_hand = pair(rule, rng, dtype, accumulate=3)
    for step in range(3):
        parts = [gradients(rng, params) for _ in range(3)]
        sums = [np.zeros_like(p) for p in params]
        for part in parts:
            before = [p.copy() for p in params]
            assert all_same(params, before) and opt.steps == step
            opt.step(part, max_norm=1.0)
            for s, g in zip(sums, part, strict=True):
                s += dtype(1 / 3) * g
        by_hand.step(sums, max_norm=1.0)
        assert all_same(params, mirror) and opt.grad_norm == by_hand.grad_norm
    assert opt.steps == 3


@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_what_is_accumulated_is_saved(how):
    p = np.ones((2, 3))
    opt = fastopt.Adam([{"params": p}], lr=0.1, accumulate=3)
    for k in range(5):
        opt.step([np.full((2, 3), 1.0 + k)])
    if how == "state_dict":
        q = p.copy()
        other = fastopt.Adam([{"params": q}], lr=0.1, accumulate=3)
        other.load_state_dict(opt.state_dict())
    else:
        other = copy.deepcopy(opt) if how == "deepcopy" else pickle.loads(pickle.dumps(opt))
        q = other.groups[0]["params"]
    assert other.steps == 1
    opt.step([np.ones((2, 3))]), other.step([np.ones((2, 3))])
    assert other.steps == opt.steps == 2 and same_bits(p, q)


def test_micro_batches_are_scaled_zeroed_and_skipped():
    p = np.zeros(3)
    opt = fastopt.SGD(p, lr=1.0, accumulate=2, skip_nonfinite=True)
    g = np.ones(3)
    opt.step(g, grad_scale=4.0, zero_grad=True)
    assert (g == 0).all() and (p == 0).all()
    opt.step(np.ones(3))
    assert (p == -2.5).all()
    opt.step(np.full(3, np.nan)), opt.step(np.ones(3))
    assert (opt.steps, opt.skipped_steps) == (1, 1)
    opt.step(np.ones(3)), opt.step(np.ones(3))
    assert (p == -3.5).all()
    with pytest.raises(ValueError, match="grads: expected shape"):
        opt.step(np.ones(4))
    opt.step(np.ones(3)), opt.step(np.ones(3))
    assert (p == -4.5).all()


@pytest.mark.parametrize(
    "bad", [{"max_norm": -1.0}, {"clip_value": float("nan")}, {"zero_grad": 1}, {"grad_scale": "2"}]
)
def test_a_step_that_fails_adds_nothing_to_a_micro_batch(bad):
    p = np.zeros(3)
    opt = fastopt.SGD(p, lr=1.0, accumulate=2)
    for k in range(4):
        with pytest.raises((ValueError, TypeError)):
            opt.step(np.full(3, 100.0), **bad)
        opt.groups[0]["lr"] = lambda step: -1.0
        with pytest.raises(ValueError, match="lr: "):
            opt.step(np.full(3, 100.0))
        opt.groups[0]["lr"] = 1.0
        opt.step(np.ones(3))
        assert opt.steps == (k + 1) // 2 and (p == -opt.steps).all()


def test_a_rule_may_change_between_micro_batches():
    p = np.zeros(3)
    opt = fastopt.SGD(p, lr=1.0, accumulate=2)
    opt.step(np.ones(3))
    opt.groups[0]["momentum"] = 0.5
    for _ in range(3):
        opt.step(np.ones(3))
    assert opt.steps == 2 and (p == -2.5).all()


def test_micro_batches_do_not_zero_what_is_trained():
    p, q = np.ones(3), np.ones(3)
    opt = fastopt.SGD([p, q], lr=1.0, momentum=0.9, accumulate=2)
    for inside in (p, opt.state[1]["momentum_buffer"]):
        with pytest.raises(ValueError, match=r"grads\[1\]: zero_grad=True, but the array shares memory"):
            opt.step([np.ones(3), inside], zero_grad=True)
    opt.step([p, q]), opt.step([p, q])
    assert opt.steps == 1 and (p == 0).all() and (q == 0).all()


def test_more_micro_batches_than_a_step_takes_are_refused():
    opt, other = (fastopt.SGD(np.zeros(3), accumulate=k) for k in (5, 3))
    for _ in range(3):
        opt.step(np.ones(3))
    with pytest.raises(ValueError, match=r"\['micro_batches'\]: expected less than accumulate=3, got 3"):
        other.load_state_dict(opt.state_dict())


def test_a_group_may_be_added_between_micro_batches():
    p, q = np.zeros(3), np.zeros(2)
    opt = fastopt.SGD(p, lr=1.0, accumulate=2)
    opt.step(np.ones(3))
    opt.add_param_group({"params": q})
    opt.step([np.ones(3), np.ones(2)])
    assert (p == -1).all() and (q == -0.5).all()


# --- All at once -------------------------------------------------------------------------------------


@EVERY_RULE
def test_everything_at_once_and_any_number_of_threads(rule, threads):
    results = []
    for n in (1, 3):
        threads(n)
        rng = np.random.default_rng(0)
        params = arrays(rng, np.float32, 70_001, 2)
        opt = rule.make(
            params, ema=0.9, lookahead=(2, 0.5), accumulate=2, centralize=True, unit_clip=0.5,
            independent_weight_decay=0.01,
        )
        for _ in range(8):
            opt.step(arrays(rng, np.float32, 70_001, 2), max_norm=10.0, clip_value=0.5)
        results.append([*params, *opt.ema])
    assert all_same(*results) and all(np.isfinite(p).all() for p in results[0])


def test_groups_of_one_and_of_two_passes():
    p, q = np.ones(5), np.ones(5)
    opt = fastopt.AdamW([{"params": p, "cautious": True}, {"params": q}], lr=0.1)
    a, b = np.ones(5), np.ones(5)
    cautious, plain = fastopt.AdamW(a, lr=0.1, cautious=True), fastopt.AdamW(b, lr=0.1)
    for k in range(4):
        g = np.cos(np.arange(5.0) + 2 * k)
        opt.step([g, g]), cautious.step(g), plain.step(g)
    assert same_bits(p, a) and same_bits(q, b) and not same_bits(p, q)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"lookahead": 5}, ValueError, "lookahead: expected a pair"),
    ({"lookahead": (0, 0.5)}, ValueError, "lookahead: expected at least 1"),
    ({"lookahead": (2.5, 0.5)}, TypeError, "lookahead: expected a whole number"),
    ({"lookahead": (2, 1.5)}, ValueError, "lookahead: "),
    ({"accumulate": 0}, ValueError, "accumulate: expected at least 1"),
    ({"centralize": 1}, TypeError, "centralize: expected True or False"),
    ({"unit_clip": -1.0}, ValueError, "unit_clip: "),
    ({"independent_weight_decay": 1.0}, ValueError, "independent_weight_decay: "),
    ({"speed": 1.0}, TypeError, "speed"),
])
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        fastopt.Adam(np.zeros(3), **options)
