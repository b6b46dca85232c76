"""Sparse gradients: equal to dense ones for sparse="dense" and "exact"; documented results for "lazy"."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import RULES, same_bits

import fastopt
from fastopt import Rows, functional, reference, schedules
from fastopt.optimizers.sparse import steps_to_rest

ROWS, WIDTH = 30, 5
SPARSE = [rule for rule in RULES if "exact" in rule.optimizer.SPARSE and not rule.couples_elements]
# Optimizers whose rows are always replayed step by step in these tests. The others (without momentum, with a
# short momentum, or with decoupled weight decay) multiply an idle row by one product of factors, which is
# rounded once.
SAME_BITS = [
    rule for rule in SPARSE
    if rule.optimizer is not fastopt.AdamW and rule.options.get("betas", (0.9, 0.999))[0] > 0.0
    and rule.options.get("momentum", 0.9) >= 0.9
]
HALF_ULP = {np.float32: 2.0**-24, np.float64: 2.0**-53}
MAX_DEFERRED_STEPS = 1 << 16


def table(rng, dtype, rows=ROWS, width=WIDTH):
    return rng.standard_normal((rows, width)).astype(dtype)


def batch(rng, dtype, rows=ROWS, width=WIDTH, k=8):
    """Random rows, mostly from the first quarter of the table and with duplicates, and their gradients."""
    ids = rng.integers(0, rows if rng.random() < 0.1 else max(rows // 4, 1), k)
    return ids, rng.standard_normal((k, width)).astype(dtype)


def as_dense(p, rows, grads):
    full = np.zeros_like(p)
    np.add.at(full, np.asarray(rows, int), grads)
    return full


def arrays_of(opt, params):
    return [*params, *(a for state in opt.state for a in state.values())]


def all_same(a, b):
    return all(same_bits(x, y) for x, y in zip(a, b, strict=True))


# --- Equal to dense --------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_dense_equals_dense_gradients(rule, dtype):
    """For every optimizer, also with clipping and scaling."""
    rng = np.random.default_rng(0)
    p = table(rng, dtype)
    q = p.copy()
    sparse_opt, dense_opt = rule.make(p, sparse="dense"), rule.make(q)
    for step in range(6):
        ids, g = batch(rng, dtype)
        options = {"max_norm": 0.5, "clip_value": 0.2, "grad_scale": 2.0} if step % 2 else {}
        sparse_opt.step_rows(p, ids, g, **options)
        dense_opt.step(as_dense(q, ids, g), **options)
        assert all_same(arrays_of(sparse_opt, [p]), arrays_of(dense_opt, [q])), step
        assert sparse_opt.grad_norm == dense_opt.grad_norm


@pytest.mark.parametrize(
    "options",
    [{"accumulate": 3}, {"centralize": True, "unit_clip": 0.1}, {"lookahead": (2, 0.5), "ema": 0.9}],
)
def test_sparse_dense_supports_the_common_options(options):
    rng = np.random.default_rng(13)
    p = table(rng, np.float32)
    q = p.copy()
    sparse_opt, dense_opt = fastopt.Adam(p, sparse="dense", **options), fastopt.Adam(q, **options)
    for _ in range(9):
        ids, g = batch(rng, np.float32)
        sparse_opt.step_rows(p, ids, g)
        dense_opt.step(as_dense(q, ids, g))
    assert sparse_opt.steps == dense_opt.steps == 9 // options.get("accumulate", 1)
    assert all_same(arrays_of(sparse_opt, [p]), arrays_of(dense_opt, [q]))


@pytest.mark.parametrize("rule", SAME_BITS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_has_the_same_bits_as_dense(rule, dtype, isa):
    """In 200 steps no row skips more than the 219 steps that are all replayed."""
    rng = np.random.default_rng(1)
    p = table(rng, dtype)
    q = p.copy()
    sparse_opt, dense_opt = rule.make(p, sparse="exact"), rule.make(q)
    for step in range(200):
        ids, g = batch(rng, dtype)
        if step % 3 == 0:
            sparse_opt.catch_up(p, ids)
            assert same_bits(p[ids], q[ids])
        sparse_opt.step_rows(p, ids, g, clip_value=1.5)
        dense_opt.step(as_dense(q, ids, g), clip_value=1.5)
        assert same_bits(p[ids], q[ids])
    sparse_opt.catch_up()
    assert all_same(arrays_of(sparse_opt, [p]), arrays_of(dense_opt, [q]))


LONG_GAP_OPTIMIZERS = [
    (fastopt.Adam, {}),
    (fastopt.Adam, {"amsgrad": True, "betas": (0.8, 0.99)}),
    (fastopt.Adam, {"betas": (0.0, 0.9)}),
    (fastopt.Adam, {"convention": "keras", "eps": 1e-4}),
    (fastopt.AdamW, {"weight_decay": 0.1}),
    (fastopt.SGD, {"momentum": 0.9}),
    (fastopt.SGD, {"momentum": 0.5, "nesterov": True, "convention": "keras"}),
]


@pytest.mark.parametrize(("optimizer", "options"), LONG_GAP_OPTIMIZERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_equals_dense_within_rounding_after_long_gaps(optimizer, options, dtype):
    """Most rows skip a thousand of the 2000 steps at a time. The bound is that of the documentation."""
    rng = np.random.default_rng(2)
    p = table(rng, dtype)
    q = p.copy()
    lr = 1e-2
    sparse_opt, dense_opt = optimizer(p, lr=lr, sparse="exact", **options), optimizer(q, lr=lr, **options)
    steps = 2000
    for step in range(steps):
        ids, g = (np.arange(ROWS), table(rng, dtype)) if step in (0, 5, 1000) else batch(rng, dtype, 7)
        sparse_opt.step_rows(p, ids, g)
        dense_opt.step(as_dense(q, ids, g))
    sparse_opt.catch_up()
    bound = steps * HALF_ULP[dtype]
    for actual, expected in zip(sparse_opt.state[0].values(), dense_opt.state[0].values(), strict=True):
        large = abs(expected) > 1e-30   # smaller values decay to zero, earlier or later depending on rounding
        assert (abs(actual - expected)[large] <= bound * abs(expected)[large]).all()
        assert (abs(actual)[~large] <= 2e-30).all()
    assert (abs(p - q) <= bound * (abs(q) + lr)).all()
    assert not same_bits(p[7:], table(np.random.default_rng(2), dtype)[7:])     # the rows have moved


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9 / 0.999**0.5, 0.99])
def test_dropped_steps_of_idle_rows_are_negligible(ratio, dtype):
    n = steps_to_rest(ratio, dtype)
    j = np.arange(n, n + 10_000)
    dropped = (np.sqrt(1.0 + j) * ratio ** j.astype(float)).sum() if ratio else 0.0
    half_ulp = HALF_ULP[np.dtype(dtype).type]
    assert dropped <= 0.25 * half_ulp
    assert n == 0 or np.sqrt(float(n)) * ratio ** (n - 1) / (1.0 - ratio) > 0.1 * half_ulp


@pytest.mark.parametrize("betas", [(0.0, 0.99), (0.5, 0.99)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_amsgrad_enabled_during_a_run(betas, dtype):
    """The running maximum of the second moment starts at 0 and increases even in idle rows."""
    rng = np.random.default_rng(3)
    p = table(rng, dtype)
    q = p.copy()
    sparse_opt, dense_opt = (fastopt.Adam(x, betas=betas, sparse=s) for x, s in ((p, "exact"), (q, "dense")))
    for step in range(2000):
        ids, g = batch(rng, dtype, k=ROWS if step in (0, 1998) else 1)
        if step == 1000:
            sparse_opt.groups[0]["amsgrad"] = dense_opt.groups[0]["amsgrad"] = True
        sparse_opt.step_rows(0, ids, g), dense_opt.step_rows(0, ids, g)
    sparse_opt.catch_up()
    for a, b in zip(arrays_of(sparse_opt, [p]), arrays_of(dense_opt, [q]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2000 * HALF_ULP[dtype], atol=2000 * HALF_ULP[dtype])


def test_rows_that_never_become_idle():
    assert steps_to_rest(1.0, "float32") == -1
    # Momentum that does not decay, and a second moment that decays faster than the first.
    for make in (
        lambda p, **o: fastopt.SGD(p, lr=1e-4, momentum=1.0, **o),
        lambda p, **o: fastopt.Adam(p, betas=(0.9, 0.5), **o),
    ):
        p = np.ones((3, 2), np.float32)
        q = p.copy()
        sparse_opt, dense_opt = make(p, sparse="exact"), make(q)
        for step in range(400):
            g = np.full((1, 2), 0.1 + step % 2, np.float32)
            sparse_opt.step_rows(p, [0 if step else 1], g)
            dense_opt.step(as_dense(q, [0 if step else 1], g))
        sparse_opt.catch_up()
        assert all_same(arrays_of(sparse_opt, [p]), arrays_of(dense_opt, [q]))


def test_full_log_updates_the_whole_table():
    """After 65536 logged steps every row is brought up to date."""
    p = np.ones((3, 2))
    q = p.copy()
    sparse_opt, dense_opt = fastopt.AdamW(p, sparse="exact"), fastopt.AdamW(q)
    g = np.array([[1.0, -2.0]])
    full = as_dense(p, [0], g)
    sparse_opt.step_rows(p, [1], g)
    dense_opt.step(as_dense(p, [1], g))
    for _ in range(MAX_DEFERRED_STEPS + 100):
        sparse_opt.step_rows(p, [0], g)
        dense_opt.step(full)
    sparse_opt.step_rows(p, [1], g)
    dense_opt.step(as_dense(p, [1], g))
    sparse_opt.catch_up()
    np.testing.assert_allclose(p, q, rtol=MAX_DEFERRED_STEPS * 2.0**-53)


@pytest.mark.parametrize(
    "common", [{"ema": 0.9}, {"lookahead": (7, 0.5)}, {"independent_weight_decay": 1e-3, "maximize": True}]
)
def test_exact_with_options_that_change_during_a_run(common):
    """Schedules, changed hyperparameters, common options, a change of kernel, an added group."""
    rng = np.random.default_rng(3)
    p = table(rng, np.float32)
    q, extra = p.copy(), [np.ones((4, 2)), np.ones((4, 2))]
    options = {
        "lr": schedules.Cosine(1e-2, steps=150), "betas": (lambda t: 0.5 + t / 1000, 0.99),
        "weight_decay": 0.1, **common,
    }
    sparse_opt, dense_opt = fastopt.AdamW(p, sparse="exact", **options), fastopt.AdamW(q, **options)
    for step in range(150):
        for opt, extra_param in zip((sparse_opt, dense_opt), extra, strict=True):
            if step == 40:
                opt.groups[0]["weight_decay"] = 0.3
            if step == 60:
                opt.groups[0]["amsgrad"] = True
            if step == 90:
                opt.groups[0]["lr"] = 1e-3
            if step == 120:
                opt.add_param_group({"params": extra_param, "lr": 0.1})
        ids, g = batch(rng, np.float32)
        sparse, dense = Rows(ids, g), as_dense(q, ids, g)
        if step < 120:
            sparse_opt.step(sparse)
            dense_opt.step(dense)
        else:
            sparse_opt.step([sparse, Rows([step % 4], np.ones((1, 2)))])
            dense_opt.step([dense, as_dense(extra[1], [step % 4], np.ones((1, 2)))])
    if "ema" in common:
        with sparse_opt.swapped_ema(), dense_opt.swapped_ema():
            assert same_bits(p, q) and all_same(sparse_opt.ema, dense_opt.ema)
    sparse_opt.catch_up()
    assert all_same(arrays_of(sparse_opt, [p, extra[0]]), arrays_of(dense_opt, [q, extra[1]]))


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(SAME_BITS),
    dtype=st.sampled_from([np.float32, np.float64]),
    sparse=st.sampled_from(["exact", "dense"]),
    shape=st.sampled_from([(1, 1), (5,), (7, 3), (3, 0), (4, 2, 3), (300, 9)]),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_random_rows_equal_dense_gradients(rule, dtype, sparse, shape, seed, data):
    rng = np.random.default_rng(seed)
    p = rng.standard_normal(shape).astype(dtype)
    q = p.copy()
    sparse_opt, dense_opt = rule.make(p, sparse=sparse), rule.make(q)
    for _ in range(data.draw(st.integers(1, 12))):
        ids = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=9))
        g = rng.standard_normal((len(ids), *shape[1:])).astype(dtype)
        kind = data.draw(st.sampled_from(["rows", "rows", "rows", "dense", "catch up"]))
        if kind == "catch up":
            sparse_opt.catch_up(p, ids)
        sparse_opt.step(as_dense(q, ids, g) if kind == "dense" else Rows(ids, g))
        dense_opt.step(as_dense(q, ids, g))
    sparse_opt.catch_up()
    assert all_same(arrays_of(sparse_opt, [p]), arrays_of(dense_opt, [q]))


# --- Lazy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SPARSE, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lazy_updates_only_rows_with_a_gradient(rule, dtype, isa):
    """These rows use the step count of the optimizer. The other rows and their state do not change."""
    rng = np.random.default_rng(4)
    p = table(rng, dtype)
    q = p.copy()
    opt = rule.make(p)
    state = {name: np.full_like(p, rule.init_value(name)) for name in rule.state}
    assert opt.sparse == "lazy"
    for step in range(1, 20):
        ids, g = batch(rng, dtype)
        opt.step_rows(p, ids, g)
        active = np.unique(ids)
        row_state = {name: a[active] for name, a in state.items()}
        part = q[active]
        rule.reference_step(part, as_dense(q, ids, g)[active], row_state, step)
        q[active] = part
        for name, a in row_state.items():
            state[name][active] = a
        assert same_bits(p, q)
    assert sorted(a.tobytes() for a in opt.state[0].values()) == sorted(a.tobytes() for a in state.values())
    opt.catch_up()
    assert same_bits(p, q)


@pytest.mark.parametrize(
    ("name", "optimizer", "options", "torch_options"),
    [
        ("SparseAdam", fastopt.Adam, {"convention": "keras", "eps": 1e-8}, {}),
        (
            "SparseAdam", fastopt.Adam, {"convention": "keras", "betas": (0.8, 0.99), "eps": 1e-3},
            {"betas": (0.8, 0.99), "eps": 1e-3},
        ),
        ("Adagrad", fastopt.Adagrad, {"lr_decay": 0.1}, {"lr_decay": 0.1}),
        (
            "Adagrad", fastopt.Adagrad, {"initial_accumulator_value": 0.5},
            {"initial_accumulator_value": 0.5},
        ),
        ("SGD", fastopt.SGD, {}, {}),
    ],
)
def test_lazy_parity_with_torch_on_sparse_gradients(name, optimizer, options, torch_options):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(5)
    p = table(rng, np.float64)
    q = torch.nn.Parameter(torch.from_numpy(p.copy()))
    opt = optimizer(p, lr=1e-2, **options)
    torch_opt = getattr(torch.optim, name)([q], lr=1e-2, **torch_options)
    for _ in range(200):
        ids, g = batch(rng, np.float64)
        opt.step_rows(p, ids, g)
        with torch.sparse.check_sparse_tensor_invariants():
            q.grad = torch.sparse_coo_tensor(torch.from_numpy(ids)[None], torch.from_numpy(g), p.shape)
            torch_opt.step()
    np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-10)


# --- Row-wise AdaGrad --------------------------------------------------------------------------------

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


# --- Threads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", ["lazy", "exact"])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(fastopt.AdamW, {}), (fastopt.Adagrad, {"rowwise": True}), (fastopt.SGD, {"momentum": 0.9})],
)
def test_results_do_not_depend_on_threads(optimizer, options, sparse, threads):
    def run(n):
        threads(n)
        rng = np.random.default_rng(8)
        p = [table(rng, np.float32, 3001, 17), table(rng, np.float64, 5000, 1).ravel()]
        opt, norms = optimizer(p, sparse=sparse, **options), []
        for _ in range(8):
            ids, g = batch(rng, np.float32, 3001, 17, 4000)
            more, h = batch(rng, np.float64, 5000, 1, 900)
            opt.step([Rows(ids, g), Rows(more, h.ravel())], max_norm=1.0)
            norms.append(opt.grad_norm)
        opt.catch_up()
        return [*arrays_of(opt, p), np.array(norms)]

    expected = run(1)
    for n in (2, 3, 7):
        assert all_same(expected, run(n))


# --- Several parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", ["lazy", "exact", "dense"])
def test_one_step_with_rows_and_arrays(sparse):
    rng = np.random.default_rng(9)

    def make():
        init = np.random.default_rng(10)
        tables = [table(init, np.float32), table(init, np.float32, 12, 3)]
        return {"E": tables, "W": table(init, np.float32, 4, 4)}

    p, q = make(), make()
    sparse_opt, dense_opt = fastopt.Adam(p, sparse=sparse), fastopt.Adam(q)
    for step in range(20):
        w = table(rng, np.float32, 4, 4)
        ids, g = batch(rng, np.float32)
        if sparse == "lazy":
            ids, g = np.arange(ROWS)[::-1], table(rng, np.float32)
        more = rng.permutation(12) if sparse == "lazy" else rng.integers(0, 12, 3)
        h = table(rng, np.float32, len(more), 3)
        dense = {"E": [as_dense(q["E"][0], ids, g), as_dense(q["E"][1], more, h)], "W": w}
        grads = {"E": [Rows(ids, g), Rows(more, h)], "W": w}
        if step % 5 == 4:
            grads["E"][0] = dense["E"][0]
        sparse_opt.step(grads)
        dense_opt.step(dense)
    sparse_opt.catch_up()
    assert sparse_opt.steps == 20
    assert all_same(arrays_of(sparse_opt, [*p["E"], p["W"]]), arrays_of(dense_opt, [*q["E"], q["W"]]))


@pytest.mark.parametrize("sparse", ["lazy", "exact", "dense"])
def test_step_rows_gives_other_parameters_no_gradient(sparse):
    p = [np.ones((4, 2)), np.ones(()), np.ones(3)]
    q = [a.copy() for a in p]
    sparse_opt, dense_opt = fastopt.Adam(p, lr=0.1, sparse=sparse), fastopt.Adam(q, lr=0.1)
    ones = [np.ones_like(a) for a in p]
    sparse_opt.step(ones)
    dense_opt.step(ones)
    after_one = [a.copy() for a in p]
    for _ in range(5):
        sparse_opt.step_rows(p[0], [1], np.ones((1, 2)))
        dense_opt.step([as_dense(q[0], [1], np.ones((1, 2))), np.zeros(()), np.zeros(3)])
    sparse_opt.catch_up()
    assert sparse_opt.steps == 6
    if sparse == "lazy":
        assert same_bits(p[0][1], q[0][1]) and all_same(p[1:], after_one[1:])
    else:
        assert all_same(arrays_of(sparse_opt, p), arrays_of(dense_opt, q))


def test_step_with_no_rows():
    p = np.ones((4, 2))
    opt = fastopt.Adam(p)
    opt.step_rows(p, [], np.empty((0, 2)), max_norm=1.0)
    assert opt.steps == 1 and opt.grad_norm == 0.0 and (p == 1).all()
    empty = np.empty((0, 2))
    opt = fastopt.Adam(empty, sparse="exact")
    opt.step_rows(empty, np.empty(0, np.int32), np.empty((0, 2)))
    opt.catch_up(empty, [])
    assert opt.steps == 1


@pytest.mark.parametrize(
    "rows", [[3, 0, 3], (3, 0, 3), np.array([3, 0, 3], np.uint8), np.array([9, 3, 9, 0, 9, 3])[1::2]]
)
@pytest.mark.parametrize(
    "layout", [np.asfortranarray, lambda g: np.repeat(g, 2, axis=0)[::2], lambda g: g[::-1].copy()[::-1]]
)
def test_rows_and_gradients_of_any_layout(rows, layout):
    rows = [3, 0, 3] if len(rows) == 3 and list(rows) != [3, 0, 3] else rows
    p, q = np.ones((4, 2)), np.ones((4, 2))
    g = layout(np.arange(6.0).reshape(3, 2))
    fastopt.SGD(p, lr=1.0).step_rows(0, rows, g)
    fastopt.SGD(q, lr=1.0).step(as_dense(q, rows, g))
    assert same_bits(p, q)


def test_gradients_in_parameters_or_state_are_copied():
    p = np.arange(12.0).reshape(4, 3)
    q = p.copy()
    opt, twin = fastopt.SGD(p, lr=1.0, momentum=0.5), fastopt.SGD(q, lr=1.0, momentum=0.5)
    opt.step_rows(p, [1, 0, 2, 0], p)
    twin.step_rows(q, [1, 0, 2, 0], q.copy())
    assert same_bits(p, q)
    buf = opt.state[0]["momentum_buffer"]
    twin.step_rows(q, [3, 2, 1, 0], buf.copy())
    opt.step_rows(p, [3, 2, 1, 0], buf)
    assert same_bits(p, q)


def test_nonfinite_rows_skip_the_step():
    for bad in ([0, 1], [1, 1]):
        p = np.ones((4, 2), np.float32)
        opt = fastopt.Adam(p, sparse="exact", skip_nonfinite=True)
        g = np.ones((2, 2), np.float32)
        opt.step_rows(p, [0, 1], g)
        opt.catch_up()
        before = [a.copy() for a in arrays_of(opt, [p])]
        g[1, 1] = np.inf
        opt.step_rows(p, bad, g)
        opt.catch_up()
        assert opt.skipped_steps == 1 and opt.steps == 1
        assert all_same(arrays_of(opt, [p]), before)


def test_norm_includes_rows_and_arrays():
    rng = np.random.default_rng(11)
    p = [table(rng, np.float32), table(rng, np.float64, 3, 3)]
    ids, g = batch(rng, np.float32)
    h = table(rng, np.float64, 3, 3)
    opt = fastopt.SGD(p, lr=0.0)
    opt.step([Rows(ids, g), h], max_norm=1.0, grad_scale=2.0)
    dense = as_dense(p[0], ids, g).astype(float)
    np.testing.assert_allclose(opt.grad_norm, 2.0 * np.sqrt((dense**2).sum() + (h**2).sum()), rtol=1e-12)


# --- Checkpointing -----------------------------------------------------------------------------------


def saved_and_loaded(opt, p):
    saved = opt.state_dict()
    q = p.copy()
    twin = fastopt.Adam(q, sparse="exact")
    twin.step_rows(q, [0], np.ones((1, WIDTH), p.dtype))    # a deferred step, which loading drops
    q[...] = p
    twin.load_state_dict(saved)
    return twin, q


def copied(opt, p):
    twin = copy.deepcopy(opt)
    return twin, twin.params


def pickled(opt, p):
    twin = pickle.loads(pickle.dumps(opt))
    return twin, twin.params


@pytest.mark.parametrize("duplicate", [saved_and_loaded, copied, pickled])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resumed_run_equals_uninterrupted_run(duplicate, dtype):
    rng = np.random.default_rng(12)
    p = table(rng, dtype)
    r = p.copy()
    opt, dense_opt = fastopt.Adam(p, sparse="exact"), fastopt.Adam(r)

    def take_steps(sparse_opt, array, n):
        for _ in range(n):
            ids, g = batch(rng, dtype)
            sparse_opt.step_rows(array, ids, g)
            dense_opt.step(as_dense(r, ids, g))

    take_steps(opt, p, 30)
    twin, q = duplicate(opt, p)
    assert twin.sparse == "exact" and same_bits(q, r)
    take_steps(twin, q, 30)
    twin.catch_up()
    assert all_same(arrays_of(twin, [q]), arrays_of(dense_opt, [r]))


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


# --- Errors ------------------------------------------------------------------------------------------

G = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda o, p: o.step_rows(p, [0, 4], G), ValueError,
            r"grads\.rows\[1\]: expected a row in \[0, 4\), got 4",
        ),
        (lambda o, p: o.step_rows(p, [-1, 0], G), ValueError, r"grads\.rows\[0\]: expected .*got -1"),
        (lambda o, p: o.step_rows(p, [0.0, 1.0], G), TypeError, "rows: expected integers.*float64"),
        (lambda o, p: o.step_rows(p, [True, False], G), TypeError, "rows: expected integers.*bool"),
        (lambda o, p: o.step_rows(p, [[0, 1]], G), ValueError, r"rows: expected a 1-D array.*\(1, 2\)"),
        (lambda o, p: o.step_rows(p, 1, G), ValueError, r"rows: expected a 1-D array, got shape \(\)"),
        (lambda o, p: o.step_rows(p, [0], G), ValueError, r"grads: expected shape \(1, \.\.\.\).*\(2, 3\)"),
        (
            lambda o, p: o.step_rows(p, [0, 1], np.ones(())), ValueError,
            r"grads: expected shape \(2, \.\.\.\).*\(\)",
        ),
        (lambda o, p: o.step_rows(p, [0, 1], G.tolist()), TypeError, "grads: expected a NumPy array.*list"),
        (lambda o, p: o.step_rows(p, [0, 1], np.ma.masked_equal(G, 2)), TypeError, "grads: .*MaskedArray"),
        (
            lambda o, p: o.step_rows(p, [0, 1], G[:, :2]), ValueError,
            r"grads\.grads: expected shape \(2, 3\) for a parameter of shape \(4, 3\), got \(2, 2\)",
        ),
        (
            lambda o, p: o.step_rows(p, [0, 1], G.astype("f4")), TypeError,
            "grads.grads: expected dtype float64 as the parameter has, got float32",
        ),
        (lambda o, p: o.step_rows(p, [0, 1], G.astype(">f8")), TypeError, "dtype float64 .* got >f8"),
        (lambda o, p: o.step_rows(p, [0, 1], G, zero_grad=True), ValueError, "grads: zero_grad=True .*Rows"),
        (lambda o, p: o.step_rows(p, [0, 1], G, max_norm=-1.0), ValueError, "max_norm: "),
        (lambda o, p: o.step_rows(p.copy(), [0, 1], G), ValueError, "param: expected one of the arrays"),
        (lambda o, p: o.step_rows(1, [0, 1], G), ValueError, r"param: expected a place in \[0, 1\), got 1"),
        (lambda o, p: o.step_rows("W", [0, 1], G), TypeError, "param: expected a whole number, got 'W'"),
        (lambda o, p: o.catch_up(p, [4]), ValueError, r"rows\[0\]: expected a row in \[0, 4\), got 4"),
        (lambda o, p: o.catch_up(p, [1.5]), TypeError, "rows: expected integers"),
        (lambda o, p: o.catch_up(rows=[1]), ValueError, "rows: expected a param"),
    ],
)
@pytest.mark.parametrize("sparse", ["lazy", "exact", "dense"])
def test_invalid_rows_change_nothing(call, error, message, sparse):
    p = np.ones((4, 3))
    opt = fastopt.Adam(p, sparse=sparse)
    opt.step_rows(p, [0, 3], G)
    opt.step_rows(p, [1, 1], G)
    before = [a.copy() for a in arrays_of(opt, [p])]
    with pytest.raises(error, match=message):
        call(opt, p)
    assert opt.steps == 2 and all_same(arrays_of(opt, [p]), before)
    q = np.ones((4, 3))
    twin = fastopt.Adam(q, sparse=sparse)
    for ids in ([0, 3], [1, 1], [2, 0]):
        twin.step_rows(q, ids, G)
    opt.step_rows(p, [2, 0], G)
    opt.catch_up()
    twin.catch_up()
    assert all_same(arrays_of(opt, [p]), arrays_of(twin, [q]))


def test_invalid_gradient_next_to_valid_rows_changes_nothing():
    p = {"E": np.ones((4, 3)), "w": np.ones(2)}
    opt = fastopt.Adam(p, sparse="exact")
    valid = {"E": Rows([0, 1], G), "w": np.ones(2)}
    opt.step(valid)
    before = [a.copy() for a in arrays_of(opt, p.values())]
    for invalid, error, message in (
        ({"E": Rows([1], G[:1]), "w": np.ones(3)}, ValueError, r'grads\["w"\]: expected shape'),
        ({"E": Rows([9], G[:1]), "w": np.ones(2)}, ValueError, r'grads\["E"\]\.rows\[0\]'),
        ({"E": valid["E"], "w": Rows([0], np.ones((1, 1)))}, ValueError, r'grads\["w"\]\.grads: expected'),
    ):
        with pytest.raises(error, match=message):
            opt.step(invalid)
        assert all_same(arrays_of(opt, p.values()), before)
    opt.step(valid)
    assert opt.steps == 2


def test_scalar_parameter_has_no_rows():
    p = np.ones(())
    with pytest.raises(ValueError, match="grads: expected an array because the parameter has no rows"):
        fastopt.SGD(p).step(Rows([0], np.ones(1)))


def test_options_that_need_whole_arrays():
    p = np.ones((4, 3))
    for options in (
        {"cautious": True}, {"cautious": True, "sparse": "exact"}, {"centralize": True}, {"unit_clip": 0.1},
        {"lookahead": (2, 0.5)}, {"accumulate": 2}, {"accumulate": 2, "sparse": "exact"},
    ):
        opt = fastopt.Adam(p, **options)
        with pytest.raises(ValueError, match=r"grads: this optimizer steps whole arrays: .*sparse='dense'"):
            opt.step_rows(p, [0, 1], G)
        assert opt.steps == 0 and (p == 1).all()
    assert fastopt.LAMB(p).sparse == "dense"
    for sparse, kind in (("lazy", fastopt.LAMB), ("exact", fastopt.LAMB), ("sometimes", fastopt.Adam)):
        with pytest.raises(ValueError, match=f"sparse: expected one of .*got '{sparse}'"):
            kind(p, sparse=sparse)


def test_repr_of_rows():
    assert repr(Rows([1], np.ones((1, 1)))) == "Rows(rows=array([1]), grads=array([[1.]]))"
