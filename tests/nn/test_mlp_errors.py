"""fastopt.MLP: invalid arguments and data."""

import numpy as np
import pytest
from mlp_helpers import flat

from fastopt.nn import MLP


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sizes": [3]}, ValueError, "sizes: expected at least two"),
        ({"sizes": []}, ValueError, "sizes: expected at least two"),
        ({"sizes": [3, 0, 2]}, ValueError, r"sizes\[1\]: expected at least 1, got 0"),
        ({"sizes": [3, -1]}, ValueError, r"sizes\[1\]: expected at least 1, got -1"),
        ({"sizes": [3, 2.5]}, TypeError, r"sizes\[1\]: expected an integer, got 2.5"),
        ({"sizes": 3}, TypeError, "sequence of integers"),
        ({"activation": "cubic"}, ValueError, "activation: expected one of .*'cubic'"),
        ({"activation": None}, ValueError, "activation: expected one of"),
        ({"loss": "hinge"}, ValueError, "loss: expected one of"),
        ({"loss": "cross_entropy", "sizes": [3, 1]}, ValueError, "needs sizes"),
        ({"dtype": "float16"}, ValueError, "dtype: expected one of"),
        ({"dtype": "number"}, ValueError, "dtype: expected one of"),
        ({"dtype": None}, ValueError, "dtype: expected one of"),
        ({"init": "zeros"}, ValueError, "init: expected one of"),
        ({"l2": -1.0}, ValueError, "l2: expected a finite number in"),
        ({"l2": "1e-4x"}, TypeError, "l2: expected a number"),
        ({"activation": ["relu"]}, ValueError, "activation: expected one value, or 0"),
        ({"sizes": [3, 4, 2], "activation": ["relu"] * 2}, ValueError, "expected one value, or 1"),
        ({"dropout": 1.0}, ValueError, r"dropout: expected a finite number in \[0, 1\)"),
        ({"dropout": -0.1}, ValueError, "dropout: expected a finite number in"),
        ({"norm": "group"}, ValueError, "norm: expected one of None, batch, layer"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing: expected a finite number in"),
        ({"reduction": "none"}, ValueError, "reduction: expected one of"),
        ({"delta": 0.0}, ValueError, r"delta: expected a finite number in \(0, inf\)"),
        ({"quantile": 1.0}, ValueError, "quantile: expected a finite number in"),
        ({"l2": float("nan")}, ValueError, "l2: expected a finite number in"),
    ],
)
def test_constructor_refuses_invalid_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        MLP(**{"sizes": [3, 2], **arguments})


X_GOOD = np.ones((3, 2))
BAD_BATCHES = [
    ("cross_entropy", X_GOOD, [0, 1, 3], "labels from 0 to 2"),
    ("cross_entropy", X_GOOD, [0, -1, 1], "labels from 0 to 2"),
    ("cross_entropy", X_GOOD, [0.0, 1.0, 1.0], "integer or boolean labels"),
    ("cross_entropy", X_GOOD, [0.0, 1.0, 1.0], r"convert class labels with y\.astype\(int\)"),
    ("auto", X_GOOD, [0.0, 1.0, 1.0], r"float64 of shape \(3,\); .*convert class labels with y\.astype"),
    ("cross_entropy", X_GOOD, np.eye(3), r"convert one-hot targets with y\.argmax\(axis=1\)"),
    ("cross_entropy", X_GOOD, np.eye(3, dtype=int), r"convert one-hot targets with y\.argmax\(axis=1\)"),
    ("cross_entropy", X_GOOD, ["a", "b", "c"], "integer or boolean labels"),
    ("cross_entropy", X_GOOD, np.eye(3, dtype=int), "one label per sample"),
    ("cross_entropy", X_GOOD, [0, 1], "y: expected 3 targets, as many as X has samples"),
    ("cross_entropy", X_GOOD, 0, "y: expected 3 targets, as many as X has samples"),
    ("binary_cross_entropy", X_GOOD, np.full((3, 3), 2), "labels 0 and 1"),
    ("binary_cross_entropy", X_GOOD, -np.eye(3, dtype=int), "labels 0 and 1"),
    ("binary_cross_entropy", X_GOOD, np.eye(3), "integer or boolean labels"),
    ("binary_cross_entropy", X_GOOD, np.ones((3, 2), int), "shape"),
    ("binary_cross_entropy", X_GOOD, [0, 1, 1], "shape"),
    ("mse", X_GOOD, np.ones((3, 2)), "shape"),
    ("mse", X_GOOD, [0.0, 1.0, 2.0], "shape"),
    ("mse", X_GOOD, [[1, 2, np.nan]] * 3, "finite"),
    ("mse", X_GOOD, [["a"] * 3] * 3, "real numbers"),
    ("poisson", X_GOOD, -np.eye(3), "expected values of at least 0"),
    ("auto", X_GOOD, ["a", "b", "c"], "labels or real values"),
    ("auto", X_GOOD, [0, 1, 3], "labels from 0 to 2"),
    ("cross_entropy", np.ones((3, 4)), [0, 1, 2], r"shape \(n, 2\), got \(3, 4\)"),
    ("cross_entropy", np.ones(2), [0, 1], "shape"),
    ("cross_entropy", np.ones((3, 2, 1)), [0, 1, 2], "shape"),
    ("cross_entropy", np.ones((0, 2)), np.zeros(0, int), "at least one sample"),
    ("cross_entropy", np.ones((3, 2), complex), [0, 1, 2], "real numbers"),
    ("cross_entropy", [["a", "b"]] * 3, [0, 1, 2], "real numbers"),
    ("cross_entropy", [[1, 2], [np.nan, 1], [0, 0]], [0, 1, 2], "finite"),
    ("cross_entropy", [[1, 2], [1, np.inf], [0, 0]], [0, 1, 2], "finite"),
    ("cross_entropy", [[1, 2], [1, 2], [-np.inf, 0]], [0, 1, 2], "finite"),
]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("loss", "X", "y", "message"), BAD_BATCHES)
def test_invalid_batches_change_nothing(loss, X, y, message):
    net = MLP([2, 4, 3], activation="tanh", loss=loss, seed=0)
    good = {"binary_cross_entropy": np.eye(3, dtype=int), "mse": np.eye(3), "poisson": np.eye(3)}.get(
        loss, [0, 1, 2]
    )
    probe = MLP([2, 4, 3], activation="tanh", loss=loss, seed=0)
    probe.train_step(X_GOOD, good)
    if loss != "auto":
        net.train_step(X_GOOD, good)
    params = [p.copy() for p in flat(net.params)]
    grads = [g.copy() for g in flat(net._grads)]
    with pytest.raises(ValueError, match=message):
        net.train_step(X, y)
    with pytest.raises(ValueError, match=message):
        net.evaluate(X, y)
    assert net.loss == loss
    for actual, expected_array in zip(flat(net.params) + flat(net._grads), params + grads, strict=True):
        np.testing.assert_array_equal(actual, expected_array)
    value, after = net.train_step(X_GOOD, good)
    expected_value, expected = probe.train_step(X_GOOD, good)
    assert value == expected_value
    for g, e in zip(flat(after), flat(expected), strict=True):
        np.testing.assert_array_equal(g, e)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("method", ["predict", "predict_proba"])
@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ones((3, 4)), "shape"),
        (np.ones((0, 2)), "at least one sample"),
        ([[np.nan, 1]], "finite"),
        ([[np.inf, 1]], "finite"),
    ],
)
def test_predictions_refuse_invalid_input(method, X, message):
    net = MLP([2, 4, 3], loss="cross_entropy", seed=0)
    with pytest.raises(ValueError, match=message):
        getattr(net, method)(X)


def test_prediction_needs_a_resolved_loss():
    with pytest.raises(ValueError, match="there was none yet"):
        MLP([2, 3]).predict(np.ones((1, 2)))


def test_diverged_weights_are_not_reported_as_invalid_input():
    net = MLP([2, 3], loss="mse", seed=0)
    net.params[0][0][...] = np.nan
    value, _ = net.train_step(np.ones((1, 2)), np.ones((1, 3)))
    assert np.isnan(value)
