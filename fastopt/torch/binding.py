"""The step plan of an optimizer over tensors, made again whenever one of its tensors was replaced."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastopt._core import dispatch
from fastopt._core.arena import alloc_views
from fastopt._core.encoded import Encoded
from fastopt._core.formats import decode
from fastopt._core.layout import is_dense
from fastopt._core.step_table import NEW_COPIES, NEW_STATE, Exchange
from fastopt._core.tensors import TensorWatch
from fastopt._core.validation import check_disjoint
from fastopt.interop.torch_names import WITHOUT_STEP_COUNT, asgd_scalars
from fastopt.optimizers.options.gradients import unit_transform
from fastopt.optimizers.options.storage import check_master_weights, check_state_dtype
from fastopt.optimizers.plan import StepPlan
from fastopt.optimizers.sgd import ASGDRule
from fastopt.optimizers.state import Scalars, State, StateArrays, reset_copies, state_layouts
from fastopt.optimizers.state_dict import check_steps
from fastopt.torch import tensors
from fastopt.torch.state import ParamState, all_keys, keys_of, to_tensors
from fastopt.torch.threads import openmp_team

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastopt._core.rows import Rows
    from fastopt._core.typing import AnyArray, Array
    from fastopt.optimizers.state import Stored

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
        self.name, self.storage = type(optimizer).OPTIMIZER.__name__, options.storage
        self._moves_units = options.units != (False, None)
        arrays = [self._bind_param(k) for k in range(len(self.params))]
        check_disjoint(arrays, self.paths, "")
        check_master_weights(self.storage, arrays, self.paths, "")
        check_state_dtype(self.rule, self.storage, options.sparse, arrays, self.paths, "")
        self.kernels = self._select_kernels(arrays)
        self._check_kernels()
        self._counts_steps: list[bool] = []
        self._bind_state(arrays, list(options.updates))
        self.plan = StepPlan(
            self.rule, self.groups, self.group_of, [self._units(a) for a in arrays], self.kernels, self.state,
            self.counter, tuple(range(len(arrays))), [f"{path}.grad" for path in self.paths],
            sparse=options.sparse, options=options.updates, storage=options.storage,
            unit_transform=unit_transform(*options.units),
            positions=[i for i, place in enumerate(places) if place >= 0],
        )
        if team := openmp_team():
            self.plan.table.set_team(*team)
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
            if tensors.is_wrapper(p) and self.storage.state_dtype == "int8":
                raise ValueError(
                    f"state_dtype: 'int8' is not supported for {path}, because blocks of codes cannot be "
                    f"divided as the {type(p).__name__} is; use 'bfloat16'"
                )
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
        counts, flags = np.zeros(len(arrays), np.int64), np.zeros(len(arrays), np.uint8)
        self.own: list[dict[str, Any]] = [self.torch_state.get(p, {}) for p in self.params]
        self.pending: list[dict[str, Any]] = [{} for _ in arrays]   # new items of `own`
        self.replaced: list[list[str]] = [[] for _ in arrays]       # keys of `own` that they replace
        layouts = state_layouts(self.rule, self.kernels, arrays, self.storage)
        bound = [
            ParamState(layouts[k], array, buffers, self.own[k], f"state[{self.paths[k]}]")
            for k, array in enumerate(arrays)
        ]
        fresh = alloc_views(arrays, [x.missing_views() for x in bound])
        states: list[State] = []
        for k, (x, views) in enumerate(zip(bound, fresh, strict=True)):
            required, hp = x.layout.shapes.keys(), self.groups[self.group_of[k]].raw()
            is_new = x.absent.issuperset(required)
            if not is_new and (unknown := sorted(x.absent.intersection(required))):
                found = ", ".join(self.own[k])
                raise KeyError(f"{unknown[0]}: expected in the state of {self.paths[k]}, got {found}")
            for name in x.add_missing(iter(views), partial(self.rule.init_value, hp=hp)):
                items = to_tensors(name, x.arrays[name], self.locals[k])
                self.pending[k] |= {key: self._wrap(k, tensor) for key, tensor in items.items()}
                self.replaced[k] += [key for key in all_keys(name) if key not in items]
            always = self.kernels[k] not in WITHOUT_STEP_COUNT.get(self.name, ())
            self._counts_steps.append(always or bool(buffers) or x.layout.has_noise)
            if self._counts_steps[k]:
                counts[k] = self._bind_count(k)
                is_new = is_new or (not counts[k] and (always or self.own[k].get("step") is not None))
            flags[k] = NEW_STATE * is_new + NEW_COPIES * x.absent.issuperset(buffers)
            stored = {name: self._stored_units(x.arrays[name]) for name in x.layout.views}
            states.append(State(stored, counts, flags, k))
        copies = {name: [self._units(x.arrays[name]) for x in bound] for name in buffers}
        self.state = StateArrays(tuple(states), copies, counts, flags)
        self.counter.steps = int(counts.max(initial=0))
        self.counter.mark()
        self._bind_scalars()

    def _stored_units(self, stored: Stored) -> Stored:
        """View a state array with the axes of `_units`."""
        if not isinstance(stored, Encoded):
            return self._units(stored)
        like = self._units(stored.view)
        return Encoded(stored.encoding, stored.stored, stored.scales, stored.block_size, like)

    def _wrap(self, k: int, made: Any) -> Any:
        """Return a tensor with state of a parameter as a tensor of its kind."""
        param = self.params[k]
        if not tensors.is_wrapper(param):
            return made
        return type(param).from_local(
            made, param.device_mesh, param.placements, run_check=False, shape=param.shape,
            stride=param.stride(),
        )

    @contextmanager
    def swapped(self, name: str) -> Iterator[None]:
        """Exchange the parameters and the copies of an option for the time of a ``with`` block."""
        arrays, copies = list(self.plan.arrays), self.state.buffers[name]
        exchange = Exchange(self.counter, f"swapped_{name}", arrays, copies)
        self.watch.release()
        with self._writing():
            exchange.__enter__()
        try:
            yield
        finally:
            with self._writing():
                exchange.__exit__()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Let the parameters have what is written to their arrays, also those with gaps in memory."""
        with torch.no_grad():
            for tensor, copied in self.copied:
                copied.copy_(tensor)
            yield
            for tensor, copied in self.copied:
                tensor.copy_(copied)
        torch.autograd.graph.increment_version(self.params)

    def reset_copies(self) -> None:
        """Set the copies of parameters in the state to the present values of the parameters."""
        for k, (array, state) in enumerate(zip(self.plan.arrays, self.state.states, strict=True)):
            reset_copies(self.rule, self.groups[self.group_of[k]].raw(), array, state)
            for copies in self.state.buffers.values():
                copies[k][...] = decode(array)
        self._commit([bool(own) for own in self.own])

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
        """Return the state tensors of a parameter by their keys."""
        stored = self.state.states[k].stored
        keys = [key for name in stored for key in keys_of(name, stored[name])] + list(self.state.buffers)
        state = self.own[k] | self.pending[k]
        return {key: state[key] for key in [*keys, *(["step"] if self._counts_steps[k] else [])]}

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

    def _commit(self, selected: list[bool]) -> None:
        """Give the optimizer the new state of the selected parameters."""
        for k, p in enumerate(self.params):
            own = self.own[k]
            for key in self.replaced[k] if selected[k] else ():
                own.pop(key, None)
            own |= self.pending[k] if selected[k] else {}
            if own:
                self.torch_state[p] = own

    def _finish(self) -> None:
        """Give the optimizer what has changed in the step, apart from the memory of its tensors."""
        watch, scalars = self.watch, tuple(self._scalars(0))
        watch.write_counts()
        stepped = watch.stepped()
        torch.autograd.graph.increment_version(stepped)
        for tensor, copied in self.copied:
            tensor.copy_(copied)
        if self.pending:
            self._commit([True] * len(self.own))
            names = [(*scalars, *self._tensors(k)) for k in range(len(self.own))]
            self.pending = []
            watch.save_state(self.torch_state, self.own, names)
        if scalars:
            watch.set_scalars([tuple(self._scalars(k).values()) for k in range(len(self.own))])
