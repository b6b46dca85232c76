from collections.abc import Sequence
from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class KernelCall:
    def __new__(
        cls, kernel: str, constants: dict[str, float], maximize: bool, l2_decay: float, decay_factor: float,
        decays_copy: bool,
    ) -> KernelCall: ...
    def update_array(
        self, scalars: dict[str, float], param: Any, grad: Any, states: tuple[Any, ...]
    ) -> bool: ...
    def update_layers(
        self, scalars: dict[str, float], params: Sequence[Any], grads: Sequence[Any],
        states: tuple[Sequence[Any], ...], is_reversed: bool,
    ) -> bool: ...

def contains_objects(x: dict[str, Any], y: dict[str, Any]) -> bool: ...
