"""Options common to all optimizers, each with every optimizer, and in pairs."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from rules import MATRIX_RULES, RULES, arrays, same_bits

import fastopt
from fastopt import schedules

ALL_RULES = RULES + MATRIX_RULES
EVERY_RULE = pytest.mark.parametrize("rule", ALL_RULES, ids=str)


def supports(rule, *options):
    return not any(name in rule.optimizer.RULE.REFUSED_OPTIONS for name in options)


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


@pytest.mark.parametrize("rule", [r for r in ALL_RULES if supports(r, "lookahead")], ids=str)
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
    with pytest.raises(ValueError, match="unexpected: lookahead; strict=False"):
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


DECAYED = [rule for rule in RULES if supports(rule, "independent_weight_decay")]


@pytest.mark.parametrize("rule", DECAYED, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_independent_decay_shrinks_before_the_step(rule, dtype, isa):
    rng = np.random.default_rng(0)
    params, opt, mirror, by_hand = pair(rule, rng, dtype, independent_weight_decay=0.25)
    for _ in range(4):
        g = gradients(rng, params)
        opt.step(g)
        for q, state in zip(mirror, by_hand.state, strict=True):
            q *= dtype(0.75)
            if rule.optimizer.RULE.DECAYS_COPY:
                state["z"] = dtype(0.75) * state["z"]
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
                s += g
        by_hand.step(sums, max_norm=1.0, grad_scale=1 / 3)
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


def test_a_group_may_be_added_between_micro_batches():
    p, q = np.zeros(3), np.zeros(2)
    opt = fastopt.SGD(p, lr=1.0, accumulate=2)
    opt.step(np.ones(3))
    opt.add_param_group({"params": q})
    opt.step([np.ones(3), np.ones(2)])
    assert (p == -1).all() and (q == -1).all()


# --- All at once -------------------------------------------------------------------------------------


@EVERY_RULE
def test_everything_at_once_and_any_number_of_threads(rule, threads):
    results = []
    for n in (1, 3):
        threads(n)
        rng = np.random.default_rng(0)
        params = arrays(rng, np.float32, 70_001, 2)
        options = {"lookahead": (2, 0.5), "independent_weight_decay": 0.01}
        opt = rule.make(
            params, ema=0.9, accumulate=2, centralize=True, unit_clip=0.5,
            **{name: value for name, value in options.items() if supports(rule, name)},
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
    ({"lookahead": (2.5, 0.5)}, TypeError, "lookahead: expected an integer"),
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


# --- Every option with every optimizer ---------------------------------------------------------------

# Settings that act, and settings of an option, or arguments of `step`, that must not change a bit.
ACTIVE = {
    "ema": {"ema": 0.9},
    "swa": {"ema": schedules.SWA(start=2)},
    "lookahead": {"lookahead": (2, 0.5)},
    "accumulate": {"accumulate": 2},
    "centralize": {"centralize": True},
    "unit_clip": {"unit_clip": 0.05},
    "independent_weight_decay": {"independent_weight_decay": 0.1},
    "skip_nonfinite": {"skip_nonfinite": True},
}
NEUTRAL = {
    "ema": ({"ema": 0.9}, {}),
    "lookahead": ({"lookahead": (1, 1.0)}, {}),
    "accumulate": ({"accumulate": 1}, {"weight": 3.0}),
    "centralize": ({"centralize": False}, {}),
    "unit_clip": ({"unit_clip": 1e30}, {}),
    "independent_weight_decay": ({"independent_weight_decay": 0.0}, {}),
    "skip_nonfinite": ({"skip_nonfinite": True}, {}),
    "max_norm": ({}, {"max_norm": np.inf}),
    "clip_value": ({}, {"clip_value": 1e30}),
    "grad_scale": ({}, {"grad_scale": 1.0}),
    "zero_grad": ({}, {"zero_grad": True}),
}
WITH_LR_IN_VELOCITY = (
    "momentum, lr inside", "momentum dampened, lr inside", "momentum of sklearn", "nesterov of sklearn",
    "nesterov, lr inside", "nesterov of keras", "rmsprop momentum, lr inside", "rmsprop of optax",
    "rmsprop centered momentum, lr inside", "lars", "lars not adapted", "lars of optax",
)
SHAPES = ((3, 4), (5,), (2, 2))


def combinations(rule, n):
    """Options of `n` names that the optimizer supports together, as arguments."""
    for names in itertools.combinations([name for name in ACTIVE if supports(rule, name)], n):
        if not {"ema", "swa"} <= set(names):
            yield {key: value for name in names for key, value in ACTIVE[name].items()}


def batches(n, shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(s).astype("f4") for s in shapes] for _ in range(n)]


def everything(opt):
    """All arrays and scalars of an optimizer, as bytes and values."""
    arrays = [*opt._params.arrays, *(a for state in opt.state for a in state.values())]
    arrays += [] if opt.ema is None else flatten(opt.ema)
    counts = [(state.steps, state.scalars) for state in opt.state]
    return [a.tobytes() for a in arrays], counts, opt.steps, opt.skipped_steps


def flatten(tree):
    return [tree] if isinstance(tree, np.ndarray) else [a for inner in tree for a in flatten(inner)]


def is_exact(rule):
    return rule not in MATRIX_RULES


@EVERY_RULE
def test_neutral_settings_change_no_bit(rule):
    steps = batches(4)
    params = batches(1, seed=1)[0]
    opt = rule.make([p.copy() for p in params])
    for grads in steps:
        opt.step(grads)
    for name, (options, arguments) in NEUTRAL.items():
        if supports(rule, name):
            other = rule.make([p.copy() for p in params], **options)
            for grads in steps:
                assert other.step([g.copy() for g in grads], **arguments)
            for p, q in zip(opt.params, other.params, strict=True):
                assert same_bits(p, q) or (name == "unit_clip" and not is_exact(rule)), name


@EVERY_RULE
@pytest.mark.parametrize("replaced", ["before the first step", "later"])
def test_a_learning_rate_of_0_moves_nothing(rule, replaced):
    """Weights that were loaded before the first step, or after it with `sync_params`, stay where they are."""
    frozen = {"lr": 0.0}
    if rule.optimizer is fastopt.Muon:
        frozen["adamw_lr"] = 0.0
    if rule.optimizer in (fastopt.FTRL, fastopt.Rprop):
        pytest.skip("its learning rate is not the size of a step")
    if replaced == "later" and rule.name in WITH_LR_IN_VELOCITY:
        pytest.skip("its velocity contains the learning rates of earlier steps")
    for options in combinations(rule, 1):
        if "independent_weight_decay" in options:
            continue
        opt = rule.make(batches(1, seed=1)[0], **options)
        if replaced == "later":
            for grads in batches(5):
                opt.step(grads)
        for group in opt.groups:
            group.update(frozen)
        for p in opt.params:
            p[...] = 10.0
        if replaced == "later":
            opt.sync_params()
        for grads in batches(6, seed=2):
            opt.step(grads)
        assert all((p == 10.0).all() for p in opt.params), options
        if opt.ema is not None:
            assert all(np.allclose(a, 10.0, rtol=1e-6) for a in opt.ema), options


@EVERY_RULE
@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_resumed_run_equals_one_that_never_stopped(rule, n):
    steps = batches(7)
    for options in combinations(rule, n):
        opt = rule.make(batches(1, seed=1)[0], **options)
        for k, grads in enumerate(steps):
            if k in (0, 1, 4):
                other = rule.make([p.copy() for p in opt.params], **options)
                other.load_state_dict(opt.state_dict())
                copied = pickle.loads(pickle.dumps(opt))
                for rest in steps[k:]:
                    other.step(rest), copied.step(rest)
                if k == 0:
                    at_start = everything(other)
                results = [everything(other), everything(copied)]
            opt.step(grads)
        assert everything(opt) == at_start == results[0] == results[1], options


@EVERY_RULE
@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_group_added_late_equals_an_optimizer_of_its_own(rule, n):
    if rule.optimizer.RULE.SHARED_SCALARS:
        pytest.skip("all its parameters share one estimate")
    for options in combinations(rule, n):
        first, second = batches(1, seed=1)[0], batches(1, seed=2)[0]
        alone_params = [p.copy() for p in second]
        is_swa = options.get("ema") == ACTIVE["swa"]["ema"]
        alone = rule.make(alone_params, **options | ({"ema": schedules.SWA()} if is_swa else {}))
        opt = rule.make(first, **options)
        for grads in batches(4):
            opt.step(grads)
        opt.add_param_group({"params": second})
        for grads in batches(6, seed=3):
            opt.step([grads, grads]), alone.step(grads)
        assert all_same(second, alone_params), options
        if opt.ema is not None:
            assert all_same(opt.ema[1], alone.ema), options
        assert [s.steps for s in opt.state[3:]] == [s.steps for s in alone.state]


@EVERY_RULE
@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_parameter_without_a_gradient_is_left_unchanged(rule, n):
    """The steps in which it has one are those of an optimizer that never saw the others."""
    couples = rule.optimizer.RULE.SHARED_SCALARS
    for options in combinations(rule, n):
        if options.get("ema") == ACTIVE["swa"]["ema"]:
            continue    # the weights of the average count the steps of the optimizer
        params = batches(1, seed=1)[0]
        alone = [rule.make([p.copy()], **options) for p in params]
        opt = rule.make(params, **options)
        for k, grads in enumerate(batches(8)):
            # Two calls at a time, so that a step with accumulated gradients has all of its micro-batches.
            present = [(k // 2 + i) % 3 != 0 for i in range(3)]
            before = everything(opt)[0]
            opt.step([g if has else None for g, has in zip(grads, present, strict=True)])
            if not any(present):
                assert everything(opt)[0] == before
            for own, g, has in zip(alone, grads, present, strict=True):
                if has:
                    own.step([g])
        assert opt.steps == (4 if "accumulate" in options else 8)
        for own, p, state in zip(alone, params, opt.state, strict=True):
            assert state.steps == own.steps
            assert couples or same_bits(p, own.params[0]), options


@EVERY_RULE
def test_a_step_without_any_gradient_changes_only_the_count(rule):
    for options in combinations(rule, 1):
        opt = rule.make(batches(1, seed=1)[0], **options)
        for grads in batches(4):
            opt.step(grads)
        arrays, counts, steps, _ = everything(opt)
        for none in (None, [None] * 3, [None] * 3, None):
            opt.step(none)
        assert everything(opt)[:2] == (arrays, counts)
        assert opt.steps == steps + (2 if "accumulate" in options else 4)


@EVERY_RULE
def test_a_constant_schedule_equals_a_number(rule):
    for options in combinations(rule, 1):
        scheduled = {
            name: (lambda step, value=value: value) for name, value in options.items()
            if name in ("ema", "independent_weight_decay") and not callable(value)
        }
        opt = rule.make(batches(1, seed=1)[0], **options)
        other = rule.make(batches(1, seed=1)[0], **{**options, **scheduled})
        value = other.groups[0]["lr"]
        other.groups[0]["lr"] = lambda step, value=value: value
        for grads in batches(5):
            opt.step(grads), other.step(grads)
        assert everything(opt) == everything(other), options


@EVERY_RULE
@pytest.mark.parametrize("zero_grad", [False, True])
def test_a_skipped_step_has_exactly_its_documented_effects(rule, zero_grad):
    for options in combinations(rule, 1):
        opt = rule.make(batches(1, seed=1)[0], **{**options, "skip_nonfinite": True})
        for grads in batches(4):
            opt.step(grads)
        arrays, counts, steps, _ = everything(opt)
        for k, bad in enumerate((np.nan, np.inf)):
            for grads in batches(2 if "accumulate" in options else 1, seed=3):
                grads[1][2] = bad
                kept = [g.copy() for g in grads]
                assert opt.step(grads, max_norm=1.0, zero_grad=zero_grad) is False
                assert all_same(grads, [np.zeros_like(g) for g in grads] if zero_grad else kept)
            assert everything(opt) == (arrays, counts, steps, k + 1)
            assert not np.isfinite(opt.grad_norm)
        other = rule.make(batches(1, seed=1)[0], **options)
        for grads in batches(4):
            other.step(grads)
        for grads in batches(4, seed=4):
            opt.step(grads), other.step(grads)
        assert everything(opt)[:3] == everything(other)[:3], options


@EVERY_RULE
def test_setting_the_steps_never_makes_a_new_state_look_used(rule):
    """With a gradient of zero, an optimizer that has no state does not move, whatever its step count."""
    opt = rule.make(batches(1, seed=1)[0])
    if rule.optimizer in (fastopt.FTRL, fastopt.Yogi) or opt.groups[0].get("weight_decay"):
        pytest.skip("it moves without a gradient")
    before = [p.copy() for p in opt.params]
    opt.steps = 1000
    opt.step([np.zeros_like(p) for p in opt.params])
    assert opt.steps == 1001 and all(state.steps == 1001 for state in opt.state)
    assert all(np.allclose(p, q, rtol=1e-4, atol=1e-6) for p, q in zip(opt.params, before, strict=True))


@pytest.mark.parametrize("kind", [fastopt.FTRL, fastopt.SGDScheduleFree, fastopt.AdamWScheduleFree])
def test_options_that_cannot_act_are_refused(kind):
    for name in kind.RULE.REFUSED_OPTIONS:
        with pytest.raises(ValueError, match=f"^{name}: not supported by this optimizer: (the|its) "):
            kind(np.ones(3), **(ACTIVE | {"state_dtype": {"state_dtype": "int8"}})[name])
    if "independent_weight_decay" in kind.RULE.REFUSED_OPTIONS:
        p = np.ones(3)
        opt = kind(p)
        opt.groups[0]["independent_weight_decay"] = 0.5
        with pytest.raises(ValueError, match=r"^independent_weight_decay: not supported"):
            opt.step(np.ones(3))
        assert (p == 1.0).all() and opt.steps == 0


# --- Single cases ------------------------------------------------------------------------------------


def test_weights_of_micro_batches_give_the_mean_over_all_samples():
    X, y = np.random.default_rng(0).standard_normal((2, 40))
    grads = 2 * X * (X - y)
    p, q, r = np.zeros(1), np.zeros(1), np.zeros(1)
    for param, cut in ((p, 32), (q, 20)):
        opt = fastopt.SGD(param, lr=1.0, accumulate=2)
        for part in (grads[:cut], grads[cut:]):
            opt.step(part.mean(keepdims=True), weight=len(part))
    fastopt.SGD(r, lr=1.0).step(grads.mean(keepdims=True))
    np.testing.assert_allclose([p[0], q[0]], r[0], rtol=1e-14)
    with pytest.raises(ValueError, match="weight: expected"):
        opt.step(np.ones(1), weight=0.0)


def test_flush_takes_a_step_with_what_is_pending():
    p = np.zeros(2)
    opt = fastopt.SGD(p, lr=1.0, accumulate=4)
    assert opt.flush() is False and opt.steps == 0
    assert opt.step(np.ones(2)) is False and opt.step(np.full(2, 4.0), weight=2.0) is False
    assert opt.flush(clip_value=2.0) is True and opt.steps == 1
    assert (p == -2.0).all()
    assert opt.flush() is False
    assert [opt.step(np.ones(2)) for _ in range(4)] == [False, False, False, True]
    assert fastopt.SGD(p).flush() is False


def test_prodigy_has_one_estimate_for_all_groups():
    a, b, c = np.full(1, 5.0), np.full(1, 5.0), np.full(2, 5.0)
    opt = fastopt.Prodigy([{"params": a}, {"params": b}])
    one = fastopt.Prodigy(c)
    for _ in range(60):
        opt.step([a.copy(), b.copy()]), one.step(c.copy())
    np.testing.assert_allclose([a[0], b[0]], c, rtol=1e-9)
    assert opt.groups[0].scalar_state == opt.groups[1].scalar_state
    with pytest.raises(ValueError, match="lr: expected the same value in all groups, or 0"):
        fastopt.Prodigy([{"params": a}, {"params": b, "lr": 0.1}])
    frozen = fastopt.Prodigy([{"params": a, "lr": 0.0}, {"params": b}])
    before, d = a.copy(), b.copy()
    for _ in range(60):
        frozen.step([a.copy(), b.copy()])
    assert same_bits(a, before) and not same_bits(b, d)


def test_the_average_of_schedule_free_does_not_jump_with_the_momentum():
    averages = []
    for momentum in (0.9, 0.5):
        w = np.full(1, 5.0)
        opt = fastopt.SGDScheduleFree(w, lr=0.1)
        for _ in range(10):
            opt.step(2 * w)
        opt.groups[0].update(lr=1e-12, momentum=momentum)
        for _ in range(3):
            opt.step(np.zeros(1))
        with opt.averaged():
            averages.append(w[0])
    np.testing.assert_allclose(averages[1], averages[0], rtol=1e-10)


def test_reading_the_average_of_skipped_rows():
    t = np.ones((3, 2))
    opt, dense = fastopt.Adam(t, lr=0.1, sparse="exact", ema=0.5), fastopt.Adam(t.copy(), lr=0.1, ema=0.5)
    rows = np.zeros((3, 2))
    rows[0] = 1.0
    every = np.ones((3, 2))
    opt.step(every), dense.step(every)
    for _ in range(5):
        opt.step(fastopt.Rows([0], np.ones((1, 2)))), dense.step(rows)
    np.testing.assert_allclose(opt.ema, dense.ema, rtol=1e-12)


def test_lr_of_all_groups():
    opt = fastopt.SGD([{"params": np.ones(1)}, {"params": np.ones(1)}], lr=0.5)
    assert opt.lr == 0.5
    opt.lr = 0.25
    assert [group["lr"] for group in opt.groups] == [0.25, 0.25]
    opt.groups[1]["lr"] = 1.0
    with pytest.raises(ValueError, match="lr: the groups have different values"):
        _ = opt.lr


def test_an_infinite_max_norm_only_measures():
    p = np.zeros(2)
    opt = fastopt.SGD(p, lr=1.0)
    assert opt.step(np.array([3.0, 4.0]), max_norm=np.inf)
    assert opt.grad_norm == 5.0 and (p == [-3.0, -4.0]).all()


@pytest.mark.parametrize("grads", [{}, {"a": None}, {"b": {}}, None, {"b": None, "a": None}])
def test_missing_keys_are_no_gradients(grads):
    params = {"a": np.ones(2), "b": {"c": np.ones(3), "d": np.ones(1)}}
    opt = fastopt.SGD(params, lr=1.0)
    assert opt.step(grads)
    assert opt.step({"b": {"d": np.ones(1)}})
    assert [state.steps for state in opt.state] == [0, 0, 1] and params["b"]["d"] == 0.0
    with pytest.raises(ValueError, match=r"grads\[\"b\"\]: expected keys"):
        opt.step({"b": {"e": np.ones(1)}})
    assert opt.steps == 2


def test_a_momentum_that_is_switched_on_starts_like_a_first_step():
    p = np.zeros(1)
    opt = fastopt.SGD(p, lr=1.0, dampening=0.9)
    opt.step(np.ones(1))
    opt.groups[0]["momentum"] = 0.9
    opt.step(np.ones(1))
    assert (p == -2.0).all()


@pytest.mark.parametrize("call", [
    lambda opt: opt.step(np.ones(1)), lambda opt: opt.add_param_group({"params": np.ones(1)}),
])
def test_a_schedule_cannot_change_its_optimizer(call):
    p = np.zeros(1)
    opt = fastopt.SGD(p, lr=lambda step: call(opt) or 1.0)
    with pytest.raises(RuntimeError, match="not allowed inside a schedule"):
        opt.step(np.ones(1))
    opt.lr = 1.0
    opt.step(np.ones(1))
    assert p == -1.0 and opt.steps == 1 and len(opt.groups) == 1


@EVERY_RULE
def test_a_number_that_is_set_takes_effect_at_the_next_step(rule):
    """Each hyperparameter, and then another one, as with an optimizer that computes everything again."""
    values = rule.make(np.ones((2, 2))).groups[0].hyperparameters()
    special = ("d", "growth_rate", "ns_steps")      # a smaller value would be refused
    for name in [n for n, v in values.items() if type(v) is float and n not in special]:
        opt, other = (rule.make(batches(1, seed=1)[0]) for _ in range(2))
        for k, grads in enumerate(batches(8)):
            for changed, step in ((name, 3), ("lr", 5), (name, 6)):
                value = opt.groups[0][changed]
                if k == step and value:
                    opt.groups[0][changed] = other.groups[0][changed] = value * 0.75
            other._counter.mark()
            opt.step(grads), other.step(grads)
        assert everything(opt) == everything(other), name


@EVERY_RULE
def test_the_last_of_several_values_set_between_steps_counts(rule):
    """Numbers, zeros and schedules, as with an optimizer that computes everything again."""
    lr = rule.make(np.ones((2, 2))).groups[0]["lr"]
    schedule = fastopt.schedules.Exponential(lr, 0.9)
    sequences = (
        [lr / 2], [lr / 2, 0.0, lr / 7], [lr / 3, schedule], [], [schedule, lr / 4], [0.0, lr / 2, lr / 5], []
    )
    opt, other = (rule.make(batches(1, seed=1)[0]) for _ in range(2))
    for grads, sequence in zip(batches(7), sequences, strict=True):
        for value in sequence:
            opt.groups[0]["lr"] = value
        if sequence:
            other.groups[0]["lr"] = sequence[-1]
        other._counter.mark()
        opt.step(grads), other.step(grads)
    assert everything(opt) == everything(other)
