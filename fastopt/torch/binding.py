"""The step plan of an optimizer over tensors, made again whenever one of its tensors was replaced."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastopt._core import dispatch
from fastopt._core.arena import alloc_views
from fastopt._core.formats import computing_dtype, decode
from fastopt._core.layout import copy_with_layout, is_dense, same_layout
from fastopt._core.step_table import NEW_COPIES, NEW_STATE
from fastopt._core.tensors import TensorWatch
from fastopt._core.validation import check_disjoint
from fastopt.interop.torch_names import WITHOUT_STEP_COUNT, asgd_scalars
from fastopt.optimizers.options.gradients import unit_transform
from fastopt.optimizers.plan import StepPlan
from fastopt.optimizers.sgd import ASGDRule
from fastopt.optimizers.state import Scalars, State, StateArrays
from fastopt.optimizers.state_dict import check_steps
from fastopt.torch import tensors

if TYPE_CHECKING:
    from fastopt._core.rows import Rows
    from fastopt._core.typing import AnyArray, Array

_COUNT_DTYPES = (torch.float32, torch.float64, torch.int64)


def to_value(name: str, value: Any) -> Any:
    """Return a hyperparameter of a group with Python numbers in place of tensors."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name}: expected a tensor with one element, got shape {tuple(value.shape)}")
        return value.item()
    if isinstance(value, (tuple, list)):
        return tuple(to_value(name, v) for v in value)
    if callable(value):
        remedy = "use a scheduler of torch.optim.lr_scheduler"
        raise TypeError(f"{name}: expected a number, got {value!r}; {remedy}")
    return value


def is_mutable(value: Any) -> bool:
    """Whether the value of a hyperparameter can change although its object is the same."""
    if isinstance(value, tuple):
        return any(map(is_mutable, value))
    return not isinstance(value, (float, int, str, type(None)))


class Binding:
    """The parameters that take part in steps, with their groups and state, as they are now.

    A parameter takes part from its first gradient on. The optimizer gets new state after the first step, so a
    step that fails or is skipped leaves no trace.

    Attributes
    ----------
    plan : StepPlan
    watch : TensorWatch
        Tells whether the optimizer still has the tensors that the plan was made of.
    state : StateArrays
    """

    def __init__(self, optimizer: Any) -> None:
        self.rule, self.counter = optimizer.RULE, optimizer._counter
        self.torch_groups, self.torch_state = optimizer.param_groups, optimizer.state
        self.groups = [optimizer.read_group(group) for group in self.torch_groups]
        self.rule.check_groups([group.raw() for group in self.groups])
        self.params: list[Any] = []
        self.paths: list[str] = []
        self.group_of: list[int] = []
        places = self._select()
        self.locals = [tensors.unwrap(p) for p in self.params]
        self.copied: list[tuple[Any, Any]] = []     # parameters with gaps in memory, and their dense copies
        self.converted: list[Any] = []              # gradients of this step that were copied
        options = optimizer._training_options
        self._moves_units = options.units != (False, None)
        arrays = [self._bind_param(k) for k in range(len(self.params))]
        check_disjoint(arrays, self.paths, "")
        self.kernels = self._select_kernels(arrays)
        self._check_kernels()
        uncounted = () if options.updates else WITHOUT_STEP_COUNT.get(type(optimizer).OPTIMIZER.__name__, ())
        self._counts_steps = [kernel not in uncounted for kernel in self.kernels]
        self._bind_state(arrays, list(options.updates))
        self.plan = StepPlan(
            self.rule, self.groups, self.group_of, [self._units(a) for a in arrays], self.kernels, self.state,
            self.counter, tuple(range(len(arrays))), [f"{path}.grad" for path in self.paths],
            sparse=options.sparse, options=options.updates, storage=options.storage,
            unit_transform=unit_transform(*options.units),
        )
        names = (*optimizer.NAMES, *optimizer.FLAGS, *optimizer.CONSTANTS)
        self.watch = self._make_watch(names, places)
        self.watch.take_gradients()

    # --- Groups ---

    def update_groups(self, optimizer: Any) -> None:
        """Take over the hyperparameters that were set since the last step."""
        for i, name in self.watch.changed:
            value = self.torch_groups[i][name]
            if name in optimizer.NAMES:
                number = to_value(name, value)
                if number != self.groups[i][name]:
                    self.groups[i][name] = number
            else:
                optimizer.check_flags(self.torch_groups[i])
            self.watch.save_value(i, name, value, is_mutable(value))

    def _select_kernels(self, arrays: list[Array]) -> list[str]:
        raws = [group.raw() for group in self.groups]
        return [self.rule.kernel_for(raws[i], a) for i, a in zip(self.group_of, arrays, strict=True)]

    def has_kernels(self) -> bool:
        """Whether the hyperparameters still select the kernels of the plan."""
        return self._select_kernels([tensors.to_array(t) for t in self.locals]) == self.kernels

    # --- Parameters ---

    def _select(self) -> list[int]:
        """Select the parameters that take part. Return the index of every parameter, or -1."""
        places = []
        for i, group in enumerate(self.torch_groups):
            given = group.get("param_names")
            for j, p in enumerate(group["params"]):
                takes_part = p.grad is not None or bool(self.torch_state.get(p))
                places.append(len(self.params) if takes_part else -1)
                if takes_part:
                    self.params.append(p)
                    self.group_of.append(i)
                    self.paths.append(
                        f"param_groups[{i}]['params'][{j}]" if given is None else f"params[{given[j]!r}]"
                    )
        return places

    def _bind_param(self, k: int) -> Array:
        """Return the array of a parameter that the kernels update."""
        tensor, path = self.locals[k], self.paths[k]
        tensors.check_parameter(tensor, path)
        array: Array = tensors.to_array(tensor)
        if is_dense(array):
            return array
        if any(s == 0 and n > 1 for s, n in zip(array.strides, array.shape, strict=True)):
            raise ValueError(f"{path}: expected memory for each element, got an expanded tensor")
        copied = torch.empty_like(tensor.detach())
        self.copied.append((tensor.detach(), copied))
        array = tensors.to_array(copied)
        return array

    def _check_kernels(self) -> None:
        """Raise if a kernel needs whole arrays in an order that a parameter does not have."""
        compiled = dispatch.kernels
        for p, path, kernel in zip(self.params, self.paths, self.kernels, strict=True):
            by_axis = kernel in self.rule.PRECOMPUTED or kernel in compiled.ROWWISE
            if self._moves_units and (by_axis or p.is_complex()):
                reason = "its state is per row or column" if by_axis else "it is complex"
                raise ValueError(f"centralize, unit_clip: not supported for {path}, because {reason}")
            if tensors.is_wrapper(p) and (by_axis or self._moves_units or kernel in compiled.TWO_PASS):
                raise ValueError(
                    f"{path}: expected a whole tensor, because the update of an element depends on others, "
                    f"got a part of a {type(p).__name__}"
                )
            if p.is_complex() and (by_axis or self.rule.PRECOMPUTED):
                raise RuntimeError(f"{path}: expected a real parameter, got {p.dtype}")

    def _units(self, array: Array) -> Array:
        return tensors.with_units_last(array) if self._moves_units else array

    # --- State ---

    def _bind_state(self, arrays: list[Array], buffers: list[str]) -> None:
        """Bind the state that the parameters have, and allocate what they do not have."""
        n = len(arrays)
        counts, flags = np.zeros(n, np.int64), np.zeros(n, np.uint8)
        self.own: list[dict[str, Any]] = [self.torch_state.get(p, {}) for p in self.params]
        self.pending: list[dict[str, Any]] = [{} for _ in range(n)]     # new items of `own`
        shapes = [self._state_shapes(k, array) for k, array in enumerate(arrays)]
        missing = [
            [name for name in (*names, *buffers) if own.get(name) is None]
            for own, names in zip(self.own, shapes, strict=True)
        ]
        fresh = alloc_views(arrays, [
            [(names.get(name), computing_dtype(array.dtype)) for name in absent]
            for array, names, absent in zip(arrays, shapes, missing, strict=True)
        ])
        states: list[State] = []
        copies: dict[str, list[Array]] = {name: [] for name in buffers}
        for k, array in enumerate(arrays):
            own, absent = self.own[k], missing[k]
            is_new = all(name in absent for name in shapes[k])
            if not is_new and (unknown := [name for name in shapes[k] if name in absent]):
                found = ", ".join(own)
                raise KeyError(f"{unknown[0]}: expected in the state of {self.paths[k]}, got {found}")
            if self._counts_steps[k]:
                counts[k] = self._bind_count(k)
                is_new = is_new or not counts[k]
            bound = {
                name: self._bind_array(k, name, array, shapes[k].get(name))
                for name in (*shapes[k], *buffers) if name not in absent
            }
            for name, view in zip(absent, fresh[k], strict=True):
                hp = self.groups[self.group_of[k]].raw()
                view[...] = decode(array) if name in buffers else self.rule.init_value(name, hp)
                bound[name] = view
                self.pending[k][name] = self._wrap(k, view)
            flags[k] = NEW_STATE * is_new + NEW_COPIES * all(name in absent for name in buffers)
            states.append(State({n: self._units(bound[n]) for n in shapes[k]}, counts, flags, k))
            for name in buffers:
                copies[name].append(self._units(bound[name]))
        self.state = StateArrays(tuple(states), copies, counts, flags)
        self.counter.steps = int(counts.max(initial=0))
        self.counter.mark()
        self._bind_scalars()

    def _state_shapes(self, k: int, array: Array) -> dict[str, tuple[int, ...] | None]:
        """Shapes of the state arrays by name; None for those with the shape and layout of the parameter."""
        kernel = self.kernels[k]
        return {
            name: None if shape == array.shape and kernel not in self.rule.PRECOMPUTED else shape
            for name, shape in self.rule.state_shapes(kernel, array).items()
        }

    def _bind_array(self, k: int, name: str, array: Array, shape: tuple[int, ...] | None) -> Array:
        """Return the array of a state tensor, which is replaced if the kernels cannot update it."""
        tensor = tensors.unwrap(self.own[k][name])
        path = f"state[{self.paths[k]}][{name!r}]"
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{path}: expected a tensor, got {tensor!r}")
        tensors.check_parameter(tensor, path)
        found: Array = tensors.to_array(tensor)
        wanted = array.shape if shape is None else shape
        if found.shape != wanted:
            raise ValueError(f"{path}: expected shape {wanted}, got {found.shape}")
        is_usable = same_layout(found, array) if shape is None else found.flags.c_contiguous
        dtype = computing_dtype(array.dtype)
        if found.dtype == dtype and is_usable:
            return found
        found = decode(found, dtype)
        made = copy_with_layout(found, array, dtype) if shape is None else np.array(found, order="C")
        self.pending[k][name] = self._wrap(k, made)
        return made

    def _wrap(self, k: int, array: Array) -> Any:
        """Return state of a parameter as a tensor of its kind."""
        param, made = self.params[k], tensors.like(self.locals[k], array)
        if not tensors.is_wrapper(param):
            return made
        return type(param).from_local(
            made, param.device_mesh, param.placements, run_check=False, shape=param.shape,
            stride=param.stride(),
        )

    def _bind_count(self, k: int) -> int:
        """Return the number of steps that a parameter has taken; its tensor is made if it is missing."""
        count = self.own[k].get("step", 0.0)
        is_usable = isinstance(count, torch.Tensor) and count.dtype in _COUNT_DTYPES
        if not is_usable or count.device.type != "cpu":
            # As in torch, a float64 if that is the default dtype.
            dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
            self.pending[k]["step"] = torch.tensor(float(count), dtype=dtype)
        return check_steps(f"state[{self.paths[k]}]['step']", int(count))

    def _bind_scalars(self) -> None:
        """Read the scalars that the rule carries from step to step."""
        rule, states = self.rule, self.state.states
        found = [
            {n: float(to_value(n, own.get(n, initial))) for n, initial in rule.SCALAR_STATE.items()}
            for own in self.own
        ]
        if rule.SHARED_SCALARS:
            used = [values for values, state in zip(found, states, strict=True) if not state.is_new] or found
            if any(repr(values) != repr(used[0]) for values in used):
                names = ", ".join(rule.SCALAR_STATE)
                raise ValueError(f"state: expected the same {names} for all parameters")
            found = used[:1] * len(states)
        shared = Scalars(found[0], self.counter) if rule.SHARED_SCALARS and found else None
        for k, (state, values) in enumerate(zip(states, found, strict=True)):
            state.scalars_cell = Scalars(values) if shared is None else shared
            self.pending[k] |= self._scalars(k)     # in place of tensors, or for parameters without state

    def _scalars(self, k: int) -> dict[str, float]:
        """Return the scalars in the state of a parameter, as they are after its last step."""
        state = self.state.states[k]
        if self.rule is ASGDRule:   # computes them from the step count
            return asgd_scalars(self.groups[self.group_of[k]], state.steps)
        return dict(state.scalars)

    # --- Steps ---

    def _make_watch(self, names: tuple[str, ...], places: list[int]) -> TensorWatch:
        states = [self._tensors(k) for k in range(len(self.params))]
        n_tensors, as_arrays = len(states) + sum(map(len, states)), self.plan.prepass is not None
        watch = TensorWatch(
            torch.Tensor.__dlpack_c_exchange_api__, tensors.unwrap, self._to_gradient, self.torch_groups,
            names, places, n_tensors, self.state.counts, as_arrays,
        )
        for i, group in enumerate(self.torch_groups):
            for name in names:
                watch.save_value(i, name, group[name], is_mutable(group[name]))
        copied = [tensor.data_ptr() for tensor, _ in self.copied]
        for p, local in zip(self.params, self.locals, strict=True):
            watch.save(p, tensors.is_wrapper(p), local.data_ptr() in copied)
        for k, own in enumerate(states):
            for name, tensor in own.items():
                if name == "step":
                    watch.save_count(k, tensor)
                else:
                    watch.save(tensor, tensors.is_wrapper(tensor))
        return watch

    def _tensors(self, k: int) -> dict[str, Any]:
        """Return the state tensors of a parameter by name."""
        names = [*self.state.states[k], *self.state.buffers, *(["step"] if self._counts_steps[k] else [])]
        state = self.own[k] | self.pending[k]
        return {name: state[name] for name in names}

    def _to_gradient(self, grad: Any, k: int) -> AnyArray | Rows:
        """Return a gradient that the kernels cannot read where it is as an array or as `Rows`."""
        array, is_copied = tensors.to_gradient(tensors.unwrap(grad), f"{self.paths[k]}.grad")
        if is_copied:
            self.converted.append(grad)
        return self._units(array) if isinstance(array, np.ndarray) else array

    def step(
        self, scale: float, limits: tuple[bool, float, float], zero_grad: bool, skip_nonfinite: bool
    ) -> bool:
        """Take a step with the gradients that the watch has taken. Return False if it was skipped."""
        plan, watch, (measures_norm, max_norm, clip) = self.plan, self.watch, limits
        is_plain = not (zero_grad or measures_norm or skip_nonfinite or plan.needs_full_step)
        try:
            for tensor, copied in self.copied:
                copied.copy_(tensor)
            if is_plain and scale == 1.0 and clip == inf:
                taken = plan.table.step(watch)
            else:
                taken = plan.table.full_step(
                    watch, scale, clip, max_norm, zero_grad, measures_norm, skip_nonfinite, plan.prepass,
                    plan.second_scalars,
                )
            if taken:
                self._finish()
            if zero_grad:
                for grad in self.converted:
                    grad.zero_()
        finally:
            watch.release()
            self.converted.clear()
        return taken

    def _finish(self) -> None:
        """Give the optimizer what has changed in the step, apart from the memory of its tensors."""
        watch, scalars = self.watch, tuple(self._scalars(0))
        watch.write_counts()
        stepped = watch.stepped()
        torch.autograd.graph.increment_version(stepped)
        for tensor, copied in self.copied:
            tensor.copy_(copied)
        if self.pending:
            for p, own, pending in zip(self.params, self.own, self.pending, strict=True):
                own |= pending
                if own:
                    self.torch_state[p] = own
            names = [(*scalars, *self._tensors(k)) for k in range(len(self.own))]
            self.pending = []
            watch.save_state(self.torch_state, self.own, names)
        if scalars:
            watch.set_scalars([tuple(self._scalars(k).values()) for k in range(len(self.own))])
