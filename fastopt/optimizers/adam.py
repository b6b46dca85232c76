"""Adam, AMSGrad and AdamW."""

from math import sqrt

from fastopt.optimizers.base import Optimizer


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
    maximize : bool
        Ascend.
    convention : {"torch", "article", "keras", "sklearn"}
        "keras" and "sklearn" add epsilon to the uncorrected root (the paper's epsilon-hat):
        :math:`\gamma \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m_t}{\sqrt{v_t} + \epsilon}`.
    ema, skip_nonfinite
        See `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    Reddi, Kale, Kumar, "On the convergence of Adam and beyond", ICLR 2018 (amsgrad).

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> w = np.array([1.0, -2.0])
    >>> opt = fastopt.Adam(w, lr=0.5)
    >>> opt.step(w.copy())
    >>> w.round(3)
    array([ 0.5, -1.5])
    """

    STATES = {
        "adam": ("exp_avg", "exp_avg_sq"),
        "amsgrad": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    }
    CONVENTIONS = ("torch", "article", "keras", "sklearn")

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False,
        *, maximize=False, convention="torch", ema=None, skip_nonfinite=False,
    ):
        hyperparameters = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "convention": convention,
        }
        super().__init__(params, hyperparameters, ema=ema, skip_nonfinite=skip_nonfinite)

    @staticmethod
    def rule(h):
        return "amsgrad" if h.amsgrad else "adam"

    @staticmethod
    def constants(h, keep=1.0):
        beta1, beta2 = h.betas
        return keep, beta1, 1.0 - beta1, beta2, 1.0 - beta2, h.eps

    @staticmethod
    def variables(h, t):
        beta1, beta2 = h.betas
        root = sqrt(1.0 - beta2**t)
        if h.convention in ("torch", "article"):
            return h.lr / (1.0 - beta1**t), 1.0 / root
        return h.lr / (1.0 - beta1**t) * root, 1.0


class AdamW(Adam):
    r"""Adam with decoupled weight decay.

    Before Adam's step, :math:`p \leftarrow (1 - \gamma \lambda) p`, and nothing is added to the
    gradient.

    Parameters
    ----------
    params, lr, betas, eps, amsgrad, maximize, convention, ema, skip_nonfinite
        As for `Adam`.
    weight_decay : float or schedule
        :math:`\lambda \ge 0`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False,
        *, maximize=False, convention="torch", ema=None, skip_nonfinite=False,
    ):
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, convention=convention,
            ema=ema, skip_nonfinite=skip_nonfinite,
        )

    @staticmethod
    def decay(h):
        return 0.0

    @staticmethod
    def constants(h):
        return Adam.constants(h, 1.0 - h.lr * h.weight_decay)
