"""RMSprop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from fastopt.optimizers.base import Optimizer, constructor
from fastopt.optimizers.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastopt._core.typing import Convention, FloatOrSchedule, Number, Options, Params
    from fastopt.optimizers.hyperparameters import Hyperparameters


class RMSpropRule(Rule):
    """Update rule of `RMSprop`."""

    STATES = {
        "rmsprop": ("square_avg",),
        "rmsprop_momentum": ("square_avg", "momentum_buffer"),
        "rmsprop_centered": ("square_avg", "grad_avg"),
        "rmsprop_centered_momentum": ("square_avg", "grad_avg", "momentum_buffer"),
    }
    STATE_KINDS = {"square_avg": "nonnegative", "momentum_buffer": "signed"}
    CONVENTIONS = {
        "torch": {},
        "article": {"alpha": 0.9, "eps": 1e-4},
        "keras": {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7},
        "optax": {"alpha": 0.9},
    }

    @classmethod
    def state_kinds(cls, kernel: str) -> Mapping[str, str]:
        # The variance is a difference, in which rounding errors may be as large as the result.
        return {"momentum_buffer": "signed"} if "centered" in kernel else cls.STATE_KINDS

    @staticmethod
    def init_value(name: str, hp: Hyperparameters) -> float:
        return hp.initial_accumulator_value if name == "square_avg" else 0.0

    @staticmethod
    def kernel(hp: Hyperparameters) -> str:
        return "rmsprop" + "_centered" * hp.centered + "_momentum" * bool(hp.momentum)

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        inside = hp.convention in ("keras", "optax")  # of the square root, and of the velocity
        scalars = {
            "lr": hp.lr, "alpha": hp.alpha, "one_minus_alpha": 1.0 - hp.alpha,
            "eps": 0.0 if inside else hp.eps, "eps_root": hp.eps if inside else 0.0,
        }
        if not hp.kernel.endswith("momentum"):
            return scalars
        lr, grad_coef = (1.0, hp.lr) if inside else (hp.lr, 1.0)
        return {**scalars, "lr": lr, "momentum": hp.momentum, "grad_coef": grad_coef}


class RMSprop(Optimizer):
    r"""RMSprop: the gradient divided by a running root mean square of past gradients.

    .. math::
        s_t = \alpha s_{t-1} + (1 - \alpha) g_t^2, \qquad
        d_t = \frac{g_t}{\sqrt{s_t} + \epsilon}, \qquad
        b_t = \mu b_{t-1} + d_t, \qquad
        p_t = p_{t-1} - \gamma b_t

    With `centered`, :math:`s_t` under the root is replaced by the variance :math:`s_t - \bar g_t^2`, where
    :math:`\bar g_t` is the running average of the gradient. A variance that is negative due to rounding is
    treated as zero.

    Parameters
    ----------
    alpha : float or schedule
        Decay rate :math:`\alpha` of the averages, in [0, 1).
    centered : bool
        Divide by the standard deviation instead of the root mean square.
    initial_accumulator_value : float
        Initial average :math:`s_0 \ge 0`. With 0, the first step is :math:`1 / \sqrt{1 - \alpha}` times as
        long as later ones; an initial value of the size of the squared gradients avoids this.
    convention
        "keras" and "optax" add epsilon inside the square root, :math:`\sqrt{s_t + \epsilon}`, and apply the
        learning rate inside the velocity, :math:`b_t = \mu b_{t-1} + \gamma d_t`; "keras" uses decoupled
        weight decay.

    References
    ----------
    Tieleman, Hinton, "Lecture 6.5 - rmsprop", Coursera: Neural networks for machine learning, 2012.
    Graves, "Generating sequences with recurrent neural networks", arXiv:1308.0850 (centered).

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.RMSprop(w, lr=0.01)
    >>> opt.step(w.copy())
    True
    >>> w.round(3)
    array([ 0.9, -1.9])
    """

    RULE = RMSpropRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-2, alpha: FloatOrSchedule = 0.99,
        eps: FloatOrSchedule = 1e-8, weight_decay: FloatOrSchedule = 0.0, momentum: FloatOrSchedule = 0.0,
        centered: bool = False, *, initial_accumulator_value: Number = 0.0, maximize: bool = False,
        convention: Convention = "torch", **options: Unpack[Options],
    ) -> None: ...
