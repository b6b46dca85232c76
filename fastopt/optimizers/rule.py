"""The declaration of an update rule, which each optimizer refers to as its `RULE`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from fastopt.optimizers.hyperparameters import RANGES, check_number_or_schedule, evaluate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastopt._core.typing import Array, Choices, Conventions, Ranges, ScalarState, SparseModes, States
    from fastopt.optimizers.hyperparameters import Hyperparameters


def beta_scalars(beta1: float, beta2: float, beta3: float | None = None) -> dict[str, float]:
    """Scalars ``beta1``, ``one_minus_beta1``, ``beta2``, ... of a kernel."""
    scalars = {"beta1": beta1, "one_minus_beta1": 1.0 - beta1, "beta2": beta2, "one_minus_beta2": 1.0 - beta2}
    if beta3 is not None:
        scalars |= {"beta3": beta3, "one_minus_beta3": 1.0 - beta3}
    return scalars


class Rule:
    """Kernels, state and scalars of an optimizer. A subclass overrides attributes and static methods.

    A rule has no instances and holds no arrays. Scalars are passed to a kernel by name: the keys of
    `constants` and `step_scalars` together are the fields of the kernel's struct in `kernels.pyx`.

    Attributes
    ----------
    STATES : dict of str to tuple of str
        Names of the state arrays, by kernel.
    CONVENTIONS : dict of str to dict
        Supported framework conventions, each with the defaults that differ from those of the signature.
    RANGES, CHOICES : dict
        Valid values of the hyperparameters: half-open intervals, or a tuple of allowed values.
    SCALAR_STATE : dict of str to float
        Initial values of the scalars that are carried from step to step.
    SHARED_SCALARS : bool
        If True, all parameters share these scalars; otherwise each parameter has separate ones.
    COPIES : tuple of str
        State arrays that are copies of the parameter, such as its initial value or an average.
    DECAYS_COPY : bool
        Whether the first state array is a copy that `independent_weight_decay` must also multiply.
    REFUSED_OPTIONS : dict of str to str
        Options that the optimizer does not support, with the reason.
    SPARSE : tuple of str
        Supported modes for sparse rows; the first is the default.
    STATE_KINDS : dict of str to str
        Kind of the state arrays that `state_dtype` may store with fewer bits, by name: "signed", an average
        that forgets old values; "nonnegative", such an average of values that are never negative; "precise",
        an array in which the errors of many steps add up, which is stored as bfloat16 under "int8". Other
        arrays, such as copies of the parameter, are stored as the kernels compute.
    PRECOMPUTED : tuple of str
        Kernels that apply an update computed by `compute_update` in NumPy.
    DECAY : {"l2", "decoupled", "optional"}
        How `weight_decay` is applied. "l2": it is added to the gradient (under the convention "keras" the
        parameters are scaled before the update); "decoupled": the scalars of the kernel contain it;
        "optional": `decoupled_weight_decay` selects one of the two.
    """

    STATES: ClassVar[States] = {}
    CONVENTIONS: ClassVar[Conventions] = {"torch": {}}
    RANGES: ClassVar[Ranges] = RANGES
    CHOICES: ClassVar[Choices] = {}
    SCALAR_STATE: ClassVar[ScalarState] = {}
    SHARED_SCALARS: ClassVar[bool] = False
    COPIES: ClassVar[tuple[str, ...]] = ()
    DECAYS_COPY: ClassVar[bool] = False
    REFUSED_OPTIONS: ClassVar[Mapping[str, str]] = {}
    SPARSE: ClassVar[SparseModes] = ("dense",)
    STATE_KINDS: ClassVar[dict[str, str]] = {"exp_avg": "signed", "exp_avg_sq": "nonnegative"}
    PRECOMPUTED: ClassVar[tuple[str, ...]] = ()
    DECAY: ClassVar[Literal["l2", "decoupled", "optional"]] = "l2"

    @classmethod
    def check_hyperparameter(cls, name: str, value: Any) -> Any:
        """Return a hyperparameter as a group stores it: number, schedule, tuple of these, choice or bool."""
        choices = cls.CONVENTIONS if name == "convention" else cls.CHOICES.get(name)
        if choices:
            if value not in tuple(choices):
                raise ValueError(f"{name}: expected one of {', '.join(map(str, choices))}, got {value!r}")
            return value
        if name not in cls.RANGES:
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")
            return bool(value)
        bounds = cls.RANGES[name]
        if not isinstance(bounds[0], tuple):
            return check_number_or_schedule(name, value, bounds)
        if not isinstance(value, (tuple, list, np.ndarray)) or len(value) != len(bounds):
            count = "a pair of" if len(bounds) == 2 else len(bounds)
            raise ValueError(f"{name}: expected {count} numbers, got {value!r}")
        return tuple(check_number_or_schedule(name, v, b) for v, b in zip(value, bounds, strict=True))

    @classmethod
    def evaluate(cls, name: str, value: Any, step: int) -> Any:
        """Value of a hyperparameter after `step` finished steps."""
        return evaluate(name, value, step, cls.RANGES.get(name))

    @staticmethod
    def check(hp: Hyperparameters) -> None:
        """Raise ValueError for hyperparameters that cannot be combined."""

    @classmethod
    def check_group(cls, hp: Hyperparameters) -> None:
        """Raise ValueError for hyperparameters of a group that cannot be combined or are not supported."""
        reason = cls.REFUSED_OPTIONS.get("independent_weight_decay")
        if reason and hp.independent_weight_decay:
            raise ValueError(f"independent_weight_decay: not supported by this optimizer: {reason}")
        cls.check(hp)

    @staticmethod
    def check_groups(hps: Sequence[Hyperparameters]) -> None:
        """Raise ValueError for hyperparameters of different groups that cannot be combined."""

    @classmethod
    def kernel(cls, hp: Hyperparameters) -> str:
        """Name of the kernel for these hyperparameters, where a schedule counts as true."""
        (name,) = cls.STATES
        return name

    @classmethod
    def kernel_for(cls, hp: Hyperparameters, array: Array) -> str:
        """Name of the kernel for one array, if it depends on the array."""
        return cls.kernel(hp)

    @classmethod
    def state_shapes(cls, kernel: str, array: Array) -> dict[str, tuple[int, ...]]:
        """Shapes of the state arrays of one parameter array, by name."""
        return dict.fromkeys(cls.STATES[kernel], array.shape)

    @classmethod
    def state_kinds(cls, kernel: str) -> Mapping[str, str]:
        """`STATE_KINDS` of a kernel."""
        return cls.STATE_KINDS

    @staticmethod
    def init_value(name: str, hp: Hyperparameters) -> float:
        """Value with which a state array is filled before the first step."""
        return 0.0

    @classmethod
    def constants(cls, hp: Hyperparameters) -> dict[str, float]:
        """Scalars of the kernel `hp.kernel` that depend on the hyperparameters only."""
        return {}

    @classmethod
    def step_scalars(cls, hp: Hyperparameters, t: int) -> dict[str, float]:
        """Scalars of the kernel that also depend on the step `t` of the parameter; the first step is 1.

        ``hp.is_new`` tells whether the state arrays have their initial values.
        """
        return {}

    @staticmethod
    def advance(hp: Hyperparameters, t: int, scalar_state: ScalarState) -> ScalarState:
        """Scalar state after step `t`, as a new dict."""
        return scalar_state

    @staticmethod
    def compute_update(
        hp: Hyperparameters, t: int, p: Array, g: Array, state: Mapping[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """Compute the update of a `PRECOMPUTED` rule, without changing an array.

        Returns
        -------
        update : ndarray
            Array that the kernel takes in place of the gradient `g`.
        state : dict of str to ndarray
            Next values of state arrays.
        """
        raise NotImplementedError

    @classmethod
    def reset_copies(cls, hp: Hyperparameters, p: Array, state: Mapping[str, Array]) -> None:
        """Set the state arrays that are copies of the parameter to its current value."""
        for name in cls.COPIES:
            state[name][...] = p

    @classmethod
    def l2_decay(cls, hp: Hyperparameters) -> float:
        """Weight decay that is added to the gradient."""
        if cls.DECAY == "optional":
            return 0.0 if hp.decoupled_weight_decay else hp.weight_decay
        return hp.weight_decay if cls.DECAY == "l2" and hp.convention != "keras" else 0.0

    @classmethod
    def decay_factor(cls, hp: Hyperparameters) -> float:
        """Factor by which the parameters are multiplied before the update."""
        return 1.0 - hp.lr * hp.weight_decay if cls.DECAY == "l2" and hp.convention == "keras" else 1.0

    @classmethod
    def weight_decay(cls, hp: Hyperparameters) -> tuple[float, float, bool]:
        """Weight decay outside the kernel.

        Returns
        -------
        l2_decay, decay_factor : float
        decays_copy : bool
            Whether the factor multiplies the first state array, too.
        """
        factor = cls.decay_factor(hp) * (1.0 - hp.independent_weight_decay)
        return cls.l2_decay(hp), factor, cls.DECAYS_COPY

    @classmethod
    def kernel_decay_factor(cls, hp: Hyperparameters) -> float:
        """Scalar ``decay_factor`` of a kernel: decoupled weight decay."""
        is_decoupled = cls.DECAY == "decoupled" or (cls.DECAY == "optional" and hp.decoupled_weight_decay)
        return 1.0 - hp.lr * hp.weight_decay if is_decoupled else 1.0

    @classmethod
    def idle_decay(cls, hp: Hyperparameters) -> tuple[float, tuple[float, ...]] | None:
        """Effect of steps without a gradient, apart from L2 weight decay.

        Returns
        -------
        (ratio, factors) or None
            Each such step is at most ``ratio`` times the previous one, apart from bias corrections, and the
            parameter does not move once the first state array is zero. ``factors`` are the factors by which
            one such step multiplies the parameter (when it no longer moves) and each state array. None if
            there is no such ratio.
        """
        return None
