"""fastopt.torch: state dicts, copies, and the options of a step."""

import copy
import io
import pickle

import pytest
from torch_optimizers import (
    KINDS,
    NAMES,
    assert_close,
    assert_equal,
    make_params,
    pair,
    run,
    set_grads,
    torch,
    values,
)

import fastopt.torch as ft

# --- State dicts, copies ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_has_the_form_of_torch(kind):
    ours, theirs = (optimizer for params, optimizer in pair(kind) if run(optimizer, params, 2) is None)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    assert mine["state"].keys() == other["state"].keys()
    for k, own in other["state"].items():
        assert mine["state"][k].keys() == own.keys() - {n for n, v in own.items() if v is None}
        for name, value in own.items():
            found = mine["state"][k][name]
            assert torch.as_tensor(found).shape == value.shape
            assert isinstance(found, float) or found.dtype == value.dtype
    file = io.BytesIO()
    torch.save(mine, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    theirs.load_state_dict(loaded)


@pytest.mark.parametrize("name", NAMES)
def test_resume_equals_never_stopped(name):
    params, whole = make_params(), make_params()
    run(getattr(ft, name)(whole), whole, 8)
    optimizer = getattr(ft, name)(params)
    run(optimizer, params, 4)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = getattr(ft, name)(params)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    run(resumed, params, 4, first=4)
    assert_equal(params, whole)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("name", NAMES)
def test_copies(name, copier):
    params, whole = make_params(), make_params()
    run(getattr(ft, name)(whole), whole, 8)
    optimizer = getattr(ft, name)(params)
    run(optimizer, params, 4)
    before = values(params)
    copied_params, copied = copier((params, optimizer))
    assert copied.param_groups[0]["params"][0] is copied_params[0]
    run(copied, copied_params, 4, first=4)
    assert_equal(copied_params, whole)
    assert_equal(params, before)


def test_state_keeps_its_dtype():
    params = make_params(dtype=torch.float64)
    optimizer = ft.NAdam(params)
    run(optimizer, params, 2)
    saved = optimizer.state_dict()
    single = [torch.nn.Parameter(p.detach().float()) for p in params]
    other = ft.NAdam(single)
    other.load_state_dict(saved)
    assert other.state[single[0]]["exp_avg"].dtype == torch.float64
    assert other.state[single[0]]["mu_product"] == optimizer.state[params[0]]["mu_product"]


def test_loading_raises_what_torch_raises():
    for params, optimizer in pair():
        run(optimizer, params, 1)
        saved = optimizer.state_dict()
        with pytest.raises(ValueError, match="different number of parameter groups"):
            optimizer.load_state_dict({**saved, "param_groups": saved["param_groups"] * 2})
        other = copy.deepcopy(saved)
        other["param_groups"][0]["params"].pop()
        with pytest.raises(ValueError, match="doesn't match the size"):
            optimizer.load_state_dict(other)
        optimizer.load_state_dict({"state": {}, "param_groups": saved["param_groups"]})
        assert not optimizer.state
        run(optimizer, params, 1)
        assert optimizer.state[params[0]]["step"] == 1


def test_an_old_state_dict_gets_the_missing_items():
    params = make_params()
    optimizer = ft.AdamW(params)
    run(optimizer, params, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    for name in ("maximize", "foreach", "cautious"):
        del saved["param_groups"][0][name]
    for own in saved["state"].values():
        own["step"] = float(own["step"])     # as before torch 1.12
    optimizer.load_state_dict(saved)
    run(optimizer, params, 1)
    assert optimizer.state[params[0]]["step"] == 2


# --- Zeroing, scaling, clipping ---------------------------------------------------------------------


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    for params, optimizer in pair():
        set_grads(params, 0)
        optimizer.zero_grad(set_to_none=set_to_none)
        assert all(p.grad is None if set_to_none else not p.grad.any() for p in params)


def test_step_options_are_clipping_and_zeroing():
    ours, theirs = pair(lr=0.1)
    for step in range(5):
        for params, optimizer in (ours, theirs):
            set_grads(params, step)
            if optimizer is ours[1]:
                optimizer.step(max_norm=0.5, clip_value=0.2, zero_grad=True)
                assert all(not p.grad.any() for p in params)
            else:
                norm = torch.nn.utils.clip_grad_norm_(params, 0.5)
                torch.nn.utils.clip_grad_value_(params, 0.2)
                optimizer.step()
        assert ours[1].grad_norm == pytest.approx(norm.item(), rel=1e-6)
    assert_close(ours[0], theirs[0])


@pytest.mark.parametrize("kind", ["AdamW", "SGD momentum", "Adagrad"])
def test_grad_scaler(kind):
    """On the CPU; the very first step has a gradient that is not finite, and so has a later one."""
    results = []
    for params, optimizer in pair(kind):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        moved = []
        for step in range(8):
            set_grads(params, step)
            for p in params:
                p.grad.mul_(scaler.get_scale())
            if step in (0, 4):
                params[1].grad[0] = float("inf")
            before = values(params)
            scaler.scale(torch.ones(()))
            if step == 6:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            moved.append(not torch.equal(params[0], before[0]))
        assert moved == [step not in (0, 4) for step in range(8)]
        results.append(params)
    assert_close(*results)
    assert optimizer.state[params[0]].get("step", 6) == 6


def test_skip_nonfinite():
    params = make_params()
    optimizer = ft.AdamW(params, skip_nonfinite=True)
    before = values(params)
    set_grads(params, 0)
    params[0].grad[0, 0] = float("nan")
    optimizer.step(zero_grad=True)
    assert_equal(params, before)
    assert optimizer.skipped_steps == 1 and not optimizer.state and not params[0].grad.any()
    run(optimizer, params, 1)
    assert optimizer.state[params[0]]["step"] == 1
