"""fastopt.nn.metrics."""

import numpy as np
import pytest

from fastopt.nn import metrics


@pytest.mark.parametrize(
    ("y_true", "y_pred", "expected"),
    [
        ([0, 1, 2, 2], [0, 1, 1, 2], 0.75),
        (["a", "b"], ["b", "b"], 0.5),
        ([[0, 1], [1, 1]], [[0, 1], [1, 0]], 0.5),
        ([[1], [0]], [[1], [0]], 1.0),
    ],
)
def test_accuracy(y_true, y_pred, expected):
    result = metrics.accuracy(y_true, y_pred)
    assert type(result) is float and result == expected


@pytest.mark.parametrize(
    ("y_true", "y_pred", "expected"),
    [
        ([1.0, 2, 3], [1.0, 2, 3], 1.0),
        ([1.0, 2, 3], [2.0, 2, 2], 0.0),
        ([1.0, 2, 3], [3.0, 2, 1], -3.0),
        ([2.0, 2], [2.0, 2], 1.0),
        ([2.0, 2], [2.0, 3], 0.0),
        ([[1.0, 1], [2, 2], [3, 3]], [[1.0, 2], [2, 2], [3, 2]], 0.5),
    ],
)
def test_r2_score(y_true, y_pred, expected):
    assert metrics.r2_score(y_true, y_pred) == pytest.approx(expected)


def test_confusion_matrix():
    result = metrics.confusion_matrix([0, 0, 1, 2, 2], [0, 1, 1, 2, 0])
    assert result.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert metrics.confusion_matrix([0], [1], n_classes=4).shape == (4, 4)
    small = metrics.confusion_matrix(np.array([250], np.uint8), np.array([3], np.uint8))
    assert small[250, 3] == 1 and small.sum() == 1


@pytest.mark.parametrize(
    ("y_true", "y_pred", "options", "message"),
    [
        ([0, 5], [0, 1], {"n_classes": 3}, "labels from 0 to 2"),
        ([0, -1], [0, 1], {}, "labels from 0"),
        ([0.0], [1.0], {}, "y_true: expected a vector of integers"),
        ([0], [1.0], {}, "y_pred: expected a vector of integers"),
    ],
)
def test_confusion_matrix_refuses(y_true, y_pred, options, message):
    with pytest.raises(ValueError, match=message):
        metrics.confusion_matrix(y_true, y_pred, **options)


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.r2_score, metrics.confusion_matrix])
@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        ([0, 1], [0], "y_pred: expected the shape of y_true"),
        ([0, 1], [[0], [1]], "y_pred: expected the shape of y_true"),
        ([], [], "y_true: expected at least one sample"),
    ],
)
def test_metrics_refuse_shapes(metric, y_true, y_pred, message):
    with pytest.raises(ValueError, match=message):
        metric(y_true, y_pred)
