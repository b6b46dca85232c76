"""Networks and training after failed allocations, interrupts and errors in callbacks and models."""

import copy
import functools
import itertools

import numpy as np
import pytest
from faults import (
    InjectedError,
    Interrupt,
    Operation,
    check,
    failing_allocations,
    frozen,
    interrupts,
    signals,
)
from trainer_helpers import LinearNet

import fastopt
from fastopt.callbacks import Callback, EarlyStopping, LearningRateScheduler, ModelCheckpoint, SwapEMAWeights
from fastopt.nn import MLP, History, Trainer

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((20, 5)).astype(np.float32), RNG.integers(0, 3, 20)


def mlp(hidden, **options):
    return MLP([5, hidden, 3], seed=0, **options)


# A model and options of the trainer. Large models are updated by their own compiled step.
MODELS = {
    "one call": (functools.partial(mlp, 1100, dropout=0.3, norm="batch"), {}),
    "two calls": (functools.partial(mlp, 8), {}),
    "clipped": (functools.partial(mlp, 1100), {"max_norm": 0.1}),
    "own model": (LinearNet, {}),
}


def make_trainer(name):
    make_net, options = MODELS[name]
    net = make_net()
    return Trainer(net, fastopt.Adam(net.params, lr=0.01), **options)


def fit(trainer, **options):
    trainer.fit(X, Y, 8, 2, (X, Y), **{"verbose": 0, "seed": 0, **options})


def check_history(history):
    assert history.epoch == list(range(len(history.epoch)))
    assert {len(values) for values in history.history.values()} <= {len(history.epoch)}


def snapshot(trainer):
    check_history(trainer.history)
    weights = [array for layer in trainer.net.params for array in layer]
    running = getattr(trainer.net, "running", []) if trainer.net.params[0][0].shape[1] > 1000 else []
    return frozen([weights, running, trainer.opt.state_dict()])


class Record(Callback):
    def __init__(self):
        self.stages = []

    def on_train_batch_begin(self, batch, logs):
        self.stages.append(snapshot(self.trainer))

    def on_train_end(self, logs):
        self.stages.append(snapshot(self.trainer))


def stages_of_fit(name):
    trainer, record = make_trainer(name), Record()
    trainer.callbacks.append(record)
    fit(trainer)
    assert len(set(record.stages)) == len(record.stages) == 7
    return record.stages


def fitting(name):
    stages = functools.cache(functools.partial(stages_of_fit, name))
    return Operation(name, functools.partial(make_trainer, name), [fit], snapshot, stages)


@pytest.mark.parametrize("name", MODELS)
def test_fit_with_failing_allocations(name):
    check(fitting(name), failing_allocations(0, 41))


@pytest.mark.parametrize("name", MODELS)
def test_interrupted_fit(name):
    check(fitting(name), interrupts(0, 97))


@pytest.mark.parametrize("name", MODELS)
def test_signals_during_fit(name):
    case = fitting(name)
    check(case, signals(case, 60))


def test_ctrl_c_ends_a_fit_after_a_whole_step():
    case = fitting("one call")
    for n in itertools.count(0, 101):
        trainer, fault = case.make(), Interrupt(n, KeyboardInterrupt)
        try:
            with fault:
                fit(trainer)
        except KeyboardInterrupt:   # before the first batch or after the last one
            assert snapshot(trainer) in (case.stages()[0], case.stages()[-1])
        assert snapshot(trainer) in case.stages()
        if fault.where is None:
            break
    assert n > 500


# --- Other operations ---------------------------------------------------------------------------------


class Box:
    """A subject with a result."""

    def __init__(self, trainer):
        self.trainer, self.result = trainer, None

    def snapshot(self):
        return frozen([snapshot(self.trainer), self.result])


def operation(name, run, model="two calls"):
    def make():
        trainer = make_trainer(model)
        fit(trainer)
        return Box(trainer)

    trainer = make().trainer
    fit(trainer)
    saved = trainer.state_dict()
    return Operation(name, make, [lambda box: run(box, saved)], Box.snapshot)


def predict(box, saved):
    box.result = box.trainer.net.predict(X)


def load(box, saved):
    box.trainer.load_state_dict(saved)


def load_weights(box, saved):
    box.trainer.net.load_state_dict(saved["net"])


def train_step(box, saved):
    box.result = copy.deepcopy(box.trainer.net.train_step(X, Y))


def new_net(box, saved):
    box.result = MLP([5, 8, 3], seed=1, norm="layer").state_dict()


OPERATIONS = [
    operation(run.__name__, run) for run in (predict, load, load_weights, train_step, new_net)
]


@pytest.mark.parametrize("case", OPERATIONS, ids=str)
@pytest.mark.parametrize("faults", [failing_allocations, interrupts])
def test_other_operations(case, faults):
    check(case, faults(0, 7 if faults is failing_allocations else 47))


def test_history_is_recorded_as_a_whole():
    def make():
        history = History()
        history.record(0, {"loss": 1.0, "accuracy": 0.5})
        return history

    def snapshot(history):
        check_history(history)
        return frozen([history.epoch, {k: v for k, v in history.history.items() if k != "new"}])

    def record(history):
        history.record(len(history.epoch), {"loss": 0.5, "new": 1.0})

    case = Operation("record", make, [record], snapshot)
    check(case, failing_allocations())
    check(case, interrupts())


# --- Errors in what the user passes ----------------------------------------------------------------------


HOOKS = [
    "on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_test_begin",
    "on_test_end", "on_epoch_end", "on_train_end", "reset", "close",
]  # fmt: skip


@pytest.mark.parametrize("error", [ZeroDivisionError, InjectedError, KeyboardInterrupt])
@pytest.mark.parametrize("hook", HOOKS)
def test_error_in_a_callback(hook, error):
    """Training can be continued, and the callback is used as before."""
    calls = []

    class Fails(Callback):
        pass

    def fail(self, *args):
        calls.append(args)
        if len(calls) == 1:
            raise error

    setattr(Fails, hook, fail)
    case = fitting("one call")
    trainer = case.make()
    trainer.callbacks.append(Fails())
    stopped = error is KeyboardInterrupt and hook not in ("reset", "close", "on_train_end")
    try:
        fit(trainer)
        assert stopped and trainer.history.interrupted
    except error:
        assert not stopped
    assert snapshot(trainer) in case.stages()
    fit(trainer)
    check_history(trainer.history)
    assert len(calls) > 1 and trainer.history.stopped_by is None


@pytest.mark.parametrize("method", ["train_step", "predict", "evaluate"])
def test_error_in_a_model(method):
    class Net(LinearNet):
        left = 2

        def evaluate(self, X, y):
            return 0.0

    def fails(self, *args):
        self.left -= 1
        if self.left == 0:
            raise InjectedError
        return getattr(super(Net, self), method)(*args) if method != "evaluate" else 0.0

    setattr(Net, method, fails)
    net = Net()
    trainer, stages = Trainer(net, fastopt.Adam(net.params, lr=0.01)), stages_of_fit("own model")
    with pytest.raises(InjectedError):
        fit(trainer)
    assert snapshot(trainer) == stages[{"train_step": 1, "predict": 3, "evaluate": 6}[method]]
    fit(trainer)


def test_error_in_a_schedule():
    net = mlp(1100)
    calls = []

    def lr(step):
        calls.append(step)
        if len(calls) == 3:
            raise InjectedError
        return 0.01

    trainer, twin = Trainer(net, fastopt.Adam(net.params, lr=lr)), make_trainer("clipped")
    with pytest.raises(InjectedError):
        trainer.fit(X, Y, 8, verbose=0, shuffle=False)
    assert trainer.opt.steps == 2
    for begin in (0, 8):
        twin.opt.step(twin.net.train_step(X[begin : begin + 8], Y[begin : begin + 8])[1])
    assert frozen(net.state_dict()) == frozen(twin.net.state_dict())


def test_error_in_the_schedule_of_a_callback():
    net = mlp(8)
    opt = fastopt.SGD([{"params": net.params[:1], "lr": 0.1}, {"params": net.params[1:], "lr": 0.2}])
    seen = []

    def schedule(epoch, lr):
        seen.append(lr)
        if len(seen) == 2:
            raise InjectedError
        return lr / 2

    callback = LearningRateScheduler(schedule)
    callback.trainer = Trainer(net, opt, [callback])
    with pytest.raises(InjectedError):
        callback.on_epoch_begin(0, {})
    assert [group["lr"] for group in opt.groups] == [0.1, 0.2]
    callback.on_epoch_begin(0, {})
    assert [group["lr"] for group in opt.groups] == [0.05, 0.1]


# --- Callbacks --------------------------------------------------------------------------------------------


def test_best_weights_and_their_metric_are_kept_together():
    def make():
        trainer = make_trainer("two calls")
        stop = EarlyStopping("loss", restore_best_weights=True)
        stop.trainer = trainer
        stop.on_epoch_end(0, {"loss": 1.0})
        trainer.net.params[0][0][...] = 5.0
        return stop

    def run(stop):
        stop.on_epoch_end(1, {"loss": 0.5})

    case = Operation("improvement", make, [run], lambda stop: frozen(stop.state_dict()))
    check(case, failing_allocations(0, 2))
    check(case, interrupts())


def test_checkpoint_that_cannot_be_written_is_not_the_best(tmp_path, monkeypatch):
    trainer = make_trainer("two calls")
    checkpoint = ModelCheckpoint(str(tmp_path / "best.npz"), "loss", save_best_only=True)
    checkpoint.trainer = trainer
    with monkeypatch.context() as patch:
        patch.setattr(MLP, "save", lambda self, path: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            checkpoint.on_epoch_end(0, {"loss": 1.0})
    checkpoint.on_epoch_end(1, {"loss": 2.0})
    assert (tmp_path / "best.npz").exists() and checkpoint.best == 2.0


def test_weights_are_swapped_as_a_whole():
    """After an interrupt at any point the model holds the weights again when the fit has ended."""
    def make():
        net = mlp(8)
        opt = fastopt.Adam(net.params, lr=0.01, ema=0.5)
        opt.step(net.train_step(X, Y)[1])
        callback = SwapEMAWeights()
        callback.trainer = Trainer(net, opt, [callback])
        return callback

    def swap(callback):
        try:
            callback.swap_in()
            callback.swap_out()
        finally:
            callback.close()

    def step(callback):
        callback.trainer.opt.step(callback.trainer.net.train_step(X, Y)[1])

    def state(callback):
        return frozen([callback.trainer.net.params, callback.trainer.opt.state_dict()])

    before = state(make())
    case = Operation("swap", make, [swap, step], state, lambda: [before, state_after(make, step, state)])
    check(case, interrupts(0, 3))


def state_after(make, run, state):
    subject = make()
    run(subject)
    return state(subject)
