"""Optimizers with a first moment different from Adam's: ADOPT, AdEMAMix and Adan."""

from __future__ import annotations

from math import inf, sqrt
from typing import TYPE_CHECKING, Unpack

from fastopt._core.scalar_math import bias_correction, log, power
from fastopt.optimizers.base import Optimizer, constructor
from fastopt.optimizers.hyperparameters import RANGES
from fastopt.optimizers.rule import Rule, beta_scalars

if TYPE_CHECKING:
    from fastopt._core.typing import FloatOrSchedule, Options, Pair, Params, Triple
    from fastopt.optimizers.hyperparameters import Hyperparameters


class ADOPTRule(Rule):
    """Update rule of `ADOPT`."""

    STATES = {"adopt": ("exp_avg", "exp_avg_sq")}
    DECAY = "optional"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        return {"eps": hp.eps}

    @classmethod
    def step_scalars(cls, hp: Hyperparameters, t: int) -> dict[str, float]:
        if hp.is_new:  # the gradient initializes v; m and p do not change
            return {"decay_factor": 1.0, **beta_scalars(1.0, 0.0), "clip": 0.0, "lr": 0.0}
        clip = inf if hp.clip_exp is None else power(t - 1, hp.clip_exp)
        return {
            "decay_factor": cls.kernel_decay_factor(hp), **beta_scalars(*hp.betas), "clip": clip, "lr": hp.lr,
        }


class ADOPT(Optimizer):
    r"""ADOPT: Adam that normalizes the gradient by the previous second moment before averaging.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1)
              \operatorname{clip}\Big(\frac{g_t}{\max(\sqrt{v_{t-1}}, \epsilon)}, (t - 1)^c\Big), \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \qquad
        p_t = p_{t-1} - \gamma m_t

    It converges for every :math:`\beta_2`. The first step only initializes :math:`v_1 = g_1^2`.

    Parameters
    ----------
    clip_exp : float or schedule or None
        Exponent :math:`c \ge 0` of the clipping bound; None for no clipping.

    References
    ----------
    Taniguchi et al., "ADOPT: modified Adam can converge with any beta2 with the optimal rate",
    NeurIPS 2024.
    """

    RULE = ADOPTRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, betas: Pair = (0.9, 0.9999),
        eps: FloatOrSchedule = 1e-6, weight_decay: FloatOrSchedule = 0.0,
        decoupled_weight_decay: bool = False, clip_exp: FloatOrSchedule | None = 0.25, *,
        maximize: bool = False, **options: Unpack[Options],
    ) -> None: ...


class AdEMAMixRule(Rule):
    """Update rule of `AdEMAMix`."""

    STATES = {"ademamix": ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq")}
    STATE_KINDS = {"exp_avg_fast": "signed", "exp_avg_slow": "precise", "exp_avg_sq": "nonnegative"}
    RANGES = RANGES | {"alpha": (0.0, inf), "betas": ((0.0, 1.0),) * 3}
    DECAY = "decoupled"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        scalars = beta_scalars(*hp.betas[:2])
        return {"decay_factor": cls.kernel_decay_factor(hp), **scalars, "eps": hp.eps}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        beta1, beta2, beta3 = hp.betas
        if t < hp.beta3_warmup:
            done, fast, slow = t / hp.beta3_warmup, max(beta1, 1e-8), log(max(beta3, 1e-8))
            beta3 = power(fast, slow / ((1.0 - done) * slow + done * log(fast)))
        alpha = hp.alpha * min(1.0, t / hp.alpha_warmup) if hp.alpha_warmup else hp.alpha
        return {
            "beta3": beta3,
            "one_minus_beta3": 1.0 - beta3,
            "lr_fast": hp.lr / bias_correction(hp.bias_correction, beta1, t),
            "lr_slow": hp.lr * alpha,
            "denom_scale": 1.0 / sqrt(bias_correction(hp.bias_correction, beta2, t)),
        }


class AdEMAMix(Optimizer):
    r"""AdEMAMix: AdamW with an additional, much slower moving average of the gradient.

    .. math::
        m^{(1)}_t = \beta_1 m^{(1)}_{t-1} + (1 - \beta_1) g_t, \qquad
        m^{(2)}_t = \beta_{3,t} m^{(2)}_{t-1} + (1 - \beta_{3,t}) g_t

    .. math::
        p_t = (1 - \gamma \lambda) p_{t-1} - \gamma
              \frac{m^{(1)}_t / (1 - \beta_1^t) + \alpha_t m^{(2)}_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    where :math:`v_t` is Adam's second moment.

    Parameters
    ----------
    betas : triple of float or schedule
        Decay rates :math:`\beta_1, \beta_2, \beta_3`, in [0, 1).
    alpha : float or schedule
        Weight :math:`\alpha \ge 0` of the slow moving average.
    alpha_warmup, beta3_warmup : float or schedule
        Number of steps in which :math:`\alpha_t` increases linearly from 0, and :math:`\beta_{3,t}` from
        :math:`\beta_1` with a linearly increasing half-life; 0 for no warmup. The paper uses all steps of
        the training run.

    References
    ----------
    Pagliardini, Ablin, Grangier, "The AdEMAMix optimizer: better, faster, older", ICLR 2025.
    """

    RULE = AdEMAMixRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, betas: Triple = (0.9, 0.999, 0.9999),
        alpha: FloatOrSchedule = 5.0, alpha_warmup: FloatOrSchedule = 0.0,
        beta3_warmup: FloatOrSchedule = 0.0, eps: FloatOrSchedule = 1e-8,
        weight_decay: FloatOrSchedule = 0.0, *, maximize: bool = False, bias_correction: bool = True,
        **options: Unpack[Options],
    ) -> None: ...


class AdanRule(Rule):
    """Update rule of `Adan`."""

    STATES = {"adan": ("exp_avg", "exp_avg_diff", "exp_avg_sq", "pre_grad")}
    STATE_KINDS = Rule.STATE_KINDS | {"exp_avg_diff": "signed", "pre_grad": "signed"}
    RANGES = RANGES | {"betas": ((0.0, 1.0),) * 3}
    DECAY = "decoupled"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        return {**beta_scalars(*hp.betas), "eps": hp.eps}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        beta1, beta2, beta3 = hp.betas
        decay, lr = hp.lr * hp.weight_decay, hp.lr
        factor = 1.0 - decay
        if not hp.no_prox:
            factor, lr = 1.0 / (1.0 + decay), hp.lr / (1.0 + decay)
        return {
            "decay_factor": factor,
            "has_prev": 0.0 if hp.is_new else 1.0,
            "lr": lr / bias_correction(hp.bias_correction, beta1, t),
            "lr_diff": lr * beta2 / bias_correction(hp.bias_correction, beta2, t),
            "denom_scale": 1.0 / sqrt(bias_correction(hp.bias_correction, beta3, t)),
        }


class Adan(Optimizer):
    r"""Adan: adaptive Nesterov momentum based on differences of successive gradients.

    .. math::
        d_t = g_t - g_{t-1}, \qquad
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        n_t = \beta_2 n_{t-1} + (1 - \beta_2) d_t, \qquad
        v_t = \beta_3 v_{t-1} + (1 - \beta_3) (g_t + \beta_2 d_t)^2

    .. math::
        p_t = \frac{1}{1 + \gamma \lambda} \Big( p_{t-1} - \gamma
              \frac{m_t / (1 - \beta_1^t) + \beta_2 n_t / (1 - \beta_2^t)}
                   {\sqrt{v_t / (1 - \beta_3^t)} + \epsilon} \Big)

    with :math:`d_1 = 0`.

    Parameters
    ----------
    betas : triple of float or schedule
        Decay rates :math:`\beta_1, \beta_2, \beta_3`, in [0, 1). The paper specifies one minus these values.
    weight_decay : float or schedule
        Proximal weight decay :math:`\lambda \ge 0`.
    no_prox : bool
        Use decoupled weight decay as in `AdamW` instead of the proximal one.

    References
    ----------
    Xie, Zhou, Li, Lin, Yan, "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep
    models", arXiv:2208.06677, 2022.
    """

    RULE = AdanRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, betas: Triple = (0.98, 0.92, 0.99),
        eps: FloatOrSchedule = 1e-8, weight_decay: FloatOrSchedule = 0.0, no_prox: bool = False, *,
        maximize: bool = False, bias_correction: bool = True, **options: Unpack[Options],
    ) -> None: ...
