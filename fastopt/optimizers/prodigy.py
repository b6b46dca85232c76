"""Prodigy, which estimates its learning rate."""

from __future__ import annotations

from math import inf, sqrt
from typing import TYPE_CHECKING, Unpack

from fastopt._core.scalar_math import power
from fastopt.optimizers.base import Optimizer, constructor
from fastopt.optimizers.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastopt._core.typing import FloatOrSchedule, Number, Options, Pair, Params, ScalarState
    from fastopt.optimizers.hyperparameters import Hyperparameters


class ProdigyRule(Rule):
    """Update rule of `Prodigy`."""

    STATES = {"prodigy": ("exp_avg", "exp_avg_sq", "s", "p0")}
    STATE_KINDS = Rule.STATE_KINDS | {"s": "signed"}
    SCALAR_STATE = {"d": 0.0, "d_before": 0.0, "d_max": 0.0, "d_numerator": 0.0}
    DECAY = "decoupled"
    SHARED_SCALARS = True
    COPIES = ("p0",)

    @staticmethod
    def check(hp: Hyperparameters) -> None:
        if not hp.d0:
            raise ValueError(f"d0: expected a number above 0, got {hp.d0}")

    @staticmethod
    def check_groups(hps: Sequence[Hyperparameters]) -> None:
        # A group with a learning rate of 0 is frozen, as in the implementation of the authors.
        lrs = {hp.lr for hp in hps if hp.lr and not callable(hp.lr)}  # schedules are compared at each step
        if len(lrs) > 1:
            raise ValueError(
                "lr: expected the same value in all groups, or 0, as they share one estimate, got "
                f"{', '.join(map(str, lrs))}"
            )

    @staticmethod
    def advance(hp: Hyperparameters, t: int, scalar_state: ScalarState) -> ScalarState:
        d = scalar_state["d"] or hp.d0
        if hp.totals is None or not hp.totals[1]:     # not yet measured, or no gradient so far
            return {**scalar_state, "d": d, "d_before": d}
        inner, size = hp.totals
        lr = d * _corrected_lr(hp, t)
        numerator = sqrt(hp.betas[1]) * scalar_state["d_numerator"] + d / hp.d0 * lr * inner
        estimate = hp.d_coef * numerator / size
        largest = max(scalar_state["d_max"], hp.d0, estimate)
        grown = max(d, estimate) if d == hp.d0 else d
        limit = inf if hp.growth_rate is None else grown * hp.growth_rate
        return {"d": min(largest, limit), "d_before": d, "d_max": largest, "d_numerator": numerator}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        beta1, beta2 = hp.betas
        d = hp.scalar_state["d_before"]
        lr = d * _corrected_lr(hp, t)
        return {
            "beta1": beta1, "grad_coef": d * (1.0 - beta1),
            "beta2": beta2, "grad_sq_coef": d * d * (1.0 - beta2),
            "beta3": sqrt(beta2), "s_coef": d / hp.d0 * (d if hp.safeguard_warmup else lr),
            "is_first": 1.0 if hp.is_new else 0.0,
            "decay_factor": 1.0 - hp.weight_decay * lr,
            "eps": hp.scalar_state["d"] * hp.eps,
            "lr": lr,
        }


class Prodigy(Optimizer):
    r"""Prodigy: Adam with a learning rate that is estimated from the distance :math:`d` to the solution.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) d_t g_t, \quad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) d_t^2 g_t^2, \quad
        s_t = \sqrt{\beta_2} s_{t-1} + \tfrac{d_t}{d_0} \gamma d_t g_t, \quad
        r_t = \sqrt{\beta_2} r_{t-1} + \tfrac{d_t}{d_0} \gamma d_t \langle g_t, p_0 - p_{t-1} \rangle

    .. math::
        d_{t+1} = \max\Big(d_t, c \frac{r_t}{\|s_t\|_1}\Big), \qquad
        p_t = (1 - \gamma d_t \lambda) p_{t-1} - \gamma d_t \frac{m_t}{\sqrt{v_t} + d_{t+1} \epsilon}

    Inner products and norms are over all parameters. The estimate is ``groups[0].numbers["d"]``. Each step
    makes a second pass over the parameters.

    Parameters
    ----------
    lr : float or schedule
        Factor :math:`\gamma \ge 0` of the estimate: 1, or a schedule that decays from 1 to 0.
    use_bias_correction : bool
        Replace :math:`\gamma` by :math:`\gamma \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`.
    safeguard_warmup : bool
        Omit :math:`\gamma` from :math:`s_t`, so that a learning rate warmup does not inflate the estimate.
    d0 : float
        Initial estimate :math:`d_0 > 0`.
    d_coef : float or schedule
        Coefficient :math:`c \ge 0` of the estimate, usually between 0.5 and 2.
    growth_rate : float or schedule or None
        Largest ratio of successive estimates, at least 1; None for no limit.

    References
    ----------
    Mishchenko, Defazio, "Prodigy: an expeditiously adaptive parameter-free learner", ICML 2024.
    """

    RULE = ProdigyRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1.0, betas: Pair = (0.9, 0.999),
        eps: FloatOrSchedule = 1e-8, weight_decay: FloatOrSchedule = 0.0,
        use_bias_correction: bool = False, safeguard_warmup: bool = False, d0: Number = 1e-6,
        d_coef: FloatOrSchedule = 1.0, growth_rate: FloatOrSchedule | None = None, *,
        maximize: bool = False, **options: Unpack[Options],
    ) -> None: ...


def _corrected_lr(hp: Hyperparameters, t: int) -> float:
    if not hp.use_bias_correction:
        return hp.lr
    beta1, beta2 = hp.betas
    return hp.lr * (sqrt(1.0 - power(beta2, t)) / (1.0 - power(beta1, t)))
