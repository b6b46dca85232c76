"""Schedule-free optimizers, which average iterates instead of decaying the learning rate."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Unpack

import numpy as np

from fastopt._core.arena import copy_all
from fastopt._core.formats import split
from fastopt._core.scalar_math import power
from fastopt._core.step_table import Exchange
from fastopt.optimizers.base import Optimizer, constructor
from fastopt.optimizers.hyperparameters import RANGES
from fastopt.optimizers.rule import Rule
from fastopt.optimizers.state import LOW_BITS, values_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fastopt._core.typing import Array, FloatOrSchedule, Options, Pair, Params, ScalarState
    from fastopt.optimizers.hyperparameters import Hyperparameters


class _ScheduleFreeRule(Rule):
    """Common part of the schedule-free update rules."""

    # `momentum` is that of the last step, with which the parameters were interpolated; 1 before the first.
    SCALAR_STATE = {"lr_max": 0.0, "weight_sum": 0.0, "momentum": 1.0}
    COPIES = ("z",)
    DECAYS_COPY = True
    REFUSED_OPTIONS = {"lookahead": "the parameters are an interpolation of averaged and fast iterates"}

    @staticmethod
    def check(hp: Hyperparameters) -> None:
        if not _momentum(hp):
            raise ValueError("momentum: expected a number above 0, got 0: the average would be undefined")

    @staticmethod
    def advance(hp: Hyperparameters, t: int, scalar_state: ScalarState) -> ScalarState:
        lr_max = max(scalar_state["lr_max"], _lr(hp, t))
        weight_sum = scalar_state["weight_sum"] + _weight(hp, t, lr_max)
        return {"lr_max": lr_max, "weight_sum": weight_sum, "momentum": _momentum(hp)}


class _ScheduleFree(Optimizer):
    """Base class of the schedule-free optimizers: access to the averaged parameters."""

    RULE = _ScheduleFreeRule

    def averaged(self) -> AbstractContextManager[None]:
        """Context manager in which the parameters hold their averages; no step can be taken in it.

        Evaluate and save the model inside the context; compute gradients outside of it.
        """
        self._refuse_swapped("averaged")
        return Exchange(self._counter, "averaged", self._params.arrays, self._averages())

    def keep_average(self) -> None:
        """Copy the averages to the parameters; further steps continue from them."""
        self._refuse_swapped("keep_average")
        averages = self._averages()
        arrays, values = [*self._params.arrays, *(state["z"] for state in self.state)], averages + averages
        for k, state in enumerate(self.state):
            if LOW_BITS in state:
                values[k], low = split(averages[k])
                arrays.append(state[LOW_BITS])
                values.append(low)
        copy_all(arrays, values)

    def _averages(self) -> list[Array]:
        averages = []
        for param, state in zip(self._params.arrays, self.state, strict=True):
            array = values_of(param, state)
            momentum = state.scalars["momentum"]
            # With a momentum of 1 there has been no step, and so no average.
            factor = array.dtype.type(1.0 - 1.0 / momentum)
            average = array + factor * (state["z"] - array) if momentum < 1.0 else array.copy()
            averages.append(np.asarray(average))    # NumPy computes a number from arrays without axes
        return averages


class SGDScheduleFreeRule(_ScheduleFreeRule):
    """Update rule of `SGDScheduleFree`."""

    STATES = {"schedule_free": ("z",)}
    REFUSED_OPTIONS = {
        **_ScheduleFreeRule.REFUSED_OPTIONS, "state_dtype": "its state is a copy of the parameters",
    }
    RANGES = RANGES | {"momentum": (0.0, 1.0)}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        return _averaging_scalars(hp, t)


class SGDScheduleFree(_ScheduleFree):
    r"""Schedule-free SGD.

    .. math::
        y_t = (1 - \beta) z_t + \beta x_t, \qquad
        z_{t+1} = z_t - \gamma_t g(y_t), \qquad
        x_{t+1} = (1 - c_{t+1}) x_t + c_{t+1} z_{t+1}, \qquad
        c_{t+1} = \frac{w_t}{\sum_{i \le t} w_i}, \quad w_t = t^r \max_{i \le t} \gamma_i^q

    Gradients are computed at the parameters :math:`y`; the state is :math:`z`. Inside
    ``with opt.averaged():`` the parameters are the averages :math:`x`, for evaluation. Use a constant
    learning rate, optionally with warmup.

    Parameters
    ----------
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`, larger than for SGD with a schedule.
    momentum : float or schedule
        Interpolation weight :math:`\beta`, in (0, 1).
    warmup_steps : float or schedule
        Number of steps in which the learning rate increases linearly; 0 for no warmup.
    r, weight_lr_power : float or schedule
        Exponents :math:`r` of the step and :math:`q` of the learning rate in the weight of an iterate.

    References
    ----------
    Defazio et al., "The road less scheduled", NeurIPS 2024.
    """

    RULE = SGDScheduleFreeRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1.0, momentum: FloatOrSchedule = 0.9,
        weight_decay: FloatOrSchedule = 0.0, warmup_steps: FloatOrSchedule = 0.0,
        r: FloatOrSchedule = 0.0, weight_lr_power: FloatOrSchedule = 2.0, *, maximize: bool = False,
        **options: Unpack[Options],
    ) -> None: ...


class AdamWScheduleFreeRule(_ScheduleFreeRule):
    """Update rule of `AdamWScheduleFree`."""

    STATES = {"schedule_free_adam": ("z", "exp_avg_sq")}
    STATE_KINDS = {"exp_avg_sq": "nonnegative"}
    DECAY = "decoupled"

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        beta2 = hp.betas[1]
        scalars = {"beta2": beta2, "one_minus_beta2": 1.0 - beta2}
        return {**scalars, "eps": hp.eps, "weight_decay": hp.weight_decay}

    @staticmethod
    def step_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
        return {"denom_scale": 1.0 / sqrt(1.0 - power(hp.betas[1], t)), **_averaging_scalars(hp, t)}


class AdamWScheduleFree(_ScheduleFree):
    r"""Schedule-free AdamW: `SGDScheduleFree` with Adam's normalization of the gradient.

    .. math::
        d_t = \frac{g(y_t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda y_t, \qquad
        z_{t+1} = z_t - \gamma_t d_t

    where :math:`v_t` is Adam's second moment, and :math:`\beta_1` is :math:`\beta` of `SGDScheduleFree`.

    Parameters
    ----------
    betas : pair of float or schedule
        :math:`\beta_1` in (0, 1), :math:`\beta_2` in [0, 1).
    warmup_steps, r, weight_lr_power : float or schedule
        See `SGDScheduleFree`.

    References
    ----------
    Defazio et al., "The road less scheduled", NeurIPS 2024.
    """

    RULE = AdamWScheduleFreeRule

    @constructor
    def __init__(
        self, params: Params, lr: FloatOrSchedule = 2.5e-3, betas: Pair = (0.9, 0.999),
        eps: FloatOrSchedule = 1e-8, weight_decay: FloatOrSchedule = 0.0,
        warmup_steps: FloatOrSchedule = 0.0, r: FloatOrSchedule = 0.0,
        weight_lr_power: FloatOrSchedule = 2.0, *, maximize: bool = False, **options: Unpack[Options],
    ) -> None: ...


def _momentum(hp: Hyperparameters) -> float:
    return hp.betas[0] if "betas" in vars(hp) else hp.momentum


def _lr(hp: Hyperparameters, t: int) -> float:
    """The learning rate at step `t`."""
    return hp.lr * min(1.0, t / hp.warmup_steps) if hp.warmup_steps else hp.lr


def _weight(hp: Hyperparameters, t: int, lr_max: float) -> float:
    return power(t, hp.r) * power(lr_max, hp.weight_lr_power)


def _averaging_scalars(hp: Hyperparameters, t: int) -> dict[str, float]:
    """Scalars of step `t` for both kernels: weights of y, z and the gradient, and the learning rate."""
    lr, weight_sum = _lr(hp, t), hp.scalar_state["weight_sum"]
    c = _weight(hp, t, hp.scalar_state["lr_max"]) / weight_sum if weight_sum else 0.0
    y_coef, z_coef = 1.0 - c, c
    beta, before = _momentum(hp), hp.scalar_state_before["momentum"]
    if before not in (beta, 1.0):   # y was interpolated with another momentum
        y_coef = beta * (1.0 - c) / before
        z_coef = 1.0 - y_coef
    return {
        "is_first": 1.0 if hp.is_new else 0.0,
        "y_coef": y_coef,
        "z_coef": z_coef,
        "grad_coef": lr * (_momentum(hp) * (1.0 - c) - 1.0),
        "lr": lr,
    }
