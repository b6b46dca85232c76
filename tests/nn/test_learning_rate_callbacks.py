"""ReduceLROnPlateau and LearningRateScheduler: sequences from Keras's documentation."""

import functools
import math

import numpy as np
import pytest
from callback_helpers import CountingNet, X, Y, make_trainer, run
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt
from fastopt import schedules
from fastopt.callbacks import LambdaCallback, LearningRateScheduler, ReduceLROnPlateau
from fastopt.nn import Trainer

# --- ReduceLROnPlateau -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "rates"),
    [
        # The learning rate of each epoch; a reduction takes effect in the next epoch.
        ([1, 1, 1, 1], {"patience": 1}, [1, 1, 0.5, 0.25]),
        ([1, 1, 1, 1], {"patience": 0}, [1, 1, 0.5, 0.25]),
        ([1, 1, 1, 1, 1, 1], {"patience": 2}, [1, 1, 1, 0.5, 0.5, 0.25]),
        ([1, 1, 0.5, 1, 1, 1], {"patience": 2}, [1, 1, 1, 1, 1, 0.5]),
        ([1, 1, 1, 1, 1, 1], {"patience": 1, "cooldown": 1}, [1, 1, 0.5, 0.25, 0.125, 0.0625]),
        ([1, 1, 1, 1, 1, 1], {"patience": 1, "cooldown": 2}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ([1, 1, 1, 1, 1, 1], {"patience": 2, "cooldown": 2}, [1, 1, 1, 0.5, 0.5, 0.5]),
        ([1, 0.95, 0.9, 0.85], {"patience": 2, "min_delta": 0.2}, [1, 1, 1, 0.5]),
        ([1, 0.95, 0.9, 0.85], {"patience": 2, "min_delta": 0.01}, [1, 1, 1, 1]),
        ([1, 1, 1, 1], {"patience": 1, "min_lr": 0.3}, [1, 1, 0.5, 0.3]),
        ([1, 2, 3, 4], {"patience": 1, "mode": "max"}, [1, 1, 1, 1]),
        ([math.nan] * 4, {"patience": 1}, [1, 0.5, 0.25, 0.125]),
    ],
)
def test_reduce_on_plateau(values, options, rates):
    trainer = make_trainer(values, ReduceLROnPlateau(factor=0.5, **options))
    assert run(trainer).history["lr"] == rates


def keras_rates(values, patience, cooldown, min_delta, factor, min_lr):
    """Return the learning rate after each epoch as documented by Keras, for mode="min"."""
    best, waited, cooling, lr, rates = math.inf, 0, 0, 1.0, []
    for value in values:
        cooling = max(cooling - 1, 0)
        better = value < best - min_delta
        best = value if better else best
        waited = 0 if better or cooling else waited + 1
        if not better and not cooling and waited >= patience and lr > min_lr:
            lr, waited, cooling = max(lr * factor, min_lr), 0, cooldown
        rates.append(lr)
    return rates


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.integers(0, 6).map(lambda n: n / 4), min_size=1, max_size=25),
    patience=st.integers(0, 4),
    cooldown=st.integers(0, 4),
    min_delta=st.sampled_from([0.0, 0.25, 0.3]),
    min_lr=st.sampled_from([0.0, 0.1]),
)
def test_reduce_on_plateau_matches_keras(values, patience, cooldown, min_delta, min_lr):
    options = {
        "patience": patience, "cooldown": cooldown, "min_delta": min_delta, "factor": 0.5,
        "min_lr": min_lr,
    }  # fmt: skip
    after = []
    trainer = make_trainer(values, ReduceLROnPlateau(**options))
    trainer.callbacks.append(
        LambdaCallback(on_epoch_end=lambda epoch, logs: after.append(trainer.opt.groups[0]["lr"]))
    )
    run(trainer)
    assert after == pytest.approx(keras_rates(values, **options), rel=1e-15)


def test_reduce_on_plateau_reduces_every_group_from_its_current_rate(capsys):
    net = CountingNet([1.0] * 4)
    net.params[1].append(np.zeros(1))
    groups = [{"params": [net.params[0]], "lr": 0.5}, {"params": [net.params[1]], "lr": 4.0}]
    opt = fastopt.SGD(groups)
    opt.step = lambda grads: None

    def set_lr(epoch, logs):
        if epoch == 1:
            opt.groups[0]["lr"] = 0.8

    used = [LambdaCallback(on_epoch_end=set_lr), ReduceLROnPlateau(factor=0.25, patience=1, verbose=1)]
    Trainer(net, opt, used).fit(X, Y, 4, 2, (X, Y), verbose=0)
    assert [group["lr"] for group in opt.groups] == [0.2, 1.0]
    assert capsys.readouterr().out.splitlines() == [
        "Epoch 2: reduced the learning rate to 0.2",
        "Epoch 2: reduced the learning rate to 1",
    ]


def test_reduce_on_plateau_over_two_fits_equals_one_fit():
    once = make_trainer([1.0] * 6, ReduceLROnPlateau(factor=0.5, patience=2))
    twice = make_trainer([1.0] * 6, ReduceLROnPlateau(factor=0.5, patience=2))
    run(once, 6)
    for _ in range(6):
        run(twice, 1)
    assert once.history.history["lr"] == twice.history.history["lr"] == [1, 1, 1, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("resumed", [False, True], ids=["the same trainer", "a resumed trainer"])
def test_a_group_added_between_two_fits_is_reduced_with_the_others(resumed):
    """The patience that has passed counts for the new group, too."""
    used = ReduceLROnPlateau(factor=0.5, patience=2)
    trainer = make_trainer([1.0] * 6, used)
    trainer.opt.step = lambda grads: None
    run(trainer, 2)
    if resumed:
        state = trainer.state_dict()["callbacks"]
        used.reset()
        used.load_state_dict(state[0][1])
    trainer.opt.add_param_group({"params": np.zeros(1), "lr": 3.0})
    rates = []
    trainer.callbacks.append(
        LambdaCallback(on_epoch_end=lambda *_: rates.append([group["lr"] for group in trainer.opt.groups]))
    )
    run(trainer, 4)
    assert rates == [[0.5, 1.5], [0.5, 1.5], [0.25, 0.75], [0.25, 0.75]]


def test_a_group_added_during_a_fit_is_reduced_with_the_others():
    def add(epoch, logs):
        if epoch == 1:
            trainer.opt.add_param_group({"params": np.zeros(1), "lr": 3.0})

    used = [LambdaCallback(on_epoch_begin=add), ReduceLROnPlateau(factor=0.5, patience=1)]
    trainer = make_trainer([1.0] * 4, *used)
    trainer.opt.step = lambda grads: None
    run(trainer, 3)
    assert [group["lr"] for group in trainer.opt.groups] == [0.25, 0.75]


def test_learning_rate_scheduler_sets_a_group_added_between_two_fits():
    trainer = make_trainer([1.0] * 4, LearningRateScheduler(lambda epoch, lr: lr / 2))
    trainer.opt.step = lambda grads: None
    run(trainer, 1)
    trainer.opt.add_param_group({"params": np.zeros(1), "lr": 3.0})
    run(trainer, 1)
    assert [group["lr"] for group in trainer.opt.groups] == [0.25, 1.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, "factor: expected a number below 1, got 1.0"),
        ({"factor": 0.0}, "factor"),
        ({"patience": -1}, "patience: expected at least 0"),
        ({"cooldown": -1}, "cooldown: expected at least 0"),
        ({"min_lr": -1.0}, "min_lr"),
        ({"min_delta": math.inf}, "min_delta: expected a finite number"),
        ({"monitor": "f1"}, "mode: cannot infer whether to minimize or maximize 'f1'"),
    ],
)
def test_reduce_on_plateau_refuses_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ReduceLROnPlateau(**options)


# --- LearningRateScheduler -------------------------------------------------------------------


def test_learning_rate_scheduler(capsys):
    seen = []

    def schedule(epoch, lr):
        seen.append((epoch, lr))
        return lr / 2 if epoch else np.float32(0.5)

    trainer = make_trainer([1.0] * 3, LearningRateScheduler(schedule, verbose=1))
    assert run(trainer, 2).history["lr"] == [0.5, 0.25]
    assert run(trainer, 1).history["lr"] == [0.5, 0.25, 0.125]
    assert seen == [(0, 1.0), (1, 0.5), (2, 0.25)]
    assert capsys.readouterr().out.splitlines()[1] == "Epoch 2: set the learning rate to 0.25"


def test_learning_rate_scheduler_sets_every_group():
    net = CountingNet([1.0])
    net.params[1].append(np.zeros(1))
    opt = fastopt.SGD([{"params": net.params[0], "lr": 1.0}, {"params": net.params[1], "lr": 3.0}])
    opt.step = lambda grads: None
    Trainer(net, opt, [LearningRateScheduler(lambda epoch, lr: 2 * lr)]).fit(X, Y, verbose=0)
    assert [group["lr"] for group in opt.groups] == [2.0, 6.0]


@pytest.mark.parametrize("value", [None, "0.1", lambda step: 0.1, -1.0, math.nan])
def test_learning_rate_scheduler_refuses_invalid_rates(value):
    trainer = make_trainer([1.0], LearningRateScheduler(lambda epoch, lr: value))
    with pytest.raises((TypeError, ValueError), match="lr: expected a"):
        run(trainer)
    assert trainer.net.weight == 0.0


class OfEpoch:
    def __call__(self, epoch):
        return 0.5**epoch


@pytest.mark.parametrize(
    "schedule",
    [
        lambda epoch: 0.5**epoch,
        lambda epoch, lr: 0.5**epoch,
        lambda epoch, lr=9.0: lr / 2 if epoch else 1.0,     # gets the learning rate, as in Keras
        lambda *arguments: 0.5 ** arguments[0],
        OfEpoch(),
        OfEpoch().__call__,
        functools.partial(lambda base, epoch: base**epoch, 0.5),
        schedules.Exponential(1.0, 0.5),
    ],
    ids=["one", "two", "default", "any", "object", "method", "partial", "schedule"],
)
def test_learning_rate_scheduler_takes_functions_of_one_or_two_arguments(schedule):
    trainer = make_trainer([1.0] * 3, LearningRateScheduler(schedule))
    assert run(trainer, 3).history["lr"] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize("schedule", [0.1, lambda: 0.1, lambda a, b, c: 0.1], ids=["number", "none", "three"])
def test_learning_rate_scheduler_refuses_what_it_cannot_call(schedule):
    with pytest.raises(TypeError, match="schedule: expected a function of the epoch, or of the epoch and"):
        LearningRateScheduler(schedule)


@pytest.mark.parametrize(
    "callback", [ReduceLROnPlateau(), LearningRateScheduler(lambda epoch, lr: lr)], ids=["reduce", "set"]
)
def test_a_learning_rate_that_is_a_schedule_cannot_be_set(callback):
    trainer = make_trainer([1.0], callback, lr=schedules.Cosine(0.1, 10))
    name = type(callback).__name__
    with pytest.raises(ValueError) as error:
        run(trainer)
    assert str(error.value) == (
        f"{name}: it sets the learning rate, but that of group 0 is a schedule, "
        f"Cosine(lr=0.1, steps=10, min_lr=0.0); give the optimizer a number as lr, or leave {name} out"
    )
    assert trainer.net.weight == 0.0

    class Descent:
        def step(self, grads):
            pass

    with pytest.raises(TypeError, match=f"opt: {name} expected an object with 'groups', got Descent"):
        Trainer(CountingNet(), Descent(), [callback]).fit(X, Y, verbose=0)
