"""AdaGrad, Adadelta and FTRL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import numpy as np

from fastopt.optimizers.base import Optimizer, constructor
from fastopt.optimizers.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastopt._core.typing import Array, Convention, FloatOrSchedule, Number, Options, Params
    from fastopt.optimizers.hyperparameters import Hyperparameters


class AdagradRule(Rule):
    """Update rule of `Adagrad`."""

    STATES = {"adagrad": ("sum",), "rowwise_adagrad": ("sum",)}
    STATE_KINDS = {"sum": "precise"}
    CONVENTIONS = {
        "torch": {},
        "article": {"eps": 1e-8},
        "keras": {"lr": 1e-3, "initial_accumulator_value": 0.1, "eps": 1e-7},
        "optax": {"initial_accumulator_value": 0.1, "eps": 1e-7},
    }
    SPARSE = ("lazy", "exact", "dense")

    @staticmethod
    def kernel(hp: Hyperparameters) -> str:
        return "rowwise_adagrad" if hp.rowwise else "adagrad"

    @classmethod
    def state_shapes(cls, kernel: str, array: Array) -> dict[str, tuple[int, ...]]:
        return {"sum": array.shape[:1] if kernel == "rowwise_adagrad" else array.shape}

    @staticmethod
    def init_value(name: str, hp: Hyperparameters) -> float:
        return hp.initial_accumulator_value

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        inside = hp.convention in ("keras", "optax")
        epsilons = {"eps": 0.0 if inside else hp.eps, "eps_root": hp.eps if inside else 0.0}
        return {"row_sum": 0.0, **epsilons} if hp.rowwise else epsilons

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        return {"lr": hp.lr / (1.0 + (t - 1) * hp.lr_decay)}

    @classmethod
    def idle_decay(cls, hp: Hyperparameters) -> tuple[float, tuple[float, ...]] | None:
        return (0.0, ()) if hp.eps else None     # 0 / 0 moves a number that has had no gradient yet


class Adagrad(Optimizer):
    r"""AdaGrad: per-parameter learning rates that decrease with the sum of squared gradients.

    .. math::
        s_t = s_{t-1} + g_t^2, \qquad
        p_t = p_{t-1} - \frac{\gamma}{1 + (t - 1) \eta} \frac{g_t}{\sqrt{s_t} + \epsilon}

    Parameters
    ----------
    lr_decay : float or schedule
        Learning rate decay :math:`\eta \ge 0`.
    initial_accumulator_value : float
        Initial sum :math:`s_0 \ge 0`.
    rowwise : bool
        Keep one accumulator per row (index of the first axis) instead of one per element, and add the mean
        of the row's squared gradients to it. This halves the memory of an embedding table with its state.
    convention
        "keras" and "optax" add epsilon inside the square root, :math:`\sqrt{s_t + \epsilon}`; "keras" uses
        decoupled weight decay.

    References
    ----------
    Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and stochastic
    optimization", JMLR 12, 2011.
    Naumov et al., "Deep learning recommendation model for personalization and recommendation systems",
    arXiv:1906.00091, 2019, and the FBGEMM library (rowwise, with the mean of the squares).

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.Adagrad(w, lr=0.5)
    >>> opt.step(w.copy())
    True
    >>> w.round(3)
    array([ 0.5, -1.5])
    """

    RULE = AdagradRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-2, lr_decay: FloatOrSchedule = 0.0,
        weight_decay: FloatOrSchedule = 0.0, initial_accumulator_value: Number = 0.0,
        eps: FloatOrSchedule = 1e-10, *, rowwise: bool = False, maximize: bool = False,
        convention: Convention = "torch", **options: Unpack[Options],
    ) -> None: ...


class AdadeltaRule(Rule):
    """Update rule of `Adadelta`."""

    STATES = {"adadelta": ("square_avg", "acc_delta")}
    STATE_KINDS = {"square_avg": "nonnegative", "acc_delta": "nonnegative"}
    CONVENTIONS = {"torch": {}, "keras": {"lr": 1e-3, "rho": 0.95, "eps": 1e-7}, "optax": {}}

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        return {"lr": hp.lr, "rho": hp.rho, "one_minus_rho": 1.0 - hp.rho, "eps": hp.eps}


class Adadelta(Optimizer):
    r"""Adadelta: steps scaled by a running average of squared updates, without a global learning rate.

    .. math::
        s_t = \rho s_{t-1} + (1 - \rho) g_t^2, \qquad
        d_t = \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{s_t + \epsilon}} g_t, \qquad
        u_t = \rho u_{t-1} + (1 - \rho) d_t^2, \qquad
        p_t = p_{t-1} - \gamma d_t

    Parameters
    ----------
    lr : float or schedule
        :math:`\gamma \ge 0`; 1 in the paper.
    rho : float or schedule
        Decay rate :math:`\rho` of the averages, in [0, 1).
    eps : float or schedule
        :math:`\epsilon \ge 0`; with 0 the parameters never move.
    convention
        "keras" uses decoupled weight decay.

    References
    ----------
    Zeiler, "ADADELTA: an adaptive learning rate method", arXiv:1212.5701, 2012.
    """

    RULE = AdadeltaRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1.0, rho: FloatOrSchedule = 0.9,
        eps: FloatOrSchedule = 1e-6, weight_decay: FloatOrSchedule = 0.0, *, maximize: bool = False,
        convention: Convention = "torch", **options: Unpack[Options],
    ) -> None: ...


class FTRLRule(Rule):
    """Update rule of `FTRL`."""

    STATES = {"ftrl": ("accumulator", "linear")}
    STATE_KINDS = {"accumulator": "precise"}     # the linear term determines the parameter
    CONVENTIONS = {
        "torch": {},
        "keras": {"lr": 1e-3, "beta": 0.0, "initial_accumulator_value": 0.1},
    }
    REFUSED_OPTIONS = dict.fromkeys(
        ("lookahead", "independent_weight_decay"),
        "the parameters are computed from sums over all gradients, not from their previous values",
    )

    @staticmethod
    def check(hp: Hyperparameters) -> None:
        if not hp.lr:
            raise ValueError(f"lr: expected a number above 0, got {hp.lr}")
        if not hp.beta and not hp.initial_accumulator_value:
            raise ValueError("beta: expected it or initial_accumulator_value above 0, got 0 for both")

    @staticmethod
    def init_value(name: str, hp: Hyperparameters) -> float:
        return hp.initial_accumulator_value if name == "accumulator" else 0.0

    @staticmethod
    def reset_copies(hp: Hyperparameters, p: Array, state: Mapping[str, Array]) -> None:
        """Set the linear term to the one whose minimum is the parameter."""
        l2 = 2.0 * hp.l2 if hp.convention == "keras" else hp.l2
        quadratic = (hp.beta + np.sqrt(state["accumulator"])) / hp.lr + l2
        state["linear"][...] = -quadratic * p - hp.l1 * np.sign(p)

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        l2 = 2.0 * hp.l2 if hp.convention == "keras" else hp.l2
        return {"inverse_lr": 1.0 / hp.lr, "beta": hp.beta, "l1": hp.l1, "l2": l2}


class FTRL(Optimizer):
    r"""FTRL-Proximal (follow the regularized leader): AdaGrad with an L1 penalty that yields exact zeros.

    .. math::
        n_t = n_{t-1} + g_t^2, \qquad
        z_t = z_{t-1} + g_t - \frac{\sqrt{n_t} - \sqrt{n_{t-1}}}{\gamma} p_{t-1}, \qquad
        p_t = -\frac{z_t - \min(\max(z_t, -\lambda_1), \lambda_1)}{(\beta + \sqrt{n_t}) / \gamma + \lambda_2}

    It is intended for sparse linear models with many features.

    Parameters
    ----------
    lr : float or schedule
        Learning rate :math:`\gamma > 0`, the paper's :math:`\alpha`.
    l1, l2 : float or schedule
        L1 and L2 penalties :math:`\lambda_1, \lambda_2 \ge 0`.
    beta : float or schedule
        :math:`\beta \ge 0`, which reduces the learning rates of the first steps.
    initial_accumulator_value : float
        Initial sum :math:`n_0 \ge 0`. This or `beta` must be positive.
    convention
        "torch" is the formula of the paper, because torch has no FTRL. "keras" doubles `l2`, because its
        penalty is :math:`\lambda_2 p^2`, and uses decoupled weight decay.

    References
    ----------
    McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013.
    """

    RULE = FTRLRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-1, l1: FloatOrSchedule = 0.0,
        l2: FloatOrSchedule = 0.0, beta: FloatOrSchedule = 1.0, initial_accumulator_value: Number = 0.0,
        weight_decay: FloatOrSchedule = 0.0, *, maximize: bool = False, convention: Convention = "torch",
        **options: Unpack[Options],
    ) -> None: ...
