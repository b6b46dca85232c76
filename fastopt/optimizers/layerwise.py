"""Optimizers with a layer-wise learning rate, LARS and LAMB. The norms require a second pass."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Unpack

from fastopt._core.scalar_math import bias_correction
from fastopt.optimizers.base import Optimizer, constructor
from fastopt.optimizers.rule import Rule, beta_scalars

if TYPE_CHECKING:
    from fastopt._core.typing import Convention, FloatOrSchedule, Options, Pair, Params
    from fastopt.optimizers.hyperparameters import Hyperparameters


class LARSRule(Rule):
    """Update rule of `LARS`."""

    STATES = {"lars": ("momentum_buffer",)}
    STATE_KINDS = {"momentum_buffer": "signed"}
    DECAY = "decoupled"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        return {"momentum": hp.momentum, "weight_decay": hp.weight_decay}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        if not hp.adapt or hp.sums is None or 0.0 in hp.sums:
            return {"grad_coef": hp.lr}
        p, g = map(sqrt, hp.sums)
        return {"grad_coef": hp.lr * (hp.trust_coefficient * p / (g + hp.weight_decay * p + hp.eps))}


class LARS(Optimizer):
    r"""LARS: momentum with layer-wise adaptive learning rates, for large batches.

    .. math::
        \tau = \frac{\eta \|p_{t-1}\|}{\|g_t\| + \lambda \|p_{t-1}\| + \epsilon}, \qquad
        b_t = \mu b_{t-1} + \gamma \tau (g_t + \lambda p_{t-1}), \qquad
        p_t = p_{t-1} - b_t

    Norms are per array; if one of them is zero, :math:`\tau = 1`.

    Parameters
    ----------
    momentum : float or schedule
        Momentum :math:`\mu \ge 0`.
    weight_decay : float or schedule
        L2 penalty :math:`\lambda \ge 0`.
    trust_coefficient : float or schedule
        Trust coefficient :math:`\eta \ge 0`.
    adapt : bool
        False for :math:`\tau = 1`, which is usual for biases and normalization scales.

    References
    ----------
    You, Gitman, Ginsburg, "Large batch training of convolutional networks", arXiv:1708.03888, 2017.
    """

    RULE = LARSRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1.0, momentum: FloatOrSchedule = 0.9,
        weight_decay: FloatOrSchedule = 0.0, trust_coefficient: FloatOrSchedule = 1e-3,
        eps: FloatOrSchedule = 1e-8, adapt: bool = True, *, maximize: bool = False,
        **options: Unpack[Options],
    ) -> None: ...


class LAMBRule(Rule):
    """Update rule of `LAMB`."""

    STATES = {"lamb": ("exp_avg", "exp_avg_sq")}
    CONVENTIONS = {"torch": {}, "keras": {"eps": 1e-7}, "optax": {}}
    DECAY = "decoupled"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        decay = 0.0 if hp.convention == "keras" else hp.weight_decay
        return {**beta_scalars(*hp.betas), "eps": hp.eps, "weight_decay": decay}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        beta1, beta2 = hp.betas
        ratio = 1.0
        if hp.adapt and hp.sums is not None and 0.0 not in hp.sums:
            ratio = sqrt(hp.sums[0]) / sqrt(hp.sums[1])
        return {
            "momentum_scale": 1.0 / bias_correction(hp.bias_correction, beta1, t),
            "denom_scale": 1.0 / sqrt(bias_correction(hp.bias_correction, beta2, t)),
            "lr": hp.lr * ratio,
        }

    @classmethod
    def decay_factor(cls, hp: Hyperparameters) -> float:
        return 1.0 - hp.lr * hp.weight_decay if hp.convention == "keras" else 1.0


class LAMB(Optimizer):
    r"""LAMB: AdamW with layer-wise adaptive learning rates, for large batches.

    .. math::
        d_t = \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda p_{t-1}, \qquad
        p_t = p_{t-1} - \gamma \frac{\|p_{t-1}\|}{\|d_t\|} d_t

    where :math:`m_t, v_t` are Adam's moments. Norms are per array; if one of them is zero, their ratio is 1.

    Parameters
    ----------
    adapt : bool
        False for a ratio of 1, which is usual for biases and normalization scales.
    convention
        "torch" is the formula of the paper, because torch has no LAMB. "keras" uses decoupled weight decay in
        place of :math:`\lambda p_{t-1}` in :math:`d_t`.

    References
    ----------
    You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020.
    """

    RULE = LAMBRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, betas: Pair = (0.9, 0.999),
        eps: FloatOrSchedule = 1e-6, weight_decay: FloatOrSchedule = 0.0, adapt: bool = True, *,
        maximize: bool = False, bias_correction: bool = True, convention: Convention = "torch",
        **options: Unpack[Options],
    ) -> None: ...
