"""Gradients whose squares overflow or underflow: no NaN from finite gradients, and torch's results."""

import numpy as np
import pytest
from rules import MATRIX_RULES, RULES

import fastopt

try:
    import torch
except ImportError:
    torch = None

MAGNITUDES = {
    np.float32: [1e-38, 1e-30, 1e-20, 1e10, 1e18, 1e19, 1e20, 1e30],
    np.float64: [1e-300, 1e-160, 1e100, 1e153, 1e154, 1e155, 1e250],
}
SHAPE = (4, 3)


def gradients(dtype, magnitude, steps=12):
    rng = np.random.default_rng(0)
    for step in range(steps):
        yield (rng.standard_normal(SHAPE) * magnitude * (step not in (6, 7))).astype(dtype)


@pytest.mark.parametrize("rule", RULES + MATRIX_RULES, ids=str)
@pytest.mark.parametrize("dtype", MAGNITUDES)
def test_finite_gradients_give_finite_parameters(rule, dtype):
    for magnitude in MAGNITUDES[dtype]:
        p = np.random.default_rng(1).standard_normal(SHAPE).astype(dtype)
        opt = rule.make(p)
        for step, g in enumerate(gradients(dtype, magnitude), 1):
            opt.step(g)
            assert np.isfinite(p).all(), (magnitude, step)


@pytest.mark.parametrize(("dtype", "magnitude"), [(np.float32, 1e20), (np.float64, 1e160)], ids=str)
@pytest.mark.parametrize("convention", ["torch", "optax"])
def test_radam_uses_momentum_alone_in_its_first_steps(dtype, magnitude, convention):
    """The second moment is infinite then, and has no weight in the step."""
    p = np.zeros(1, dtype)
    opt = fastopt.RAdam(p, convention=convention)
    for step in range(1, 6):
        opt.step(np.full(1, magnitude, dtype))
        np.testing.assert_allclose(p, -1e-3 * magnitude * step, rtol=1e-6)
    assert np.isinf(opt.state[0]["exp_avg_sq"]).all()
    before = p.copy()
    opt.step(np.full(1, magnitude, dtype))  # the first rectified step, which divides by it
    assert (p == before).all()


def test_the_steps_of_ftrl_and_yogi_after_an_overflow():
    """Squares are limited to the largest number, so a step has the size of the learning rate."""
    for kind in (fastopt.FTRL, fastopt.Yogi):
        p = np.ones(2, np.float32)
        opt = kind(p, lr=0.1)
        for _ in range(5):
            opt.step(np.array([1e30, 1.0], np.float32))
        assert np.isfinite(p).all() and all(np.isfinite(a).all() for a in opt.state[0].values())
        other = kind(np.ones(1, np.float32), lr=0.1)
        for _ in range(5):
            other.step(np.ones(1, np.float32))
        assert p[1] == other.params[0]


# Where torch's result is another: its product of two gradients underflows (Rprop), or its update is NaN or 0.
OTHERS = ("Rprop", "Adafactor", "Muon")


@pytest.mark.skipif(torch is None, reason="torch is not installed")
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.torch and rule.torch not in OTHERS], ids=str)
@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1e10, 1e17, 1e30])
def test_results_are_those_of_torch(rule, magnitude):
    p = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    q = torch.tensor(p.copy(), requires_grad=True)
    opt = rule.make(p)
    theirs = getattr(torch.optim, rule.torch)([q], **{"lr": 1e-2, **rule.options})
    largest = 1.0
    for g in gradients(np.float32, magnitude, 8):
        opt.step(g)
        q.grad = torch.tensor(g)
        theirs.step()
        largest = max(largest, float(abs(q.detach()).max()))
        np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-4, atol=2e-6 * largest)
