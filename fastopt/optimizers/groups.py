"""Parameter groups: dicts that check what is set, and the arrays of all groups in one list."""

from __future__ import annotations

from collections import UserDict
from typing import TYPE_CHECKING, Any, NoReturn, Self

from fastopt._core.pytree import count_leaves, flatten
from fastopt.optimizers.hyperparameters import Hyperparameters, is_schedule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fastopt._core.typing import Array, Params, ScalarState, TreeDef
    from fastopt.optimizers.rule import Rule


class Dirty:
    """Marks cached step scalars as out of date.

    Attributes
    ----------
    scalars : bool
        The scalars must be computed again before the next step: something was set or is scheduled.
    hyperparams : bool
        A hyperparameter was set.
    """

    scalars: bool = True
    hyperparams: bool = True

    def mark(self) -> None:
        self.scalars = self.hyperparams = True


class Group(UserDict[str, Any]):
    """Parameters and their hyperparameters: a dict that checks the values that are set.

    ``opt.groups[0]["lr"] = 1e-4`` takes effect at the next step.

    Attributes
    ----------
    rule : type
        Rule of the optimizer.
    start : int
        Number of steps that the optimizer had taken when the group was added.
    scalar_state : dict of float
        Scalars that the rule carries from step to step, such as Prodigy's ``d``. Also called `numbers`.
    next_scalar_state : dict of float
        Their values after the coming step.
    current : Hyperparameters
        Values for the coming step.
    scheduled : list of str
        Names of the hyperparameters that have a schedule.
    """

    next_scalar_state: ScalarState
    current: Hyperparameters
    scheduled: list[str]
    data: dict[str, Any]

    def __init__(
        self, params: Params, hyperparameters: Mapping[str, Any], rule: type[Rule], dirty: Dirty, start: int,
    ) -> None:
        self.rule: type[Rule] = rule
        self.start: int = start
        self.scalar_state: ScalarState = dict(rule.SCALAR_STATE)
        self.next_scalar_state = self.scalar_state
        self._dirty = dirty
        self.data = {"params": params}
        for name, value in hyperparameters.items():
            self.data[name] = rule.check_hyperparameter(name, value)

    @property
    def numbers(self) -> ScalarState:
        """Same as `scalar_state`."""
        return self.scalar_state

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "params":
            raise ValueError("params: the parameters of a group are fixed; make another group")
        if name not in self.data:
            known = ", ".join(k for k in self.data if k != "params")
            raise ValueError(f"{name}: unknown hyperparameter, expected one of {known}")
        self.data[name] = self.rule.check_hyperparameter(name, value)
        self._dirty.mark()

    def __ior__(self, other: Any) -> Self:  # type: ignore[override, misc]
        self.update(other)
        return self

    def __delitem__(self, name: str) -> NoReturn:
        raise TypeError(f"{name}: a hyperparameter can be set, not deleted")

    def hyperparameters(self) -> dict[str, Any]:
        return {name: value for name, value in self.data.items() if name != "params"}

    def raw(self) -> Hyperparameters:
        """The hyperparameters as attributes; schedules are not evaluated."""
        return Hyperparameters(self.hyperparameters())

    def evaluate_schedules(self, step: int) -> dict[str, Any]:
        """Values of the scheduled hyperparameters after `step` finished steps."""
        items = self.hyperparameters().items()
        return {name: self.rule.evaluate(name, v, step) for name, v in items if is_schedule(v)}

    def update_current(self, step: int, *, everything: bool) -> None:
        """Evaluate the schedules, or all hyperparameters, after `step` finished steps."""
        if everything:
            scheduled = [name for name, value in self.hyperparameters().items() if is_schedule(value)]
            before = self.hyperparameters() | {"totals": None}
        elif self.scheduled:
            scheduled, before = self.scheduled, vars(self.current)
        else:
            return
        values = {name: self.rule.evaluate(name, self.data[name], step) for name in scheduled}
        current = Hyperparameters(before | values)
        if scheduled:
            try:
                self.rule.check(current)
            except ValueError as error:
                schedules = ", ".join(f"{name}={self.data[name]!r}" for name in scheduled)
                raise ValueError(f"{error} at step {step} with the schedules {schedules}") from None
        self.current, self.scheduled = current, scheduled

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
    arrays, paths : list
        The parameters and their places in the nesting: ``[2]["W"]``.
    group_of : list of int
        Index of the group of each array.
    """

    treedef: TreeDef
    arrays: list[Array]
    paths: list[str]
    group_of: list[int]

    def __init__(self, params: Params, rule: type[Rule], defaults: Mapping[str, Any], owner: str) -> None:
        self.dirty = Dirty()
        self.rule, self.params = rule, params
        self._defaults, self._owner = defaults, owner
        self.grouped: bool = _are_groups(params)
        given: Any = params if self.grouped else [{"params": params}]
        self.groups: tuple[Group, ...] = tuple(self._make(group, 0) for group in given)
        self._flatten()

    def add(self, given: Mapping[str, Any], start: int) -> None:
        """Add a group after `start` steps; nothing has changed if this raises."""
        if not _are_groups([given]):
            raise TypeError(f"group: expected a dict with the key 'params', got {given!r}")
        groups = (*self.groups, self._make(given, start))
        flatten([g["params"] for g in groups])
        self.groups, self.grouped = groups, True
        self.params = [dict(g) for g in groups]
        self._flatten()

    def _make(self, given: Mapping[str, Any], start: int) -> Group:
        unknown = given.keys() - self._defaults.keys() - {"params"}
        if unknown:
            raise ValueError(
                f"params: unknown hyperparameter {min(unknown)!r} in a group of {self._owner}, "
                f"expected one of {', '.join(self._defaults)}"
            )
        hyperparameters = {name: given.get(name, value) for name, value in self._defaults.items()}
        group = Group(given["params"], hyperparameters, self.rule, self.dirty, start)
        self.rule.check(group.raw())
        return group

    def _flatten(self) -> None:
        trees = [group["params"] for group in self.groups]
        self.treedef, self.arrays, self.paths = flatten(trees if self.grouped else trees[0])
        treedefs: Any = self.treedef if self.grouped else [self.treedef]
        self.group_of = [i for i, treedef in enumerate(treedefs) for _ in range(count_leaves(treedef))]

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
            self.rule.check(group.raw())
        hps = self.hyperparameters()
        return [self.rule.kernel_for(hp, array) for hp, array in zip(hps, self.arrays, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        derived = ("treedef", "arrays", "paths", "group_of")
        return {name: value for name, value in self.__dict__.items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._flatten()  # checks that the arrays can still be updated


def _are_groups(params: object) -> bool:
    return (
        isinstance(params, (list, tuple))
        and len(params) > 0
        and all(isinstance(group, (dict, Group)) and "params" in group for group in params)
    )
