"""Gradients of some rows: the same as dense ones, or lazy as documented, whatever comes in whatever order."""

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
# All but those for which a row may rest at once, or soon, and then fade by a factor that is rounded only
# once: without a first moment or with a short one, and with a decay that goes on without one.
SAME_BITS = [
    rule for rule in SPARSE
    if rule.optimizer is not fastopt.AdamW and rule.options.get("betas", (0.9, 0.999))[0] > 0.0
    and rule.options.get("momentum", 0.9) >= 0.9
]
HALF_ULP = {np.float32: 2.0**-24, np.float64: 2.0**-53}
LONGEST = 1 << 16  # steps that a row may be behind


def table(rng, dtype, rows=ROWS, width=WIDTH):
    return rng.standard_normal((rows, width)).astype(dtype)


def batch(rng, dtype, rows=ROWS, width=WIDTH, k=8):
    """Rows, half of which come again and again, with duplicates; and their gradients."""
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
def test_dense_is_a_dense_step(rule, dtype):
    """Every rule, those that look at whole arrays included; and with all that a step can do beside."""
    rng = np.random.default_rng(0)
    p = table(rng, dtype)
    q = p.copy()
    ours, theirs = rule.make(p, sparse="dense"), rule.make(q)
    for step in range(6):
        ids, g = batch(rng, dtype)
        options = {"max_norm": 0.5, "clip_value": 0.2, "grad_scale": 2.0} if step % 2 else {}
        ours.step_rows(p, ids, g, **options)
        theirs.step(as_dense(q, ids, g), **options)
        assert all_same(arrays_of(ours, [p]), arrays_of(theirs, [q])), step
        assert ours.grad_norm == theirs.grad_norm


@pytest.mark.parametrize(
    "options",
    [{"accumulate": 3}, {"centralize": True, "unit_clip": 0.1}, {"lookahead": (2, 0.5), "ema": 0.9}],
)
def test_dense_goes_with_what_is_around_a_rule(options):
    rng = np.random.default_rng(13)
    p = table(rng, np.float32)
    q = p.copy()
    ours, theirs = fastopt.Adam(p, sparse="dense", **options), fastopt.Adam(q, **options)
    for _ in range(9):
        ids, g = batch(rng, np.float32)
        ours.step_rows(p, ids, g)
        theirs.step(as_dense(q, ids, g))
    assert ours.steps == theirs.steps == 9 // options.get("accumulate", 1)
    assert all_same(arrays_of(ours, [p]), arrays_of(theirs, [q]))


@pytest.mark.parametrize("rule", SAME_BITS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_is_dense_to_the_last_bit(rule, dtype, isa):
    """200 steps; no row is left out of more than the 219 steps that would all be taken."""
    rng = np.random.default_rng(1)
    p = table(rng, dtype)
    q = p.copy()
    ours, theirs = rule.make(p, sparse="exact"), rule.make(q)
    for step in range(200):
        ids, g = batch(rng, dtype)
        if step % 3 == 0:
            ours.catch_up(p, ids)
            assert same_bits(p[ids], q[ids])
        ours.step_rows(p, ids, g, clip_value=1.5)
        theirs.step(as_dense(q, ids, g), clip_value=1.5)
        assert same_bits(p[ids], q[ids])
    ours.catch_up()
    assert all_same(arrays_of(ours, [p]), arrays_of(theirs, [q]))


LONG = [
    (fastopt.Adam, {}),
    (fastopt.Adam, {"amsgrad": True, "betas": (0.8, 0.99)}),
    (fastopt.Adam, {"betas": (0.0, 0.9)}),
    (fastopt.Adam, {"convention": "keras", "eps": 1e-4}),
    (fastopt.AdamW, {"weight_decay": 0.1}),
    (fastopt.SGD, {"momentum": 0.9}),
    (fastopt.SGD, {"momentum": 0.5, "nesterov": True, "convention": "keras"}),
]


@pytest.mark.parametrize(("optimizer", "options"), LONG)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_is_dense_to_rounding_after_long_gaps(optimizer, options, dtype):
    """2000 steps, of which most rows are left out of a thousand at a time: the bound of the docs."""
    rng = np.random.default_rng(2)
    p = table(rng, dtype)
    q = p.copy()
    lr = 1e-2
    ours, theirs = optimizer(p, lr=lr, sparse="exact", **options), optimizer(q, lr=lr, **options)
    steps = 2000
    for step in range(steps):
        ids, g = (np.arange(ROWS), table(rng, dtype)) if step in (0, 5, 1000) else batch(rng, dtype, 7)
        ours.step_rows(p, ids, g)
        theirs.step(as_dense(q, ids, g))
    ours.catch_up()
    bound = steps * HALF_ULP[dtype]
    for mine, dense in zip(ours.state[0].values(), theirs.state[0].values(), strict=True):
        large = abs(dense) > 1e-30      # the others are on their way to zero, which rounding may bring on
        assert (abs(mine - dense)[large] <= bound * abs(dense)[large]).all()
        assert (abs(mine)[~large] <= 2e-30).all()
    assert (abs(p - q) <= bound * (abs(q) + lr)).all()
    assert not same_bits(p[7:], table(np.random.default_rng(2), dtype)[7:])     # they have moved


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9 / 0.999**0.5, 0.99])
def test_what_a_resting_row_would_still_do_does_not_count(ratio, dtype):
    n = steps_to_rest(ratio, dtype)
    j = np.arange(n, n + 10_000)
    dropped = (np.sqrt(1.0 + j) * ratio ** j.astype(float)).sum() if ratio else 0.0
    half_ulp = HALF_ULP[np.dtype(dtype).type]
    assert dropped <= 0.25 * half_ulp
    assert n == 0 or np.sqrt(float(n)) * ratio ** (n - 1) / (1.0 - ratio) > 0.1 * half_ulp


@pytest.mark.parametrize("betas", [(0.0, 0.99), (0.5, 0.99)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_amsgrad_may_begin_in_the_midst_of_a_run(betas, dtype):
    """What is kept as the largest second moment begins at 0, and rises even in rows at rest."""
    rng = np.random.default_rng(3)
    p = table(rng, dtype)
    q = p.copy()
    ours, theirs = (fastopt.Adam(x, betas=betas, sparse=s) for x, s in ((p, "exact"), (q, "dense")))
    for step in range(2000):
        ids, g = batch(rng, dtype, k=ROWS if step in (0, 1998) else 1)
        if step == 1000:
            ours.groups[0]["amsgrad"] = theirs.groups[0]["amsgrad"] = True
        ours.step_rows(0, ids, g), theirs.step_rows(0, ids, g)
    ours.catch_up()
    for a, b in zip(arrays_of(ours, [p]), arrays_of(theirs, [q]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2000 * HALF_ULP[dtype], atol=2000 * HALF_ULP[dtype])


def test_rows_that_never_rest():
    assert steps_to_rest(1.0, "float32") == -1
    # momentum that does not fade, and a second moment that fades faster than the first
    for make in (
        lambda p, **o: fastopt.SGD(p, lr=1e-4, momentum=1.0, **o),
        lambda p, **o: fastopt.Adam(p, betas=(0.9, 0.5), **o),
    ):
        p = np.ones((3, 2), np.float32)
        q = p.copy()
        ours, theirs = make(p, sparse="exact"), make(q)
        for step in range(400):
            g = np.full((1, 2), 0.1 + step % 2, np.float32)
            ours.step_rows(p, [0 if step else 1], g)
            theirs.step(as_dense(q, [0 if step else 1], g))
        ours.catch_up()
        assert all_same(arrays_of(ours, [p]), arrays_of(theirs, [q]))


def test_no_row_is_behind_for_more_than_what_is_kept():
    """Beyond 65536 steps the whole table is brought up to date."""
    p = np.ones((3, 2))
    q = p.copy()
    ours, theirs = fastopt.AdamW(p, sparse="exact"), fastopt.AdamW(q)
    g = np.array([[1.0, -2.0]])
    full = as_dense(p, [0], g)
    ours.step_rows(p, [1], g)
    theirs.step(as_dense(p, [1], g))
    for _ in range(LONGEST + 100):
        ours.step_rows(p, [0], g)
        theirs.step(full)
    ours.step_rows(p, [1], g)
    theirs.step(as_dense(p, [1], g))
    ours.catch_up()
    np.testing.assert_allclose(p, q, rtol=LONGEST * 2.0**-53)


@pytest.mark.parametrize(
    "around", [{"ema": 0.9}, {"lookahead": (7, 0.5)}, {"independent_weight_decay": 1e-3, "maximize": True}]
)
def test_exact_with_what_changes_from_step_to_step(around):
    """Schedules, settings, what is around a rule, a rule that becomes another one, another group."""
    rng = np.random.default_rng(3)
    p = table(rng, np.float32)
    q, extra = p.copy(), [np.ones((4, 2)), np.ones((4, 2))]
    options = {
        "lr": schedules.Cosine(1e-2, steps=150), "betas": (lambda t: 0.5 + t / 1000, 0.99),
        "weight_decay": 0.1, **around,
    }
    ours, theirs = fastopt.AdamW(p, sparse="exact", **options), fastopt.AdamW(q, **options)
    for step in range(150):
        for opt, extra_param in zip((ours, theirs), extra, strict=True):
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
            ours.step(sparse)
            theirs.step(dense)
        else:
            ours.step([sparse, Rows([step % 4], np.ones((1, 2)))])
            theirs.step([dense, as_dense(extra[1], [step % 4], np.ones((1, 2)))])
    if "ema" in around:
        with ours.swapped_ema(), theirs.swapped_ema():
            assert same_bits(p, q) and all_same(ours.ema, theirs.ema)
    ours.catch_up()
    assert all_same(arrays_of(ours, [p, extra[0]]), arrays_of(theirs, [q, extra[1]]))


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(SAME_BITS),
    dtype=st.sampled_from([np.float32, np.float64]),
    sparse=st.sampled_from(["exact", "dense"]),
    shape=st.sampled_from([(1, 1), (5,), (7, 3), (3, 0), (4, 2, 3), (300, 9)]),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_any_rows_are_as_dense(rule, dtype, sparse, shape, seed, data):
    rng = np.random.default_rng(seed)
    p = rng.standard_normal(shape).astype(dtype)
    q = p.copy()
    ours, theirs = rule.make(p, sparse=sparse), rule.make(q)
    for _ in range(data.draw(st.integers(1, 12))):
        ids = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=9))
        g = rng.standard_normal((len(ids), *shape[1:])).astype(dtype)
        how = data.draw(st.sampled_from(["rows", "rows", "rows", "dense", "catch up"]))
        if how == "catch up":
            ours.catch_up(p, ids)
        ours.step(as_dense(q, ids, g) if how == "dense" else Rows(ids, g))
        theirs.step(as_dense(q, ids, g))
    ours.catch_up()
    assert all_same(arrays_of(ours, [p]), arrays_of(theirs, [q]))


# --- Lazy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SPARSE, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lazy_is_the_rule_on_the_rows(rule, dtype, isa):
    """Rows with a gradient take the step of the optimizer's own count; the others stay as they are."""
    rng = np.random.default_rng(4)
    p = table(rng, dtype)
    q = p.copy()
    opt = rule.make(p)
    state = {name: np.full_like(p, rule.init_value(name)) for name in rule.state}
    assert opt.sparse == "lazy"
    for step in range(1, 20):
        ids, g = batch(rng, dtype)
        opt.step_rows(p, ids, g)
        touched = np.unique(ids)
        inner = {name: a[touched] for name, a in state.items()}
        part = q[touched]
        rule.reference_step(part, as_dense(q, ids, g)[touched], inner, step)
        q[touched] = part
        for name, a in inner.items():
            state[name][touched] = a
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
    ours = optimizer(p, lr=1e-2, **options)
    theirs = getattr(torch.optim, name)([q], lr=1e-2, **torch_options)
    for _ in range(200):
        ids, g = batch(rng, np.float64)
        ours.step_rows(p, ids, g)
        with torch.sparse.check_sparse_tensor_invariants():
            q.grad = torch.sparse_coo_tensor(torch.from_numpy(ids)[None], torch.from_numpy(g), p.shape)
            theirs.step()
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


def test_rowwise_adagrad_is_the_formula():
    """One accumulator a row, of means of squares; a row without a gradient stays."""
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
def test_rowwise_adagrad_on_rows_is_as_dense(options, sparse):
    rng = np.random.default_rng(7)
    p = table(rng, np.float32)
    q = p.copy()
    ours = fastopt.Adagrad(p, rowwise=True, sparse=sparse, **options)
    theirs = fastopt.Adagrad(q, rowwise=True, **options)
    for _ in range(30):
        ids, g = batch(rng, np.float32)
        ours.step_rows(0, ids, g, max_norm=100.0, grad_scale=0.5)
        theirs.step(as_dense(q, ids, g), max_norm=100.0, grad_scale=0.5)
        np.testing.assert_allclose(ours.grad_norm, theirs.grad_norm, rtol=1e-12)
    ours.catch_up()
    assert all_same(arrays_of(ours, [p]), arrays_of(theirs, [q]))


def test_rowwise_adagrad_takes_rows_and_arrays_in_turns():
    """Arrays leave no row behind, so that nothing is kept of their steps, however many they are."""
    rng = np.random.default_rng(8)
    p = table(rng, np.float64)
    q = p.copy()
    ours, theirs = (fastopt.Adagrad(x, rowwise=True, weight_decay=0.1, sparse=s)
                    for x, s in ((p, "exact"), (q, "dense")))
    for step in range(200):
        ids, g = batch(rng, np.float64)
        if step % 50:
            whole = as_dense(q, ids, g)
            ours.step(whole), theirs.step(whole)
            assert all_same(arrays_of(ours, [p]), arrays_of(theirs, [q]))
        else:
            ours.step_rows(0, ids, g), theirs.step_rows(0, ids, g)


@pytest.mark.parametrize("shape", [(6, 5), (3, 2, 4), (7,)])
@pytest.mark.parametrize(
    "around",
    [{"centralize": True, "unit_clip": 0.1}, {"independent_weight_decay": 0.1, "lookahead": (2, 0.5)}],
)
def test_rowwise_adagrad_with_what_is_around_a_rule(shape, around):
    """On rows of one number it is the rule by numbers; else the mean is over what a gradient has become."""
    rng = np.random.default_rng(14)
    p = rng.standard_normal(shape)
    start = p.copy()
    opt = fastopt.Adagrad(p, rowwise=True, **around)
    numbers = fastopt.Adagrad(q := p.copy(), **around)
    opt.step(g := rng.standard_normal(shape))
    numbers.step(g)
    inner = tuple(range(1, len(shape)))
    np.testing.assert_allclose(opt.state[0]["sum"], numbers.state[0]["sum"].mean(axis=inner), rtol=1e-14)
    if len(shape) == 1:
        np.testing.assert_allclose(p, q, rtol=1e-14)
    kept = start * (1.0 - around.get("independent_weight_decay", 0.0))
    rates = (kept - p).reshape(shape[0], -1) * np.sqrt(opt.state[0]["sum"])[:, None]
    expected = ((kept - q) * np.sqrt(numbers.state[0]["sum"])).reshape(shape[0], -1)    # lr times gradient
    np.testing.assert_allclose(rates, expected, rtol=1e-7, atol=1e-12)


def test_what_adagrad_accumulates_begins_anew_where_it_gets_another_shape():
    p, q = np.ones((4, 3)), np.ones((4, 3))
    opt = fastopt.Adagrad(p, initial_accumulator_value=0.5)
    for rowwise in (True, False):
        opt.step(np.ones((4, 3)))
        opt.groups[0]["rowwise"] = rowwise
        q[...] = p
        opt.step(np.ones((4, 3)))
        fastopt.Adagrad(q, rowwise=rowwise, initial_accumulator_value=0.5).step(np.ones((4, 3)))
        assert same_bits(p, q) and opt.state[0]["sum"].shape == ((4,) if rowwise else (4, 3))


def test_rowwise_adagrad_zeroes_and_copies_gradients_like_any_other():
    p, q = [np.ones((4, 3)), np.ones(4)], [np.ones((4, 3)), np.ones(4)]
    ours, theirs = fastopt.Adagrad(p, rowwise=True), fastopt.Adagrad(q, rowwise=True)
    g = [np.asfortranarray(np.arange(12.0).reshape(4, 3)), np.arange(4.0)]
    theirs.step([np.ascontiguousarray(a) for a in g])
    ours.step(g, zero_grad=True)
    assert all_same(p, q) and not any(a.any() for a in g)
    g = [np.arange(12.0).reshape(4, 3), np.arange(4.0)]
    theirs.step([a.copy() for a in g])
    ours.step(g, zero_grad=True)
    assert all_same(p, q) and not any(a.any() for a in g)
    with pytest.raises(ValueError, match="share memory"):
        ours.step([g[0], g[0].ravel()[:4]], zero_grad=True)


# --- The same bits, whoever does it ------------------------------------------------------------------


@pytest.mark.parametrize("sparse", ["lazy", "exact"])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(fastopt.AdamW, {}), (fastopt.Adagrad, {"rowwise": True}), (fastopt.SGD, {"momentum": 0.9})],
)
def test_threads_do_not_change_a_bit(optimizer, options, sparse, threads):
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


# --- Together with other gradients -------------------------------------------------------------------


@pytest.mark.parametrize("sparse", ["lazy", "exact", "dense"])
def test_rows_beside_arrays_are_one_step(sparse):
    rng = np.random.default_rng(9)

    def make():
        own = np.random.default_rng(10)
        tables = [table(own, np.float32), table(own, np.float32, 12, 3)]
        return {"E": tables, "W": table(own, np.float32, 4, 4)}

    p, q = make(), make()
    ours, theirs = fastopt.Adam(p, sparse=sparse), fastopt.Adam(q)
    for step in range(20):
        w = table(rng, np.float32, 4, 4)
        ids, g = batch(rng, np.float32)
        if sparse == "lazy":
            ids, g = np.arange(ROWS)[::-1], table(rng, np.float32)
        more = rng.permutation(12) if sparse == "lazy" else rng.integers(0, 12, 3)
        h = table(rng, np.float32, len(more), 3)
        dense = {"E": [as_dense(q["E"][0], ids, g), as_dense(q["E"][1], more, h)], "W": w}
        given = {"E": [Rows(ids, g), Rows(more, h)], "W": w}
        if step % 5 == 4:
            given["E"][0] = dense["E"][0]
        ours.step(given)
        theirs.step(dense)
    ours.catch_up()
    assert ours.steps == 20
    assert all_same(arrays_of(ours, [*p["E"], p["W"]]), arrays_of(theirs, [*q["E"], q["W"]]))


@pytest.mark.parametrize("sparse", ["lazy", "exact", "dense"])
def test_step_rows_leaves_the_others_without_a_gradient(sparse):
    p = [np.ones((4, 2)), np.ones(()), np.ones(3)]
    q = [a.copy() for a in p]
    ours, theirs = fastopt.Adam(p, lr=0.1, sparse=sparse), fastopt.Adam(q, lr=0.1)
    ones = [np.ones_like(a) for a in p]
    ours.step(ones)
    theirs.step(ones)
    after_one = [a.copy() for a in p]
    for _ in range(5):
        ours.step_rows(p[0], [1], np.ones((1, 2)))
        theirs.step([as_dense(q[0], [1], np.ones((1, 2))), np.zeros(()), np.zeros(3)])
    ours.catch_up()
    assert ours.steps == 6
    if sparse == "lazy":
        assert same_bits(p[0][1], q[0][1]) and all_same(p[1:], after_one[1:])
    else:
        assert all_same(arrays_of(ours, p), arrays_of(theirs, q))


def test_no_rows_at_all_are_a_step_too():
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
def test_rows_and_gradients_in_any_layout(rows, layout):
    rows = [3, 0, 3] if len(rows) == 3 and list(rows) != [3, 0, 3] else rows
    p, q = np.ones((4, 2)), np.ones((4, 2))
    g = layout(np.arange(6.0).reshape(3, 2))
    fastopt.SGD(p, lr=1.0).step_rows(0, rows, g)
    fastopt.SGD(q, lr=1.0).step(as_dense(q, rows, g))
    assert same_bits(p, q)


def test_gradients_that_are_also_written_are_copied():
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


def test_nonfinite_rows_are_skipped():
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


def test_a_norm_takes_in_rows_and_arrays():
    rng = np.random.default_rng(11)
    p = [table(rng, np.float32), table(rng, np.float64, 3, 3)]
    ids, g = batch(rng, np.float32)
    h = table(rng, np.float64, 3, 3)
    opt = fastopt.SGD(p, lr=0.0)
    opt.step([Rows(ids, g), h], max_norm=1.0, grad_scale=2.0)
    dense = as_dense(p[0], ids, g).astype(float)
    np.testing.assert_allclose(opt.grad_norm, 2.0 * np.sqrt((dense**2).sum() + (h**2).sum()), rtol=1e-12)


# --- Saving ----------------------------------------------------------------------------------------


def saved_and_loaded(opt, p):
    saved = opt.state_dict()
    q = p.copy()
    twin = fastopt.Adam(q, sparse="exact")
    twin.step_rows(q, [0], np.ones((1, WIDTH), p.dtype))    # what it is behind with must be forgotten
    q[...] = p
    twin.load_state_dict(saved)
    return twin, q


def copied(opt, p):
    twin = copy.deepcopy(opt)
    return twin, twin.params


def pickled(opt, p):
    twin = pickle.loads(pickle.dumps(opt))
    return twin, twin.params


@pytest.mark.parametrize("again", [saved_and_loaded, copied, pickled])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_run_goes_on_where_it_stopped(again, dtype):
    rng = np.random.default_rng(12)
    p = table(rng, dtype)
    r = p.copy()
    opt, whole = fastopt.Adam(p, sparse="exact"), fastopt.Adam(r)

    def steps(ours, array, n):
        for _ in range(n):
            ids, g = batch(rng, dtype)
            ours.step_rows(array, ids, g)
            whole.step(as_dense(r, ids, g))

    steps(opt, p, 30)
    twin, q = again(opt, p)
    assert twin.sparse == "exact" and same_bits(q, r)
    steps(twin, q, 30)
    twin.catch_up()
    assert all_same(arrays_of(twin, [q]), arrays_of(whole, [r]))


def test_a_row_wise_state_is_saved_and_loaded():
    p = np.ones((4, 3), np.float32)
    opt = fastopt.Adagrad(p, rowwise=True)
    opt.step_rows(p, [1, 2], np.ones((2, 3), np.float32))
    q = p.copy()
    twin = fastopt.Adagrad(q, rowwise=True)
    twin.load_state_dict(opt.state_dict())
    for one, array in ((opt, p), (twin, q)):
        one.step_rows(array, [2, 3], np.ones((2, 3), np.float32))
    assert all_same(arrays_of(opt, [p]), arrays_of(twin, [q]))
    by_numbers = fastopt.Adagrad(q)
    mixed = {**opt.state_dict(), "groups": by_numbers.state_dict()["groups"]}
    with pytest.raises(ValueError, match=r"\['sum'\]: expected float32 of shape \(4, 3\), got .*\(4,\)"):
        by_numbers.load_state_dict(mixed)


# --- What is refused -------------------------------------------------------------------------------

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
def test_bad_rows_change_nothing(call, error, message, sparse):
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


def test_a_bad_gradient_beside_good_rows_changes_nothing():
    p = {"E": np.ones((4, 3)), "w": np.ones(2)}
    opt = fastopt.Adam(p, sparse="exact")
    good = {"E": Rows([0, 1], G), "w": np.ones(2)}
    opt.step(good)
    before = [a.copy() for a in arrays_of(opt, p.values())]
    for bad, error, message in (
        ({"E": Rows([1], G[:1]), "w": np.ones(3)}, ValueError, r'grads\["w"\]: expected shape'),
        ({"E": Rows([9], G[:1]), "w": np.ones(2)}, ValueError, r'grads\["E"\]\.rows\[0\]'),
        ({"E": good["E"], "w": Rows([0], np.ones((1, 1)))}, ValueError, r'grads\["w"\]\.grads: expected'),
    ):
        with pytest.raises(error, match=message):
            opt.step(bad)
        assert all_same(arrays_of(opt, p.values()), before)
    opt.step(good)
    assert opt.steps == 2


def test_a_parameter_without_rows():
    p = np.ones(())
    with pytest.raises(ValueError, match="grads: expected an array because the parameter has no rows"):
        fastopt.SGD(p).step(Rows([0], np.ones(1)))


def test_rules_that_look_at_whole_arrays():
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


def test_rows_say_what_they_are():
    assert repr(Rows([1], np.ones((1, 1)))) == "Rows(rows=array([1]), grads=array([[1.]]))"
