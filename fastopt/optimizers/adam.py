"""Adam, AMSGrad, AdamW, Adamax, NAdam, RAdam."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Unpack

from fastopt._core.scalar_math import bias_correction, power
from fastopt.optimizers.base import Optimizer, constructor
from fastopt.optimizers.rule import Rule, beta_scalars

if TYPE_CHECKING:
    from fastopt._core.typing import Convention, FloatOrSchedule, Options, Pair, Params, ScalarState
    from fastopt.optimizers.hyperparameters import Hyperparameters


class AdamRule(Rule):
    """Update rule of `Adam`."""

    STATES = {
        "adam": ("exp_avg", "exp_avg_sq"),
        "cautious_adam": ("exp_avg", "exp_avg_sq"),
        "amsgrad": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    }
    STATE_KINDS = Rule.STATE_KINDS | {"max_exp_avg_sq": "precise"}
    CONVENTIONS = {
        "torch": {},
        "article": {"lr": 1e-2, "eps": 1e-4},
        "keras": {"eps": 1e-7},
        "sklearn": {},
        "optax": {},
    }
    SPARSE = ("lazy", "exact", "dense")

    @staticmethod
    def check(hp: Hyperparameters) -> None:
        if hp.cautious and hp.amsgrad:
            raise ValueError("cautious: cannot be combined with amsgrad=True")

    @staticmethod
    def kernel(hp: Hyperparameters) -> str:
        if hp.cautious:
            return "cautious_adam"
        return "amsgrad" if hp.amsgrad else "adam"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        return {"decay_factor": cls.kernel_decay_factor(hp), **beta_scalars(*hp.betas), "eps": hp.eps}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        beta1, beta2 = hp.betas
        correction2 = bias_correction(hp.bias_correction, beta2, t)
        lr, root = hp.lr / bias_correction(hp.bias_correction, beta1, t), sqrt(correction2)
        if hp.cautious:
            lr *= hp.cautious_scale()
        if hp.convention in ("keras", "sklearn"):  # epsilon is added before bias correction
            scalars = {"lr": lr * root, "denom_scale": 1.0}
        else:
            scalars = {"lr": lr, "denom_scale": 1.0 / root}
        if hp.kernel == "amsgrad":
            scalars["bias_correction2"] = 1.0
            if hp.convention == "optax":
                scalars |= {"denom_scale": 1.0, "bias_correction2": 1.0 / correction2}
        return scalars

    @classmethod
    def idle_decay(cls, hp: Hyperparameters) -> tuple[float, tuple[float, ...]] | None:
        beta1, beta2 = hp.betas
        factor = cls.kernel_decay_factor(hp)
        if not (beta1 * beta1 < beta2 and hp.eps and factor > 0.0):
            return None
        return beta1 / sqrt(beta2), (factor, beta1, beta2, 1.0)


class Adam(Optimizer):
    r"""Adam: adaptive moment estimation.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \qquad
        p_t = p_{t-1} - \gamma \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    With `amsgrad`, :math:`v_t` in the last formula is replaced by its maximum over all steps.

    Parameters
    ----------
    amsgrad : bool
        AMSGrad: divide by the running maximum of the second moment.
    cautious
        Cannot be combined with `amsgrad`.
    convention
        "keras" and "sklearn" add epsilon before bias correction (the paper's epsilon-hat): :math:`\gamma
        \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m_t}{\sqrt{v_t} + \epsilon}`. "keras" uses decoupled
        weight decay. With "optax", `amsgrad` takes the maximum of the bias-corrected :math:`v_t`.

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
    True
    >>> w.round(3)
    array([ 0.5, -1.5])
    """

    RULE = AdamRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, betas: Pair = (0.9, 0.999),
        eps: FloatOrSchedule = 1e-8, weight_decay: FloatOrSchedule = 0.0, amsgrad: bool = False, *,
        maximize: bool = False, cautious: bool = False, bias_correction: bool = True,
        convention: Convention = "torch", **options: Unpack[Options],
    ) -> None: ...


class AdamWRule(AdamRule):
    """Update rule of `AdamW`."""

    CONVENTIONS = {
        "torch": {},
        "keras": {"eps": 1e-7, "weight_decay": 4e-3},
        "optax": {"weight_decay": 1e-4},
    }
    DECAY = "decoupled"


class AdamW(Adam):
    r"""Adam with decoupled weight decay.

    Like `Adam`, but with :math:`p \leftarrow (1 - \gamma \lambda) p` before each step instead of the L2
    penalty.

    Parameters
    ----------
    amsgrad : bool
        AMSGrad: divide by the running maximum of the second moment.
    convention
        See `Adam`.

    References
    ----------
    Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """

    RULE = AdamWRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, betas: Pair = (0.9, 0.999),
        eps: FloatOrSchedule = 1e-8, weight_decay: FloatOrSchedule = 1e-2, amsgrad: bool = False, *,
        maximize: bool = False, cautious: bool = False, bias_correction: bool = True,
        convention: Convention = "torch", **options: Unpack[Options],
    ) -> None: ...


class AdamaxRule(Rule):
    """Update rule of `Adamax`."""

    STATES = {"adamax": ("exp_avg", "exp_inf")}
    STATE_KINDS = {"exp_avg": "signed", "exp_inf": "nonnegative"}
    CONVENTIONS = {"torch": {}, "keras": {"lr": 1e-3, "eps": 1e-7}, "optax": {}}

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        beta1, beta2 = hp.betas
        outside = hp.convention == "keras"
        return {
            "decay_factor": 1.0, "beta1": beta1, "one_minus_beta1": 1.0 - beta1, "beta2": beta2,
            "eps": 0.0 if outside else hp.eps, "eps_denom": hp.eps if outside else 0.0,
        }

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        return {"lr": hp.lr / bias_correction(hp.bias_correction, hp.betas[0], t)}


class Adamax(Optimizer):
    r"""Adamax: Adam with the infinity norm in place of the second moment.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon), \qquad
        p_t = p_{t-1} - \frac{\gamma}{1 - \beta_1^t} \frac{m_t}{u_t}

    Parameters
    ----------
    convention
        "keras" adds epsilon outside the maximum, :math:`u_t = \max(\beta_2 u_{t-1}, |g_t|)` and :math:`m_t
        / (u_t + \epsilon)`, and uses decoupled weight decay.

    References
    ----------
    Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015, section 7.
    """

    RULE = AdamaxRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 2e-3, betas: Pair = (0.9, 0.999),
        eps: FloatOrSchedule = 1e-8, weight_decay: FloatOrSchedule = 0.0, *, maximize: bool = False,
        bias_correction: bool = True, convention: Convention = "torch", **options: Unpack[Options],
    ) -> None: ...


class NAdamRule(Rule):
    """Update rule of `NAdam`."""

    STATES = {"nadam": ("exp_avg", "exp_avg_sq")}
    SCALAR_STATE = {"mu_product": 1.0}
    CONVENTIONS = {
        "torch": {},
        "keras": {"lr": 1e-3, "eps": 1e-7, "momentum_decay": 1.0, "decoupled_weight_decay": True},
        "optax": {"decoupled_weight_decay": True},
    }
    DECAY = "optional"

    @staticmethod
    def advance(hp: Hyperparameters, t: int, scalar_state: ScalarState) -> ScalarState:
        return {"mu_product": scalar_state["mu_product"] * _momentum(hp, t)}

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        return {"decay_factor": cls.kernel_decay_factor(hp), **beta_scalars(*hp.betas), "eps": hp.eps}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        mu, mu_next = _momentum(hp, t), _momentum(hp, t + 1)
        product = hp.scalar_state["mu_product"] if hp.bias_correction else 0.0
        return {
            "grad_lr": hp.lr * (1.0 - mu) / (1.0 - product),
            "momentum_lr": hp.lr * mu_next / (1.0 - product * mu_next),
            "denom_scale": 1.0 / sqrt(bias_correction(hp.bias_correction, hp.betas[1], t)),
        }


class NAdam(Optimizer):
    r"""NAdam: Adam with Nesterov momentum and momentum warmup.

    .. math::
        \mu_t = \beta_1 (1 - \tfrac12 0.96^{t \psi}), \qquad
        \hat m_t = \frac{(1 - \mu_t) g_t}{1 - \prod_{i \le t} \mu_i}
                  + \frac{\mu_{t+1} m_t}{1 - \prod_{i \le t + 1} \mu_i}, \qquad
        p_t = p_{t-1} - \gamma \frac{\hat m_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    where :math:`m_t, v_t` are Adam's moments.

    Parameters
    ----------
    momentum_decay : float or schedule
        Momentum decay :math:`\psi \ge 0`.
    bias_correction
        The corrections are the denominators :math:`1 - \prod \mu_i` and :math:`1 - \beta_2^t`.
    convention
        "optax" uses :math:`\mu_t = \beta_1` and ignores `momentum_decay`.

    References
    ----------
    Dozat, "Incorporating Nesterov momentum into Adam", ICLR workshop 2016.
    """

    RULE = NAdamRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 2e-3, betas: Pair = (0.9, 0.999),
        eps: FloatOrSchedule = 1e-8, weight_decay: FloatOrSchedule = 0.0,
        momentum_decay: FloatOrSchedule = 4e-3, decoupled_weight_decay: bool = False, *,
        maximize: bool = False, bias_correction: bool = True, convention: Convention = "torch",
        **options: Unpack[Options],
    ) -> None: ...


class RAdamRule(Rule):
    """Update rule of `RAdam`."""

    STATES = {"radam": ("exp_avg", "exp_avg_sq")}
    CONVENTIONS = {"torch": {}, "optax": {}}
    DECAY = "optional"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        return {"decay_factor": cls.kernel_decay_factor(hp), **beta_scalars(*hp.betas)}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        beta1, beta2 = hp.betas
        lr, correction2 = hp.lr / (1.0 - power(beta1, t)), 1.0 - power(beta2, t)
        rho_inf = 2.0 / (1.0 - beta2) - 1.0
        rho = rho_inf - 2.0 * t * power(beta2, t) / correction2
        if rho <= 5.0:  # momentum only: the denominator is 1
            return {"eps": 1.0, "lr": lr, "denom_scale": 0.0}
        rectification = (rho - 4.0) * (rho - 2.0) * rho_inf / ((rho_inf - 4.0) * (rho_inf - 2.0) * rho)
        if hp.convention == "optax":
            return {"eps": hp.eps, "lr": lr * sqrt(rectification), "denom_scale": 1.0 / sqrt(correction2)}
        return {"eps": hp.eps, "lr": lr * sqrt(rectification) * sqrt(correction2), "denom_scale": 1.0}


class RAdam(Optimizer):
    r"""RAdam: rectified Adam, which uses momentum only until the variance of the second moment is tractable.

    .. math::
        \rho_\infty = \frac{2}{1 - \beta_2} - 1, \qquad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \qquad
        r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}

    .. math::
        p_t = p_{t-1} - \gamma \hat m_t \begin{cases}
            r_t \sqrt{1 - \beta_2^t} / (\sqrt{v_t} + \epsilon) & \rho_t > 5 \\
            1 & \text{else}
        \end{cases}

    where :math:`\hat m_t, v_t` are Adam's moments. There is no argument `bias_correction`,
    because the rectification is derived for bias-corrected moments.

    Parameters
    ----------
    convention
        "optax" adds epsilon after bias correction, :math:`r_t / (\sqrt{v_t / (1 - \beta_2^t)} + \epsilon)`.

    References
    ----------
    Liu et al., "On the variance of the adaptive learning rate and beyond", ICLR 2020.
    """

    RULE = RAdamRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, betas: Pair = (0.9, 0.999),
        eps: FloatOrSchedule = 1e-8, weight_decay: FloatOrSchedule = 0.0,
        decoupled_weight_decay: bool = False, *, maximize: bool = False, convention: Convention = "torch",
        **options: Unpack[Options],
    ) -> None: ...


def _momentum(hp: Hyperparameters, t: int) -> float:
    """Momentum of NAdam at step `t`."""
    if hp.convention == "optax":
        return hp.betas[0]
    mu: float = hp.betas[0] * (1.0 - 0.5 * power(0.96, t * hp.momentum_decay))
    return mu
