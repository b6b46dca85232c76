"""fastopt.Trainer: gradient clipping, sample weights, class weights and sparse data."""

import math

import numpy as np
import pytest
from trainer_helpers import Recorder, RecordingNet, digits_trainer, rows, split_digits

import fastopt
from fastopt.nn import MLP, Trainer
from fastopt.nn.evaluation import combined_weights

# --- Clipping --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({}, [1, 3]),
        ({"clip_value": 2.0}, [1, 2]),
        # Gradients are 2 ones and 6 threes: their norm is sqrt(56).
        ({"max_norm": 1.0}, [1 / math.sqrt(56), 3 / math.sqrt(56)]),
        ({"max_norm": 1.0, "clip_value": 0.2}, [1 / math.sqrt(56), 0.2]),
    ],
)
def test_clipping(options, moved):
    net = RecordingNet()
    opt = fastopt.SGD(net.params, lr=1.0)
    Trainer(net, opt, **options).fit(*rows(4), 4, verbose=0)
    for layer, by in zip((net.params[0], net.params[2]), moved, strict=True):
        for param in layer:
            np.testing.assert_allclose(param, -by, rtol=1e-6)
    assert opt.grad_norm == (pytest.approx(math.sqrt(56)) if "max_norm" in options else None)


# --- Gradient accumulation -------------------------------------------------------------------


class LinearNet:
    """Least squares, as a user writes it: mean loss and mean gradient of the samples."""

    grads_reversed = False

    def __init__(self):
        self.params = [[np.zeros(3)]]

    def train_step(self, X, y, weight=None):
        weight = np.ones(len(y)) if weight is None else weight
        error = X @ self.params[0][0] - y
        scaled = weight * error / weight.sum()
        return float(scaled @ error / 2), [[X.T @ scaled]]

    def predict(self, X):
        return X @ self.params[0][0]


def mlp():
    return MLP([3, 1], dtype="float64", loss="squared_error", seed=0)


@pytest.mark.parametrize("make_net", [LinearNet, mlp])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", [[32, 8], [20, 20], [9, 9, 9, 9, 4]], ids=str)
def test_accumulated_batches_equal_one_batch(make_net, weighted, sizes):
    """The mean over all samples, however they are divided into batches and weighted."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 3)), rng.standard_normal(40)
    options = {"sample_weight": rng.uniform(0.0, 2.0, 40) if weighted else None}
    whole, divided = make_net(), make_net()
    for net, batch_size, accumulate in ((whole, 40, 1), (divided, sizes[0], len(sizes))):
        opt = fastopt.Adam(net.params, lr=0.1, accumulate=accumulate)
        trainer = Trainer(net, opt, max_norm=0.5)
        trainer.fit(X, y, batch_size, 3, verbose=0, shuffle=False, **options)
        assert opt.steps == 3
    for a, b in zip(whole.params[0], divided.params[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_remaining_batches_of_an_epoch_make_a_step():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((50, 3)), rng.standard_normal(50)
    net, twin = LinearNet(), LinearNet()
    opt, twin_opt = (fastopt.Adam(n.params, lr=0.1, accumulate=k) for n, k in ((net, 3), (twin, 1)))
    Trainer(net, opt, max_norm=0.1).fit(X, y, 10, 2, verbose=0, shuffle=False)
    for begin, end in 2 * [(0, 30), (30, 50)]:
        twin_opt.step(twin.train_step(X[begin:end], y[begin:end])[1], max_norm=0.1)
    assert opt.steps == twin_opt.steps == 4
    np.testing.assert_allclose(net.params[0][0], twin.params[0][0], rtol=1e-12)
    assert not opt.flush()


def test_other_optimizers_get_no_weights():
    class Plain:
        calls = 0

        def step(self, grads):
            self.calls += 1

    opt = Plain()
    Trainer(LinearNet(), opt).fit(np.ones((4, 3)), np.ones(4), 2, verbose=0)
    assert opt.calls == 2


# --- Sample weights and class weights --------------------------------------------------------


class WeightedNet(RecordingNet):
    """Records weights as well; its loss is the weighted mean of the labels."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def train_step(self, X, y, sample_weight=None):
        self.weights.append(None if sample_weight is None else sample_weight.copy())
        return np.average(y, weights=sample_weight), super().train_step(X, y)[1]

    def evaluate(self, X, y, sample_weight=None):
        return np.average(y, weights=sample_weight)


@pytest.mark.parametrize("shuffle", [False, True])
def test_weights_are_shuffled_with_their_samples(shuffle):
    net = WeightedNet()
    X, y = rows(10)
    weight = np.arange(10) / 10
    trainer = Trainer(net, fastopt.SGD(net.params))
    history = trainer.fit(
        X, y, 4, epochs=2, verbose=0, shuffle=shuffle, seed=0, sample_weight=list(weight)
    )
    for (_, labels), weights in zip(net.batches, net.weights, strict=True):
        np.testing.assert_array_equal(weights, labels / 10)
    # The mean over an epoch is the mean over its samples, for any batches.
    assert history.history["loss"] == pytest.approx([np.average(y, weights=weight)] * 2)


def test_models_are_called_without_weights_if_there_are_none():
    net = WeightedNet()
    X, y = rows(10)
    history = Trainer(net, fastopt.SGD(net.params)).fit(X, y, 4, validation_data=(X, y), verbose=0)
    assert net.weights == [None] * 3
    assert history.history["loss"] == [4.5] == history.history["val_loss"]


def test_batches_of_zero_weight_are_skipped():
    net = WeightedNet()
    X, y = rows(12)
    weight = np.repeat([1.0, 0.0, 2.0], 4)
    recorder = Recorder()
    trainer = Trainer(net, fastopt.SGD(net.params), [recorder])
    history = trainer.fit(X, y, 4, verbose=0, shuffle=False, sample_weight=weight)
    assert [labels[0] for _, labels in net.batches] == [0, 8] and trainer.opt.steps == 2
    assert history.history["loss"] == pytest.approx([np.average(y, weights=weight)])
    assert [event[1] for event in recorder.events if event[0] == "batch_end"] == [0, 2]


def test_accuracy_uses_sample_weights_but_not_class_weights():
    net = WeightedNet()
    X, y = rows(4)
    wrong = np.array([0, 1, 7, 7])
    history = Trainer(net, fastopt.SGD(net.params)).fit(
        X,
        wrong,
        verbose=0,
        sample_weight=[1, 2, 3, 4],
        class_weight={7: 100.0},
        validation_data=(X, wrong, [4, 3, 2, 1]),
    )
    assert history.history["accuracy"] == [pytest.approx(3 / 10)]
    assert history.history["val_accuracy"] == [pytest.approx(7 / 10)]
    assert history.history["val_loss"] == [pytest.approx((3 + 2 * 7 + 7) / 10)]


@pytest.mark.parametrize(
    ("y", "class_weight", "sample_weight", "expected"),
    [
        ([0, 0, 0, 1], "balanced", None, [4 / 6, 4 / 6, 4 / 6, 2]),
        ([0, 0, 0, 1], {0: 0.5, 1: 2}, None, [0.5, 0.5, 0.5, 2]),
        ([0, 0, 0, 1], {1: 3}, None, [1, 1, 1, 3]),
        ([0, 0, 0, 1], {0: 2, 1: 3, 2: 4}, None, [2, 2, 2, 3]),
        ([0, 0, 0, 1], {1: 3}, [1, 0, 2, 3], [1, 0, 2, 9]),
        ([0, 0, 0, 1], None, [1, 0, 2, 3], [1, 0, 2, 3]),
        ([[0], [2], [2], [2]], {0: 4}, None, [4, 1, 1, 1]),
        (["a", "b", "a", "a"], {"b": 3}, None, [1, 3, 1, 1]),
        ([True, False, True, True], {True: 3}, None, [3, 1, 3, 3]),
        (["a", "b", "a", "a"], "balanced", [1, 1, 1, 2], [4 / 6, 2, 4 / 6, 8 / 6]),
    ],
)
def test_class_weights(y, class_weight, sample_weight, expected):
    net = WeightedNet()
    net.predict = lambda X: np.zeros(len(X))
    net.train_step = lambda X, y, w: net.weights.append(w.copy()) or (1.0, net.params[::-1])
    trainer = Trainer(net, fastopt.SGD(net.params))
    trainer.fit(
        np.zeros((4, 2)), y, 4, verbose=0, shuffle=False, class_weight=class_weight,
        sample_weight=sample_weight,
    )  # fmt: skip
    np.testing.assert_allclose(net.weights[0], expected, rtol=1e-15)


def test_balanced_class_weights_match_scikit_learn():
    weights = pytest.importorskip("sklearn.utils.class_weight")
    y = np.random.default_rng(0).integers(0, 5, 200)
    np.testing.assert_allclose(
        combined_weights(y, class_weight="balanced"), weights.compute_sample_weight("balanced", y)
    )


def test_doubling_a_weight_equals_doubling_the_sample():
    X, y, test = split_digits()
    X, y = X[:200].astype(np.float64), y[:200]
    twice = np.concatenate([np.arange(200), np.arange(50)])

    def trained(X, y, weight, weight_of_test=None):
        net = MLP([64, 8, 10], seed=0, dtype="float64")
        trainer = Trainer(net, fastopt.SGD(net.params, lr=0.1))
        return trainer.fit(
            X, y, len(X), epochs=5, verbose=0, validation_data=(X, y, weight), sample_weight=weight
        ).history

    weighted = trained(X, y, np.where(np.arange(200) < 50, 2.0, 1.0))
    doubled = trained(X[twice], y[twice], None)
    for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
        np.testing.assert_allclose(weighted[name], doubled[name], rtol=1e-10)


# --- Sparse data -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csr_array", "coo_array", "csr_matrix"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_sparse_data_train_like_dense_data(form, shuffle):
    sparse = pytest.importorskip("scipy.sparse")
    X, y, (X_test, y_test) = split_digits()
    convert = getattr(sparse, form)
    histories = []
    for kind in (np.asarray, convert):
        fit = {"validation_data": (kind(X_test), y_test), "shuffle": shuffle, "seed": 0}
        trainer = digits_trainer()
        histories.append(trainer.fit(kind(X), y, epochs=2, verbose=0, **fit).history)
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-4)
