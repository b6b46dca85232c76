"""After failed allocations, interrupts and errors in schedules, nothing or one whole step has happened."""

import contextlib
import copy
import functools

import numpy as np
import pytest
from faults import InjectedError, Operation, check, failing_allocations, frozen, interrupts, signals
from rules import OPTIMIZERS

import fastopt


class Subject:
    """An optimizer of two small arrays after two steps, with what operations on it need."""

    def __init__(self, kind, **options):
        rng = np.random.default_rng(0)
        self.params = {"W": rng.standard_normal((4, 3)), "b": rng.standard_normal(3)}
        self.grads = {name: rng.standard_normal(p.shape) for name, p in self.params.items()}
        self.opt = kind(self.params, **{"lr": 0.1, **options})
        for _ in range(2):
            self.opt.step(self.grads)
        self.saved = copy.deepcopy(self.opt.state_dict())
        self.result = None

    def snapshot(self):
        return frozen([self.params, self.grads, self.opt.state_dict(), self.opt.grad_norm, self.result])


@functools.cache
def prototype(kind, options):
    return Subject(kind, **dict(options))


def operation(name, run, kind=fastopt.Adam, **options):
    base = prototype(kind, tuple(options.items()))
    return Operation(f"{kind.__name__}: {name}", lambda: copy.deepcopy(base), run, Subject.snapshot)


def step(subject):
    subject.opt.step(subject.grads)


def full_step(subject):
    subject.opt.step(subject.grads, max_norm=0.1, clip_value=1.0, grad_scale=2.0, zero_grad=True)


def add_group(subject):
    subject.opt.add_param_group({"params": [np.ones(3)], "lr": 0.5})


def load(subject):
    subject.opt.load_state_dict(subject.saved)


def set_hyperparameters(subject):
    subject.opt.groups[0].update(lr=0.5, weight_decay=0.1)


def select_another_kernel(subject):
    subject.opt.groups[0]["amsgrad"] = True
    subject.opt.step(subject.grads)


def step_rows(subject):
    subject.opt.step_rows(0, [2, 0, 2], np.ones((3, 3)))


def make_another(subject):
    subject.result = fastopt.AdamW(subject.params, ema=0.9, lookahead=(2, 0.5), accumulate=2).state_dict()


def save(subject):
    subject.result = subject.opt.state_dict()


def swap(subject):
    with subject.opt.swapped_ema():
        subject.result = copy.deepcopy(subject.params)


def every(optimizer):
    """First fault and distance of the faults: all of them for a few optimizers, some for each other one."""
    everything = optimizer in (fastopt.Adam, fastopt.Muon, fastopt.Prodigy, fastopt.LAMB)
    return (0, 1) if everything else (OPTIMIZERS.index(optimizer) % 7, 7)


@pytest.mark.parametrize("faults", [failing_allocations, interrupts])
@pytest.mark.parametrize("run", [step, full_step])
@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_step(kind, run, faults):
    first, distance = every(kind)
    distance *= 1 if run is step else 3
    check(operation(run.__name__, run, kind), faults(first, distance))


OPTIONS = {
    "ema": {"ema": 0.9},
    "lookahead": {"lookahead": (3, 0.5)},
    "accumulate": {"accumulate": 3},
    "units": {"centralize": True, "unit_clip": 0.01},
    "skip": {"skip_nonfinite": True},
    "decay": {"independent_weight_decay": 0.1},
    "schedule": {"lr": fastopt.schedules.Cosine(0.1, 10)},
}


@pytest.mark.parametrize("faults", [failing_allocations, interrupts])
@pytest.mark.parametrize("name", OPTIONS)
def test_step_with_options(name, faults):
    check(operation(name, full_step, **OPTIONS[name]), faults(0, 3))


OPERATIONS = [
    operation("add_param_group", add_group, ema=0.9),
    operation("load_state_dict", lambda s: (step(s), load(s), step(s), step(s)), ema=0.9),
    operation("hyperparameters", lambda s: (set_hyperparameters(s), step(s))),
    operation("another kernel", select_another_kernel),
    operation("rows", step_rows, sparse="exact"),
    operation("rows, row-wise", step_rows, fastopt.Adagrad, rowwise=True),
    operation("constructor", make_another),
    operation("state_dict", save, ema=0.9),
    operation("swapped_ema", swap, ema=0.9),
]


@pytest.mark.parametrize("faults", [failing_allocations, interrupts])
@pytest.mark.parametrize("case", OPERATIONS, ids=str)
def test_other_operations(case, faults):
    check(case, faults(0, 3))


def steps_of(run, count, **options):
    """An operation of several steps, whose stages are those after each step."""
    base = prototype(fastopt.Adam, tuple(options.items()))

    def stages():
        subject = copy.deepcopy(base)
        found = [subject.snapshot()]
        for _ in range(count):
            run(subject)
            found.append(subject.snapshot())
        return found

    return Operation(
        f"{count} steps", lambda: copy.deepcopy(base), lambda s: [run(s) for _ in range(count)],
        Subject.snapshot, stages,
    )


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "lr": fastopt.schedules.Cosine(0.1, 100)}], ids=str)
def test_signals_during_steps(options):
    case = steps_of(step, 20, **options)
    check(case, signals(case, 300))


# --- Errors in what the user passes ------------------------------------------------------------------


class Fails:
    """A schedule that raises an error at one of its calls."""

    def __init__(self, value, fails_at, error=InjectedError):
        self.value, self.fails_at, self.error, self.calls = value, fails_at, error, 0

    def __call__(self, step):
        self.calls += 1
        if self.calls - 1 == self.fails_at:
            raise self.error
        return self.value


@pytest.mark.parametrize("where", ["lr", "weight_decay", "ema"])
@pytest.mark.parametrize("error", [InjectedError, KeyboardInterrupt, ZeroDivisionError])
def test_schedule_that_fails_once(where, error):
    """The step is not taken, and the next one calls all schedules again."""
    options = {"lr": 0.1, "weight_decay": 0.01, "ema": 0.9}
    twin = Subject(fastopt.AdamW, **options)
    subject = Subject(fastopt.AdamW, **options | {where: (schedule := Fails(options[where], -1, error))})
    before = subject.snapshot()
    for fails_at in range(2):
        schedule.calls, schedule.fails_at = 0, fails_at
        failed = False
        with contextlib.suppress(error):
            step(subject)
            failed = True
        assert failed == (schedule.calls <= fails_at)
        if not failed:
            assert subject.snapshot() == before
            step(subject)
        step(twin)
        assert frozen([subject.params, subject.opt.ema]) == frozen([twin.params, twin.opt.ema])
        before = subject.snapshot()


class Gradients(dict):
    """Gradients whose items cannot be read once."""

    left = 0

    def __getitem__(self, name):
        self.left -= 1
        if self.left == 0:
            raise InjectedError
        return super().__getitem__(name)


def test_gradients_that_fail():
    subject = Subject(fastopt.Adam)
    before, grads = subject.snapshot(), Gradients(subject.grads)
    for left in (1, 2):
        grads.left = left
        with pytest.raises(InjectedError):
            subject.opt.step(grads)
        assert subject.snapshot() == before
    step(subject)
    assert subject.snapshot() != before
