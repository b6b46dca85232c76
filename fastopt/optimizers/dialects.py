"""Dialects: what another library means by a rule's name, its formula and its numbers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from fastopt.optimizers.groups import check_hyperparameter

Init = TypeVar("Init", bound=Callable[..., None])


def dialects(init: Init) -> Init:
    """Make of a rule's ``__init__`` one that leaves to the dialect what is not given.

    The defaults of the signature are those of "torch"; `CONVENTIONS` of the class has, for every other
    dialect, what it begins with instead.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def speak(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind_partial(self, *args, **kwargs).arguments
        convention = check_hyperparameter("convention", given.get("convention", "torch"), type(self))
        numbers = type(self).CONVENTIONS[convention]
        init(self, *args, **kwargs, **{name: numbers[name] for name in numbers.keys() - given.keys()})

    return cast(Init, speak)
