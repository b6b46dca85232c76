"""Optimizers that use whole matrices rather than single elements: Adafactor and Muon.

NumPy computes their updates, in the order of its own sums and of its BLAS: results agree with the reference
and between machines up to rounding, not to the last bit.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import TYPE_CHECKING, Unpack

import numpy as np

from fastopt._core.scalar_math import power
from fastopt.optimizers.base import Optimizer, constructor
from fastopt.optimizers.hyperparameters import RANGES
from fastopt.optimizers.rule import Rule, beta_scalars

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastopt._core.typing import Adjustment, Array, FloatOrSchedule, Options, Pair, Params, Triple
    from fastopt.optimizers.hyperparameters import Hyperparameters


class AdafactorRule(Rule):
    """Update rule of `Adafactor`."""

    STATES = {"adafactor": ("row_var", "col_var", "variance")}
    RANGES = RANGES | {
        "eps": ((0.0, inf, None), (0.0, inf)), "beta2_decay": (-inf, 5e-324), "d": (1.0, inf),
    }
    REFUSED_OPTIONS = {"state_dtype": "the update is computed from whole arrays in NumPy"}
    PRECOMPUTED = ("adafactor",)
    DECAY = "decoupled"

    @classmethod
    def state_shapes(cls, kernel: str, array: Array) -> dict[str, tuple[int, ...]]:
        shape = array.shape
        if array.ndim < 2:
            return {"variance": shape}
        return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}

    @staticmethod
    def compute_update(
        hp: Hyperparameters, t: int, p: Array, g: Array, state: Mapping[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        return factored_update(p, g, state, hp.lr, hp.beta2_decay, hp.eps, hp.d, t)

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        return {"decay_factor": cls.kernel_decay_factor(hp), "lr": 1.0}


class Adafactor(Optimizer):
    r"""Adafactor: a factored second moment, stored as row and column averages.

    .. math::
        R_t = (1 - w_t) R_{t-1} + w_t \operatorname{rowmean} G_t^2, \quad
        C_t = (1 - w_t) C_{t-1} + w_t \operatorname{colmean} G_t^2, \quad
        U_t = G_t \Big/ \sqrt{\frac{R_t C_t}{\operatorname{mean} R_t}}, \quad w_t = t^c

    .. math::
        P_t = (1 - \gamma \lambda) P_{t-1}
            - \frac{\max(\epsilon_2, \operatorname{RMS} P_{t-1}) \min(\gamma, 1 / \sqrt t)}
                   {\max(1, \operatorname{RMS} U_t / d)} U_t

    Rows and columns are those of the last two axes. Vectors have a full second moment.

    Parameters
    ----------
    lr : float or schedule
        Upper bound :math:`\gamma \ge 0` of the relative step size.
    beta2_decay : float or schedule
        Exponent :math:`c \le 0`.
    eps : pair of float or schedule or None
        :math:`\epsilon_1 \ge 0`, whose square is the lower bound of the second moment (None: the machine
        epsilon of the dtype), and :math:`\epsilon_2 \ge 0`.
    d : float or schedule
        Clipping threshold :math:`d \ge 1` of the root mean square of the update.

    References
    ----------
    Shazeer, Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML 2018.
    """

    RULE = AdafactorRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-2, beta2_decay: FloatOrSchedule = -0.8,
        eps: tuple[FloatOrSchedule | None, FloatOrSchedule] = (None, 1e-3), d: FloatOrSchedule = 1.0,
        weight_decay: FloatOrSchedule = 0.0, *, maximize: bool = False, **options: Unpack[Options],
    ) -> None: ...


class MuonRule(Rule):
    """Update rule of `Muon`."""

    STATES = {"muon": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq")}
    RANGES = RANGES | {
        "momentum": (0.0, 1.0), "ns_coefficients": ((-inf, inf),) * 3, "ns_steps": (1.0, 100.0),
        "adamw_lr": (0.0, inf), "adamw_betas": ((0.0, 1.0),) * 2, "adamw_eps": (0.0, inf),
    }
    CHOICES = {"adjust_lr_fn": (None, "original", "match_rms_adamw")}
    REFUSED_OPTIONS = {"state_dtype": "the update is computed from whole arrays in NumPy"}
    PRECOMPUTED = ("muon",)
    DECAY = "decoupled"

    @staticmethod
    def check(hp: Hyperparameters) -> None:
        if not callable(hp.ns_steps) and hp.ns_steps % 1:
            raise ValueError(f"ns_steps: expected an integer, got {hp.ns_steps}")

    @staticmethod
    def kernel(hp: Hyperparameters) -> str:
        return "muon" if hp.muon else "adam"

    @classmethod
    def kernel_for(cls, hp: Hyperparameters, array: Array) -> str:
        return cls.kernel(hp) if array.ndim == 2 else "adam"

    @staticmethod
    def compute_update(
        hp: Hyperparameters, t: int, p: Array, g: Array, state: Mapping[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        mu = hp.momentum
        buf = mu * state["momentum_buffer"] + (1.0 - mu) * g
        ahead = mu * buf + (1.0 - mu) * g if hp.nesterov else buf
        rows, columns = p.shape
        if hp.adjust_lr_fn == "match_rms_adamw":
            ratio = 0.2 * sqrt(max(rows, columns))
        else:
            ratio = sqrt(max(1.0, rows / columns))
        update = ratio * orthogonalize(ahead, hp.ns_coefficients, int(hp.ns_steps), hp.eps)
        return update, {"momentum_buffer": buf}

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        if hp.kernel == "muon":
            return {"decay_factor": cls.kernel_decay_factor(hp), "lr": hp.lr}
        factor = 1.0 - hp.adamw_lr * hp.weight_decay
        return {"decay_factor": factor, **beta_scalars(*hp.adamw_betas), "eps": hp.adamw_eps}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        if hp.kernel == "muon":
            return {}
        beta1, beta2 = hp.adamw_betas
        return {"lr": hp.adamw_lr / (1.0 - power(beta1, t)), "denom_scale": 1.0 / sqrt(1.0 - power(beta2, t))}


class Muon(Optimizer):
    r"""Muon: momentum orthogonalized by Newton-Schulz iterations.

    .. math::
        B_t = \mu B_{t-1} + (1 - \mu) G_t, \qquad
        O_t = \operatorname{NS}(\mu B_t + (1 - \mu) G_t), \qquad
        P_t = (1 - \gamma \lambda) P_{t-1} - \gamma' O_t

    Without `nesterov` :math:`O_t = \operatorname{NS}(B_t)`. Non-matrix parameters and groups with
    ``muon=False``, which is recommended for embeddings and output layers, use `AdamW`.

    Parameters
    ----------
    momentum : float or schedule
        Momentum :math:`\mu`, in [0, 1).
    nesterov : bool
        Use Nesterov momentum.
    ns_coefficients : triple of float or schedule
        Coefficients :math:`a, b, c` of an iteration :math:`X \leftarrow a X + (b A + c A^2) X, A = X X^\top`.
    eps : float or schedule
        Lower bound of the norm by which the matrix is divided before the iterations.
    ns_steps : int
        Number of iterations.
    adjust_lr_fn : {None, "original", "match_rms_adamw"}
        :math:`\gamma' = \gamma \sqrt{\max(1, m / n)}` for an m by n matrix of outputs by inputs (None and
        "original"), or :math:`0.2 \gamma \sqrt{\max(m, n)}`.
    muon : bool
        If False, the group uses AdamW for matrices, too.
    adamw_lr, adamw_betas, adamw_eps
        `lr`, `betas` and `eps` of AdamW; `weight_decay` is shared.

    References
    ----------
    Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    Liu et al., "Muon is scalable for LLM training", arXiv:2502.16982, 2025 (match_rms_adamw).
    """

    RULE = MuonRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1e-3, weight_decay: FloatOrSchedule = 0.1,
        momentum: FloatOrSchedule = 0.95, nesterov: bool = True,
        ns_coefficients: Triple = (3.4445, -4.775, 2.0315), eps: FloatOrSchedule = 1e-7,
        ns_steps: FloatOrSchedule = 5, adjust_lr_fn: Adjustment | None = None, *, muon: bool = True,
        adamw_lr: FloatOrSchedule = 3e-4, adamw_betas: Pair = (0.9, 0.95),
        adamw_eps: FloatOrSchedule = 1e-8, maximize: bool = False, **options: Unpack[Options],
    ) -> None: ...


def factored_update(
    p: Array, g: Array, state: Mapping[str, Array], lr: float, beta2_decay: float,
    eps: tuple[float | None, float], d: float, step: int,
) -> tuple[Array, dict[str, Array]]:
    """Return the update of Adafactor, which is subtracted from `p`, and its next second moment."""
    eps1 = float(np.finfo(p.dtype).eps) if eps[0] is None else eps[0]
    weight, size = power(step, beta2_decay), max(p.size, 1)
    u = np.multiply(g, g, out=np.empty_like(g))  # an array also if `g` has no axes
    np.minimum(u, np.finfo(p.dtype).max / size, out=u)  # so that sums are finite
    if "variance" in state:
        variance = np.asarray(state["variance"] + weight * (u - state["variance"]))
        u[...] = variance
        after = {"variance": variance}
    else:
        row_var, col_var = state["row_var"], state["col_var"]
        row_var = row_var + weight * (u.mean(axis=-1, keepdims=True) - row_var)
        col_var = col_var + weight * (u.mean(axis=-2, keepdims=True) - col_var)
        after = {"row_var": row_var, "col_var": col_var}
        np.multiply(row_var, col_var / np.maximum(row_var.mean(axis=-2, keepdims=True), eps1), out=u)
    np.maximum(u, eps1 * eps1, out=u)
    np.divide(g, np.sqrt(u, out=u), out=u)
    rms_p, rms_u = (float(np.linalg.norm(x.ravel())) / size**0.5 for x in (p, u))
    u *= max(eps[1], rms_p) * min(lr, 1.0 / step**0.5) / max(1.0, rms_u / d)
    return u, after


def orthogonalize(x: Array, coefficients: tuple[float, float, float], steps: int, eps: float) -> Array:
    """Approximate the nearest matrix with orthonormal rows or columns by Newton-Schulz iterations."""
    if x.shape[0] > x.shape[1]:
        return orthogonalize(x.T, coefficients, steps, eps).T
    a, b, c = coefficients
    norm = float(np.linalg.norm(x))
    if norm == inf:  # squares of float32 overflow
        norm = float(np.linalg.norm(x.astype(np.float64)))
    x = x / max(norm, eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
