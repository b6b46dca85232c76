from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from fastopt._core.typing import AnyArray, Array
from fastopt.nn._core.gemm import Blas

NORMS: dict[str | None, int]

@disjoint_base
class Source:
    @property
    def rows(self) -> int: ...
    def __init__(
        self, X: AnyArray, indices: NDArray[np.int64] | None = None, indptr: NDArray[np.int64] | None = None,
        y: AnyArray | None = None, weight: Array | None = None,
    ) -> None: ...
    def count_correct(self, weight: NDArray[np.float64] | None = None) -> None: ...
    @property
    def counted(self) -> tuple[float, float]: ...
    @counted.setter
    def counted(self, counts: tuple[float, float]) -> None: ...

@disjoint_base
class Pass:
    step: int
    def __new__(
        cls, kernels: object, blas: Blas, is_f64: bool, training: bool, layers: list[tuple[Any, ...]]
    ) -> Pass: ...
    def is_bound_to(self, params: list[list[Array]]) -> bool: ...
    def set_dropout_state(self, step: int, keys: list[int]) -> None: ...
    def train(
        self, source: Source, index: NDArray[np.int64] | None, begin: int, rows: int,
        criterion: tuple[int, float, float, float], l2: float, lease: int = 0,
    ) -> float | None: ...
    def outputs(
        self, source: Source, begin: int, rows: int, criterion: tuple[int, float, float, float] | None = None
    ) -> tuple[Array | None, float, float]: ...
