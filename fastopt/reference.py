"""Every update rule in a few lines of NumPy, as documentation and as the reference for tests of the kernels.

The file is long because it holds one function per optimizer, and these docstrings also document the compiled
functions of `fastopt.functional`, which have the same signatures. The functions do not check their arguments.

Scalars are computed in double precision and cast once to the dtype of the parameters (``cast``). Each line is
then a sequence of correctly rounded operations in the order in which it is written, so the compiled kernels
give the same bits, except that they read and write subnormal numbers as zero. Adafactor and Muon agree up to
rounding, within the bounds that their docstrings state. ``power`` is ``**`` and ``log`` is ``math.log``, with
the same bits on every platform.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from fastopt._core.scalar_math import log, power
from fastopt.reference_formats import Formats, stored

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from fastopt._core.typing import Adjustment, Array, Convention

    # Rounds a scalar to the dtype of the parameters.
    Cast: TypeAlias = Callable[[float], np.floating[Any]]

__all__ = [
    "adabelief_", "adadelta_", "adafactor_", "adagrad_", "adam_", "adamax_", "adamw_",
    "adamw_schedule_free_", "adan_", "ademamix_", "adopt_", "asgd_", "ftrl_", "lamb_", "lars_", "lion_",
    "momentum_", "muon_", "nadam_", "prodigy_", "radam_", "rmsprop_", "rprop_", "sgd_",
    "sgd_schedule_free_", "sign_sgd_", "yogi_",
]


@stored
def sgd_(
    p: Array, g: Array, *, lr: float, weight_decay: float = 0.0, maximize: bool = False,
    convention: Convention = "torch", **formats: Unpack[Formats],
) -> None:
    """Take one step of gradient descent.

    ``p -= lr * g``.

    Parameters
    ----------
    convention : {"torch", "article", "keras", "sklearn", "optax"}
        "keras" uses decoupled weight decay: ``p *= 1 - lr * weight_decay`` before the step.
    """
    cast, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    p -= cast(lr) * g


@stored
def momentum_(
    p: Array, g: Array, buf: Array, *, lr: float, momentum: float = 0.9, dampening: float = 0.0,
    nesterov: bool = False, step: int = 1, weight_decay: float = 0.0, maximize: bool = False,
    convention: Convention = "torch", **formats: Unpack[Formats],
) -> None:
    """Take one step of gradient descent with momentum.

    ``buf = momentum * buf + (1 - dampening) * g``, then ``p -= lr * buf``. The first step is not dampened.

    Parameters
    ----------
    buf : ndarray like `p`
        Velocity, updated in place; zeros before the first step.
    momentum : float
        Decay rate of the velocity.
    dampening : float
        Reduces the weight of the gradient from the second step on.
    nesterov : bool
        Nesterov momentum: ``p -= lr * ((1 - dampening) * g + momentum * buf)``.
    convention : {"torch", "article", "keras", "sklearn", "optax"}
        "article", "keras" and "sklearn" multiply the gradient by the learning rate before it is added to the
        velocity: ``buf = momentum * buf + lr * g``, then ``p -= buf``. "keras" uses decoupled weight decay.
    """
    cast, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    grad_coef = 1.0 if step == 1 else 1.0 - dampening
    if convention not in ("torch", "optax"):        # the velocity contains the learning rate
        lr, grad_coef = 1.0, lr * grad_coef
    d = cast(grad_coef) * g
    buf[...] = cast(momentum) * buf + d
    p -= cast(lr) * (d + cast(momentum) * buf if nesterov else buf)


@stored
def asgd_(
    p: Array, g: Array, ax: Array, *, lr: float, lambd: float = 1e-4, alpha: float = 0.75, t0: float = 1e6,
    step: int, weight_decay: float = 0.0, maximize: bool = False, **formats: Unpack[Formats],
) -> None:
    """Take one step of averaged gradient descent.

    The learning rate is annealed, ``eta = lr / (1 + lambd * lr * (step - 1)) ** alpha``, the parameters
    follow ``p = (1 - lambd * eta) * p - eta * g``, and `ax` is the average of their values since step `t0`.

    Parameters
    ----------
    ax : ndarray like `p`
        Average of the parameters, updated in place.
    lambd : float
        Decay of the parameters and of the learning rate.
    alpha : float
        Exponent of the learning rate decay.
    t0 : float
        Step after which averaging starts. Until then `ax` equals `p`.
    """
    cast, g = _prepare(p, g, weight_decay, maximize)
    eta = lr / power(1.0 + lambd * lr * (step - 1), alpha)
    weight = 1.0 / max(1.0, step - 1 - t0)
    p[...] = cast(1.0 - lambd * eta) * p - cast(eta) * g
    ax[...] = cast(1.0 - weight) * ax + cast(weight) * p


@stored
def rprop_(
    p: Array, g: Array, prev: Array, step_size: Array, *, lr: float, etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0), step: int, maximize: bool = False,
    **formats: Unpack[Formats],
) -> None:
    """Take one step of resilient backpropagation (Rprop).

    Each element has a step size, which grows while the gradient keeps its sign and shrinks when the sign
    changes; in the latter case the element is not moved. Only the sign of the gradient is used.

    Parameters
    ----------
    prev, step_size : ndarray like `p`
        Previous gradient and step size of each element, updated in place; zeros before the first step.
    lr : float
        Initial step size.
    etas : pair of float
        Factors of the step size after a change of sign and without one.
    step_sizes : pair of float
        Smallest and largest step size.
    """
    cast, g = _prepare(p, g, 0.0, maximize)
    eta_minus, eta_plus = map(cast, etas)
    min_size, max_size = map(cast, step_sizes)
    sign_product = _sign(g) * _sign(prev)
    eta = np.where(sign_product > 0, eta_plus, np.where(sign_product < 0, eta_minus, cast(1)))
    initial = cast(lr if step == 1 else 0.0)
    step_size[...] = np.clip(eta * step_size + initial, min_size, max_size)
    prev[...] = np.where(sign_product < 0, cast(0), g)
    p -= step_size * _sign(prev)


@stored
def sign_sgd_(
    p: Array, g: Array, buf: Array | None = None, *, lr: float, momentum: float = 0.0,
    weight_decay: float = 0.0, maximize: bool = False, **formats: Unpack[Formats],
) -> None:
    """Take one step along the sign of the gradient, or of its average (Signum).

    ``p -= lr * sign(g)``.

    Parameters
    ----------
    buf : ndarray like `p`, optional
        Exponential moving average of the gradient, updated in place; zeros before the first step. If given,
        its sign is used.
    momentum : float
        Decay rate of the average.
    weight_decay : float
        Decoupled weight decay: ``p *= 1 - lr * weight_decay`` before the step.
    """
    cast, g = _prepare(p, g, 0.0, maximize)
    if buf is not None:
        g = buf[...] = cast(momentum) * buf + cast(1.0 - momentum) * g
    p[...] = cast(1.0 - lr * weight_decay) * p - cast(lr) * _sign(g)


@stored
def lion_(
    p: Array, g: Array, exp_avg: Array, *, lr: float, betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0, cautious: bool = False, maximize: bool = False, **formats: Unpack[Formats],
) -> None:
    """Take one step of Lion.

    ``p -= lr * sign(beta1 * exp_avg + (1 - beta1) * g)``, then ``exp_avg`` is updated with ``beta2``.

    Parameters
    ----------
    exp_avg : ndarray like `p`
        Exponential moving average of the gradient, updated in place; zeros before the first step.
    betas : pair of float
        Decay rates of the average whose sign is used and of the stored one, in [0, 1).
    weight_decay : float
        Decoupled weight decay: ``p *= 1 - lr * weight_decay`` before the step.
    cautious : bool
        Update only elements whose step has the sign of the gradient, and divide their step by the fraction of
        such elements.
    """
    cast, g = _prepare(p, g, 0.0, maximize)
    beta1, beta2 = betas
    d = cast(beta1) * exp_avg + cast(1.0 - beta1) * g
    exp_avg[...] = cast(beta2) * exp_avg + cast(1.0 - beta2) * g
    decay_factor = cast(1.0 - lr * weight_decay)
    mask: Array | np.floating[Any] = cast(1)
    if cautious:
        mask, lr = _cautious(d, g, lr)
    p[...] = decay_factor * p - cast(lr) * _sign(d) * mask


@stored
def adagrad_(
    p: Array, g: Array, acc: Array, *, lr: float, eps: float = 1e-10, lr_decay: float = 0.0, step: int = 1,
    weight_decay: float = 0.0, rowwise: bool = False, maximize: bool = False,
    convention: Convention = "torch", **formats: Unpack[Formats],
) -> None:
    """Take one step of AdaGrad.

    ``acc += g * g``, then ``p -= lr * g / (sqrt(acc) + eps)``.

    Parameters
    ----------
    acc : ndarray like `p`, or of length ``len(p)``
        Sum of squared gradients, updated in place.
    lr_decay : float
        The learning rate is ``lr / (1 + (step - 1) * lr_decay)``.
    rowwise : bool
        Keep one element of `acc` per row of `p`: the sum of the row's mean squared gradients.
    convention : {"torch", "article", "keras", "optax"}
        "keras" and "optax" divide by ``sqrt(acc + eps)``; "keras" uses decoupled weight decay.
    """
    cast, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    lr = lr / (1.0 + (step - 1) * lr_decay)
    if rowwise:
        acc[...] = [a + _sum(x.astype(float) ** 2) / max(x.size, 1) for a, x in zip(acc, g, strict=True)]
        acc = acc.reshape(-1, *[1] * (p.ndim - 1))
    else:
        acc += g * g
    p -= cast(lr) * g / _root(cast, acc, eps, convention)


@stored
def adadelta_(
    p: Array, g: Array, square_avg: Array, acc_delta: Array, *, lr: float = 1.0, rho: float = 0.9,
    eps: float = 1e-6, weight_decay: float = 0.0, maximize: bool = False, convention: Convention = "torch",
    **formats: Unpack[Formats],
) -> None:
    """Take one step of Adadelta.

    The gradient is multiplied by the ratio of two root mean squares, of the past steps and of the gradients:
    ``d = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * g``, then ``p -= lr * d``.

    Parameters
    ----------
    square_avg, acc_delta : ndarray like `p`
        Exponential moving averages of the squared gradient and of ``d * d``, updated in place; zeros before
        the first step.
    rho : float
        Decay rate of the averages, in [0, 1).
    eps : float
        Added under both square roots.
    convention : {"torch", "keras", "optax"}
        "keras" uses decoupled weight decay.
    """
    cast, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    square_avg[...] = cast(rho) * square_avg + cast(1.0 - rho) * (g * g)
    d = np.sqrt(acc_delta + cast(eps)) / np.sqrt(square_avg + cast(eps)) * g
    acc_delta[...] = cast(rho) * acc_delta + cast(1.0 - rho) * (d * d)
    p -= cast(lr) * d


@stored
def ftrl_(
    p: Array, g: Array, accumulator: Array, linear: Array, *, lr: float, l1: float = 0.0, l2: float = 0.0,
    beta: float = 1.0, weight_decay: float = 0.0, maximize: bool = False, convention: Convention = "torch",
    **formats: Unpack[Formats],
) -> None:
    """Take one step of FTRL-Proximal (follow the regularized leader).

    `p` is the minimum of the linear term plus a quadratic and an L1 penalty: it is zero where
    ``abs(linear) <= l1``, and elsewhere
    ``(sign(linear) * l1 - linear) / ((beta + sqrt(accumulator)) / lr + l2)``.

    Parameters
    ----------
    accumulator, linear : ndarray like `p`
        Sum of squared gradients and linear term, updated in place. `linear` is zeros before the first step,
        and `accumulator` should be positive.
    lr : float
        Learning rate, positive.
    l1, l2 : float
        Weights of the penalties.
    beta : float
        Added to the square root of the accumulator.
    convention : {"torch", "keras"}
        "keras" doubles `l2` and uses decoupled weight decay.
    """
    cast, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    if convention == "keras":
        l2 = 2.0 * l2
    inverse, old = cast(1.0 / lr), np.sqrt(accumulator)
    accumulator[...] = _finite(accumulator + g * g)
    new = np.sqrt(accumulator)
    linear[...] = linear + g - (new - old) * inverse * p
    p[...] = (np.clip(linear, cast(-l1), cast(l1)) - linear) / ((cast(beta) + new) * inverse + cast(l2))


@stored
def rmsprop_(
    p: Array, g: Array, square_avg: Array, buf: Array | None = None, grad_avg: Array | None = None,
    *, lr: float, alpha: float = 0.99, eps: float = 1e-8, momentum: float = 0.0, weight_decay: float = 0.0,
    maximize: bool = False, convention: Convention = "torch", **formats: Unpack[Formats],
) -> None:
    """Take one step of RMSprop.

    The gradient is divided by the root of its mean square, ``p -= lr * g / (sqrt(square_avg) + eps)``.

    Parameters
    ----------
    square_avg : ndarray like `p`
        Exponential moving average of the squared gradient, updated in place; zeros before the first step, or
        a value of the size of the squared gradients.
    buf : ndarray like `p`, optional
        Velocity, updated in place. If given, the update has momentum: ``buf = momentum * buf + d``, then
        ``p -= lr * buf``, where ``d`` is the scaled gradient.
    grad_avg : ndarray like `p`, optional
        Exponential moving average of the gradient, updated in place. If given, the gradient is divided by its
        standard deviation (centered RMSprop).
    alpha : float
        Decay rate of the averages, in [0, 1).
    momentum : float
        Decay rate of the velocity; requires `buf`.
    convention : {"torch", "article", "keras", "optax"}
        "keras" and "optax" add epsilon under the root and multiply the gradient by the learning rate before
        it is added to the velocity; "keras" uses decoupled weight decay.
    """
    cast, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    square_avg[...] = cast(alpha) * square_avg + cast(1.0 - alpha) * (g * g)
    variance = square_avg
    if grad_avg is not None:
        grad_avg[...] = cast(alpha) * grad_avg + cast(1.0 - alpha) * g
        variance = np.maximum(square_avg - _finite(grad_avg * grad_avg), cast(0))
    root = _root(cast, variance, eps, convention)
    if buf is None:
        p -= cast(lr) * g / root
    elif convention in ("keras", "optax"):      # the velocity contains the learning rate
        buf[...] = cast(momentum) * buf + cast(lr) * g / root
        p -= buf
    else:
        buf[...] = cast(momentum) * buf + g / root
        p -= cast(lr) * buf


@stored
def adam_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, max_exp_avg_sq: Array | None = None, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int, weight_decay: float = 0.0,
    maximize: bool = False, cautious: bool = False, bias_correction: bool = True,
    convention: Convention = "torch", **formats: Unpack[Formats],
) -> None:
    """Take one step of Adam.

    ``p -= lr * m / (sqrt(v) + eps)`` with the bias-corrected averages ``m = exp_avg / (1 - beta1**step)`` and
    ``v = exp_avg_sq / (1 - beta2**step)``.

    Parameters
    ----------
    cautious : bool
        Update only elements whose step has the sign of the gradient, and divide their step by the fraction of
        such elements. Cannot be combined with `max_exp_avg_sq`.
    convention : {"torch", "article", "keras", "sklearn", "optax"}
        "keras" and "sklearn" add epsilon before bias correction. "keras" uses decoupled weight decay. With
        "optax", `max_exp_avg_sq` is the maximum of bias-corrected averages.
    """
    cast, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    p[...] = p - _adam_step(
        cast, g, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, betas, eps, step, cautious, bias_correction,
        convention,
    )


@stored
def adamw_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, max_exp_avg_sq: Array | None = None, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int, weight_decay: float = 1e-2,
    maximize: bool = False, cautious: bool = False, bias_correction: bool = True,
    convention: Convention = "torch", **formats: Unpack[Formats],
) -> None:
    """Take one step of AdamW: Adam with decoupled weight decay.

    ``p *= 1 - lr * weight_decay``, then the step of `adam_`.

    Parameters
    ----------
    weight_decay : float
        Decoupled weight decay: ``p *= 1 - lr * weight_decay`` before the step.
    cautious : bool
        Update only elements whose step has the sign of the gradient, and divide their step by the fraction of
        such elements. Cannot be combined with `max_exp_avg_sq`.
    convention : {"torch", "keras", "optax"}
        "keras" adds epsilon before bias correction. With "optax", `max_exp_avg_sq` is the maximum of
        bias-corrected averages.
    """
    cast, g = _prepare(p, g, 0.0, maximize)
    p[...] = cast(1.0 - lr * weight_decay) * p - _adam_step(
        cast, g, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, betas, eps, step, cautious, bias_correction,
        convention,
    )


@stored
def adamax_(
    p: Array, g: Array, exp_avg: Array, exp_inf: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int, weight_decay: float = 0.0,
    maximize: bool = False, bias_correction: bool = True, convention: Convention = "torch",
    **formats: Unpack[Formats],
) -> None:
    """Take one step of Adamax: Adam with the infinity norm.

    ``exp_inf = max(beta2 * exp_inf, abs(g) + eps)``, then
    ``p -= lr / (1 - beta1**step) * exp_avg / exp_inf``.

    Parameters
    ----------
    exp_avg, exp_inf : ndarray like `p`
        Exponential moving average and decaying maximum of the gradient, updated in place; zeros before the
        first step.
    betas : pair of float
        Decay rates of the average and of the maximum, in [0, 1).
    eps : float
        Added to the absolute gradient.
    convention : {"torch", "keras", "optax"}
        "keras" adds epsilon to `exp_inf` in the denominator instead, and uses decoupled weight decay.
    """
    cast, g = _prepare(p, g, weight_decay, maximize, convention, lr)
    beta1, beta2 = betas
    exp_avg[...] = cast(beta1) * exp_avg + cast(1.0 - beta1) * g
    eps, denominator_eps = (0.0, eps) if convention == "keras" else (eps, 0.0)
    exp_inf[...] = np.maximum(cast(beta2) * exp_inf, abs(g) + cast(eps))
    p -= cast(lr / _correction(bias_correction, beta1, step)) * exp_avg / (exp_inf + cast(denominator_eps))


@stored
def nadam_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, numbers: dict[str, float], *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, momentum_decay: float = 4e-3, step: int,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
    bias_correction: bool = True, convention: Convention = "torch", **formats: Unpack[Formats],
) -> None:
    """Take one step of NAdam: Adam with Nesterov momentum.

    Like Adam, but the numerator combines the gradient and the average with the momentum of this and of the
    next step, which warms up from ``beta1 / 2`` to ``beta1``.

    Parameters
    ----------
    momentum_decay : float
        Speed of the momentum warmup.
    convention : {"torch", "keras", "optax"}
        "optax" has no warmup of the momentum.
    """
    cast, g, decay_factor = _prepare_decay(p, g, lr, weight_decay, decoupled_weight_decay, maximize)
    beta1, beta2 = betas
    mu, mu_next = (beta1 * (1.0 - 0.5 * power(0.96, t * momentum_decay)) for t in (step, step + 1))
    if convention == "optax":           # no warmup
        mu = mu_next = beta1
    product = numbers["mu_product"] = numbers.get("mu_product", 1.0) * mu
    product = product if bias_correction else 0.0
    _moments(cast, g, exp_avg, exp_avg_sq, betas)
    grad_lr, avg_lr = lr * (1.0 - mu) / (1.0 - product), lr * mu_next / (1.0 - product * mu_next)
    root = cast(1.0 / np.sqrt(_correction(bias_correction, beta2, step))) * np.sqrt(exp_avg_sq) + cast(eps)
    p[...] = decay_factor * p - (cast(grad_lr) * g + cast(avg_lr) * exp_avg) / root


@stored
def radam_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int, weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False, maximize: bool = False, convention: Convention = "torch",
    **formats: Unpack[Formats],
) -> None:
    """Take one step of RAdam: Adam with a rectified learning rate.

    Like Adam, with the step multiplied by a factor that corrects for the variance of `exp_avg_sq` in early
    steps. While that variance is undefined, the step is ``p -= lr * exp_avg / (1 - beta1**step)``.

    Parameters
    ----------
    convention : {"torch", "optax"}
        "torch" adds epsilon before bias correction, "optax" after it.
    """
    cast, g, decay_factor = _prepare_decay(p, g, lr, weight_decay, decoupled_weight_decay, maximize)
    beta1, beta2 = betas
    _moments(cast, g, exp_avg, exp_avg_sq, betas)
    lr, correction2 = lr / (1.0 - power(beta1, step)), 1.0 - power(beta2, step)
    rho_inf = 2.0 / (1.0 - beta2) - 1.0
    rho = rho_inf - 2.0 * step * power(beta2, step) / correction2
    eps, scale = (eps, 1.0) if rho > 5.0 else (1.0, 0.0)        # without rectification the denominator is 1
    if rho > 5.0:
        rectified = (rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)
        lr = lr * np.sqrt(rectified)
        if convention == "optax":       # epsilon is added after bias correction
            scale = 1.0 / np.sqrt(correction2)
        else:
            lr = lr * np.sqrt(correction2)
    root = cast(scale) * np.sqrt(exp_avg_sq) if scale else cast(0)
    p[...] = decay_factor * p - cast(lr) * exp_avg / (root + cast(eps))


@stored
def adabelief_(
    p: Array, g: Array, exp_avg: Array, exp_avg_var: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-16, step: int, weight_decay: float = 0.0,
    maximize: bool = False, bias_correction: bool = True, **formats: Unpack[Formats],
) -> None:
    """Take one step of AdaBelief.

    Like Adam, but the denominator is the root of the average squared deviation ``(g - exp_avg) ** 2``.

    Parameters
    ----------
    exp_avg, exp_avg_var : ndarray like `p`
        Exponential moving averages of the gradient and of its squared deviation from `exp_avg`, updated in
        place; zeros before the first step.
    eps : float
        Added to `exp_avg_var` in each step, and to the denominator.
    weight_decay : float
        Decoupled weight decay: ``p *= 1 - lr * weight_decay`` before the step.
    """
    cast, g, decay_factor = _prepare_decay(p, g, lr, weight_decay, True, maximize)
    beta1, beta2 = betas
    exp_avg[...] = cast(beta1) * exp_avg + cast(1.0 - beta1) * g
    d = g - exp_avg
    exp_avg_var[...] = cast(beta2) * exp_avg_var + cast(1.0 - beta2) * (d * d) + cast(eps)
    direction = _adam_direction(cast, exp_avg, exp_avg_var, lr, betas, eps, step, bias_correction)
    p[...] = decay_factor * p - direction


@stored
def yogi_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-3, step: int, weight_decay: float = 0.0,
    maximize: bool = False, bias_correction: bool = True, **formats: Unpack[Formats],
) -> None:
    """Take one step of Yogi.

    Like Adam, but the second moment changes additively:
    ``exp_avg_sq -= (1 - beta2) * sign(exp_avg_sq - g*g) * g*g``.

    Parameters
    ----------
    exp_avg, exp_avg_sq : ndarray like `p`
        First and second moment, updated in place; a small value such as 1e-6 before the first step.
    betas : pair of float
        Decay rates of the two moments, in [0, 1).
    """
    cast, g = _prepare(p, g, weight_decay, maximize)
    beta1, beta2 = betas
    exp_avg[...] = cast(beta1) * exp_avg + cast(1.0 - beta1) * g
    square = _finite(g * g)
    exp_avg_sq -= cast(1.0 - beta2) * (_sign(exp_avg_sq - square) * square)
    p -= _adam_direction(cast, exp_avg, exp_avg_sq, lr, betas, eps, step, bias_correction)


@stored
def adopt_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.9999), eps: float = 1e-6, clip_exp: float | None = 0.25, step: int,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
    **formats: Unpack[Formats],
) -> None:
    """Take one step of ADOPT.

    The gradient is divided by the root of the previous second moment before it is averaged, and clipped:
    ``exp_avg`` is the average of ``clip(g / max(sqrt(exp_avg_sq), eps))``, then ``p -= lr * exp_avg``. The
    first step only initializes `exp_avg_sq`.

    Parameters
    ----------
    exp_avg, exp_avg_sq : ndarray like `p`
        Exponential moving averages of the scaled gradient and of the squared gradient, updated in place;
        zeros before the first step.
    eps : float
        Lower bound of the denominator.
    clip_exp : float or None
        The scaled gradient is clipped to ``(step - 1) ** clip_exp``; None for no clipping.
    """
    cast, g, decay_factor = _prepare_decay(p, g, lr, weight_decay, decoupled_weight_decay, maximize)
    beta1, beta2 = betas
    if step == 1:
        exp_avg_sq[...] = g * g
        return
    limit = cast(np.inf if clip_exp is None else power(step - 1, clip_exp))
    d = np.clip(g / np.maximum(np.sqrt(exp_avg_sq), cast(eps)), -limit, limit)
    exp_avg[...] = cast(beta1) * exp_avg + cast(1.0 - beta1) * d
    exp_avg_sq[...] = cast(beta2) * exp_avg_sq + cast(1.0 - beta2) * (g * g)
    p[...] = decay_factor * p - cast(lr) * exp_avg


@stored
def ademamix_(
    p: Array, g: Array, exp_avg_fast: Array, exp_avg_slow: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999), alpha: float = 5.0, alpha_warmup: float = 0.0,
    beta3_warmup: float = 0.0, eps: float = 1e-8, step: int, weight_decay: float = 0.0,
    maximize: bool = False, bias_correction: bool = True, **formats: Unpack[Formats],
) -> None:
    """Take one step of AdEMAMix: AdamW with a second, slower average of the gradient.

    The numerator of Adam's step is the bias-corrected `exp_avg_fast` plus ``alpha * exp_avg_slow``.

    Parameters
    ----------
    exp_avg_fast, exp_avg_slow, exp_avg_sq : ndarray like `p`
        Exponential moving averages of the gradient, with ``beta1`` and ``beta3``, and of its square, with
        ``beta2``, updated in place; zeros before the first step.
    betas : triple of float
        Decay rates ``beta1, beta2, beta3`` of the averages, in [0, 1).
    alpha : float
        Weight of the slow average.
    alpha_warmup, beta3_warmup : float
        Number of steps in which `alpha` and ``beta3`` rise to their values; 0 for no warmup.
    weight_decay : float
        Decoupled weight decay: ``p *= 1 - lr * weight_decay`` before the step.
    """
    cast, g, decay_factor = _prepare_decay(p, g, lr, weight_decay, True, maximize)
    beta1, beta2, beta3 = betas
    if step < beta3_warmup:     # the half-life of the slow average rises linearly
        progress, start, log_end = step / beta3_warmup, max(beta1, 1e-8), log(max(beta3, 1e-8))
        beta3 = power(start, log_end / ((1.0 - progress) * log_end + progress * log(start)))
    if alpha_warmup:
        alpha *= min(1.0, step / alpha_warmup)
    _moments(cast, g, exp_avg_fast, exp_avg_sq, (beta1, beta2))
    exp_avg_slow[...] = cast(beta3) * exp_avg_slow + cast(1.0 - beta3) * g
    d = cast(lr / _correction(bias_correction, beta1, step)) * exp_avg_fast + cast(lr * alpha) * exp_avg_slow
    root = cast(1.0 / np.sqrt(_correction(bias_correction, beta2, step))) * np.sqrt(exp_avg_sq) + cast(eps)
    p[...] = decay_factor * p - d / root


@stored
def adan_(
    p: Array, g: Array, exp_avg: Array, exp_avg_diff: Array, exp_avg_sq: Array, pre_grad: Array, *, lr: float,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99), eps: float = 1e-8, step: int,
    weight_decay: float = 0.0, no_prox: bool = False, maximize: bool = False,
    bias_correction: bool = True, **formats: Unpack[Formats],
) -> None:
    """Take one step of Adan: adaptive Nesterov momentum.

    Like Adam, with an average of gradient differences added to the numerator:
    ``p -= lr * (exp_avg + beta2 * exp_avg_diff) / (sqrt(exp_avg_sq) + eps)``, all averages bias-corrected.

    Parameters
    ----------
    exp_avg, exp_avg_diff, exp_avg_sq, pre_grad : ndarray like `p`
        Exponential moving averages of the gradient, of the difference ``d`` of successive gradients, and of
        ``(g + beta2 * d) ** 2``; previous gradient. Updated in place; zeros before the first step.
    betas : triple of float
        Decay rates ``beta1, beta2, beta3`` of the averages, in [0, 1).
    weight_decay : float
        Proximal weight decay: ``p /= 1 + lr * weight_decay`` after the step.
    no_prox : bool
        Use ``p *= 1 - lr * weight_decay`` before the step instead.
    """
    cast, g = _prepare(p, g, 0.0, maximize)
    beta1, beta2, beta3 = betas
    d = cast(0 if step == 1 else 1) * (g - pre_grad)
    e = g + cast(beta2) * d
    exp_avg[...] = cast(beta1) * exp_avg + cast(1.0 - beta1) * g
    exp_avg_diff[...] = cast(beta2) * exp_avg_diff + cast(1.0 - beta2) * d
    exp_avg_sq[...] = cast(beta3) * exp_avg_sq + cast(1.0 - beta3) * (e * e)
    pre_grad[...] = g
    decay = lr * weight_decay
    decay_factor, lr = (1.0 - decay, lr) if no_prox else (1.0 / (1.0 + decay), lr / (1.0 + decay))
    diff_lr = cast(lr * beta2 / _correction(bias_correction, beta2, step))
    d = cast(lr / _correction(bias_correction, beta1, step)) * exp_avg + diff_lr * exp_avg_diff
    root = cast(1.0 / np.sqrt(_correction(bias_correction, beta3, step))) * np.sqrt(exp_avg_sq) + cast(eps)
    p[...] = cast(decay_factor) * p - d / root


@stored
def lars_(
    p: Array, g: Array, buf: Array, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0,
    trust_coefficient: float = 1e-3, eps: float = 1e-8, adapt: bool = True, maximize: bool = False,
    **formats: Unpack[Formats],
) -> None:
    """Take one step of LARS: momentum with a layer-wise learning rate.

    The learning rate is multiplied by the trust ratio, `trust_coefficient` times the norm of `p` over the
    norm of `g`; then ``buf = momentum * buf + lr * g`` and ``p -= buf``.

    Parameters
    ----------
    buf : ndarray like `p`
        Velocity, updated in place; zeros before the first step.
    momentum : float
        Decay rate of the velocity.
    trust_coefficient : float
        Factor of the trust ratio.
    eps : float
        Added to the denominator of the trust ratio.
    adapt : bool
        If False, omit the trust ratio.
    """
    cast, g = _prepare(p, g, 0.0, maximize)
    p_norm, g_norm = _norm(p), _norm(g)
    if adapt and p_norm != 0.0 and g_norm != 0.0:
        lr = lr * (trust_coefficient * p_norm / (g_norm + weight_decay * p_norm + eps))
    buf[...] = cast(momentum) * buf + cast(lr) * (g + cast(weight_decay) * p)
    p -= buf


@stored
def lamb_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, step: int, weight_decay: float = 0.0,
    adapt: bool = True, maximize: bool = False, bias_correction: bool = True,
    convention: Convention = "torch", **formats: Unpack[Formats],
) -> None:
    """Take one step of LAMB: Adam with a layer-wise learning rate.

    ``d`` is Adam's step direction plus ``weight_decay * p``; ``p -= lr * norm(p) / norm(d) * d``.

    Parameters
    ----------
    weight_decay : float
        ``weight_decay * p`` is added to the step direction.
    adapt : bool
        If False, omit the ratio of the norms.
    convention : {"torch", "keras", "optax"}
        "keras" uses decoupled weight decay.
    """
    cast, g = _prepare(p, g, 0.0, maximize)
    if convention == "keras":           # decoupled weight decay
        p *= cast(1.0 - lr * weight_decay)
        weight_decay = 0.0
    _moments(cast, g, exp_avg, exp_avg_sq, betas)
    d = _adam_direction(cast, exp_avg, exp_avg_sq, 1.0, betas, eps, step, bias_correction)
    d = d + cast(weight_decay) * p
    p_norm, d_norm = _norm(p), _norm(d)
    if adapt and p_norm != 0.0 and d_norm != 0.0:
        lr = lr * (p_norm / d_norm)
    p -= cast(lr) * d


@stored
def prodigy_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, s: Array, p0: Array, numbers: dict[str, float],
    *, lr: float = 1.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int,
    weight_decay: float = 0.0, use_bias_correction: bool = False, safeguard_warmup: bool = False,
    d0: float = 1e-6, d_coef: float = 1.0, growth_rate: float | None = None, maximize: bool = False,
    **formats: Unpack[Formats],
) -> None:
    """Take one step of Prodigy: Adam with an estimated learning rate.

    The step size is ``d * lr``. The estimate ``d`` of the distance to the solution grows with the inner
    products of the gradients and ``p0 - p``.

    Parameters
    ----------
    exp_avg, exp_avg_sq, s, p0 : ndarray like `p`
        Exponential moving averages of the gradient, of its square and of the weighted gradients; parameters
        before the first step. Updated in place; zeros before the first step.
    lr : float
        Factor of the estimated learning rate.
    betas : pair of float
        Decay rates of the first two averages, in [0, 1).
    weight_decay : float
        Decoupled weight decay: ``p *= 1 - d * lr * weight_decay`` before the step.
    use_bias_correction : bool
        Correct the bias of the averages.
    safeguard_warmup : bool
        Omit `lr` from the weights of `s`.
    d0 : float
        Initial estimate.
    d_coef : float
        Factor of new estimates.
    growth_rate : float or None
        Largest ratio of successive estimates; None for no limit.
    """
    cast, g = _prepare(p, g, 0.0, maximize)
    beta1, beta2 = betas
    for name in ("d", "d_before", "d_max", "d_numerator"):
        numbers.setdefault(name, 0.0)
    beta3, d = np.sqrt(beta2), numbers["d"] or d0
    if use_bias_correction:
        lr = lr * (np.sqrt(1.0 - power(beta2, step)) / (1.0 - power(beta1, step)))
    if step == 1:
        p0[...] = p
    exp_avg[...] = cast(beta1) * exp_avg + cast(d * (1.0 - beta1)) * g
    exp_avg_sq[...] = cast(beta2) * exp_avg_sq + cast(d * d * (1.0 - beta2)) * (g * g)
    s[...] = cast(beta3) * s + cast(d / d0 * (d if safeguard_warmup else d * lr)) * g
    numbers |= {"d": d, "d_before": d}
    s_norm = _sum(abs(s.astype(float)))
    if s_norm:
        inner_product = _sum(g.astype(float) * (p0.astype(float) - p))
        numerator = beta3 * numbers["d_numerator"] + d / d0 * (d * lr) * inner_product
        d_hat = d_coef * numerator / s_norm
        d_max = max(numbers["d_max"], d0, d_hat)
        limit = np.inf if growth_rate is None else (max(d, d_hat) if d == d0 else d) * growth_rate
        numbers |= {"d": min(d_max, limit), "d_max": d_max, "d_numerator": numerator}
    root = np.sqrt(exp_avg_sq) + cast(numbers["d"] * eps)
    p[...] = cast(1.0 - weight_decay * (d * lr)) * p - cast(d * lr) * exp_avg / root


@stored
def sgd_schedule_free_(
    p: Array, g: Array, z: Array, numbers: dict[str, float], *, lr: float, momentum: float = 0.9,
    warmup_steps: float = 0.0, r: float = 0.0, weight_lr_power: float = 2.0, step: int,
    weight_decay: float = 0.0, maximize: bool = False, **formats: Unpack[Formats],
) -> None:
    """Take one step of schedule-free SGD.

    ``z -= lr * g``. `p` is kept between `z` and the weighted average ``x`` of its iterates:
    ``p = (1 - momentum) * z + momentum * x``. Evaluate the model at ``x``.

    Parameters
    ----------
    momentum : float
        Weight of the average in `p`, in (0, 1).
    """
    cast, g = _prepare(p, g, weight_decay, maximize)
    _schedule_free(cast, p, g, z, numbers, lr, momentum, warmup_steps, r, weight_lr_power, step)


@stored
def adamw_schedule_free_(
    p: Array, g: Array, z: Array, exp_avg_sq: Array, numbers: dict[str, float], *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, warmup_steps: float = 0.0, r: float = 0.0,
    weight_lr_power: float = 2.0, step: int, weight_decay: float = 0.0, maximize: bool = False,
    **formats: Unpack[Formats],
) -> None:
    """Take one step of schedule-free AdamW.

    Like `sgd_schedule_free_`, with the gradient divided by the bias-corrected root of `exp_avg_sq`.

    Parameters
    ----------
    exp_avg_sq : ndarray like `p`
        Exponential moving average of the squared gradient, updated in place; zeros before the first step.
    betas : pair of float
        Weight of the average in `p`, in (0, 1), and decay rate of `exp_avg_sq`, in [0, 1).
    weight_decay : float
        ``weight_decay * p`` is added to the step direction.
    """
    cast, g = _prepare(p, g, 0.0, maximize)
    beta1, beta2 = betas
    exp_avg_sq[...] = cast(beta2) * exp_avg_sq + cast(1.0 - beta2) * (g * g)
    root = cast(1.0 / np.sqrt(1.0 - power(beta2, step))) * np.sqrt(exp_avg_sq) + cast(eps)
    d = g / root + cast(weight_decay) * p
    _schedule_free(cast, p, d, z, numbers, lr, beta1, warmup_steps, r, weight_lr_power, step)


def _schedule_free(
    cast: Cast, p: Array, d: Array, z: Array, numbers: dict[str, float], lr: float, beta: float,
    warmup_steps: float, r: float, weight_lr_power: float, step: int,
) -> None:
    if step == 1:
        z[...] = p
    if warmup_steps:
        lr = lr * min(1.0, step / warmup_steps)
    lr_max = max(numbers.get("lr_max", 0.0), lr)
    weight = power(step, r) * power(lr_max, weight_lr_power)
    weight_sum = numbers.get("weight_sum", 0.0) + weight
    before = numbers.get("momentum", 1.0)
    numbers |= {"lr_max": lr_max, "weight_sum": weight_sum, "momentum": beta}
    c = weight / weight_sum if weight_sum else 0.0
    p_coef, z_coef = 1.0 - c, c
    if before not in (beta, 1.0):
        p_coef = beta * (1.0 - c) / before
        z_coef = 1.0 - p_coef
    p[...] = cast(p_coef) * p + cast(z_coef) * z + cast(lr * (beta * (1.0 - c) - 1.0)) * d
    z -= cast(lr) * d


@stored
def adafactor_(
    p: Array, g: Array, row_var: Array | None = None, col_var: Array | None = None,
    variance: Array | None = None, *, lr: float = 1e-2, beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3), d: float = 1.0, step: int, weight_decay: float = 0.0,
    maximize: bool = False, **formats: Unpack[Formats],
) -> None:
    """Take one step of Adafactor: a factored second moment.

    The gradient is divided by the root of its second moment, which is stored as row and column means and
    estimated as their outer product over the mean of the rows. The update is clipped to the root mean square
    `d` and scaled by the root mean square of `p`.

    The reference computes in double precision. The compiled update differs by at most 8 times the dtype's
    epsilon times its largest element.

    Parameters
    ----------
    row_var, col_var : ndarray of the dtype of `p`, optional
        If `p` has two or more axes: means of the squared gradient over the last axis and over the one before,
        with length 1 in that axis. Updated in place; zeros before the first step.
    variance : ndarray like `p`, optional
        Otherwise: average of the squared gradient, updated in place; zeros before the first step.
    lr : float
        Upper bound of the relative step size; the bound also falls as ``1 / sqrt(step)``.
    beta2_decay : float
        Exponent, at most 0: the decay rate of the averages is ``1 - step ** beta2_decay``.
    eps : pair of float
        Lower bounds of the root of the second moment (None: epsilon of the dtype) and of the root mean square
        of `p`.
    d : float
        Clipping threshold of the update's root mean square.
    weight_decay : float
        Decoupled weight decay: ``p *= 1 - lr * weight_decay`` before the step.
    """
    eps1 = float(np.finfo(p.dtype).eps) if eps[0] is None else eps[0]
    x, g = p.astype(float), g.astype(float) * (-1.0 if maximize else 1.0)
    beta2 = 1.0 - power(step, beta2_decay)
    square = np.minimum(g * g, float(np.finfo(p.dtype).max) / max(p.size, 1))  # whose sums are finite
    if variance is None:
        assert row_var is not None and col_var is not None
        rows = beta2 * row_var.astype(float) + (1.0 - beta2) * _mean(square, -1)
        columns = beta2 * col_var.astype(float) + (1.0 - beta2) * _mean(square, -2)
        v = rows * columns / np.maximum(_mean(rows, -2), eps1)
        row_var[...], col_var[...] = rows, columns
    else:
        variance[...] = v = beta2 * variance.astype(float) + (1.0 - beta2) * square
    u = g / np.sqrt(np.maximum(v, eps1**2))
    rate = max(eps[1], _rms(x)) * min(lr, 1.0 / step**0.5) / max(1.0, _rms(u) / d)
    p[...] = (1.0 - lr * weight_decay) * x - rate * u


def _mean(x: Array, axis: int) -> Array:
    mean: Array = x.sum(axis, keepdims=True) / max(x.shape[axis], 1)
    return mean


def _rms(x: Array) -> float:
    return float(np.sqrt((x * x).sum() / max(x.size, 1)))


@stored
def muon_(
    p: Array, g: Array, momentum_buffer: Array, *, lr: float, weight_decay: float = 0.1,
    momentum: float = 0.95, nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315), eps: float = 1e-7,
    ns_steps: int = 5, adjust_lr_fn: Adjustment | None = None, maximize: bool = False,
    **formats: Unpack[Formats],
) -> None:
    """Take one step of Muon: momentum orthogonalized by Newton-Schulz iterations.

    Each iteration ``X = a X + (b A + c A A) X`` with ``A = X X^T`` brings the singular values of the
    normalized momentum closer to 1; then ``p -= lr * scale * X``.

    The reference computes in double precision, without BLAS. The compiled update differs by at most 128 times
    the dtype's epsilon times its largest element.

    Parameters
    ----------
    p, g : ndarray of float32 or float64, two axes
        Parameters, updated in place, and gradient, which is only read; same shape and dtype.
    momentum_buffer : ndarray like `p`
        Exponential moving average of the gradient, updated in place; zeros before the first step.
    weight_decay : float
        Decoupled weight decay: ``p *= 1 - lr * weight_decay`` before the step.
    momentum : float
        Decay rate of the average, in [0, 1).
    nesterov : bool
        Orthogonalize ``momentum * momentum_buffer + (1 - momentum) * g`` instead of the average.
    ns_coefficients : triple of float
        Coefficients ``a, b, c`` of an iteration.
    eps : float
        Lower bound of the norm by which the momentum is divided first.
    ns_steps : int
        Number of iterations.
    adjust_lr_fn : {None, "original", "match_rms_adamw"}
        The scale of an m by n matrix is ``sqrt(max(1, m / n))`` (None, "original") or
        ``0.2 * sqrt(max(m, n))``.
    """
    a, b, c = ns_coefficients
    m, n = p.shape
    g = g.astype(float) * (-1.0 if maximize else 1.0)
    average = momentum * momentum_buffer.astype(float) + (1.0 - momentum) * g
    x = momentum * average + (1.0 - momentum) * g if nesterov else average
    x = x / max(_norm(x), eps)
    for _ in range(ns_steps):
        gram = _product(x, x.T)
        x = a * x + _product(b * gram + c * _product(gram, gram), x)
    scale = 0.2 * max(m, n) ** 0.5 if adjust_lr_fn == "match_rms_adamw" else max(1.0, m / n) ** 0.5
    momentum_buffer[...] = average
    p[...] = (1.0 - lr * weight_decay) * p.astype(float) - lr * scale * x


def _product(a: Array, b: Array) -> Array:
    """Product of two matrices as a sum of outer products."""
    result = np.zeros((a.shape[0], b.shape[1]))
    for column, row in zip(a.T, b, strict=True):
        result += np.outer(column, row)
    return result


def _adam_step(
    cast: Cast, g: Array, m: Array, v: Array, v_max: Array | None, lr: float, betas: tuple[float, float],
    eps: float, step: int, cautious: bool, bias_correction: bool, convention: Convention,
) -> Array:
    beta1, beta2 = betas
    _moments(cast, g, m, v, betas)
    if v_max is not None:
        correction2 = _correction(bias_correction, beta2, step) if convention == "optax" else 1.0
        v = np.maximum(v_max, cast(1.0 / correction2) * v, out=v_max)
    mask: Array | np.floating[Any] = cast(1)
    lr = lr / _correction(bias_correction, beta1, step)
    root = np.sqrt(_correction(bias_correction, beta2, step))
    if cautious:
        mask, lr = _cautious(m, g, lr)
    if convention == "optax" and v_max is not None:     # already bias-corrected
        root = 1.0
    if convention in ("keras", "sklearn"):      # epsilon is added before bias correction
        d = cast(lr * root) * m / (np.sqrt(v) + cast(eps))
    else:
        d = cast(lr) * m / (cast(1.0 / root) * np.sqrt(v) + cast(eps))
    return d * mask


def _adam_direction(
    cast: Cast, m: Array, v: Array, lr: float, betas: tuple[float, float], eps: float, step: int,
    bias_correction: bool,
) -> Array:
    """Adam's step from its moments."""
    beta1, beta2 = betas
    root = cast(1.0 / np.sqrt(_correction(bias_correction, beta2, step))) * np.sqrt(v) + cast(eps)
    return cast(lr / _correction(bias_correction, beta1, step)) * m / root


def _correction(bias_correction: bool, beta: float, step: int) -> float:
    """Divisor that corrects the bias of an exponential moving average."""
    return 1.0 - power(beta, step) if bias_correction else 1.0


def _moments(cast: Cast, g: Array, m: Array, v: Array, betas: tuple[float, float]) -> None:
    """Update Adam's two averages."""
    beta1, beta2 = betas
    m[...] = cast(beta1) * m + cast(1.0 - beta1) * g
    v[...] = cast(beta2) * v + cast(1.0 - beta2) * (g * g)


def _prepare(
    p: Array, g: Array, weight_decay: float, maximize: bool, convention: Convention = "torch",
    lr: float = 0.0,
) -> tuple[Cast, Array]:
    """Cast of scalars, and the gradient with its sign and its L2 penalty."""
    cast = p.dtype.type
    g = -g if maximize else g
    if convention == "keras":           # decoupled weight decay
        p *= cast(1.0 - lr * weight_decay)
        return cast, g
    return cast, g + cast(weight_decay) * p if weight_decay else g


def _prepare_decay(
    p: Array, g: Array, lr: float, weight_decay: float, decoupled: bool, maximize: bool,
) -> tuple[Cast, Array, np.floating[Any]]:
    """`_prepare`, and the factor of the parameters under decoupled weight decay."""
    cast, g = _prepare(p, g, 0.0 if decoupled else weight_decay, maximize)
    return cast, g, cast(1.0 - lr * weight_decay if decoupled else 1.0)


def _sign(x: Array) -> Array:
    """1 or -1 by sign; zeros and NaNs are returned unchanged."""
    return np.where(x > 0, x.dtype.type(1), np.where(x < 0, x.dtype.type(-1), x))


def _finite(x: Array) -> Array:
    """Squares; the largest number where they overflow, as the difference of two infinities is NaN."""
    return np.minimum(x, np.finfo(x.dtype).max)


def _norm(x: Array) -> float:
    """Euclidean norm of an array, in double."""
    x = x.astype(float)
    return float(np.sqrt(_sum(x * x)))


def _sum(x: Array) -> float:
    """Sum of doubles in the order of the kernels: blocks of 8192 elements, each in 16 lanes."""
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
    """Mask of the elements that a cautious step updates, and the learning rate divided by their fraction."""
    mask = (_sign(d) * _sign(g) > 0).astype(d.dtype)
    return mask, lr * (1.0 / max(np.count_nonzero(mask) / max(mask.size, 1), 1e-3))


def _root(cast: Cast, x: Array, eps: float, convention: Convention) -> Array:
    if convention in ("keras", "optax"):
        return np.sqrt(x + cast(eps))
    return np.sqrt(x) + cast(eps)
