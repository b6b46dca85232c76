"""The base class of the optimizers for tensors: what `torch.optim.Optimizer` promises, over a `Binding`."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.optim.optimizer as torch_optimizer

from fastopt._core.step_table import StepCounter
from fastopt._core.validation import check_bool
from fastopt.optimizers.base import check_limits, read_arguments
from fastopt.optimizers.groups import Group
from fastopt.optimizers.hyperparameters import check_number
from fastopt.optimizers.options.storage import check_state_dtype
from fastopt.optimizers.options.training import check_training_options
from fastopt.optimizers.state import LOW_BITS
from fastopt.torch.binding import Binding, to_value
from fastopt.torch.state import decode_items

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from fastopt.optimizers import Optimizer as ArrayOptimizer
    from fastopt.optimizers.rule import Rule

# Options of `fastopt.Optimizer` that tensors do not have, with the reason.
NOT_SUPPORTED = {"accumulate": "tensors accumulate their gradients"}


class Optimizer(torch.optim.Optimizer):
    """Base class of the optimizers for tensors.

    Attributes
    ----------
    grad_norm : float or None
        Norm of the gradients before clipping, from the last step with `max_norm`, taken or skipped.
    skipped_steps : int
        Number of steps that were skipped because a gradient was not finite.
    """

    OPTIMIZER: ClassVar[type[ArrayOptimizer]]
    RULE: ClassVar[type[Rule]]
    NAMES: ClassVar[tuple[str, ...]]                # of the hyperparameters
    FLAGS: ClassVar[Mapping[str, Any]]              # arguments of torch that choose an implementation
    CONSTANTS: ClassVar[Mapping[str, bool]] = {}    # items of the groups that only have this value
    _signature: ClassVar[inspect.Signature]         # of `OPTIMIZER`
    _step_supports_amp_scaling = True               # so GradScaler sets `grad_scale` and `found_inf`

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        flags = {name: kwargs.pop(name, value) for name, value in self.FLAGS.items()}
        constants = {name: kwargs.pop(name, value) for name, value in self.CONSTANTS.items()}
        for name, reason in NOT_SUPPORTED.items():
            if name in kwargs:
                raise TypeError(f"{name}: not supported for tensors, because {reason}")
        bound = self._signature.bind(*args, **kwargs)
        params, hyperparameters, options = read_arguments(self.OPTIMIZER, bound)
        hyperparameters["independent_weight_decay"] = options.pop("independent_weight_decay", 0.0)
        self._training_options = checked = check_training_options(self.RULE, **options)
        if checked.sparse == "exact":
            raise ValueError("sparse: expected 'lazy' or 'dense' for tensors, got 'exact'")
        check_state_dtype(self.RULE, checked.storage, checked.sparse, (), ())
        self._counter = StepCounter()
        self._binding: Binding | None = None
        self._loaded: dict[str, Any] = {}
        super().__init__(params, hyperparameters | flags | constants)

    # --- Groups ---

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in torch; its hyperparameters are checked."""
        if isinstance(param_group, dict):
            self.read_group(self.defaults | param_group)
        super().add_param_group(param_group)

    def read_group(self, group: Mapping[str, Any]) -> Group:
        """Return the hyperparameters of a group, or raise if they are not supported."""
        self.check_flags(group)
        values = {name: to_value(name, group[name]) for name in self.NAMES}
        result = Group([], values, self.RULE, self._counter)
        self.RULE.check_group(result.raw())
        return result

    def check_flags(self, group: Mapping[str, Any]) -> None:
        """Raise if a group asks for an implementation that torch or fastopt does not have."""
        if group.get("differentiable"):
            raise RuntimeError("differentiable: not supported, a step is not recorded by autograd")
        if group.get("capturable"):
            raise RuntimeError("capturable: not supported for tensors on the CPU")
        if group.get("fused") and group.get("foreach"):
            raise RuntimeError("fused, foreach: expected at most one of them to be True")
        for name, value in self.CONSTANTS.items():
            if group.get(name, value) != value:
                raise ValueError(f"{name}: expected {value} for {type(self).__name__}, got {group[name]!r}")
        betas = group.get("betas", ())
        are_tensors = [isinstance(beta, torch.Tensor) for beta in betas]
        if any(are_tensors) and not all(are_tensors):
            raise ValueError("betas: expected floats or tensors, got some of both")
        if group.get("foreach") and betas and (any(are_tensors) or isinstance(group["lr"], torch.Tensor)):
            raise ValueError("foreach: expected False if lr or betas are tensors on the CPU, got True")

    # --- Steps ---

    def step(self, *args: Any, **kwargs: Any) -> Any:
        if (self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or _GLOBAL_PRE_HOOKS
                or _GLOBAL_POST_HOOKS or torch.autograd._profiler_enabled()):
            return _step_with_hooks(self, *args, **kwargs)
        return self._step(*args, **kwargs)

    def _step(
        self, closure: Callable[[], Any] | None = None, *, max_norm: float | None = None,
        clip_value: float | None = None, grad_scale: float | None = None, zero_grad: bool = False,
    ) -> Any:
        """Update every parameter that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and the gradients; called first, with gradients enabled.
        max_norm : float, optional
            Scale the gradients down so that their norm over all parameters is at most this; the norm
            before scaling is stored in `grad_norm`. Formula of ``torch.nn.utils.clip_grad_norm_``. The
            gradients themselves are left unchanged.
        clip_value : float, optional
            Clamp each gradient to ``[-clip_value, clip_value]``, after `max_norm`.
        grad_scale : float, optional
            Multiply the gradients by this value before clipping.
        zero_grad : bool
            Set the gradients to zero after use, even if the step is skipped.

        Returns
        -------
        The result of `closure`, or None.
        """
        if self._counter.exchanged:
            self._refuse_swapped("step")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        check_bool("zero_grad", zero_grad)
        scale = 1.0 if grad_scale is None else check_number("grad_scale", grad_scale)
        limits = _NO_LIMITS if max_norm is clip_value is None else check_limits(max_norm, clip_value)
        if "found_inf" in self.__dict__:
            amp_scale = self.__dict__.get("grad_scale")
            scale /= 1.0 if amp_scale is None else float(amp_scale)
            if self.__dict__["found_inf"]:
                self._counter.skipped_steps += 1
                if zero_grad:
                    self.zero_grad(set_to_none=False)
                return loss
        binding = self._current_binding()
        if binding.watch.n_gradients:
            self._binding = None        # a step that fails leaves no binding with new state
            taken = binding.step(scale, limits, zero_grad, self._training_options.skip_nonfinite)
            if taken or not binding.pending:
                self._binding = binding
        return loss

    def _current_binding(self) -> Binding:
        """Return the binding for the tensors as they are now, which has taken their gradients."""
        binding, counter = self._binding, self._counter
        if binding is None or not binding.watch.is_current(self.param_groups, self.state):
            binding = Binding(self)
        elif binding.watch.changed:
            binding.update_groups(self)
            if counter.stale_hyperparams and not binding.has_kernels():
                binding = Binding(self)
        if counter.stale and binding.params:
            binding.plan.refresh()
        return binding

    def _refuse_swapped(self, name: str) -> None:
        if self._counter.exchanged:
            raise RuntimeError(f"{name}: not allowed inside swapped_ema, where the parameters are averages")

    @property
    def grad_norm(self) -> float | None:
        return self._counter.grad_norm

    @property
    def skipped_steps(self) -> int:
        return self._counter.skipped_steps

    @contextmanager
    def swapped_ema(self) -> Iterator[None]:
        """Context manager in which the parameters hold their averages; no step can be taken in it."""
        if "ema" not in self._training_options.updates:
            raise ValueError("swapped_ema: the optimizer keeps no average; pass ema=0.999 to it")
        self._refuse_swapped("swapped_ema")
        with self._current_binding().swapped("ema"):
            yield

    def sync_params(self) -> None:
        """Use the current values of the parameters after other weights were loaded into them.

        Copies of the parameters in the state, such as averages and the iterates of the schedule-free
        optimizers, are set to the current values, and the low bits of split master weights are set to zero.
        Gradient moments and step counts are left unchanged.
        """
        self._refuse_swapped("sync_params")
        self._binding = None
        Binding(self).reset_copies()

    # --- State ---

    def state_dict(self) -> dict[str, Any]:
        """Return the state in the form of torch."""
        self._refuse_swapped("state_dict")
        result: dict[str, Any] = super().state_dict()
        return result

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the state of an optimizer of this class, or of the class of this name in ``torch.optim``.

        It works as in torch, except that the state keeps its dtype.
        """
        self._refuse_swapped("load_state_dict")
        # After all other hooks, so that it gets what torch loads.
        hook = self.register_load_state_dict_pre_hook(lambda _, given: self._loaded.update(given))
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
            self._loaded = {}

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_swapped("copying")
        state: dict[str, Any] = super().__getstate__()
        return state | {"_training_options": self._training_options, "_counter": self._counter}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._binding = None
        loaded = self.__dict__.setdefault("_loaded", {})
        for group in self.param_groups:
            for name in (*self.NAMES, *self.FLAGS):     # torch adds items to `defaults`
                group.setdefault(name, self.defaults[name])
            group |= self.CONSTANTS
        if loaded:
            self._restore_dtypes(loaded)
            self._convert_storage()

    def _restore_dtypes(self, loaded: Mapping[str, Any]) -> None:
        """Give the state the dtypes that it had before torch cast it to those of the parameters."""
        keys = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, p in zip(keys, params, strict=True):
            own = self.state.get(p, {})
            for name, value in loaded["state"].get(key, {}).items():
                if isinstance(value, torch.Tensor) and own[name].dtype != value.dtype:
                    own[name] = value.to(own[name].device)

    def _convert_storage(self) -> None:
        """Give the state a form that torch has too, as far as this optimizer does not have another one."""
        storage = self._training_options.storage
        for p, own in self.state.items():
            if storage.state_dtype != "int8":
                decode_items(own, p)
            if not storage.is_split:
                own.pop(LOW_BITS, None)


class ScheduleFreeOptimizer(Optimizer):
    """Base class of the schedule-free optimizers, which are trained and evaluated at different points.

    Call `eval` before the model is evaluated or saved, and `train` before the next step.
    """

    def check_flags(self, group: Mapping[str, Any]) -> None:
        super().check_flags(group)
        if not group.get("train_mode", True):
            raise RuntimeError("train_mode: expected True in a step, got False; call train() first")

    def train(self, mode: bool = True) -> None:
        """Set the parameters to the points at which gradients are computed.

        With ``mode=False``, set them to their averages, as `eval` does.
        """
        with torch.no_grad():
            for group in self.param_groups:
                if group["train_mode"] != check_bool("mode", mode):
                    for p in group["params"]:
                        if own := self.state.get(p):
                            momentum = own["momentum"]
                            p.lerp_(own["z"], 1.0 - momentum if mode else 1.0 - 1.0 / momentum)
                    group["train_mode"] = mode

    def eval(self) -> None:
        """Set the parameters to their averages."""
        self.train(False)


_NO_LIMITS = check_limits(None, None)
# The dicts of hooks that torch keeps for all optimizers; its own wrapper calls them.
_GLOBAL_PRE_HOOKS = torch_optimizer._global_optimizer_pre_hooks
_GLOBAL_POST_HOOKS = torch_optimizer._global_optimizer_post_hooks
_step_with_hooks = Optimizer.profile_hook_step(Optimizer._step)
Optimizer.step.__doc__ = Optimizer._step.__doc__
Optimizer.step.__signature__ = inspect.signature(Optimizer._step)   # type: ignore[attr-defined]
Optimizer.step.hooked = True    # type: ignore[attr-defined]  # so torch does not wrap it
