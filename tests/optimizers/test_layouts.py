"""Parameters in any memory layout without gaps are updated where they lie, as C-contiguous ones are."""

import copy
import tracemalloc

import numpy as np
import pytest
from rules import MATRIX_RULES, RULES, same_bits

import fastopt
from fastopt import functional
from fastopt._core.layout import is_dense, with_layout

# Memory layouts of an array, each as a function that copies an array into it.
LAYOUTS = {
    "Fortran": np.asfortranarray,
    "axes exchanged": lambda a: a.swapaxes(0, -1).copy().swapaxes(0, -1),
    "first axis last": lambda a: np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0),
    "first axis reversed": lambda a: a[::-1].copy()[::-1],
    "all axes reversed": lambda a: np.flip(np.flip(a.T).copy().T),
    "last axis reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
}
SHAPES = [(6, 5), (4, 3, 50), (7,), (1, 5), (3, 1), (0, 4), ()]


def layouts_of(array):
    return {name: layout(array) for name, layout in LAYOUTS.items() if array.ndim}


@pytest.mark.parametrize("shape", SHAPES)
def test_layouts(shape):
    a = np.arange(float(np.prod(shape))).reshape(shape)
    for name, b in layouts_of(a).items():
        assert is_dense(b) and (a == b).all(), name
        assert b.size < 2 or b.ndim < 2 or not b.flags.c_contiguous or 1 in shape, name
        memory = np.zeros(a.size, np.float32)
        view = with_layout(memory, b)
        view[...] = b
        assert view.shape == shape and (view == a).all(), name
        assert sorted(memory) == sorted(a.ravel()), name
    assert not is_dense(np.zeros((4, 4))[:, :3])
    assert not is_dense(np.zeros((4, 4))[::2])
    assert not is_dense(np.broadcast_to(np.zeros(3), (2, 3)))
    assert not is_dense(np.lib.stride_tricks.as_strided(np.zeros(5), (3, 3), (8, 8)))


def few_bits(rng, shape, dtype):
    """Random values whose squares are summed without rounding, so that the order of a sum has no effect."""
    return np.asarray(rng.integers(-64, 65, shape) / 16, dtype)


OPTIONS = {
    "plain": ({}, {}),
    "units": ({"centralize": True, "unit_clip": 0.1}, {}),
    "averages": ({"ema": 0.9, "lookahead": (2, 0.5)}, {"zero_grad": True}),
    "clipping": ({"independent_weight_decay": 0.01}, {"max_norm": 1.0, "clip_value": 0.1, "grad_scale": 0.5}),
    "accumulation": ({"accumulate": 2, "skip_nonfinite": True}, {}),
}


def arrays_of(opt, params):
    ema = opt.ema if opt.ema is not None else []
    return [*params, *(a for state in opt.state for a in state.values()), *ema]


def run(rule, dtype, options, step_options, layout, grad_layout):
    rng = np.random.default_rng(0)
    params = [layout(few_bits(rng, shape, dtype)) for shape in SHAPES]
    opt = rule.make(params, **options)
    for _ in range(4):
        grads = [grad_layout(few_bits(rng, shape, dtype)) for shape in SHAPES]
        opt.step(grads, **step_options)
        if step_options.get("zero_grad"):
            assert not any(g.any() for g in grads)
    return opt, params


def identity(a):
    return a


def or_identity(layout):
    return lambda a: layout(a) if a.ndim else a


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rule", [*RULES, *MATRIX_RULES], ids=str)
def test_every_layout_gives_the_results_of_c_order(rule, options, layout):
    options, step_options = OPTIONS[options]
    refused = rule.optimizer.RULE.REFUSED_OPTIONS
    options = {name: value for name, value in options.items() if name not in refused}
    layout = or_identity(LAYOUTS[layout])
    for dtype in (np.float32, np.float64):
        expected = arrays_of(*run(rule, dtype, options, step_options, identity, identity))
        for grad_layout in (layout, identity):
            opt, params = run(rule, dtype, options, step_options, layout, grad_layout)
            results = arrays_of(opt, params)
            # Their sums over an array are in the order of memory.
            if rule.couples_elements and rule not in MATRIX_RULES:
                tolerance = 8 * np.finfo(dtype).eps
                for a, b in zip(results, expected, strict=True):
                    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
            else:
                assert all(map(same_bits, results, expected))


@pytest.mark.parametrize("rule", [*RULES, *MATRIX_RULES], ids=str)
def test_state_has_the_layout_of_its_parameter(rule):
    for shape in SHAPES:
        for p in layouts_of(np.ones(shape, np.float32)).values():
            opt = rule.make(p, ema=0.9)
            assert opt.ema.shape == shape
            assert opt.ema.size == 0 or opt.ema.strides == p.strides or 1 in shape
            for array in opt.state[0].values():
                is_elementwise = array.shape == shape and rule not in MATRIX_RULES
                assert not is_elementwise or p.size == 0 or 1 in shape or array.strides == p.strides
            opt.step(np.ones(shape, np.float32))
            saved = opt.state_dict()
            arrays = [*saved["state"][""].values(), *saved["ema"].values()]
            assert all(a.flags.c_contiguous for a in arrays if isinstance(a, np.ndarray))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_moves_between_layouts(layout):
    """Saving, loading, copying and pickling keep the values of every element, whatever its address."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((4, 3, 5))
    p, q = a.copy(), LAYOUTS[layout](a)
    g = rng.standard_normal((4, 3, 5))
    first, second = fastopt.Adam(p, ema=0.9), fastopt.Adam(q, ema=0.9)
    first.step(g)
    q[...] = p
    second.load_state_dict(first.state_dict())
    third = copy.deepcopy(second)
    for opt in (first, second, third):
        opt.step(g)
    assert same_bits(p, q) and same_bits(first.ema, second.ema)
    assert same_bits(p, third.params) and same_bits(first.ema, third.ema)
    with second.swapped_ema():
        assert same_bits(q, first.ema)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sparse", ["lazy", "exact", "dense"])
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (fastopt.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (fastopt.Adam, {"amsgrad": True}),
        (fastopt.Adam, {"ema": 0.9}),
        (fastopt.Adagrad, {"rowwise": True}),
    ],
)
def test_rows(optimizer, options, sparse, layout):
    if sparse not in optimizer.RULE.SPARSE:
        pytest.skip("not supported")
    results = []
    for convert in (identity, LAYOUTS[layout]):
        rng = np.random.default_rng(2)
        p = convert(few_bits(rng, (12, 3, 2), np.float32))
        opt = optimizer(p, lr=0.1, sparse=sparse, **options)
        for i in range(9):
            if i % 4 == 3:
                opt.step(convert(few_bits(rng, p.shape, p.dtype)), max_norm=1.0)
            else:
                rows = rng.integers(0, 12, 5)
                opt.step(fastopt.Rows(rows, few_bits(rng, (5, 3, 2), np.float32)))
        opt.catch_up(p, [1, 5])
        opt.catch_up()
        results.append([p, *opt.state[0].values()])
    assert all(map(same_bits, *results))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_row_wise_units(layout):
    results = []
    for convert in (identity, LAYOUTS[layout]):
        rng = np.random.default_rng(2)
        p = convert(few_bits(rng, (12, 3, 2), np.float32))
        opt = fastopt.Adagrad(p, lr=0.1, rowwise=True, centralize=True, unit_clip=0.1)
        for _ in range(3):
            opt.step(convert(few_bits(rng, p.shape, p.dtype)))
        results.append([p, *opt.state[0].values()])
    assert all(map(same_bits, *results))


@pytest.mark.parametrize("shape", [(4, 5), (4, 1), (4, 1, 2)])
def test_a_gradient_in_the_layout_of_its_parameter_is_not_copied(shape):
    a = np.ones((*shape, 4096))
    for p in layouts_of(a).values():
        opt = fastopt.SGD(p, lr=1.0)
        g = with_layout(np.ones(p.size), p)
        opt.step(g), opt.step(g)    # after the first step the state is no longer new
        tracemalloc.start()
        opt.step(g)
        assert tracemalloc.get_traced_memory()[1] < 2000
        tracemalloc.stop()


def test_tables_of_threads_and_tiles(threads):
    threads(4)
    rng = np.random.default_rng(3)
    a, g = rng.standard_normal((2, 700, 900)).astype(np.float32)
    for name, layout in LAYOUTS.items():
        p, q = a.copy(), layout(a)
        for param in (p, q):
            fastopt.Adam(param, centralize=True).step(g)
        assert same_bits(p, q), name


def test_functions_refuse_state_in_another_layout():
    p, state = np.asfortranarray(np.ones((3, 4))), np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"with strides \(8, 24\), got strides"):
        functional.momentum_(p, np.ones((3, 4)), state, lr=0.1, momentum=0.9)
    assert (p == 1).all()


class Subclass(np.ndarray):
    """An array whose arithmetic must not be used."""

    def __array_finalize__(self, obj):
        pass

    def __array_ufunc__(self, *args, **kwargs):
        raise AssertionError("arithmetic of a subclass was used")


@pytest.mark.parametrize("kind", [np.matrix, Subclass, np.memmap])
@pytest.mark.parametrize("rule", [*RULES, *MATRIX_RULES], ids=str)
def test_subclasses_are_viewed_as_arrays(rule, kind):
    def instance(array):
        return array.copy().view(kind)

    rng = np.random.default_rng(4)
    a = rng.standard_normal((6, 4))
    p, q = a.copy(), instance(a)
    options = {"centralize": True, "unit_clip": 0.1, "ema": 0.9}
    first, second = rule.make([p], **options), rule.make([q], **options)
    for _ in range(3):
        g = rng.standard_normal((6, 4))
        first.step([g])
        second.step([instance(g)])
    assert all(map(same_bits, arrays_of(first, [p]), arrays_of(second, [q.view(np.ndarray)])))
    assert type(second.params[0]) is kind
    assert all(type(x) is np.ndarray for x in arrays_of(second, []))


@pytest.mark.parametrize("kind", [np.matrix, Subclass])
def test_subclasses_as_rows(kind):
    p = np.ones((6, 4)).view(kind)
    opt = fastopt.SGD(p, lr=1.0)
    opt.step_rows(p, [1, 3], np.ones((2, 4)).view(kind))
    opt.catch_up(p)
    assert (p.view(np.ndarray).sum(axis=1) == [4, 0, 4, 0, 4, 4]).all()
