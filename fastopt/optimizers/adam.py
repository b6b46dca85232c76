"""Adam, AMSGrad, AdamW, Adamax, NAdam, RAdam."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Unpack

from fastopt._core.scalar_math import power
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.dialects import dialects

if TYPE_CHECKING:
    from fastopt._core.typing import (
        Conventions,
        Dialect,
        FloatOrSchedule,
        Numbers,
        Options,
        Pair,
        Params,
        SparseModes,
        States,
    )
    from fastopt.optimizers.groups import Hyperparameters


class Adam(Optimizer):
    r"""Adam: momentum over the root mean square, both corrected for their start at zero.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \qquad
        p_t = p_{t-1} - \gamma \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    With `amsgrad`, the largest :math:`v` so far takes the place of :math:`v_t` under the root.

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
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    amsgrad : bool
        Never let the denominator fall.
    cautious : bool
        Move only the numbers whose step agrees in sign with the gradient, and those farther: by the
        array's size over their count (at most 1000 times). Not together with `amsgrad`.
    maximize : bool
        Ascend.
    convention : {"torch", "article", "keras", "sklearn", "optax"}
        Dialect: formula, and numbers where they are not given. "keras" and "sklearn" add epsilon to the
        uncorrected root (the paper's epsilon-hat):
        :math:`\gamma \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m_t}{\sqrt{v_t} + \epsilon}`.
        "keras" has decoupled decay. "optax" corrects :math:`v_t` before `amsgrad` takes the largest.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    Reddi, Kale, Kumar, "On the convergence of Adam and beyond", ICLR 2018 (amsgrad).
    Liang, Chen, Liu, Liu, "Cautious optimizers: improving training with one line of code",
    arXiv:2411.16085, 2024 (cautious).

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.Adam(w, lr=0.5)
    >>> opt.step(w.copy())
    >>> w.round(3)
    array([ 0.5, -1.5])
    """

    STATES: States = {
        "adam": ("exp_avg", "exp_avg_sq"),
        "cautious_adam": ("exp_avg", "exp_avg_sq"),
        "amsgrad": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    }
    CONVENTIONS: Conventions = {
        "torch": {},
        "article": {"lr": 1e-2, "eps": 1e-4},
        "keras": {"eps": 1e-7},
        "sklearn": {},
        "optax": {},
    }
    SPARSE: SparseModes = ("lazy", "exact", "dense")

    @dialects
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, betas: Pair = (0.9, 0.999), eps: FloatOrSchedule = 1e-8,
        weight_decay: FloatOrSchedule = 0.0, amsgrad: bool = False,
        *, maximize: bool = False, cautious: bool = False, convention: Dialect = "torch",
        **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "cautious": cautious, "maximize": maximize, "convention": convention,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def check(h: Hyperparameters) -> None:
        if h.cautious and h.amsgrad:
            raise ValueError("cautious: expected no amsgrad beside it, got both")

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        if h.cautious:
            return "cautious_adam"
        return "amsgrad" if h.amsgrad else "adam"

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        beta1, beta2 = h.betas
        return 1.0, beta1, 1.0 - beta1, beta2, 1.0 - beta2, h.eps

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        beta1, beta2 = h.betas
        lr, root = h.lr / (1.0 - power(beta1, t)), sqrt(1.0 - power(beta2, t))
        if h.cautious:
            lr *= h.boost()
        corrected = h.convention in ("torch", "article", "optax")
        row = (lr, 1.0 / root) if corrected else (lr * root, 1.0)
        if h.rule != "amsgrad":
            return row
        return (lr, 1.0, 1.0 / (1.0 - power(beta2, t))) if h.convention == "optax" else (*row, 1.0)

    @classmethod
    def rest(cls, h: Hyperparameters) -> tuple[float, tuple[float, ...]] | None:
        beta1, beta2 = h.betas
        keep = cls.constants(h)[0]
        if not (beta1 * beta1 < beta2 and h.eps and keep > 0.0):
            return None
        return beta1 / sqrt(beta2), (keep, beta1, beta2, 1.0)


class AdamW(Adam):
    r"""Adam with decoupled weight decay.

    Before Adam's step, :math:`p \leftarrow (1 - \gamma \lambda) p`, and nothing is added to the
    gradient.

    Parameters
    ----------
    params, lr, betas, eps, amsgrad, cautious, maximize, **options
        As for `Adam`.
    weight_decay : float or schedule
        :math:`\lambda \ge 0`.
    convention : {"torch", "keras", "optax"}
        As for `Adam`, with other defaults of the decay.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """

    CONVENTIONS: Conventions = {
        "torch": {},
        "keras": {"eps": 1e-7, "weight_decay": 4e-3},
        "optax": {"weight_decay": 1e-4},
    }

    @dialects
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, betas: Pair = (0.9, 0.999), eps: FloatOrSchedule = 1e-8,
        weight_decay: FloatOrSchedule = 1e-2, amsgrad: bool = False,
        *, maximize: bool = False, cautious: bool = False, convention: Dialect = "torch",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, cautious=cautious,
            convention=convention, **options,
        )

    @staticmethod
    def decay(h: Hyperparameters) -> float:
        return 0.0

    @staticmethod
    def keep(h: Hyperparameters) -> float:
        return 1.0

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        return 1.0 - h.lr * h.weight_decay, *Adam.constants(h)[1:]


class Adamax(Optimizer):
    r"""Adamax: Adam whose second moment is the largest gradient of late, rather than a mean square.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon), \qquad
        p_t = p_{t-1} - \frac{\gamma}{1 - \beta_1^t} \frac{m_t}{u_t}

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
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    maximize : bool
        Ascend.
    convention : {"torch", "keras", "optax"}
        Dialect: formula, and numbers where they are not given. "keras" adds epsilon to the maximum,
        :math:`u_t = \max(\beta_2 u_{t-1}, |g_t|)` over which :math:`m_t / (u_t + \epsilon)` goes, and has
        decoupled decay.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015, section 7.
    """

    STATES: States = {"adamax": ("exp_avg", "exp_inf")}
    CONVENTIONS: Conventions = {"torch": {}, "keras": {"lr": 1e-3, "eps": 1e-7}, "optax": {}}

    @dialects
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 2e-3, betas: Pair = (0.9, 0.999), eps: FloatOrSchedule = 1e-8,
        weight_decay: FloatOrSchedule = 0.0,
        *, maximize: bool = False, convention: Dialect = "torch", **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize,
            "convention": convention,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "adamax"

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        beta1, beta2 = h.betas
        eps, outside = (0.0, h.eps) if h.convention == "keras" else (h.eps, 0.0)
        return 1.0, beta1, 1.0 - beta1, beta2, eps, outside

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        return (h.lr / (1.0 - power(h.betas[0], t)),)


class NAdam(Optimizer):
    r"""Adam with Nesterov's momentum, which warms up.

    .. math::
        \mu_t = \beta_1 (1 - \tfrac12 0.96^{t \psi}), \qquad
        \hat m_t = \frac{(1 - \mu_t) g_t}{1 - \prod_{i \le t} \mu_i}
                  + \frac{\mu_{t+1} m_t}{1 - \prod_{i \le t + 1} \mu_i}, \qquad
        p_t = p_{t-1} - \gamma \frac{\hat m_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    where :math:`m_t, v_t` are Adam's moments.

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
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    decoupled_weight_decay : bool
        Shrink the parameters instead: :math:`p \leftarrow (1 - \gamma \lambda) p` before the step.
    momentum_decay : float or schedule
        :math:`\psi \ge 0`.
    maximize : bool
        Ascend.
    convention : {"torch", "keras", "optax"}
        Dialect: formula, and numbers where they are not given. "optax" keeps :math:`\mu_t = \beta_1`,
        whatever `momentum_decay`.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop 2016.
    """

    STATES: States = {"nadam": ("exp_avg", "exp_avg_sq")}
    NUMBERS: Numbers = {"mu_product": 1.0}
    CONVENTIONS: Conventions = {
        "torch": {},
        "keras": {"lr": 1e-3, "eps": 1e-7, "momentum_decay": 1.0, "decoupled_weight_decay": True},
        "optax": {"decoupled_weight_decay": True},
    }

    @dialects
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 2e-3, betas: Pair = (0.9, 0.999), eps: FloatOrSchedule = 1e-8,
        weight_decay: FloatOrSchedule = 0.0, momentum_decay: FloatOrSchedule = 4e-3, decoupled_weight_decay: bool = False,
        *, maximize: bool = False, convention: Dialect = "torch", **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize, "convention": convention,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "nadam"

    @staticmethod
    def decay(h: Hyperparameters) -> float:
        return 0.0 if h.decoupled_weight_decay else h.weight_decay

    @staticmethod
    def keep(h: Hyperparameters) -> float:
        return 1.0

    @staticmethod
    def carry(h: Hyperparameters, t: int, numbers: dict[str, float]) -> dict[str, float]:
        return {"mu_product": numbers["mu_product"] * _warmed(h, t)}

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        beta1, beta2 = h.betas
        return _kept(h), beta1, 1.0 - beta1, beta2, 1.0 - beta2, h.eps

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        product, mu, mu_next = h.numbers["mu_product"], _warmed(h, t), _warmed(h, t + 1)
        return (
            h.lr * (1.0 - mu) / (1.0 - product),
            h.lr * mu_next / (1.0 - product * mu_next),
            1.0 / sqrt(1.0 - power(h.betas[1], t)),
        )


class RAdam(Optimizer):
    r"""Rectified Adam: plain momentum until the second moment can be trusted, then Adam, warmed up.

    .. math::
        \rho_\infty = \frac{2}{1 - \beta_2} - 1, \qquad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \qquad
        r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}

    .. math::
        p_t = p_{t-1} - \gamma \hat m_t \begin{cases}
            r_t \sqrt{1 - \beta_2^t} / (\sqrt{v_t} + \epsilon) & \rho_t > 5 \\
            1 & \text{else}
        \end{cases}

    where :math:`\hat m_t, v_t` are Adam's moments. The kernel is Adam's.

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
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    decoupled_weight_decay : bool
        Shrink the parameters instead: :math:`p \leftarrow (1 - \gamma \lambda) p` before the step.
    maximize : bool
        Ascend.
    convention : {"torch", "optax"}
        "optax" adds epsilon to the corrected root,
        :math:`r_t / (\sqrt{v_t / (1 - \beta_2^t)} + \epsilon)`.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Liu et al., "On the variance of the adaptive learning rate and beyond", ICLR 2020.
    """

    STATES: States = {"adam": ("exp_avg", "exp_avg_sq")}
    CONVENTIONS: Conventions = {"torch": {}, "optax": {}}

    @dialects
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, betas: Pair = (0.9, 0.999), eps: FloatOrSchedule = 1e-8,
        weight_decay: FloatOrSchedule = 0.0, decoupled_weight_decay: bool = False, *, maximize: bool = False,
        convention: Dialect = "torch", **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize,
            "convention": convention,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "adam"

    @staticmethod
    def decay(h: Hyperparameters) -> float:
        return 0.0 if h.decoupled_weight_decay else h.weight_decay

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        beta1, beta2 = h.betas
        return _kept(h), beta1, 1.0 - beta1, beta2, 1.0 - beta2

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        beta1, beta2 = h.betas
        lr, trust = h.lr / (1.0 - power(beta1, t)), 1.0 - power(beta2, t)
        longest = 2.0 / (1.0 - beta2) - 1.0
        length = longest - 2.0 * t * power(beta2, t) / trust
        if length <= 5.0:
            return 1.0, lr, 0.0     # the denominator is 0 sqrt(v) + 1
        rectified = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
        if h.convention == "optax":
            return h.eps, lr * sqrt(rectified), 1.0 / sqrt(trust)
        return h.eps, lr * sqrt(rectified) * sqrt(trust), 1.0


def _kept(h: Hyperparameters) -> float:
    """What decoupled decay leaves of a parameter."""
    return 1.0 - h.lr * h.weight_decay if h.decoupled_weight_decay else 1.0


def _warmed(h: Hyperparameters, t: int) -> float:
    """NAdam's momentum at step `t`."""
    if h.convention == "optax":
        return h.betas[0]
    mu: float = h.betas[0] * (1.0 - 0.5 * power(0.96, t * h.momentum_decay))
    return mu
