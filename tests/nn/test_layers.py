"""Activations and losses of the layer kernels against formulas in higher precision and against torch."""

import math

import numpy as np
import pytest
from layers import DTYPES, SHAPES, SMOOTHING, THRESHOLD, Criterion, Layers, assert_close, block, random

from fastopt.nn._core import dispatch

EXTENDED = np.finfo(np.longdouble).nmant > 52

erf = np.vectorize(math.erf, otypes=[float])
erfc = np.vectorize(math.erfc, otypes=[float])


@pytest.fixture
def layers(isa):
    return Layers(dispatch.layers)


def max_ulps(actual, expected):
    """Return the largest error in ULP; `expected` has a wider dtype."""
    spacing = np.spacing(np.abs(expected).astype(actual.dtype)).astype(expected.dtype)
    return float(np.max(np.abs(actual.astype(expected.dtype) - expected) / spacing))


# --- Activations -----------------------------------------------------------------------------------


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def normal_cdf(z):
    return erfc(-z / math.sqrt(2)) / 2


def gelu_argument(z):
    return math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


FORWARD = {
    "identity": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "gelu": lambda z: z * normal_cdf(z),
    "gelu_tanh": lambda z: z * (1 + np.tanh(gelu_argument(z))) / 2,
    "silu": lambda z: z * sigmoid(z),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
}
BACKWARD = {
    "identity": np.ones_like,
    "relu": lambda z: (z > 0).astype(z.dtype),
    "leaky_relu": lambda z: np.where(z > 0, 1.0, 0.01),
    "elu": lambda z: np.where(z > 0, 1.0, np.exp(np.minimum(z, 0))),
    "gelu": lambda z: normal_cdf(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi),
    "gelu_tanh": lambda z: (
        (1 + np.tanh(gelu_argument(z))) / 2
        + z / 2 / np.cosh(gelu_argument(z)) ** 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    ),
    "silu": lambda z: sigmoid(z) * (1 + z * (1 - sigmoid(z))),
    "tanh": lambda z: 1 - np.tanh(z) ** 2,
    "sigmoid": lambda z: sigmoid(z) * (1 - sigmoid(z)),
}


def forward(layers, name, z, b=None, in_place=False):
    """Return a copy of z after the call, with the bias added, and the activation."""
    z = z.copy()
    a = z if in_place else np.empty_like(z)
    layers.activation_forward(layers.activations[name], block(z), b, z, a)
    return z, a


def backward(layers, name, z, a, delta):
    """Return the gradient with respect to z; kernels that do not need z get None."""
    delta = delta.copy()
    layers.activation_backward(
        layers.activations[name], block(a), z if name in layers.needs_z else None, a, delta
    )
    return delta


def test_every_activation_is_tested(layers):
    assert FORWARD.keys() == BACKWARD.keys() == layers.activations.keys()
    assert set(layers.needs_z) < layers.activations.keys()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORWARD)
def test_activation(layers, name, dtype):
    for shape in SHAPES:
        z, b, delta = random(*shape, dtype=dtype), random(shape[1], dtype=dtype), random(*shape, dtype=dtype)
        shifted, a = forward(layers, name, z, b)
        assert np.array_equal(shifted, z + b)
        expected = (z + b).astype(np.float64)
        assert_close(a, FORWARD[name](expected), dtype)
        assert_close(backward(layers, name, shifted, a, delta), delta * BACKWARD[name](expected), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORWARD)
def test_activation_in_place_is_bit_identical(layers, name, dtype):
    for shape in SHAPES:
        z, b = random(*shape, dtype=dtype), random(shape[1], dtype=dtype)
        for bias in (None, b):
            assert np.array_equal(forward(layers, name, z, bias, True)[1], forward(layers, name, z, bias)[1])


@pytest.mark.parametrize("name", FORWARD)
def test_derivative_matches_finite_differences(layers, name):
    z = random(9, 13)
    step = 1e-6
    assert np.abs(z).min() > step  # no element near a jump of a derivative
    derivative = (forward(layers, name, z + step)[1] - forward(layers, name, z - step)[1]) / (2 * step)
    actual = backward(layers, name, *forward(layers, name, z), np.ones_like(z))
    np.testing.assert_allclose(actual, derivative, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORWARD)
def test_activation_of_extreme_values(layers, name, dtype):
    large = np.finfo(dtype).max
    z = np.array([[np.nan, -large, large, -1e4, 1e4, 0.0, np.inf]], dtype)
    a = forward(layers, name, z)[1][0]
    with np.errstate(over="ignore"):
        assert np.isnan(a[0])
        low = {"tanh": -1.0, "elu": -1.0, "identity": -large, "leaky_relu": dtype(0.01) * -large}
        assert a[1] == low.get(name, 0.0)
    assert a[2] == (1.0 if name in ("tanh", "sigmoid") else large)
    assert a[3] == {"identity": -1e4, "leaky_relu": dtype(-100.0)}.get(name, low.get(name, 0.0))
    assert a[4] == (1.0 if name in ("tanh", "sigmoid") else 1e4)
    assert a[5] == (0.5 if name == "sigmoid" else 0.0)
    assert a[6] == (1.0 if name in ("tanh", "sigmoid") else np.inf)


# Largest error in ULP. The errors of gelu and silu double where the product with z crosses a power of two.
MAX_ULPS = {"exp": 1.5, "elu": 1.5, "tanh": 3.0, "sigmoid": 2.5, "silu": 4.0, "gelu": 12.0}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MAX_ULPS)
def test_error_in_ulps(layers, name, dtype):
    if dtype == np.float64 and not EXTENDED:
        pytest.skip("needs a dtype wider than float64")
    wide = np.float64 if dtype == np.float32 else np.longdouble
    rng = np.random.default_rng(5)
    limit = -math.log(np.finfo(dtype).tiny) - 3
    z = np.concatenate(
        [rng.uniform(-limit, limit, 40000), rng.normal(0, 1, 40000), 10 ** rng.uniform(-6, 0, 20000)]
    )
    z = z[(z < 0) | (name != "elu")].astype(dtype)[None]
    if name == "gelu":  # below, the reference is not more accurate in float64
        z = np.maximum(z, dtype(-1.0 if dtype == np.float64 else -12.0))
    if name == "exp":
        actual = np.empty_like(z)
        criterion = Criterion(layers.losses["poisson"], 1.0)
        layers.loss(criterion, block(z), z, np.zeros_like(z), None, actual)
        expected = np.exp(z.astype(wide))
    else:
        actual, expected = forward(layers, name, z)[1], FORWARD[name](z.astype(wide))
    assert max_ulps(actual, expected) < MAX_ULPS[name]


# --- Losses ----------------------------------------------------------------------------------------


def huber(z, y):
    d = np.abs(z - y)
    return np.where(d <= THRESHOLD, d * d / 2, THRESHOLD * (d - THRESHOLD / 2))


def cross_entropy(z, y):
    row_max = z.max(axis=1, keepdims=True)
    log_p = z - row_max - np.log(np.exp(z - row_max).sum(axis=1, keepdims=True))
    target = (1 - SMOOTHING) * (y[:, None] == np.arange(z.shape[1])) + SMOOTHING / z.shape[1]
    return -target * log_p


LOSSES = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": lambda z, y: np.logaddexp(0, z) - y * z,
    "squared_error": lambda z, y: (z - y) ** 2 / 2,
    "huber": huber,
    "quantile": lambda z, y: np.maximum(THRESHOLD * (y - z), (THRESHOLD - 1) * (y - z)),
    "poisson": lambda z, y: np.exp(z) - y * z,
}


def targets(name, shape, dtype):
    rng = np.random.default_rng(1)
    if name == "cross_entropy":
        return rng.integers(0, shape[1], shape[0])
    return rng.uniform(0, 1, shape).astype(dtype)


def loss(layers, name, z, y, weight=None, scale=1.0):
    delta = np.full_like(z, np.nan)
    criterion = Criterion(layers.losses[name], scale, SMOOTHING, THRESHOLD)
    return layers.loss(criterion, block(z), z, y, weight, delta), delta


def test_every_loss_is_tested(layers):
    assert LOSSES.keys() == layers.losses.keys()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_loss(layers, name, dtype):
    for shape in SHAPES:
        z, y, weight = (
            random(*shape, dtype=dtype),
            targets(name, shape, dtype),
            random(shape[0], dtype=dtype) ** 2,
        )
        saved = z.copy()
        expected = LOSSES[name](z.astype(np.float64), y.astype(np.float64))
        value, delta = loss(layers, name, z, y, scale=0.25)
        assert_close(value, expected.sum(), dtype)
        weighted, scaled = loss(layers, name, z, y, weight, scale=0.25)
        assert_close(weighted, (expected * weight[:, None].astype(float)).sum(), dtype)
        assert_close(scaled, delta * weight[:, None].astype(float), dtype)
        assert np.array_equal(z, saved)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_gradient_matches_finite_differences(layers, name):
    shape, step = (6, 11), 1e-6
    z, y, weight = random(*shape), targets(name, shape, np.float64), np.arange(6.0)
    actual = loss(layers, name, z, y, weight, scale=0.5)[1]
    for index in np.ndindex(shape):
        shift = np.zeros(shape)
        shift[index] = step
        derivative = loss(layers, name, z + shift, y, weight)[0] - loss(layers, name, z - shift, y, weight)[0]
        assert actual[index] == pytest.approx(0.5 * derivative / (2 * step), rel=1e-7, abs=1e-7), index


def test_pinball_loss_has_zero_gradient_at_the_target(layers):
    z = np.array([[1.0, 2.0, 3.0]])
    value, delta = loss(layers, "quantile", z, np.full_like(z, 2.0))
    assert delta.tolist() == [[-THRESHOLD, 0.0, 1 - THRESHOLD]]
    assert value == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_nonfinite_logits_is_nonfinite(layers, name, bad, dtype):
    for shape in [(3, 4), (2, 50)]:
        for column in (0, shape[1] - 1):
            z, y = random(*shape, dtype=dtype), targets(name, shape, dtype)
            z[1, column] = bad
            assert not math.isfinite(loss(layers, name, z, y)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_do_not_overflow(layers, dtype):
    z = np.array([[1e4, -1e4, 0.0]], dtype)
    value, delta = loss(layers, "binary_cross_entropy", z, np.array([[0.0, 1.0, 0.0]], dtype))
    assert value == pytest.approx(2e4 + math.log(2)) and delta.tolist() == [[1.0, -1.0, 0.5]]
    value, delta = loss(layers, "cross_entropy", z, np.array([1]))
    uniform = SMOOTHING / 3
    assert value == pytest.approx((1 - SMOOTHING + uniform) * 2e4 + uniform * 1e4)
    assert delta[0] == pytest.approx([1 - uniform, SMOOTHING - 1 - uniform, -uniform])


# --- Parity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORWARD)
def test_activation_agrees_with_torch(layers, name):
    torch = pytest.importorskip("torch")
    functions = {
        "identity": lambda z: z * 1,
        "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
    }
    function = functions.get(name) or getattr(torch.nn.functional, name)
    z, delta = random(31, 17), random(31, 17, seed=1)
    leaf = torch.tensor(z, requires_grad=True)
    expected = function(leaf)
    expected.backward(torch.tensor(delta))
    actual = forward(layers, name, z)
    np.testing.assert_allclose(actual[1], expected.detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        backward(layers, name, *actual, delta), leaf.grad.numpy(), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "quantile"])
def test_loss_agrees_with_torch(layers, name):
    torch = pytest.importorskip("torch")
    functions = {
        "cross_entropy": torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING, reduction="sum"),
        "binary_cross_entropy": torch.nn.BCEWithLogitsLoss(reduction="sum"),
        "squared_error": lambda z, y: torch.nn.functional.mse_loss(z, y, reduction="sum") / 2,
        "huber": torch.nn.HuberLoss(delta=THRESHOLD, reduction="sum"),
        "poisson": torch.nn.PoissonNLLLoss(reduction="sum"),
    }
    z = random(31, 17)
    y = targets(name, z.shape, z.dtype)
    leaf = torch.tensor(z, requires_grad=True)
    expected = functions[name](leaf, torch.tensor(y))
    expected.backward()
    value, delta = loss(layers, name, z, y)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(delta, leaf.grad.numpy(), rtol=1e-12, atol=1e-12)


# --- Correct predictions ---------------------------------------------------------------------------


def correct(layers, name, z, y):
    marks = np.full(len(z), -1, np.int8)
    layers.mark_correct(layers.losses[name], block(z), z, y, marks)
    return marks


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_labels_are_correct_where_argmax_predicts_them(layers, shape, dtype):
    z = np.round(random(*shape, dtype=dtype))  # many elements are equal
    last = shape[1] - 1 - z[:, ::-1].argmax(axis=1)
    for labels in (z.argmax(axis=1), last, np.arange(shape[0]) % shape[1]):
        expected = z.argmax(axis=1) == labels
        np.testing.assert_array_equal(correct(layers, "cross_entropy", z, labels.astype(np.int64)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_several_labels_are_correct_where_all_of_them_are(layers, shape, dtype):
    z = np.round(random(*shape, dtype=dtype))  # some elements are 0
    y = (z > 0).astype(dtype)
    y[::2, -1] = 1 - y[::2, -1]
    expected = np.arange(shape[0]) % 2 == 1
    np.testing.assert_array_equal(correct(layers, "binary_cross_entropy", z, y), expected)
    smoothed = y * dtype(0.2) + dtype(0.4)
    np.testing.assert_array_equal(correct(layers, "binary_cross_entropy", z, smoothed), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_never_correct(layers, dtype):
    for row in ([np.nan, 0, 0, 0], [0, 1, np.nan, 0], [np.nan] * 4):
        for label in range(4):
            z, y = np.array([row], dtype), np.array([label])
            assert correct(layers, "cross_entropy", z, y) == [0]
    z = np.array([[np.inf, 1, -np.inf, 0]], dtype)
    assert correct(layers, "cross_entropy", z, np.array([0])) == [1]
