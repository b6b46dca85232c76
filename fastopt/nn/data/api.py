"""The public names of :mod:`fastopt.nn.data`, which `__init__.py` imports when one of them is used."""

from fastopt.checkpoint import read_arrays
from fastopt.nn.data.dataset import Dataset, load, load_digits, read, train_test_split
from fastopt.nn.data.preprocessing import Column, TableData, TablePreprocessor
from fastopt.nn.data.readers import read_csv, read_idx, read_idx_folder, read_idx_pair, read_npz
from fastopt.nn.data.tables import TableFormat, TableReader, is_table

__all__ = [
    "Column", "Dataset", "TableData", "TableFormat", "TablePreprocessor", "TableReader", "is_table", "load",
    "load_digits", "read", "read_arrays", "read_csv", "read_idx", "read_idx_folder",
    "read_idx_pair", "read_npz", "train_test_split",
]
