"""Optimizers with a second moment different from Adam's: AdaBelief and Yogi."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Unpack

from fastopt._core.scalar_math import bias_correction
from fastopt.optimizers.base import Optimizer, constructor
from fastopt.optimizers.rule import Rule, beta_scalars

if TYPE_CHECKING:
    from fastopt._core.typing import FloatOrSchedule, Number, Options, Pair, Params
    from fastopt.optimizers.hyperparameters import Hyperparameters


class AdaBeliefRule(Rule):
    """Update rule of `AdaBelief`."""

    STATES = {"adabelief": ("exp_avg", "exp_avg_var")}
    STATE_KINDS = {"exp_avg": "signed", "exp_avg_var": "nonnegative"}
    DECAY = "decoupled"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        return {"decay_factor": cls.kernel_decay_factor(hp), **beta_scalars(*hp.betas), "eps": hp.eps}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        beta1, beta2 = hp.betas
        return {
            "lr": hp.lr / bias_correction(hp.bias_correction, beta1, t),
            "denom_scale": 1.0 / sqrt(bias_correction(hp.bias_correction, beta2, t)),
        }


class AdaBelief(Optimizer):
    r"""AdaBelief: Adam with the variance of the gradient around its running mean as second moment.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        s_t = \beta_2 s_{t-1} + (1 - \beta_2) (g_t - m_t)^2 + \epsilon, \qquad
        p_t = (1 - \gamma \lambda) p_{t-1}
            - \gamma \frac{m_t / (1 - \beta_1^t)}{\sqrt{s_t / (1 - \beta_2^t)} + \epsilon}

    Parameters
    ----------
    eps : float or schedule
        :math:`\epsilon \ge 0`, much smaller than Adam's because it is also added to :math:`s_t`.

    References
    ----------
    Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients",
    NeurIPS 2020.
    """

    RULE = AdaBeliefRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, betas: Pair = (0.9, 0.999),
        eps: FloatOrSchedule = 1e-16, weight_decay: FloatOrSchedule = 0.0, *, maximize: bool = False,
        bias_correction: bool = True, **options: Unpack[Options],
    ) -> None: ...


class YogiRule(Rule):
    """Update rule of `Yogi`."""

    STATES = {"yogi": ("exp_avg", "exp_avg_sq")}

    @staticmethod
    def init_value(name: str, hp: Hyperparameters) -> float:
        return hp.initial_accumulator_value

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        beta1, beta2 = hp.betas
        scalars = {"beta1": beta1, "one_minus_beta1": 1.0 - beta1, "one_minus_beta2": 1.0 - beta2}
        return {"decay_factor": 1.0, **scalars, "eps": hp.eps}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        beta1, beta2 = hp.betas
        return {
            "lr": hp.lr / bias_correction(hp.bias_correction, beta1, t),
            "denom_scale": 1.0 / sqrt(bias_correction(hp.bias_correction, beta2, t)),
        }


class Yogi(Optimizer):
    r"""Yogi: Adam with additive updates of the second moment.

    .. math::
        v_t = v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - g_t^2) g_t^2, \qquad
        p_t = p_{t-1} - \gamma \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    where :math:`m_t` is Adam's first moment. The second moment decreases more slowly than Adam's after large
    gradients.

    Parameters
    ----------
    initial_accumulator_value : float
        Initial moments :math:`m_0 = v_0 \ge 0`.

    References
    ----------
    Zaheer, Reddi, Sachan, Kale, Kumar, "Adaptive methods for nonconvex optimization", NeurIPS 2018.
    """

    RULE = YogiRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-2, betas: Pair = (0.9, 0.999),
        eps: FloatOrSchedule = 1e-3, initial_accumulator_value: Number = 1e-6,
        weight_decay: FloatOrSchedule = 0.0, *, maximize: bool = False, bias_correction: bool = True,
        **options: Unpack[Options],
    ) -> None: ...
