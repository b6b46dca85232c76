"""fastopt.MLP: files, state dicts and copies."""

import copy
import json
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlp_helpers import batch, flat, make

import fastopt
from fastopt.nn import MLP


@pytest.mark.parametrize("suffix", ["model", "npz", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_save_and_load(tmp_path, dtype, suffix):
    if suffix == "safetensors":
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    net = make(activation=["elu", "gelu"], dtype=dtype, l2=0.25, init="he", norm=["batch", "layer"])
    X, y = batch("cross_entropy")
    net.train_step(X, y)
    path = tmp_path / f"net.{suffix}"
    net.save(path)
    loaded = MLP.load(path)
    np.testing.assert_array_equal(loaded.predict_proba(X), net.predict_proba(X))
    assert loaded.train_step(X, y)[0] == net.train_step(X, y)[0]
    assert repr(loaded) == repr(net) and loaded._config() == net._config()
    assert [path.name for path in tmp_path.iterdir()] == [f"net.{suffix}"]


def test_a_file_holds_only_plain_arrays(tmp_path):
    make().save(tmp_path / "net.npz")
    with np.load(tmp_path / "net.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_safetensors_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"fastopt\[safetensors\]"):
        make().save(tmp_path / "net.safetensors")


def test_loss_auto_is_saved(tmp_path):
    make("auto").save(tmp_path / "net.npz")
    assert MLP.load(tmp_path / "net.npz").loss == "auto"


def save_modified(path, config=None, **changes):
    """Save a model with some arrays or entries of its config replaced (None: omitted)."""
    net = make()
    net.save(path)
    with np.load(path) as file:
        arrays = dict(file) | changes
    if config:
        described = {k: v for k, v in (net._config() | config).items() if v is not None}
        arrays["fastopt_mlp"] = np.array(json.dumps(described))
    with open(path, "wb") as file:
        np.savez(file, **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fastopt_mlp": None}, "not a saved"),
        ({"fastopt_mlp": np.array(1)}, "does not describe"),
        ({"fastopt_mlp": np.array("{")}, "does not describe"),
        ({"config": {"format": 99}}, "expected format 2, got 99"),
        ({"W2": None}, "'W2' is missing"),
        ({"config": {"l2": None}}, "'l2' is missing"),
        ({"b1": np.zeros(3, np.float32)}, r"'b1'\]: expected float32 of shape \(7,\)"),
        ({"W2": np.zeros((7, 6))}, r"'W2'\]: expected float32"),
        ({"config": {"activation": "cubic"}}, "activation: expected one of"),
        ({"config": {"sizes": [5]}}, "sizes"),
        ({"config": {"sizes": [5.0, 7.0]}}, "sizes"),
        ({"config": {"color": 3}}, "color"),
        ({"W1": np.array([[{}]])}, "plain arrays"),
    ],
)
def test_load_refuses_files_of_other_content(tmp_path, changes, message):
    path = tmp_path / "net.npz"
    save_modified(path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        MLP.load(path)
    assert str(path) in str(error.value)


def test_load_refuses_damaged_safetensors(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "net.safetensors"
    make().save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"net\.safetensors"):
        MLP.load(path)


def test_load_state_dict_changes_all_or_nothing():
    net = make(norm="batch")
    net.train_step(*batch("cross_entropy"))
    saved = net.state_dict()
    assert sorted(saved) == sorted(
        [f"{name}{i}" for name in ("W", "b", "scale", "mean", "variance") for i in (1, 2)] + ["W3", "b3"]
    )
    net.train_step(*batch("cross_entropy", seed=5))
    for array in flat(net.params):
        array += 1
    for broken in ({"b3": saved["b3"][:-1]}, {"b3": saved["b3"].astype(float)}):
        with pytest.raises(ValueError, match="'b3'"):
            net.load_state_dict(saved | broken)
    with pytest.raises(ValueError, match="'variance2' is missing"):
        net.load_state_dict({name: array for name, array in saved.items() if name != "variance2"})
    assert (net.params[0][0] == saved["W1"] + 1).all()
    net.load_state_dict(saved)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, saved[name])


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 0.999))
def test_load_refuses_truncated_files(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("nets") / "net.npz"
    make().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(ValueError, match="npz"):
        MLP.load(path)


def pickle_copy(graph):
    return pickle.loads(pickle.dumps(graph))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle_copy])
def test_copies_share_parameters_with_a_copied_optimizer(duplicate):
    X, y = batch("cross_entropy", dtype=np.float32)
    net = make()
    opt = fastopt.Adam(net.params, lr=0.01)
    for _ in range(3):
        opt.step(net.train_step(X, y)[1])
    twin, twin_opt = duplicate((net, opt))
    for p, q in zip(flat(net.params), flat(twin.params), strict=True):
        assert not np.shares_memory(p, q)
    assert all(p is q for p, q in zip(flat(twin.params), flat(twin_opt.params), strict=True))
    for _ in range(3):
        opt.step(net.train_step(X, y)[1])
        twin_opt.step(twin.train_step(X, y)[1])
    for p, q in zip(flat(net.params), flat(twin.params), strict=True):
        np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle_copy])
def test_copies_have_separate_gradients(duplicate):
    X, y = batch("cross_entropy")
    net = make()
    _, grads = net.train_step(X, y)
    saved = [g.copy() for g in flat(grads)]
    twin = duplicate(net)
    twin.train_step(X[:2], y[:2])
    for g, k in zip(flat(grads), saved, strict=True):
        np.testing.assert_array_equal(g, k)
