"""Rules whose step is in proportion to the norm of the array: LARS and LAMB.

The norms take a pass of their own over the parameters, so a step costs more than its formula shows.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Unpack

from fastopt._core.scalar_math import power
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.dialects import dialects

if TYPE_CHECKING:
    from fastopt._core.typing import Conventions, Dialect, FloatOrSchedule, Options, Pair, Params, States
    from fastopt.optimizers.groups import Hyperparameters


class LARS(Optimizer):
    r"""Layer-wise adaptive rate scaling: momentum, with a rate for each array, for large batches.

    .. math::
        \tau = \frac{\eta \|p_{t-1}\|}{\|g_t\| + \lambda \|p_{t-1}\| + \epsilon}, \qquad
        b_t = \mu b_{t-1} + \gamma \tau (g_t + \lambda p_{t-1}), \qquad
        p_t = p_{t-1} - b_t

    Norms are those of an array; where one of them is zero, :math:`\tau = 1`.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`.
    momentum : float or schedule
        :math:`\mu \ge 0`.
    weight_decay : float or schedule
        L2 penalty :math:`\lambda \ge 0`.
    trust_coefficient : float or schedule
        :math:`\eta \ge 0`.
    eps : float or schedule
        :math:`\epsilon \ge 0`.
    adapt : bool
        False for :math:`\tau = 1`: usual for a group of biases and scales, with no weight decay.
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
    You, Gitman, Ginsburg, "Large batch training of convolutional networks", arXiv:1708.03888, 2017.
    """

    STATES: States = {"lars": ("momentum_buffer",)}

    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1.0, momentum: FloatOrSchedule = 0.9, weight_decay: FloatOrSchedule = 0.0,
        trust_coefficient: FloatOrSchedule = 1e-3, eps: FloatOrSchedule = 1e-8, adapt: bool = True,
        *, maximize: bool = False, **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient, "eps": eps, "adapt": adapt, "maximize": maximize,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "lars"

    @staticmethod
    def decay(h: Hyperparameters) -> float:
        return 0.0

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        return h.momentum, h.weight_decay

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        if not h.adapt or h.sums is None or 0.0 in h.sums:
            return (h.lr,)
        p, g = map(sqrt, h.sums)
        return (h.lr * (h.trust_coefficient * p / (g + h.weight_decay * p + h.eps)),)


class LAMB(Optimizer):
    r"""LAMB: AdamW, with a rate for each array in proportion to its norm, for large batches.

    .. math::
        d_t = \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda p_{t-1}, \qquad
        p_t = p_{t-1} - \gamma \frac{\|p_{t-1}\|}{\|d_t\|} d_t

    where :math:`m_t, v_t` are Adam's moments. Norms are those of an array; where one of them is zero,
    their ratio counts as 1.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`.
    betas : pair of float or schedule
        Weights of the past :math:`\beta_1, \beta_2`, in [0, 1).
    eps : float or schedule
        :math:`\epsilon \ge 0`.
    weight_decay : float or schedule
        :math:`\lambda \ge 0`.
    adapt : bool
        False for a ratio of 1: usual for a group of biases and scales, with no weight decay.
    maximize : bool
        Ascend.
    convention : {"torch", "keras", "optax"}
        Dialect: formula, and numbers where they are not given; "torch", which has no such rule, stands for
        the paper. "keras" has decoupled decay: :math:`p \leftarrow (1 - \gamma \lambda) p` before the
        step, and :math:`\lambda` is left out of :math:`d_t`.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020.
    """

    STATES: States = {"lamb": ("exp_avg", "exp_avg_sq")}
    CONVENTIONS: Conventions = {"torch": {}, "keras": {"eps": 1e-7}, "optax": {}}

    @dialects
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, betas: Pair = (0.9, 0.999), eps: FloatOrSchedule = 1e-6,
        weight_decay: FloatOrSchedule = 0.0, adapt: bool = True,
        *, maximize: bool = False, convention: Dialect = "torch", **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt,
            "maximize": maximize, "convention": convention,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "lamb"

    @staticmethod
    def decay(h: Hyperparameters) -> float:
        return 0.0

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        beta1, beta2 = h.betas
        decay = 0.0 if h.convention == "keras" else h.weight_decay
        return beta1, 1.0 - beta1, beta2, 1.0 - beta2, h.eps, decay

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        beta1, beta2 = h.betas
        ratio = 1.0
        if h.adapt and h.sums is not None and 0.0 not in h.sums:
            ratio = sqrt(h.sums[0]) / sqrt(h.sums[1])
        return 1.0 / (1.0 - power(beta1, t)), 1.0 / sqrt(1.0 - power(beta2, t)), h.lr * ratio
