"""fastopt.torch: tensors of any layout and dtype, options of fastopt, and steps that fail."""

import copy
import gc
import weakref

import numpy as np
import pytest
from torch_optimizers import (
    KINDS,
    NAMES,
    assert_close,
    assert_equal,
    class_of,
    make_params,
    run,
    set_grads,
    torch,
    values,
)

import fastopt
import fastopt.torch as ft

# --- Tensors ----------------------------------------------------------------------------------------


def strided():
    return torch.randn(6, 4)[:, ::2]


TENSORS = {
    "channels_last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(3, 4).t(),
    "empty": lambda: torch.empty(0, 3),
    "0-d": lambda: torch.randn(()),
    "with gaps": lambda: torch.randn(6, 4)[:, ::2],
    "slice of a larger one": lambda: torch.randn(10)[3:7],
    "float64": lambda: torch.randn(3).double(),
    "one element": lambda: torch.randn(1, 1, 1),
    "complex": lambda: torch.randn(3, 2, dtype=torch.complex64),
    "complex double": lambda: torch.randn(3, dtype=torch.complex128),
}


def expanded(g):
    """The same value for all elements, with one in memory."""
    return g.flatten()[:1].reshape((1,) * g.dim()).expand(g.shape) if g.numel() else g


GRADIENTS = {
    "same": lambda g: g,
    "contiguous": lambda g: g.clone(memory_format=torch.contiguous_format),
    "with gaps": lambda g: torch.stack([g, g], -1)[..., 0],
    "transposed": lambda g: g.clone().mT.contiguous().mT if g.dim() > 1 else g,
    "conjugate": lambda g: g.conj(),
    "expanded": expanded,
}


@pytest.mark.parametrize("kind", ["AdamW", "SGD momentum", "RMSprop"])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("tensor", TENSORS)
def test_tensors_in_any_layout(tensor, gradient, kind):
    torch.manual_seed(0)
    start = TENSORS[tensor]()
    results = []
    for module in (ft, torch.optim):
        base = torch.nn.Parameter(torch.empty(0, dtype=start.dtype))
        base.data = start.clone() if tensor != "with gaps" else torch.cat([start, start], 1)[:, ::2]
        if tensor == "with gaps":
            base.data.copy_(start)
        before = base.data_ptr()
        optimizer = class_of(module, kind)([base], lr=0.1, **KINDS[kind])
        torch.manual_seed(1)
        for _ in range(4):
            grad = GRADIENTS[gradient](torch.randn_like(base))
            base.grad = grad.detach() if module is ft else grad.detach().resolve_conj()
            optimizer.step()
        assert base.data_ptr() == before
        results.append((base, optimizer.state[base]))
    assert_close([results[0][0]], [results[1][0]])
    for name, value in results[1][1].items():
        if name != "step":
            assert_close([results[0][1][name]], [value])
            is_like_the_gradient = name == "momentum_buffer" and kind.startswith("SGD")     # in torch
            assert is_like_the_gradient or results[0][1][name].stride() == value.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_gradients_of_another_dtype(dtype):
    """torch's optimizers raise here."""
    params, expected = make_params(), make_params()
    optimizer, other = ft.AdamW(params), torch.optim.AdamW(expected)
    for step in range(3):
        set_grads(expected, step)
        for p, q in zip(params, expected, strict=True):
            q.grad = q.grad.to(dtype).float()
            p.grad_dtype = None
            p.grad = q.grad.to(dtype)
        optimizer.step(zero_grad=True)
        other.step()
        assert all(not p.grad.any() for p in params)
    assert_close(params, expected)


@pytest.mark.parametrize("gradient", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["AdamW", "SGD momentum", "Adagrad"])
def test_parameters_of_16_bits(kind, dtype, gradient):
    """A step is that of float32, rounded, with state of float32; states are exchanged with torch."""
    params = [torch.nn.Parameter(p.detach().to(dtype)) for p in make_params(shapes=((40, 30), (5,), ()))]
    options = {"lr": 1e-2, **KINDS[kind]}
    optimizer = class_of(ft, kind)(params, rounding="nearest", **options)
    for step in range(8):
        before = values(params)
        for i, p in enumerate(params):
            noise = torch.Generator().manual_seed(100 * step + i)
            p.grad_dtype = None
            p.grad = torch.randn(p.shape, generator=noise).to(gradient)
        single = [torch.nn.Parameter(p.float()) for p in before]
        other = class_of(torch.optim, kind)(single, **options)
        state = copy.deepcopy(optimizer.state_dict())
        other.load_state_dict(state)
        for p, q in zip(params, single, strict=True):
            q.grad = p.grad.float()
        optimizer.step()
        other.step()
        for p, q in zip(params, single, strict=True):
            torch.testing.assert_close(p.float(), q.float(), rtol=2.0**-7, atol=2.0**-9)
        if step == 4:
            saved = copy.deepcopy((values(params), optimizer.state_dict()))
            optimizer = class_of(ft, kind)(params, rounding="nearest", **options)
            optimizer.load_state_dict(saved[1])
    assert all(t.dtype == torch.float32 for own in optimizer.state.values() for t in own.values())
    theirs = class_of(torch.optim, kind)(params, **options)     # with state of the same 16 bits
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))
    optimizer.step()
    assert all(t.dtype == torch.float32 for own in optimizer.state.values() for t in own.values())


def test_stochastic_rounding_resumes_exactly():
    runs = []
    for interrupted in (False, True):
        params = [torch.nn.Parameter(p.detach().bfloat16()) for p in make_params(shapes=((50, 20),))]
        optimizer = ft.AdamW(params, seed=7)
        for step in range(6):
            if interrupted and step == 3:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = ft.AdamW(params, seed=7)
                optimizer.load_state_dict(saved)
            set_grads(params, step)
            optimizer.step()
        runs.append(values(params))
    assert_equal(*runs)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn])
def test_parameters_of_other_dtypes_are_refused(dtype):
    p = torch.ones(3).to(dtype)
    p.grad = torch.ones(3).to(dtype)
    optimizer = ft.AdamW([p])
    with pytest.raises(TypeError, match=f"float32.*{dtype}"):
        optimizer.step()


@pytest.mark.parametrize("make", [
    lambda: torch.ones(3, device="meta"), lambda: torch.ones(1).expand(3).clone()[:1].expand(3),
])
def test_tensors_without_memory_of_their_own_are_refused(make):
    p = make()
    p.grad = torch.ones_like(p)
    optimizer = ft.SGD([p])
    with pytest.raises(ValueError, match=r"params'\]\[0\]: expected"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("kind", ["SGD", "Adagrad"])
def test_sparse_gradients_as_torch(kind):
    results = []
    for module in (ft, torch.optim):
        torch.manual_seed(0)
        layer = torch.nn.Embedding(20, 4, sparse=True)
        optimizer = getattr(module, kind)(layer.parameters(), lr=0.1)
        for step in range(5):
            optimizer.zero_grad()
            layer(torch.tensor([step, step, 3, 19])).pow(2).sum().backward()
            optimizer.step()
        results.append(layer.weight)
    assert_close(results[:1], results[1:])


def test_sparse_gradients_of_adam_are_lazy():
    torch.manual_seed(0)
    layer = torch.nn.Embedding(20, 4, sparse=True)
    expected = copy.deepcopy(layer)
    optimizer = ft.Adam(layer.parameters(), lr=0.1, convention="keras")
    other = torch.optim.SparseAdam(expected.parameters(), lr=0.1)
    for step in range(5):
        for module, opt in ((layer, optimizer), (expected, other)):
            opt.zero_grad()
            module(torch.tensor([step, step, 3, 19])).pow(2).sum().backward()
            opt.step()
    assert_close([layer.weight], [expected.weight], "lazy")


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"SGD", "Adam", "AdamW", "Adagrad", "RMSprop"}))
def test_sparse_gradients_are_dense_for_other_optimizers(name):
    sparse = torch.sparse_coo_tensor([[0, 2, 0]], torch.ones(3, 2), (4, 2), check_invariants=True)
    params = [torch.nn.Parameter(torch.ones(4, 2)) for _ in range(2)]
    for p, grad in zip(params, (sparse, sparse.to_dense()), strict=True):
        optimizer = getattr(ft, name)([p])
        for _ in range(3):
            p.grad = grad
            optimizer.step()
    assert_close(params[:1], params[1:])


def test_a_gradient_that_is_the_imaginary_part_of_a_conjugate():
    z = torch.tensor(1.0 + 2.0j).conj()
    p = torch.zeros(())
    p.grad = z.imag
    assert p.grad.is_neg()
    ft.SGD([p], lr=1.0).step()
    assert p.item() == 2.0


def test_a_parameter_that_becomes_a_conjugate():
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = ft.SGD([p], lr=1.0)
    p.grad = torch.ones_like(p)
    optimizer.step()
    p.data = p.data.conj()
    with pytest.raises(RuntimeError, match="conj"):
        optimizer.step()


def test_a_gradient_in_the_memory_of_the_parameter():
    p = torch.ones(4)
    p.grad = p.detach()
    ft.SGD([p], lr=0.5).step()
    assert torch.equal(p, torch.full((4,), 0.5))


def test_autograd_notices_a_step():
    p = torch.nn.Parameter(torch.ones(2, 2))
    loss = (p * p).sum() * p.sum()
    p.grad = torch.ones(2, 2)
    version = p._version
    ft.SGD([p]).step()
    assert p._version == version + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_is_kept_alive():
    params = make_params()
    optimizer = ft.AdamW(params)
    run(optimizer, params, 2)
    grads = [weakref.ref(p.grad) for p in params]
    optimizer.zero_grad()
    assert all(ref() is None for ref in grads)
    refs = [weakref.ref(p) for p in params]
    del params, optimizer
    gc.collect()
    assert all(ref() is None for ref in refs)


# --- Options of fastopt -----------------------------------------------------------------------------


OPTIONS = [
    {"ema": 0.9}, {"lookahead": (2, 0.5)}, {"ema": 0.9, "lookahead": (3, 0.5)},
    {"independent_weight_decay": 0.01}, {"centralize": True}, {"unit_clip": 0.01},
    {"centralize": True, "unit_clip": 0.1, "ema": 0.5},
]


def with_outputs_last(tensor):
    """The array of a tensor, with the axis of the outputs of a layer as the last one, as fastopt has it."""
    array = tensor.detach().numpy()
    return np.moveaxis(array, 0, -1) if array.ndim > 1 else array


@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam", "LAMB", "AdamWScheduleFree", "Prodigy", "Lion"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options, name):
    if "lookahead" in options and name == "AdamWScheduleFree":
        with pytest.raises(ValueError, match="lookahead"):
            ft.AdamWScheduleFree(make_params(), **options)
        return
    params = make_params(shapes=((4, 3), (3,), (2, 3, 2, 2)))
    arrays = [with_outputs_last(p).copy() for p in params]
    optimizer = getattr(ft, name)(params, lr=0.1, **options)
    expected = getattr(fastopt, name)(arrays, lr=0.1, **options)
    for step in range(7):
        set_grads(params, step)
        expected.step([with_outputs_last(p.grad).copy() for p in params])
        optimizer.step()
        if step == 3:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = getattr(ft, name)(params, lr=0.1, **options)
            optimizer.load_state_dict(saved)
    for p, array in zip(params, arrays, strict=True):
        np.testing.assert_array_equal(with_outputs_last(p), array)
    if "ema" in options:
        before, averages = values(params), expected.ema
        with optimizer.swapped_ema():
            for p, average in zip(params, averages, strict=True):
                np.testing.assert_array_equal(with_outputs_last(p), average)
            with pytest.raises(RuntimeError, match="swapped_ema"):
                optimizer.step()
        assert_equal(params, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_swapped_ema_gives_back_the_bits_of_parameters_and_averages(dtype):
    params = make_params(dtype=dtype)
    params[0].data = torch.stack([params[0].data] * 2, -1)[..., 0]      # has gaps in memory
    optimizer = ft.AdamW(params, lr=0.1, ema=0.9)
    run(optimizer, params, 3)
    state = [optimizer.state[p]["ema"] for p in params]
    before, averages, versions = values(params), values(state), [p._version for p in params]
    with optimizer.swapped_ema():
        assert_equal(params, [average.to(dtype) for average in averages])
        assert all(p._version > n for p, n in zip(params, versions, strict=True))
        params[1].data.fill_(2.0)       # another value is kept as the average
    assert_equal(params, before)
    averages[1].fill_(2.0)
    assert_equal(state, averages)


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_options_that_need_units_are_refused(name):
    params = make_params(shapes=((4, 3),))
    optimizer = getattr(ft, name)(params, centralize=True)
    set_grads(params, 0)
    with pytest.raises(ValueError, match="centralize"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("name", ["SGDScheduleFree", "AdamWScheduleFree"])
def test_schedule_free_modes(name):
    params = make_params(dtype=torch.float64)
    arrays = [p.detach().numpy().copy() for p in params]
    optimizer, expected = getattr(ft, name)(params, lr=0.1), getattr(fastopt, name)(arrays, lr=0.1)
    optimizer.eval()
    optimizer.train()
    for step in range(6):
        set_grads(params, step)
        expected.step([p.grad.numpy().copy() for p in params])
        optimizer.step()
        optimizer.eval()
        optimizer.eval()
        with expected.averaged():
            for p, array in zip(params, arrays, strict=True):
                np.testing.assert_allclose(p.detach().numpy(), array, rtol=1e-12, atol=1e-14)
        with pytest.raises(RuntimeError, match="train"):
            optimizer.step()
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer = getattr(ft, name)(params, lr=0.1)
        optimizer.load_state_dict(saved)        # saved in the mode for evaluation
        optimizer.train()
    for p, array in zip(params, arrays, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), array, rtol=1e-12, atol=1e-14)


# --- Failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_fails_changes_nothing(name):
    params = make_params(shapes=((4, 3), (3, 2)))
    optimizer = getattr(ft, name)(params)
    for n_steps in (0, 2):
        run(optimizer, params, n_steps)
        before, state = values(params), copy.deepcopy(optimizer.state_dict()["state"])
        set_grads(params, 9)
        params[1].grad_dtype = None
        params[1].grad = torch.ones(3, 2, dtype=torch.int32)
        with pytest.raises(TypeError, match=r"\[1\].grad: expected a floating dtype"):
            optimizer.step()
        assert_equal(params, before)
        assert str(optimizer.state_dict()["state"]) == str(state)
