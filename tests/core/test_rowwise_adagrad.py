"""Row-wise AdaGrad: one accumulator per row of a parameter."""

import numpy as np
import pytest
from rules import same_bits
from sparse_gradients import all_same, arrays_of, as_dense, batch, table

import fastopt
from fastopt import functional, reference

ROWWISE = [
    {},
    {"lr_decay": 0.1, "eps": 1e-3, "maximize": True},
    {"weight_decay": 0.1},
    {"convention": "keras", "eps": 1e-3},
]


@pytest.mark.parametrize("options", ROWWISE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(6, 5), (6,), (3, 2, 4), (2, 9001), (0, 3), (3, 0)])
def test_rowwise_adagrad_equals_the_reference(options, dtype, shape, isa):
    rng = np.random.default_rng(6)
    p = rng.standard_normal(shape).astype(dtype)
    q, r = p.copy(), p.copy()
    acc, acc_function = np.full(shape[:1], 0.5, dtype), np.full(shape[:1], 0.5, dtype)
    opt = fastopt.Adagrad(p, lr=0.1, rowwise=True, initial_accumulator_value=0.5, **options)
    for step in (1, 2, 3):
        g = rng.standard_normal(shape).astype(dtype)
        opt.step(g)
        reference.adagrad_(q, g, acc, lr=0.1, step=step, rowwise=True, **options)
        functional.adagrad_(r, g, acc_function, lr=0.1, step=step, rowwise=True, **options)
        assert same_bits(p, q) and same_bits(r, q)
        assert same_bits(opt.state[0]["sum"], acc) and same_bits(acc_function, acc)
        assert np.isfinite(p).all()


def test_rowwise_adagrad_by_hand():
    """One accumulator per row sums means of squared gradients. A row without a gradient does not change."""
    p = np.ones((3, 2))
    opt = fastopt.Adagrad(p, lr=0.5, eps=0.25, rowwise=True)
    opt.step_rows(p, [2, 0, 2], np.array([[1.0, 2.0], [0.0, 4.0], [2.0, 2.0]]))
    assert opt.state[0]["sum"].tolist() == [8.0, 0.0, 12.5]
    expected = [
        [1.0, 1.0 - 0.5 * 4.0 / (8.0**0.5 + 0.25)], [1.0, 1.0],
        [1.0 - 0.5 * 3.0 / (12.5**0.5 + 0.25), 1.0 - 0.5 * 4.0 / (12.5**0.5 + 0.25)],
    ]
    np.testing.assert_allclose(p, expected, rtol=1e-15)


@pytest.mark.parametrize("options", ROWWISE)
@pytest.mark.parametrize("sparse", ["dense", "exact"])
def test_rowwise_adagrad_on_rows_equals_dense_gradients(options, sparse):
    rng = np.random.default_rng(7)
    p = table(rng, np.float32)
    q = p.copy()
    sparse_opt = fastopt.Adagrad(p, rowwise=True, sparse=sparse, **options)
    dense_opt = fastopt.Adagrad(q, rowwise=True, **options)
    for _ in range(30):
        ids, g = batch(rng, np.float32)
        sparse_opt.step_rows(0, ids, g, max_norm=100.0, grad_scale=0.5)
        dense_opt.step(as_dense(q, ids, g), max_norm=100.0, grad_scale=0.5)
        np.testing.assert_allclose(sparse_opt.grad_norm, dense_opt.grad_norm, rtol=1e-12)
    sparse_opt.catch_up()
    assert all_same(arrays_of(sparse_opt, [p]), arrays_of(dense_opt, [q]))


def test_rowwise_adagrad_alternates_between_rows_and_arrays():
    """Dense steps update every row, so they are not logged."""
    rng = np.random.default_rng(8)
    p = table(rng, np.float64)
    q = p.copy()
    sparse_opt, dense_opt = (fastopt.Adagrad(x, rowwise=True, weight_decay=0.1, sparse=s)
                    for x, s in ((p, "exact"), (q, "dense")))
    for step in range(200):
        ids, g = batch(rng, np.float64)
        if step % 50:
            dense = as_dense(q, ids, g)
            sparse_opt.step(dense), dense_opt.step(dense)
            assert all_same(arrays_of(sparse_opt, [p]), arrays_of(dense_opt, [q]))
        else:
            sparse_opt.step_rows(0, ids, g), dense_opt.step_rows(0, ids, g)


@pytest.mark.parametrize("shape", [(6, 5), (3, 2, 4), (7,)])
@pytest.mark.parametrize(
    "common",
    [{"centralize": True, "unit_clip": 0.1}, {"independent_weight_decay": 0.1, "lookahead": (2, 0.5)}],
)
def test_rowwise_adagrad_with_common_options(shape, common):
    """Rows of one element equal elementwise AdaGrad; otherwise the mean is over the transformed gradient."""
    rng = np.random.default_rng(14)
    p = rng.standard_normal(shape)
    start = p.copy()
    opt = fastopt.Adagrad(p, rowwise=True, **common)
    elementwise = fastopt.Adagrad(q := p.copy(), **common)
    opt.step(g := rng.standard_normal(shape))
    elementwise.step(g)
    axes = tuple(range(1, len(shape)))
    np.testing.assert_allclose(opt.state[0]["sum"], elementwise.state[0]["sum"].mean(axis=axes), rtol=1e-14)
    if len(shape) == 1:
        np.testing.assert_allclose(p, q, rtol=1e-14)
    decayed = start * (1.0 - common.get("independent_weight_decay", 0.0))
    # Both are the learning rate times the gradient.
    actual = (decayed - p).reshape(shape[0], -1) * np.sqrt(opt.state[0]["sum"])[:, None]
    expected = ((decayed - q) * np.sqrt(elementwise.state[0]["sum"])).reshape(shape[0], -1)
    np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-12)


def test_changing_rowwise_resets_the_accumulator():
    p, q = np.ones((4, 3)), np.ones((4, 3))
    opt = fastopt.Adagrad(p, initial_accumulator_value=0.5)
    for rowwise in (True, False):
        opt.step(np.ones((4, 3)))
        opt.groups[0]["rowwise"] = rowwise
        q[...] = p
        opt.step(np.ones((4, 3)))
        fastopt.Adagrad(q, rowwise=rowwise, initial_accumulator_value=0.5).step(np.ones((4, 3)))
        assert same_bits(p, q) and opt.state[0]["sum"].shape == ((4,) if rowwise else (4, 3))


def test_rowwise_adagrad_zeroes_and_copies_gradients():
    p, q = [np.ones((4, 3)), np.ones(4)], [np.ones((4, 3)), np.ones(4)]
    opt, expected_opt = fastopt.Adagrad(p, rowwise=True), fastopt.Adagrad(q, rowwise=True)
    g = [np.asfortranarray(np.arange(12.0).reshape(4, 3)), np.arange(4.0)]
    expected_opt.step([np.ascontiguousarray(a) for a in g])
    opt.step(g, zero_grad=True)
    assert all_same(p, q) and not any(a.any() for a in g)
    g = [np.arange(12.0).reshape(4, 3), np.arange(4.0)]
    expected_opt.step([a.copy() for a in g])
    opt.step(g, zero_grad=True)
    assert all_same(p, q) and not any(a.any() for a in g)
    with pytest.raises(ValueError, match="share memory"):
        opt.step([g[0], g[0].ravel()[:4]], zero_grad=True)


def test_rowwise_state_is_saved_and_loaded():
    p = np.ones((4, 3), np.float32)
    opt = fastopt.Adagrad(p, rowwise=True)
    opt.step_rows(p, [1, 2], np.ones((2, 3), np.float32))
    q = p.copy()
    twin = fastopt.Adagrad(q, rowwise=True)
    twin.load_state_dict(opt.state_dict())
    for one, array in ((opt, p), (twin, q)):
        one.step_rows(array, [2, 3], np.ones((2, 3), np.float32))
    assert all_same(arrays_of(opt, [p]), arrays_of(twin, [q]))
    elementwise = fastopt.Adagrad(q)
    mixed = {**opt.state_dict(), "groups": elementwise.state_dict()["groups"]}
    with pytest.raises(ValueError, match=r"\['sum'\]: expected float32 of shape \(4, 3\), got .*\(4,\)"):
        elementwise.load_state_dict(mixed)
