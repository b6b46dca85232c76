"""Rules that take of the gradient, or of its momentum, the sign alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.dialects import dialects

if TYPE_CHECKING:
    from fastopt._core.typing import Conventions, Dialect, FloatOrSchedule, Options, Pair, Params, States
    from fastopt.optimizers.groups import Hyperparameters


class Rprop(Optimizer):
    r"""Resilient backpropagation: every number has a step of its own, which grows while the sign holds.

    .. math::
        \Delta_t = \min(\max(\eta \Delta_{t-1}, \Delta_\min), \Delta_\max), \quad
        \eta = \eta^+, \eta^-, 1 \text{ as } g_t g_{t-1} >, <, = 0, \qquad
        p_t = p_{t-1} - \Delta_t \operatorname{sign} g_t

    Where the sign has turned, the step is left out and the gradient counts as zero. For full batches:
    the noise of minibatches turns signs at random. A NaN stays one, where torch takes its sign for zero.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        First step :math:`\Delta_0 \ge 0`.
    etas : pair of float or schedule
        :math:`\eta^-` in [0, 1) and :math:`\eta^+ \ge 1`.
    step_sizes : pair of float or schedule
        :math:`\Delta_\min, \Delta_\max \ge 0`.
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
    Riedmiller, Braun, "A direct adaptive method for faster backpropagation learning: the RPROP
    algorithm", ICNN 1993.
    """

    STATES: States = {"rprop": ("prev", "step_size")}

    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-2, etas: Pair = (0.5, 1.2), step_sizes: Pair = (1e-6, 50.0),
        *, maximize: bool = False, **options: Unpack[Options],
    ) -> None:
        hyperparameters = {"lr": lr, "etas": etas, "step_sizes": step_sizes, "maximize": maximize}
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "rprop"

    @staticmethod
    def decay(h: Hyperparameters) -> float:
        return 0.0

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        return *h.etas, *h.step_sizes

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        return (h.lr if t == 1 else 0.0,)


class SignSGD(Optimizer):
    r"""The sign of the gradient; with momentum, Signum: the sign of the gradient's average.

    .. math::
        m_t = \mu m_{t-1} + (1 - \mu) g_t, \qquad
        p_t = (1 - \gamma \lambda) p_{t-1} - \gamma \operatorname{sign} m_t

    The sign of zero is zero.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`.
    momentum : float or schedule
        :math:`\mu \ge 0`; 0 for none.
    weight_decay : float or schedule
        Decoupled: :math:`p \leftarrow (1 - \gamma \lambda) p` before the step.
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
    Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: compressed optimisation for non-convex
    problems", ICML 2018.
    """

    STATES: States = {"sign_sgd": (), "signum": ("momentum_buffer",)}

    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, momentum: FloatOrSchedule = 0.0, weight_decay: FloatOrSchedule = 0.0,
        *, maximize: bool = False, **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "signum" if h.momentum else "sign_sgd"

    @staticmethod
    def decay(h: Hyperparameters) -> float:
        return 0.0

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        keep = 1.0 - h.lr * h.weight_decay
        return (keep, h.lr, h.momentum, 1.0 - h.momentum) if h.rule == "signum" else (keep, h.lr)


class Lion(Optimizer):
    r"""Lion, evolved sign momentum: the sign of one average of the gradient, while another is kept.

    .. math::
        d_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t, \qquad
        p_t = (1 - \gamma \lambda) p_{t-1} - \gamma \operatorname{sign} d_t

    Every number moves by the learning rate, so it should be three to ten times smaller, and the decay
    as much larger, than Adam's. The sign of zero is zero.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`.
    betas : pair of float or schedule
        Weights of the past :math:`\beta_1, \beta_2`, in [0, 1).
    weight_decay : float or schedule
        Decoupled: :math:`p \leftarrow (1 - \gamma \lambda) p` before the step.
    cautious : bool
        Move only the numbers whose step agrees in sign with the gradient, and those farther: by the
        array's size over their count (at most 1000 times).
    maximize : bool
        Ascend.
    convention : {"torch", "keras", "optax"}
        Dialect: numbers where they are not given; "torch", which has no such rule, stands for the paper.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023.
    Liang, Chen, Liu, Liu, "Cautious optimizers: improving training with one line of code",
    arXiv:2411.16085, 2024 (cautious).
    """

    STATES: States = {"lion": ("exp_avg",), "cautious_lion": ("exp_avg",)}

    CONVENTIONS: Conventions = {"torch": {}, "keras": {"lr": 1e-3}, "optax": {"weight_decay": 1e-3}}

    @dialects
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-4, betas: Pair = (0.9, 0.99), weight_decay: FloatOrSchedule = 0.0,
        cautious: bool = False,
        *, maximize: bool = False, convention: Dialect = "torch", **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "betas": betas, "weight_decay": weight_decay, "cautious": cautious,
            "maximize": maximize, "convention": convention,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "cautious_lion" if h.cautious else "lion"

    @staticmethod
    def decay(h: Hyperparameters) -> float:
        return 0.0

    @staticmethod
    def keep(h: Hyperparameters) -> float:
        return 1.0

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        beta1, beta2 = h.betas
        return 1.0 - h.lr * h.weight_decay, beta1, 1.0 - beta1, beta2, 1.0 - beta2

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        return (h.lr * h.boost() if h.cautious else h.lr,)
