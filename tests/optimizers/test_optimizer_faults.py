"""After failed allocations, interrupts and errors in schedules, nothing or one whole step has happened."""

import contextlib
import copy
import functools
import sys
import threading

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


def operation(name, *parts, kind=fastopt.Adam, **options):
    base = prototype(kind, tuple(options.items()))
    return Operation(f"{kind.__name__}: {name}", lambda: copy.deepcopy(base), parts, Subject.snapshot)


def step(subject):
    subject.opt.step(subject.grads)


def full_step(subject):
    subject.opt.step(subject.grads, max_norm=0.1, clip_value=1.0, grad_scale=2.0, zero_grad=True)


def add_group(subject):
    subject.opt.add_param_group({"params": [np.ones(3)], "lr": 0.5})


def load(subject):
    subject.opt.load_state_dict(subject.saved)


def set_lr(subject):
    subject.opt.groups[0]["lr"] = 0.5


def select_another_kernel(subject):
    subject.opt.groups[0]["amsgrad"] = True


def step_rows(subject):
    subject.opt.step_rows(0, [2, 0, 2], np.ones((3, 3)))


def make_another(subject):
    subject.result = fastopt.AdamW(subject.params, ema=0.9, lookahead=(2, 0.5), accumulate=2).state_dict()


def save(subject):
    subject.result = subject.opt.state_dict()


def swap(subject):
    with subject.opt.swapped_ema():
        subject.result = copy.deepcopy(subject.params)


def average(subject):
    with subject.opt.averaged():
        subject.result = copy.deepcopy(subject.params)


def keep(subject):
    subject.opt.keep_average()


def every(optimizer):
    """First fault and distance of the faults: all of them for a few optimizers, some for each other one."""
    few = {fastopt.Adam: 1, fastopt.Muon: 3, fastopt.Prodigy: 3, fastopt.LAMB: 3}
    return (0, few[optimizer]) if optimizer in few else (OPTIMIZERS.index(optimizer) % 11, 11)


@pytest.mark.parametrize("faults", [failing_allocations, interrupts])
@pytest.mark.parametrize("run", [step, full_step])
@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.__name__)
def test_step(kind, run, faults):
    first, distance = every(kind)
    distance *= 1 if run is step else 3
    check(operation(run.__name__, run, kind=kind), faults(first, distance))


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
    case = operation(name, full_step, **OPTIONS[name])
    if name == "accumulate":    # a micro-batch may have been added, and its step not been taken
        added = copy.deepcopy(prototype(fastopt.Adam, (("accumulate", 4),)))
        full_step(added)
        before, after = case.expected_stages()
        case.stages = lambda: [before, added.snapshot(), after]
    check(case, faults(0, 7))


OPERATIONS = [
    operation("add_param_group", add_group, ema=0.9),
    operation("load_state_dict", step, load, ema=0.9),
    operation("hyperparameter", set_lr, step),
    operation("another kernel", select_another_kernel, step),
    operation("rows", step_rows, sparse="exact"),
    operation("row-wise", step_rows, kind=fastopt.Adagrad, rowwise=True),
    operation("constructor", make_another),
    operation("state_dict", save, ema=0.9),
    operation("swapped_ema", swap, ema=0.9),
    operation("averaged", average, kind=fastopt.SGDScheduleFree),
    operation("keep_average", keep, kind=fastopt.SGDScheduleFree),
]


@pytest.mark.parametrize("faults", [failing_allocations, interrupts])
@pytest.mark.parametrize("case", OPERATIONS, ids=str)
def test_other_operations(case, faults):
    check(case, faults(0, 3 if faults is failing_allocations else 29))


@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "lr": fastopt.schedules.Cosine(0.1, 100)}], ids=str)
def test_signals_during_steps(options):
    case = operation("20 steps", *[step] * 20, **options)
    check(case, signals(case, 200))


def test_threads_lose_no_step():
    """Two threads that step one optimizer get an error, or both of their steps are counted."""
    p, interval = np.zeros(3), sys.getswitchinterval()
    opt, results = fastopt.SGD(p, lr=1.0, momentum=0.0), []

    def run():
        for _ in range(2000):
            try:
                results.append(opt.step(np.ones(3)))
            except RuntimeError as error:
                results.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(2)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(results) == 4000 and results.count(True) == opt.steps
    assert (p == -opt.steps).all() and (opt.state[0].steps == opt.steps)
    assert all(each is True or each.startswith("step: ") for each in results)


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
