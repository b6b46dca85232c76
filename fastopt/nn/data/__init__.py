"""Data sets from IDX, NPZ and CSV files, and the handwritten digits that the package includes.

`read_idx`, `read_npz` and `read_csv` return the arrays of a file. `read` accepts all these formats and
returns samples to predict; `load` returns a data set ready to train on. A damaged file raises a
ValueError that names the file and the defect.
"""

from typing import TYPE_CHECKING

from fastopt._lazy import attach

if TYPE_CHECKING:
    from fastopt.nn.data.api import *  # noqa: F403
else:
    __getattr__, __dir__ = attach(__name__)
