"""fastopt.torch: what a `torch.optim.Optimizer` is trusted for, against the classes of ``torch.optim``."""

import inspect
import os
import signal
import threading

import numpy as np
import pytest
from torch_optimizers import (
    IN_TORCH,
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

import fastopt
import fastopt.torch as ft

# --- The class --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_is_a_torch_optimizer(name):
    params = make_params()
    optimizer = getattr(ft, name)(params)
    assert isinstance(optimizer, torch.optim.Optimizer) and type(optimizer).__name__ == name
    assert type(optimizer).__module__ == "fastopt.torch"
    assert optimizer.param_groups[0]["params"] == params
    assert "lr" in optimizer.defaults and name in repr(optimizer)


@pytest.mark.parametrize("name", IN_TORCH)
def test_signature_and_defaults_are_those_of_torch(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (ft, torch.optim))
    assert theirs.keys() <= ours.keys()
    for argument, parameter in theirs.items():
        assert ours[argument].default == parameter.default
    positional = [n for n, p in ours.items() if p.kind == p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)]
    groups = [getattr(module, name)([torch.nn.Parameter(torch.ones(2, 2))]).param_groups[0]
              for module in (ft, torch.optim)]
    assert groups[1].keys() <= groups[0].keys()
    assert all(groups[0][key] == value for key, value in groups[1].items() if key != "params")


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_optimizer_of_arrays(name):
    """Bit for bit, in both dtypes: there is no second implementation."""
    for dtype in (torch.float32, torch.float64):
        params = make_params(dtype=dtype)
        arrays = [p.detach().numpy().copy() for p in params]
        optimizer, expected = getattr(ft, name)(params), getattr(fastopt, name)(arrays)
        for step in range(5):
            set_grads(params, step)
            grads = [p.grad.numpy().copy() for p in params]
            optimizer.step(max_norm=1.0)
            expected.step(grads, max_norm=1.0)
            assert optimizer.grad_norm == expected.grad_norm
        for p, array in zip(params, arrays, strict=True):
            np.testing.assert_array_equal(p.detach().numpy(), array)
        for p, state in zip(params, expected.state, strict=True):
            for key, array in state.items():
                np.testing.assert_array_equal(optimizer.state[p][key].numpy(), array)


SCHEDULERS = {
    "StepLR": lambda o, s: s.StepLR(o, 2, 0.5),
    "OneCycleLR": lambda o, s: s.OneCycleLR(o, 0.1, total_steps=20),
    "CyclicLR": lambda o, s: s.CyclicLR(o, 1e-3, 1e-2, step_size_up=3),
    "SequentialLR": lambda o, s: s.SequentialLR(o, [s.ConstantLR(o), s.CosineAnnealingLR(o, 9)], [4]),
    "LambdaLR": lambda o, s: s.LambdaLR(o, lambda step: 1 / (1 + step)),
}


@pytest.mark.parametrize("kind", ["AdamW", "SGD momentum"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name, kind):
    results = []
    for params, optimizer in pair(kind, lr=1e-2):
        scheduler = SCHEDULERS[name](optimizer, torch.optim.lr_scheduler)
        for step in range(12):
            set_grads(params, step)
            optimizer.step()
            scheduler.step()
        results.append((params, [g["lr"] for g in optimizer.param_groups]))
    assert_close(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_reduce_on_plateau():
    results = []
    for params, optimizer in pair():
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        for step in range(8):
            set_grads(params, step)
            optimizer.step()
            scheduler.step(1.0)
        results.append(params)
    assert_close(*results)


# --- Live groups and state --------------------------------------------------------------------------


def reassign_data(params, optimizer):
    for p in params:
        p.data = p.data.clone() + 0.1


def reorder(params, optimizer):
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][::-1]


def remove_in_place(params, optimizer):
    del optimizer.param_groups[0]["params"][1]


def new_group(params, optimizer):
    removed = optimizer.param_groups[0]["params"].pop()
    optimizer.add_param_group({"params": [removed], "lr": 0.5})


def clone_state(params, optimizer):
    for own in optimizer.state.values():
        for key, value in own.items():
            if isinstance(value, torch.Tensor):
                own[key] = value.clone()


def move_state(params, optimizer):
    """As code does that moves the state to another device and back."""
    for own in optimizer.state.values():
        for value in own.values():
            if isinstance(value, torch.Tensor):
                value.data = value.data.clone() * 1


def change_state_in_place(params, optimizer):
    for own in optimizer.state.values():
        for name, value in own.items():
            if isinstance(value, torch.Tensor) and name not in NUMBERS:
                value.mul_(2)


def other_layout(params, optimizer):
    own = optimizer.state.get(params[0], {})
    for key, value in own.items():
        if isinstance(value, torch.Tensor) and value.dim() == 2:
            own[key] = value.t().contiguous().t()


def parameter_in_other_layout(params, optimizer):
    params[0].data = params[0].data.t().contiguous().t()


def set_items(**items):
    def change(params, optimizer):
        for name, value in items.items():
            if name in optimizer.param_groups[0]:
                optimizer.param_groups[0][name] = value
    return change


NUMBERS = ("mu_product", "eta", "mu")     # which are tensors in torch only


def fill_lr(params, optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.2)
    optimizer.param_groups[0]["lr"].fill_(0.3)


def clear_state(params, optimizer):
    optimizer.state.clear()


def replace_state(params, optimizer):
    optimizer.state = type(optimizer.state)(dict, dict(optimizer.state))


def replace_groups(params, optimizer):
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]


def share_memory(params, optimizer):
    for p in params:
        p.share_memory_()


CHANGES = {
    "lr": set_items(lr=0.3), "lr of int": set_items(lr=1), "weight_decay": set_items(weight_decay=0.3),
    "betas": set_items(betas=(0.5, 0.6)), "list of betas": set_items(betas=[0.5, 0.6]),
    "momentum": set_items(momentum=0.3),
    "maximize": set_items(maximize=True), "eps": set_items(eps=1e-2), "fused": set_items(foreach=False),
    "unknown item": set_items(foreign=object()),
    "lr tensor": fill_lr, "p.data": reassign_data, "order": reorder, "fewer": remove_in_place,
    "new group": new_group, "cloned state": clone_state, "moved state": move_state,
    "state in place": change_state_in_place, "layout of state": other_layout,
    "layout of a parameter": parameter_in_other_layout, "no state": clear_state,
    "other state object": replace_state, "other groups": replace_groups, "shared memory": share_memory,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_everything_may_change_between_steps(change, kind):
    if kind == "ASGD" and change in ("lr", "lr of int", "lr tensor", "new group"):
        pytest.skip("torch applies another learning rate one step later")
    results = []
    for params, optimizer in pair(kind):
        run(optimizer, params, 3)
        CHANGES[change](params, optimizer)
        run(optimizer, params, 3, first=3)
        CHANGES[change](params, optimizer) if change != "new group" else None
        run(optimizer, params, 2, first=6)
        results.append(params)
    assert_close(*results)


def test_tensor_hyperparameters_stay_tensors_and_are_read_at_each_step():
    results = []
    for module in (ft, torch.optim):
        params = make_params()
        optimizer = module.AdamW(
            params, lr=torch.tensor(0.1), betas=(torch.tensor(0.9), torch.tensor(0.99))
        )
        for step in range(6):
            optimizer.param_groups[0]["lr"].mul_(0.8)
            optimizer.param_groups[0]["betas"][0].mul_(0.9)
            run(optimizer, params, 1, first=step)
        assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
        results.append(params)
    assert_close(*results)


def test_unusable_values_raise_at_the_step_and_change_nothing():
    params = make_params()
    optimizer = ft.AdamW(params)
    run(optimizer, params, 1)
    before = values(params)
    for name, value, error in [
        ("lr", -1.0, ValueError), ("lr", "a", TypeError), ("lr", torch.ones(2), ValueError),
        ("lr", lambda step: 1.0, TypeError), ("betas", (0.9, 1.0), ValueError),
        ("differentiable", True, RuntimeError), ("capturable", True, RuntimeError),
        ("decoupled_weight_decay", False, ValueError),
    ]:
        old = optimizer.param_groups[0][name]
        optimizer.param_groups[0][name] = value
        for _ in range(2):
            with pytest.raises(error, match=name):
                optimizer.step()
        optimizer.param_groups[0][name] = old
    assert_equal(params, before)
    optimizer.step()
    assert not torch.equal(params[0], before[0])


def test_a_missing_hyperparameter_or_state_is_a_key_error():
    for params, optimizer in pair("Adam", amsgrad=False):
        run(optimizer, params, 1)
        optimizer.param_groups[0]["amsgrad"] = True
        with pytest.raises(KeyError, match="max_exp_avg_sq"):
            optimizer.step()
        optimizer.param_groups[0]["amsgrad"] = False
        del optimizer.param_groups[0]["lr"]
        with pytest.raises(KeyError, match="lr"):
            optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_late_start(kind):
    results, skipped = [], {0: (0, 1), 1: (0, 2), 2: (0,), 5: (1,), 6: (0, 1, 2)}
    for params, optimizer in pair(kind):
        for step in range(9):
            set_grads(params, step, skipped.get(step, ()))
            optimizer.step()
        late = torch.nn.Parameter(torch.ones(5))
        optimizer.add_param_group({"params": [late]})
        run(optimizer, [*params, late], 4, first=9)
        results.append(([*params, late], [optimizer.state.get(p, {}).get("step") for p in params]))
    assert_close(results[0][0], results[1][0])
    assert [s is None or float(s) for s in results[0][1]] == [s is None or float(s) for s in results[1][1]]


def test_no_gradient_at_all_is_no_step():
    for _, optimizer in pair():
        optimizer.step()
        assert not optimizer.state


# --- Hooks, closures --------------------------------------------------------------------------------


def register_hooks(optimizer, log):
    """Register hooks of every kind; return their handles."""
    def note(name):
        return lambda *arguments: log.append((name, len(arguments)))

    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    return [
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_post_hook(note("post")),
        optimizer.register_state_dict_pre_hook(note("state pre")),
        optimizer.register_state_dict_pre_hook(note("state first"), prepend=True),
        optimizer.register_state_dict_post_hook(note("state post")),
        optimizer.register_load_state_dict_pre_hook(note("load pre")),
        optimizer.register_load_state_dict_post_hook(note("load post")),
        optimizer.register_load_state_dict_post_hook(note("load post first"), prepend=True),
    ]


def test_hooks():

    logs = []
    for params, optimizer in pair():
        log = []
        handles = register_hooks(optimizer, log)
        run(optimizer, params, 1)
        optimizer.load_state_dict(optimizer.state_dict())
        for handle in handles:
            handle.remove()
        run(optimizer, params, 1)
        logs.append(log)
    assert logs[0] == logs[1] and len(logs[0]) == 10


def test_hooks_may_change_the_arguments():
    for params, optimizer in pair():
        set_grads(params, 0)
        optimizer.register_step_pre_hook(lambda o, args, kwargs: (args, {"closure": lambda: 5.0}))
        assert optimizer.step() == 5.0


def test_a_profile_has_the_step():
    params = make_params()
    optimizer = ft.AdamW(params)
    set_grads(params, 0)
    with torch.profiler.profile() as profile:
        optimizer.step()
    assert any("Optimizer.step#AdamW.step" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("positional", [True, False])
def test_closures(positional):
    for params, optimizer in pair():
        before = values(params)

        def closure(params=params, optimizer=optimizer):
            optimizer.zero_grad()
            loss = sum((p * p).sum() for p in params)
            loss.backward()
            return loss

        with torch.no_grad():
            loss = optimizer.step(closure) if positional else optimizer.step(closure=closure)
        assert loss.item() == pytest.approx(sum((p * p).sum().item() for p in before))
        assert not torch.equal(params[0], before[0])


# --- Construction -----------------------------------------------------------------------------------


def leaf():
    return torch.nn.Parameter(torch.ones(2, 2))


SHARED = leaf()
CONSTRUCTIONS = {
    "empty": lambda: [], "tensor": leaf, "no leaf": lambda: [leaf() * 2], "no tensor": lambda: [np.ones(3)],
    "set": lambda: [{"params": {leaf()}}],
    "in two groups": lambda: [{"params": [SHARED]}, {"params": [SHARED]}],
    "some names": lambda: [("w", leaf()), leaf()],
    "groups with and without names": lambda: [{"params": [("w", leaf())]}, {"params": [leaf()]}],
}


@pytest.mark.parametrize("case", CONSTRUCTIONS)
def test_construction_raises_what_torch_raises(case):
    with pytest.raises(Exception) as expected:
        torch.optim.AdamW(CONSTRUCTIONS[case]())
    with pytest.raises(expected.type) as found:
        ft.AdamW(CONSTRUCTIONS[case]())
    assert str(found.value) == str(expected.value)


def test_duplicates_warn_and_do_not_step_twice():
    p = leaf()
    with pytest.warns(UserWarning, match="duplicate"):
        optimizer = ft.AdamW([p, p])
    p.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"params.*\[0\] and .*\[1\] are the same|share memory"):
        optimizer.step()


@pytest.mark.parametrize(("options", "error", "words"), [
    ({"lr": -1.0}, ValueError, "lr"), ({"betas": (1.0, 0.9)}, ValueError, "betas"),
    ({"unknown": 1}, TypeError, "unknown"), ({"fused": True, "foreach": True}, RuntimeError, "fused"),
    ({"differentiable": True}, RuntimeError, "differentiable"),
    ({"lr": lambda step: 1.0}, TypeError, "scheduler"), ({"accumulate": 2}, TypeError, "accumulate"),
    ({"sparse": "exact"}, ValueError, "sparse"), ({"lr": torch.ones(2)}, ValueError, "lr"),
    ({"decoupled_weight_decay": False}, ValueError, "decoupled_weight_decay"),
])
def test_refused_arguments(options, error, words):
    with pytest.raises(error, match=words):
        ft.AdamW([leaf()], **options)


def test_a_refused_group_is_not_added():
    optimizer = ft.AdamW([leaf()])
    with pytest.raises(ValueError, match="lr"):
        optimizer.add_param_group({"params": [leaf()], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


def test_named_parameters():
    model = torch.nn.Linear(3, 2)
    optimizer = ft.AdamW(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    model.weight.grad = torch.sparse_coo_tensor([[0], [0]], [1.0], (2, 3), check_invariants=True)
    with pytest.raises(ValueError, match=r"params\['weight'\].grad"):
        optimizer.step()


# --- torch.compile, autograd's threads --------------------------------------------------------------


def test_optimizer_in_backward():
    results = []
    for module in (ft, torch.optim):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        optimizers = {p: module.AdamW([p], lr=0.1) for p in model.parameters()}

        def step(p, optimizers=optimizers):
            optimizers[p].step()
            optimizers[p].zero_grad()

        for p in model.parameters():
            p.register_post_accumulate_grad_hook(step)
        for seed in range(4):
            torch.manual_seed(seed)
            model(torch.randn(5, 3)).pow(2).sum().backward()
        results.append(list(model.parameters()))
    assert_close(*results)


def test_optimizers_in_several_threads():
    sets = [make_params(seed, shapes=((300, 300), (5,))) for seed in range(4)]
    expected = [make_params(seed, shapes=((300, 300), (5,))) for seed in range(4)]
    threads = [
        threading.Thread(target=run, args=(ft.AdamW(params), params, 20)) for params in sets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for params, other in zip(sets, expected, strict=True):
        run(ft.AdamW(other), other, 20)
        assert_equal(params, other)


LARGE = ((70_001,), (300, 400), ())


@pytest.fixture
def threads():
    """Set the number of threads of torch and of fastopt."""
    before = torch.get_num_threads(), fastopt.get_num_threads()

    def set_threads(of_torch, of_fastopt):
        torch.set_num_threads(of_torch)
        fastopt.set_num_threads(of_fastopt)

    yield set_threads
    set_threads(*before)


@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
def test_bits_do_not_depend_on_the_threads_of_torch(name, threads):
    """With as many threads as fastopt has, those of torch run a large step."""
    results = []
    for numbers in ((1, 1), (2, 2), (3, 3), (2, 3), (3, 1)):
        threads(*numbers)
        params = make_params(shapes=LARGE)
        optimizer = getattr(ft, name)(params)
        for step in range(3):
            set_grads(params, step)
            optimizer.step(max_norm=1.0)
        results.append([*params, torch.tensor(optimizer.grad_norm)])
    for other in results[1:]:
        assert_equal(results[0], other)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_takes_steps(threads):
    """It does not have the threads of torch."""
    threads(2, 2)
    params = make_params(shapes=LARGE)
    optimizer = ft.AdamW(params)
    run(optimizer, params, 1)
    before = float(params[0].detach()[0])
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        optimizer.step()
        os._exit(0 if float(params[0].detach()[0]) != before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    optimizer.step()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ["model", "step", "function"])
def test_compile(what):
    results = []
    for module in (ft, torch.optim):
        torch.manual_seed(0)
        torch._dynamo.reset()
        model = torch.nn.Linear(3, 2)
        optimizer = module.AdamW(model.parameters(), lr=0.1)
        forward, step = model, optimizer.step
        compiled = module is ft
        if compiled and what == "model":
            forward = torch.compile(model, backend="aot_eager")
        if compiled and what == "step":
            step = torch.compile(optimizer.step, backend="aot_eager")

        def train(x, forward=forward, step=step, optimizer=optimizer):
            loss = forward(x).pow(2).sum()
            loss.backward()
            step()
            optimizer.zero_grad()

        if compiled and what == "function":
            train = torch.compile(train, backend="aot_eager")
        for seed in range(4):
            torch.manual_seed(seed)
            train(torch.randn(5, 3))
        results.append(list(model.parameters()))
    assert_close(*results)
