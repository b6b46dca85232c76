"""The update rules alone, on raw arrays, in place.

`fastopt.reference` has the same functions with the same signatures in plain NumPy, to read and to
compare with: the results are equal to the last bit. Formulas, papers and what the numbers mean stand
in the class of each rule.

All arrays of a call are float32 or float64, C-contiguous, writeable, of one shape and dtype, and
apart in memory; a gradient in another layout is copied. `step` is the number of this step, the first
being 1. What a rule carries from step to step beside its arrays is in a dict, `numbers`, updated in place.
A `ValueError` or `TypeError` names the argument that does not fit, and nothing is changed.
"""

from __future__ import annotations

from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import optimizers
from fastopt._core import dispatch
from fastopt._core.pytree import flatten
from fastopt._core.step_table import Table
from fastopt.optimizers.groups import Hyperparameters, check_hyperparameter, evaluate, is_schedule
from fastopt.optimizers.jobs import Job, kernel_of, prepare
from fastopt.optimizers.state import check_like, check_numbers, check_steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastopt._core.typing import Adjustment, Array, Dialect
    from fastopt.optimizers.base import Optimizer

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
    """Gradient descent: ``p -= lr * g``. See `fastopt.SGD`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    lr : float
        Learning rate.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    convention : {"torch", "article", "keras", "sklearn", "optax"}
        "keras" has decoupled decay: ``p *= 1 - lr * weight_decay`` before the step.
    """
    _update(
        optimizers.SGD, "sgd", p, g, {}, 1,
        lr=lr, momentum=0.0, dampening=0.0, weight_decay=weight_decay, nesterov=False,
        maximize=maximize, convention=convention,
    )


def momentum_(
    p: Array, g: Array, buf: Array, *, lr: float, momentum: float = 0.9, dampening: float = 0.0,
    nesterov: bool = False, step: int = 1, weight_decay: float = 0.0, maximize: bool = False,
    convention: Dialect = "torch",
) -> None:
    """Gradient descent with momentum: ``buf = momentum * buf + g; p -= lr * buf``. See `fastopt.SGD`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    buf : ndarray
        Velocity, updated in place; zeros before the first step.
    lr : float
        Learning rate.
    momentum, dampening : float
        What is kept of the velocity, and what is taken off the gradient from the second step on.
    nesterov : bool
        Nesterov's momentum: ``p -= lr * (g + momentum * buf)``.
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    convention : {"torch", "article", "keras", "sklearn", "optax"}
        "article", "keras" and "sklearn" have the learning rate inside the velocity; "keras" has decoupled
        decay.
    """
    _update(
        optimizers.SGD, "nesterov" if nesterov else "momentum", p, g, {"buf": buf}, step,
        lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
        maximize=maximize, convention=convention,
    )


def asgd_(
    p: Array, g: Array, ax: Array, *, lr: float, lambd: float = 1e-4, alpha: float = 0.75, t0: float = 1e6,
    step: int, weight_decay: float = 0.0, maximize: bool = False,
) -> None:
    """Averaged gradient descent. See `fastopt.ASGD`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    ax : ndarray
        Average of the parameters, updated in place.
    lr : float
        Learning rate.
    lambd : float
        Decay of the parameters and of the rate.
    alpha : float
        Power with which the rate falls.
    t0 : float
        Step after which averaging begins.
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.ASGD, "asgd", p, g, {"ax": ax}, step,
        lr=lr, lambd=lambd, alpha=alpha, t0=t0, weight_decay=weight_decay, maximize=maximize,
    )


def rprop_(
    p: Array, g: Array, prev: Array, step_size: Array, *, lr: float, etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0), step: int, maximize: bool = False,
) -> None:
    """Resilient backpropagation. See `fastopt.Rprop`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    prev, step_size : ndarray
        Last gradient and the step of each number, updated in place; zeros before the first step.
    lr : float
        First step of each number.
    etas : pair of float
        What a step is multiplied by when the sign turns, and when it holds.
    step_sizes : pair of float
        Smallest and largest step.
    step : int
        Number of this step, the first being 1.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.Rprop, "rprop", p, g, {"prev": prev, "step_size": step_size}, step,
        lr=lr, etas=etas, step_sizes=step_sizes, maximize=maximize,
    )


def sign_sgd_(
    p: Array, g: Array, buf: Array | None = None, *, lr: float, momentum: float = 0.0,
    weight_decay: float = 0.0, maximize: bool = False,
) -> None:
    """The sign of the gradient, or of its average. See `fastopt.SignSGD`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    buf : ndarray, optional
        Average of the gradient, updated in place; with it the rule has momentum.
    lr : float
        Learning rate.
    momentum : float
        What is kept of the average.
    weight_decay : float
        Decoupled: ``p *= 1 - lr * weight_decay`` before the step.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.SignSGD, "sign_sgd" if buf is None else "signum", p, g, {"buf": buf}, 1,
        lr=lr, momentum=momentum, weight_decay=weight_decay, maximize=maximize,
    )


def lion_(
    p: Array, g: Array, exp_avg: Array, *, lr: float, betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0, cautious: bool = False, maximize: bool = False,
) -> None:
    """Lion: the sign of the gradient's average. See `fastopt.Lion`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg : ndarray
        Moving average of the gradient, updated in place; zeros before the first step.
    lr : float
        Learning rate.
    betas : pair of float
        What is kept of the average that is stepped along, and of the one that is stored, in [0, 1).
    weight_decay : float
        Decoupled: ``p *= 1 - lr * weight_decay`` before the step.
    cautious : bool
        Move only the numbers whose step agrees in sign with the gradient, and those farther.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.Lion, "cautious_lion" if cautious else "lion", p, g, {"exp_avg": exp_avg}, 1,
        lr=lr, betas=betas, weight_decay=weight_decay, cautious=cautious, maximize=maximize,
    )


def adagrad_(
    p: Array, g: Array, acc: Array, *, lr: float, eps: float = 1e-10, lr_decay: float = 0.0, step: int = 1,
    weight_decay: float = 0.0, rowwise: bool = False, maximize: bool = False, convention: Dialect = "torch",
) -> None:
    """AdaGrad: ``acc += g * g; p -= lr * g / (sqrt(acc) + eps)``. See `fastopt.Adagrad`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    acc : ndarray
        Sum of squares, updated in place.
    lr : float
        Learning rate.
    eps : float
    lr_decay : float
        The rate is ``lr / (1 + (step - 1) * lr_decay)``.
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    rowwise : bool
        One number of `acc` for each row of `p`, to which the mean of the row's squares is added.
    maximize : bool
        Ascend.
    convention : {"torch", "article", "keras", "optax"}
        "keras" and "optax" have epsilon inside the root; "keras" has decoupled decay.
    """
    _update(
        optimizers.Adagrad, "rowwise_adagrad" if rowwise else "adagrad", p, g, {"acc": acc}, step,
        lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, eps=eps, rowwise=rowwise, maximize=maximize,
        convention=convention,
    )


def adadelta_(
    p: Array, g: Array, square_avg: Array, acc_delta: Array, *, lr: float = 1.0, rho: float = 0.9,
    eps: float = 1e-6, weight_decay: float = 0.0, maximize: bool = False, convention: Dialect = "torch",
) -> None:
    """Adadelta: the gradient in units of the steps so far. See `fastopt.Adadelta`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    square_avg, acc_delta : ndarray
        Moving averages of the squares of the gradient and of the steps, updated in place; zeros
        before the first step.
    lr : float
        Learning rate.
    rho : float
        What is kept of the averages, in [0, 1).
    eps : float
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    convention : {"torch", "keras", "optax"}
        "keras" has decoupled decay.
    """
    _update(
        optimizers.Adadelta, "adadelta", p, g, {"square_avg": square_avg, "acc_delta": acc_delta}, 1,
        lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, maximize=maximize,
        convention=convention,
    )


def ftrl_(
    p: Array, g: Array, accumulator: Array, linear: Array, *, lr: float, l1: float = 0.0, l2: float = 0.0,
    beta: float = 1.0, weight_decay: float = 0.0, maximize: bool = False, convention: Dialect = "torch",
) -> None:
    """Follow the regularized leader, proximal. See `fastopt.FTRL`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    accumulator, linear : ndarray
        Sums of the squares of the gradient and of the linear terms, updated in place; `linear` is zeros
        before the first step.
    lr : float
        Learning rate, above zero.
    l1, l2 : float
        Penalties.
    beta : float
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    convention : {"torch", "keras"}
        "keras" counts `l2` twice and has decoupled decay.
    """
    _update(
        optimizers.FTRL, "ftrl", p, g, {"accumulator": accumulator, "linear": linear}, 1,
        lr=lr, l1=l1, l2=l2, beta=beta, initial_accumulator_value=1.0, weight_decay=weight_decay,
        maximize=maximize, convention=convention,
    )


def rmsprop_(
    p: Array, g: Array, square_avg: Array, buf: Array | None = None, grad_avg: Array | None = None,
    *, lr: float, alpha: float = 0.99, eps: float = 1e-8, momentum: float = 0.0, weight_decay: float = 0.0,
    maximize: bool = False, convention: Dialect = "torch",
) -> None:
    """RMSprop: the gradient over a moving root mean square. See `fastopt.RMSprop`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    square_avg : ndarray
        Moving average of the squares, updated in place.
    buf : ndarray, optional
        Velocity, updated in place; with it the rule has momentum.
    grad_avg : ndarray, optional
        Moving average of the gradient, updated in place; with it the rule is centered.
    lr : float
        Learning rate.
    alpha : float
        What is kept of the averages, in [0, 1).
    eps : float
    momentum : float
        What is kept of the velocity.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    convention : {"torch", "article", "keras", "optax"}
        "keras" and "optax" have epsilon inside the root and the learning rate inside the velocity; "keras"
        has decoupled decay.
    """
    if momentum and buf is None:
        raise ValueError(f"buf: expected the velocity's array beside momentum={momentum}, got None")
    rule = "rmsprop" + "_centered" * (grad_avg is not None) + "_momentum" * (buf is not None)
    state = {"square_avg": square_avg, "grad_avg": grad_avg, "buf": buf}
    _update(
        optimizers.RMSprop, rule, p, g, state, 1,
        lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum,
        centered=grad_avg is not None, maximize=maximize, convention=convention,
    )


def adam_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, max_exp_avg_sq: Array | None = None, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int, weight_decay: float = 0.0,
    maximize: bool = False, cautious: bool = False, convention: Dialect = "torch",
) -> None:
    """Adam: momentum over the root mean square, both corrected for their start. See `fastopt.Adam`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg, exp_avg_sq : ndarray
        Moving averages of the gradient and of its square, updated in place; zeros before the first step.
    max_exp_avg_sq : ndarray, optional
        Largest `exp_avg_sq` so far, updated in place; with it the rule is AMSGrad.
    lr : float
        Learning rate.
    betas : pair of float
        What is kept of the two averages, in [0, 1).
    eps : float
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    cautious : bool
        Move only the numbers whose step agrees in sign with the gradient, and those farther. Not with
        `max_exp_avg_sq`.
    convention : {"torch", "article", "keras", "sklearn", "optax"}
        "keras" and "sklearn" add epsilon to the uncorrected root; "keras" has decoupled decay; with "optax"
        `max_exp_avg_sq` is of corrected averages.
    """
    state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "max_exp_avg_sq": max_exp_avg_sq}
    _update(
        optimizers.Adam, _adam_rule(max_exp_avg_sq, cautious), p, g, state, step,
        lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
        amsgrad=max_exp_avg_sq is not None, maximize=maximize, cautious=cautious,
        convention=convention,
    )


def adamw_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, max_exp_avg_sq: Array | None = None, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int, weight_decay: float = 1e-2,
    maximize: bool = False, cautious: bool = False, convention: Dialect = "torch",
) -> None:
    """Adam with decoupled weight decay. See `fastopt.AdamW`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg, exp_avg_sq : ndarray
        Moving averages of the gradient and of its square, updated in place; zeros before the first step.
    max_exp_avg_sq : ndarray, optional
        Largest `exp_avg_sq` so far, updated in place; with it the rule is AMSGrad.
    lr : float
        Learning rate.
    betas : pair of float
        What is kept of the two averages, in [0, 1).
    eps : float
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        Decoupled: ``p *= 1 - lr * weight_decay`` before the step.
    maximize : bool
        Ascend.
    cautious : bool
        Move only the numbers whose step agrees in sign with the gradient, and those farther. Not with
        `max_exp_avg_sq`.
    convention : {"torch", "keras", "optax"}
        "keras" adds epsilon to the uncorrected root; with "optax" `max_exp_avg_sq` is of corrected averages.
    """
    state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "max_exp_avg_sq": max_exp_avg_sq}
    _update(
        optimizers.AdamW, _adam_rule(max_exp_avg_sq, cautious), p, g, state, step,
        lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
        amsgrad=max_exp_avg_sq is not None, maximize=maximize, cautious=cautious,
        convention=convention,
    )


def adamax_(
    p: Array, g: Array, exp_avg: Array, exp_inf: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int, weight_decay: float = 0.0,
    maximize: bool = False, convention: Dialect = "torch",
) -> None:
    """Adamax: momentum over the largest gradient of late. See `fastopt.Adamax`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg, exp_inf : ndarray
        Moving average and maximum of the gradient, updated in place; zeros before the first step.
    lr : float
        Learning rate.
    betas : pair of float
        What is kept of the two averages, in [0, 1).
    eps : float
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    convention : {"torch", "keras", "optax"}
        "keras" adds epsilon to `exp_inf`, rather than to what goes into it, and has decoupled decay.
    """
    _update(
        optimizers.Adamax, "adamax", p, g, {"exp_avg": exp_avg, "exp_inf": exp_inf}, step,
        lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize,
        convention=convention,
    )


def nadam_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, numbers: dict[str, float], *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, momentum_decay: float = 4e-3, step: int,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
    convention: Dialect = "torch",
) -> None:
    """Adam with Nesterov's momentum. See `fastopt.NAdam`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg, exp_avg_sq : ndarray
        Moving averages of the gradient and of its square, updated in place; zeros before the first step.
    numbers : dict
        What the rule carries from step to step, updated in place; empty before the first step.
    lr : float
        Learning rate.
    betas : pair of float
        What is kept of the two averages, in [0, 1).
    eps : float
    momentum_decay : float
        How fast the momentum warms up.
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    decoupled_weight_decay : bool
        Decoupled instead: ``p *= 1 - lr * weight_decay`` before the step.
    maximize : bool
        Ascend.
    convention : {"torch", "keras", "optax"}
        "optax" has a momentum that does not warm up.
    """
    _update(
        optimizers.NAdam, "nadam", p, g, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, step, numbers,
        lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay,
        decoupled_weight_decay=decoupled_weight_decay, maximize=maximize,
        convention=convention,
    )


def radam_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int, weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False, maximize: bool = False, convention: Dialect = "torch",
) -> None:
    """Rectified Adam. See `fastopt.RAdam`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg, exp_avg_sq : ndarray
        Moving averages of the gradient and of its square, updated in place; zeros before the first step.
    lr : float
        Learning rate.
    betas : pair of float
        What is kept of the two averages, in [0, 1).
    eps : float
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    decoupled_weight_decay : bool
        Decoupled instead: ``p *= 1 - lr * weight_decay`` before the step.
    maximize : bool
        Ascend.
    convention : {"torch", "optax"}
        "optax" adds epsilon to the corrected root.
    """
    _update(
        optimizers.RAdam, "adam", p, g, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, step,
        lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay, maximize=maximize,
        convention=convention,
    )


def adabelief_(
    p: Array, g: Array, exp_avg: Array, exp_avg_var: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-16, step: int, weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Adam over the spread about the average. See `fastopt.AdaBelief`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg, exp_avg_var : ndarray
        Moving averages of the gradient and of the square of what departs from it, updated in place; zeros
        before the first step.
    lr : float
        Learning rate.
    betas : pair of float
        What is kept of the two averages, in [0, 1).
    eps : float
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        Decoupled: ``p *= 1 - lr * weight_decay`` before the step.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.AdaBelief, "adabelief", p, g, {"exp_avg": exp_avg, "exp_avg_var": exp_avg_var}, step,
        lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize,
    )


def yogi_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-3, step: int, weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Adam with a second moment that changes evenly. See `fastopt.Yogi`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg, exp_avg_sq : ndarray
        Moments, updated in place; a small number such as 1e-6 before the first step.
    lr : float
        Learning rate.
    betas : pair of float
        What is kept of the two averages, in [0, 1).
    eps : float
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.Yogi, "yogi", p, g, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, step,
        lr=lr, betas=betas, eps=eps, initial_accumulator_value=0.0, weight_decay=weight_decay,
        maximize=maximize,
    )


def adopt_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.9999), eps: float = 1e-6, clip_exp: float | None = 0.25, step: int,
    weight_decay: float = 0.0, decoupled_weight_decay: bool = False, maximize: bool = False,
) -> None:
    """ADOPT: divided by the second moment before, then averaged. See `fastopt.ADOPT`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg, exp_avg_sq : ndarray
        Moving averages of the gradient and of its square, updated in place; zeros before the first step.
    lr : float
        Learning rate.
    betas : pair of float
        What is kept of the two averages, in [0, 1).
    eps : float
    clip_exp : float or None
        What is averaged is clamped to ``(step - 1) ** clip_exp``; None for no bound.
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    decoupled_weight_decay : bool
        Decoupled instead: ``p *= 1 - lr * weight_decay`` before the step.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.ADOPT, "adopt", p, g, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, step,
        lr=lr, betas=betas, eps=eps, clip_exp=clip_exp, weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay, maximize=maximize,
    )


def ademamix_(
    p: Array, g: Array, exp_avg_fast: Array, exp_avg_slow: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999), alpha: float = 5.0, alpha_warmup: float = 0.0,
    beta3_warmup: float = 0.0, eps: float = 1e-8, step: int, weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """AdamW with a second, slower momentum. See `fastopt.AdEMAMix`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg_fast, exp_avg_slow, exp_avg_sq : ndarray
        Moving averages of the gradient and of its square, updated in place; zeros before the first step.
    lr : float
        Learning rate.
    betas : triple of float
        What is kept of the averages, in [0, 1).
    alpha : float
        Weight of the slow momentum.
    alpha_warmup, beta3_warmup : float
        Steps in which `alpha` and the third of `betas` rise; 0 for none.
    eps : float
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        Decoupled: ``p *= 1 - lr * weight_decay`` before the step.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.AdEMAMix, "ademamix", p, g,
        {"exp_avg_fast": exp_avg_fast, "exp_avg_slow": exp_avg_slow, "exp_avg_sq": exp_avg_sq}, step,
        lr=lr, betas=betas, alpha=alpha, alpha_warmup=alpha_warmup, beta3_warmup=beta3_warmup, eps=eps,
        weight_decay=weight_decay, maximize=maximize,
    )


def adan_(
    p: Array, g: Array, exp_avg: Array, exp_avg_diff: Array, exp_avg_sq: Array, pre_grad: Array, *, lr: float,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99), eps: float = 1e-8, step: int,
    weight_decay: float = 0.0, no_prox: bool = False, maximize: bool = False,
) -> None:
    """Adan: Nesterov's momentum from differences of gradients. See `fastopt.Adan`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg, exp_avg_diff, exp_avg_sq, pre_grad : ndarray
        Moving averages of the gradient, its differences and their square, and the gradient before, updated
        in place; zeros before the first step.
    lr : float
        Learning rate.
    betas : triple of float
        What is kept of the averages, in [0, 1).
    eps : float
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        Proximal: ``p /= 1 + lr * weight_decay`` after the step.
    no_prox : bool
        ``p *= 1 - lr * weight_decay`` before the step instead.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.Adan, "adan", p, g,
        {"exp_avg": exp_avg, "exp_avg_diff": exp_avg_diff, "exp_avg_sq": exp_avg_sq, "pre_grad": pre_grad},
        step,
        lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, no_prox=no_prox, maximize=maximize,
    )


def lars_(
    p: Array, g: Array, buf: Array, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0,
    trust_coefficient: float = 1e-3, eps: float = 1e-8, adapt: bool = True, maximize: bool = False,
) -> None:
    """Momentum with a rate in proportion to the array's norm. See `fastopt.LARS`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    buf : ndarray
        Velocity, updated in place; zeros before the first step.
    lr : float
        Learning rate.
    momentum : float
        What is kept of the velocity.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    trust_coefficient : float
        The rate is this times the ratio of the norms.
    eps : float
    adapt : bool
        False to leave the ratio out.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.LARS, "lars", p, g, {"buf": buf}, 1,
        lr=lr, momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust_coefficient,
        eps=eps, adapt=adapt, maximize=maximize,
    )


def lamb_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, step: int, weight_decay: float = 0.0,
    adapt: bool = True, maximize: bool = False, convention: Dialect = "torch",
) -> None:
    """AdamW with a rate in proportion to the array's norm. See `fastopt.LAMB`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg, exp_avg_sq : ndarray
        Moving averages of the gradient and of its square, updated in place; zeros before the first step.
    lr : float
        Learning rate.
    betas : pair of float
        What is kept of the two averages, in [0, 1).
    eps : float
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        ``weight_decay * p`` is added to the direction.
    adapt : bool
        False to leave the ratio of the norms out.
    maximize : bool
        Ascend.
    convention : {"torch", "keras", "optax"}
        "keras" has decoupled decay.
    """
    _update(
        optimizers.LAMB, "lamb", p, g, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}, step,
        lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, adapt=adapt, maximize=maximize,
        convention=convention,
    )


def prodigy_(
    p: Array, g: Array, exp_avg: Array, exp_avg_sq: Array, s: Array, p0: Array, numbers: dict[str, float],
    *, lr: float = 1.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, step: int,
    weight_decay: float = 0.0, use_bias_correction: bool = False, safeguard_warmup: bool = False,
    d0: float = 1e-6, d_coef: float = 1.0, growth_rate: float | None = None, maximize: bool = False,
) -> None:
    """Prodigy: Adam that finds its learning rate. See `fastopt.Prodigy`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    exp_avg, exp_avg_sq, s, p0 : ndarray
        Moments, weighted sum of the gradients, and parameters before the first step, updated in place; zeros
        before the first step.
    numbers : dict
        What the rule carries from step to step, updated in place; empty before the first step.
    lr : float
        Factor of the estimate.
    betas : pair of float
        What is kept of the two averages, in [0, 1).
    eps : float
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        Decoupled: ``p *= 1 - lr * weight_decay`` before the step.
    use_bias_correction : bool
        Correct for the moments' start at zero.
    safeguard_warmup : bool
        Leave `lr` out of `s`.
    d0 : float
        First estimate.
    d_coef : float
        Factor of new estimates.
    growth_rate : float or None
        How many times larger an estimate may be than the one before.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.Prodigy, "prodigy", p, g,
        {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "s": s, "p0": p0}, step, numbers,
        lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, use_bias_correction=use_bias_correction,
        safeguard_warmup=safeguard_warmup, d0=d0, d_coef=d_coef, growth_rate=growth_rate,
        maximize=maximize,
    )


def sgd_schedule_free_(
    p: Array, g: Array, z: Array, numbers: dict[str, float], *, lr: float, momentum: float = 0.9,
    warmup_steps: float = 0.0, r: float = 0.0, weight_lr_power: float = 2.0, step: int,
    weight_decay: float = 0.0, maximize: bool = False,
) -> None:
    """Schedule-free SGD. See `fastopt.SGDScheduleFree`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    z : ndarray
        The steps' own path, updated in place; zeros before the first step.
    numbers : dict
        What the rule carries from step to step, updated in place; empty before the first step.
    lr : float
        Learning rate.
    momentum : float
        Weight of the average in the parameters, in (0, 1).
    warmup_steps : float
        Steps in which the learning rate rises linearly; 0 for none.
    r, weight_lr_power : float
        Powers of the step and of the learning rate in the weight of an iterate.
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.SGDScheduleFree, "schedule_free", p, g, {"z": z}, step, numbers,
        lr=lr, momentum=momentum, weight_decay=weight_decay, warmup_steps=warmup_steps, r=r,
        weight_lr_power=weight_lr_power, maximize=maximize,
    )


def adamw_schedule_free_(
    p: Array, g: Array, z: Array, exp_avg_sq: Array, numbers: dict[str, float], *, lr: float,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, warmup_steps: float = 0.0, r: float = 0.0,
    weight_lr_power: float = 2.0, step: int, weight_decay: float = 0.0, maximize: bool = False,
) -> None:
    """Schedule-free AdamW. See `fastopt.AdamWScheduleFree`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    z, exp_avg_sq : ndarray
        The steps' own path, and the moving average of the gradient's square, updated in place; zeros before
        the first step.
    numbers : dict
        What the rule carries from step to step, updated in place; empty before the first step.
    lr : float
        Learning rate.
    betas : pair of float
        Weight of the average in the parameters, in (0, 1); what is kept of the squares, in [0, 1).
    eps : float
    warmup_steps : float
        Steps in which the learning rate rises linearly; 0 for none.
    r, weight_lr_power : float
        Powers of the step and of the learning rate in the weight of an iterate.
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        Decoupled: ``weight_decay * p`` is added to the direction.
    maximize : bool
        Ascend.
    """
    _update(
        optimizers.AdamWScheduleFree, "schedule_free_adam", p, g,
        {"z": z, "exp_avg_sq": exp_avg_sq}, step, numbers,
        lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, warmup_steps=warmup_steps, r=r,
        weight_lr_power=weight_lr_power, maximize=maximize,
    )


def adafactor_(
    p: Array, g: Array, row_var: Array | None = None, col_var: Array | None = None,
    variance: Array | None = None, *, lr: float = 1e-2, beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3), d: float = 1.0, step: int, weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Adafactor: a factored second moment. See `fastopt.Adafactor`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    row_var, col_var : ndarray
        For a parameter of two axes or more: means of the squares over the last axis and over the one before,
        both of length 1 there, updated in place; zeros before the first step.
    variance : ndarray
        For any other: moving average of the squares, updated in place; zeros before the first step.
    lr : float
        Bound of the relative step.
    beta2_decay : float
        Power of the step that the squares are weighted by, at most 0.
    eps : pair of float
        Bounds from below: of the root of the second moment (None for the dtype's own), and of the
        parameters' root mean square.
    d : float
        Bound of the direction's root mean square.
    step : int
        Number of this step, the first being 1.
    weight_decay : float
        Decoupled: ``p *= 1 - lr * weight_decay`` before the step.
    maximize : bool
        Ascend.
    """
    state = {"row_var": row_var, "col_var": col_var, "variance": variance}
    given = [name for name, array in state.items() if array is not None]
    expected = ["row_var", "col_var"] if np.ndim(p) > 1 else ["variance"]
    if given != expected:
        raise ValueError(f"p: expected {' and '.join(expected)} for {np.ndim(p)} axes, got {given}")
    _update(
        optimizers.Adafactor, "adafactor", p, g,
        state, step,
        lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay, maximize=maximize,
    )


def muon_(
    p: Array, g: Array, momentum_buffer: Array, *, lr: float, weight_decay: float = 0.1,
    momentum: float = 0.95, nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315), eps: float = 1e-7,
    ns_steps: int = 5, adjust_lr_fn: Adjustment | None = None, maximize: bool = False,
) -> None:
    """Muon: momentum made orthogonal. See `fastopt.Muon`.

    Parameters
    ----------
    p : ndarray
        Parameters, updated in place.
    g : ndarray
        Gradient, only read.
    momentum_buffer : ndarray
        Average of the gradient, updated in place; zeros before the first step.
    lr : float
        Learning rate.
    weight_decay : float
        Decoupled: ``p *= 1 - lr * weight_decay`` before the step.
    momentum : float
        What is kept of the average, in [0, 1).
    nesterov : bool
        Look ahead by the gradient.
    ns_coefficients : triple of float
        Of one Newton-Schulz iteration.
    eps : float
        Least norm by which the matrix is divided at first.
    ns_steps : int
        Iterations.
    adjust_lr_fn : {None, "original", "match_rms_adamw"}
        How the learning rate follows the shape.
    maximize : bool
        Ascend.
    """
    if np.ndim(p) != 2:
        raise ValueError(f"p: expected a matrix, got {np.ndim(p)} axes")
    _update(
        optimizers.Muon, "muon", p, g, {"momentum_buffer": momentum_buffer}, 1,
        lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov,
        ns_coefficients=ns_coefficients, eps=eps, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn,
        muon=True, adamw_lr=lr, adamw_betas=(0.9, 0.95), adamw_eps=1e-8, maximize=maximize,
    )


def _adam_rule(max_exp_avg_sq: Array | None, cautious: bool) -> str:
    if cautious:
        return "cautious_adam"
    return "adam" if max_exp_avg_sq is None else "amsgrad"


def _update(
    optimizer: type[Optimizer], rule: str, p: Array, g: Array, state: Mapping[str, Array | None], step: int,
    numbers: dict[str, float] | None = None, **hyperparameters: Any,
) -> None:
    """One step of a rule: the table of a single array, used once."""
    if check_steps("step", step) < 1:
        raise ValueError("step: expected a whole number from 1 on, got 0")
    arrays = {name: array for name, array in state.items() if array is not None}
    flatten({"p": p, **arrays}, "arrays")
    for (name, array), shape in zip(arrays.items(), optimizer.layout(rule, p).values(), strict=True):
        check_like(name, array, p.dtype, shape)
    job = _make_job(optimizer, rule, step, numbers, hyperparameters)
    h, kernels = job.look(), dispatch.kernels
    table = Table(
        kernels.KERNELS, 0, ["g"], [p], [list(arrays.values())], [], [], [0],
        [kernels.RULES[kernel_of(optimizer, rule)]],
        totals=[*arrays.values()] if rule in kernels.ROWWISE else None,
    )
    table.set_group(0, h.maximize, optimizer.decay(h), optimizer.constants(h), optimizer.keep(h))
    table.rows[0] = optimizer.variables(h, step)
    if rule in kernels.SURVEYS or rule in optimizer.DIRECTED:
        table.step_shaped(
            g, 1.0, inf, inf, False, False, False,
            lambda: prepare(optimizer, table, [job], [0], step, [p], [arrays]),
        )
    else:
        table.step(g)
    if numbers is not None:
        numbers.update(job.group.coming)


def _make_job(
    optimizer: type[Optimizer], rule: str, step: int, numbers: dict[str, float] | None,
    hyperparameters: Mapping[str, Any],
) -> Job:
    """A group of one array, as far as a single step needs one."""
    values = {"totals": None}
    for name, value in hyperparameters.items():
        value = check_hyperparameter(name, value, optimizer)
        if is_schedule(value):
            value = evaluate(name, value, step - 1, optimizer.RANGES[name])
        values[name] = value
    h = Hyperparameters(values)
    optimizer.check(h)
    before = optimizer.NUMBERS | (numbers or {})
    if numbers:
        check_numbers("numbers", before, optimizer.NUMBERS)
    coming = optimizer.carry(h, step, before)
    return Job(SimpleNamespace(start=0, now=h, numbers=before, coming=coming), rule, 0)
