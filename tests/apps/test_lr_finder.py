"""fastopt.lr_find: the sweep, the average, the suggestion, and the unchanged originals."""

import copy
import math
import pickle

import numpy as np
import pytest

import fastopt
from fastopt import lr_find, schedules
from fastopt.lr_finder import LRFind, _suggest
from fastopt.nn import MLP, Trainer
from fastopt.nn.data import load_digits

X4, Y4 = np.zeros((4, 1)), np.zeros(4)


class ScriptedNet:
    """A model with given losses for any weights; deep copies share the record of calls."""

    def __init__(self, losses):
        self.params = [[np.zeros(1)], []]
        self.losses = losses
        self.seen = []

    def __deepcopy__(self, memo):
        twin = type(self)(self.losses)
        twin.seen = self.seen
        memo[id(self.params)] = twin.params
        memo[id(self.params[0][0])] = twin.params[0][0]
        return twin

    def train_step(self, X, y, sample_weight=None):
        weight = None if sample_weight is None else sample_weight.copy()
        self.seen.append((self.params[0][0][0], y.copy(), weight))
        return self.losses[len(self.seen) - 1], [[], [np.full(1, -1.0)]]

    def predict(self, X):
        return np.zeros(len(X))


def find(losses, X=X4, y=Y4, batch_size=4, **options):
    net = ScriptedNet(losses)
    return lr_find(net, fastopt.SGD(net.params), X, y, batch_size, **options), net


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits()
    return X[:600].astype(np.float32), y[:600]


# --- The sweep ---------------------------------------------------------------------------------


def test_rates_are_evenly_spaced_on_a_logarithmic_scale_and_used():
    result, net = find([1.0] * 11, start_lr=1e-4, end_lr=10.0, steps=11)
    np.testing.assert_allclose(result.lr, np.logspace(-4, 1, 11), rtol=1e-12)
    # The gradient is -1: before each step the weight is the sum of the rates so far.
    np.testing.assert_allclose([w for w, *_ in net.seen], np.cumsum([0, *result.lr[:-1]]), rtol=1e-12)


def test_every_group_gets_the_rate_even_with_schedules(digits):
    X, y = digits
    rates = []

    class Adam(fastopt.Adam):
        def step(self, grads, **options):
            rates.append([group["lr"] for group in self.groups])
            super().step(grads, **options)

    net = MLP([64, 8, 10], seed=0)
    opt = Adam([{"params": net.params[0], "lr": schedules.Cosine(0.1, 9)}, {"params": net.params[1]}])
    result = lr_find(net, opt, X, y, steps=10)
    assert rates == [[lr, lr] for lr in result.lr]


def test_as_many_epochs_as_needed():
    y = np.arange(10)
    _, net = find([1.0] * 12, np.zeros((10, 1)), y, 4, steps=12, seed=0)
    batches = [labels for _, labels, _ in net.seen]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 4
    for first in range(0, 12, 3):
        assert sorted(np.concatenate(batches[first : first + 3])) == list(range(10))


def test_weights_are_passed_on():
    _, net = find([1.0] * 20, y=np.arange(4), steps=10, seed=0, batch_size=2,
                  sample_weight=[0, 0, 1, 1], class_weight={3: 5.0})  # fmt: skip
    for _, labels, weight in net.seen:
        np.testing.assert_array_equal(weight, np.array([0, 0, 1, 5.0])[labels])
        assert weight.any()
    assert len(net.seen) == 10


@pytest.mark.parametrize("options", [{"max_norm": 1e-3}, {"clip_value": 1e-3}])
def test_gradients_are_clipped(options):
    result, net = find([1.0] * 10, steps=10, **options)
    np.testing.assert_allclose(net.seen[-1][0], 1e-3 * result.lr[:-1].sum(), rtol=1e-6)


# --- The average, and early stops ------------------------------------------------------------------


def test_the_average_is_bias_corrected():
    losses = [4.0, 2.0, 3.0, 1.0] + [1.0] * 6
    result, _ = find(losses, smoothing=0.5, steps=10)
    np.testing.assert_array_equal(result.loss, losses)
    # Weights of the losses, the newest last: 1; 1/2, 1; 1/4, 1/2, 1; ... over their sum.
    expected = [4.0, (2.0 + 2.0) / 1.5, (1.0 + 1.0 + 3.0) / 1.75, (0.5 + 0.5 + 1.5 + 1.0) / 1.875]
    np.testing.assert_allclose(result.smoothed[:4], expected, rtol=1e-15)
    result, _ = find(losses, smoothing=0.0, steps=10)
    np.testing.assert_array_equal(result.smoothed, losses)


@pytest.mark.parametrize(
    ("losses", "divergence", "n"),
    [
        ([2.0, 1.0, 3.9, 4.1, 9.0], 4.0, 4),
        ([2.0, 1.0, 1.9, 2.1, 9.0], 2.0, 4),
        ([2.0, 1.0, math.nan, 1.0], 4.0, 2),
        ([2.0, 1.0, 3.0, math.inf], 4.0, 3),
        ([2.0, 1.0, 3.0, -math.inf], 4.0, 3),
        ([1.0, -1.0] + [9.0] * 8, 4.0, 10),  # a negative minimum has no multiple
    ],
)
def test_the_test_stops_when_the_loss_diverges(losses, divergence, n):
    result, net = find(losses, smoothing=0.0, divergence=divergence, steps=10)
    assert len(result.lr) == len(result.loss) == len(result.smoothed) == n
    np.testing.assert_array_equal(result.loss, losses[:n])


def test_the_first_loss_must_be_finite():
    with pytest.raises(ValueError, match="net: expected a finite loss of the first batch, got nan"):
        find([math.nan])


# --- The suggestion ----------------------------------------------------------------------------


STEPS = 200
RATES = np.logspace(-7, 1, STEPS)


def falling(begin, end, rise=STEPS):
    """Losses that fall from 2 to 1 between two steps, and rise again from step `rise`."""
    steps = np.arange(STEPS)
    return 2.0 - np.clip((steps - begin) / (end - begin), 0, 1) + np.clip((steps - rise) / 10.0, 0, None)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (falling(60, 120), 100),
        (falling(60, 120, rise=130), 100),
        (falling(0, 30), 20),
        (falling(100, 199), 160),
        (falling(60, 120)[::-1], None),     # they only rise
        (np.ones(STEPS), None),
        (np.ones(5), None),
    ],
)
def test_the_suggestion_is_two_thirds_down_the_fall(losses, expected):
    result = _suggest(RATES[: len(losses)], losses, STEPS)
    assert result is None if expected is None else result == pytest.approx(RATES[expected], rel=0.2)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3])
def test_the_suggestion_of_noisy_losses(noise):
    found = [
        _suggest(RATES, falling(60, 120) + np.random.default_rng(seed).normal(0, noise, STEPS), STEPS)
        for seed in range(20)
    ]
    assert RATES[80] < min(found) <= max(found) < RATES[120]


def test_noise_alone_gives_no_suggestion():
    losses = np.random.default_rng(0).normal(1.0, 0.1, (200, STEPS))
    assert [_suggest(RATES, loss, STEPS) for loss in losses] == [None] * 200


def make_noisy_classes(rng):
    X = rng.normal(size=(600, 8)).astype(np.float32)
    score = X @ rng.normal(size=8)
    return X, (score / score.std() + rng.normal(size=600) > 0).astype(int), 2


def make_housing(rng):
    """Features on different scales, and prices in the hundreds of thousands."""
    X = np.column_stack([rng.uniform(500, 5000, 500), rng.integers(1, 6, 500), rng.uniform(0, 100, 500)])
    return X.astype(np.float32), (50.0 * X[:, 0] + 1e4 * X[:, 1] + rng.normal(0, 2e4, 500)), 1


@pytest.mark.parametrize(
    ("make", "low", "high"), [(make_noisy_classes, 1e-3, 1e-2), (make_housing, 1e-3, 0.1)]
)
def test_the_suggestion_hardly_depends_on_the_seed(make, low, high):
    X, y, n_outputs = make(np.random.default_rng(0))
    found = []
    for seed in range(6):
        net = MLP([X.shape[1], 128, n_outputs], seed=seed)
        found.append(lr_find(net, fastopt.Adam(net.params), X, y, seed=seed).suggestion)
    assert low < min(found) <= max(found) < high and max(found) < 4.0 * min(found)


@pytest.mark.parametrize(
    ("make", "low", "high"),
    [
        (lambda params: fastopt.SGD(params), 0.1, 2.0),
        (lambda params: fastopt.SGD(params, momentum=0.9), 0.01, 0.5),
        (lambda params: fastopt.Adam(params), 0.003, 0.1),
        (lambda params: fastopt.RMSprop(params), 0.002, 0.1),
    ],
    ids=["sgd", "momentum", "adam", "rmsprop"],
)
def test_the_suggestion_trains(digits, make, low, high):
    X, y = digits
    net = MLP([64, 32, 10], seed=0)
    opt = make(net.params)
    result = lr_find(net, opt, X, y, seed=0)
    assert low < result.suggestion < high
    assert result.suggestion in result.lr
    losses = {}
    for factor in (0.01, 1.0):
        net = MLP([64, 32, 10], seed=0)
        opt = make(net.params)
        opt.groups[0]["lr"] = factor * result.suggestion
        history = Trainer(net, opt).fit(X, y, epochs=3, verbose=0, seed=0)
        losses[factor] = history.history["loss"][-1]
    assert losses[1.0] < 0.5 * losses[0.01]


# --- The originals are unchanged ------------------------------------------------------------------------


@pytest.mark.parametrize("net_options", [{}, {"norm": "batch", "dropout": 0.2}], ids=["plain", "all"])
def test_model_and_optimizer_are_unchanged(digits, net_options):
    X, y = digits

    def make():
        net = MLP([64, 16, 10], seed=0, **net_options)
        opt = fastopt.Adam(net.params, lr=schedules.Exponential(0.01, 0.99), ema=0.9)
        trainer = Trainer(net, opt, max_norm=1.0)
        trainer.fit(X, y, epochs=1, verbose=0, seed=0)
        return trainer

    touched, untouched = make(), make()
    before = pickle.dumps((touched.net, touched.opt))
    schedule = touched.opt.groups[0]["lr"]
    result = lr_find(touched.net, touched.opt, X, y, steps=20, max_norm=0.5, seed=0)
    assert len(result.lr) > 10
    assert pickle.dumps((touched.net, touched.opt)) == before
    assert touched.opt.groups[0]["lr"] is schedule and touched.opt.grad_norm == untouched.opt.grad_norm
    for trainer in (touched, untouched):
        trainer.fit(X, y, epochs=1, verbose=0, seed=0)
    for p, q in zip(touched.net.params[0], untouched.net.params[0], strict=True):
        np.testing.assert_array_equal(p, q)


def test_interruption_is_raised():
    class Net(ScriptedNet):
        def train_step(self, X, y):
            raise KeyboardInterrupt

    net = Net([])
    with pytest.raises(KeyboardInterrupt):
        lr_find(net, fastopt.SGD(net.params), X4, Y4)


# --- The result, and invalid arguments -----------------------------------------------------------


def test_repr_of_the_result():
    result = LRFind(np.array([1e-3, 1e-2]), np.ones(2), np.ones(2), 0.005)
    assert repr(result) == "LRFind(2 steps from 0.001 to 0.01: suggestion 0.005)"
    result = LRFind(np.array([1e-3, 1e-2]), np.ones(2), np.ones(2), None)
    assert repr(result) == "LRFind(2 steps from 0.001 to 0.01: no suggestion)"


def test_plot_of_the_result(tmp_path):
    pytest.importorskip("matplotlib")
    result, _ = find([1.0] * 10, steps=10)
    assert len(result.plot(tmp_path / "lr.png").axes) == 1
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 9}, ValueError, "steps: expected at least 10, got 9"),
        ({"steps": 20.0}, TypeError, "steps: expected an integer"),
        ({"start_lr": 0.0}, ValueError, "expected 0 < start_lr < end_lr, got 0.0 and 10.0"),
        ({"start_lr": 1.0, "end_lr": 1.0}, ValueError, "expected 0 < start_lr < end_lr"),
        ({"end_lr": math.inf}, ValueError, "end_lr: expected a finite number"),
        ({"end_lr": "1"}, TypeError, "end_lr: expected a number, got '1'"),
        ({"smoothing": 1.0}, ValueError, r"smoothing: expected a finite number in \[0, 1\), got 1.0"),
        ({"divergence": 0.5}, ValueError, r"divergence: expected a finite number in \[1, inf\), got 0.5"),
        ({"batch_size": 0}, ValueError, "batch_size: expected at least 1"),
        ({"y": Y4[:2]}, ValueError, "y: expected 4 labels"),
        ({"max_norm": -1.0}, ValueError, "max_norm: expected a finite number"),
    ],
)
def test_lr_find_refuses_invalid_arguments(options, error, message):
    net = ScriptedNet([])
    with pytest.raises(error, match=message):
        lr_find(**{"net": net, "opt": fastopt.SGD(net.params), "X": X4, "y": Y4, **options})
    assert not net.seen


def test_the_optimizer_must_have_groups():
    class Descent:
        def step(self, grads):
            pass

    with pytest.raises(TypeError, match="opt: expected an object with 'groups', got Descent"):
        lr_find(ScriptedNet([]), Descent(), X4, Y4)


def test_the_optimizer_must_be_of_the_model():
    other = ScriptedNet([])
    with pytest.raises(ValueError, match=r"opt: expected an optimizer of net\.params"):
        lr_find(ScriptedNet([]), fastopt.SGD(other.params), X4, Y4)


def test_copies_are_trained():
    net = ScriptedNet([1.0] * 10)
    opt = fastopt.SGD(net.params)
    twin = copy.deepcopy((net, opt))
    assert twin[1].params[0][0] is twin[0].params[0][0]
    lr_find(net, opt, X4, Y4, steps=10)
    assert net.params[0][0][0] == 0.0 and opt.steps == 0 and opt.groups[0]["lr"] == 1e-3
