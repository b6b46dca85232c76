"""Data sets from IDX, NPZ and CSV files, and the handwritten digits that come with the package.

`read_idx`, `read_npz` and `read_csv` return the arrays of a file. `read` accepts all these formats and
returns samples to predict; `load` returns a data set ready to train on. A damaged file raises a
ValueError that names the file and the defect.
"""

from fastopt.checkpoint import read_arrays
from fastopt.nn.data.dataset import Dataset, load, load_digits, read, train_test_split
from fastopt.nn.data.readers import read_csv, read_idx, read_idx_folder, read_idx_pair, read_npz

__all__ = [
    "Dataset", "load", "load_digits", "read", "read_arrays", "read_csv", "read_idx", "read_idx_folder",
    "read_idx_pair", "read_npz", "train_test_split",
]
