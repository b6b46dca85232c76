"""fastopt.Trainer: invalid arguments."""

import copy
import math
import pickle

import numpy as np
import pytest
from trainer_helpers import Recorder, RecordingNet, rows

import fastopt
from fastopt.nn import MLP, Trainer

X3, Y3 = rows(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"y": Y3[:2]}, ValueError, "y: expected 3 labels, as many as X has samples, got 2"),
        ({"X": X3[:0], "y": Y3[:0]}, ValueError, "X: expected at least one sample, got none"),
        ({"X": 1.0}, ValueError, "X: expected one entry a sample"),
        ({"y": 1}, ValueError, "y: expected one entry a sample"),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
        ({"batch_size": -4}, ValueError, "batch_size: expected at least 1, got -4"),
        ({"batch_size": 2.0}, TypeError, "batch_size: expected an integer, got 2.0"),
        ({"batch_size": True}, TypeError, "batch_size: expected an integer, got True"),
        ({"epochs": -1}, ValueError, "epochs: expected at least 0, got -1"),
        ({"epochs": 1.5}, TypeError, "epochs: expected an integer, got 1.5"),
        ({"validation_data": X3}, ValueError, "validation_data: expected a pair"),
        ({"validation_data": (X3,)}, ValueError, "validation_data: expected a pair"),
        ({"validation_data": (X3, Y3, Y3, Y3)}, ValueError, "validation_data: expected a pair"),
        ({"validation_data": (X3, Y3, Y3[:2])}, ValueError, r"validation_data\[2\]: expected one"),
        ({"validation_data": (X3, Y3, [0, 0, 0])}, ValueError, r"validation_data\[2\]: expected at"),
        ({"validation_data": (X3, Y3[:2])}, ValueError, r"validation_data\[1\]: expected 3 labels"),
        ({"validation_data": (X3[:0], Y3[:0])}, ValueError, r"validation_data\[0\]: expected at least"),
        ({"validation_data": (X3[:, :1], Y3)}, ValueError, r"samples of the shape \(2,\), got \(1,\)"),
        ({"max_time": 0}, ValueError, r"max_time: expected a finite number in \(0, inf\), got 0"),
        ({"max_time": -1.0}, ValueError, r"max_time: expected a finite number in \(0, inf\), got -1.0"),
        ({"max_time": math.nan}, ValueError, r"max_time: expected a finite number in \(0, inf\), got nan"),
        ({"max_time": math.inf}, ValueError, r"max_time: expected a finite number in \(0, inf\), got inf"),
        ({"max_time": "1"}, TypeError, "max_time: expected a number, got '1'"),
        ({"sample_weight": [1, 1]}, ValueError, r"sample_weight: .* shape \(3,\), got \(2,\)"),
        ({"sample_weight": [[1], [1], [1]]}, ValueError, r"sample_weight: .* got \(3, 1\)"),
        ({"sample_weight": [1, -1, 1]}, ValueError, "sample_weight: expected finite numbers of at"),
        ({"sample_weight": [1, math.nan, 1]}, ValueError, "sample_weight: expected finite numbers"),
        ({"sample_weight": [0, 0, 0]}, ValueError, "sample_weight: expected at least one positive"),
        ({"sample_weight": list("abc")}, TypeError, "sample_weight: expected real numbers, got <U1"),
        ({"sample_weight": [1, 1, 1]}, TypeError, "a model with train_step.X, y, sample_weight., got"),
        ({"class_weight": "even"}, TypeError, "class_weight: expected a dict or 'balanced', got 'even'"),
        ({"class_weight": [1, 2, 3]}, TypeError, "class_weight: expected a dict or 'balanced'"),
        ({"class_weight": {0: -1}}, ValueError, "class_weight: expected finite numbers of at least 0"),
        ({"class_weight": {0: "1"}}, TypeError, "class_weight: expected real numbers"),
        ({"class_weight": {0: 0, 1: 0, 2: 0}}, ValueError, "class_weight: expected a positive weight"),
        ({"class_weight": {"0": 2.0}}, ValueError, r"labels \[0, 1, 2\] of y have no weight, and \['0'\]"),
        ({"class_weight": "balanced", "y": [0.5, 1, 2]}, ValueError, "one label per sample, got float64"),
        ({"class_weight": {0: 1}, "y": np.eye(3, dtype=int)}, ValueError, r"got int64 of shape \(3, 3\)"),
    ],
)
def test_fit_refuses_invalid_arguments_before_training(arguments, error, message):
    net = RecordingNet()
    recorder = Recorder()
    trainer = Trainer(net, fastopt.SGD(net.params), [recorder])
    with pytest.raises(error, match=message):
        trainer.fit(**{"X": X3, "y": Y3, "verbose": 0, **arguments})
    assert not net.batches and not recorder.events and not trainer.history.epoch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": object()}, "net: expected an object with 'params', got object"),
        ({"opt": object()}, "opt: expected an object with 'step', got object"),
        ({"callbacks": [print]}, "callbacks: expected Callback objects"),
        ({"max_norm": "1"}, "max_norm: expected a number, got '1'"),
        ({"clip_value": True}, "clip_value: expected a number, got True"),
    ],
)
def test_constructor_refuses_invalid_arguments(change, message):
    net = RecordingNet()
    with pytest.raises(TypeError, match=message):
        Trainer(**{"net": net, "opt": fastopt.SGD(net.params), **change})


@pytest.mark.parametrize("change", [{"max_norm": -1.0}, {"clip_value": math.nan}])
def test_constructor_refuses_values_out_of_range(change):
    net = RecordingNet()
    with pytest.raises(ValueError, match=f"{next(iter(change))}: expected a finite number in"):
        Trainer(net, fastopt.SGD(net.params), **change)


def other_net():
    return MLP([3, 4, 2], seed=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda net: fastopt.Adam(other_net().params),
        lambda net: fastopt.Adam(copy.deepcopy(net).params),
        lambda net: copy.deepcopy(fastopt.Adam(net.params)),
        lambda net: pickle.loads(pickle.dumps(fastopt.Adam(net.params))),
        lambda net: fastopt.Adam([net.params[0], other_net().params[1]]),
        lambda net: fastopt.Adam([{"params": net.params[0]}, {"params": other_net().params[1]}]),
        lambda net: fastopt.Adam(fastopt.param_groups(other_net().params, {"*": {}})),
    ],
    ids=["other", "copy of net", "copy of opt", "pickle", "one layer", "one group", "selected groups"],
)
def test_optimizer_of_another_model_is_refused(make):
    net = other_net()
    with pytest.raises(ValueError, match=r"opt: expected an optimizer of net\.params, got one that updates"):
        Trainer(net, make(net))


@pytest.mark.parametrize(
    "make",
    [
        lambda net: (net, fastopt.Adam(net.params)),
        lambda net: (net, fastopt.Adam([{"params": layer} for layer in net.params])),
        lambda net: (net, fastopt.Adam(fastopt.param_groups(net.params, {"*1": {"lr": 1.0}}))),
        lambda net: (net, fastopt.Adam([[array[...] for array in layer] for layer in net.params])),
        lambda net: copy.deepcopy((net, fastopt.Adam(net.params))),
        lambda net: pickle.loads(pickle.dumps((net, fastopt.Adam(net.params)))),
    ],
    ids=["params", "groups", "selected groups", "views", "copy", "pickle"],
)
def test_optimizer_of_the_model_is_accepted(make):
    net, opt = make(other_net())
    before = net.state_dict()
    Trainer(net, opt).fit(np.ones((4, 3)), np.array([0, 1, 0, 0]), verbose=0)
    assert all((array != before[name]).any() for name, array in net.state_dict().items() if array.ndim == 2)


def test_validation_weights_need_a_model_that_accepts_them():
    class Net(RecordingNet):
        def evaluate(self, X, y):
            return 0.0

    net = Net()
    message = r"validation_data\[2\]: expected a model with evaluate\(X, y, sample_weight\)"
    with pytest.raises(TypeError, match=message):
        Trainer(net, fastopt.SGD(net.params)).fit(X3, Y3, validation_data=(X3, Y3, [1, 1, 1]))
    assert not net.batches
