"""SwapEMAWeights."""

import numpy as np
import pytest
from callback_helpers import CountingNet, make_trainer, run, saved_weight

import fastopt
from fastopt.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint, SwapEMAWeights
from fastopt.nn import Trainer


def expected_average(steps, ema=0.5):
    """Return the average of the weights 0, 1, 2, ... after a number of steps."""
    average = 0.0
    for weight in range(1, steps + 1):
        average = ema * average + (1.0 - ema) * weight
    return average


def test_evaluation_and_final_weights_use_the_averages():
    trained = []
    look = LambdaCallback(
        on_train_batch_end=lambda batch, logs: trained.append(trainer.net.weight),
        on_epoch_end=lambda epoch, logs: trained.append(trainer.net.weight),
    )
    trainer = make_trainer([1.0] * 3, SwapEMAWeights(), look, ema=0.5)
    run(trainer)
    assert trainer.net.evaluated == [expected_average(1), expected_average(2), expected_average(3)]
    assert trained == [1, 1, 2, 2, 3, 3]
    assert trainer.net.weight == expected_average(3) == trainer.opt.ema[0][0][0]
    run(trainer, 0)
    assert trainer.net.weight == expected_average(3)


def test_swap_on_epoch(tmp_path):
    callbacks = [
        SwapEMAWeights(swap_on_epoch=True),
        EarlyStopping(patience=2, restore_best_weights=True),
        ModelCheckpoint(tmp_path / "best.npz", save_best_only=True, save_weights_only=True),
    ]
    trainer = make_trainer([3.0, 1.0, 2.0, 2.0], *callbacks, ema=0.5)
    trainer.callbacks.append(
        LambdaCallback(on_train_batch_begin=lambda batch, logs: before.append(trainer.net.weight))
    )
    before = []
    assert run(trainer).stopped_by == "EarlyStopping"
    assert before == [0, 1, 2, 3]
    assert saved_weight(tmp_path / "best.npz") == expected_average(2)
    assert trainer.net.weight == expected_average(2)
    assert trainer.opt.ema[0][0][0] == expected_average(2)     # which begins again at the restored weights


def test_schedule_free_optimizers_are_evaluated_at_their_average():
    """A further step starts from the average."""
    net = CountingNet([1.0] * 3)
    opt = fastopt.SGDScheduleFree(net.params, lr=1.0)
    path = []

    def look(batch, logs):
        with opt.averaged():
            path.append(net.weight)

    trainer = Trainer(net, opt, [LambdaCallback(on_train_batch_end=look), SwapEMAWeights()])
    run(trainer)
    assert net.evaluated == path and net.weight == path[-1] == opt.state[0]["z"][0]
    opt.step([[-np.ones(1)], []])
    assert path[-1] < net.weight < opt.state[0]["z"][0] == path[-1] + 1.0


@pytest.mark.parametrize("hook", ["on_test_begin", "on_test_end", "on_epoch_end", "on_train_end"])
@pytest.mark.parametrize("swap_on_epoch", [False, True])
def test_an_error_restores_the_weights(hook, swap_on_epoch):
    def fail(*args):
        raise RuntimeError("out of luck")

    failing = LambdaCallback(**{hook: fail})
    swap = SwapEMAWeights(swap_on_epoch)
    callbacks = [swap, failing] if hook != "on_train_end" else [failing, swap]
    trainer = make_trainer([1.0], *callbacks, ema=0.5)
    with pytest.raises(RuntimeError, match="out of luck"):
        run(trainer)
    assert trainer.net.weight == 1.0
    trainer.opt.step([[-np.ones(1)], []])  # refused while the averages are in the net
    assert trainer.net.weight == 2.0


def test_interrupted_evaluation_ends_with_the_averages():
    class Net(CountingNet):
        def evaluate(self, X, y):
            raise KeyboardInterrupt

    net = Net([1.0])
    trainer = Trainer(net, fastopt.SGD(net.params, lr=1.0, ema=0.5), [SwapEMAWeights()])
    assert run(trainer).stopped_by == "interrupt"
    assert net.weight == expected_average(1)
    trainer.opt.step([[-np.ones(1)], []])


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([EarlyStopping(restore_best_weights=True), SwapEMAWeights(True)], "EarlyStopping would monitor"),
        ([SwapEMAWeights(), EarlyStopping(restore_best_weights=True)], "EarlyStopping would monitor"),
        ([SwapEMAWeights(), ModelCheckpoint("w", save_best_only=True)], "ModelCheckpoint would monitor"),
    ],
)
def test_callbacks_that_would_store_other_weights_are_refused(callbacks, message):
    trainer = make_trainer([1.0], *callbacks, ema=0.5)
    trainer.net.save = lambda path: None
    with pytest.raises(ValueError, match=message):
        run(trainer)
    assert trainer.net.weight == 0.0


def test_an_optimizer_without_averages_is_refused():
    with pytest.raises(ValueError, match=r"the optimizer keeps no averages; create it with ema=0\.999"):
        run(make_trainer([1.0], SwapEMAWeights()))
