"""Parameters with an optimizer of `fastopt.torch` or ``torch.optim``, for the tests of the former."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    pytest.skip("torch is older than 2.10", allow_module_level=True)

import fastopt.torch as ft  # noqa: E402
from fastopt.optimizers.api import BY_NAME  # noqa: E402

NAMES = [cls.__name__ for cls in BY_NAME.values()]
IN_TORCH = [name for name in NAMES if hasattr(torch.optim, name)]
# Those whose state covers each kind: plain, lazily made, counted, with scalars, with an initial value.
KINDS = {
    "SGD": {}, "SGD momentum": {"momentum": 0.9, "dampening": 0.1}, "AdamW": {}, "Adam": {"amsgrad": True},
    "NAdam": {}, "ASGD": {}, "Adagrad": {"initial_accumulator_value": 0.1}, "Rprop": {},
    "RMSprop": {"centered": True, "momentum": 0.5},
}


def class_of(module, kind):
    return getattr(module, kind.partition(" ")[0])


def make_params(seed=0, dtype=torch.float32, shapes=((4, 3), (3,), ())):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, dtype=dtype, generator=generator)) for s in shapes]


def set_grads(params, step, skipped=()):
    """Gradients that depend on the parameters, so errors persist."""
    generator = torch.Generator().manual_seed(step)
    for i, p in enumerate(params):
        noise = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        p.grad = None if i in skipped else p.detach() + noise


def run(optimizer, params, steps, first=0):
    for step in range(first, first + steps):
        set_grads(params, step)
        optimizer.step()


def assert_close(ours, theirs, what=""):
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-5, atol=1e-6, msg=what or None)


def values(params):
    return [p.detach().clone() for p in params]


def assert_equal(ours, theirs):
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def pair(kind="AdamW", seed=0, **options):
    """The same parameters with our optimizer and with torch's."""
    options = {"lr": 1e-2, **KINDS.get(kind, {}), **options}
    for module in (ft, torch.optim):
        params = make_params(seed)
        yield params, class_of(module, kind)(params, **options)
