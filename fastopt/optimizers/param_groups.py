"""Parameter groups by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastopt._core.layout import same_memory
from fastopt._core.pytree import flatten, read_iterators

if TYPE_CHECKING:
    from fastopt._core.typing import Array, Params, TreeDef

    # A pattern is a str, a function of name and array, or a tuple of these; keys of a Mapping are invariant.
    Rules: TypeAlias = Mapping[Any, Mapping[str, Any]] | Iterable[tuple[Any, Mapping[str, Any]]]


class GroupedParams:
    """Parameters in groups that keep their nesting: the result of `param_groups`.

    Attributes
    ----------
    params
        The parameters as they were passed.
    groups : tuple of dict
        Hyperparameters of each group, and as ``"params"`` a dict of its arrays by name.
    group_of : tuple of int
        Index of the group of each array, in the order of the nesting.
    """

    def __init__(self, params: Params, groups: tuple[dict[str, Any], ...], group_of: tuple[int, ...]) -> None:
        self.params = params
        self.groups = groups
        self.group_of = group_of

    def check(self, arrays: list[Array]) -> None:
        """Raise unless `arrays`, in the order of the nesting, are those of the groups."""
        iterators = [iter(group["params"].values()) for group in self.groups]
        own = [next(iterators[i]) for i in self.group_of]
        if len(arrays) != len(own) or not all(map(same_memory, arrays, own)):
            raise ValueError("params: expected the arrays that param_groups received; call it again")

    def rebound(self, params: Params, arrays: list[Array]) -> GroupedParams:
        """Return the same groups of other parameters, whose arrays are given in the same order."""
        groups: tuple[dict[str, Any], ...] = tuple({**group, "params": {}} for group in self.groups)
        names = [iter(group["params"]) for group in self.groups]
        for i, array in zip(self.group_of, arrays, strict=False):
            groups[i]["params"][next(names[i])] = array
        return GroupedParams(params, groups, self.group_of)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.groups[index]

    def __repr__(self) -> str:
        lines = ["GroupedParams("]
        for group in self.groups:
            values = ", ".join(f"{name}={value!r}" for name, value in group.items() if name != "params")
            lines.append(f"    {', '.join(group['params'])}: {values or 'defaults'}")
        return "\n".join([*lines, ")"])


def param_groups(params: Params, rules: Rules) -> GroupedParams:
    """Divide parameters into groups by their names.

    The name of a parameter is its path in the nesting, joined by dots: ``{"fc": {"weight": W, "bias": b}}``
    has ``fc.weight`` and ``fc.bias``, and ``[[W, b], [V, c]]`` has ``0.0``, ``0.1``, ``1.0`` and ``1.1``.

    Parameters
    ----------
    params : ndarray or nesting of ndarrays
        The parameters, such as ``net.params``.
    rules : dict, or iterable of pairs
        Hyperparameters by pattern. A pattern is a name with the wildcards ``*``, ``?`` and ``[...]``, where
        ``*`` also matches dots; a function of the name and the array that returns a bool; or a tuple of
        patterns, one of which has to match. All patterns that match a parameter apply to it; if several set
        the same hyperparameter, the last one takes precedence.

    Returns
    -------
    GroupedParams
        Pass it to an optimizer in place of the parameters. There is one group for each set of patterns that
        apply together, in the order of the patterns; parameters that no pattern matches come first and have
        the defaults of the optimizer.

    Raises
    ------
    ValueError
        If a pattern matches no parameter, or two parameters have the same name.
    TypeError
        If a pattern or a result of a function has the wrong type.

    Notes
    -----
    The parameters keep their nesting: ``opt.step(grads)`` takes gradients in the nesting of `params`, not a
    list with one entry per group, and ``opt.params`` is `params`. `fastopt.Trainer` therefore needs no
    changes. If a group is added with `add_param_group`, the gradients are then a list whose first entry has
    the nesting of `params`.

    Examples
    --------
    >>> import numpy as np, fastopt
    >>> params = {"fc": {"weight": np.ones((3, 2)), "bias": np.zeros(2)}, "scale": np.ones(2)}
    >>> groups = fastopt.param_groups(params, {("*.bias", "scale"): {"weight_decay": 0.0}})
    >>> groups
    GroupedParams(
        fc.weight: defaults
        fc.bias, scale: weight_decay=0.0
    )
    >>> opt = fastopt.AdamW(groups, lr=0.1)
    >>> opt.step({"fc": {"weight": np.ones((3, 2)), "bias": np.ones(2)}, "scale": np.ones(2)})
    True

    No weight decay for vectors, which are the biases and the scales of normalization layers:

    >>> groups = fastopt.param_groups(params, {lambda name, array: array.ndim < 2: {"weight_decay": 0.0}})
    """
    params = read_iterators(params)
    treedef, arrays, _ = flatten(params)
    names = list(_names(treedef, ""))
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise ValueError(f"params: expected different names, got {count} parameters named {name!r}")
    pairs = _check_rules(rules)
    applied: list[tuple[int, ...]] = [()] * len(arrays)
    for i, (pattern, _) in enumerate(pairs):
        matches = [_matches(pattern, name, array) for name, array in zip(names, arrays, strict=True)]
        if not any(matches):
            raise ValueError(f"rules: {pattern!r} matches none of the parameters {', '.join(names)}")
        applied = [(*own, i) if is_match else own for own, is_match in zip(applied, matches, strict=True)]
    order = sorted(set(applied))
    groups: list[dict[str, Any]] = [{"params": {}} for _ in order]
    for group, own in zip(groups, order, strict=True):
        for i in own:
            group.update(pairs[i][1])
    group_of = tuple(order.index(own) for own in applied)
    for k, i in enumerate(group_of):
        groups[i]["params"][names[k]] = arrays[k]
    return GroupedParams(params, tuple(groups), group_of)


def _names(treedef: TreeDef, path: str) -> Iterator[str]:
    if isinstance(treedef, int):
        yield path
        return
    for key, inner in treedef.items() if isinstance(treedef, dict) else enumerate(treedef):
        yield from _names(inner, f"{path}.{key}" if path else f"{key}")


def _check_rules(rules: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Return the rules as pairs of a pattern and hyperparameters."""
    try:
        items = rules.items() if isinstance(rules, Mapping) else rules
        pairs = [(pattern, values) for pattern, values in items]
    except (TypeError, ValueError):
        raise TypeError(f"rules: expected a dict or pairs of a pattern and a dict, got {rules!r}") from None
    for pattern, values in pairs:
        _check_pattern(pattern)
        if not isinstance(values, Mapping):
            raise TypeError(f"rules[{pattern!r}]: expected a dict of hyperparameters, got {values!r}")
        if "params" in values:
            raise ValueError(f"rules[{pattern!r}]: expected hyperparameters, got 'params'")
    return [(pattern, dict(values)) for pattern, values in pairs]


def _check_pattern(pattern: Any) -> None:
    if isinstance(pattern, tuple):
        for each in pattern:
            _check_pattern(each)
    elif not (isinstance(pattern, str) or callable(pattern)):
        raise TypeError(
            f"rules: expected a name, a function of name and array, or a tuple of these, got {pattern!r}"
        )


def _matches(pattern: Any, name: str, array: Array) -> bool:
    if isinstance(pattern, tuple):
        return any(_matches(each, name, array) for each in pattern)
    if isinstance(pattern, str):
        return fnmatchcase(name, pattern)
    result = pattern(name, array)
    if not isinstance(result, (bool, np.bool_)):
        raise TypeError(f"rules: expected True or False from {pattern!r} for {name!r}, got {result!r}")
    return bool(result)
