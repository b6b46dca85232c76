"""ModelCheckpoint, and files that are written atomically."""

import math
import os

import numpy as np
import pytest
from callback_helpers import CountingNet, X, Y, make_trainer, run, saved_weight, small_digits

import fastopt
from fastopt.atomic_write import atomic_write
from fastopt.callbacks import LambdaCallback, ModelCheckpoint
from fastopt.checkpoint import load_tree, save_tree
from fastopt.nn import MLP, Trainer


def test_one_file_per_epoch(tmp_path):
    save = ModelCheckpoint(tmp_path / "a" / "{epoch:02d}-{val_loss:.2f}.npz", save_weights_only=True)
    run(make_trainer([3.0, 1.0, 2.127], save))
    files = {path.name: saved_weight(path) for path in (tmp_path / "a").iterdir()}
    assert files == {"01-3.00.npz": 1, "02-1.00.npz": 2, "03-2.13.npz": 3}


@pytest.mark.parametrize(
    ("values", "options", "saved", "best"),
    [
        ([3, 1, 2, 1, 0.5], {}, [1, 2, 5], 0.5),
        ([3, 1, 4, 4], {"mode": "max"}, [1, 3], 4),
        ([3, 1, 2, 0.5], {"initial_value_threshold": 2.5}, [2, 4], 0.5),
        ([3, 3, 3], {"initial_value_threshold": 2.5}, [], 2.5),
        ([math.nan, 1, math.nan], {}, [2], 1),
    ],
)
def test_save_best_only(tmp_path, values, options, saved, best):
    path = tmp_path / "best.npz"
    save = ModelCheckpoint(path, save_best_only=True, save_weights_only=True, **options)
    weights = []

    def look(epoch, logs):
        if path.exists():
            weights.append(saved_weight(path))

    run(make_trainer(values, save, LambdaCallback(on_epoch_end=look)))
    assert sorted(set(weights)) == saved and save.best == best


def test_save_best_only_over_several_fits(tmp_path):
    save = ModelCheckpoint(tmp_path / "best.npz", save_best_only=True, save_weights_only=True)
    trainer = make_trainer([3, 1, 2], save)
    for _ in range(3):
        run(trainer, 1)
    assert saved_weight(tmp_path / "best.npz") == 2


def test_save_freq_counts_batches_across_epochs(tmp_path):
    save = ModelCheckpoint(
        tmp_path / "{epoch}-{batch}-{loss:.1f}.npz", save_freq=3, save_weights_only=True
    )
    trainer = make_trainer([1.0] * 4, save)
    trainer.fit(X, Y, 2, 4, verbose=0)  # two batches per epoch
    files = {path.name: saved_weight(path) for path in tmp_path.iterdir()}
    assert files == {"2-1-1.0.npz": 3, "3-2-1.0.npz": 6}


def test_a_saved_model_can_be_loaded(tmp_path):
    X, y, test = small_digits()
    net = MLP([64, 16, 10], seed=0, norm="batch")
    model = ModelCheckpoint(tmp_path / "net.npz", save_best_only=True, monitor="val_accuracy")
    arrays = ModelCheckpoint(tmp_path / "arrays.npz", save_weights_only=True)
    Trainer(net, fastopt.Adam(net.params, lr=0.01), [model, arrays]).fit(
        X, y, epochs=3, validation_data=test, verbose=0, seed=0
    )
    assert model.best > 0.5
    loaded = MLP.load(tmp_path / "net.npz")
    assert np.mean(loaded.predict(test[0]) == test[1]) == model.best
    other = MLP([64, 16, 10], seed=1, norm="batch")
    other.load_state_dict(dict(np.load(tmp_path / "arrays.npz")))
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], array)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays.npz", "net.npz"]


def test_a_failed_save_keeps_the_previous_file(tmp_path):
    class Net(CountingNet):
        def save(self, path):
            path.write_text("half")
            if self.weight == 2:
                raise OSError("no space left on device")
            path.write_text(f"complete {self.weight}")

    net = Net([2.0, 1.0])
    trainer = Trainer(net, fastopt.SGD(net.params, lr=1.0), [ModelCheckpoint(tmp_path / "net")])
    with pytest.raises(OSError, match="no space left"):
        run(trainer)
    assert (tmp_path / "net").read_text() == "complete 1.0"
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_file_is_replaced_and_not_overwritten(tmp_path):
    path = tmp_path / "net.npz"
    save_tree(path, {"a": 1})
    os.link(path, tmp_path / "second link")
    save_tree(path, {"a": 2})
    assert load_tree(tmp_path / "second link") == {"a": 1} and load_tree(path) == {"a": 2}


def test_atomic_write_moves_accompanying_files(tmp_path):
    with atomic_write(tmp_path / "net.safetensors") as temporary:
        temporary.write_text("new")
        temporary.with_suffix(".json").write_text("described")
        assert list(tmp_path.glob("net*")) == []
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "net.safetensors": "new", "net.json": "described"
    }  # fmt: skip


def test_checkpoint_in_safetensors_format(tmp_path):
    pytest.importorskip("safetensors")
    X, y, test = small_digits()
    net = MLP([64, 10], seed=0)
    save = ModelCheckpoint(tmp_path / "net.safetensors")
    Trainer(net, fastopt.Adam(net.params), [save]).fit(X, y, verbose=0)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    loaded = MLP.load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(loaded.predict(test[0]), net.predict(test[0]))


def test_messages_of_the_checkpoint(tmp_path, capsys):
    save = ModelCheckpoint(tmp_path / "w.npz", save_best_only=True, save_weights_only=True, verbose=1)
    run(make_trainer([3.0, 4.0, 1.0], save))
    assert capsys.readouterr().out.splitlines() == [
        f"Epoch 1: val_loss improved from inf to 3.00000, saved {tmp_path / 'w.npz'}",
        f"Epoch 3: val_loss improved from 3.00000 to 1.00000, saved {tmp_path / 'w.npz'}",
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"save_freq": 0}, ValueError, "save_freq: expected at least 1, got 0"),
        ({"save_freq": "batch"}, TypeError, "save_freq: expected an integer, got 'batch'"),
        ({"save_weights_only": True, "filepath": "w.h5"}, ValueError, "filepath: .*npz.*got 'w.h5'"),
        ({"save_best_only": True, "monitor": "f1"}, ValueError, "mode: cannot infer .* maximize 'f1'"),
        ({"mode": "best", "save_best_only": True}, ValueError, "mode: expected one of auto, min, max"),
        ({"initial_value_threshold": "1"}, TypeError, "initial_value_threshold: expected a number"),
    ],
)
def test_checkpoint_refuses_invalid_arguments(options, error, message):
    with pytest.raises(error, match=message):
        ModelCheckpoint(**{"filepath": "w.npz", **options})


def test_checkpoint_raises_before_training(tmp_path):
    trainer = make_trainer([1.0], ModelCheckpoint(tmp_path / "net.npz"))
    with pytest.raises(TypeError, match=r"net: ModelCheckpoint expected .* 'save', got CountingNet; save_w"):
        run(trainer)
    assert trainer.net.weight == 0.0
    for filepath, field in (("{val_f1}.npz", "'val_f1'"), ("{}.npz", "")):
        save = ModelCheckpoint(tmp_path / filepath, save_weights_only=True)
        with pytest.raises(ValueError, match=rf"filepath: .* has the field .*{field}.*expected one of ep"):
            run(make_trainer([1.0], save))
    save = ModelCheckpoint(
        tmp_path / "w.npz", save_weights_only=True, save_best_only=True, save_freq=1
    )
    with pytest.raises(ValueError, match="finds no 'val_loss', expected one of batch, loss"):
        run(make_trainer([1.0], save))
    assert not list(tmp_path.iterdir())
