"""fastopt.torch in two processes that gloo connects: DDP, ZeRO and FSDP2 against a single process."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
if not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
    pytest.skip("torch is older than 2.10", allow_module_level=True)
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this torch has no gloo", allow_module_level=True)

WORLD = 2
STEPS = 6


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)).double()


def samples(step):
    return torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def train(model, optimizer, steps=STEPS, rank=0, world=1):
    for step in range(steps):
        optimizer.zero_grad()
        model(samples(step)[rank::world]).pow(2).mean().backward()
        optimizer.step()


def expected():
    import fastopt.torch

    model = make_model()
    train(model, fastopt.torch.AdamW(model.parameters(), lr=0.1))
    return [p.detach() for p in model.parameters()]


def assert_expected(params):
    for p, q in zip(params, expected(), strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-9, atol=1e-12)


def ddp(rank):
    import fastopt.torch

    model = make_model()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    train(parallel, fastopt.torch.AdamW(parallel.parameters(), lr=0.1), rank=rank, world=WORLD)
    assert_expected(model.parameters())


def zero(rank):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    import fastopt.torch

    model = make_model()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = ZeroRedundancyOptimizer(
        parallel.parameters(), optimizer_class=fastopt.torch.AdamW, lr=0.1
    )
    train(parallel, optimizer, rank=rank, world=WORLD)
    assert_expected(model.parameters())
    optimizer.consolidate_state_dict(to=0)
    if rank == 0:
        whole = torch.optim.AdamW(model.parameters(), lr=0.1)
        whole.load_state_dict(optimizer.state_dict())
        assert all(float(own["step"]) == STEPS for own in whole.state.values())


def fsdp(rank):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    import fastopt.torch

    mesh = init_device_mesh("cpu", (WORLD,))

    def make():
        model = make_model()
        for layer in model:
            if isinstance(layer, torch.nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model, fastopt.torch.AdamW(model.parameters(), lr=0.1)

    model, optimizer = make()
    before = [p.full_tensor().detach().clone() for p in model.parameters()]
    state = get_optimizer_state_dict(model, optimizer)      # makes state, and moves nothing
    assert len(state["state"]) == 4
    for p, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.full_tensor(), value)
    model, optimizer = make()
    train(model, optimizer, 3, rank, WORLD)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    weights = copy.deepcopy(model.state_dict())
    model, optimizer = make()
    model.load_state_dict(weights)
    set_optimizer_state_dict(model, optimizer, saved)
    for step in range(3, STEPS):
        optimizer.zero_grad()
        model(samples(step)[rank::WORLD]).pow(2).mean().backward()
        optimizer.step()
    assert_expected([p.full_tensor() for p in model.parameters()])
    lamb = fastopt.torch.LAMB(model.parameters())
    with pytest.raises(ValueError, match="expected a whole tensor"):
        lamb.step()


CASES = {"ddp": ddp, "zero": zero, "fsdp": fsdp}


@pytest.mark.parametrize("case", CASES)
def test_two_processes(case, tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, case, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for rank in range(WORLD)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * WORLD, "\n".join(outputs)


def test_optimizer_state_dict_of_one_process():
    """torch makes the state with a step of learning rate 0, which moves nothing.

    FTRL divides by the rate, and Muon has another one for parameters that are no matrices.
    """
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    import fastopt.torch
    from fastopt.optimizers.api import BY_NAME

    for name in [cls.__name__ for cls in BY_NAME.values() if cls.__name__ not in ("FTRL", "Muon")]:
        model = make_model()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = getattr(fastopt.torch, name)(model.parameters())
        get_optimizer_state_dict(model, optimizer)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)), name


if __name__ == "__main__":
    name, rank, path = sys.argv[1:]
    store = torch.distributed.FileStore(str(Path(path)), WORLD)
    torch.distributed.init_process_group("gloo", store=store, rank=int(rank), world_size=WORLD)
    CASES[name](int(rank))
    torch.distributed.destroy_process_group()
