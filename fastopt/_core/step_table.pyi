from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import disjoint_base

from fastopt._core.containers import ContainerWatch
from fastopt._core.dispatch import Kernels
from fastopt._core.encoded import Encoded
from fastopt._core.tensors import TensorWatch
from fastopt._core.typing import AnyArray, Array, Gradients, Partition, TreeDef

NEW_STATE: int
NEW_COPIES: int
SUM_BLOCK: int

class Entry(NamedTuple):
    param: Array
    state: Sequence[Array | Encoded]
    slow: Array | None = None
    average: Array | None = None
    sparse: str = ""
    row_sums: Array | None = None
    to_nearest: bool = False
    seed: int = 0
    block_size: int = 256
    low: AnyArray | None = None
    origin: int = 0
    position: int = 0

@disjoint_base
class StepCounter:
    steps: int
    skipped_steps: int
    grad_norm: float | None
    stale: bool
    stale_hyperparams: bool
    stale_counts: bool
    @property
    def exchanged(self) -> bool: ...
    def __init__(self, steps: int = 0, skipped_steps: int = 0, grad_norm: float | None = None) -> None: ...
    def mark(self) -> None: ...

@disjoint_base
class Exchange:
    def __init__(self, counter: StepCounter, name: str, arrays: list[Array], others: list[Array]) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...

@disjoint_base
class Table:
    watch: ContainerWatch | None
    partition: Partition | None
    def __new__(
        cls, kernels: Kernels, treedef: TreeDef, paths: list[str], entries: list[Entry], counter: StepCounter,
        counts: NDArray[np.int64], flags: NDArray[np.uint8],
        step_scalars: Callable[[Any, int], dict[str, float]], written: Sequence[Array] = (),
        pending: StepCounter | None = None,
    ) -> Table: ...
    def set_team(self, run: int, max_threads: int, thread_index: int) -> None: ...
    def set_scalar_groups(self, group_of: list[int], kernel_names: list[str], hps: list[Any]) -> None: ...
    def set_constants(self, k: int, constants: dict[str, float]) -> None: ...
    def set_decay(
        self, k: int, maximize: bool, l2_decay: float, decay_factor: float, decays_copy: bool
    ) -> None: ...
    def set_option(self, k: int, name: str, scalar: float) -> None: ...
    def set_idle_decay(self, k: int, steps_f32: int, steps_f64: int, factors: tuple[float, ...]) -> None: ...
    def step(self, grads: Gradients | TensorWatch) -> bool: ...
    def full_step(
        self, grads: Gradients | TensorWatch, scale: float, clip: float, max_norm: float, zero_grad: bool,
        need_norm: bool, skip_nonfinite: bool, prepass: Callable[[], object] | None = None,
        second_scalars: Callable[[list[tuple[float, float]]], object] | None = None,
    ) -> bool: ...
    def leased_step(self, grads: Gradients, call: Callable[..., Any], args: tuple[Any, ...]) -> Any: ...
    def is_absent(self, k: int) -> bool: ...
    def stage_state(self, target: Array, value: Array) -> None: ...
    def unit_sums(self, k: int, units: int) -> NDArray[np.float64]: ...
    def set_units(self, k: int, scale: Array, shift: Array) -> None: ...
    def transformed_grad(self, k: int) -> Array: ...
    def replace_grad(self, k: int, grad: Array) -> None: ...
    def catch_up(self, k: int = -1, rows: ArrayLike | None = None) -> None: ...
    def drop_deferred(self) -> None: ...
