"""torch's own table of optimizer configurations: our classes against those of ``torch.optim``."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("expecttest", reason="torch's table of optimizers needs expecttest")
import fastopt.torch  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

STEPS, HALF = 60, 30
SHAPES = [(4, 3), (3, 5)]
SHARED = [info for info in optim_db if hasattr(fastopt.torch, info.name)]
IDS = [info.name for info in SHARED]


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """torch's optimizers compute in double; their scalars have the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)   # Muon of torch computes in it
    yield
    torch.set_default_dtype(before)


def configurations(info, dtype=torch.float64):
    return [config for config in info.optim_inputs_func(device="cpu", dtype=dtype) if config.params is None]


def cells(*, dtypes):
    return [
        pytest.param(info, dtype, id=f"{info.name}-{dtype}".replace("torch.", ""))
        for info in SHARED for dtype in dtypes
        if info.supports_complex or not dtype.is_complex
    ]


def make_params(info, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES if info.name == "Muon" else [*SHAPES, (3,), ()]
    return [torch.nn.Parameter(torch.randn(s, dtype=dtype, generator=generator)) for s in shapes]


def run(optimizer, params, steps, seed):
    """Steps with gradients that depend on the parameters, so errors persist."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            noise = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            p.grad = p.detach() + noise
        optimizer.step()


def assert_same(ours, theirs, what):
    for p, q in zip(ours, theirs, strict=True):
        difference = (p - q).abs().max().item() if p.numel() else 0.0
        assert difference <= 1e-10 * max(1.0, q.abs().max().item()), what


def kwargs_of(config):
    return copy.deepcopy(config.kwargs)


def make(cls, params, config):
    """An optimizer of one of the configurations, which may need parameters that it is given by name."""
    return cls(params, **kwargs_of(config))


@pytest.mark.parametrize(("info", "dtype"), cells(dtypes=[torch.float64, torch.complex128]))
def test_agrees(info, dtype):
    ours_cls = getattr(fastopt.torch, info.name)
    configs = configurations(info)
    assert configs
    for config in configs:
        ours, theirs = make_params(info, dtype), make_params(info, dtype)
        mine, other = make(ours_cls, ours, config), make(info.optim_cls, theirs, config)
        run(mine, ours, STEPS, 1)
        run(other, theirs, STEPS, 1)
        assert_same(ours, theirs, config)


@pytest.mark.parametrize("direction", ["from torch", "to torch"])
@pytest.mark.parametrize(("info", "dtype"), cells(dtypes=[torch.float64]))
def test_state_is_exchanged(info, dtype, direction):
    ours_cls = getattr(fastopt.torch, info.name)
    first, second = (info.optim_cls, ours_cls) if direction == "from torch" else (ours_cls, info.optim_cls)
    for config in configurations(info):
        params, reference = make_params(info, dtype), make_params(info, dtype)
        whole = make(info.optim_cls, reference, config)
        before = make(first, params, config)
        run(before, params, HALF, 1)
        run(whole, reference, HALF, 1)
        after = make(second, params, config)
        after.load_state_dict(copy.deepcopy(before.state_dict()))
        run(after, params, HALF, 2)
        run(whole, reference, HALF, 2)
        assert_same(params, reference, config)


@pytest.mark.parametrize("info", SHARED, ids=IDS)
def test_expected_errors(info):
    cls = getattr(fastopt.torch, info.name)
    for case in info.optim_error_inputs_func(device="cpu", dtype=torch.float64):
        config = case.optimizer_error_input
        if "only supports 2D" in case.error_regex:      # ours has another update for other parameters
            continue
        params = make_params(info, torch.float64) if config.params is None else config.params
        at_construction = case.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
        if case.error_type is UserWarning:
            with pytest.warns(UserWarning, match=case.error_regex):
                cls(params, **kwargs_of(config))
        elif at_construction:
            with pytest.raises(case.error_type):
                cls(params, **kwargs_of(config))
        else:
            optimizer = cls(params, **kwargs_of(config))
            with pytest.raises(case.error_type):
                optimizer.step()
