"""RMSprop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from fastopt.optimizers.base import Optimizer, constructor
from fastopt.optimizers.rule import Rule

if TYPE_CHECKING:
    from fastopt._core.typing import Convention, FloatOrSchedule, Options, Params
    from fastopt.optimizers.hyperparameters import Hyperparameters


class RMSpropRule(Rule):
    """Update rule of `RMSprop`."""

    STATES = {
        "rmsprop": ("square_avg",),
        "rmsprop_momentum": ("square_avg", "momentum_buffer"),
        "rmsprop_centered": ("square_avg", "grad_avg"),
        "rmsprop_centered_momentum": ("square_avg", "grad_avg", "momentum_buffer"),
    }
    CONVENTIONS = {
        "torch": {},
        "article": {"alpha": 0.9, "eps": 1e-4},
        "keras": {"lr": 1e-3, "alpha": 0.9, "eps": 1e-7},
        "optax": {"alpha": 0.9},
    }

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
    r"""RMSprop: the gradient over a moving root mean square of itself.

    .. math::
        s_t = \alpha s_{t-1} + (1 - \alpha) g_t^2, \qquad
        d_t = \frac{g_t}{\sqrt{s_t} + \epsilon}, \qquad
        b_t = \mu b_{t-1} + d_t, \qquad
        p_t = p_{t-1} - \gamma b_t

    With `centered`, the root is that of the variance :math:`s_t - \bar g_t^2`, where :math:`\bar g_t`
    is the same average of the gradient. Rounding can leave the variance just below zero; it counts
    as zero then.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`.
    alpha : float or schedule
        Weight of the past :math:`\alpha`, in [0, 1).
    eps : float or schedule
        :math:`\epsilon \ge 0`.
    weight_decay : float or schedule
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    momentum : float or schedule
        :math:`\mu \ge 0`; 0 for none.
    centered : bool
        Divide by the standard deviation rather than the root mean square.
    maximize : bool
        Maximize the objective instead of minimizing it.
    convention : {"torch", "article", "keras", "optax"}
        Framework convention: formula, and defaults of arguments that are not given. "keras" and "optax" add
        epsilon inside the square root, :math:`\sqrt{s_t + \epsilon}`, and multiply the learning rate into the
        velocity, :math:`b_t = \mu b_{t-1} + \gamma d_t`; "keras" has decoupled weight decay.
    **options
        Options common to all optimizers, see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

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
    >>> w.round(3)
    array([ 0.9, -1.9])
    """

    RULE = RMSpropRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-2, alpha: FloatOrSchedule = 0.99,
        eps: FloatOrSchedule = 1e-8, weight_decay: FloatOrSchedule = 0.0, momentum: FloatOrSchedule = 0.0,
        centered: bool = False, *, maximize: bool = False, convention: Convention = "torch",
        **options: Unpack[Options],
    ) -> None: ...
