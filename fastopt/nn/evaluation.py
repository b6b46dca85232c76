"""Sample weights and class weights, and the evaluation of a model after an epoch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastopt._core.validation import check_float, check_X_y
from fastopt.nn.metrics import accuracy
from fastopt.nn.mlp import MLP

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastopt._core.typing import AnyArray
    from fastopt.nn.typing import ClassWeight, Logs, Net, Samples, Validation

    EvaluationData: TypeAlias = tuple[AnyArray, AnyArray, AnyArray | None]


_MAX_SPACING = 16    # of the samples on which the training accuracy of a custom model is estimated
_MIN_SUBSET = 256   # of these samples, unless there are fewer


def evaluate(net: Any, data_sets: Mapping[str, EvaluationData]) -> Logs:
    """Return the accuracy and the loss of a model on data sets, given by the prefix of their metrics.

    The loss of the training data, whose prefix is "", is not evaluated. Accuracies are omitted if
    predictions are values; losses, if the model has no `evaluate`.
    """
    logs: Logs = {}
    for prefix, (X, y, weights) in data_sets.items():
        if prefix and evaluates_as_mlp(net):
            loss, share = net.metrics_of(*net.evaluation_sums(X, y, weights))
            logs |= {} if share is None else {f"{prefix}accuracy": share}
            logs[f"{prefix}loss"] = loss
            continue
        if y.dtype.kind not in "fc":
            predicted = np.asarray(net.predict(X))
            if predicted.dtype.kind not in "fc" and predicted.size == y.size:
                logs[f"{prefix}accuracy"] = accuracy(y, predicted.reshape(y.shape), weights)
        if prefix and hasattr(net, "evaluate"):
            args = (X, y) if weights is None else (X, y, weights)
            logs[f"{prefix}loss"] = float(net.evaluate(*args))
    return logs


def evaluates_as_mlp(net: Any) -> bool:
    """Whether a model predicts and evaluates as MLP, so that one forward pass is enough for both."""
    return isinstance(net, MLP) and type(net).predict is MLP.predict and type(net).evaluate is MLP.evaluate


def subset(X: AnyArray, y: AnyArray, weights: AnyArray | None) -> EvaluationData:
    """Return evenly spaced samples on which the accuracy of the training data is estimated.

    If a prediction costs a third of a training step, predicting a sixteenth of the samples takes 2 % of an
    epoch. Small data sets are used completely.
    """
    spacing = max(1, min(_MAX_SPACING, len(y) // _MIN_SUBSET))
    if weights is None:
        return X[::spacing], y[::spacing], None
    if not weights[::spacing].any():
        spacing = 1
    return X[::spacing], y[::spacing], weights[::spacing]


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


def split_validation(
    X: Samples, y: ArrayLike, sample_weight: ArrayLike | None, fraction: float
) -> tuple[AnyArray, AnyArray, AnyArray | None, Validation]:
    """Return the training data without the last samples, and these as validation data; see `Trainer.fit`."""
    fraction = check_float("validation_split", fraction, 0.0, 1.0)
    X, y = check_X_y("X", X, "y", y)
    n = len(y) - int(len(y) * fraction)
    if not 0 < n < len(y):
        raise ValueError(f"validation_split: {fraction!r} of {len(y)} samples leaves one part empty")
    if sample_weight is None:
        return X[:n], y[:n], None, (X[n:], y[n:])
    weights = check_sample_weight("sample_weight", sample_weight, len(y))
    return X[:n], y[:n], weights[:n], (X[n:], y[n:], weights[n:])


def combined_weights(
    y: AnyArray, sample_weight: ArrayLike | None = None, class_weight: ClassWeight | None = None
) -> NDArray[np.float64] | None:
    """Return the product of sample weights and class weights (see `Trainer.fit`), or None without any."""
    weights = None
    if sample_weight is not None:
        weights = check_sample_weight("sample_weight", sample_weight, len(y))
    if class_weight is not None:
        class_weights = _expand_class_weight(y, class_weight)
        weights = class_weights if weights is None else weights * class_weights
        if not weights.any():
            raise ValueError("class_weight: expected a positive weight for some sample, got only zeros")
    return weights


def check_sample_weight(name: str, weights: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return `weights` as float64 of shape ``(n,)``, or raise if one is negative or all are zero."""
    weights = _check_weights(name, weights)
    if weights.shape != (n,):
        raise ValueError(f"{name}: expected one weight per sample, shape ({n},), got {weights.shape}")
    if not weights.any():
        raise ValueError(f"{name}: expected at least one positive weight, got only zeros")
    return weights


def _expand_class_weight(y: AnyArray, class_weight: ClassWeight) -> NDArray[np.float64]:
    """Return the class weight of every sample."""
    if y.dtype.kind == "f" or y.ndim > 2 or (y.ndim == 2 and y.shape[1] != 1):
        raise ValueError(
            f"class_weight: expected y to hold one label per sample, got {y.dtype} of shape {y.shape}"
        )
    classes, index, counts = np.unique(y.ravel(), return_inverse=True, return_counts=True)
    if isinstance(class_weight, str) and class_weight == "balanced":
        return (len(y) / (len(classes) * counts))[index]
    if not isinstance(class_weight, Mapping):
        raise TypeError(f"class_weight: expected a dict or 'balanced', got {class_weight!r}")
    labels = classes.tolist()
    missing = [label for label in labels if label not in class_weight]
    unknown = [label for label in class_weight if label not in labels]
    if missing and unknown:
        raise ValueError(
            f"class_weight: the labels {missing} of y have no weight, and {unknown} are not labels of y"
        )
    return _check_weights("class_weight", [class_weight.get(label, 1.0) for label in labels])[index]


def _check_weights(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return `values` as float64, or raise if one of them is not a finite number of at least 0."""
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected real numbers, got {values.dtype}")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"{name}: expected finite numbers of at least 0")
    return values.astype(np.float64)


def check_accepts_weights(net: Net, weights: AnyArray | None, validation: EvaluationData | None) -> None:
    """Raise if there are weights but the model's methods do not accept them."""
    required = []
    if weights is not None:
        required.append(("sample_weight and class_weight", "train_step"))
    if validation is not None and validation[2] is not None and hasattr(net, "evaluate"):
        required.append(("validation_data[2]", "evaluate"))
    for argument, method in required:
        try:
            signature = inspect.signature(getattr(net, method))
        except ValueError:  # compiled methods may have no signature
            continue
        try:
            signature.bind(None, None, None)
        except TypeError:
            raise TypeError(
                f"{argument}: expected a model with {method}(X, y, sample_weight), "
                f"got {type(net).__name__}.{method}{signature}"
            ) from None
