"""Tables on the command line: their options, and what is printed about their columns."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastopt.nn import data
from fastopt.nn.data import Dataset
from fastopt.nn.typing import Header

_OPTIONS = (
    "label", "sep", "decimal", "header", "no_header", "na_values", "thousands", "encoding", "ignore",
    "categorical", "no_standardize",
)
_WIDTH = 80
_MAX_NAMES = 10     # of columns on a line


def check_options(args: argparse.Namespace) -> None:
    """Raise if an option for tables is given for other data."""
    for name in _OPTIONS:
        if getattr(args, name, None) and not data.is_table(args.data):
            raise ValueError(f"--{name.replace('_', '-')}: expected a table as data, got {args.data}")


def make_layout(args: argparse.Namespace) -> data.TableFormat:
    """Return the layout of a table that the options describe."""
    header: Header = "auto" if args.header == args.no_header else args.header
    return data.TableFormat(
        args.sep, args.decimal, header, args.na_values or (), args.thousands, args.encoding
    )


def standardize_target(args: argparse.Namespace, dataset: Dataset) -> Dataset:
    """Standardize the values of a table's regression, except for ``poisson``, whose values are counts."""
    table = dataset.table
    if table is None or dataset.classes is not None or args.no_standardize or args.loss.name == "poisson":
        return dataset
    table.fit_target(dataset.y_train)
    return replace(
        dataset,
        y_train=table.scale_target(dataset.y_train),
        y_val=None if dataset.y_val is None else table.scale_target(dataset.y_val),
        y_test=table.scale_target(dataset.y_test),
    )


def describe(dataset: Dataset, table: data.TablePreprocessor) -> str:
    """Return lines about the label and the columns of a table."""
    numbers = [column.name for column in table.columns if column.categories is None]
    encoded = [f"{c.name} ({len(c.categories)})" for c in table.columns if c.categories is not None]
    missing = [column.name for column in table.columns if column.has_missing]
    left_out = [f"{name} ({reason})" for name, reason in table.left_out.items()]
    lines = {
        "Label": _describe_label(dataset, table), "Numbers": _shorten(numbers),
        "Categories": _shorten(encoded), "Missing values": _shorten(missing), "Left out": _shorten(left_out),
    }
    return "".join(
        textwrap.fill(f"{title}: {text}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False) + "\n"
        for title, text in lines.items() if text
    )


def _describe_label(dataset: Dataset, table: data.TablePreprocessor) -> str:
    name = table.label if table.named else f"column {table.label}"
    if dataset.classes is None:
        values = dataset.y_train * table.target_scale + table.target_mean
        return f"{name}, regression, values from {values.min():.4g} to {values.max():.4g}"
    parts = [y for y in (dataset.y_train, dataset.y_val, dataset.y_test) if y is not None]
    counts = np.bincount(np.concatenate(parts))
    largest = int(counts.argmax())
    share = 100.0 * counts[largest] / counts.sum()
    return (
        f"{name}, classification, {len(dataset.classes)} classes; the largest, "
        f"{dataset.classes[largest]}, has {share:.1f} % of the samples"
    )


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMES])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > _MAX_NAMES else shown
