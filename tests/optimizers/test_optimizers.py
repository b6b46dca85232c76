"""What all optimizers share: nestings, groups, schedules, saving, and the options of a step."""

import copy
import pickle

import numpy as np
import pytest
from rules import MATRIX_RULES, RULES, arrays, same_bits

import fastopt
from fastopt import schedules


def adam_pair(n=100, **options):
    """The same parameters twice, each with its own Adam."""
    p = np.random.default_rng(0).standard_normal(n)
    q = p.copy()
    return p, fastopt.Adam(p, **options), q, fastopt.Adam(q, **options)


# --- Nestings and groups -----------------------------------------------------------------------------


def test_any_nesting_is_updated_in_place():
    rng = np.random.default_rng(0)
    w, b, c, s = (rng.standard_normal(shape) for shape in ((3, 4), 4, 7, ()))
    before = [a.copy() for a in (w, b, c, s)]
    opt = fastopt.SGD([[w, b], {"c": c, "deep": ({"s": s}, [])}], lr=0.5)
    grads = [[np.ones_like(w), np.ones_like(b)], {"c": np.ones_like(c), "deep": ({"s": np.ones(())}, [])}]
    opt.step(grads)
    for array, old in zip((w, b, c, s), before, strict=True):
        assert same_bits(array, old - 0.5)


def test_a_tuple_or_list_serves_alike_and_dicts_match_by_key():
    a, b = np.zeros(3), np.zeros(2)
    opt = fastopt.SGD({"a": a, "b": [b]}, lr=1.0)
    opt.step({"b": (np.full(2, 2.0),), "a": np.ones(3)})
    assert (a == -1).all() and (b == -2).all()


def test_groups_have_their_own_hyperparameters_and_default_the_rest():
    a, b, c = np.zeros(3), np.zeros(3), np.zeros(3, np.float32)
    opt = fastopt.SGD([{"params": a, "lr": 1.0}, {"params": {"b": b, "c": c}, "momentum": 0.9}], lr=0.1)
    for _ in range(2):
        opt.step([np.ones(3), {"b": np.ones(3), "c": np.ones(3, np.float32)}])
    np.testing.assert_allclose(a, -2.0)
    np.testing.assert_allclose(b, -0.1 - 0.19)
    np.testing.assert_allclose(c, -0.1 - 0.19, rtol=1e-6)
    assert [list(s) for s in opt.state] == [[], ["momentum_buffer"], ["momentum_buffer"]]


def test_hyperparameters_can_be_set_between_steps():
    p = np.zeros(3)
    opt = fastopt.SGD(p, lr=1.0)
    opt.groups[0]["lr"] = 0.5
    opt.step(np.ones(3))
    opt.groups[0].update(lr=0.25, weight_decay=0.1)
    opt.step(np.ones(3))
    np.testing.assert_allclose(p, -0.5 - 0.25 * (1 - 0.1 * 0.5))


def test_a_changed_rule_keeps_the_state_it_still_has():
    p, opt, q, other = adam_pair()
    g = np.random.default_rng(1).standard_normal(100)
    opt.step(g), other.step(g)
    held = opt.state[0]["exp_avg"].copy()
    opt.groups[0]["amsgrad"] = True
    opt.step(g)
    assert same_bits(opt.state[0]["exp_avg"], 0.9 * held + (1 - 0.9) * g)
    assert list(opt.state[0]) == ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]


def test_add_param_group():
    a, b = np.zeros(3), np.zeros(2)
    opt = fastopt.SGD(a, lr=1.0, momentum=0.9)
    opt.step(np.ones(3))
    opt.add_param_group({"params": b, "lr": 0.5})
    opt.step([np.ones(3), np.ones(2)])
    np.testing.assert_allclose(a, -1 - 1.9)
    np.testing.assert_allclose(b, -0.5)
    with pytest.raises(ValueError, match="share memory"):
        opt.add_param_group({"params": b[1:]})
    assert len(opt.groups) == 2


def test_state_can_be_read_and_set():
    p, opt, _, _ = adam_pair(4)
    opt.state[0]["exp_avg"] = np.arange(4.0)
    opt.steps = 9
    opt.step(np.zeros(4))
    np.testing.assert_allclose(opt.state[0]["exp_avg"], 0.9 * np.arange(4.0))
    assert opt.steps == 10
    with pytest.raises(ValueError, match="exp_avg: expected shape"):
        opt.state[0]["exp_avg"] = np.zeros(3)
    with pytest.raises(ValueError, match="steps"):
        opt.steps = -1


def test_state_is_set_by_name_and_copied():
    p, opt, _, _ = adam_pair(4)
    state = opt.state[0]
    with pytest.raises(ValueError, match="velocity: unknown state array, expected one of exp_avg"):
        state["velocity"] = np.zeros(4)
    with pytest.raises(TypeError):
        opt.state[0] = {}
    with pytest.raises(TypeError):
        opt.groups[0] = {}
    assert copy.deepcopy(dict(state))["exp_avg"] is not state["exp_avg"]
    held = copy.deepcopy(opt.state)
    opt.step(np.ones(4))
    assert not held[0]["exp_avg"].any() and state["exp_avg"].all()


def test_a_held_state_is_still_the_state_after_loading():
    p, opt, q, other = adam_pair(4)
    opt.step(np.ones(4))
    state = other.state
    other.load_state_dict(opt.state_dict())
    assert state[0]["exp_avg"] is other.state[0]["exp_avg"]


def test_groups_ascend_or_descend_and_zero_on_their_own():
    a, b = np.zeros(3), np.zeros(3)
    opt = fastopt.SGD(({"params": a}, {"params": b, "maximize": True}), lr=1.0)
    grads = [np.ones(3), np.ones(3)]
    opt.step(grads, zero_grad=True)
    assert (a == -1).all() and (b == 1).all() and not grads[0].any() and not grads[1].any()


@pytest.mark.parametrize("make", [
    lambda lib, p: lib.Adam(p, lr=1e-2),
    lambda lib, p: lib.Adagrad(p, lr=1e-2, lr_decay=0.1),
    lambda lib, p: lib.SGD(p, lr=1e-2, momentum=0.9, dampening=0.5),
])
def test_a_group_added_later_begins_at_its_own_first_step(make):
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 8))
    c[:] = b
    opt, fresh = make(fastopt, a), make(fastopt, c)
    for _ in range(50):
        opt.step(rng.standard_normal(8))
    opt.add_param_group({"params": b})
    assert opt.steps == 50
    again = make(fastopt, a.copy())
    again.add_param_group({"params": b.copy()})
    for _ in range(3):
        g = rng.standard_normal(8)
        opt.step([np.ones(8), g]), fresh.step(g)
    assert same_bits(b, c)
    again.load_state_dict(opt.state_dict())
    again.groups[1]["params"][...] = b
    opt.step([np.ones(8), g]), again.step([np.ones(8), g]), fresh.step(g)
    assert same_bits(b, c) and same_bits(again.groups[1]["params"], c)


def test_a_state_dict_right_after_the_rule_was_changed():
    p, opt, q, other = adam_pair()
    opt.step(np.ones(100))
    opt.groups[0]["amsgrad"] = True
    other.load_state_dict(opt.state_dict())
    opt.step(np.ones(100))
    q[:] = p
    assert list(other.state[0]) == ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]


def test_a_rule_changed_in_one_group_leaves_the_others_as_they_are():
    arrays_, mirror = np.zeros((2, 4)), np.zeros((2, 4))
    opts = [
        fastopt.SGD([{"params": x[0], "momentum": 0.5}, {"params": x[1], "lr": 0.3}], lr=0.1)
        for x in (arrays_, mirror)
    ]
    for opt in opts:
        opt.step([np.ones(4), np.ones(4)])
    opts[0].groups[1]["momentum"] = 0.9
    for opt in opts:
        opt.step([np.ones(4), np.ones(4)])
    assert same_bits(arrays_[0], mirror[0])
    np.testing.assert_allclose(arrays_[1], -0.6)


# --- Schedules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_schedule_is_the_number_it_returns(rule):
    rng = np.random.default_rng(0)
    p = rng.standard_normal(50)
    q = p.copy()
    scheduled = rule.make(p, lr=lambda step: 0.1 / (1 + step))
    by_hand = rule.make(q)
    for step in range(5):
        g = rng.standard_normal(50)
        by_hand.groups[0]["lr"] = 0.1 / (1 + step)
        scheduled.step(g), by_hand.step(g)
    assert same_bits(p, q)


def test_every_number_may_be_a_schedule():
    p, opt, q, other = adam_pair(betas=(lambda step: 0.5 + 0.1 * step, 0.99), weight_decay=lambda s: 0.1 * s)
    plain = fastopt.Adam(q, betas=(0.5, 0.99))
    for step in range(4):
        g = np.full(100, 1.0 + step)
        plain.groups[0].update(betas=(0.5 + 0.1 * step, 0.99), weight_decay=0.1 * step)
        opt.step(g), plain.step(g)
    assert same_bits(p, q)


def test_a_scheduled_momentum_has_a_buffer_from_the_start():
    p = np.zeros(3)
    opt = fastopt.SGD(p, lr=1.0, momentum=lambda step: 0.0 if step == 0 else 0.9)
    opt.step(np.ones(3)), opt.step(np.ones(3))
    np.testing.assert_allclose(p, -1 - 1.9)


def test_a_schedule_that_returns_nonsense_changes_nothing():
    p, opt, _, _ = adam_pair(lr=lambda step: -1.0)
    before = p.copy()
    with pytest.raises(ValueError, match=r"lr: .* got -1.0"):
        opt.step(np.ones(100))
    assert same_bits(p, before) and opt.steps == 0


# --- Saving, pickling, copying -----------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES + MATRIX_RULES, ids=str)
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_a_run_goes_on_where_it_stopped(rule, how):
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(20), rng.standard_normal((3, 4)).astype(np.float32)]
    grads = [[np.array(rng.standard_normal(p.shape), p.dtype) for p in params] for _ in range(6)]
    opt = rule.make(params, ema=0.9)
    for g in grads[:3]:
        opt.step(g)
    if how == "state_dict":
        again = [p.copy() for p in params]
        other = rule.make(again, ema=0.9)
        other.load_state_dict(opt.state_dict())
    else:
        other = copy.deepcopy(opt) if how == "deepcopy" else pickle.loads(pickle.dumps(opt))
        again = other.params
    for g in grads[3:]:
        opt.step(g), other.step(g)
    for p, q in zip(params + opt.ema, again + other.ema, strict=True):
        assert p is not q and same_bits(p, q)
    assert other.steps == 6


def test_parameters_stay_shared_in_a_copied_graph():
    p = np.zeros(3)
    q, opt = copy.deepcopy((p, fastopt.SGD(p, lr=1.0)))
    opt.step(np.ones(3))
    assert (q == -1).all() and (p == 0).all()


def test_a_state_dict_is_plain_and_a_copy():
    p, opt, _, _ = adam_pair()
    opt.step(np.ones(100))
    saved = opt.state_dict()
    kept = saved["state"][""]["exp_avg"].copy()
    opt.step(np.ones(100))
    assert same_bits(saved["state"][""]["exp_avg"], kept)
    plain = (int, float, bool, str, tuple, list)
    assert all(isinstance(v, plain) for group in saved["groups"] for v in group.values() if v != {})


def test_a_stateful_schedule_is_saved_with_the_optimizer():
    plateau = schedules.ReduceOnPlateau(0.1, patience=0)
    p, opt, q, _ = adam_pair(lr=plateau)
    for metric in (1.0, 1.0, 1.0):
        opt.step(np.ones(100))
        plateau.report(metric)
    other = fastopt.Adam(q, lr=schedules.ReduceOnPlateau(0.1, patience=0))
    other.load_state_dict(opt.state_dict())
    assert other.groups[0]["lr"](3) == plateau(3) < 0.1


def test_loading_is_all_or_nothing():
    plateau = schedules.ReduceOnPlateau(0.1)
    p, opt, _, _ = adam_pair(lr=plateau, eps=1e-3)
    saved = opt.state_dict()
    saved["groups"][0]["eps"], saved["groups"][0]["schedules"]["lr"] = 0.5, {"bad": 1}
    with pytest.raises(ValueError, match=r"\['schedules'\]\['lr'\]: ReduceOnPlateau does not take it"):
        opt.load_state_dict(saved)
    assert opt.groups[0]["eps"] == 1e-3


def test_counts_and_averages_are_saved_as_they_were():
    p, opt, q, other = adam_pair(skip_nonfinite=True, ema=0.5)
    opt.step(np.full(100, np.nan)), opt.step(np.ones(100))
    saved = opt.state_dict()
    kept = saved["ema"][""].copy()
    opt.step(np.ones(100))
    assert same_bits(saved["ema"][""], kept)
    other.load_state_dict(saved)
    assert (other.skipped_steps, other.steps) == (1, 1) and same_bits(other.ema, kept)


# --- Options of a step -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shaping_equals_doing_it_by_hand(rule, dtype):
    """Scaling, clipping by norm, clipping by value: the same step as with gradients shaped before."""
    rng = np.random.default_rng(0)
    params = arrays(rng, dtype, 700, 3)
    mirror = [p.copy() for p in params]
    opt, by_hand = rule.make(params), rule.make(mirror)
    for _ in range(3):
        grads = arrays(rng, dtype, 700, 3)
        norm = np.sqrt(sum((g.astype(float) ** 2).sum() for g in grads)) * 0.5
        opt.step(grads, grad_scale=0.5, max_norm=1.0, clip_value=0.05)
        assert opt.grad_norm == pytest.approx(norm, rel=1e-12)
        coefficient = dtype(0.5 * (1.0 / (opt.grad_norm + 1e-6)))
        by_hand.step([np.clip(g * coefficient, dtype(-0.05), dtype(0.05)) for g in grads])
    assert all(same_bits(p, q) for p, q in zip(params, mirror, strict=True))


def test_a_small_norm_is_not_clipped():
    p, opt, q, other = adam_pair()
    g = np.random.default_rng(1).standard_normal(100)
    opt.step(g, max_norm=1e3), other.step(g)
    assert same_bits(p, q) and opt.grad_norm == pytest.approx(np.linalg.norm(g))


def test_clipping_agrees_with_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(0)
    shapes = [(30, 20), (20,), (20, 5)]
    params = [rng.standard_normal(s) for s in shapes]
    theirs = [torch.tensor(p.copy(), requires_grad=True) for p in params]
    opt, their_opt = fastopt.AdamW(params, ema=0.9), torch.optim.AdamW(theirs)
    averages = [t.detach().clone() for t in theirs]
    for _ in range(20):
        grads = [rng.standard_normal(s) for s in shapes]
        for t, g in zip(theirs, grads, strict=True):
            t.grad = torch.from_numpy(g.copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        their_opt.step()
        for a, t in zip(averages, theirs, strict=True):
            a.lerp_(t.detach(), 0.1)
        opt.step(grads, max_norm=1.0)
        assert opt.grad_norm == pytest.approx(float(norm), rel=1e-12)
    for p, t, e, a in zip(params, theirs, opt.ema, averages, strict=True):
        np.testing.assert_allclose(p, t.detach().numpy(), rtol=1e-11)
        np.testing.assert_allclose(e, a.numpy(), rtol=1e-11)


def test_a_nan_among_the_gradients_spreads_through_the_norm():
    p, opt, _, _ = adam_pair(4)
    opt.step(np.array([1.0, np.nan, 1.0, 1.0]), max_norm=1.0)
    assert np.isnan(p).all() and np.isnan(opt.grad_norm)


def test_the_norm_is_that_of_the_scaled_gradients_and_only_where_asked_for():
    p, opt, _, _ = adam_pair(4)
    opt.step(np.ones(4), grad_scale=-3.0)
    assert opt.grad_norm is None
    opt.step(np.ones(4), grad_scale=-3.0, max_norm=1e9)
    assert opt.grad_norm == 6.0


def test_zero_grad_zeroes_after_use_whatever_the_layout():
    p, q = np.zeros((4, 6)), np.zeros((4, 6))
    opt = fastopt.SGD([p, q], lr=1.0)
    plain, transposed = np.ones((4, 6)), np.ones((6, 4)).T
    opt.step([plain, transposed], zero_grad=True)
    assert (p == -1).all() and (q == -1).all()
    assert (plain == 0).all() and (transposed == 0).all()


def test_gradients_are_only_read():
    p, opt, _, _ = adam_pair(ema=0.9)
    g = np.random.default_rng(0).standard_normal(100)
    g.flags.writeable = False
    opt.step(g, max_norm=0.1, clip_value=0.01, grad_scale=3.0)


def test_skip_nonfinite_leaves_everything_and_counts():
    p, opt, _, _ = adam_pair(ema=0.9, skip_nonfinite=True)
    g = np.random.default_rng(0).standard_normal(100)
    opt.step(g)
    before = [a.copy() for a in (p, *opt.state[0].values(), opt.ema)]
    for bad in (np.nan, np.inf, -np.inf):
        poisoned = g.copy()
        poisoned[-1] = bad
        assert not opt.step(poisoned, zero_grad=True)
        assert not poisoned.any()
    assert all(same_bits(a, b) for a, b in zip((p, *opt.state[0].values(), opt.ema), before, strict=True))
    assert (opt.skipped_steps, opt.steps) == (3, 1)
    opt.step(g)
    assert (opt.skipped_steps, opt.steps) == (3, 2)


def test_skip_nonfinite_takes_large_doubles_for_what_they_are():
    """Their squares overflow, they do not."""
    p = np.zeros(3)
    opt = fastopt.SGD(p, lr=1e-200, skip_nonfinite=True)
    opt.step(np.full(3, 1e200))
    np.testing.assert_allclose(p, -1.0)
    assert opt.skipped_steps == 0


def test_skip_nonfinite_looks_at_the_scaled_gradients():
    p = np.ones(3, np.float32)
    opt = fastopt.SGD(p, lr=1.0, momentum=0.5, skip_nonfinite=True)
    opt.step(np.full(3, 1e30, np.float32), grad_scale=1e30)
    assert (opt.skipped_steps, opt.steps) == (1, 0) and (p == 1).all()
    q = np.ones(3)
    opt = fastopt.SGD(q, lr=1.0, skip_nonfinite=True)
    opt.step(np.full(3, 1e200), grad_scale=0.0)
    assert (opt.skipped_steps, opt.steps) == (0, 1)


def test_the_weight_of_an_average_may_be_a_schedule():
    p = np.zeros(3)
    opt = fastopt.SGD(p, lr=1.0, ema=lambda step: 0.5 * (step > 0))
    opt.step(np.ones(3))
    assert same_bits(opt.ema, p)
    opt.step(np.ones(3))
    assert (opt.ema == -1.5).all()


def test_while_swapped_no_step_and_no_saving():
    p = np.zeros(3)
    opt = fastopt.SGD(p, lr=1.0, ema=0.5)
    opt.step(np.ones(3))
    saved = opt.state_dict()
    with pytest.raises(KeyError), opt.swapped_ema():
        with pytest.raises(RuntimeError, match="step: not allowed inside swapped_ema"):
            opt.step(np.ones(3))
        with pytest.raises(RuntimeError, match="state_dict: not allowed inside"):
            opt.state_dict()
        with pytest.raises(RuntimeError, match="load_state_dict: not allowed inside"):
            opt.load_state_dict(saved)
        with pytest.raises(RuntimeError, match="add_param_group: not allowed inside"):
            opt.add_param_group({"params": np.zeros(2)})
        with pytest.raises(RuntimeError, match="swapped_ema: not allowed inside"), opt.swapped_ema():
            pass
        raise KeyError
    assert (p == -1).all() and opt.steps == 1
    opt.step(np.ones(3))
    assert (p == -2).all()


@pytest.mark.parametrize("again", [copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("swapped", ["swapped_ema", "averaged"])
def test_no_copy_of_what_could_not_be_swapped_back(swapped, again):
    opt = fastopt.SGDScheduleFree(np.zeros(3), ema=0.5)
    opt.step(np.ones(3))
    message = r"copying: not allowed inside .* or averaged"
    with getattr(opt, swapped)(), pytest.raises(RuntimeError, match=message):
        again(opt)
    again(opt)


def test_an_average_after_loading_is_that_of_the_steps_taken():
    """The momentum that tells the average is the last step's, whatever has been set or scheduled since."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal(5)
    options = {"lr": 0.1, "momentum": lambda step: 0.9 if step < 2 else 0.6}
    opt = fastopt.SGDScheduleFree(p, **options)
    for _ in range(3):
        opt.step(rng.standard_normal(5))
    with opt.averaged():
        average = p.copy()
    for other in (fastopt.SGDScheduleFree(p.copy(), **options), fastopt.SGDScheduleFree(p.copy(), 0.1, 0.3)):
        other.load_state_dict(opt.state_dict(), strict=False)   # the second has no schedule
        for _ in range(2):
            with other.averaged():
                assert same_bits(other.params, average)
            other.groups[0]["momentum"] = 0.5
    fresh = fastopt.SGDScheduleFree(q := np.ones(5))
    with fresh.averaged():
        assert (q == 1).all()


def test_what_a_run_has_lost_its_numbers_with_is_saved_like_any_other():
    p = np.ones(3)
    opt = fastopt.Prodigy(p)
    opt.step(np.full(3, np.nan))
    other = fastopt.Prodigy(np.ones(3))
    other.load_state_dict(opt.state_dict())
    assert np.isnan(other.groups[0].numbers["d_numerator"])


def test_steps_may_be_set_to_less_than_a_group_has_seen():
    p, q = np.zeros(3), np.zeros(3)
    opt = fastopt.Adam(p, lr=1.0)
    for _ in range(5):
        opt.step(np.ones(3))
    opt.add_param_group({"params": q})
    opt.steps = 2
    for t in (1, 2):
        opt.step([np.ones(3), np.ones(3)])
        np.testing.assert_allclose(q, -t, rtol=1e-7)
    assert opt.steps == 4


def test_ema_averages_and_swaps():
    p = np.zeros(3)
    opt = fastopt.SGD([{"params": p}], lr=1.0, ema=0.75)
    opt.step([np.ones(3)])
    opt.step([np.ones(3)])
    np.testing.assert_allclose(opt.ema[0], -0.75 * 0.25 - 2 * 0.25)
    average = opt.ema[0].copy()
    with opt.swapped_ema():
        assert same_bits(p, average)
    assert (p == -2).all() and same_bits(opt.ema[0], average)


def test_ema_equals_its_formula_to_the_bit(isa):
    rng = np.random.default_rng(0)
    p = rng.standard_normal(5000).astype(np.float32)
    opt = fastopt.Adam(p, ema=0.999)
    average, keep, take = p.copy(), np.float32(0.999), np.float32(1 - 0.999)
    for _ in range(3):
        opt.step(rng.standard_normal(5000).astype(np.float32))
        average = keep * average + take * p
    assert same_bits(opt.ema, average)


def test_swapped_ema_without_an_average():
    with pytest.raises(ValueError, match="ema"), fastopt.SGD(np.zeros(3)).swapped_ema():
        pass


def test_repr_says_what_is_optimized():
    text = repr(fastopt.Adam([np.zeros((3, 4)), np.zeros(4)], lr=0.5))
    assert "Adam(" in text and "lr=0.5" in text and "2 arrays, 16 elements" in text


# --- Scalars by name ---------------------------------------------------------------------------------


def broken_adam(**methods):
    """A class of Adam whose rule has other scalars."""
    rule = type("BrokenRule", (fastopt.Adam.RULE,), {name: classmethod(f) for name, f in methods.items()})
    return type("Broken", (fastopt.Adam,), {"RULE": rule})


SCALARS = fastopt.Adam.RULE


@pytest.mark.parametrize(("methods", "message"), [
    ({"constants": lambda cls, hp: {"beta1": 0.9}}, "expected the scalars decay_factor, one_minus_beta1, "),
    ({"constants": lambda cls, hp: {**SCALARS.constants(hp), "beta3": 0.9}}, "adam: unknown scalar 'beta3'"),
    ({"step_scalars": lambda cls, hp, t: {"lr": 0.1}}, "expected the scalars lr, denom_scale .* got lr$"),
    ({"step_scalars": lambda cls, hp, t: {**SCALARS.step_scalars(hp, t), "t": 1.0}}, ", t$"),
    ({"step_scalars": lambda cls, hp, t: {"lr": 0.1, "scale": 1.0}}, "got lr, scale$"),
    ({"step_scalars": lambda cls, hp, t: {}}, "got none$"),
])
def test_scalars_that_are_not_those_of_the_kernel_are_refused(methods, message):
    p, g = np.ones(3), np.ones(3)
    opt = broken_adam(**methods)(p, lr=0.1)
    for _ in range(2):
        with pytest.raises(TypeError, match=message):
            opt.step(g)
    assert (p == 1).all() and opt.steps == 0 and not opt.state[0]["exp_avg"].any()
