"""Rules that neither torch nor optax has, against the pseudocode of their papers, number by number."""

import math

import numpy as np
import pytest

import fastopt

STEPS, SIZE = 200, 40


def walk(theirs, optimizer, **options):
    """Both paths on the same gradients; `theirs` takes a list of floats and returns the new one."""
    rng = np.random.default_rng(0)
    p = rng.standard_normal(SIZE)
    q = p.tolist()
    opt = optimizer(p, **options)
    for t in range(1, STEPS + 1):
        noise = rng.standard_normal(SIZE)
        opt.step(noise + p)
        q = theirs(t, q, [n + x for n, x in zip(noise, q, strict=True)])
    np.testing.assert_allclose(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("alpha", "beta", "l1", "l2"), [(0.1, 1.0, 0.0, 0.0), (0.5, 0.1, 1.5, 0.3)])
def test_ftrl(alpha, beta, l1, l2):
    """McMahan 2013, algorithm 1; z is started so that the initial weights are the given ones."""
    z, n = [0.0] * SIZE, [0.0] * SIZE
    seen_zero = []

    def step(t, w, g):
        out = []
        for i in range(SIZE):
            sigma = (math.sqrt(n[i] + g[i] ** 2) - math.sqrt(n[i])) / alpha
            z[i] += g[i] - sigma * w[i]
            n[i] += g[i] ** 2
            if abs(z[i]) <= l1:
                out.append(0.0)
            else:
                out.append(-(z[i] - math.copysign(l1, z[i])) / ((beta + math.sqrt(n[i])) / alpha + l2))
        seen_zero.append(0.0 in out)
        return out

    walk(step, fastopt.FTRL, lr=alpha, beta=beta, l1=l1, l2=l2)
    assert any(seen_zero) == (l1 > 0)


@pytest.mark.parametrize("no_prox", [False, True])
def test_adan(no_prox):
    """Xie 2022, algorithm 1, whose betas are one minus ours."""
    lr, eps, decay = 0.05, 1e-8, 0.02
    b1, b2, b3 = 0.02, 0.08, 0.01
    m, v, n, last = ([0.0] * SIZE for _ in range(4))

    def step(t, x, g):
        out = []
        for i in range(SIZE):
            d = 0.0 if t == 1 else g[i] - last[i]
            m[i] = (1 - b1) * m[i] + b1 * g[i]
            v[i] = (1 - b2) * v[i] + b2 * d
            n[i] = (1 - b3) * n[i] + b3 * (g[i] + (1 - b2) * d) ** 2
            last[i] = g[i]
            m_hat, v_hat = m[i] / (1 - (1 - b1) ** t), v[i] / (1 - (1 - b2) ** t)
            eta = lr / (math.sqrt(n[i] / (1 - (1 - b3) ** t)) + eps)
            move = eta * (m_hat + (1 - b2) * v_hat)
            out.append(x[i] * (1 - lr * decay) - move if no_prox else (x[i] - move) / (1 + lr * decay))
        return out

    walk(step, fastopt.Adan, lr=lr, weight_decay=decay, no_prox=no_prox)


def test_cautious_adamw():
    """Liang 2024, algorithm 1, with the mean over the array as in the authors' code."""
    lr, b1, b2, eps, decay = 0.05, 0.9, 0.999, 1e-8, 0.02
    m, v = [0.0] * SIZE, [0.0] * SIZE

    def step(t, w, g):
        for i in range(SIZE):
            m[i] = b1 * m[i] + (1 - b1) * g[i]
            v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
        phi = [float(m[i] * g[i] > 0) for i in range(SIZE)]
        mean = max(sum(phi) / SIZE, 1e-3)
        u = [(m[i] / (1 - b1**t)) / (math.sqrt(v[i] / (1 - b2**t)) + eps) for i in range(SIZE)]
        return [w[i] * (1 - lr * decay) - lr * u[i] * phi[i] / mean for i in range(SIZE)]

    walk(step, fastopt.AdamW, lr=lr, weight_decay=decay, cautious=True)


def test_cautious_lion():
    lr, b1, b2, decay = 0.01, 0.9, 0.99, 0.02
    m = [0.0] * SIZE

    def step(t, w, g):
        u = [b1 * m[i] + (1 - b1) * g[i] for i in range(SIZE)]
        for i in range(SIZE):
            m[i] = b2 * m[i] + (1 - b2) * g[i]
        phi = [float(u[i] * g[i] > 0) for i in range(SIZE)]
        mean = max(sum(phi) / SIZE, 1e-3)
        return [w[i] * (1 - lr * decay) - lr * math.copysign(1, u[i]) * phi[i] / mean for i in range(SIZE)]

    walk(step, fastopt.Lion, lr=lr, weight_decay=decay, cautious=True)


def test_signum():
    lr, mu = 0.01, 0.9
    m = [0.0] * SIZE

    def step(t, w, g):
        for i in range(SIZE):
            m[i] = mu * m[i] + (1 - mu) * g[i]
        return [w[i] - lr * math.copysign(1, m[i]) for i in range(SIZE)]

    walk(step, fastopt.SignSGD, lr=lr, momentum=mu)


def test_lars():
    """You 2017, algorithm 1."""
    lr, mu, decay, trust = 1.0, 0.9, 0.1, 0.01
    v = [0.0] * SIZE

    def step(t, w, g):
        norm_w, norm_g = (math.sqrt(math.fsum(x * x for x in y)) for y in (w, g))
        local = trust * norm_w / (norm_g + decay * norm_w)
        for i in range(SIZE):
            v[i] = mu * v[i] + lr * local * (g[i] + decay * w[i])
        return [w[i] - v[i] for i in range(SIZE)]

    walk(step, fastopt.LARS, lr=lr, momentum=mu, weight_decay=decay, trust_coefficient=trust, eps=0.0)


def test_ademamix_warms_up():
    """Pagliardini 2024, algorithm 1, with its schedules."""
    lr, b1, b2, b3, alpha, steps, decay = 0.01, 0.9, 0.999, 0.999, 5.0, 120, 0.1
    m1, m2, v = ([0.0] * SIZE for _ in range(3))

    def step(t, w, g):
        a = alpha * min(t / steps, 1.0)
        log1, log3, s = math.log(b1), math.log(b3), min(t / steps, 1.0)
        beta3 = min(math.exp(log1 * log3 / ((1 - s) * log3 + s * log1)), b3)
        out = []
        for i in range(SIZE):
            m1[i] = b1 * m1[i] + (1 - b1) * g[i]
            m2[i] = beta3 * m2[i] + (1 - beta3) * g[i]
            v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
            u = (m1[i] / (1 - b1**t) + a * m2[i]) / (math.sqrt(v[i] / (1 - b2**t)) + 1e-8)
            out.append(w[i] - lr * (u + decay * w[i]))
        return out

    options = {"alpha_warmup": steps, "beta3_warmup": steps, "weight_decay": decay}
    walk(step, fastopt.AdEMAMix, lr=lr, betas=(b1, b2, b3), alpha=alpha, **options)
