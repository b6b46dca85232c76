"""EarlyStopping: sequences worked out by hand from Keras's documentation."""

import math

import numpy as np
import pytest
from callback_helpers import X, Y, make_trainer, run, small_digits

import fastopt
from fastopt.callbacks import EarlyStopping, LambdaCallback, ReduceLROnPlateau
from fastopt.nn import MLP, Trainer


@pytest.mark.parametrize(
    ("values", "options", "stopped", "best"),
    [
        ([3, 2, 2.5, 1], {}, 2, 1),
        ([3, 2, 2.5, 1], {"patience": 1}, 2, 1),
        ([3, 2, 2.5, 2.4, 1], {"patience": 2}, 3, 1),
        ([3, 2, 2.5, 1.9, 2, 2, 0], {"patience": 2}, 5, 3),
        ([3, 2, 2, 2], {"patience": 2}, 3, 1),
        ([3, 2, 1], {"patience": 1}, None, 2),
        ([3, 2.6, 2.4, 2.2, 2.0, 0], {"patience": 2, "min_delta": 0.5}, 4, 2),
        ([3, 2.6, 2.4, 2.2, 2.0, 0], {"patience": 2, "min_delta": -0.5}, 4, 2),
        ([1, 2, 3, 3, 3, 9], {"patience": 2, "mode": "max"}, 4, 2),
        ([1, 1.4, 1.6, 2.0, 1.9, 9], {"patience": 2, "mode": "max", "min_delta": 0.5}, 4, 2),
        # Without an epoch better than the baseline, patience runs out unless the metric improves.
        ([0.9, 0.8, 0.7, 0.71, 0.72, 0.73], {"patience": 5, "baseline": 0.5}, 4, 2),
        ([0.9, 0.8, 0.7, 0.6, 0.61], {"patience": 2, "baseline": 0.5}, 4, 3),
        ([0.9, 0.4, 0.45, 0.45, 0.45], {"patience": 2, "baseline": 0.5}, 3, 1),
        ([1, 9, 8, 7, 7, 7, 7], {"patience": 2, "start_from_epoch": 1}, 5, 3),
        ([1, 2, 3, 4], {"patience": 0, "start_from_epoch": 2}, 3, 2),
        ([math.nan, 3, 2, math.nan, math.nan, 1], {"patience": 2}, 4, 2),
    ],
)
@pytest.mark.parametrize("restore", [False, True])
def test_early_stopping(values, options, stopped, best, restore):
    stop = EarlyStopping(restore_best_weights=restore, **options)
    trainer = make_trainer(values, stop)
    history = run(trainer)
    assert stop.stopped_epoch == stopped
    assert history.stopped_by == (None if stopped is None else "EarlyStopping")
    assert len(history.epoch) == (len(values) if stopped is None else stopped + 1)
    assert (stop.best_epoch, stop.best) == (best, values[best])
    # After epoch e the weight is e + 1.
    assert trainer.net.weight == (best + 1 if restore else len(history.epoch))


def test_patience_in_the_example_of_keras():
    losses = [10.0, 9.0, 8.0, 9.0, 8.9, 8.8, 8.7, 8.6, 8.5]
    for patience in range(4):
        stop = EarlyStopping(patience=patience)
        run(make_trainer(losses, stop))
        assert stop.stopped_epoch == max(patience, 1) + 2


def test_best_weights_are_restored_without_improvement_and_after_other_stops():
    trainer = make_trainer([math.nan] * 3, EarlyStopping(patience=9, restore_best_weights=True))
    run(trainer)
    assert trainer.net.weight == 1

    def stop(epoch, logs):
        trainer.stop_training = epoch == 2

    trainer = make_trainer([2, 1, 3, 0], EarlyStopping(patience=9, restore_best_weights=True))
    trainer.callbacks.append(LambdaCallback(on_epoch_end=stop))
    assert run(trainer).stopped_by == "LambdaCallback"
    assert trainer.net.weight == 2


def test_a_further_fit_continues_with_the_remaining_patience():
    stop = EarlyStopping(patience=2)
    trainer = make_trainer([1, 2, 3, 4], stop)
    for epochs in ([0], [0, 1], [0, 1, 2]):
        assert run(trainer, 1).epoch == epochs
    assert stop.stopped_epoch == 2


def test_a_further_fit_after_the_stop_has_the_full_patience():
    stop = EarlyStopping(patience=2)
    trainer = make_trainer([1, 2, 3, 4, 5, 6], stop)
    assert run(trainer).epoch == [0, 1, 2]
    assert run(trainer).epoch == [0, 1, 2, 3, 4]
    assert stop.best == 1


def test_another_trainer_resets_the_state():
    stop = EarlyStopping(patience=1, restore_best_weights=True)
    run(make_trainer([1, 2], stop))
    trainer = make_trainer([5, 4, 6], stop)
    assert run(trainer).epoch == [0, 1, 2]
    assert stop.best == 4 and trainer.net.weight == 2


def test_running_statistics_are_restored():
    X, y, test = small_digits()
    net = MLP([64, 16, 10], norm="batch", seed=0)
    stop = EarlyStopping(patience=99, restore_best_weights=True)
    states = {}

    def store(epoch, logs):
        states[logs["val_loss"]] = net.state_dict()

    trainer = Trainer(net, fastopt.Adam(net.params, lr=0.3), [stop, LambdaCallback(on_epoch_end=store)])
    history = trainer.fit(X, y, epochs=6, validation_data=test, verbose=0, seed=0)
    assert min(history.history["val_loss"]) != history.history["val_loss"][-1]
    assert net.evaluate(*test) == min(history.history["val_loss"])
    best = states[min(states)]
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, best[name])


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("loss", "min"), ("val_loss", "min"), ("accuracy", "max"), ("val_accuracy", "max")],
)
@pytest.mark.parametrize("callback_type", [EarlyStopping, ReduceLROnPlateau])
def test_mode_is_inferred_from_the_metric(callback_type, monitor, mode):
    assert callback_type(monitor).mode == mode
    assert callback_type(monitor, mode="min" if mode == "max" else "max").mode != mode


@pytest.mark.parametrize("callback_type", [EarlyStopping, ReduceLROnPlateau])
def test_missing_metric_raises(callback_type):
    with pytest.raises(ValueError) as error:
        make_trainer([1.0], callback_type()).fit(X, Y, verbose=0)
    assert str(error.value) == (
        f"monitor: {callback_type.__name__} finds no 'val_loss', expected one of loss, lr, seconds; "
        "Trainer.fit needs validation_data for it"
    )
    with pytest.raises(ValueError, match=r"finds no 'f1', expected one of loss, lr, seconds, val_loss$"):
        run(make_trainer([1.0], callback_type("f1", mode="max")))


def test_messages_of_early_stopping(capsys):
    stop = EarlyStopping(patience=1, restore_best_weights=True, verbose=1)
    make_trainer([2, 1, 3], stop).fit(X, Y, 4, 5, (X, Y), verbose=1)
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "Epoch 3: early stopping",
        "Restored the weights of the best epoch: 2",
        "Stopped after 3 epochs by EarlyStopping.",
    ]
    run(make_trainer([2, 1, 3], EarlyStopping(patience=1, restore_best_weights=True)))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "low"}, ValueError, "mode: expected one of auto, min, max, got 'low'"),
        ({"monitor": "f1"}, ValueError, "mode: cannot infer whether to minimize or maximize 'f1'"),
        ({"patience": -1}, ValueError, "patience: expected at least 0, got -1"),
        ({"patience": 1.5}, TypeError, "patience: expected an integer, got 1.5"),
        ({"min_delta": "1"}, TypeError, "min_delta: expected a number, got '1'"),
        ({"min_delta": math.nan}, ValueError, "min_delta: expected a finite number, got nan"),
        ({"baseline": True}, TypeError, "baseline: expected a number, got True"),
        ({"start_from_epoch": -1}, ValueError, "start_from_epoch: expected at least 0"),
    ],
)
def test_early_stopping_refuses_invalid_arguments(options, error, message):
    with pytest.raises(error, match=message):
        EarlyStopping(**options)


def test_parameters_added_between_two_fits_start_the_monitoring_anew():
    """The best weights of the first fit lack the new array and could not be restored."""
    trainer = make_trainer([1.0, 2.0, 3.0, 2.5], EarlyStopping(restore_best_weights=True, patience=5))
    trainer.opt.step = lambda grads: None
    run(trainer, 2)
    stop = trainer.callbacks[0]
    assert stop.best == 1.0 and stop.best_epoch == 0
    trainer.net.params.append([np.zeros(2)])
    run(trainer, 2)
    assert stop.best == 2.5 and stop.best_epoch == 3
    assert stop.best_weights.keys() == {"params[0][0]", "params[2][0]"}
