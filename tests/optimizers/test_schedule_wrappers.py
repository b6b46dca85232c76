"""Schedules inside of other schedules and of optimizers: metrics, states, errors."""

import copy
import math
import pickle

import numpy as np
import pytest
from rules import OPTIMIZERS

import fastopt
from fastopt import schedules as s
from fastopt.schedules.base import report_to


def plateau_after(metrics, **options):
    schedule = s.ReduceOnPlateau(0.5, patience=1, cooldown=2, **options)
    for metric in metrics:
        schedule.report(metric)
    return schedule


def test_an_optimizer_evaluates_a_schedule_at_its_finished_steps():
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.5**step

    params = [np.zeros(3)]
    optimizer = fastopt.SGD(params, lr=schedule)
    walked = []
    for _ in range(4):
        optimizer.step([np.ones(3)])
        walked.append(params[0][0])
    assert [step for step in asked if step > 0] == [1, 2, 3]
    assert walked == [-1.0, -1.5, -1.75, -1.875]


def test_an_optimizer_saves_the_state_of_a_schedule():
    def optimizer(metrics):
        return fastopt.SGD([np.zeros(3)], lr=plateau_after(metrics))

    reduced = optimizer([1.0, 1.0, 1.0])
    fresh = optimizer([])
    fresh.load_state_dict(reduced.state_dict())
    fresh.step([np.ones(3)])
    assert fresh.params[0].tolist() == [-0.05] * 3


# --- metrics and states at any depth ---------------------------------------------------------------

WRAPPED = {
    "itself": lambda plateau: plateau,
    "warmup": lambda plateau: s.LinearWarmup(2, plateau),
    "join, first": lambda plateau: s.Join([plateau, 0.1], [10**6]),
    "join, last": lambda plateau: s.Join([0.5, plateau], [1]),
    "join of warmup": lambda plateau: s.Join([0.5, s.LinearWarmup(1, plateau)], [1]),
    "warmup of join of join": lambda plateau: s.LinearWarmup(
        1, s.Join([s.Join([0.5, plateau], [1]), 0.1], [10**6])
    ),
    "several times": lambda plateau: s.Join([plateau, s.LinearWarmup(1, plateau)], [1]),
}


@pytest.mark.parametrize("hyperparameter", ["lr", "betas", "weight_decay"])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_trainer_reports_the_loss_once_to_every_schedule(wrap, hyperparameter):
    plateau = s.ReduceOnPlateau(0.5, patience=10**6)
    value = (0.9, wrap(plateau)) if hyperparameter == "betas" else wrap(plateau)
    net = fastopt.MLP([3, 2], seed=0)
    opt = fastopt.Adam(net.params, **{hyperparameter: value})
    X, y = np.eye(3), np.array([0, 1, 0])
    losses = fastopt.Trainer(net, opt).fit(X, y, epochs=3, verbose=0).history["loss"]
    expected = s.ReduceOnPlateau(0.5, patience=10**6)
    for loss in losses:
        expected.report(loss)
    assert plateau == expected and expected.best < math.inf


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_plateau_is_saved_with_the_optimizer(wrap):
    schedule = wrap(plateau_after([1.0, 1.0, 1.0]))
    value = schedule(10)

    def optimizer(schedule):
        return fastopt.Adam(np.zeros(3), lr=0.1, betas=(0.9, schedule))

    reduced, fresh = optimizer(schedule), optimizer(wrap(plateau_after([])))
    fresh.load_state_dict(reduced.state_dict())
    assert fresh.groups[0]["betas"][1] == schedule
    assert fresh.groups[0]["betas"][1](10) == value
    twins = [copy.deepcopy(reduced), pickle.loads(pickle.dumps(reduced))]
    report_to([schedule], 0.1)
    for twin in twins:
        assert twin.groups[0]["betas"][1] != schedule
        report_to(twin.groups[0]["betas"], 0.1)
        assert twin.groups[0]["betas"][1] == schedule


def test_a_schedule_in_several_groups_hears_a_metric_once():
    plateau = s.ReduceOnPlateau(0.5)
    report_to([plateau, s.LinearWarmup(1, plateau), s.Join([plateau, 0.1], [5]), 0.1], 1.0)
    report_to([plateau, s.LinearWarmup(1, plateau)], 1.0)
    assert plateau.num_bad_reports == 1


def test_a_wrapper_with_an_invalid_state_is_unchanged():
    schedule = s.Join([plateau_after([1.0]), plateau_after([2.0])], [3])
    before, state = copy.deepcopy(schedule), schedule.state_dict()
    state["schedules[0]"] = plateau_after([0.5, 0.5]).state_dict()
    for broken in (state["schedules[1]"] | {"best": "x"}, {}):
        with pytest.raises((TypeError, ValueError), match=r"best|state"):
            schedule.load_state_dict(state | {"schedules[1]": broken})
        assert schedule == before
    for keys in ({}, {"then": {}}, None):
        with pytest.raises(ValueError, match="state: expected"):
            schedule.load_state_dict(keys)
        assert schedule == before


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_every_optimizer_takes_a_schedule_with_a_state_in_several_groups(kind, wrap):
    def make():
        schedule = wrap(s.ReduceOnPlateau(1.0))
        params = [np.ones((2, 2)), np.ones(3)]
        return kind([{"params": params[0], "lr": schedule}, {"params": params[1], "lr": schedule}])

    opt, fresh = make(), make()
    opt.step([np.ones((2, 2)), np.ones(3)])
    report_to([opt.groups[0]["lr"]], 1.0)
    fresh.load_state_dict(opt.state_dict())
    assert fresh.groups[1]["lr"] == opt.groups[0]["lr"]
    assert "ReduceOnPlateau" in repr(opt)


def test_scheduled_values_of_several_groups_are_compared():
    def make(first, second):
        groups = [{"params": np.ones(2), "lr": first}, {"params": np.ones(3), "lr": second}]
        return fastopt.Prodigy(groups)

    make(lambda step: 1.0, s.Constant(1.0)).step([np.ones(2), np.ones(3)])
    opt = make(s.Exponential(1.0, 0.5), 1.0)
    opt.step([np.ones(2), np.ones(3)])
    with pytest.raises(ValueError, match=r"^lr: expected the same value in all groups, .* at step 1$"):
        opt.step([np.ones(2), np.ones(3)])
    assert opt.steps == 1
    for group, fits in zip(opt.groups, (False, True), strict=True):
        group["lr"] = 0.25
        if not fits:
            with pytest.raises(ValueError, match=r"^lr: expected the same value in all groups"):
                opt.step([np.ones(2), np.ones(3)])
    opt.step([np.ones(2), np.ones(3)])
    assert opt.steps == 2


# --- schedules of an average -------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [
    lambda swa: swa, lambda swa: s.Join([0.0, swa], [3]), lambda swa: s.Join([0.0, s.Join([swa], [])], [3]),
    lambda swa: s.LinearWarmup(3, swa),
], ids=["itself", "join", "join of join", "warmup"])
@pytest.mark.parametrize("joined", [0, 5], ids=["from the start", "added later"])
def test_a_wrapped_average_is_the_mean_also_of_a_parameter_that_was_added_later(wrap, joined):
    opt = fastopt.SGD([np.zeros(1)], lr=1.0, ema=wrap(s.SWA()))
    for _ in range(joined):
        opt.step([np.ones(1)])
    p = np.zeros(1)
    opt.add_param_group({"params": p})
    iterates = []
    for _ in range(8):
        opt.step([[np.ones(1)], np.ones(1)])
        iterates.append(p[0])
    first = 0 if joined or wrap(1) == 1 else 3
    assert opt.ema[1][0] == pytest.approx(np.mean(iterates[first:]), rel=1e-14)


def test_the_decay_of_an_average_can_be_any_schedule_without_a_state():
    p = np.zeros(1)
    opt = fastopt.SGD(p, lr=1.0, ema=s.InverseTime(0.5, decay=1.0))  # which has a field of this name
    average = 0.0
    for step in range(4):
        opt.step(np.ones(1))
        average += (1.0 - 0.5 / (1.0 + step)) * (p[0] - average)
        assert opt.ema[0] == pytest.approx(average, rel=1e-14)
    for schedule in (s.ReduceOnPlateau(0.9), s.LinearWarmup(5, s.ReduceOnPlateau(0.9))):
        with pytest.raises(ValueError, match=r"^ema: expected a number or a schedule without a state, got"):
            fastopt.SGD(p, ema=schedule)
    fastopt.SGD(p, ema=s.LinearWarmup(5, 0.9))


# --- relative thresholds ---------------------------------------------------------------------------


def bad_reports(best, metric, **options):
    schedule = s.ReduceOnPlateau(0.5, **options)
    schedule.report(best)
    schedule.report(metric)
    return schedule.num_bad_reports


@pytest.mark.parametrize("offset", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("best", [2.0, -2.0, 1e-300, -1e300])
def test_a_relative_threshold_is_a_fraction_of_the_best_metric(best, mode, offset):
    """The metric is at the threshold of a tenth of the best one, or a fiftieth of it beyond."""
    better = -1.0 if mode == "min" else 1.0
    metric = best + better * abs(best) * (0.1 + 0.02 * offset)
    if offset:
        assert bad_reports(best, metric, mode=mode, threshold=0.1) == (0 if offset > 0 else 1)
    assert bad_reports(best, best, mode=mode, threshold=0.0) == 1
    assert bad_reports(best, best, mode=mode) == 1
    worse = best - better * abs(best) * 1e-6
    assert bad_reports(best, worse, mode=mode) == 1


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_constant_metric_reduces_whatever_its_sign(mode, sign):
    schedule = s.ReduceOnPlateau(0.1, mode=mode, patience=2)
    for _ in range(50):
        schedule.report(sign)
    assert schedule.current_lr < 1e-7


def test_infinite_metrics():
    for threshold in (0.5, 1.0, 2.0):
        assert bad_reports(math.inf, 1.0, threshold=threshold) == 0
        assert bad_reports(-math.inf, 1.0, mode="max", threshold=threshold) == 0
        assert bad_reports(-math.inf, -1e300, threshold=threshold) == 1
        assert bad_reports(-math.inf, -math.inf, threshold=threshold) == 1


# --- errors ----------------------------------------------------------------------------------------


def unchanged_after_error(opt, error, match, steps):
    opt.steps = steps
    before = opt.params.copy()
    with pytest.raises(error, match=match) as info:
        opt.step(np.ones(1))
    assert opt.steps == steps and (opt.params == before).all()
    return info.value


@pytest.mark.parametrize(
    ("kind", "options", "steps", "match"),
    [
        (
            fastopt.FTRL, {"lr": s.LinearWarmup(3, 0.1, start_factor=0.0)}, 0,
            r"^lr: expected a number above 0, got 0.0 at step 0 with the schedules lr=LinearWarmup\(",
        ),
        (fastopt.FTRL, {"beta": lambda t: 1.0 - t}, 1, r"^beta: expected .* at step 1 with the schedules"),
        (
            fastopt.SGD, {"lr": s.Exponential(1e-7, 1.1)}, 10_000,
            r"^lr: expected a finite number .* got inf at step 10000 from the schedule Exponential\(",
        ),
        (fastopt.Adam, {"betas": (0.9, s.Constant(1.0))}, 5, r"^betas: .* got 1.0 at step 5 from the sch"),
        (fastopt.SGD, {"momentum": lambda t: math.nan}, 7, r"^momentum: expected .* got nan at step 7 from"),
        (fastopt.SGD, {"ema": lambda t: 2.0, "lr": 0.1}, 7, r"^ema: expected .* got 2.0 at step 7 from"),
        (fastopt.Muon, {"ns_steps": lambda t: 4.5}, 2, r"^ns_steps: expected .* got 4.5 at step 2 with"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_errors_of_scheduled_values_name_the_hyperparameter_and_the_step(kind, options, steps, match):
    error = unchanged_after_error(kind(np.full(1, 5.0), **options), ValueError, match, steps)
    assert error.__cause__ is None


def test_a_scheduled_value_of_a_wrong_type_is_refused():
    opt = fastopt.SGD(np.zeros(1), lr=lambda step: "0.1")
    unchanged_after_error(opt, TypeError, "^lr: expected a number, got '0.1' at step 3 from the schedule", 3)


def test_an_exception_in_a_schedule_has_a_note_with_the_hyperparameter_and_the_step():
    opt = fastopt.SGD(np.zeros(1), lr=lambda step: 1 / 0)
    error = unchanged_after_error(opt, ZeroDivisionError, "division by zero", 3)
    assert "schedule of lr" in error.__notes__[0] and error.__notes__[0].endswith("at step 3")


def test_an_optimizer_steps_on_after_an_error_of_a_schedule():
    values = {2: math.nan}
    opt = fastopt.SGD(np.zeros(1), lr=lambda step: values.get(step, step + 1.0), momentum=s.Constant(0.0))
    for _ in range(2):
        opt.step(np.ones(1))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"lr: .* at step 2"):
            opt.step(np.ones(1))
    del values[2]
    for _ in range(2):
        opt.step(np.ones(1))
    assert opt.params[0] == -(1.0 + 2.0 + 3.0 + 4.0)
