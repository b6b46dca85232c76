"""The validation data of the estimators: its arguments, and a warning if it was not transformed."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.utils.sparsefuncs import mean_variance_axis

from fastopt.nn.typing import Samples, Validation

_MIN_SAMPLES = 10       # with fewer validation samples, their mean and standard deviation say little
_MAX_SHIFT = 1.0        # of the mean, in standard deviations of the training data
_MAX_RATIO = 4.0        # of the standard deviations


def combine_validation(
    validation_data: Validation | None, X_val: Samples | None, y_val: ArrayLike | None,
    sample_weight_val: ArrayLike | None,
) -> Validation | None:
    """Return the arguments `X_val`, `y_val` and `sample_weight_val` in the form of `validation_data`."""
    if X_val is None and y_val is None:
        if sample_weight_val is not None:
            raise ValueError("sample_weight_val: expected X_val and y_val with it, got neither")
        return validation_data
    if X_val is None or y_val is None:
        missing, given = ("X_val", "y_val") if X_val is None else ("y_val", "X_val")
        raise ValueError(f"{given}: expected {missing} with it, got None")
    if validation_data is not None:
        raise ValueError("validation_data: expected either validation_data or X_val and y_val, got both")
    return X_val, y_val, sample_weight_val


def warn_if_not_transformed(name: str, trained_on: Any, validated_on: Any) -> None:
    """Warn if most columns of the validation data differ from the training data in mean or scale.

    This happens inside a Pipeline or a TransformedTargetRegressor, which transforms the training data only.
    """
    if validated_on.shape[0] < _MIN_SAMPLES:
        return
    (mean, std), (other_mean, other_std) = map(_moments, (trained_on, validated_on))
    varies = (std > 0.0) & (other_std > 0.0)
    std, other_std = std[varies], other_std[varies]
    shifted = np.abs(other_mean - mean)[varies] > _MAX_SHIFT * std
    shifted |= np.maximum(std / other_std, other_std / std) > _MAX_RATIO
    if 2 * np.count_nonzero(shifted) <= len(shifted):
        return
    remedy = {
        "X": "make_pipeline(..., transform_input=['X_val']) transforms the argument X_val",
        "y": "TransformedTargetRegressor transforms y only; pass validation targets on the same scale",
    }[name]
    warnings.warn(
        f"validation data: the mean or the scale of {np.count_nonzero(shifted)} of {len(shifted)} columns of "
        f"{name} differs from that of the training data, as if it had not been transformed; {remedy}",
        stacklevel=5,
    )


def _moments(data: Any) -> tuple[Any, Any]:
    """Return mean and standard deviation of each column."""
    if issparse(data):
        mean, variance = mean_variance_axis(data, axis=0)
        return mean, np.sqrt(variance)
    columns = np.asarray(data).reshape(data.shape[0], -1)
    return columns.mean(axis=0, dtype=np.float64), columns.std(axis=0, dtype=np.float64)
