from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LONGEST_GAP: int
NOTHING: Rows

class Rows:
    @property
    def rows(self) -> NDArray[np.int64]: ...
    @property
    def grads(self) -> NDArray[np.floating[Any]]: ...
    def __init__(self, rows: ArrayLike, grads: NDArray[np.floating[Any]]) -> None: ...
