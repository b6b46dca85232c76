"""AdaGrad and what came of it: Adadelta and FTRL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.dialects import dialects

if TYPE_CHECKING:
    from fastopt._core.typing import (
        Array,
        Conventions,
        Dialect,
        FloatOrSchedule,
        Number,
        Options,
        Params,
        SparseModes,
        States,
    )
    from fastopt.optimizers.groups import Hyperparameters


class Adagrad(Optimizer):
    r"""AdaGrad: each number's rate falls with the squares of its gradients so far.

    .. math::
        s_t = s_{t-1} + g_t^2, \qquad
        p_t = p_{t-1} - \frac{\gamma}{1 + (t - 1) \eta} \frac{g_t}{\sqrt{s_t} + \epsilon}

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`.
    lr_decay : float or schedule
        :math:`\eta \ge 0`.
    weight_decay : float or schedule
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    initial_accumulator_value : float
        :math:`s_0 \ge 0`.
    eps : float or schedule
        :math:`\epsilon \ge 0`.
    rowwise : bool
        Keep one accumulator for each row (each index of the first axis) rather than for each number, and
        add to it the mean of the row's squares: a table takes half the memory and less of it is moved.
    maximize : bool
        Ascend.
    convention : {"torch", "article", "keras", "optax"}
        Dialect: formula, and numbers where they are not given. "keras" and "optax" have epsilon inside the
        root, :math:`\sqrt{s_t + \epsilon}`; "keras" has decoupled decay.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

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
    >>> w.round(3)
    array([ 0.5, -1.5])
    """

    STATES: States = {"adagrad": ("sum",), "rowwise_adagrad": ("sum",)}
    CONVENTIONS: Conventions = {
        "torch": {},
        "article": {"eps": 1e-8},
        "keras": {"lr": 1e-3, "initial_accumulator_value": 0.1, "eps": 1e-7},
        "optax": {"initial_accumulator_value": 0.1, "eps": 1e-7},
    }
    SPARSE: SparseModes = ("lazy", "exact", "dense")

    @dialects
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-2, lr_decay: FloatOrSchedule = 0.0, weight_decay: FloatOrSchedule = 0.0,
        initial_accumulator_value: Number = 0.0, eps: FloatOrSchedule = 1e-10,
        *, rowwise: bool = False, maximize: bool = False, convention: Dialect = "torch",
        **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "eps": eps,
            "rowwise": rowwise, "maximize": maximize, "convention": convention,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "rowwise_adagrad" if h.rowwise else "adagrad"

    @classmethod
    def layout(cls, rule: str, array: Array) -> dict[str, tuple[int, ...]]:
        return {"sum": array.shape[:1] if rule == "rowwise_adagrad" else array.shape}

    @staticmethod
    def initial(name: str, h: Hyperparameters) -> float:
        return h.initial_accumulator_value

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        epsilons = (0.0, h.eps) if h.convention in ("keras", "optax") else (h.eps, 0.0)
        return (0.0, *epsilons) if h.rowwise else epsilons

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        return (h.lr / (1.0 + (t - 1) * h.lr_decay),)

    @classmethod
    def rest(cls, h: Hyperparameters) -> tuple[float, tuple[float, ...]] | None:
        return (0.0, ()) if h.eps else None     # 0 / 0 moves a number that has had no gradient yet


class Adadelta(Optimizer):
    r"""Adadelta: steps in the units of the parameter, so that it needs no learning rate.

    .. math::
        s_t = \rho s_{t-1} + (1 - \rho) g_t^2, \qquad
        d_t = \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{s_t + \epsilon}} g_t, \qquad
        u_t = \rho u_{t-1} + (1 - \rho) d_t^2, \qquad
        p_t = p_{t-1} - \gamma d_t

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        :math:`\gamma \ge 0`; the paper has 1.
    rho : float or schedule
        Weight of the past :math:`\rho`, in [0, 1).
    eps : float or schedule
        :math:`\epsilon \ge 0`; with 0 nothing ever moves.
    weight_decay : float or schedule
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    convention : {"torch", "keras", "optax"}
        Dialect: numbers where they are not given; "keras" has decoupled decay.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Zeiler, "ADADELTA: an adaptive learning rate method", arXiv:1212.5701, 2012.
    """

    STATES: States = {"adadelta": ("square_avg", "acc_delta")}
    CONVENTIONS: Conventions = {"torch": {}, "keras": {"lr": 1e-3, "rho": 0.95, "eps": 1e-7}, "optax": {}}

    @dialects
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1.0, rho: FloatOrSchedule = 0.9, eps: FloatOrSchedule = 1e-6,
        weight_decay: FloatOrSchedule = 0.0,
        *, maximize: bool = False, convention: Dialect = "torch", **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize,
            "convention": convention,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "adadelta"

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        return h.lr, h.rho, 1.0 - h.rho, h.eps


class FTRL(Optimizer):
    r"""Follow the regularized leader, proximal: AdaGrad whose L1 penalty sets numbers to exactly zero.

    .. math::
        n_t = n_{t-1} + g_t^2, \qquad
        z_t = z_{t-1} + g_t - \frac{\sqrt{n_t} - \sqrt{n_{t-1}}}{\gamma} p_{t-1}, \qquad
        p_t = -\frac{z_t - \min(\max(z_t, -\lambda_1), \lambda_1)}{(\beta + \sqrt{n_t}) / \gamma + \lambda_2}

    For sparse linear models of many features.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma > 0`, the paper's :math:`\alpha`.
    l1, l2 : float or schedule
        Penalties :math:`\lambda_1, \lambda_2 \ge 0`.
    beta : float or schedule
        :math:`\beta \ge 0`.
    initial_accumulator_value : float
        :math:`n_0 \ge 0`; one of it and `beta` must be above zero.
    weight_decay : float or schedule
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    convention : {"torch", "keras"}
        Dialect: formula, and numbers where they are not given; "torch", which has no such rule, stands for
        the paper. "keras" counts `l2` twice, as the gradient of :math:`\lambda_2 p^2`, and has decoupled
        decay.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013.
    """

    STATES: States = {"ftrl": ("accumulator", "linear")}
    CONVENTIONS: Conventions = {
        "torch": {},
        "keras": {"lr": 1e-3, "beta": 0.0, "initial_accumulator_value": 0.1},
    }

    @dialects
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-1, l1: FloatOrSchedule = 0.0, l2: FloatOrSchedule = 0.0, beta: FloatOrSchedule = 1.0,
        initial_accumulator_value: Number = 0.0, weight_decay: FloatOrSchedule = 0.0,
        *, maximize: bool = False, convention: Dialect = "torch", **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "l1": l1, "l2": l2, "beta": beta,
            "initial_accumulator_value": initial_accumulator_value, "weight_decay": weight_decay,
            "maximize": maximize, "convention": convention,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def check(h: Hyperparameters) -> None:
        if not h.lr:
            raise ValueError(f"lr: expected a number above 0, got {h.lr}")
        if not h.beta and not h.initial_accumulator_value:
            raise ValueError("beta: expected it or initial_accumulator_value above 0, got 0 for both")

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "ftrl"

    @staticmethod
    def initial(name: str, h: Hyperparameters) -> float:
        return h.initial_accumulator_value if name == "accumulator" else 0.0

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        return 1.0 / h.lr, h.beta, h.l1, 2.0 * h.l2 if h.convention == "keras" else h.l2
