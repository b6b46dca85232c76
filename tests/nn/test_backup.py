"""BackupAndRestore, and the state dict of the trainer."""

import copy
import math

import numpy as np
import pytest
from callback_helpers import CountingNet, X, make_trainer, read_table, run, small_digits, without_seconds

import fastopt
from fastopt import schedules
from fastopt.callbacks import (
    BackupAndRestore,
    Callback,
    CSVLogger,
    EarlyStopping,
    LambdaCallback,
    ReduceLROnPlateau,
    SwapEMAWeights,
    TerminateOnNaN,
)
from fastopt.checkpoint import load_tree, save_tree
from fastopt.nn import MLP, Trainer
from fastopt.nn.callbacks.backup import find_backups
from fastopt.nn.data import load_digits


def make_resumable_trainer(folder, *further, seed=0, **net_options):
    """Return a trainer of which every part has a state."""
    net = MLP([64, 16, 10], seed=seed, dtype="float32", **net_options)
    beta = schedules.ReduceOnPlateau(0.9, mode="max", factor=0.9, patience=1)
    opt = fastopt.Adam(net.params, lr=0.02, ema=0.9, betas=(beta, 0.99))
    callbacks = [
        SwapEMAWeights(swap_on_epoch=True),
        ReduceLROnPlateau(factor=0.5, patience=1, cooldown=1),
        EarlyStopping(patience=4, restore_best_weights=True),
        CSVLogger(folder / "log.csv"),
        *further,
        BackupAndRestore(folder / "backup"),
    ]
    return Trainer(net, opt, callbacks, max_norm=1.0)


class Crash(Callback):
    """Raise an error at a hook of an epoch."""

    def __init__(self, hook, epoch):
        self.epoch = epoch
        setattr(self, hook, self.fail)

    def fail(self, *args):
        if len(self.trainer.history.epoch) == self.epoch:
            raise RuntimeError("crash")


@pytest.mark.parametrize(
    ("hook", "epoch"),
    [("on_epoch_begin", 3), ("on_train_batch_end", 5), ("on_test_end", 1), ("on_epoch_end", 4)],
)
@pytest.mark.parametrize("options", [{}, {"norm": "batch", "dropout": 0.2}], ids=["plain", "norm"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, hook, epoch, options):
    X, y, test = small_digits()
    fit = {"X": X, "y": y, "epochs": 8, "validation_data": test, "verbose": 0, "seed": 3}
    (tmp_path / "uninterrupted").mkdir()
    expected = make_resumable_trainer(tmp_path / "uninterrupted", Crash(hook, 99), **options)
    expected.fit(**fit)

    with pytest.raises(RuntimeError, match="crash"):
        make_resumable_trainer(tmp_path, Crash(hook, epoch), **options).fit(**fit)
    backups = [path.name for path in find_backups(tmp_path / "backup")]
    newest = epoch - (hook == "on_epoch_end")
    assert backups == [f"backup-{i}.npz" for i in range(max(newest - 1, 1), newest + 1)]
    resumed = make_resumable_trainer(tmp_path, Crash(hook, 99), seed=9, **options)
    history = resumed.fit(**fit)

    assert history.epoch == expected.history.epoch
    assert without_seconds(history) == without_seconds(expected.history)
    assert history.stopped_by == expected.history.stopped_by
    actual, others = resumed.net.state_dict(), expected.net.state_dict()
    assert actual.keys() == others.keys()
    for name in actual:
        np.testing.assert_array_equal(actual[name], others[name])
    assert resumed.opt.steps == expected.opt.steps
    assert [int(row["epoch"]) for row in read_table(tmp_path / "log.csv")] == history.epoch
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize(
    ("end", "stays"), [("all", False), ("callback", False), ("interrupt", True), ("max_time", True)]
)
def test_the_backup_of_a_completed_run_is_deleted(tmp_path, end, stays):
    def act(epoch, logs):
        if end == "callback":
            trainer.stop_training = True
        if end == "interrupt" and epoch == 1:
            raise KeyboardInterrupt

    def make(tmp_path, **options):
        net = CountingNet([1.0] * 9)
        backup = BackupAndRestore(tmp_path, **options)
        return Trainer(net, fastopt.SGD(net.params), [LambdaCallback(on_epoch_begin=act), backup])

    trainer = make(tmp_path / "a")
    run(trainer, 3, max_time=1e-9 if end == "max_time" else None)
    assert bool(find_backups(tmp_path / "a")) == (tmp_path / "a").exists() == stays
    trainer = make(tmp_path / "b", delete_checkpoint=False)
    run(trainer, 3, max_time=1e-9 if end == "max_time" else None)
    assert find_backups(tmp_path / "b")


def test_the_backup_is_ignored_by_a_trainer_that_has_trained(tmp_path):
    trainer = make_trainer([1.0] * 9, BackupAndRestore(tmp_path, delete_checkpoint=False))
    run(trainer, 2)
    backup = (tmp_path / "backup-2.npz").read_bytes()
    run(trainer, 1)
    (tmp_path / "backup-9.npz").write_bytes(backup)
    assert run(trainer, 1).epoch == [0, 1, 2, 3] and trainer.net.weight == 4


def test_backup_refuses_invalid_order_and_files(tmp_path):
    with pytest.raises(ValueError, match="BackupAndRestore: it must be the last of the callbacks"):
        run(make_trainer([1.0], BackupAndRestore(tmp_path), TerminateOnNaN()))
    (tmp_path / "backup-1.npz").write_bytes(b"half a file")
    np.savez(tmp_path / "backup-2.npz", X=X)
    message = (
        r"no backup can be read: .*backup-2\.npz: not a saved training state; "
        r".*backup-1\.npz: damaged, or not an \.npz file"
    )
    with pytest.raises(ValueError, match=message):
        run(make_trainer([1.0], BackupAndRestore(tmp_path)))


def test_a_damaged_backup_falls_back_to_the_one_before(tmp_path):
    def make():
        return make_trainer([1.0] * 9, BackupAndRestore(tmp_path, keep=3, delete_checkpoint=False))

    expected = run(make(), 5)
    assert [path.name for path in find_backups(tmp_path)] == [f"backup-{i}.npz" for i in (3, 4, 5)]
    for i in (4, 5):
        path = tmp_path / f"backup-{i}.npz"
        path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "backup-x.npz").touch()     # not one of ours
    (tmp_path / "backup-07.npz").touch()
    trainer = make()
    with pytest.warns(RuntimeWarning, match=r"backup-[54]\.npz: damaged.*using the backup before .*-3\.npz"):
        history = run(trainer, 5)
    assert without_seconds(history) == without_seconds(expected) and trainer.net.weight == 5
    assert [path.name for path in find_backups(tmp_path)] == [f"backup-{i}.npz" for i in (5, 6, 7)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_freq": "often"}, "save_freq: expected 'epoch', a number of batches, or seconds such as"),
        ({"save_freq": "0s"}, "save_freq: expected 'epoch', a number .*, got '0s'"),
        ({"save_freq": 0}, "save_freq: expected at least 1, got 0"),
        ({"keep": 0}, "keep: expected at least 1, got 0"),
    ],
)
def test_backup_refuses_invalid_arguments(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        BackupAndRestore(tmp_path, **options)


def make_trained(*callbacks, opt=fastopt.Adam, sizes=(64, 8, 10), **options):
    X, y = load_digits()
    net = MLP(sizes, seed=0)
    trainer = Trainer(net, opt(net.params, **options), callbacks)
    trainer.fit(X[:100], y[:100], epochs=2, verbose=0, seed=0)
    return trainer


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"sizes": (64, 9, 10)}, "W1"),
        ({"opt": fastopt.SGD}, "expected one of SGD, got one of Adam"),
        ({"callbacks": [CSVLogger("log.csv")]}, r"that of the callbacks \['CSVLogger'\], got .* \['EarlyS"),
        ({"callbacks": [TerminateOnNaN()]}, r"that of the callbacks \[\], got that of \['EarlyStopping'\]"),
    ],
)
def test_the_state_of_another_run_is_refused_and_changes_nothing(
    other, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    state = make_trained(EarlyStopping("loss", patience=1)).state_dict()
    other = {"callbacks": [EarlyStopping("loss", patience=9)], **other}
    trainer = make_trained(*other.pop("callbacks"), **other)
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(ValueError, match=message):
        trainer.load_state_dict(state)
    assert_equal_trees(trainer.state_dict(), before)


def test_callbacks_without_a_state_may_differ():
    stop = EarlyStopping("loss", patience=1)
    state = make_trained(TerminateOnNaN(), stop).state_dict()
    other = EarlyStopping("loss", patience=1)
    trainer = make_trained(other, LambdaCallback())
    trainer.load_state_dict(state)
    assert other.state_dict() == stop.state_dict()


@pytest.mark.parametrize("state", [None, {}, {"net": {}}])
def test_an_invalid_state_is_refused(state):
    with pytest.raises(ValueError, match="state: expected a dict with the keys callbacks, epoch, his"):
        make_trained().load_state_dict(state)


def test_a_damaged_callback_state_is_refused_and_changes_nothing():
    trainer = make_trained(EarlyStopping("loss", patience=1))
    state = trainer.state_dict()
    X, y = load_digits()
    trainer.fit(X[:100], y[:100], verbose=0)
    before = copy.deepcopy(trainer.state_dict())
    state["callbacks"][0][1].pop("wait")
    with pytest.raises(ValueError, match="state of EarlyStopping: expected the keys"):
        trainer.load_state_dict(state)
    assert_equal_trees(trainer.state_dict(), before)


def assert_equal_trees(a, b):
    """Assert that two trees are equal; NaN equals NaN."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_trees(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal_trees(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b or (a != a and b != b)


def test_an_optimizer_without_state_dict_is_refused():
    class Descent:
        def step(self, grads):
            pass

    with pytest.raises(TypeError, match="opt: expected an object with 'state_dict', got Descent"):
        Trainer(CountingNet(), Descent()).state_dict()


def test_save_tree_and_load_tree_round_trip(tmp_path):
    tree = {
        "array": np.arange(3, dtype=np.float32),
        "dict": {"array": [1, 2.5, None, True, "x", math.inf, 2**100], "": np.zeros((0, 2))},
        "numbers": (np.float64(0.1), np.int64(7)),
    }
    save_tree(tmp_path / "tree", tree)
    back = load_tree(tmp_path / "tree")
    assert back.pop("numbers") == [0.1, 7]
    tree.pop("numbers")
    assert_equal_trees(back, tree)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
