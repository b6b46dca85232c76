"""Every rule in a few lines of NumPy: the oracle of the tests, and the textbook.

The same signatures as `fastopt.functional`, whose docstrings say what the arguments are; nothing is
checked here. Scalars are computed in double and rounded once to the
dtype of the parameters; then each line is one correctly rounded operation after the other, in the
order in which it is written, and so the compiled kernels give the same bits (but for denormal
numbers, which they read and write as zero). ``power`` is ``**``, and ``log`` is ``math.log``, with the same
bits on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.scalar_math import log, power

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from fastopt._core.typing import Adjustment, Array, Dialect

    # To the dtype of the parameters.
    Rounding: TypeAlias = Callable[[float], np.floating[Any]]

__all__ = [
    "adabelief_", "adadelta_", "adafactor_", "adagrad_", "adam_", "adamax_", "adamw_",
    "adamw_schedule_free_", "adan_", "ademamix_", "adopt_", "asgd_", "ftrl_", "lamb_", "lars_", "lion_",
    "momentum_", "muon_", "nadam_", "prodigy_", "radam_", "rmsprop_", "rprop_", "sgd_",
    "sgd_schedule_free_", "sign_sgd_", "yogi_",
]


def sgd_(
    p: Array, g: Array, *, lr: float, weight_decay: float = 0.0, maximize: bool = False,
    convention: Dialect = "torch",
) -> None:
    real, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    p -= real(lr) * g


def momentum_(
    p: Array, g: Array, buf: Array, *, lr: float, momentum: float = 0.9, dampening: float = 0.0,
    nesterov: bool = False, step: int = 1, weight_decay: float = 0.0, maximize: bool = False,
    convention: Dialect = "torch",
) -> None:
    real, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    take = 1.0 if step == 1 else 1.0 - dampening
    if convention not in ("torch", "optax"):        # the learning rate stands inside the velocity
        lr, take = 1.0, lr * take
    d = real(take) * g
    buf[...] = real(momentum) * buf + d
    p -= real(lr) * (d + real(momentum) * buf if nesterov else buf)


def asgd_(
    p: Array, g: Array, ax: Array, *, lr: float, lambd: float = 1e-4, alpha: float = 0.75, t0: float = 1e6,
    step: int, weight_decay: float = 0.0, maximize: bool = False,
) -> None:
    real, g = _prepare(p, g, weight_decay, maximize)
    eta = lr / power(1.0 + lambd * lr * (step - 1), alpha)
    take = 1.0 / max(1.0, step - 1 - t0)
    p[...] = real(1.0 - lambd * eta) * p - real(eta) * g
    ax[...] = real(1.0 - take) * ax + real(take) * p


def rprop_(
    p: Array, g: Array, prev: Array, step_size: Array, *, lr: float, etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0), step: int, maximize: bool = False,
) -> None:
    real, g = _prepare(p, g, 0.0, maximize)
    minus, plus = etas
    turn = _sign(g) * _sign(prev)
    eta = np.where(turn > 0, real(plus), np.where(turn < 0, real(minus), real(1)))
    first = real(lr if step == 1 else 0.0)
    least, most = map(real, step_sizes)
    step_size[...] = np.clip(eta * step_size + first, least, most)
    prev[...] = np.where(turn < 0, real(0), g)
    p -= step_size * _sign(prev)


def sign_sgd_(
    p: Array, g: Array, buf: Array | None = None, *, lr: float, momentum: float = 0.0,
    weight_decay: float = 0.0, maximize: bool = False,
) -> None:
    real, g = _prepare(p, g, 0.0, maximize)
    if buf is not None:
        g = buf[...] = real(momentum) * buf + real(1.0 - momentum) * g
    p[...] = real(1.0 - lr * weight_decay) * p - real(lr) * _sign(g)


def lion_(
    p: Array, g: Array, exp_avg: Array, *, lr: float, betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0, cautious: bool = False, maximize: bool = False,
) -> None:
    real, g = _prepare(p, g, 0.0, maximize)
    beta1, beta2 = betas
    d = real(beta1) * exp_avg + real(1.0 - beta1) * g
    exp_avg[...] = real(beta2) * exp_avg + real(1.0 - beta2) * g
    keep = real(1.0 - lr * weight_decay)
    move: Array | np.floating[Any] = real(1)
    if cautious:
        move, lr = _cautious(d, g, lr)
    p[...] = keep * p - real(lr) * _sign(d) * move


def adagrad_(
    p: Array, g: Array, acc: Array, *, lr: float, eps: float = 1e-10, lr_decay: float = 0.0, step: int = 1,
    weight_decay: float = 0.0, rowwise: bool = False, maximize: bool = False, convention: Dialect = "torch",
) -> None:
    real, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    lr = lr / (1.0 + (step - 1) * lr_decay)
    if rowwise:
        acc[...] = [a + _sum(x.astype(float) ** 2) / max(x.size, 1) for a, x in zip(acc, g, strict=True)]
        acc = acc.reshape(-1, *[1] * (p.ndim - 1))
    else:
        acc += g * g
    p -= real(lr) * g / _root(real, acc, eps, convention)


def adadelta_(
    p: Array, g: Array, square_avg: Array, acc_delta: Array, *, lr: float = 1.0, rho: float = 0.9,
    eps: float = 1e-6, weight_decay: float = 0.0, maximize: bool = False, convention: Dialect = "torch",
) -> None:
    real, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    square_avg[...] = real(rho) * square_avg + real(1.0 - rho) * (g * g)
    d = np.sqrt(acc_delta + real(eps)) / np.sqrt(square_avg + real(eps)) * g
    acc_delta[...] = real(rho) * acc_delta + real(1.0 - rho) * (d * d)
    p -= real(lr) * d


def ftrl_(
    p: Array, g: Array, accumulator: Array, linear: Array, *, lr: float, l1: float = 0.0, l2: float = 0.0,
    beta: float = 1.0, weight_decay: float = 0.0, maximize: bool = False, convention: Dialect = "torch",
) -> None:
    real, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    if convention == "keras":
        l2 = 2.0 * l2
    inverse, old = real(1.0 / lr), np.sqrt(accumulator)
    accumulator += g * g
    new = np.sqrt(accumulator)
    linear[...] = linear + g - (new - old) * inverse * p
    p[...] = (np.clip(linear, real(-l1), real(l1)) - linear) / ((real(beta) + new) * inverse + real(l2))


def rmsprop_(
    p: Array, g: Array, square_avg: Array, buf: Array | None = None, grad_avg: Array | None = None,
    *, lr: float, alpha: float = 0.99, eps: float = 1e-8, momentum: float = 0.0, weight_decay: float = 0.0,
    maximize: bool = False, convention: Dialect = "torch",
) -> None:
    real, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    square_avg[...] = real(alpha) * square_avg + real(1.0 - alpha) * (g * g)
    variance = square_avg
    if grad_avg is not None:
        grad_avg[...] = real(alpha) * grad_avg + real(1.0 - alpha) * g
        variance = np.maximum(square_avg - grad_avg * grad_avg, real(0))
    root = _root(real, variance, eps, convention)
    if buf is None:
        p -= real(lr) * g / root
    elif convention in ("keras", "optax"):      # the learning rate stands inside the velocity
        buf[...] = real(momentum) * buf + real(lr) * g / root
        p -= buf
    else:
        buf[...] = real(momentum) * buf + g / root
        p -= real(lr) * buf


def adam_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, max_exp_avg_sq: Array | None = None, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int, weight_decay: float = 0.0,
    maximize: bool = False, cautious: bool = False, convention: Dialect = "torch",
) -> None:
    real, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    p[...] = p - _adam_step(
        real, g, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, betas, eps, step, cautious, convention
    )


def adamw_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, max_exp_avg_sq: Array | None = None, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int, weight_decay: float = 1e-2,
    maximize: bool = False, cautious: bool = False, convention: Dialect = "torch",
) -> None:
    real, g = _prepare(p, g, 0.0, maximize)
    p[...] = real(1.0 - lr * weight_decay) * p - _adam_step(
        real, g, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, betas, eps, step, cautious, convention
    )


def adamax_(
    p: Array, g: Array, exp_avg: Array, exp_inf: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int, weight_decay: float = 0.0,
    maximize: bool = False, convention: Dialect = "torch",
) -> None:
    real, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    beta1, beta2 = betas
    exp_avg[...] = real(beta1) * exp_avg + real(1.0 - beta1) * g
    eps, outside = (0.0, eps) if convention == "keras" else (eps, 0.0)
    exp_inf[...] = np.maximum(real(beta2) * exp_inf, abs(g) + real(eps))
    p -= real(lr / (1.0 - power(beta1, step))) * exp_avg / (exp_inf + real(outside))


def nadam_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, numbers: dict[str, float], *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, momentum_decay: float = 4e-3, step: int,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
    convention: Dialect = "torch",
) -> None:
    real, g, keep = _prepare_either(p, g, lr, weight_decay, decoupled_weight_decay, maximize)
    beta1, beta2 = betas
    mu, mu_next = (beta1 * (1.0 - 0.5 * power(0.96, t * momentum_decay)) for t in (step, step + 1))
    if convention == "optax":           # which has no warmup
        mu = mu_next = beta1
    product = numbers["mu_product"] = numbers.get("mu_product", 1.0) * mu
    _moments(real, g, exp_avg, exp_avg_sq, betas)
    now, ahead = lr * (1.0 - mu) / (1.0 - product), lr * mu_next / (1.0 - product * mu_next)
    root = real(1.0 / np.sqrt(1.0 - power(beta2, step))) * np.sqrt(exp_avg_sq) + real(eps)
    p[...] = keep * p - (real(now) * g + real(ahead) * exp_avg) / root


def radam_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int, weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False, maximize: bool = False, convention: Dialect = "torch",
) -> None:
    real, g, keep = _prepare_either(p, g, lr, weight_decay, decoupled_weight_decay, maximize)
    beta1, beta2 = betas
    _moments(real, g, exp_avg, exp_avg_sq, betas)
    lr, trust, longest = lr / (1.0 - power(beta1, step)), 1.0 - power(beta2, step), 2.0 / (1.0 - beta2) - 1.0
    length = longest - 2.0 * step * power(beta2, step) / trust
    eps, scale = (eps, 1.0) if length > 5.0 else (1.0, 0.0)     # 1 is all that the denominator is then
    if length > 5.0:
        rectified = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
        lr = lr * np.sqrt(rectified)
        if convention == "optax":       # epsilon stands on the corrected root
            scale = 1.0 / np.sqrt(trust)
        else:
            lr = lr * np.sqrt(trust)
    p[...] = keep * p - real(lr) * exp_avg / (real(scale) * np.sqrt(exp_avg_sq) + real(eps))


def adabelief_(
    p: Array, g: Array, exp_avg: Array, exp_avg_var: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-16, step: int, weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    real, g, keep = _prepare_either(p, g, lr, weight_decay, True, maximize)
    beta1, beta2 = betas
    exp_avg[...] = real(beta1) * exp_avg + real(1.0 - beta1) * g
    d = g - exp_avg
    exp_avg_var[...] = real(beta2) * exp_avg_var + real(1.0 - beta2) * (d * d) + real(eps)
    p[...] = keep * p - _adam_direction(real, exp_avg, exp_avg_var, lr, betas, eps, step)


def yogi_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-3, step: int, weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    real, g = _prepare(p, g, weight_decay, maximize)
    beta1, beta2 = betas
    exp_avg[...] = real(beta1) * exp_avg + real(1.0 - beta1) * g
    exp_avg_sq -= real(1.0 - beta2) * (_sign(exp_avg_sq - g * g) * (g * g))
    p -= _adam_direction(real, exp_avg, exp_avg_sq, lr, betas, eps, step)


def adopt_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.9999), eps: float = 1e-6, clip_exp: float | None = 0.25, step: int,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
) -> None:
    real, g, keep = _prepare_either(p, g, lr, weight_decay, decoupled_weight_decay, maximize)
    beta1, beta2 = betas
    if step == 1:
        exp_avg_sq[...] = g * g
        return
    limit = real(np.inf if clip_exp is None else power(step - 1, clip_exp))
    d = np.clip(g / np.maximum(np.sqrt(exp_avg_sq), real(eps)), -limit, limit)
    exp_avg[...] = real(beta1) * exp_avg + real(1.0 - beta1) * d
    exp_avg_sq[...] = real(beta2) * exp_avg_sq + real(1.0 - beta2) * (g * g)
    p[...] = keep * p - real(lr) * exp_avg


def ademamix_(
    p: Array, g: Array, exp_avg_fast: Array, exp_avg_slow: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999), alpha: float = 5.0, alpha_warmup: float = 0.0,
    beta3_warmup: float = 0.0, eps: float = 1e-8, step: int, weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    real, g, keep = _prepare_either(p, g, lr, weight_decay, True, maximize)
    beta1, beta2, beta3 = betas
    if step < beta3_warmup:     # the half-life rises linearly
        done, fast, slow = step / beta3_warmup, max(beta1, 1e-8), log(max(beta3, 1e-8))
        beta3 = power(fast, slow / ((1.0 - done) * slow + done * log(fast)))
    if alpha_warmup:
        alpha *= min(1.0, step / alpha_warmup)
    _moments(real, g, exp_avg_fast, exp_avg_sq, (beta1, beta2))
    exp_avg_slow[...] = real(beta3) * exp_avg_slow + real(1.0 - beta3) * g
    d = real(lr / (1.0 - power(beta1, step))) * exp_avg_fast + real(lr * alpha) * exp_avg_slow
    p[...] = keep * p - d / (real(1.0 / np.sqrt(1.0 - power(beta2, step))) * np.sqrt(exp_avg_sq) + real(eps))


def adan_(
    p: Array, g: Array, exp_avg: Array, exp_avg_diff: Array, exp_avg_sq: Array, pre_grad: Array, *, lr: float,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99), eps: float = 1e-8, step: int,
    weight_decay: float = 0.0, no_prox: bool = False, maximize: bool = False,
) -> None:
    real, g = _prepare(p, g, 0.0, maximize)
    beta1, beta2, beta3 = betas
    d = real(0 if step == 1 else 1) * (g - pre_grad)
    e = g + real(beta2) * d
    exp_avg[...] = real(beta1) * exp_avg + real(1.0 - beta1) * g
    exp_avg_diff[...] = real(beta2) * exp_avg_diff + real(1.0 - beta2) * d
    exp_avg_sq[...] = real(beta3) * exp_avg_sq + real(1.0 - beta3) * (e * e)
    pre_grad[...] = g
    decay = lr * weight_decay
    keep, lr = (1.0 - decay, lr) if no_prox else (1.0 / (1.0 + decay), lr / (1.0 + decay))
    slope = real(lr * beta2 / (1.0 - power(beta2, step)))
    d = real(lr / (1.0 - power(beta1, step))) * exp_avg + slope * exp_avg_diff
    root = real(1.0 / np.sqrt(1.0 - power(beta3, step))) * np.sqrt(exp_avg_sq) + real(eps)
    p[...] = real(keep) * p - d / root


def lars_(
    p: Array, g: Array, buf: Array, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0,
    trust_coefficient: float = 1e-3, eps: float = 1e-8, adapt: bool = True, maximize: bool = False,
) -> None:
    real, g = _prepare(p, g, 0.0, maximize)
    p_norm, g_norm = _norm(p), _norm(g)
    if adapt and p_norm != 0.0 and g_norm != 0.0:
        lr = lr * (trust_coefficient * p_norm / (g_norm + weight_decay * p_norm + eps))
    buf[...] = real(momentum) * buf + real(lr) * (g + real(weight_decay) * p)
    p -= buf


def lamb_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, step: int, weight_decay: float = 0.0,
    adapt: bool = True, maximize: bool = False, convention: Dialect = "torch",
) -> None:
    real, g = _prepare(p, g, 0.0, maximize)
    if convention == "keras":           # decay is decoupled
        p *= real(1.0 - lr * weight_decay)
        weight_decay = 0.0
    _moments(real, g, exp_avg, exp_avg_sq, betas)
    d = _adam_direction(real, exp_avg, exp_avg_sq, 1.0, betas, eps, step) + real(weight_decay) * p
    p_norm, d_norm = _norm(p), _norm(d)
    if adapt and p_norm != 0.0 and d_norm != 0.0:
        lr = lr * (p_norm / d_norm)
    p -= real(lr) * d


def prodigy_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, s: Array, p0: Array, numbers: dict[str, float],
    *, lr: float = 1.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int,
    weight_decay: float = 0.0, use_bias_correction: bool = False, safeguard_warmup: bool = False,
    d0: float = 1e-6, d_coef: float = 1.0, growth_rate: float | None = None, maximize: bool = False,
) -> None:
    real, g = _prepare(p, g, 0.0, maximize)
    beta1, beta2 = betas
    for name in ("d", "d_before", "d_max", "d_numerator"):
        numbers.setdefault(name, 0.0)
    beta3, d = np.sqrt(beta2), numbers["d"] or d0
    if use_bias_correction:
        lr = lr * (np.sqrt(1.0 - power(beta2, step)) / (1.0 - power(beta1, step)))
    if step == 1:
        p0[...] = p
    exp_avg[...] = real(beta1) * exp_avg + real(d * (1.0 - beta1)) * g
    exp_avg_sq[...] = real(beta2) * exp_avg_sq + real(d * d * (1.0 - beta2)) * (g * g)
    s[...] = real(beta3) * s + real(d / d0 * (d if safeguard_warmup else d * lr)) * g
    numbers |= {"d": d, "d_before": d}
    size = _sum(abs(s.astype(float)))
    if size:
        inner = _sum(g.astype(float) * (p0.astype(float) - p))
        numerator = beta3 * numbers["d_numerator"] + d / d0 * (d * lr) * inner
        largest = max(numbers["d_max"], d0, d_coef * numerator / size)
        grown = max(d, d_coef * numerator / size) if d == d0 else d
        limit = np.inf if growth_rate is None else grown * growth_rate
        numbers |= {"d": min(largest, limit), "d_max": largest, "d_numerator": numerator}
    root = np.sqrt(exp_avg_sq) + real(numbers["d"] * eps)
    p[...] = real(1.0 - weight_decay * (d * lr)) * p - real(d * lr) * exp_avg / root


def sgd_schedule_free_(
    p: Array, g: Array, z: Array, numbers: dict[str, float], *, lr: float, momentum: float = 0.9,
    warmup_steps: float = 0.0, r: float = 0.0, weight_lr_power: float = 2.0, step: int,
    weight_decay: float = 0.0, maximize: bool = False,
) -> None:
    real, g = _prepare(p, g, weight_decay, maximize)
    _schedule_free(real, p, g, z, numbers, lr, momentum, warmup_steps, r, weight_lr_power, step)


def adamw_schedule_free_(
    p: Array, g: Array, z: Array, exp_avg_sq: Array, numbers: dict[str, float], *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, warmup_steps: float = 0.0, r: float = 0.0,
    weight_lr_power: float = 2.0, step: int, weight_decay: float = 0.0, maximize: bool = False,
) -> None:
    real, g = _prepare(p, g, 0.0, maximize)
    beta1, beta2 = betas
    exp_avg_sq[...] = real(beta2) * exp_avg_sq + real(1.0 - beta2) * (g * g)
    root = real(1.0 / np.sqrt(1.0 - power(beta2, step))) * np.sqrt(exp_avg_sq) + real(eps)
    d = g / root + real(weight_decay) * p
    _schedule_free(real, p, d, z, numbers, lr, beta1, warmup_steps, r, weight_lr_power, step)


def _schedule_free(
    real: Rounding, p: Array, d: Array, z: Array, numbers: dict[str, float], lr: float, beta: float,
    warmup_steps: float, r: float, weight_lr_power: float, step: int,
) -> None:
    if step == 1:
        z[...] = p
    if warmup_steps:
        lr = lr * min(1.0, step / warmup_steps)
    lr_max = max(numbers.get("lr_max", 0.0), lr)
    weight = power(step, r) * power(lr_max, weight_lr_power)
    weight_sum = numbers.get("weight_sum", 0.0) + weight
    numbers |= {"lr_max": lr_max, "weight_sum": weight_sum, "momentum": beta}
    c = weight / weight_sum if weight_sum else 0.0
    p[...] = real(1.0 - c) * p + real(c) * z + real(lr * (beta * (1.0 - c) - 1.0)) * d
    z -= real(lr) * d


def adafactor_(
    p: Array, g: Array, row_var: Array | None = None, col_var: Array | None = None,
    variance: Array | None = None, *, lr: float = 1e-2, beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3), d: float = 1.0, step: int, weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    real, g = _prepare(p, g, 0.0, maximize)
    u = factored_step(
        p, g, row_var, col_var, variance, lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, step=step
    )
    p[...] = real(1.0 - lr * weight_decay) * p - u


def factored_step(
    p: Array, g: Array, row_var: Array | None = None, col_var: Array | None = None,
    variance: Array | None = None, *, lr: float, beta2_decay: float, eps: tuple[float | None, float],
    d: float, step: int,
) -> Array:
    """What Adafactor takes off a parameter; its second moment is updated in place."""
    least = float(np.finfo(p.dtype).eps) if eps[0] is None else eps[0]
    weight, size = power(step, beta2_decay), max(p.size, 1)
    u = np.multiply(g, g, out=np.empty_like(g))     # an array, of no dimension, too
    if variance is None:
        assert row_var is not None and col_var is not None
        row_var[...] = row_var + weight * (u.mean(axis=-1, keepdims=True) - row_var)
        col_var[...] = col_var + weight * (u.mean(axis=-2, keepdims=True) - col_var)
        np.multiply(row_var, col_var / np.maximum(row_var.mean(axis=-2, keepdims=True), least), out=u)
    else:
        variance[...] = variance + weight * (u - variance)
        u[...] = variance
    np.maximum(u, least * least, out=u)
    np.divide(g, np.sqrt(u, out=u), out=u)
    rms_p, rms_u = (float(np.linalg.norm(x.ravel())) / size**0.5 for x in (p, u))
    rate: float = max(eps[1], rms_p) * min(lr, 1.0 / step**0.5) / max(1.0, rms_u / d)
    u *= rate
    return u


def muon_(
    p: Array, g: Array, momentum_buffer: Array, *, lr: float, weight_decay: float = 0.1,
    momentum: float = 0.95, nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315), eps: float = 1e-7,
    ns_steps: int = 5, adjust_lr_fn: Adjustment | None = None, maximize: bool = False,
) -> None:
    real, g = _prepare(p, g, 0.0, maximize)
    momentum_buffer[...] = momentum * momentum_buffer + (1.0 - momentum) * g
    ahead = momentum * momentum_buffer + (1.0 - momentum) * g if nesterov else momentum_buffer
    m, n = p.shape
    ratio = 0.2 * max(m, n) ** 0.5 if adjust_lr_fn == "match_rms_adamw" else max(1.0, m / n) ** 0.5
    d = ratio * orthogonalize(ahead, ns_coefficients, ns_steps, eps)
    p[...] = real(1.0 - lr * weight_decay) * p - real(lr) * d


def orthogonalize(x: Array, coefficients: tuple[float, float, float], steps: int, eps: float) -> Array:
    """The nearest matrix with orthogonal rows or columns, roughly, by Newton-Schulz iterations."""
    if x.shape[0] > x.shape[1]:
        return orthogonalize(x.T, coefficients, steps, eps).T
    a, b, c = coefficients
    x = x / max(float(np.linalg.norm(x)), eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _adam_step(
    real: Rounding, g: Array, m: Array, v: Array, v_max: Array | None, lr: float, betas: tuple[float, float],
    eps: float, step: int, cautious: bool, convention: Dialect,
) -> Array:
    beta1, beta2 = betas
    _moments(real, g, m, v, betas)
    if v_max is not None:
        lift = real(1.0 / (1.0 - power(beta2, step)) if convention == "optax" else 1.0)
        v = np.maximum(v_max, lift * v, out=v_max)
    move: Array | np.floating[Any] = real(1)
    lr, root = lr / (1.0 - power(beta1, step)), np.sqrt(1.0 - power(beta2, step))
    if cautious:
        move, lr = _cautious(m, g, lr)
    if convention == "optax" and v_max is not None:     # which is corrected already
        root = 1.0
    if convention in ("keras", "sklearn"):      # epsilon stands on the uncorrected root
        d = real(lr * root) * m / (np.sqrt(v) + real(eps))
    else:
        d = real(lr) * m / (real(1.0 / root) * np.sqrt(v) + real(eps))
    return d * move


def _adam_direction(
    real: Rounding, m: Array, v: Array, lr: float, betas: tuple[float, float], eps: float, step: int,
) -> Array:
    """Adam's step, from its moments."""
    beta1, beta2 = betas
    root = real(1.0 / np.sqrt(1.0 - power(beta2, step))) * np.sqrt(v) + real(eps)
    return real(lr / (1.0 - power(beta1, step))) * m / root


def _moments(real: Rounding, g: Array, m: Array, v: Array, betas: tuple[float, float]) -> None:
    """Adam's two averages."""
    beta1, beta2 = betas
    m[...] = real(beta1) * m + real(1.0 - beta1) * g
    v[...] = real(beta2) * v + real(1.0 - beta2) * (g * g)


def _prepare(
    p: Array, g: Array, weight_decay: float, maximize: bool, convention: Dialect = "torch", lr: float = 0.0,
) -> tuple[Rounding, Array]:
    """The dtype, to round scalars to, and the gradient as the rule sees it."""
    real = p.dtype.type
    g = -g if maximize else g
    if convention == "keras":           # decay is decoupled, whatever the rule
        p *= real(1.0 - lr * weight_decay)
        return real, g
    return real, g + real(weight_decay) * p if weight_decay else g


def _prepare_either(
    p: Array, g: Array, lr: float, weight_decay: float, decoupled: bool, maximize: bool,
) -> tuple[Rounding, Array, np.floating[Any]]:
    """`_prepare`, and what a decoupled decay keeps of the parameters."""
    real, g = _prepare(p, g, 0.0 if decoupled else weight_decay, maximize)
    return real, g, real(1.0 - lr * weight_decay if decoupled else 1.0)


def _sign(x: Array) -> Array:
    """1 or -1; a zero and a NaN stay what they are."""
    return np.where(x > 0, x.dtype.type(1), np.where(x < 0, x.dtype.type(-1), x))


def _norm(x: Array) -> float:
    """Euclidean norm of an array, in double."""
    x = x.astype(float)
    return float(np.sqrt(_sum(x * x)))


def _sum(x: Array) -> float:
    """Sum of doubles in the order of the kernels: in blocks of 8192 numbers, these in 16 lanes."""
    total = 0.0
    x = x.ravel()
    for i in range(0, x.size, 8192):
        block = np.zeros(8192)
        block[: len(x[i : i + 8192])] = x[i : i + 8192]
        lanes = block.reshape(-1, 16).sum(axis=0)
        while lanes.size > 1:
            lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
        total += lanes[0]
    return total


def _cautious(d: Array, g: Array, lr: float) -> tuple[Array, float]:
    """1 for the numbers that a cautious rule moves, and the learning rate that makes up for the others."""
    move = (_sign(d) * _sign(g) > 0).astype(d.dtype)
    return move, lr * (1.0 / max(np.count_nonzero(move) / max(move.size, 1), 1e-3))


def _root(real: Rounding, x: Array, eps: float, convention: Dialect) -> Array:
    if convention in ("keras", "optax"):
        return np.sqrt(x + real(eps))
    return np.sqrt(x) + real(eps)
