from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from fastopt._core.typing import AnyArray, Array

KINDS: dict[np.dtype[Any], int]
NORMS: dict[str | None, int]

@disjoint_base
class Blas:
    @property
    def name(self) -> str: ...
    @property
    def direct(self) -> bool: ...
    def __init__(
        self, name: str, sgemm: int = 0, dgemm: int = 0, long_integers: bool = False, get_threads: int = 0,
        set_threads: int = 0, small: int = 0,
    ) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...

@disjoint_base
class Source:
    @property
    def rows(self) -> int: ...
    def __init__(
        self, X: AnyArray, indices: NDArray[np.int64] | None = None, indptr: NDArray[np.int64] | None = None,
        y: AnyArray | None = None, weight: Array | None = None,
    ) -> None: ...

@disjoint_base
class Pass:
    step: int
    def __new__(
        cls, kernels: object, blas: Blas, wide: bool, training: bool, layers: list[tuple[Any, ...]]
    ) -> Pass: ...
    def draw_as(self, step: int, keys: list[int]) -> None: ...
    def train(
        self, source: Source, index: NDArray[np.int64] | None, begin: int, rows: int,
        criterion: tuple[int, float, float, float], l2: float, lent: int = 0,
    ) -> float | None: ...
    def outputs(
        self, source: Source, begin: int, rows: int, criterion: tuple[int, float, float, float] | None = None
    ) -> tuple[Array | None, float, float]: ...
