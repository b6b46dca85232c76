"""Model files: a network together with the labels of its classes and the preprocessing of tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.typing import AnyArray
from fastopt.nn import MLP
from fastopt.nn.data import TablePreprocessor

if TYPE_CHECKING:
    from _typeshed import StrPath


class Model(MLP):
    """An MLP that is saved with the labels of its classes and the preprocessing of tables.

    Parameters
    ----------
    classes : ndarray or None
        Label of each class; None for a regression.
    table : TablePreprocessor, optional
        The preprocessing, if the training data is a table.
    **options
        Arguments of `fastopt.MLP`.
    """

    def __init__(
        self, *, classes: AnyArray | None, table: TablePreprocessor | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.classes, self.table = classes, table

    def _config(self) -> dict[str, Any]:
        classes, table = self.classes, self.table
        described = None if classes is None else {"dtype": classes.dtype.str, "labels": classes.tolist()}
        extra = {"classes": described, "table": None if table is None else table.state_dict()}
        return super()._config() | {"extra": extra}


def load_model(path: StrPath) -> tuple[MLP, AnyArray | None, TablePreprocessor | None]:
    """Return the network of a model file, its class labels and its preprocessing, or None without them."""
    net, extra = MLP._load(path)
    classes = table = None
    if extra is not None and extra["classes"] is not None:
        described = extra["classes"]
        classes = np.array(described["labels"], described["dtype"])
    if extra is not None and extra.get("table") is not None:
        try:
            table = TablePreprocessor.from_state(extra["table"])
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path}: the preprocessing of the table is not valid ({error})") from None
        if table.n_features != net.sizes[0]:
            raise ValueError(f"{path}: expected a preprocessing with {net.sizes[0]} features")
    expected = max(net.sizes[-1], 2)
    if classes is not None and classes.shape != (expected,):
        raise ValueError(f"{path}: expected {expected} classes, got {classes.shape}")
    return net, classes, table
