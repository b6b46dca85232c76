"""The public names of :mod:`fastopt.nn.data`, which `__init__.py` imports when one of them is used."""

from fastopt.checkpoint import read_arrays
from fastopt.nn.data.dataset import Dataset, load, load_digits, read, train_test_split
from fastopt.nn.data.readers import read_csv, read_idx, read_idx_folder, read_idx_pair, read_npz

__all__ = [
    "Dataset", "load", "load_digits", "read", "read_arrays", "read_csv", "read_idx", "read_idx_folder",
    "read_idx_pair", "read_npz", "train_test_split",
]
