"""The declaration of an option for the step plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastopt.optimizers.rule import Rule


class Option:
    """An option that acts on the parameters after each update.

    Attributes
    ----------
    name : str
        Argument of the optimizer, and name of the buffer with a copy of each parameter.
    is_scheduled : bool
        Whether `scalar` may differ from step to step.
    """

    name: ClassVar[str]
    is_scheduled: bool = False

    def scalar(self, steps: int, count: int) -> float:
        """Scalar of the coming step.

        Parameters
        ----------
        steps : int
            Number of steps that the optimizer has taken.
        count : int
            Number of steps that the parameter has taken.
        """
        raise NotImplementedError


def check_options(rule: type[Rule], used: Iterable[str]) -> None:
    """Raise ValueError if the rule does not support an option that is used."""
    for name in used:
        if name in rule.REFUSED_OPTIONS:
            raise ValueError(f"{name}: not supported by this optimizer: {rule.REFUSED_OPTIONS[name]}")
