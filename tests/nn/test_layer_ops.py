"""Dropout, normalization, sums and vector kernels, and the reproducibility of all layer kernels."""

import math

import numpy as np
import pytest
from layers import DTYPES, SHAPES, Dropout, Layers, assert_close, block, everything, random

from fastopt._core.dispatch import load, runnable
from fastopt.nn._core import dispatch


@pytest.fixture
def layers(isa):
    return Layers(dispatch.layers)


# --- Dropout ---------------------------------------------------------------------------------------


def threefry(key, counter, rounds):
    """Threefry-2x32 (Salmon et al. 2011) on arrays of uint32, transcribed from its definition."""
    keys = [np.uint32(key[0]), np.uint32(key[1])]
    keys.append(np.uint32(0x1BD11BDA) ^ keys[0] ^ keys[1])
    a, b = (np.atleast_1d(np.asarray(x, np.uint32)).copy() for x in counter)
    a += keys[0]
    b += keys[1]
    for i in range(rounds):
        rotation = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        a += b
        b = (b << np.uint32(rotation) | b >> np.uint32(32 - rotation)) ^ a
        if i % 4 == 3:
            j = i // 4 + 1
            a += keys[j % 3]
            b += np.asarray([keys[(j + 1) % 3]]) + np.uint32(j)
    return a, b


@pytest.mark.parametrize(
    "rounds, counter, key, expected",
    [
        (13, (0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        (13, (0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0xFD36D048, 0x2D17272C)),
        (13, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xBA3E4725, 0xF27D669E)),
        (20, (0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        (20, (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_known_answers(rounds, counter, key, expected):
    """Test vectors published by the authors of the generator."""
    with np.errstate(over="ignore"):
        assert tuple(int(x[0]) for x in threefry(key, counter, rounds)) == expected


def random_words(mask, first, count):
    """Random words ``first, first + 1, ...`` of a mask; 32 counters give 64 words, first words first."""
    halves = [(mask.key & 0xFFFFFFFF, mask.key >> 32), (mask.step & 0xFFFFFFFF, mask.step >> 32)]
    i = np.arange(first, first + count, dtype=np.uint64)
    counter = i // np.uint64(64) * np.uint64(32) + i % np.uint64(32)
    key = [int(x[0]) for x in threefry(halves[0], halves[1], 13)]
    a, b = threefry(key, (counter & np.uint64(0xFFFFFFFF), counter >> np.uint64(32)), 13)
    return np.where(i % np.uint64(64) < 32, a, b)


def drop(layers, mask, a, first=0, in_place=False):
    a = a.copy()
    out = a if in_place else np.full_like(a, np.nan)
    layers.dropout(mask, block(a), first, a, out)
    return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_mask(layers, dtype):
    for rows, n, first, rate in [(5, 7, 0, 0.5), (3, 100, 11, 0.1), (40, 10, 2**40, 0.25), (2, 64, 1, 0.9)]:
        mask = Dropout(0x0123456789ABCDEF, 2**33 + 5, rate)
        a = random(rows, n, dtype=dtype)
        kept = random_words(mask, first * n, rows * n).reshape(a.shape) >= rate * 2**32
        expected = np.where(kept, a * dtype(1 / (1 - rate)), 0)
        assert np.array_equal(drop(layers, mask, a, first), expected)
        assert np.array_equal(drop(layers, mask, a, first, in_place=True), expected)


def test_dropout_rate_and_independence(layers):
    """Frequencies are within five standard deviations of their expectation."""
    ones = np.ones((1000, 100), np.float32)
    for rate in (0.0, 0.1, 0.5, 0.999):
        kept = [drop(layers, Dropout(*seed, rate), ones) > 0 for seed in [(1, 1), (1, 2), (2, 1)]]
        pairs = [
            (kept[0], kept[1]),
            (kept[0], kept[2]),
            (kept[0][1:], kept[0][:-1]),
            (kept[0][:, 1:], kept[0][:, :-1]),
            (kept[0][:, 32:], kept[0][:, :-32]),
        ]
        deviation = 5 * math.sqrt(rate * (1 - rate) / ones.size)
        for one in kept:
            assert abs(one.mean() - (1 - rate)) <= deviation
        for one, other in pairs:
            assert abs((one & other).mean() - (1 - rate) ** 2) <= 2 * deviation


# --- Normalization and sums ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_normalization(layers, shape, dtype):
    z, delta = random(*shape, dtype=dtype) + dtype(3), random(*shape, dtype=dtype, seed=1)
    wide = z.astype(np.longdouble)
    rstd = np.empty(shape[0], dtype)
    layers.normalize_rows(block(z), 1e-3, z, rstd)
    expected = 1 / np.sqrt(wide.var(axis=1) + 1e-3)
    assert_close(rstd, expected, dtype)
    assert_close(z, (wide - wide.mean(axis=1, keepdims=True)) * expected[:, None], dtype, 64)
    actual = delta.copy()
    layers.normalize_rows_backward(block(z), z, rstd, actual)
    wide, products = (
        delta.astype(np.longdouble),
        (delta * z.astype(np.longdouble)).mean(axis=1, keepdims=True),
    )
    expected = rstd[:, None] * (wide - wide.mean(axis=1, keepdims=True) - z * products)
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=64 * np.finfo(dtype).eps * abs(delta).max() * rstd.max()
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_column_operations(layers, shape, dtype):
    rows, n = shape
    z, delta, vectors = (
        random(*shape, dtype=dtype),
        random(*shape, dtype=dtype, seed=1),
        random(4, n, dtype=dtype),
    )
    a, b, c, d = vectors
    x = block(z)
    out = np.empty_like(z)
    layers.affine(x, a, b, z, out)
    assert np.array_equal(out, a * z + b)
    out = z.copy()
    layers.normalize_columns(x, a, b, out)
    assert np.array_equal(out, (z - a) * b)
    out = delta.copy()
    layers.scale_columns(x, a, out)
    assert np.array_equal(out, a * delta)
    layers.normalize_columns_backward(x, z, b, c, d, 300.0, out := delta.copy())
    share = dtype(1 / 300)
    assert np.array_equal(out, b * (delta - share * c - z * (share * d)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_column_sums_are_taken_in_row_order(layers, shape, dtype):
    z, delta = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    x = block(z)
    total, product, mean, squares = (np.empty(shape[1], dtype) for _ in range(4))
    layers.column_sums(x, delta, total)
    expected = np.add.accumulate(delta, axis=0)[-1]
    assert np.array_equal(total, expected)
    layers.column_products(x, z, delta, total, product)
    assert np.array_equal(total, expected)
    assert np.array_equal(product, np.add.accumulate(delta * z, axis=0)[-1])
    layers.column_moments(x, z, mean, squares)
    assert np.array_equal(mean, np.add.accumulate(z, axis=0)[-1] / dtype(shape[0]))
    assert np.array_equal(squares, np.add.accumulate((z - mean) ** 2, axis=0)[-1])


# --- Vectors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 15, 16, 100, 1027])
def test_vectors(layers, n, dtype):
    x, y = random(n, dtype=dtype), random(n, dtype=dtype, seed=1)
    assert layers.sum_squares(n, x) == pytest.approx(math.fsum(x.astype(float) ** 2), rel=1e-14)
    assert layers.all_finite(n, x)
    for i in {0, n // 2, n - 1} if n else ():
        for bad in (np.nan, np.inf, -np.inf):
            damaged = x.copy()
            damaged[i] = bad
            assert not layers.all_finite(n, damaged)
    expected = y + dtype(0.3) * x
    layers.add_scaled(n, 0.3, x, y)
    assert np.array_equal(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("code, source", [(0, np.float32), (1, np.float64), (2, np.uint8)])
def test_conversion(layers, code, source, dtype):
    x = (np.arange(259) * 0.7).astype(source)
    y = np.empty(259, dtype)
    layers.convert(x.size, code, x, y)
    assert np.array_equal(y, x.astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, size", [(1, 4), (8, 4), (13, 5)])
def test_merged_moments_are_those_of_the_batch(layers, rows, size, dtype):
    n, eps = 7, 1e-3
    z = random(rows, n, dtype=dtype) + dtype(3)
    blocks = [z[i : i + size] for i in range(0, rows, size)]
    means, squares = np.empty((2, len(blocks), n), dtype)
    for one, mean, square in zip(blocks, means, squares, strict=True):
        layers.column_moments(block(one), one, mean, square)
    mean, rstd = np.empty((2, n), dtype)
    running_mean, running_variance = random(2, n, dtype=dtype)
    before = running_mean.copy(), running_variance.copy()
    layers.merge_moments(block(z), size, eps, 0.1, means, squares, mean, rstd, running_mean, running_variance)
    wide = z.astype(np.longdouble)
    variance = wide.var(axis=0)
    assert_close(mean, wide.mean(axis=0), dtype)
    assert_close(rstd, 1 / np.sqrt(variance + eps), dtype, 64)
    assert_close(running_mean, 0.9 * before[0] + 0.1 * mean, dtype)
    assert_close(running_variance, 0.9 * before[1] + 0.1 * variance * rows / max(rows - 1, 1), dtype, 64)
    layers.reciprocal_std(n, eps, variance.astype(dtype), rstd)
    assert_close(rstd, 1 / np.sqrt(variance.astype(dtype) + eps), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_first_column_finite(layers, dtype):
    for column, expected in [(0, False), (1, True)]:
        for bad in (np.nan, np.inf, -np.inf):
            z = random(5, 3, dtype=dtype)
            assert layers.first_column_finite(block(z), z)
            z[4, column] = bad
            assert bool(layers.first_column_finite(block(z), z)) is expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_at(layers, dtype):
    x = random(9, dtype=dtype)
    index = np.array([8, 0, 3, 3])
    assert layers.sum_at(9, None, x) == pytest.approx(x.astype(float).sum(), rel=1e-14)
    assert layers.sum_at(4, index, x) == pytest.approx(x[index].astype(float).sum(), rel=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_expanded_row(layers, dtype):
    columns, values = np.array([5, 1, 5, 7, -1]), np.array([1, 2, 3, 4, 5], dtype)
    out = np.full(9, 8, dtype)
    layers.expand_row(5, columns, values, 7, out)
    assert out.tolist() == [0, 2, 0, 0, 0, 4, 0, 8, 8]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (40, 37), (33, 5)])
def test_transpose(layers, shape, dtype):
    W = random(*shape, dtype=dtype)
    out = np.empty(shape[::-1], dtype)
    for begin in range(0, shape[0], 20):
        layers.transpose(W, out, *shape, begin, min(begin + 20, shape[0]))
    assert np.array_equal(out, W.T)


# --- Bit-for-bit reproducibility ---------------------------------------------------------------------------


def random_matrix(dtype):
    return lambda shape, seed: random(*shape, dtype=dtype, seed=seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 10), (13, 1), (9, 37), (3, 1500)])
def test_results_are_equal_across_instruction_sets(shape, dtype):
    builds = [Layers(load("fastopt.nn._core.layers", isa)) for isa in runnable()]
    expected, *others = (everything(layers, random_matrix(dtype), shape, [0, shape[0]]) for layers in builds)
    for actual in others:
        assert all(map(np.array_equal, actual, expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 10), (13, 1), (9, 37), (3, 1500), (150, 3)])
def test_results_do_not_depend_on_blocks(layers, shape, dtype):
    expected = everything(layers, random_matrix(dtype), shape, [0, shape[0]])
    for cuts in ([0, 1, shape[0]], [0, shape[0] // 3, shape[0] // 2, shape[0]], list(range(shape[0] + 1))):
        for actual, whole in zip(
            everything(layers, random_matrix(dtype), shape, cuts), expected, strict=True
        ):
            if whole.shape == (1,):  # the caller adds the losses of the blocks
                assert actual.sum() == pytest.approx(whole.sum(), rel=1e-6)
            else:
                assert np.array_equal(actual, whole)
