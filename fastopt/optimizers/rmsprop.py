"""RMSprop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.dialects import dialects

if TYPE_CHECKING:
    from fastopt._core.typing import Conventions, Dialect, FloatOrSchedule, Options, Params, States
    from fastopt.optimizers.groups import Hyperparameters


class RMSprop(Optimizer):
    r"""RMSprop: the gradient over a moving root mean square of itself.

    .. math::
        s_t = \alpha s_{t-1} + (1 - \alpha) g_t^2, \qquad
        d_t = \frac{g_t}{\sqrt{s_t} + \epsilon}, \qquad
        b_t = \mu b_{t-1} + d_t, \qquad
        p_t = p_{t-1} - \gamma b_t

    With `centered`, the root is that of the variance :math:`s_t - \bar g_t^2`, where :math:`\bar g_t`
    is the same average of the gradient. Rounding can leave the variance just below zero; it counts
    as zero then.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`.
    alpha : float or schedule
        Weight of the past :math:`\alpha`, in [0, 1).
    eps : float or schedule
        :math:`\epsilon \ge 0`.
    weight_decay : float or schedule
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    momentum : float or schedule
        :math:`\mu \ge 0`; 0 for none.
    centered : bool
        Divide by the standard deviation rather than the root mean square.
    maximize : bool
        Ascend.
    convention : {"torch", "article", "keras", "optax"}
        Dialect: formula, and numbers where they are not given. "keras" and "optax" have epsilon inside the
        root, :math:`\sqrt{s_t + \epsilon}`, and the learning rate inside the velocity,
        :math:`b_t = \mu b_{t-1} + \gamma d_t`; "keras" has decoupled decay.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Tieleman, Hinton, "Lecture 6.5 - rmsprop", Coursera: Neural networks for machine learning, 2012.
    Graves, "Generating sequences with recurrent neural networks", arXiv:1308.0850 (centered).

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.RMSprop(w, lr=0.01)
    >>> opt.step(w.copy())
    >>> w.round(3)
    array([ 0.9, -1.9])
    """

    STATES: States = {
        "rmsprop": ("square_avg",),
        "rmsprop_momentum": ("square_avg", "momentum_buffer"),
        "rmsprop_centered": ("square_avg", "grad_avg"),
        "rmsprop_centered_momentum": ("square_avg", "grad_avg", "momentum_buffer"),
    }
    CONVENTIONS: Conventions = {
        "torch": {},
        "article": {"alpha": 0.9, "eps": 1e-4},
        "keras": {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7},
        "optax": {"alpha": 0.9},
    }

    @dialects
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-2, alpha: FloatOrSchedule = 0.99, eps: FloatOrSchedule = 1e-8,
        weight_decay: FloatOrSchedule = 0.0, momentum: FloatOrSchedule = 0.0, centered: bool = False,
        *, maximize: bool = False, convention: Dialect = "torch", **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum,
            "centered": centered, "maximize": maximize, "convention": convention,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "rmsprop" + "_centered" * h.centered + "_momentum" * bool(h.momentum)

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        inward = h.convention in ("keras", "optax")
        lr, take = (1.0, h.lr) if inward and h.rule.endswith("momentum") else (h.lr, 1.0)
        eps, inside = (0.0, h.eps) if inward else (h.eps, 0.0)
        return lr, h.alpha, 1.0 - h.alpha, eps, inside, h.momentum, take
