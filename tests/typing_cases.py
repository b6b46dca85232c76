"""What users write, for a type checker: `right` runs as well; every line of `wrong` is the error it names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fastopt
from fastopt import functional, schedules

FloatArray = NDArray[np.float32]

W: FloatArray = np.zeros((3, 4), np.float32)
b: FloatArray = np.zeros(4, np.float32)
whole: NDArray[np.int64] = np.zeros(3, np.int64)


def grads(params: Sequence[FloatArray]) -> list[FloatArray]:
    return [np.ones_like(p) for p in params]


def warm(step: int) -> float:
    return min(step, 100) * 1e-5


def right() -> None:
    params = [W.copy(), b.copy()]
    opt = fastopt.Adam(params, lr=1e-3)
    opt.step(grads(params))
    assert_type(opt.step([None, b.copy()]), bool)
    opt.step((params[0].copy(), params[1].copy()), max_norm=1.0, zero_grad=True)
    assert_type(opt.steps, int)
    assert_type(opt.grad_norm, float | None)
    assert_type(opt.state_dict(), dict[str, Any])
    opt.load_state_dict(opt.state_dict())
    opt.groups[0]["lr"] = schedules.Cosine(0.1, steps=100)
    opt.state[0]["exp_avg"] = np.zeros((3, 4))
    patterns = {"*.bias": {"weight_decay": 0.0}}
    by_name = fastopt.param_groups({"fc": {"weight": W.copy(), "bias": b.copy()}}, patterns)
    fastopt.AdamW(by_name, lr=schedules.Join([schedules.WSD(0.1, 100, 20), 0.0], [100]))
    fastopt.param_groups(params, {lambda name, array: array.ndim < 2: {"lr": 0.1}, ("0", "1"): {"eps": 0.1}})
    fastopt.param_groups(params, [("*", {"lr": np.float32(0.1)}), ("1", {"lr": warm})])

    # any nesting of lists, tuples and dicts
    layers: list[list[FloatArray]] = [[W.copy(), b.copy()], []]
    named: dict[str, FloatArray] = {"W": W.copy()}
    some: Sequence[FloatArray] = [W.copy()]
    fastopt.SGD(layers, momentum=0.9, nesterov=True).step([grads(layers[0]), []])
    fastopt.Lion(named).step({"W": W.copy()})
    fastopt.Muon(some, lr=0.02, adjust_lr_fn="match_rms_adamw")
    fastopt.AdamW({"W": W.copy(), "more": [b.copy(), (W.copy(), np.zeros(()))]}).step(
        {"W": W.copy(), "more": [b.copy(), (W.copy(), np.zeros(()))]}
    )
    fastopt.RMSprop(np.zeros(3)).step(np.ones(3))

    # groups, and gradients of some rows
    groups = fastopt.AdamW([{"params": [W.copy()], "lr": 0.1}, {"params": b.copy(), "weight_decay": 0.0}])
    groups.add_param_group({"params": np.zeros(2)})
    groups.step([[fastopt.Rows([0, 2], np.ones((2, 4), np.float32))], b.copy(), np.ones(2)])

    # numbers, their schedules, and what all optimizers take
    fastopt.Adam(W.copy(), warm, (0.9, lambda step: 0.99), weight_decay=np.float32(0.1), convention="keras")
    opt = fastopt.Adam(W.copy(), ema=0.99, lookahead=(5, 0.5), accumulate=2, unit_clip=0.1, sparse="dense")
    with opt.swapped_ema():
        pass

    functional.adam_(W.copy(), W.copy(), W.copy(), W.copy(), lr=1e-3, step=1)
    fastopt.set_num_threads(fastopt.get_num_threads())


def wrong() -> None:
    opt = fastopt.Adam(W)
    fastopt.Adam("W")  # E: arg-type
    fastopt.Adam(["W"])  # E: list-item
    fastopt.Adam(whole)  # E: arg-type
    fastopt.Adam([W, [whole]])  # E: list-item
    fastopt.Adam(W, lr="fast")  # E: arg-type
    fastopt.Adam(W, betas=0.9)  # E: arg-type
    fastopt.Adam(W, momentum=0.9)  # E: call-arg
    fastopt.Adam(W, lookahed=(5, 0.5))  # E: call-arg
    fastopt.Adam(W, sparse="no")  # E: arg-type
    fastopt.Adam(W, convention="jax")  # E: arg-type
    opt.step([W, whole])  # E: list-item
    opt.step(W, max_norms=1.0)  # E: call-arg
    functional.adam_(W, W, W, W, lr=1e-3)  # E: call-arg
    schedules.OneCycle(0.1, 10, anneal="no")  # E: arg-type
