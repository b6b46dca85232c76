"""The accuracy of the training data that `Trainer.fit` records."""

import itertools

import numpy as np
import pytest
from trainer_helpers import RecordingNet, rows, split_digits

import fastopt
from fastopt.callbacks import Callback, SwapEMAWeights
from fastopt.nn import MLP, Trainer

LARGE, SMALL = (64, 128, 10), (64, 8, 10)   # updated within the pass or after it


class Oracle(Callback):
    """Predict each batch before its step; `accuracy` has the weighted mean of every epoch."""

    def __init__(self, X, y, batch_size, seed, weight=None, predict=None):
        self.X, self.y, self.batch_size = X, y, batch_size
        self.rng = None if seed is None else np.random.default_rng(seed)
        self.weight = np.ones(len(y)) if weight is None else np.asarray(weight, float)
        self.predict = predict
        self.accuracy = []

    def on_epoch_begin(self, epoch, logs):
        n = len(self.y)
        self.order = np.arange(n) if self.rng is None else self.rng.permutation(n)
        self.sums = np.zeros(2)

    def on_train_batch_begin(self, batch, logs):
        chosen = self.order[batch * self.batch_size :][: self.batch_size]
        predicted = (self.predict or self.trainer.net.predict)(self.X[chosen])
        right = (predicted == self.y[chosen]).reshape(len(chosen), -1).all(axis=1)
        weight = self.weight[chosen]
        self.sums += (weight * right).sum(), weight.sum()

    def on_epoch_end(self, epoch, logs):
        right, total = self.sums
        self.accuracy.append(right / total)


def fit(net, oracle, opt=fastopt.Adam, epochs=3, **options):
    trainer = Trainer(net, opt(net.params, lr=0.01), [oracle])
    seed = None if oracle.rng is None else 7
    options |= {"verbose": 0, "shuffle": seed is not None, "seed": seed}
    history = trainer.fit(oracle.X, oracle.y, oracle.batch_size, epochs, **options)
    assert history.history["accuracy"] == pytest.approx(oracle.accuracy, rel=1e-12)
    assert len(set(oracle.accuracy)) > 1
    return history.history


def labels_of(kind, y):
    if kind == "multi-label":
        return np.stack([y > 4, y % 2], axis=1).astype(int)
    return {"classes": y, "binary": y > 4, "column": y[:, None] % 2}[kind]


def network(kind, sizes, **options):
    outputs = {"classes": 10, "multi-label": 2}.get(kind, 1)
    loss = "cross_entropy" if kind == "classes" else "binary_cross_entropy"
    return MLP([*sizes[:-1], outputs], loss=loss, seed=0, **options)


def outputs_of(kind, net):
    if kind != "column":
        return None
    return lambda X: net.predict(X)[:, None]


@pytest.mark.parametrize("kind", ["classes", "binary", "column", "multi-label"])
@pytest.mark.parametrize("sizes", [SMALL, LARGE])
@pytest.mark.parametrize(("batch_size", "seed"), [(1, 7), (32, 7), (50, None), (200, 7), (1000, None)])
def test_it_is_the_mean_over_the_batches_before_their_steps(kind, sizes, batch_size, seed):
    X, y, _ = split_digits()
    X, y = X[:200], labels_of(kind, y[:200])
    net = network(kind, sizes)
    fit(net, Oracle(X, y, batch_size, seed, predict=outputs_of(kind, net)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["uint8", "float32", "float64", "sparse"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.3, "norm": "layer", "l2": 1e-3}])
def test_it_does_not_depend_on_the_form_of_the_data(dtype, form, options):
    X, y, _ = split_digits()
    X, y = np.round(X[:150] * 16), y[:150]
    X = pytest.importorskip("scipy.sparse").csr_array(X) if form == "sparse" else X.astype(form)
    for kind, seed in itertools.product(("classes", "multi-label"), (7, None)):
        fit(network(kind, SMALL, dtype=dtype, **options), Oracle(X, labels_of(kind, y), 40, seed))


@pytest.mark.parametrize("seed", [7, None])
@pytest.mark.parametrize("class_weight", [None, {0: 5.0, 3: 0.0}, "balanced"])
def test_sample_weights_count_and_class_weights_do_not(seed, class_weight):
    X, y, _ = split_digits()
    X, y = X[:200], y[:200]
    weight = np.random.default_rng(0).integers(0, 4, 200)
    for given in (weight, None):
        oracle = Oracle(X, y, 30, seed, given)
        fit(network("classes", SMALL), oracle, sample_weight=given, class_weight=class_weight)


@pytest.mark.parametrize("opt", [fastopt.SGD, lambda params, lr: fastopt.Adam(params, lr, accumulate=2)])
def test_it_does_not_depend_on_the_way_of_the_update(opt):
    X, y, _ = split_digits()
    fit(network("classes", LARGE), Oracle(X[:200], y[:200], 30, 7), opt, epochs=6)


def test_batch_normalization_uses_the_statistics_of_the_batch():
    X, y, _ = split_digits()
    X, y = X[:200].astype(np.float64), y[:200]
    net = network("classes", SMALL, norm="batch", dtype="float64")

    def predict(X):
        (W, b, scale), (V, c) = net.params
        z = X @ W
        z = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-5)
        return (np.maximum(scale * z + b, 0) @ V + c).argmax(axis=1)

    fit(net, Oracle(X, y, 40, 7, predict=predict))


def test_dropout_is_applied():
    """With two classes a sample is predicted correctly if its loss is less than log 2."""
    X, y, _ = split_digits()
    net = MLP([64, 16, 2], loss="cross_entropy", dropout=0.6, seed=0)
    losses = []

    class Record(Callback):
        def on_train_batch_end(self, batch, logs):
            losses.append(logs["loss"])

    trainer = Trainer(net, fastopt.Adam(net.params), [Record()])
    history = trainer.fit(X[:300], y[:300] % 2, 1, verbose=0, seed=0)
    assert history.history["accuracy"] == [np.mean(np.array(losses) < np.log(2))]
    assert history.history["accuracy"] != [(net.predict(X[:300]) == y[:300] % 2).mean()]


def test_an_ema_of_the_weights_is_not_used():
    X, y, _ = split_digits()
    net = network("classes", SMALL)
    oracle = Oracle(X[:200], y[:200], 32, 7)
    trainer = Trainer(net, fastopt.Adam(net.params, ema=0.999), [oracle, SwapEMAWeights()])
    history = trainer.fit(X[:200], y[:200], 32, 3, (X[:200], y[:200]), verbose=0, seed=7).history
    assert history["accuracy"] == pytest.approx(oracle.accuracy, rel=1e-12)


def test_an_epoch_that_is_cut_short_counts_its_batches_only():
    X, y, _ = split_digits()
    net = network("classes", SMALL)
    oracle = Oracle(X, y, 32, 7)

    class Stop(Callback):
        def on_train_batch_end(self, batch, logs):
            self.trainer.stop_training = batch == 2

    trainer = Trainer(net, fastopt.Adam(net.params), [oracle, Stop()])
    history = trainer.fit(X, y, 32, verbose=0, seed=7).history
    assert history["accuracy"] == pytest.approx(oracle.accuracy, rel=1e-12)
    assert history["accuracy"][0] * 96 == pytest.approx(round(history["accuracy"][0] * 96), abs=1e-9)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_network_is_not_evaluated_and_trains_the_same(threads, monkeypatch):
    X, y, _ = split_digits()
    monkeypatch.setattr(MLP, "_chunks", None)
    before = fastopt.get_num_threads()
    fastopt.set_num_threads(threads)
    try:
        nets = [network("classes", LARGE) for _ in range(2)]
        for net, is_counted in zip(nets, (True, False), strict=True):
            trainer = Trainer(net, fastopt.Adam(net.params))
            trainer.fit(X, y, verbose=0, seed=0, training_accuracy=is_counted)
            assert ("accuracy" in trainer.history.history) is is_counted
    finally:
        fastopt.set_num_threads(before)
    for p, q in zip(*([a for layer in net.params for a in layer] for net in nets), strict=True):
        np.testing.assert_array_equal(p, q)


def test_a_regression_has_none():
    X, y, _ = split_digits()
    for targets in (y, y.astype(float)):
        net = MLP([64, 1], loss="mse", seed=0)
        history = Trainer(net, fastopt.Adam(net.params)).fit(X, targets, verbose=0).history
        assert "accuracy" not in history


# --- Custom models ---------------------------------------------------------------------------------


class CountingNet(RecordingNet):
    """Predicts every sample correctly whose number is a multiple of 8."""

    predicted = 0

    def train_step(self, X, y, weight=None):
        return super().train_step(X, y)

    def predict(self, X):
        self.predicted += len(X)
        label = super().predict(X)
        return np.where(label % 8 == 0, label, -1)


@pytest.mark.parametrize(
    ("n", "predicted", "expected"),
    [(1, 1, 1), (511, 511, 64 / 511), (512, 256, 1 / 4), (2047, 293, 37 / 293), (2048, 256, 1),
     (8000, 500, 1)],
)
def test_a_custom_model_predicts_evenly_spaced_samples(n, predicted, expected):
    net = CountingNet()
    history = Trainer(net, fastopt.SGD(net.params)).fit(*rows(n), 100, verbose=0).history
    assert net.predicted == predicted
    assert history["accuracy"] == [pytest.approx(expected)]


def test_weights_of_a_custom_model():
    net, (X, y) = CountingNet(), rows(1024)
    weight = np.where(y % 8 == 0, 3.0, 1.0)
    trainer = Trainer(net, fastopt.SGD(net.params))
    history = trainer.fit(X, y, 100, verbose=0, sample_weight=weight).history
    assert history["accuracy"] == [pytest.approx(3 / 4)]    # of the multiples of 4
    weight = (y == 1).astype(float)     # of none of them
    trainer.fit(X, y, 1024, verbose=0, sample_weight=weight)
    assert history["accuracy"][1] == 0.0


def test_a_subclass_with_its_own_predictions_is_evaluated_by_them():
    class Cautious(MLP):
        def predict(self, X):
            return np.where(self.predict_proba(X).max(axis=1) > 0.9, super().predict(X), 0)

    X, y, _ = split_digits()
    X, y = X[:200], y[:200]
    net = Cautious([64, 10], seed=0)
    history = Trainer(net, fastopt.Adam(net.params)).fit(X, y, verbose=0, seed=0).history
    assert history["accuracy"] == [(net.predict(X) == y).mean()]


# --- Validation data -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classes", "binary", "column", "multi-label"])
@pytest.mark.parametrize("weighted", [False, True])
def test_validation_takes_one_forward_pass(kind, weighted, monkeypatch):
    X, y, _ = split_digits()
    X, y = X[:300], labels_of(kind, y[:300])
    weight = np.arange(300.0) if weighted else None
    net = network(kind, SMALL, norm="batch", dropout=0.3, l2=0.01)
    passes, chunks = [], MLP._chunks
    monkeypatch.setattr(MLP, "_chunks", lambda self, *args: passes.append(self) or chunks(self, *args))
    history = Trainer(net, fastopt.Adam(net.params)).fit(X, y, 50, 2, (X, y, weight), verbose=0).history
    assert passes == [net] * 2
    predicted = net.predict(X).reshape(y.shape)
    assert history["val_accuracy"][-1] == pytest.approx(fastopt.nn.metrics.accuracy(y, predicted, weight))
    assert history["val_loss"][-1] == net.evaluate(X, y, weight)
