"""Optimizers that use the sign of the gradient: Rprop, SignSGD and Lion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from fastopt.optimizers.base import Optimizer, constructor
from fastopt.optimizers.rule import Rule, beta_scalars

if TYPE_CHECKING:
    from fastopt._core.typing import Convention, FloatOrSchedule, Options, Pair, Params
    from fastopt.optimizers.hyperparameters import Hyperparameters


class RpropRule(Rule):
    """Update rule of `Rprop`."""

    STATES = {"rprop": ("prev", "step_size")}
    STATE_KINDS = {"prev": "signed"}
    DECAY = "decoupled"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        names = ("eta_minus", "eta_plus", "min_step", "max_step")
        return dict(zip(names, (*hp.etas, *hp.step_sizes), strict=True))

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        return {"first_step": hp.lr if hp.is_new else 0.0}


class Rprop(Optimizer):
    r"""Rprop: resilient backpropagation with a step size per element.

    .. math::
        \Delta_t = \min(\max(\eta \Delta_{t-1}, \Delta_\min), \Delta_\max), \quad
        \eta = \eta^+, \eta^-, 1 \text{ for } g_t g_{t-1} > 0, < 0, = 0, \qquad
        p_t = p_{t-1} - \Delta_t \operatorname{sign} g_t

    After a change of sign the element does not move, and its gradient is stored as zero. Use it with full
    batches: the noise of minibatches changes signs at random. A NaN in the gradient yields NaN; torch treats
    its sign as zero.

    Parameters
    ----------
    lr : float or schedule
        Initial step size :math:`\Delta_0 \ge 0`.
    etas : pair of float or schedule
        Factors of the step size: :math:`\eta^-` in [0, 1) and :math:`\eta^+ \ge 1`.
    step_sizes : pair of float or schedule
        Smallest and largest step size :math:`\Delta_\min, \Delta_\max \ge 0`.

    References
    ----------
    Riedmiller, Braun, "A direct adaptive method for faster backpropagation learning: the RPROP
    algorithm", ICNN 1993.
    """

    RULE = RpropRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-2, etas: Pair = (0.5, 1.2),
        step_sizes: Pair = (1e-6, 50.0), *, maximize: bool = False, **options: Unpack[Options],
    ) -> None: ...


class SignSGDRule(Rule):
    """Update rule of `SignSGD`."""

    STATES = {"sign_sgd": (), "signum": ("momentum_buffer",)}
    STATE_KINDS = {"momentum_buffer": "signed"}
    DECAY = "decoupled"

    @staticmethod
    def kernel(hp: Hyperparameters) -> str:
        return "signum" if hp.momentum else "sign_sgd"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        scalars = {"decay_factor": cls.kernel_decay_factor(hp), "lr": hp.lr}
        if hp.kernel == "sign_sgd":
            return scalars
        return {**scalars, "momentum": hp.momentum, "one_minus_momentum": 1.0 - hp.momentum}


class SignSGD(Optimizer):
    r"""SignSGD: the sign of the gradient; with momentum, Signum: the sign of its moving average.

    .. math::
        m_t = \mu m_{t-1} + (1 - \mu) g_t, \qquad
        p_t = (1 - \gamma \lambda) p_{t-1} - \gamma \operatorname{sign} m_t

    The sign of zero is zero.

    References
    ----------
    Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: compressed optimisation for non-convex
    problems", ICML 2018.
    """

    RULE = SignSGDRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, momentum: FloatOrSchedule = 0.0,
        weight_decay: FloatOrSchedule = 0.0, *, maximize: bool = False, **options: Unpack[Options],
    ) -> None: ...


class LionRule(Rule):
    """Update rule of `Lion`."""

    STATES = {"lion": ("exp_avg",), "cautious_lion": ("exp_avg",)}
    CONVENTIONS = {"torch": {}, "keras": {"lr": 1e-3}, "optax": {"weight_decay": 1e-3}}
    DECAY = "decoupled"

    @staticmethod
    def kernel(hp: Hyperparameters) -> str:
        return "cautious_lion" if hp.cautious else "lion"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        return {"decay_factor": cls.kernel_decay_factor(hp), **beta_scalars(*hp.betas)}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        return {"lr": hp.lr * hp.cautious_scale() if hp.cautious else hp.lr}


class Lion(Optimizer):
    r"""Lion: evolved sign momentum.

    .. math::
        d_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t, \qquad
        p_t = (1 - \gamma \lambda) p_{t-1} - \gamma \operatorname{sign} d_t

    Every element moves by the learning rate, which should therefore be three to ten times smaller than
    Adam's, with a weight decay that is larger by the same factor. The sign of zero is zero.

    Parameters
    ----------
    convention
        "torch" is the formula of the paper, because torch has no Lion.

    References
    ----------
    Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023.
    Liang, Chen, Liu, Liu, "Cautious optimizers: improving training with one line of code",
    arXiv:2411.16085, 2024 (cautious).
    """

    RULE = LionRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-4, betas: Pair = (0.9, 0.99),
        weight_decay: FloatOrSchedule = 0.0, cautious: bool = False, *, maximize: bool = False,
        convention: Convention = "torch", **options: Unpack[Options],
    ) -> None: ...
