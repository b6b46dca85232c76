"""Sparse gradients: equal to dense ones for sparse="dense" and "exact"; documented results for "lazy"."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules import RULES, same_bits
from sparse_gradients import ROWS, WIDTH, all_same, arrays_of, as_dense, batch, table

import fastopt
from fastopt import Rows, schedules
from fastopt.optimizers.options.sparse import steps_to_rest

SPARSE = [rule for rule in RULES if "exact" in rule.optimizer.RULE.SPARSE and not rule.couples_elements]
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
        dense_opt.step(as_dense(q, ids, g) if kind == "dense" or ids else None)     # no rows: no gradient
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
