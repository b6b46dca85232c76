"""Evaluation of a model after an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastopt._core.validation import check_X_y
from fastopt.nn.metrics import accuracy
from fastopt.nn.weighting import check_sample_weight

if TYPE_CHECKING:
    from fastopt._core.typing import AnyArray
    from fastopt.nn.typing import Logs, Validation

    EvaluationData: TypeAlias = tuple[AnyArray, AnyArray, AnyArray | None]

__all__ = ["check_validation_data", "evaluate"]


def evaluate(net: Any, data_sets: Mapping[str, EvaluationData]) -> Logs:
    """Return the accuracy and the loss of a model on data sets.

    Parameters
    ----------
    net : object
        The model.
    data_sets : dict of (X, y, sample_weight or None)
        By the prefix of the metrics' names; that of the training data, whose loss is not evaluated, is "".

    Returns
    -------
    dict of float
        Accuracies are omitted if predictions are values; losses, if the model has no `evaluate`.
    """
    logs: Logs = {}
    for prefix, (X, y, weights) in data_sets.items():
        value = _accuracy(net, X, y, weights)
        if value is not None:
            logs[f"{prefix}accuracy"] = value
        if prefix and hasattr(net, "evaluate"):
            args = (X, y) if weights is None else (X, y, weights)
            logs[f"{prefix}loss"] = float(net.evaluate(*args))
    return logs


def _accuracy(net: Any, X: AnyArray, y: AnyArray, weights: AnyArray | None) -> float | None:
    if y.dtype.kind in "fc":
        return None
    predicted = np.asarray(net.predict(X))
    if predicted.dtype.kind in "fc" or predicted.size != y.size:
        return None
    return accuracy(y, predicted.reshape(y.shape), weights)


def check_validation_data(data: Validation | None, X: AnyArray) -> EvaluationData | None:
    """Return the argument `validation_data` as ``(X, y, sample_weight or None)``, or None."""
    if data is None:
        return None
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise ValueError(
            "validation_data: expected a pair (X, y) or a triple (X, y, sample_weight), "
            f"got {type(data).__name__}"
        )
    X_val, y_val = check_X_y("validation_data[0]", data[0], "validation_data[1]", data[1])
    if X_val.shape[1:] != X.shape[1:]:
        raise ValueError(
            f"validation_data[0]: expected samples of the shape {X.shape[1:]}, got {X_val.shape[1:]}"
        )
    if len(data) == 2 or data[2] is None:
        return X_val, y_val, None
    return X_val, y_val, check_sample_weight("validation_data[2]", data[2], len(y_val))
