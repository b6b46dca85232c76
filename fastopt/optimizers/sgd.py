"""Gradient descent, with momentum."""

from fastopt.optimizers.base import Optimizer


class SGD(Optimizer):
    r"""Stochastic gradient descent, with momentum and Nesterov's momentum.

    .. math::
        b_t = \mu b_{t-1} + (1 - \tau) g_t, \quad b_1 = g_1, \qquad
        p_t = p_{t-1} - \gamma b_t

    and, with `nesterov`, :math:`p_t = p_{t-1} - \gamma (g_t + \mu b_t)`. Without momentum :math:`b_t = g_t`.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`.
    momentum : float or schedule
        :math:`\mu \ge 0`; 0 for none.
    dampening : float or schedule
        :math:`\tau`, not applied in the first step.
    weight_decay : float or schedule
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    nesterov : bool
        Needs a momentum and no dampening.
    maximize : bool
        Ascend.
    convention : {"torch", "article", "keras", "sklearn"}
        All but "torch" keep the learning rate inside the velocity, :math:`b_t = \mu b_{t-1} + \gamma g_t`
        and :math:`p_t = p_{t-1} - b_t`: another path when the learning rate changes.
    ema, skip_nonfinite
        See `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964.
    Nesterov, "A method for solving the convex programming problem with convergence rate O(1/k^2)", 1983.
    Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.SGD(w, lr=0.5)
    >>> opt.step(w.copy())
    >>> w
    array([ 0.5, -1. ])
    """

    STATES = {"sgd": (), "momentum": ("momentum_buffer",), "nesterov": ("momentum_buffer",)}
    CONVENTIONS = ("torch", "article", "keras", "sklearn")

    def __init__(
        self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False,
        *, maximize=False, convention="torch", ema=None, skip_nonfinite=False,
    ):
        hyperparameters = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
            "nesterov": nesterov, "maximize": maximize, "convention": convention,
        }
        super().__init__(params, hyperparameters, ema=ema, skip_nonfinite=skip_nonfinite)

    @staticmethod
    def check(h):
        if h.nesterov and (not h.momentum or h.dampening):
            raise ValueError(
                "nesterov: expected a momentum and no dampening beside it, "
                f"got momentum={h.momentum}, dampening={h.dampening}"
            )

    @staticmethod
    def rule(h):
        if not h.momentum:
            return "sgd"
        return "nesterov" if h.nesterov else "momentum"

    @staticmethod
    def constants(h):
        return 1.0 if _inside(h) else h.lr, h.momentum

    @staticmethod
    def variables(h, t):
        take = 1.0 if t == 1 else 1.0 - h.dampening
        return (h.lr * take if _inside(h) else take,)


def _inside(h):
    """Whether the learning rate stands inside the velocity."""
    return h.convention != "torch" and h.rule != "sgd"
