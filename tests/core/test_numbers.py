"""Numbers as arguments: whatever ``float()`` accepts and has one element."""

import math
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from files import id_without_address

import fastopt
from fastopt._core.validation import check_float, to_float

try:
    import torch
except ImportError:
    torch = None


class WithFloat:
    def __float__(self):
        return 0.5


class WithIndex:
    def __index__(self):
        return 2


HALF = [
    0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), np.longdouble(0.5), np.array(0.5),
    np.array([0.5]), np.array([[0.5]], np.float32), np.array(Fraction(1, 2), dtype=object), Decimal("0.5"),
    Fraction(1, 2), WithFloat(),
]
TWO = [2, np.int8(2), np.uint64(2), np.array(2), np.array([2]), WithIndex()]
REFUSED = [
    True, np.bool_(True), np.array(True), np.array([True]), "0.5", b"0.5", bytearray(b"0.5"), np.str_("0.5"),
    np.array("0.5"), memoryview(b"0.5"), 0.5j, np.complex64(0.5), np.clongdouble(0.5), np.array(0.5 + 0j),
    [0.5], (0.5,), {0.5}, {}, np.full(2, 0.5), np.zeros(0), np.ma.masked, np.ma.array([0.5]), Decimal("sNaN"),
    np.datetime64("2020-01-01"), object(),
]
if torch is not None:
    HALF += [torch.tensor(0.5), torch.tensor([[0.5]]), torch.tensor(0.5, requires_grad=True)]
    HALF += [torch.tensor(0.5, dtype=torch.bfloat16)]
    TWO += [torch.tensor(2)]
    REFUSED += [torch.tensor(True), torch.tensor(0.5j), torch.full((2,), 0.5)]
NOT_FINITE = [math.nan, np.float32("nan"), np.array(np.nan), np.array([np.inf]), Decimal("NaN"), 10**400]


@pytest.fixture(autouse=True)
def no_warnings():
    """Conversions of arrays with one element are deprecated in NumPy and must not be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def kind(value):
    return id_without_address(value)[:40]


@pytest.mark.parametrize("value", HALF + TWO, ids=kind)
def test_numbers_become_floats(value):
    number = 0.5 if any(value is half for half in HALF) else 2.0
    for result in (to_float("x", value), check_float("x", value)):
        assert type(result) is float and result == number
    opt = fastopt.SGD(np.zeros(1), lr=value, weight_decay=lambda step: value)
    opt.groups[0]["momentum"] = value
    assert type(opt.groups[0]["lr"]) is float and type(opt.groups[0]["momentum"]) is float
    opt.step(np.ones(1))
    assert opt.params[0] == -number
    opt.step(np.ones(1), max_norm=value, clip_value=value, grad_scale=value)
    assert fastopt.schedules.Constant(value)(0) == fastopt.schedules.LinearWarmup(1, value)(1) == number


@pytest.mark.parametrize("value", HALF, ids=kind)
def test_numbers_in_tuples_and_options_become_floats(value):
    opt = fastopt.Adam(np.zeros(1), betas=(value, lambda step: value), ema=value, lookahead=(2, value))
    assert opt.groups[0]["betas"][0] == 0.5
    opt.step(np.ones(1))
    assert opt.ema[0] == 0.5 * opt.params[0]
    net = fastopt.MLP([2, 2])
    trainer = fastopt.Trainer(net, fastopt.SGD(net.params, lr=0.1), max_norm=value)
    assert trainer._step_options == {"max_norm": 0.5}


@pytest.mark.parametrize("value", REFUSED, ids=kind)
def test_other_values_are_refused_by_name(value):
    opt = fastopt.SGD(np.zeros(1), lr=0.1)
    with pytest.raises(TypeError, match=r"^x: expected a number, got "):
        check_float("x", value)
    with pytest.raises(TypeError, match=r"^lr: expected a number, got "):
        opt.groups[0]["lr"] = value
    for name in ("max_norm", "clip_value", "grad_scale"):
        with pytest.raises(TypeError, match=rf"^{name}: expected a number, got "):
            opt.step(np.ones(1), **{name: value})
    opt.groups[0]["lr"] = lambda step: value
    with pytest.raises(TypeError, match=r"^lr: expected a number, got .* at step 0 from the schedule"):
        opt.step(np.ones(1))
    with pytest.raises(TypeError, match=r"^metric: expected a number, got "):
        fastopt.schedules.ReduceOnPlateau(0.1).report(value)
    assert opt.params[0] == 0.0 and opt.steps == 0


@pytest.mark.parametrize("value", NOT_FINITE, ids=lambda value: kind(value)[:30])
def test_numbers_that_are_not_finite_are_refused_by_name(value):
    opt = fastopt.SGD(np.zeros(1), lr=0.1)
    with pytest.raises(ValueError, match=r"^lr: expected a finite number"):
        opt.groups[0]["lr"] = value
    with pytest.raises(ValueError, match=r"^grad_scale: expected a finite number"):
        opt.step(np.ones(1), grad_scale=value)
    with pytest.raises(ValueError, match=r"^lr: expected a finite number"):
        fastopt.schedules.Constant(value)


@pytest.mark.parametrize("value", HALF, ids=kind)
def test_a_number_that_is_set_is_a_float_whatever_its_type(value):
    """It needs no new search for kernels, which only a change from or to 0 can require."""
    opt = fastopt.SGD(np.zeros(1), lr=0.1, momentum=0.9)
    opt.step(np.ones(1))
    plan = opt._plan
    opt.groups[0]["lr"] = opt.groups[0]["momentum"] = value
    assert not opt._counter.stale_hyperparams and opt._counter.stale
    opt.step(np.ones(1))
    assert opt._plan is plan and opt.params[0] == -0.1 - 0.5 * (0.5 * 1.0 + 1.0)
    opt.step(np.ones(1))
    opt.groups[0]["lr"] = value  # an equal value
    assert not opt._counter.stale
