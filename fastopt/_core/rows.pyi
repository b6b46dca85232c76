from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import disjoint_base

MAX_DEFERRED_STEPS: int
NO_ROWS: Rows

@disjoint_base
class Rows:
    @property
    def rows(self) -> NDArray[np.int64]: ...
    @property
    def grads(self) -> NDArray[np.floating[Any]]: ...
    def __init__(self, rows: ArrayLike, grads: NDArray[np.floating[Any]]) -> None: ...

@disjoint_base
class RowUpdater:
    def __new__(
        cls, param: NDArray[np.floating[Any]], path: str, row_sums: NDArray[np.floating[Any]] | None
    ) -> RowUpdater: ...
