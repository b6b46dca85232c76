"""SGD and averaged SGD."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Unpack

from fastopt._core.scalar_math import power
from fastopt.optimizers.base import Optimizer, constructor
from fastopt.optimizers.hyperparameters import RANGES
from fastopt.optimizers.rule import Rule

if TYPE_CHECKING:
    from fastopt._core.typing import Convention, FloatOrSchedule, Options, Params
    from fastopt.optimizers.hyperparameters import Hyperparameters


class SGDRule(Rule):
    """Update rule of `SGD`."""

    STATES = {"sgd": (), "momentum": ("momentum_buffer",), "nesterov": ("momentum_buffer",)}
    STATE_KINDS = {"momentum_buffer": "signed"}
    CONVENTIONS = {
        "torch": {},
        "article": {"lr": 1e-2},
        "keras": {"lr": 1e-2},
        "sklearn": {"momentum": 0.9, "nesterov": True},
        "optax": {},
    }
    SPARSE = ("lazy", "exact", "dense")

    @staticmethod
    def check(hp: Hyperparameters) -> None:
        is_plain = not hp.momentum and hp.convention in ("torch", "article", "optax")
        if hp.nesterov and (is_plain or hp.dampening):
            raise ValueError(
                "nesterov: expected a momentum and no dampening, "
                f"got momentum={hp.momentum}, dampening={hp.dampening}"
            )

    @staticmethod
    def kernel(hp: Hyperparameters) -> str:
        if not hp.momentum:
            return "sgd"
        return "nesterov" if hp.nesterov else "momentum"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        lr = {"lr": 1.0 if _lr_in_velocity(hp) else hp.lr}
        return lr if hp.kernel == "sgd" else {**lr, "momentum": hp.momentum}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        if hp.kernel == "sgd":
            return {}
        grad_coef = 1.0 if hp.is_new else 1.0 - hp.dampening
        return {"grad_coef": hp.lr * grad_coef if _lr_in_velocity(hp) else grad_coef}

    @classmethod
    def idle_decay(cls, hp: Hyperparameters) -> tuple[float, tuple[float, ...]] | None:
        return (hp.momentum, (1.0, hp.momentum)) if hp.momentum < 1.0 else None


class SGD(Optimizer):
    r"""Stochastic gradient descent, optionally with momentum or Nesterov momentum.

    .. math::
        b_t = \mu b_{t-1} + (1 - \tau) g_t, \quad b_1 = g_1, \qquad
        p_t = p_{t-1} - \gamma b_t

    and, with `nesterov`, :math:`p_t = p_{t-1} - \gamma (g_t + \mu b_t)`. Without momentum :math:`b_t = g_t`.

    Parameters
    ----------
    dampening : float or schedule
        Dampening :math:`\tau`, which is not applied in the first step.
    nesterov : bool
        Use Nesterov momentum. Requires a momentum and zero dampening; without a momentum it is ignored under
        "keras" and "sklearn".
    convention
        "article", "keras" and "sklearn" apply the learning rate inside the velocity, :math:`b_t = \mu b_{t-1}
        + \gamma g_t` and :math:`p_t = p_{t-1} - b_t`, which differs when the learning rate changes. "keras"
        uses decoupled weight decay.

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
    True
    >>> w
    array([ 0.5, -1. ])
    """

    RULE = SGDRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, momentum: FloatOrSchedule = 0.0,
        dampening: FloatOrSchedule = 0.0, weight_decay: FloatOrSchedule = 0.0, nesterov: bool = False, *,
        maximize: bool = False, convention: Convention = "torch", **options: Unpack[Options],
    ) -> None: ...


def _lr_in_velocity(hp: Hyperparameters) -> bool:
    """Whether the velocity contains the learning rate."""
    return hp.convention not in ("torch", "optax") and hp.kernel != "sgd"


class ASGDRule(Rule):
    """Update rule of `ASGD`."""

    STATES = {"asgd": ("ax",)}
    RANGES = RANGES | {"alpha": (0.0, math.inf)}
    COPIES = ("ax",)
    REFUSED_OPTIONS = {"state_dtype": "its state is an average of the parameters"}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        eta = hp.lr / power(1.0 + hp.lambd * hp.lr * (t - 1), hp.alpha)
        mu = 1.0 / max(1.0, t - 1 - hp.t0)
        return {
            "decay_factor": 1.0 - hp.lambd * eta, "lr": eta, "average_decay": 1.0 - mu,
            "one_minus_average_decay": mu,
        }


class ASGD(Optimizer):
    r"""Averaged stochastic gradient descent. The average is stored in ``state[k]["ax"]``.

    .. math::
        \eta_t = \frac{\gamma}{(1 + \lambda \gamma (t - 1))^\alpha}, \qquad
        p_t = (1 - \lambda \eta_t) p_{t-1} - \eta_t g_t, \qquad
        a_t = a_{t-1} + \frac{p_t - a_{t-1}}{\max(1, t - 1 - t_0)}

    Parameters
    ----------
    lambd : float or schedule
        Decay :math:`\lambda \ge 0` of the parameters and of the learning rate.
    alpha : float or schedule
        Exponent :math:`\alpha \ge 0` of the learning rate decay.
    t0 : float or schedule
        Step :math:`t_0` after which averaging starts. Until then the average equals the parameter.

    References
    ----------
    Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", SIAM Journal on Control
    and Optimization 30, 1992.
    """

    RULE = ASGDRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-2, lambd: FloatOrSchedule = 1e-4,
        alpha: FloatOrSchedule = 0.75, t0: FloatOrSchedule = 1e6, weight_decay: FloatOrSchedule = 0.0, *,
        maximize: bool = False, **options: Unpack[Options],
    ) -> None: ...
