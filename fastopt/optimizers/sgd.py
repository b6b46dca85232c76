"""Gradient descent: with momentum, and with an average of its path."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Unpack

from fastopt._core.scalar_math import power
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.dialects import dialects

if TYPE_CHECKING:
    from fastopt._core.typing import (
        Conventions,
        Dialect,
        FloatOrSchedule,
        Options,
        Params,
        Ranges,
        SparseModes,
        States,
    )
    from fastopt.optimizers.groups import Hyperparameters


class SGD(Optimizer):
    r"""Stochastic gradient descent, with momentum and Nesterov's momentum.

    .. math::
        b_t = \mu b_{t-1} + (1 - \tau) g_t, \quad b_1 = g_1, \qquad
        p_t = p_{t-1} - \gamma b_t

    and, with `nesterov`, :math:`p_t = p_{t-1} - \gamma (g_t + \mu b_t)`. Without momentum :math:`b_t = g_t`.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`.
    momentum : float or schedule
        :math:`\mu \ge 0`; 0 for none.
    dampening : float or schedule
        :math:`\tau`, not applied in the first step.
    weight_decay : float or schedule
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    nesterov : bool
        Needs a momentum (but with "keras" and "sklearn", where it does nothing without) and no dampening.
    maximize : bool
        Ascend.
    convention : {"torch", "article", "keras", "sklearn", "optax"}
        Dialect: formula, and numbers where they are not given. "article", "keras" and "sklearn" keep the
        learning rate inside the velocity, :math:`b_t = \mu b_{t-1} + \gamma g_t` and
        :math:`p_t = p_{t-1} - b_t`: another path when the learning rate changes. "keras" has decoupled
        decay.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983.
    Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.SGD(w, lr=0.5)
    >>> opt.step(w.copy())
    >>> w
    array([ 0.5, -1. ])
    """

    STATES: States = {"sgd": (), "momentum": ("momentum_buffer",), "nesterov": ("momentum_buffer",)}
    CONVENTIONS: Conventions = {
        "torch": {},
        "article": {"lr": 1e-2},
        "keras": {"lr": 1e-2},
        "sklearn": {"momentum": 0.9, "nesterov": True},
        "optax": {},
    }
    SPARSE: SparseModes = ("lazy", "exact", "dense")

    @dialects
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, momentum: FloatOrSchedule = 0.0, dampening: FloatOrSchedule = 0.0,
        weight_decay: FloatOrSchedule = 0.0, nesterov: bool = False,
        *, maximize: bool = False, convention: Dialect = "torch", **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize, "convention": convention,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def check(h: Hyperparameters) -> None:
        dead = not h.momentum and h.convention in ("torch", "article", "optax")
        if h.nesterov and (dead or h.dampening):
            raise ValueError(
                "nesterov: expected a momentum and no dampening beside it, "
                f"got momentum={h.momentum}, dampening={h.dampening}"
            )

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        if not h.momentum:
            return "sgd"
        return "nesterov" if h.nesterov else "momentum"

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        return 1.0 if _inside(h) else h.lr, h.momentum

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        take = 1.0 if t == 1 else 1.0 - h.dampening
        return (h.lr * take if _inside(h) else take,)

    @classmethod
    def rest(cls, h: Hyperparameters) -> tuple[float, tuple[float, ...]] | None:
        return (h.momentum, (1.0, h.momentum)) if h.momentum < 1.0 else None


def _inside(h: Hyperparameters) -> bool:
    """Whether the learning rate stands inside the velocity."""
    return h.convention not in ("torch", "optax") and h.rule != "sgd"


class ASGD(Optimizer):
    r"""Averaged stochastic gradient descent: the average of the path is kept in ``state[k]["ax"]``.

    .. math::
        \eta_t = \frac{\gamma}{(1 + \lambda \gamma (t - 1))^\alpha}, \qquad
        p_t = (1 - \lambda \eta_t) p_{t-1} - \eta_t g_t, \qquad
        a_t = a_{t-1} + \frac{p_t - a_{t-1}}{\max(1, t - 1 - t_0)}

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`.
    lambd : float or schedule
        Decay :math:`\lambda \ge 0` of the parameters and of the rate.
    alpha : float or schedule
        Power :math:`\alpha \ge 0` with which the rate falls.
    t0 : float or schedule
        Step :math:`t_0` after which averaging begins; before, the average is the parameter.
    weight_decay : float or schedule
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", SIAM Journal on Control
    and Optimization 30, 1992.
    """

    STATES: States = {"asgd": ("ax",)}
    RANGES: Ranges = Optimizer.RANGES | {"alpha": (0.0, math.inf)}

    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-2, lambd: FloatOrSchedule = 1e-4, alpha: FloatOrSchedule = 0.75, t0: FloatOrSchedule = 1e6,
        weight_decay: FloatOrSchedule = 0.0,
        *, maximize: bool = False, **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "lambd": lambd, "alpha": alpha, "t0": t0, "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "asgd"

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        return ()

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        eta = h.lr / power(1.0 + h.lambd * h.lr * (t - 1), h.alpha)
        take = 1.0 / max(1.0, t - 1 - h.t0)
        return 1.0 - h.lambd * eta, eta, 1.0 - take, take
