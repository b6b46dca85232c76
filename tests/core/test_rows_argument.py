"""`Rows` as an argument of a step: next to arrays, in any layout, and invalid ones."""

import contextlib
import warnings

import faults
import numpy as np
import pytest
from rules import same_bits
from sparse_gradients import ROWS, all_same, arrays_of, as_dense, batch, table

import fastopt
from fastopt import Rows


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
def test_step_rows_leaves_other_parameters_unchanged(sparse):
    p = [np.ones((4, 2)), np.ones(()), np.ones(3)]
    q = [a.copy() for a in p]
    sparse_opt, dense_opt = fastopt.Adam(p, lr=0.1, sparse=sparse), fastopt.Adam(q[0], lr=0.1)
    ones = [np.ones_like(a) for a in p]
    sparse_opt.step(ones)
    dense_opt.step(ones[0])
    after_one = [a.copy() for a in p]
    for _ in range(5):
        sparse_opt.step_rows(p[0], [1], np.ones((1, 2)))
        dense_opt.step(as_dense(q[0], [1], np.ones((1, 2))))
    sparse_opt.catch_up()
    assert sparse_opt.steps == 6 and [state.steps for state in sparse_opt.state] == [6, 1, 1]
    assert all_same(p[1:], after_one[1:])
    assert same_bits(p[0][1], q[0][1])
    assert sparse == "lazy" or same_bits(p[0], q[0])


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
            lambda o, p: o.step_rows(p, [0, 1], G.astype("i4")), TypeError,
            "grads.grads: expected dtype float32, float64, bfloat16 or float16, got int32",
        ),
        (lambda o, p: o.step_rows(p, [0, 1], G.astype(">f8")), TypeError, "dtype float32, .* got >f8"),
        (lambda o, p: o.step_rows(p, [0, 1], G, zero_grad=True), ValueError, "grads: zero_grad=True .*Rows"),
        (lambda o, p: o.step_rows(p, [0, 1], G, max_norm=-1.0), ValueError, "max_norm: "),
        (lambda o, p: o.step_rows(p.copy(), [0, 1], G), ValueError, "param: expected one of the arrays"),
        (lambda o, p: o.step_rows(1, [0, 1], G), ValueError, r"param: expected an index in \[0, 1\), got 1"),
        (lambda o, p: o.step_rows("W", [0, 1], G), TypeError, "param: expected an integer, got 'W'"),
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


@pytest.mark.parametrize("change", [{"dtype": np.int32}, {"shape": (2, 2)}], ids=str)
def test_row_indices_that_are_changed_in_place(change):
    """They are read as what they are now, not as what they were."""
    table = np.zeros((6, 2))
    opt = fastopt.SGD(table, sparse="lazy")
    indices = np.array([0, 1, 2, 3])
    rows = fastopt.Rows(indices, np.ones((4, 2)))
    for name, value in change.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            setattr(indices, name, value)
    with pytest.raises(ValueError, match=r"grads.*expected"):
        opt.step(rows)
    assert opt.steps == 0 and not table.any()


@pytest.mark.skipif(not faults.CAN_FAIL, reason="this Python has no _testcapi.set_nomemory")
def test_log_of_skipped_steps_when_memory_runs_out():
    """Every allocation of a step that enlarges the log fails once; the log is complete nevertheless."""
    faults.in_child(check_log)


def check_log():
    tables = [np.ones((50, 3)) for _ in range(2)]
    opt, twin = (fastopt.Adam(t, lr=0.1, sparse="exact") for t in tables)
    for step in range(70):
        grad = fastopt.Rows([step % 7], np.full((1, 3), 0.5))
        for n in range(100 if step in (0, 16, 32, 64) else 0):    # where the log grows
            before = opt.steps
            with contextlib.suppress(faults.RAISED), faults.FailingAllocation(n):
                opt.step(grad)
            if opt.steps > before:
                break
        else:
            opt.step(grad)
        twin.step(grad)
    opt.catch_up()
    twin.catch_up()
    assert opt.steps == 70 and tables[0].tobytes() == tables[1].tobytes()
