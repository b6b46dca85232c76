"""As `typing_cases`, of nets, their training and the estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fastopt
from fastopt.callbacks import EarlyStopping, LambdaCallback, LearningRateScheduler, ModelCheckpoint
from fastopt.nn import check_gradients
from fastopt.nn.data import load_digits, train_test_split

if TYPE_CHECKING:
    from fastopt.nn.typing import Logs, Net, Stepper
    from fastopt.sklearn import MLPClassifier, MLPRegressor

Layers = list[list[NDArray[np.float64]]]


class Linear:
    """A net of one's own, by the article's protocol."""

    def __init__(self) -> None:
        self.W, self.b = np.zeros((64, 1)), np.zeros(1)
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


def right() -> None:
    X, _, y, _ = train_test_split(*load_digits(), test_size=0.95)

    # what has the protocols' methods
    own = Linear()
    net: Net = own
    opt: Stepper = Descent(own.params)
    losses = Losses()
    history = fastopt.Trainer(net, opt, [losses]).fit(X, y, epochs=5, verbose=0)
    assert_type(history, fastopt.History)
    assert_type(history.history["loss"], list[float])
    assert_type(history.stopped_by, str | None)
    assert losses.seen == history.history["loss"]
    assert history.stopped_by == "Losses"
    assert_type(check_gradients(net, X, y), float)

    # nets
    wide = fastopt.MLP([64, 16, 10], ["tanh"], norm="batch", dropout=(0.1,), dtype=np.float64, seed=0)
    adam = fastopt.Adam(wide.params, lr=fastopt.schedules.Cosine(1e-3, steps=100))
    loss, grads = wide.train_step(X, y)
    assert_type(loss, float)
    adam.step(grads, max_norm=1.0)
    wide.load_state_dict(wide.state_dict())
    assert_type(wide.predict(X.tolist()).ndim, int)

    # training
    stop = EarlyStopping(patience=1, restore_best_weights=True)
    same = LearningRateScheduler(lambda epoch, lr: lr)
    hooks = (stop, same, LambdaCallback(on_train_end=lambda logs: None))
    trainer = fastopt.Trainer(wide, fastopt.SGD(wide.params, lr=0.1), hooks, max_norm=1.0)
    weights = X[:, 20] + 1
    trainer.fit(X.tolist(), y, 16, 1, (X, y), 0, sample_weight=weights, class_weight={0: 2.0})
    assert_type(stop.best, float)
    found = fastopt.lr_find(wide, fastopt.SGD(wide.params, lr=0.1), X, y, steps=20)
    assert_type(found.suggestion, float | None)


def estimators() -> None:
    X, y = load_digits()
    classifier = MLPClassifier((16,), solver="adamw", dropout=0.1).fit(X, y)
    assert_type(classifier, MLPClassifier)
    assert_type(classifier.partial_fit(X, y, classes=range(10)), MLPClassifier)
    assert_type(classifier.loss_curve_, list[float])
    classifier.predict_proba(X).sum()
    MLPRegressor("huber", 8, solver=lambda params: fastopt.Lion(params), callbacks=[Losses()]).fit(X, y)
    MLPClassifier(learning_rate="never")  # E: arg-type
    MLPRegressor("hubert")  # E: arg-type


def wrong() -> None:
    X, y = load_digits()
    net = fastopt.MLP([64, 10])
    opt = fastopt.SGD(net.params, lr=0.1)
    fastopt.MLP(64)  # E: arg-type
    fastopt.MLP([64, 10], activation="rleu")  # E: arg-type
    fastopt.MLP([64, 10], loss="hinge")  # E: arg-type
    fastopt.MLP([64, 10], dtype="float16")  # E: arg-type
    fastopt.MLP([64, 8, 10], norm="group")  # E: arg-type
    fastopt.Trainer(object(), opt)  # E: arg-type
    fastopt.Trainer(net, "sgd")  # E: arg-type
    fastopt.Trainer(net, opt, [Losses])  # E: list-item
    trainer = fastopt.Trainer(net, opt)
    trainer.fit(X, y, epochs="all")  # E: arg-type
    trainer.fit(X, y, class_weight="even")  # E: arg-type
    trainer.fit(X, y, validation_data=X)  # E: arg-type
    EarlyStopping(mode="smaller")  # E: arg-type
    ModelCheckpoint(3)  # E: arg-type

    class Halved(fastopt.Callback):
        def on_epoch_end(self, epoch: int) -> None:  # E: override
            self.trainer.nett = None  # E: attr-defined
