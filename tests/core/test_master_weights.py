"""``master_weights="split"``: parameters of bfloat16 are trained with the bits of float32."""

import pickle

import numpy as np
import pytest
from formats import bits_of
from rules import MATRIX_RULES, RULES

import fastopt
from fastopt._core.formats import BFLOAT16, FLOAT16, encode, join_split, split

SHAPES = [(3, 5), (), (0, 4), (700,), (30, 20)]


def pair(make, shapes=SHAPES, like=np.array, **options):
    """Parameters of bfloat16 under an optimizer with split master weights, and float32 ones without."""
    rng = np.random.default_rng(0)
    start = [encode(rng.standard_normal(s), BFLOAT16) for s in shapes]
    params = [like(p) for p in start]
    mirror = [like((bits_of(p).astype(np.uint32) << 16).view(np.float32)) for p in start]
    return params, make(params, master_weights="split", **options), mirror, make(mirror, **options)


def assert_same(params, opt, mirror):
    for p, q, state in zip(params, mirror, opt.state, strict=True):
        values = join_split(p, state["low_bits"])
        np.testing.assert_array_equal(values.view(np.uint32), q.view(np.uint32))
        np.testing.assert_array_equal(bits_of(p), bits_of(split(np.asarray(q, order="C"))[0]))


@pytest.mark.parametrize("rule", [*RULES, *MATRIX_RULES], ids=str)
def test_every_optimizer_has_the_bits_of_float32(rule, isa):
    params, opt, mirror, twin = pair(rule.make)
    rng = np.random.default_rng(1)
    for _ in range(4):
        grads = [encode(rng.standard_normal(s), BFLOAT16) for s in SHAPES]
        with np.errstate(all="ignore"):
            opt.step(grads), twin.step(grads)
        assert_same(params, opt, mirror)


OPTIONS = {
    "averages": ({"ema": 0.9, "lookahead": (2, 0.5)}, {}),
    "units": ({"centralize": True, "unit_clip": 0.1}, {"max_norm": 1.0}),
    "decay": ({"independent_weight_decay": 0.1, "accumulate": 2}, {"clip_value": 0.1}),
    "bfloat16 state": ({"state_dtype": "bfloat16"}, {}),
    "8-bit state": ({"state_dtype": "int8"}, {"grad_scale": 0.5}),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", [fastopt.AdamW, fastopt.SGD, fastopt.LAMB, fastopt.Lion])
def test_options(kind, options):
    options, step_options = OPTIONS[options]
    params, opt, mirror, twin = pair(
        lambda p, **more: kind(p, lr=0.01, weight_decay=0.1, **more), [(70, 61), (5,)], **options
    )
    rng = np.random.default_rng(2)
    for _ in range(4):
        grads = [rng.standard_normal(p.shape).astype(np.float32) for p in params]
        assert opt.step(grads, **step_options) == twin.step(grads, **step_options)
        assert_same(params, opt, mirror)
    if "ema" in options:
        assert all((a == b).all() for a, b in zip(opt.ema, twin.ema, strict=True))
        with opt.swapped_ema():
            pass
        assert_same(params, opt, mirror)


@pytest.mark.parametrize("like", [np.asfortranarray, lambda a: np.array(a)[::-1].copy()[::-1]])
def test_other_layouts_and_rows(like):
    params, opt, mirror, twin = pair(
        lambda p, **more: fastopt.Adam(p, centralize=True, sparse="dense", **more), [(30, 20)], like
    )
    rng = np.random.default_rng(3)
    for _ in range(3):
        g = rng.standard_normal((30, 20)).astype(np.float32)
        opt.step([g]), twin.step([g])
    assert_same(params, opt, mirror)
    params, opt, mirror, twin = pair(fastopt.Adam, [(30, 20)], like)
    for _ in range(3):
        rows, g = rng.permutation(30)[:7], rng.standard_normal((7, 20)).astype(np.float32)
        opt.step_rows(params[0], rows, g), twin.step_rows(mirror[0], rows, g)
    assert_same(params, opt, mirror)


def test_special_values(isa):
    """Infinities and NaNs stay what they are, also in the visible half."""
    bits = [0x7F7FFFFF, 0x7F7F8000, 0x7F800000, 0x7FFFFFFF, 0xFFC00000, 0xFF7FFFFF, 0x80000000]
    values = np.array(bits, np.uint32).view(np.float32)
    p = encode(np.zeros(7), BFLOAT16)
    opt = fastopt.SGD(p, lr=1.0, maximize=True, master_weights="split")
    opt.step(values)
    result, is_nan = join_split(p, opt.state[0]["low_bits"]), np.isnan(values)
    np.testing.assert_array_equal(result[~is_nan], values[~is_nan])
    visible = (bits_of(p).astype(np.uint32) << 16).view(np.float32)
    assert np.isnan(result[is_nan]).all() and np.isnan(visible[is_nan]).all()


@pytest.mark.parametrize("how", ["state_dict", "pickle"])
def test_resuming(how):
    params, opt, mirror, twin = pair(fastopt.AdamW, [(70, 61)])
    rng = np.random.default_rng(4)
    grads = rng.standard_normal((6, 70, 61)).astype(np.float32)
    for g in grads[:3]:
        opt.step([g]), twin.step([g])
    if how == "pickle":
        opt = pickle.loads(pickle.dumps(opt))
        params = opt.params
    else:
        other = fastopt.AdamW(params, master_weights="split")
        other.load_state_dict(opt.state_dict())
        opt = other
    for g in grads[3:]:
        opt.step([g]), twin.step([g])
    assert_same(params, opt, mirror)


def test_schedule_free_average_and_sync():
    params, opt, mirror, twin = pair(fastopt.SGDScheduleFree, [(20, 3)])
    g = np.ones((20, 3), np.float32)
    for _ in range(3):
        opt.step([g]), twin.step([g])
    opt.keep_average(), twin.keep_average()
    assert_same(params, opt, mirror)
    opt.step([g]), twin.step([g])
    assert_same(params, opt, mirror)
    params[0][...] = encode(np.full((20, 3), 2.0), BFLOAT16)
    opt.sync_params()
    assert not opt.state[0]["low_bits"].any()


def test_bad_input():
    with pytest.raises(ValueError, match=r"^master_weights: expected one of None, split, got 'copy'"):
        fastopt.SGD(encode(np.ones(3), BFLOAT16), master_weights="copy")
    with pytest.raises(ValueError, match=r"^master_weights: 'split' needs .*, got float16 for params\[1\]"):
        fastopt.SGD([np.ones(3, np.float32), np.ones(3, FLOAT16)], master_weights="split")
    opt = fastopt.SGD([np.ones(3, np.float32), encode(np.ones(3), BFLOAT16)], master_weights="split")
    assert "low_bits" not in opt.state[0] and opt.state_nbytes == 6
