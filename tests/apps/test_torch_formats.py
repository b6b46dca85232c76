"""fastopt.torch: parameters and state of fewer bits have the bits of the optimizers of arrays."""

import copy
import io

import numpy as np
import pytest
from formats import bits_of
from torch_optimizers import NAMES, assert_close, assert_equal, make_params, run, set_grads, torch, values

import fastopt
import fastopt.torch as ft
from fastopt._core.encoded import Encoded
from fastopt.torch.tensors import to_array

SHAPES = ((70, 61), (5,), ())       # the first one has 8-bit state, in which a block is not full
REFUSED = [name for name in NAMES if "state_dtype" in getattr(fastopt, name).RULE.REFUSED_OPTIONS]
SUPPORTED = [name for name in NAMES if name not in REFUSED]
FORMATS = {
    "float32, bfloat16 state": (torch.float32, {"state_dtype": "bfloat16"}),
    "float32, 8-bit state": (torch.float32, {"state_dtype": "int8", "seed": 5}),
    "bfloat16": (torch.bfloat16, {"seed": 3}),
    "float16, 8-bit state": (torch.float16, {"state_dtype": "int8", "block_size": 128}),
    "nearest": (torch.bfloat16, {"rounding": "nearest", "state_dtype": "bfloat16"}),
    "split": (torch.bfloat16, {"master_weights": "split"}),
    "split, 8-bit state": (torch.bfloat16, {"master_weights": "split", "state_dtype": "int8"}),
}
ANY_FORMAT = pytest.mark.parametrize("form", FORMATS)


def bits(tensor):
    array = to_array(tensor.detach())
    return bits_of(array) if array.dtype.itemsize == 2 else array


def assert_same_state(own, expected):
    """Compare the state of a parameter with that of an array, as it is stored."""
    for name, array in expected.stored.items():
        if not isinstance(array, Encoded):
            found = own[name].numpy()
            np.testing.assert_array_equal(found.view(array.dtype) if name == "low_bits" else found, array)
        elif array.encoding == "bfloat16":
            np.testing.assert_array_equal(own[name].view(torch.uint16).numpy(), array.view)
        else:
            np.testing.assert_array_equal(own[f"{name}_codes"].view(torch.uint8).numpy(), array.view)
            np.testing.assert_array_equal(own[f"{name}_scales"].numpy(), array.scales)


def saved_and_loaded(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@ANY_FORMAT
@pytest.mark.parametrize("name", SUPPORTED)
def test_equals_the_optimizer_of_arrays_also_when_resumed(name, form):
    """The first parameter starts late, the second one is left out once; the others keep their noise."""
    dtype, options = FORMATS[form]
    params = make_params(dtype=dtype, shapes=SHAPES)
    arrays = [to_array(p).copy() for p in params]
    optimizer, expected = getattr(ft, name)(params, **options), getattr(fastopt, name)(arrays, **options)
    for step in range(5):
        set_grads(params, step, skipped={0: (0,), 3: (1,)}.get(step, ()))
        with np.errstate(all="ignore"):
            expected.step([p.grad if p.grad is None else to_array(p.grad).copy() for p in params])
        optimizer.step()
        if step == 2:
            saved = saved_and_loaded(optimizer.state_dict())
            optimizer = getattr(ft, name)(params, **options)
            optimizer.load_state_dict(saved)
    for p, array, state in zip(params, arrays, expected.state, strict=True):
        np.testing.assert_array_equal(bits(p), bits_of(array) if array.dtype.itemsize == 2 else array)
        assert_same_state(optimizer.state[p], state)


LAYOUTS = {
    "contiguous": lambda x: x, "transposed": lambda x: x.t().contiguous().t(), "gaps": lambda x: x[::2, 1:],
}


@ANY_FORMAT
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(form, layout):
    """A transposed parameter equals an array in Fortran order, one with gaps a dense one."""
    dtype, options = FORMATS[form]
    whole = torch.randn(180, 62, generator=torch.Generator().manual_seed(1)).to(dtype)
    p = torch.nn.Parameter(layout(whole.clone()))
    array = to_array(layout(whole)).copy(order="K")
    optimizer, expected = ft.AdamW([p], lr=0.1, **options), fastopt.AdamW([array], lr=0.1, **options)
    for step in range(4):
        set_grads([p], step)
        expected.step([to_array(p.grad).copy(order="K")])
        optimizer.step()
        if step == 1:
            saved = saved_and_loaded(optimizer.state_dict())
            optimizer = ft.AdamW([p], lr=0.1, **options)
            optimizer.load_state_dict(saved)
    np.testing.assert_array_equal(bits(p), bits_of(array) if array.dtype.itemsize == 2 else array)
    assert_same_state(optimizer.state[p], expected.state[0])


@ANY_FORMAT
def test_copies(form):
    dtype, options = FORMATS[form]
    params = make_params(dtype=dtype, shapes=SHAPES)
    optimizer = ft.SGD(params, momentum=0.9, lr=0.1, **options)
    run(optimizer, params, 2)
    copied_params, copied = copy.deepcopy((params, optimizer))
    run(optimizer, params, 2, first=2)
    run(copied, copied_params, 2, first=2)
    assert_equal(params, copied_params)


@ANY_FORMAT
@pytest.mark.parametrize(
    "other", [{}, {"state_dtype": "bfloat16"}, {"state_dtype": "int8", "block_size": 512}], ids=str
)
def test_states_are_converted_when_the_storage_differs(form, other):
    dtype, options = FORMATS[form]
    params = make_params(dtype=dtype, shapes=SHAPES)
    optimizer = ft.AdamW(params, **options)
    run(optimizer, params, 2)
    state = copy.deepcopy(optimizer.state_dict())
    converted = ft.AdamW(params, **other)
    converted.load_state_dict(state)
    run(converted, params, 1, first=2)
    back = ft.AdamW(params, **options)
    back.load_state_dict(copy.deepcopy(converted.state_dict()))
    run(back, params, 1, first=3)
    assert {k: own.keys() for k, own in back.state_dict()["state"].items()} == {
        k: own.keys() for k, own in state["state"].items()
    }
    exact = ft.AdamW(params)
    exact.load_state_dict(copy.deepcopy(back.state_dict()))
    reference = [p.detach().float() for p in params]
    other_params = make_params(dtype=dtype, shapes=SHAPES)
    plain = ft.AdamW(other_params)
    run(plain, other_params, 4)
    for p, q, r in zip(params, other_params, reference, strict=True):
        torch.testing.assert_close(r, q.detach().float(), rtol=0.02, atol=2e-3)
        for name in ("exp_avg", "exp_avg_sq"):
            mean = plain.state[q][name]
            torch.testing.assert_close(
                exact.state[p][name].float(), mean, rtol=0.1, atol=0.05 * float(mean.abs().max())
            )


def test_state_without_codes_goes_to_torch():
    """8-bit state is refused by torch; loaded here without `state_dtype`, it has torch's form at once."""
    params = make_params(shapes=SHAPES)
    optimizer = ft.AdamW(params, state_dtype="int8")
    run(optimizer, params, 2)
    theirs = torch.optim.AdamW(params)
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.raises(KeyError, match="exp_avg"):
        theirs.step()
    plain = ft.AdamW(params)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    theirs.load_state_dict(copy.deepcopy(plain.state_dict()))
    before = values(params)
    run(theirs, params, 2, first=2)
    found = values(params)
    for p, value in zip(params, before, strict=True):
        p.data.copy_(value)
    run(plain, params, 2, first=2)
    assert_close(params, found)


def test_split_weights_follow_loaded_parameters():
    params = make_params(dtype=torch.bfloat16, shapes=SHAPES)
    optimizer = ft.AdamW(params, lr=0.1, master_weights="split", ema=0.9)
    run(optimizer, params, 2)
    assert optimizer.state[params[0]]["low_bits"].any()
    for p in params:
        p.data.fill_(2.0)
    optimizer.sync_params()
    for p in params:
        assert not optimizer.state[p]["low_bits"].any() and (optimizer.state[p]["ema"] == 2.0).all()
    plain = ft.AdamW(params, lr=0.1)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert "low_bits" not in plain.state[params[0]]


@pytest.mark.parametrize(("name", "dtype", "options", "words"), [
    ("AdamW", torch.float64, {"state_dtype": "int8"}, r"float64 for param_groups\[0\]\['params'\]\[0\]"),
    ("AdamW", torch.float16, {"master_weights": "split"}, "float16 for param_groups"),
    *[(name, torch.float32, {"state_dtype": "bfloat16"}, "not supported by this") for name in REFUSED],
    ("AdamW", torch.float32, {"state_dtype": "int4"}, "state_dtype"),
    ("AdamW", torch.float32, {"block_size": 100}, "block_size"),
    ("AdamW", torch.float32, {"seed": -1}, "seed"),
])
def test_refused(name, dtype, options, words):
    params = make_params(dtype=dtype, shapes=SHAPES)
    before = values(params)
    with pytest.raises(ValueError, match=words):
        run(getattr(ft, name)(params, **options), params, 1)
    assert_equal(params, before)


BROKEN = {
    "no scales": lambda own: own.pop("exp_avg_scales"),
    "wrong scales": lambda own: own.update(exp_avg_scales=torch.ones(3)),
    "dtype of codes": lambda own: own.update(exp_avg_codes=own["exp_avg_codes"].long()),
    "gaps": lambda own: own.update(exp_avg_codes=torch.zeros(70, 122, dtype=torch.int8)[:, ::2]),
    "shape": lambda own: own.update(exp_avg_codes=own["exp_avg_codes"].t()),
    "low bits": lambda own: own.update(low_bits=torch.zeros(70, 61)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_state_is_an_error_and_changes_nothing(case):
    params = make_params(dtype=torch.bfloat16, shapes=SHAPES)
    optimizer = ft.AdamW(params, state_dtype="int8", master_weights="split")
    run(optimizer, params, 1)
    BROKEN[case](optimizer.state[params[0]])
    before = values(params)
    with pytest.raises((TypeError, ValueError), match=r"state\[param_groups\[0\]\['params'\]\[0\]\]"):
        run(optimizer, params, 1)
    assert_equal(params, before)
