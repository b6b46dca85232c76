"""What people write, as they would annotate it: type checkers read this file, and here it also runs.

``# type: ignore`` stands where a checker must complain: mypy refuses one that is not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import fastopt
from fastopt.callbacks import EarlyStopping, LambdaCallback, LearningRateScheduler, ModelCheckpoint
from fastopt.nn import check_gradients
from fastopt.nn.data import load_digits, train_test_split

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from fastopt.nn.typing import Logs, Net, Stepper

    Layers = list[list[NDArray[np.float64]]]


class Linear:
    """A net of one's own, by the article's protocol."""

    def __init__(self) -> None:
        self.W, self.b = np.zeros((2, 1)), np.zeros(1)
        self.params = [[self.W, self.b]]

    def train_step(self, X: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, Layers]:
        error = X @ self.W + self.b - y[:, None]
        return float(0.5 * np.mean(error**2)), [[X.T @ error / len(X), error.mean(axis=0)]]

    def predict(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return X @ self.W + self.b


class Descent:
    """An optimizer of one's own."""

    def __init__(self, params: Layers) -> None:
        self.params = params

    def step(self, grads: Layers) -> None:
        for layer, layer_grads in zip(self.params, grads, strict=True):
            for p, g in zip(layer, layer_grads, strict=True):
                p -= 0.1 * g


class Losses(fastopt.Callback):
    """A callback of one's own."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self.seen.append(logs["loss"])
        self.trainer.stop_training = len(self.trainer.history.epoch) == 2

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}


def test_own_net_and_optimizer() -> None:
    X = np.random.default_rng(0).normal(size=(20, 2))
    y: NDArray[np.float64] = X[:, 0] - X[:, 1]
    own = Linear()
    net: Net = own
    opt: Stepper = Descent(own.params)
    losses = Losses()
    history: fastopt.History = fastopt.Trainer(net, opt, [losses]).fit(X, y, epochs=5, verbose=0)
    of_history: list[float] = history.history["loss"]
    stopped_by: str | None = history.stopped_by
    assert losses.seen == of_history and len(of_history) == 2
    assert stopped_by == "Losses"
    assert check_gradients(net, X, y) < 1e-7


def test_net_and_trainer(tmp_path: Path) -> None:
    X, _, y, _ = train_test_split(*load_digits(), test_size=0.9)
    net = fastopt.MLP([64, 16, 10], ["tanh"], norm="batch", dropout=(0.1,), dtype=np.float64, seed=0)
    opt = fastopt.Adam(net.params, lr=fastopt.schedules.Cosine(1e-3, steps=100))
    step: tuple[float, list[list[NDArray[np.floating[Any]]]]] = net.train_step(X, y)
    opt.step(step[1], max_norm=1.0)
    stop = EarlyStopping(patience=1, restore_best_weights=True)
    save = ModelCheckpoint(tmp_path / "net.npz", save_freq=3, monitor="loss")
    trainer = fastopt.Trainer(net, opt, (stop, save, LambdaCallback(on_train_end=lambda logs: None)))
    trainer.fit(X.tolist(), y, validation_data=(X, y), class_weight={0: 2.0}, verbose=0)
    best: float = stop.best
    again: fastopt.MLP = fastopt.MLP.load(tmp_path / "net.npz")
    assert np.isfinite(best)
    assert again.predict(X).shape == y.shape


def test_learning_rates() -> None:
    X, y = load_digits()
    net = fastopt.MLP([64, 10])
    opt = fastopt.SGD(net.params, lr=0.1)
    found = fastopt.lr_find(net, opt, X, y, steps=20)
    suggestion: float | None = found.suggestion
    if suggestion is not None:
        opt.groups[0]["lr"] = suggestion
    halve = LearningRateScheduler(lambda epoch, lr: lr / 2)
    history = fastopt.Trainer(net, opt, [halve]).fit(X[:50], y[:50], verbose=0)
    assert history.last()["lr"] == opt.groups[0]["lr"]


def test_estimators() -> None:
    pytest.importorskip("sklearn")
    from fastopt.sklearn import MLPClassifier, MLPRegressor

    X, _, y, _ = train_test_split(*load_digits(), test_size=0.9)
    model: MLPClassifier = MLPClassifier((16,), solver="adamw", dropout=0.1)
    model.partial_fit(X, y, classes=range(10)).predict(X)
    curve: list[float] = model.loss_curve_
    probabilities: NDArray[np.floating[Any]] = model.predict_proba(X)
    values = MLPRegressor("huber", 8, solver=lambda params: fastopt.Lion(params)).partial_fit(X, y).predict(X)
    assert len(curve) == 1
    assert probabilities.shape == (len(X), 10)
    assert values.shape == y.shape


def test_mistakes() -> None:
    net = fastopt.MLP([2, 2])
    opt = fastopt.SGD(net.params, lr=0.1)
    with pytest.raises(ValueError, match="activation"):
        fastopt.MLP([1, 2], activation="rleu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dtype"):
        fastopt.MLP([1, 2], dtype="float16")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode"):
        EarlyStopping(mode="mni")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="net must have 'params'"):
        fastopt.Trainer(object(), opt)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="opt must have 'step'"):
        fastopt.Trainer(net, "sgd")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callbacks"):
        fastopt.Trainer(net, opt, [EarlyStopping])  # type: ignore[list-item]
