"""Schedule-free rules: averaging takes the place of a learning rate that falls."""

from __future__ import annotations

import contextlib
from math import sqrt
from typing import TYPE_CHECKING, Unpack

from fastopt._core.scalar_math import power
from fastopt.optimizers.base import Optimizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastopt._core.typing import FloatOrSchedule, Numbers, Options, Pair, Params, Ranges, States
    from fastopt.optimizers.groups import Hyperparameters


class _ScheduleFree(Optimizer):
    """What the schedule-free rules share: the weights of the average, and the way to see it."""

    NUMBERS: Numbers = {"lr_max": 0.0, "weight_sum": 0.0, "momentum": 1.0}

    @staticmethod
    def check(h: Hyperparameters) -> None:
        if not _momentum(h):
            raise ValueError("momentum: expected a number above 0, got 0: the average could not be told")

    @staticmethod
    def carry(h: Hyperparameters, t: int, numbers: dict[str, float]) -> dict[str, float]:
        lr_max = max(numbers["lr_max"], _warmed(h, t))
        weight_sum = numbers["weight_sum"] + _weight(h, t, lr_max)
        return {"lr_max": lr_max, "weight_sum": weight_sum, "momentum": _momentum(h)}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """``with opt.averaged():`` the parameters hold their averages, and no step can be taken.

        They are what to evaluate and what to keep; gradients are to be taken outside.
        """
        self._refuse_swapped("averaged")
        held = [array.copy() for array in self._arrays]
        self._average()
        self._mark_swapped(True)
        try:
            yield
        finally:
            for array, old in zip(self._arrays, held, strict=True):
                array[...] = old
            self._mark_swapped(False)

    def keep_average(self) -> None:
        """Put the averages into the parameters; further steps go on from there."""
        self._refuse_swapped("keep_average")
        self._average()
        for array, state in zip(self._arrays, self.state, strict=True):
            state["z"][...] = array

    def _average(self) -> None:
        for k, (array, state) in enumerate(zip(self._arrays, self.state, strict=True)):
            momentum = self.groups[self._group_of[k]].numbers["momentum"]
            if momentum < 1.0:      # else there has been no step, and so no average
                array += array.dtype.type(1.0 - 1.0 / momentum) * (state["z"] - array)


class SGDScheduleFree(_ScheduleFree):
    r"""Schedule-free SGD: gradients are taken between the steps' own path and its average.

    .. math::
        y_t = (1 - \beta) z_t + \beta x_t, \qquad
        z_{t+1} = z_t - \gamma_t g(y_t), \qquad
        x_{t+1} = (1 - c_{t+1}) x_t + c_{t+1} z_{t+1}, \qquad
        c_{t+1} = \frac{w_t}{\sum_{i \le t} w_i}, \quad w_t = t^r \max_{i \le t} \gamma_i^q

    The parameters are :math:`y`, the state is :math:`z`; inside of ``with opt.averaged():`` the
    parameters are :math:`x`, for evaluation. Keep the learning rate as it is, but for a warmup.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`, larger than of SGD with a schedule.
    momentum : float or schedule
        :math:`\beta`, in (0, 1).
    weight_decay : float or schedule
        L2 penalty: ``weight_decay * p`` is added to the gradient.
    warmup_steps : float or schedule
        Steps in which the learning rate rises linearly; 0 for none.
    r, weight_lr_power : float or schedule
        Powers :math:`r` of the step and :math:`q` of the learning rate in an iterate's weight.
    maximize : bool
        Ascend.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Defazio et al., "The road less scheduled", NeurIPS 2024.
    """

    STATES: States = {"schedule_free": ("z",)}
    RANGES: Ranges = Optimizer.RANGES | {"momentum": (0.0, 1.0)}

    def __init__(
        self, params: Params, lr: FloatOrSchedule = 1.0, momentum: FloatOrSchedule = 0.9, weight_decay: FloatOrSchedule = 0.0,
        warmup_steps: FloatOrSchedule = 0.0, r: FloatOrSchedule = 0.0, weight_lr_power: FloatOrSchedule = 2.0,
        *, maximize: bool = False, **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "warmup_steps": warmup_steps,
            "r": r, "weight_lr_power": weight_lr_power, "maximize": maximize,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "schedule_free"

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        return ()

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        return _path(h, t)


class AdamWScheduleFree(_ScheduleFree):
    r"""Schedule-free AdamW: as `SGDScheduleFree`, with Adam's division in place of the gradient alone.

    .. math::
        d_t = \frac{g(y_t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda y_t, \qquad
        z_{t+1} = z_t - \gamma_t d_t

    where :math:`v_t` is Adam's second moment, and :math:`\beta_1` stands for :math:`\beta`.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place.
    lr : float or schedule
        Learning rate :math:`\gamma \ge 0`.
    betas : pair of float or schedule
        :math:`\beta_1` in (0, 1), :math:`\beta_2` in [0, 1).
    eps : float or schedule
        :math:`\epsilon \ge 0`.
    weight_decay : float or schedule
        Decoupled: :math:`\lambda \ge 0`.
    warmup_steps, r, weight_lr_power : float or schedule
        As for `SGDScheduleFree`.
    maximize : bool
        Ascend.
    **options
        What all optimizers take: see `Optimizer`.

    Raises
    ------
    ValueError, TypeError
        If a hyperparameter is out of its range or a parameter cannot be updated in place.

    References
    ----------
    Defazio et al., "The road less scheduled", NeurIPS 2024.
    """

    STATES: States = {"schedule_free_adam": ("z", "exp_avg_sq")}

    def __init__(
        self, params: Params, lr: FloatOrSchedule = 2.5e-3, betas: Pair = (0.9, 0.999), eps: FloatOrSchedule = 1e-8,
        weight_decay: FloatOrSchedule = 0.0, warmup_steps: FloatOrSchedule = 0.0, r: FloatOrSchedule = 0.0,
        weight_lr_power: FloatOrSchedule = 2.0, *, maximize: bool = False, **options: Unpack[Options],
    ) -> None:
        hyperparameters = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "warmup_steps": warmup_steps, "r": r, "weight_lr_power": weight_lr_power, "maximize": maximize,
        }
        super().__init__(params, hyperparameters, **options)

    @staticmethod
    def rule(h: Hyperparameters) -> str:
        return "schedule_free_adam"

    @staticmethod
    def decay(h: Hyperparameters) -> float:
        return 0.0

    @staticmethod
    def constants(h: Hyperparameters) -> tuple[float, ...]:
        return h.betas[1], 1.0 - h.betas[1], h.eps, h.weight_decay

    @staticmethod
    def variables(h: Hyperparameters, t: int) -> tuple[float, ...]:
        return 1.0 / sqrt(1.0 - power(h.betas[1], t)), *_path(h, t)


def _momentum(h: Hyperparameters) -> float:
    return h.betas[0] if "betas" in vars(h) else h.momentum


def _warmed(h: Hyperparameters, t: int) -> float:
    """The learning rate at step `t`."""
    return h.lr * min(1.0, t / h.warmup_steps) if h.warmup_steps else h.lr


def _weight(h: Hyperparameters, t: int, lr_max: float) -> float:
    return power(t, h.r) * power(lr_max, h.weight_lr_power)


def _path(h: Hyperparameters, t: int) -> tuple[float, ...]:
    """Scalars of the step: whether it is the first, the weights of y, z and the gradient in y, the rate."""
    lr, weight_sum = _warmed(h, t), h.numbers["weight_sum"]
    c = _weight(h, t, h.numbers["lr_max"]) / weight_sum if weight_sum else 0.0
    return 1.0 if t == 1 else 0.0, 1.0 - c, c, lr * (_momentum(h) * (1.0 - c) - 1.0), lr
