from collections.abc import Callable

from typing_extensions import disjoint_base

from fastopt._core.pytree import Slots

@disjoint_base
class ContainerWatch:
    def __init__(self, slots: Slots, reread: Callable[[], Slots]) -> None: ...
    def check(self) -> None: ...
