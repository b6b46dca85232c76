"""What all optimizers share: groups of parameters, their state in one arena, and the step."""

import contextlib
import math
from collections import UserDict
from numbers import Integral, Real

import numpy as np

from fastopt import _dispatch
from fastopt._spans import Table
from fastopt._tree import count_places, flatten

# Half-open ranges [low, high): a name means the same in every rule. NaN is in none of them.
RANGES = {
    "lr": (0.0, math.inf),
    "lr_decay": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "eps": (0.0, math.inf),
    "initial_accumulator_value": (0.0, math.inf),
    "momentum": (0.0, math.inf),
    "dampening": (-math.inf, math.inf),
    "alpha": (0.0, 1.0),
    "betas": (0.0, 1.0),
    "ema": (0.0, 1.0),
    "max_norm": (0.0, math.inf),
    "clip_value": (0.0, math.inf),
    "grad_scale": (-math.inf, math.inf),
}
# What is used before the first step only.
UNSCHEDULED = ("initial_accumulator_value",)

_ALIGN = 64  # bytes: a cache line, and the widest register
_PAGE = 4096  # bytes after which addresses look alike to the first-level cache
_LARGE = 1 << 16  # bytes from which on an array's place in its page matters more than a page's waste


def check_number(name, value):
    """Return `value` as a float, or raise if it is not a number in the range of `name`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    low, high = RANGES[name]
    if not low <= value < high or math.isinf(value):
        raise ValueError(f"{name}: expected a finite number in [{low:g}, {high:g}), got {value!r}")
    return float(value)


def check_hyperparameter(name, value, conventions):
    """Return a hyperparameter as a group keeps it: a float, a schedule, a flag, a pair of betas."""
    if name == "betas":
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(f"betas: expected a pair of numbers, got {value!r}")
        return tuple(v if callable(v) else check_number(name, v) for v in value)
    if name == "convention":
        if value not in conventions:
            raise ValueError(f"convention: expected one of {', '.join(conventions)}, got {value!r}")
        return value
    if name not in RANGES:
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")
        return bool(value)
    if callable(value) and name not in UNSCHEDULED:
        return value
    return check_number(name, value)


def evaluate(name, value, step):
    """A hyperparameter as a number: schedules are called with the number of finished steps."""
    if isinstance(value, tuple):
        return tuple(evaluate(name, v, step) for v in value)
    return check_number(name, value(step)) if callable(value) else value


def is_schedule(value):
    return callable(value) or (isinstance(value, tuple) and any(map(callable, value)))


class Hyperparameters:
    """A group's hyperparameters as attributes, which are quicker to read than a dict's items."""

    def __init__(self, values):
        self.__dict__.update(values)


class Flag:
    """Raised by groups that have changed, lowered by their optimizer when it has looked."""

    raised = True


class Group(UserDict):
    """Hyperparameters of some parameters, a dict that checks what is put into it.

    ``opt.groups[0]["lr"] = 1e-4`` takes effect at the next step.

    Attributes
    ----------
    stale : Flag
        The optimizer's, raised here when something is set.
    now : Hyperparameters
        The numbers of the coming step, and ``rule``, the name of the kernel that takes them.
    """

    def __init__(self, params, hyperparameters, conventions, stale):
        self.conventions = conventions
        self.stale = stale
        self.data = {"params": params}
        for name, value in hyperparameters.items():
            self.data[name] = check_hyperparameter(name, value, conventions)

    def __setitem__(self, name, value):
        if name == "params":
            raise ValueError("params: the parameters of a group are fixed; make another group")
        if name not in self.data:
            known = ", ".join(k for k in self.data if k != "params")
            raise ValueError(f"{name}: no such hyperparameter here, expected one of {known}")
        self.data[name] = check_hyperparameter(name, value, self.conventions)
        self.stale.raised = True

    def __delitem__(self, name):
        raise TypeError(f"{name}: a hyperparameter can be set, not deleted")

    def hyperparameters(self):
        return {name: value for name, value in self.data.items() if name != "params"}

    def is_scheduled(self):
        return any(map(is_schedule, self.hyperparameters().values()))

    def raw(self):
        """The hyperparameters as attributes, schedules as they are."""
        return Hyperparameters(self.hyperparameters())

    def at(self, step):
        """The hyperparameters as numbers at a step."""
        values = self.hyperparameters().items()
        return Hyperparameters({name: evaluate(name, value, step) for name, value in values})


class State(dict):
    """One parameter's state arrays by name; what is set is copied into the array."""

    def __setitem__(self, name, value):
        array, value = self[name], np.asarray(value)
        if value.shape != array.shape:
            raise ValueError(f"{name}: expected shape {array.shape}, got {value.shape}")
        array[...] = value


class Optimizer:
    """Base of the optimizers: everything but the rule.

    A subclass passes its hyperparameters on and says, in a few class attributes and static methods,
    what its rule is.

    Parameters
    ----------
    params : ndarray, nesting of ndarrays, or list of dict
        float32 or float64 arrays, updated in place: an array, or lists, tuples and dicts of arrays in
        any nesting; or a list of group dicts ``{"params": ..., "lr": ...}``.
    hyperparameters : dict
        Defaults of every group. A number may be a schedule, a callable of the number of finished steps.
    ema : float or schedule, optional
        Keep an exponential moving average of the parameters with this weight of the past.
    skip_nonfinite : bool
        Leave everything as it is in a step whose gradients hold a NaN or an infinity, and count it
        in `skipped_steps`.

    Attributes
    ----------
    groups : list of Group
    state : list of State
        For every parameter, in the order of the nesting, its state arrays by torch's names.
    steps : int
        Steps taken.
    grad_norm : float or None
        Norm of the gradients before clipping, from the last step with `max_norm`.
    skipped_steps : int
    """

    # Kernel of each variant and the names of its state arrays; the dialects the rule speaks.
    STATES = {}
    CONVENTIONS = ("torch",)

    @staticmethod
    def rule(h):
        """Name of the kernel for the hyperparameters `h` (where a schedule counts as true)."""
        raise NotImplementedError

    @staticmethod
    def constants(h):
        """The first scalars of the kernel `h.rule`: those that the hyperparameters alone decide."""
        raise NotImplementedError

    @staticmethod
    def variables(h, t):
        """Its further scalars, which depend on the step `t` (the first is 1), too."""
        return ()

    @staticmethod
    def decay(h):
        """L2 weight decay, added to the gradient; a decoupled one is part of the rule."""
        return h.weight_decay

    @staticmethod
    def initial(name, h):
        """What a state array holds before the first step."""
        return 0.0

    def __init__(self, params, hyperparameters, *, ema=None, skip_nonfinite=False):
        if not isinstance(skip_nonfinite, bool):
            raise TypeError(f"skip_nonfinite: expected True or False, got {skip_nonfinite!r}")
        self._ema_weight = ema if ema is None or callable(ema) else check_number("ema", ema)
        self.skip_nonfinite = skip_nonfinite
        self.params = params
        self.grad_norm = None
        self.skipped_steps = 0
        self._steps = 0
        self._defaults = hyperparameters
        self.state, self._averages = [], []
        self._stale = Flag()
        self._grouped = _are_groups(params)
        given = params if self._grouped else [{"params": params}]
        self.groups = [self._make_group(group) for group in given]
        self._resolve()
        self._build()

    def _make_group(self, given):
        unknown = given.keys() - self._defaults.keys() - {"params"}
        if unknown:
            raise ValueError(
                f"params: unknown hyperparameter {sorted(unknown)[0]!r} in a group of "
                f"{type(self).__name__}, expected one of {', '.join(self._defaults)}"
            )
        hyperparameters = {name: given.get(name, value) for name, value in self._defaults.items()}
        group = Group(given["params"], hyperparameters, self.CONVENTIONS, self._stale)
        self.check(group.raw())
        return group

    @staticmethod
    def check(h):
        """Refuse hyperparameters that do not go together."""

    def add_param_group(self, group):
        """Add a group of parameters; `step` then takes a list of gradients, one entry a group."""
        made = self._make_group(group)
        flatten([g["params"] for g in [*self.groups, made]])    # raises before anything changes
        self.groups.append(made)
        self._grouped = True
        self.params = self.groups
        self._resolve()
        self._build()

    # --- State ---------------------------------------------------------------------------------

    def _resolve(self):
        """Take the nesting of the parameters apart, once."""
        tree = [group["params"] for group in self.groups]
        if self._grouped:
            self._shape, self._arrays, self._places = flatten(tree)
            counts = map(count_places, self._shape)
        else:
            self._shape, self._arrays, self._places = flatten(tree[0])
            counts = [len(self._arrays)]
        self._group_of = [i for i, count in enumerate(counts) for _ in range(count)]

    def _build(self):
        """Lay out the state and make the span table; state that exists already is kept."""
        hs = [group.raw() for group in self.groups]
        self._rules = [self.rule(h) for h in hs]
        names = [self.STATES[self._rules[i]] for i in self._group_of]
        averaged = self._ema_weight is not None
        carved = _carve(self._arrays, [len(n) + averaged for n in names])

        kept, self.state = self.state, []
        for k, views in enumerate(carved):
            self.state.append(State(zip(names[k], views, strict=False)))
            for name, array in self.state[k].items():
                old = kept[k].get(name) if k < len(kept) else None
                array[...] = self.initial(name, hs[self._group_of[k]]) if old is None else old
        if averaged:
            kept = self._averages + self._arrays[len(self._averages):]
            self._averages = [views[-1] for views in carved]
            for array, old in zip(self._averages, kept, strict=True):
                array[...] = old

        self._table = Table(
            _dispatch.kernels.KERNELS,
            self._shape,
            [f"grads{place}" for place in self._places],
            self._arrays,
            [list(state.values()) for state in self.state],
            self._averages if averaged else None,
            self._group_of,
            [_dispatch.kernels.RULES[rule] for rule in self._rules],
        )
        self._stale.raised = True

    def _refresh(self):
        """Evaluate the hyperparameters for the coming step; a new rule lays the state out anew."""
        raws = [group.raw() for group in self.groups]
        for raw in raws:
            self.check(raw)
        if [self.rule(raw) for raw in raws] != self._rules:
            self._build()
        weight = 0.0 if self._ema_weight is None else evaluate("ema", self._ema_weight, self._steps)
        for i, group in enumerate(self.groups):
            group.now = group.at(self._steps)
            group.now.rule = self._rules[i]
            h = group.now
            self._table.set_group(i, h.maximize, self.decay(h), weight, self.constants(h))
        scheduled = callable(self._ema_weight) or any(group.is_scheduled() for group in self.groups)
        self._stale.raised = scheduled

    # --- The step ------------------------------------------------------------------------------

    def step(self, grads, *, max_norm=None, clip_value=None, grad_scale=None, zero_grad=False):
        """Update every parameter in place.

        Parameters
        ----------
        grads : nesting of ndarrays
            Gradients, of the shapes and dtypes of the parameters, in the same nesting; a list with
            one entry a group where groups were given. Read only, unless `zero_grad`. An array in
            another memory layout is copied.
        max_norm : float, optional
            Scale the gradients down so that their norm over all parameters is at most this; the norm
            before is left in `grad_norm`. Formula of ``torch.nn.utils.clip_grad_norm_``.
        clip_value : float, optional
            Clamp each gradient to ``[-clip_value, clip_value]``, after `max_norm`.
        grad_scale : float, optional
            Multiply the gradients by this first.
        zero_grad : bool
            Set the gradients to zero after use.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit its parameter; nothing has been changed then.
        """
        if self._stale.raised:
            self._refresh()
        t, i, table, variables = self._steps + 1, 0, self._table, self.variables
        rows = table.rows
        for group in self.groups:
            rows[i] = variables(group.now, t)
            i += 1  # noqa: SIM113 (enumerate alone would take a tenth of a small step)
        if max_norm is clip_value is grad_scale is None and not (zero_grad or self.skip_nonfinite):
            table.step(grads)
        elif self._step_shaped(grads, max_norm, clip_value, grad_scale, zero_grad):
            self.skipped_steps += 1
            return
        self._steps = t

    def _step_shaped(self, grads, max_norm, clip_value, grad_scale, zero_grad):
        """A step with all its options; True if it was skipped."""
        if not isinstance(zero_grad, bool):
            raise TypeError(f"zero_grad: expected True or False, got {type(zero_grad).__name__}")
        norm = self._table.step_shaped(
            grads,
            1.0 if grad_scale is None else check_number("grad_scale", grad_scale),
            math.inf if clip_value is None else check_number("clip_value", clip_value),
            math.inf if max_norm is None else check_number("max_norm", max_norm),
            zero_grad,
            max_norm is not None,
            self.skip_nonfinite,
        )
        if self.skip_nonfinite and math.isnan(norm):
            return True
        if max_norm is not None:
            self.grad_norm = norm
        return False

    @property
    def steps(self):
        return self._steps

    @steps.setter
    def steps(self, value):
        self._steps = check_steps("steps", value)

    # --- The average of the parameters -----------------------------------------------------------

    @property
    def ema(self):
        """Moving averages of the parameters in their nesting, or None if none are kept."""
        return _assemble(self._shape, self._averages) if self._averages else None

    @contextlib.contextmanager
    def swapped_ema(self):
        """``with opt.swapped_ema():`` the parameters hold their averages."""
        if not self._averages:
            raise ValueError("swapped_ema: the optimizer keeps no average, give it ema=0.999")
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self):
        for array, average in zip(self._arrays, self._averages, strict=True):
            held = array.copy()
            array[...] = average
            average[...] = held

    # --- Saving and loading ----------------------------------------------------------------------

    def state_dict(self):
        """All that a later run needs to go on, as plain numbers and copies of arrays.

        A schedule is not a number: the optimizer that loads keeps its own, and takes over the state
        of those that have one.

        Returns
        -------
        dict
            ``optimizer``, ``steps``, ``skipped_steps``, ``groups`` (hyperparameters, places of their
            parameters, states of schedules), ``state`` (arrays by name, for each parameter), and
            ``ema`` where averages are kept.
        """
        groups = []
        for i, group in enumerate(self.groups):
            items = group.hyperparameters().items()
            entry = {name: value for name, value in items if not is_schedule(value)}
            entry["params"] = [k for k, g in enumerate(self._group_of) if g == i]
            entry["schedules"] = {n: v.state_dict() for n, v in items if hasattr(v, "state_dict")}
            groups.append(entry)
        result = {
            "optimizer": type(self).__name__,
            "steps": self._steps,
            "skipped_steps": self.skipped_steps,
            "groups": groups,
            "state": [{name: array.copy() for name, array in s.items()} for s in self.state],
        }
        if self._averages:
            result["ema"] = [array.copy() for array in self._averages]
        return result

    def load_state_dict(self, state_dict):
        """Go on where the optimizer stood that `state_dict` was taken from.

        Raises
        ------
        ValueError, TypeError
            If it came from another optimizer or from parameters of other shapes or dtypes; nothing
            has been changed then.
        """
        groups = self._check_state_dict(state_dict)
        for group, (values, schedules) in zip(self.groups, groups, strict=True):
            group.data.update(values)
            group.stale.raised = True
            for name, state in schedules.items():
                group[name].load_state_dict(state)
        self._steps = state_dict["steps"]
        self.skipped_steps = state_dict["skipped_steps"]
        self._build()
        for mine, saved in zip(self.state, state_dict["state"], strict=True):
            for name, array in saved.items():
                mine[name] = array
        for mine, saved in zip(self._averages, state_dict.get("ema", []), strict=True):
            mine[...] = saved

    def _check_state_dict(self, saved):
        """Refuse what does not fit; else the values and schedule states that each group takes over."""
        wanted = {"optimizer", "steps", "skipped_steps", "groups", "state"}
        if not isinstance(saved, dict) or not wanted <= saved.keys():
            raise ValueError(f"state_dict: expected a dict with the keys {', '.join(sorted(wanted))}")
        if saved["optimizer"] != type(self).__name__:
            raise ValueError(
                f"state_dict: expected one of {type(self).__name__}, got one of {saved['optimizer']}"
            )
        check_steps("state_dict['steps']", saved["steps"])
        check_steps("state_dict['skipped_steps']", saved["skipped_steps"])
        places = [[k for k, g in enumerate(self._group_of) if g == i] for i in range(len(self.groups))]
        found = [group["params"] for group in saved["groups"]]
        if found != places:
            raise ValueError(
                f"state_dict: expected groups of the parameters {places}, got {found}"
            )
        groups = [self._check_group(*pair) for pair in zip(self.groups, saved["groups"], strict=True)]
        rules = [self.rule(Hyperparameters(group.hyperparameters() | values))
                 for group, (values, _) in zip(self.groups, groups, strict=True)]
        if len(saved["state"]) != len(self._arrays):
            raise ValueError(
                f"state_dict: expected the state of {len(self._arrays)} parameters, "
                f"got {len(saved['state'])}"
            )
        for k, array in enumerate(self._arrays):
            names = self.STATES[rules[self._group_of[k]]]
            if sorted(saved["state"][k]) != sorted(names):
                raise ValueError(
                    f"state_dict['state'][{k}]: expected the arrays {list(names)}, "
                    f"got {list(saved['state'][k])}"
                )
            for name in names:
                check_like(f"state_dict['state'][{k}]['{name}']", saved["state"][k][name], array)
        averages = saved.get("ema", [])
        if len(averages) != len(self._averages):
            raise ValueError(
                f"state_dict['ema']: expected {len(self._averages)} averages, got {len(averages)}"
            )
        for k, average in enumerate(averages):
            check_like(f"state_dict['ema'][{k}]", average, self._arrays[k])
        return groups

    def _check_group(self, group, saved):
        mine = group.hyperparameters()
        saved = {name: value for name, value in saved.items() if name != "params"}
        schedules = {
            name: state
            for name, state in saved.pop("schedules", {}).items()
            if hasattr(mine.get(name), "load_state_dict")
        }
        values = {
            name: check_hyperparameter(name, saved[name], self.CONVENTIONS)
            for name, value in mine.items()
            if name in saved and not is_schedule(value)
        }
        self.check(Hyperparameters(mine | values))
        return values, schedules

    def __getstate__(self):
        """For pickle and deepcopy: the parameters come along, the addresses do not."""
        state = {name: value for name, value in self.__dict__.items() if name != "_table"}
        return state | {"state": [dict(arrays) for arrays in self.state]}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._build()

    def __repr__(self):
        lines = [f"{type(self).__name__}("]
        for group, rule in zip(self.groups, self._rules, strict=True):
            values = ", ".join(f"{n}={v!r}" for n, v in group.hyperparameters().items())
            lines.append(f"    {rule}: {values}")
        count = sum(array.size for array in self._arrays)
        lines.append(f"    {len(self._arrays)} arrays, {count:,} numbers, {self._steps} steps\n)")
        return "\n".join(lines)


def _are_groups(params):
    return (
        isinstance(params, (list, tuple))
        and len(params) > 0
        and all(isinstance(group, (dict, Group)) and "params" in group for group in params)
    )


def _assemble(shape, arrays):
    """The inverse of `flatten`."""
    if isinstance(shape, int):
        return arrays[shape]
    if isinstance(shape, dict):
        return {key: _assemble(inner, arrays) for key, inner in shape.items()}
    return [_assemble(inner, arrays) for inner in shape]


def check_steps(name, value):
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise ValueError(f"{name}: expected a whole number from 0 on, got {value!r}")
    return int(value)


def check_like(name, value, array):
    if not isinstance(value, np.ndarray) or value.dtype != array.dtype or value.shape != array.shape:
        found = f"{value.dtype} of shape {value.shape}" if hasattr(value, "shape") else type(value)
        raise ValueError(f"{name}: expected {array.dtype} of shape {array.shape}, got {found}")


def _carve(arrays, counts):
    """Cut, for each array, `counts` arrays like it out of one new arena of zeros.

    Every one begins on a cache line. NumPy asks for huge pages for large blocks, so one block is also
    the way to get them. Streams at the same place of their pages get into each other's way: large
    arrays begin a quarter of a page further on than the one before.
    """
    rooms = [
        -(-array.nbytes // _ALIGN) * _ALIGN + (_PAGE if array.nbytes >= _LARGE else 0)
        for array in arrays
    ]
    total = sum(room * count for room, count in zip(rooms, counts, strict=True))
    arena = np.zeros(total + _ALIGN, np.uint8)
    base = arena.ctypes.data
    start = -base % _ALIGN
    carved = []
    for array, room, count in zip(arrays, rooms, counts, strict=True):
        views = []
        for k in range(count):
            first = start
            if array.nbytes >= _LARGE:
                wanted = array.ctypes.data // _ALIGN * _ALIGN + (k + 1) * (_PAGE // 4)
                first += (wanted - base - start) % _PAGE
            views.append(arena[first : first + array.nbytes].view(array.dtype).reshape(array.shape))
            start += room
        carved.append(views)
    return carved
