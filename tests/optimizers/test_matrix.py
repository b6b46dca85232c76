"""Rules that see matrices as such: Adafactor and Muon."""

import numpy as np
import pytest
from rules import same_bits

import fastopt
from fastopt import functional, reference
from fastopt.optimizers.matrix import orthogonalize

SHAPES = [(30, 20), (20, 30), (7,), (), (3, 4, 5), (1, 6), (0, 4), (6, 1)]


def walk(torch, ours, theirs, shapes, steps=200):
    rng = np.random.default_rng(0)
    params = [np.array(rng.standard_normal(s)) for s in shapes]
    mirror = [torch.from_numpy(p.copy()).requires_grad_() for p in params]
    opt, their = ours(params), theirs(mirror)
    for _ in range(steps):
        grads = [np.asarray(rng.standard_normal(s) + p) for s, p in zip(shapes, params, strict=True)]
        for q, g in zip(mirror, grads, strict=True):
            q.grad = torch.from_numpy(g.copy())
        opt.step(grads)
        their.step()
    for p, q in zip(params, mirror, strict=True):
        np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [
    {},
    {"lr": 0.1, "beta2_decay": -0.5, "eps": (1e-3, 1e-2), "d": 1.5, "weight_decay": 0.1, "maximize": True},
])
def test_adafactor_parity_with_torch(torch, options):
    shapes = [s for s in SHAPES if 0 not in s]
    walk(
        torch, lambda p: fastopt.Adafactor(p, **options),
        lambda p: torch.optim.Adafactor(p, **options), shapes,
    )


@pytest.mark.parametrize("options", [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.8, "nesterov": False, "weight_decay": 0.01, "adjust_lr_fn": "original"},
    {"lr": 0.1, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "ns_coefficients": (2.0, -1.5, 0.5)},
])
def test_muon_parity_with_torch(torch, options, monkeypatch):
    """torch's own rounds to bfloat16, which is taken out here."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    shapes = [s for s in SHAPES if len(s) == 2 and 0 not in s]
    walk(torch, lambda p: fastopt.Muon(p, **options), lambda p: torch.optim.Muon(p, **options), shapes)


def test_muon_leaves_the_rest_to_adamw():
    rng = np.random.default_rng(0)
    matrix, vector, embedding = (rng.standard_normal(shape) for shape in ((4, 3), 5, (6, 2)))
    v, e = vector.copy(), embedding.copy()
    opt = fastopt.Muon([{"params": [matrix, vector]}, {"params": embedding, "muon": False}], weight_decay=0.2)
    adamw = fastopt.AdamW([v, e], lr=3e-4, betas=(0.9, 0.95), weight_decay=0.2)
    for _ in range(3):
        g = [rng.standard_normal(s) for s in ((4, 3), 5, (6, 2))]
        opt.step([g[:2], g[2]], max_norm=1.0)
        adamw.step(g[1:], grad_scale=min(1.0, 1.0 / (opt.grad_norm + 1e-6)))
    np.testing.assert_allclose(v, vector, rtol=1e-14)
    np.testing.assert_allclose(e, embedding, rtol=1e-14)
    assert [list(s) for s in opt.state] == [
        ["momentum_buffer"], ["exp_avg", "exp_avg_sq"], ["exp_avg", "exp_avg_sq"],
    ]


@pytest.mark.parametrize("shape", [(12, 5), (5, 12)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    exact = orthogonalize(x, (1.875, -1.25, 0.375), 30, 1e-7)     # these converge to one
    np.testing.assert_allclose(np.linalg.svd(exact, compute_uv=False), 1.0, rtol=1e-10)
    u, _, v = np.linalg.svd(x, full_matrices=False)
    np.testing.assert_allclose(exact, u @ v, atol=1e-10)
    rough = np.linalg.svd(orthogonalize(x, (3.4445, -4.775, 2.0315), 5, 1e-7), compute_uv=False)
    assert rough.min() > 0.6 and rough.max() < 1.3


CALLS = {
    "adafactor_": (fastopt.Adafactor, {"lr": 0.1, "weight_decay": 0.1}),
    "muon_": (fastopt.Muon, {"lr": 0.1, "maximize": True}),
}
# Largest difference of an update, in units of the dtype's epsilon times the update's largest element.
BOUNDS = {"adafactor_": 8, "muon_": 128}


def zero_state(name, p):
    if name == "muon_":
        return {"momentum_buffer": np.zeros_like(p)}
    if p.ndim < 2:
        return {"variance": np.zeros_like(p)}
    shapes = {"row_var": (*p.shape[:-1], 1), "col_var": (*p.shape[:-2], 1, p.shape[-1])}
    return {n: np.zeros(s, p.dtype) for n, s in shapes.items()}


def matrix_cases():
    return [(name, shape) for name in CALLS for shape in SHAPES if name == "adafactor_" or len(shape) == 2]


@pytest.mark.parametrize(("name", "shape"), matrix_cases())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_agree_with_the_reference_within_the_documented_bound(name, shape, dtype, isa):
    rng = np.random.default_rng(0)
    _, options = CALLS[name]
    p = np.array(rng.standard_normal(shape), dtype)
    state = zero_state(name, p)
    for step in (1, 2, 3):
        g = np.array(rng.standard_normal(shape), dtype)
        before, expected = p.copy(), p.copy()
        expected_state = {n: s.copy() for n, s in state.items()}
        timed = {"step": step} if name == "adafactor_" else {}
        getattr(functional, name)(p, g, **state, **options, **timed)
        getattr(reference, name)(expected, g, **expected_state, **options, **timed)
        update, rounding = abs(p - before).max(initial=0.0), 2 * abs(before).max(initial=0.0)
        atol = np.finfo(dtype).eps * (BOUNDS[name] * update + rounding)
        np.testing.assert_allclose(p, expected, rtol=0.0, atol=atol)
        for n, array in state.items():
            atol = 4 * np.finfo(dtype).eps * abs(array).max(initial=0.0)
            np.testing.assert_allclose(array, expected_state[n], rtol=0.0, atol=atol)
        assert all(f"at most {BOUNDS[name]} times" in getattr(module, name).__doc__.replace("\n", " ")
                   for module in (functional, reference))


@pytest.mark.parametrize(("name", "shape"), matrix_cases())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_equal_the_optimizers(name, shape, dtype, isa):
    rng = np.random.default_rng(0)
    optimizer, options = CALLS[name]
    p = np.array(rng.standard_normal(shape), dtype)
    q, state = p.copy(), zero_state(name, p)
    opt = optimizer(q, **options)
    for step in (1, 2, 3):
        g = np.array(rng.standard_normal(shape), dtype)
        opt.step(g)
        timed = {"step": step} if name == "adafactor_" else {}
        getattr(functional, name)(p, g, **state, **options, **timed)
        assert same_bits(p, q) and all(same_bits(state[n], opt.state[0][n]) for n in state)


@pytest.mark.parametrize("optimizer", [fastopt.Adafactor, fastopt.Muon])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_shape_and_every_option_of_a_step(optimizer, dtype):
    rng = np.random.default_rng(0)
    params = [np.array(rng.standard_normal(s), dtype) for s in SHAPES]
    mirror = [p.copy() for p in params]
    opt, by_hand = optimizer(params, ema=0.9), optimizer(mirror, maximize=True)
    for _ in range(3):
        grads = [np.array(rng.standard_normal(s), dtype) for s in SHAPES]
        grads[0] = np.asfortranarray(grads[0])
        kept = [g.copy() for g in grads]
        opt.step(grads, grad_scale=0.5, max_norm=1.0, clip_value=0.05, zero_grad=True)
        assert not any(g.any() for g in grads)
        factor = dtype(0.5 / (opt.grad_norm + 1e-6))
        by_hand.step([-np.clip(g * factor, dtype(-0.05), dtype(0.05)) for g in kept])
    assert all(same_bits(p, q) for p, q in zip(params, mirror, strict=True))
    assert all(np.isfinite(p).all() for p in params)


def test_a_gradient_is_used_once_only():
    """What a step has put in its place must not be there in the next one."""
    p = np.ones((3, 3))
    opt = fastopt.Muon(p, lr=0.1)
    g = np.eye(3)
    opt.step(g)
    g[:] = 0
    before = opt.state[0]["momentum_buffer"].copy()
    opt.step(g)
    np.testing.assert_allclose(opt.state[0]["momentum_buffer"], 0.95 * before)


def test_saved_state_has_the_shapes_of_the_rule():
    params = [np.ones((3, 4)), np.ones(5)]
    opt, other = fastopt.Adafactor(params), fastopt.Adafactor([p.copy() for p in params])
    opt.step([p.copy() for p in params])
    saved = opt.state_dict()
    assert saved["state"]["0"]["row_var"].shape == (3, 1) and saved["state"]["0"]["col_var"].shape == (1, 4)
    other.load_state_dict(saved)
    assert same_bits(other.state[0]["col_var"], opt.state[0]["col_var"])
    saved["state"]["0"]["row_var"] = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"\['row_var'\]: expected float64 of shape \(3, 1\)"):
        other.load_state_dict(saved)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: fastopt.Adafactor(np.ones(3), beta2_decay=0.1), "beta2_decay: "),
    (lambda: fastopt.Adafactor(np.ones(3), d=0.5), "d: "),
    (lambda: fastopt.Adafactor(np.ones(3), eps=(None, None)), "eps: "),
    (lambda: fastopt.Muon(np.ones(3), adjust_lr_fn="best"), "adjust_lr_fn: expected one of None, original"),
    (lambda: fastopt.Muon(np.ones(3), ns_coefficients=(1.0, 2.0)), "ns_coefficients: expected 3 numbers"),
    (lambda: fastopt.Muon(np.ones(3), ns_steps=2.5), "ns_steps: "),
    (lambda: functional.muon_(np.ones(3), np.ones(3), np.zeros(3), lr=0.1), "p: expected a matrix"),
    (lambda: functional.adafactor_(np.ones((3, 2)), np.ones((3, 2)), variance=np.ones((3, 2)), step=1),
     "row_var"),
])
def test_bad_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize(("optimizer", "options"), [
    (fastopt.Muon, {}), (fastopt.Adafactor, {}), (fastopt.SGD, {"centralize": True, "unit_clip": 0.1}),
])
def test_what_numpy_warns_of_is_a_number_like_any_other(optimizer, options):
    """A step that is taken in parts must not be left in its midst."""
    params = [np.ones((3, 2)), np.ones((3, 2))]
    opt = optimizer(params, **options)
    with np.errstate(all="raise"):
        opt.step([np.ones((3, 2)), np.full((3, 2), np.inf)])
    assert opt.steps == 1 and np.isfinite(params[0]).all() and np.isnan(params[1]).any()
