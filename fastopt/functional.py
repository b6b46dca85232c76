"""The update rules alone, on raw arrays, in place.

`fastopt.reference` has the same functions with the same signatures in plain NumPy, to read and to
compare with: the results are equal to the last bit. Formulas, papers and what the numbers mean stand
in the class of each rule.

All arrays of a call are float32 or float64, C-contiguous, writeable, of one shape and dtype, and
apart in memory; a gradient in another layout is copied. `step` is the number of this step, the first
being 1. A `ValueError` or `TypeError` names the argument that does not fit, and nothing is changed.
"""

from fastopt import _dispatch
from fastopt._spans import Table
from fastopt._tree import flatten
from fastopt.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
from fastopt.optimizers.groups import Hyperparameters, check_hyperparameter, evaluate
from fastopt.optimizers.state import check_like, check_steps

__all__ = ["adagrad_", "adam_", "adamw_", "momentum_", "rmsprop_", "sgd_"]


def sgd_(p, g, *, lr, weight_decay=0.0, maximize=False):
    """Gradient descent: ``p -= lr * g``. See `fastopt.SGD`."""
    _update(
        SGD, "sgd", p, g, {}, 1,
        lr=lr, momentum=0.0, dampening=0.0, weight_decay=weight_decay, nesterov=False,
        maximize=maximize, convention="torch",
    )


def momentum_(
    p, g, buf, *, lr, momentum=0.9, dampening=0.0, nesterov=False, step=1, weight_decay=0.0,
    maximize=False, convention="torch",
):
    """Gradient descent with (Nesterov's) momentum; `buf` is the velocity. See `fastopt.SGD`."""
    _update(
        SGD, "nesterov" if nesterov else "momentum", p, g, {"buf": buf}, step,
        lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
        maximize=maximize, convention=convention,
    )


def adagrad_(
    p, g, acc, *, lr, eps=1e-10, lr_decay=0.0, step=1, weight_decay=0.0, maximize=False,
    convention="torch",
):
    """AdaGrad; `acc` is the sum of squares. See `fastopt.Adagrad`."""
    _update(
        Adagrad, "adagrad", p, g, {"acc": acc}, step,
        lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, eps=eps, maximize=maximize,
        convention=convention,
    )


def rmsprop_(
    p, g, square_avg, buf=None, grad_avg=None, *, lr, alpha=0.99, eps=1e-8, momentum=0.0,
    weight_decay=0.0, maximize=False, convention="torch",
):
    """RMSprop; with `buf` it has momentum, with `grad_avg` it is centered. See `fastopt.RMSprop`."""
    if momentum and buf is None:
        raise ValueError(f"buf: expected the velocity's array beside momentum={momentum}, got None")
    rule = "rmsprop" + "_centered" * (grad_avg is not None) + "_momentum" * (buf is not None)
    state = {"square_avg": square_avg, "grad_avg": grad_avg, "buf": buf}
    _update(
        RMSprop, rule, p, g, state, 1,
        lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum,
        centered=grad_avg is not None, maximize=maximize, convention=convention,
    )


def adam_(
    p, g, exp_avg, exp_avg_sq, max_exp_avg_sq=None, *, lr, betas=(0.9, 0.999), eps=1e-8, step,
    weight_decay=0.0, maximize=False, convention="torch",
):
    """Adam; with `max_exp_avg_sq` it is AMSGrad. See `fastopt.Adam`."""
    state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "max_exp_avg_sq": max_exp_avg_sq}
    _update(
        Adam, _adam_rule(max_exp_avg_sq), p, g, state, step,
        lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
        amsgrad=max_exp_avg_sq is not None, maximize=maximize, convention=convention,
    )


def adamw_(
    p, g, exp_avg, exp_avg_sq, max_exp_avg_sq=None, *, lr, betas=(0.9, 0.999), eps=1e-8, step,
    weight_decay=1e-2, maximize=False, convention="torch",
):
    """Adam with decoupled weight decay; with `max_exp_avg_sq` AMSGrad. See `fastopt.AdamW`."""
    state = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "max_exp_avg_sq": max_exp_avg_sq}
    _update(
        AdamW, _adam_rule(max_exp_avg_sq), p, g, state, step,
        lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
        amsgrad=max_exp_avg_sq is not None, maximize=maximize, convention=convention,
    )


def _adam_rule(max_exp_avg_sq):
    return "adam" if max_exp_avg_sq is None else "amsgrad"


def _update(optimizer, rule, p, g, state, step, **hyperparameters):
    """One step of a rule: the table of a single array, used once."""
    if check_steps("step", step) < 1:
        raise ValueError("step: expected a whole number from 1 on, got 0")
    state = {name: array for name, array in state.items() if array is not None}
    flatten({"p": p, **state}, "arrays")
    for name, array in state.items():
        check_like(name, array, p)
    h = Hyperparameters({
        name: evaluate(name, check_hyperparameter(name, value, optimizer.CONVENTIONS), step - 1)
        for name, value in hyperparameters.items()
    })
    h.rule = rule
    optimizer.check(h)
    table = Table(
        _dispatch.kernels.KERNELS, 0, ["g"], [p], [list(state.values())], None, [0],
        [_dispatch.kernels.RULES[rule]],
    )
    table.set_group(0, h.maximize, optimizer.decay(h), 0.0, optimizer.constants(h))
    table.rows[0] = optimizer.variables(h, step)
    table.step(g)
