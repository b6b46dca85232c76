"""Parameter groups: dicts that check what is set, and the arrays of all groups in one list."""

from __future__ import annotations

from collections import UserDict
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self

from fastopt._core.containers import ContainerWatch
from fastopt._core.formats import dtype_name
from fastopt._core.pytree import check_paths, check_same_arrays, count_leaves, flatten, read_iterators
from fastopt.optimizers.hyperparameters import Hyperparameters, check_number, evaluate, is_schedule
from fastopt.optimizers.param_groups import GroupedParams

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from fastopt._core.pytree import Slots
    from fastopt._core.step_table import StepCounter
    from fastopt._core.typing import Array, Params, Partition, ScalarState, TreeDef
    from fastopt.optimizers.rule import Rule
    from fastopt.optimizers.state import State


class Group(UserDict[str, Any]):
    """Parameters and their hyperparameters: a dict that checks the values that are set.

    ``opt.groups[0]["lr"] = 1e-4`` takes effect at the next step.

    Attributes
    ----------
    rule : type
        Rule of the optimizer.
    scalar_state : dict of float
        Scalars that the rule carries from step to step, such as Prodigy's ``d``, of the first parameter. Also
        called `numbers`.
    states : list of State
        State of its parameters.
    current : Hyperparameters
        Values for the coming step.
    schedules : list of (str, object, bounds)
        Name, value and range of each hyperparameter that has a schedule.
    changed : dict of str to float
        Numbers that were set and are not yet in `current`.
    check_read : set of str or None
        Hyperparameters that `Rule.check_group` read in `current`; None if it may have read any.
    """

    states: Sequence[State] = ()
    current: Hyperparameters
    schedules: list[tuple[str, Any, Any]]
    check_read: set[str] | None = None
    data: dict[str, Any]

    def __init__(
        self, params: Params, hyperparameters: Mapping[str, Any], rule: type[Rule], counter: StepCounter,
    ) -> None:
        self.rule: type[Rule] = rule
        self.changed: dict[str, Any] = {}
        self._counter = counter
        self.data = {"params": params}
        for name, value in hyperparameters.items():
            self.data[name] = rule.check_hyperparameter(name, value)

    @property
    def scalar_state(self) -> ScalarState:
        return self.states[0].scalars if self.states else dict(self.rule.SCALAR_STATE)

    @property
    def numbers(self) -> ScalarState:
        """Same as `scalar_state`."""
        return self.scalar_state

    def __setitem__(self, name: str, value: Any) -> None:
        old = self.data.get(name)
        if type(old) is float and value is not None and not callable(value):
            value = check_number(name, value, self.rule.RANGES[name])
            if (value == 0.0) == (old == 0.0):  # such a change cannot select another kernel
                if value != old:
                    self.data[name] = self.changed[name] = value
                    self._counter.stale = True
                return
        if name == "params":
            raise ValueError("params: the parameters of a group are fixed; pass new arrays to rebind")
        if name not in self.data:
            known = ", ".join(k for k in self.data if k != "params")
            raise ValueError(f"{name}: unknown hyperparameter, expected one of {known}")
        self.data[name] = self.rule.check_hyperparameter(name, value)
        self._counter.mark()

    def __ior__(self, other: Any) -> Self:  # type: ignore[override]
        self.update(other)
        return self

    def copy(self) -> dict[str, Any]:  # type: ignore[override]
        """Return a dict with the same items."""
        return dict(self.data)

    __copy__ = copy  # type: ignore[assignment]

    def __or__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return self.data | dict(other)

    def __ror__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return dict(other) | self.data

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError(f"{name}: a hyperparameter can be set, not deleted")

    def hyperparameters(self) -> dict[str, Any]:
        return {name: value for name, value in self.data.items() if name != "params"}

    def raw(self) -> Hyperparameters:
        """The hyperparameters as attributes; schedules are not evaluated."""
        return Hyperparameters(self.hyperparameters())

    def evaluated(self, step: int) -> dict[str, Any]:
        """The hyperparameters after `step` finished steps."""
        return self.hyperparameters() | self.evaluate_schedules(step)

    def evaluate_schedules(self, step: int) -> dict[str, Any]:
        """Values of the scheduled hyperparameters after `step` finished steps."""
        items = self.hyperparameters().items()
        return {name: self.rule.evaluate(name, v, step) for name, v in items if is_schedule(v)}

    def update_current(self, step: int, everything: bool) -> None:
        """Update `current` to the values after `step` finished steps, and check it.

        Without `everything`, only what is scheduled and what is in `changed` is read. `changed` then contains
        every value that is another one than at the last step, until the caller clears it.
        """
        if everything:
            self.changed.clear()
            self.current, self.check_read = Hyperparameters(self.hyperparameters()), None
            self.schedules = [
                (name, value, self.rule.RANGES.get(name))
                for name, value in self.hyperparameters().items() if is_schedule(value)
            ]
        current, changed = self.current.__dict__, self.changed
        for name, schedule, bounds in self.schedules:
            value = evaluate(name, schedule, step, bounds)
            if everything or value != current[name]:
                changed[name] = value
        if not changed and not everything:
            return
        current.update(changed)
        if self.check_read is not None and self.check_read.isdisjoint(self.changed):
            return
        # What the check reads is recorded only if `everything` is new, because recording takes time.
        checked = self.current.recorded() if everything else self.current
        try:
            self.rule.check_group(checked)
        except ValueError as error:
            if not self.schedules:
                raise
            schedules = ", ".join(f"{name}={schedule!r}" for name, schedule, _ in self.schedules)
            raise ValueError(f"{error} at step {step} with the schedules {schedules}") from None
        self.check_read = getattr(checked, "names", None)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"states": ()}  # which the optimizer saves

    def stateful_schedules(self) -> Iterator[tuple[str, Any]]:
        """Schedules that have a state, by name: ``lr``, ``betas[0]``."""
        for name, value in self.hyperparameters().items():
            several = isinstance(value, tuple)
            for i, number in enumerate(value if several else [value]):
                if hasattr(number, "state_dict"):
                    yield (f"{name}[{i}]" if several else name), number


class ParamGroups:
    """The groups of an optimizer, with all their arrays in one list.

    Attributes
    ----------
    groups : tuple of Group
    params
        The parameters as the user passed them.
    grouped : bool
        Whether the user passed groups, so that gradients are a list with one entry per group.
    treedef : TreeDef
        Nesting of the parameters.
    trees : list
        Nesting of each group.
    watch : ContainerWatch
        Notices that the caller's lists and dicts have other arrays.
    arrays, paths : list
        The parameters and their places in the nesting: ``[2]["W"]``.
    types : list of (dtype, tuple of int)
        Dtype and shape of each array when it was read.
    group_of : list of int
        Index of the group of each array.
    partition : Partition, optional
        If the arrays are the parts of the parameters that this process updates.
    """

    params: Any
    treedef: TreeDef
    watch: ContainerWatch
    arrays: list[Array]
    paths: list[str]
    types: list[tuple[Any, tuple[int, ...]]]
    group_of: list[int]
    partition: Partition | None = None

    def __init__(
        self, params: Params, rule: type[Rule], defaults: Mapping[str, Any], owner: str, counter: StepCounter
    ) -> None:
        self.counter = counter
        params = read_iterators(params)
        self._selected = params if isinstance(params, GroupedParams) else None
        self.rule, self.params = rule, params
        if self._selected is not None:
            self.params = self._selected.params
        self._defaults, self._owner = defaults, owner
        self.grouped: bool = _are_groups(params)
        given: Any = params if self.grouped or self._selected is not None else [{"params": params}]
        self.groups: tuple[Group, ...] = tuple(self._make(group) for group in given)
        rule.check_groups([group.raw() for group in self.groups])
        self.trees: list[Any] = [group["params"] for group in self.groups]
        if self._selected is not None:
            self.trees = [self.params]
        self._flatten()

    def added(self, given: Mapping[str, Any]) -> ParamGroups:
        """Return these groups and a further one."""
        if not _are_groups([given]):
            raise TypeError(f"group: expected a dict with the key 'params', got {given!r}")
        self.watch.check()
        result = self._copy()
        result.groups, result.grouped = (*self.groups, self._make(given)), True
        result.trees = [*self.trees, result.groups[-1]["params"]]
        self.rule.check_groups([group.raw() for group in result.groups])
        result.params = [dict(group) for group in result.groups]
        if self._selected is not None:
            result.params[: len(self._selected)] = [self._selected.params]
        result._flatten()
        return result

    def rebound(self, params: Params) -> ParamGroups:
        """Return these groups with other arrays of the same nesting, shapes and dtypes."""
        given: Any = params.params if isinstance(params, GroupedParams) else read_iterators(params)
        result, selected = self._copy(), self._selected
        result.params, result.trees, result._selected = given, self._trees_of(given), None
        result._flatten((self.treedef, self.paths))
        for path, (dtype, shape), array in zip(self.paths, self.types, result.arrays, strict=True):
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"params{path}: expected {dtype_name(dtype)} of shape {shape}, as before, "
                    f"got {dtype_name(array.dtype)} of shape {array.shape}"
                )
        result.group_of = self.group_of
        if selected is not None:
            result._selected = selected.rebound(result.trees[0], result.arrays)
        return result

    def partitioned(self, partition: Partition, arrays: list[Array]) -> ParamGroups:
        """Return these groups with the parts of the arrays that this process updates."""
        result = self._copy()
        result.arrays, result.partition = arrays, partition
        return result

    def _trees_of(self, params: Any) -> list[Any]:
        """Nesting of each group in parameters that are to replace the present ones."""
        nestings = 0 if self._selected is None else 1   # entries that are no group
        if not self.grouped and not _are_groups(params):
            return [params]
        if (not self.grouped or not isinstance(params, (list, tuple)) or len(params) != len(self.trees)
                or not _are_groups(params[nestings:])):
            expected = f"a list of {len(self.trees)} groups" if self.grouped else "a nesting without groups"
            raise ValueError(f"params: expected {expected}, as in opt.params")
        return [*params[:nestings], *(group["params"] for group in params[nestings:])]

    def update_groups(self) -> None:
        """Give the groups, which other instances share, the arrays of this one."""
        selected = () if self._selected is None else self._selected.groups
        trees = [*(group["params"] for group in selected), *self.trees[1 if selected else 0 :]]
        for group, tree in zip(self.groups, trees, strict=True):
            group.data["params"] = tree

    def _copy(self) -> ParamGroups:
        result = object.__new__(ParamGroups)
        result.__dict__.update(self.__dict__)
        return result

    def _make(self, given: Mapping[str, Any]) -> Group:
        unknown = given.keys() - self._defaults.keys() - {"params"}
        if unknown:
            raise ValueError(
                f"params: unknown hyperparameter {min(unknown)!r} in a group of {self._owner}, "
                f"expected one of {', '.join(self._defaults)}"
            )
        hyperparameters = {name: given.get(name, value) for name, value in self._defaults.items()}
        group = Group(read_iterators(given["params"]), hyperparameters, self.rule, self.counter)
        self.rule.check_group(group.raw())
        return group

    def _flatten(self, order: tuple[TreeDef, list[str]] | None = None) -> None:
        """Read the containers.

        With `order`, the treedef and the paths of an earlier time, the arrays keep that order, although the
        keys of a dict may have another one now.
        """
        if self.partition is not None:
            raise ValueError("params: the parameters of a sharded optimizer are fixed")
        slots: Slots = []
        treedef, arrays, paths = flatten(self._tree(), slots=slots)
        if order is not None:
            found = dict(zip(paths, arrays, strict=True))
            treedef, paths = order
            check_paths(paths, found)
            arrays = [found[path] for path in paths]
        self.treedef, self.arrays, self.paths = treedef, arrays, paths
        self.types = [(array.dtype, array.shape) for array in arrays]
        # No reference to this object, which would make a cycle: an optimizer is freed when it is dropped.
        self.watch = ContainerWatch(slots, partial(_reread, self._tree(), paths, arrays))
        selected = self._selected
        first = 0 if selected is None else len(selected) - 1    # which has one tree for all of its groups
        treedefs: Any = self.treedef if self.grouped else [self.treedef]
        self.group_of = [i for i, treedef in enumerate(treedefs, first) for _ in range(count_leaves(treedef))]
        if selected is not None:
            selected.check(self.arrays[: len(selected.group_of)])
            self.group_of[: len(selected.group_of)] = selected.group_of

    def _tree(self) -> Any:
        return self.trees if self.grouped else self.trees[0]

    def indices(self) -> list[list[int]]:
        """Indices of the arrays of each group."""
        return [[k for k, i in enumerate(self.group_of) if i == own] for own in range(len(self.groups))]

    def hyperparameters(self) -> list[Hyperparameters]:
        """Hyperparameters of each array; schedules are not evaluated."""
        raws = [group.raw() for group in self.groups]
        return [raws[i] for i in self.group_of]

    def kernels(self) -> list[str]:
        """Kernel of each array, for the present hyperparameters, which are validated first."""
        for group in self.groups:
            self.rule.check_group(group.raw())
        hps = self.hyperparameters()
        return [self.rule.kernel_for(hp, array) for hp, array in zip(hps, self.arrays, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        if self.partition is not None:
            raise TypeError("a sharded optimizer cannot be copied or pickled; use its state_dict")
        self.watch.check()
        derived = ("arrays", "group_of", "types", "watch")
        return {name: value for name, value in self.__dict__.items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._flatten((state["treedef"], state["paths"]))  # checks that the arrays can still be updated


def _reread(tree: Any, paths: list[str], arrays: list[Array]) -> Slots:
    """Read the containers again after one has changed. Raise unless they have the same arrays."""
    slots: Slots = []
    try:
        _, found, found_paths = flatten(tree, slots=slots)
    except (TypeError, ValueError) as error:
        raise ValueError(f"params: a container has changed since the optimizer was made: {error}") from error
    check_same_arrays(paths, arrays, dict(zip(found_paths, found, strict=True)))
    return slots


def _are_groups(params: object) -> bool:
    return (
        isinstance(params, (list, tuple))
        and len(params) > 0
        and all(isinstance(group, (dict, Group)) and "params" in group for group in params)
    )
