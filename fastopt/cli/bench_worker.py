"""The processes of ``fastopt bench``: contenders, the timing loop, and the requests of the parent process.

`bench.py` runs this file as a script, and `benchmarks/` in the repository possibly under a Python without
fastopt. Therefore the module level imports NumPy and the standard library only.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import repeat
from statistics import median
from time import perf_counter, process_time, sleep
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    Arrays = list[Any]
    Step = Callable[[], object]
    Steps = dict[str, Step]     # by variant

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8
SERIAL_UP_TO = 1_000_000    # elements up to which a loop on one thread may be faster than a parallel one
SAMPLE = 5e-4               # seconds of a sample, long enough to neglect the clock
WARM_UP = 5e-3              # seconds of untimed steps that bring the arrays back into the caches
PATIENCE = 0.5              # seconds after which fewer than three samples are enough


def make_arrays(shapes: Iterable[tuple[int, ...]]) -> tuple[Arrays, Arrays]:
    """Return float32 parameters and gradients, the same for every contender."""
    rng = np.random.default_rng(0)
    params, grads = (
        [np.float32(scale) * rng.standard_normal(shape, np.float32) for shape in shapes]
        for scale in (0.05, 0.01)
    )
    return params, grads


def parse_size(text: str) -> int:
    """Return the size that ``3e4`` or ``30000`` stands for, or 0 if the text is no size."""
    with suppress(ValueError, OverflowError):
        return max(0, int(float(text)))
    return 0


class Contender:
    """A library's Adam: the constructor imports the library, `adam` returns the variants of the step."""

    version: str

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def adam(self, params: Arrays, grads: Arrays) -> Steps:
        raise NotImplementedError

    def finish(self) -> None:
        """Wait for the end of asynchronous steps."""


class FastOpt(Contender):
    """fastopt."""

    def __init__(self, threads: int) -> None:
        import fastopt
        from fastopt._core import dispatch

        fastopt.set_num_threads(threads)
        self.fastopt, self.version = fastopt, f"fastopt {fastopt.__version__} ({dispatch.isa})"

    def adam(self, params: Arrays, grads: Arrays) -> Steps:
        self.p, self.opt = params, self.fastopt.Adam(params, lr=LR, betas=(BETA1, BETA2), eps=EPS)
        return {"step": partial(self.opt.step, grads)}


class Limit(FastOpt):
    """The memory-bandwidth limit: an SGD step, 12 bytes per element, on as many bytes as Adam's 28."""

    def adam(self, params: Arrays, grads: Arrays) -> Steps:
        p, g = make_arrays([(sum(p.size for p in params) * 28 // 12,)])
        return {"step": partial(self.fastopt.SGD(p, lr=LR).step, g)}


class NumPy(Contender):
    """Adam in three lines of NumPy, as in many training loops."""

    version = f"NumPy {np.__version__}"

    def adam(self, params: Arrays, grads: Arrays) -> Steps:
        self.p, self.g, self.t = params, grads, 0
        self.m, self.v = ([np.zeros_like(p) for p in params] for _ in range(2))
        return {"step": self.update}

    def update(self) -> None:
        lr, root = self.bias_corrections()
        for p, g, m, v in zip(self.p, self.g, self.m, self.v, strict=True):
            m[...] = BETA1 * m + (1 - BETA1) * g
            v[...] = BETA2 * v + (1 - BETA2) * g**2
            p -= lr * m / (np.sqrt(v) / root + EPS)

    def bias_corrections(self) -> tuple[float, float]:
        """Count a step; return the learning rate over ``1 - beta1^t``, and the root of ``1 - beta2^t``."""
        self.t += 1
        return LR / (1 - BETA1**self.t), math.sqrt(1 - BETA2**self.t)


class Numba(NumPy):
    """Adam in one loop compiled by numba with fast-math, called for each array, on all threads or on one."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import numba

        numba.set_num_threads(threads)
        self.version = f"numba {numba.__version__}"

    def adam(self, params: Arrays, grads: Arrays) -> Steps:
        super().adam(params, grads)
        return self.variants(self.make_adam)

    def variants(self, make: Callable[[bool], Step]) -> Steps:
        is_small = sum(p.size for p in self.p) <= SERIAL_UP_TO or self.threads == 1
        return {"parallel": make(True)} | ({"serial": make(False)} if is_small else {})

    def make_adam(self, parallel: bool) -> Step:
        from numba import prange

        def adam(p, g, m, v, lr, scale, eps, b1, c1, b2, c2):  # type: ignore[no-untyped-def]
            for i in prange(p.size):
                m[i] = b1 * m[i] + c1 * g[i]
                v[i] = b2 * v[i] + c2 * g[i] * g[i]
                p[i] -= lr * m[i] / (np.sqrt(v[i]) * scale + eps)

        compiled, arrays = self.compile(adam, parallel), self.flat(self.p, self.g, self.m, self.v)

        def step() -> None:
            scalars = self.scalars()
            for streams in arrays:
                compiled(*streams, *scalars)

        return step

    def scalars(self) -> list[np.float32]:
        """Return the scalars of a step in single precision; doubles would make the loop compute in double."""
        lr, root = self.bias_corrections()
        return [np.float32(x) for x in (lr, 1 / root, EPS, BETA1, 1 - BETA1, BETA2, 1 - BETA2)]

    @staticmethod
    def compile(function: Callable[..., Any], parallel: bool) -> Any:
        from numba import njit

        # With the default error model every division would be checked for zero.
        return njit(parallel=parallel, fastmath=True, error_model="numpy")(function)

    @staticmethod
    def flat(*lists: Arrays) -> list[Arrays]:
        """Return the arrays of each parameter, all of one dimension."""
        return [[a.reshape(-1) for a in arrays] for arrays in zip(*lists, strict=True)]


class TorchFused(Contender):
    """torch.optim with fused=True, its fastest mode on a CPU: one compiled pass per tensor."""

    mode: dict[str, bool] = {"fused": True}

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch: Any = torch
        self.version = f"torch {torch.__version__}"

    def adam(self, params: Arrays, grads: Arrays) -> Steps:
        return self.make("Adam", params, grads, lr=LR, betas=(BETA1, BETA2), eps=EPS)

    def make(self, name: str, params: Arrays, grads: Arrays, **options: Any) -> Steps:
        self.tensors = [self.torch.tensor(p).requires_grad_() for p in params]
        for tensor, g in zip(self.tensors, grads, strict=True):
            tensor.grad = self.torch.tensor(g)
        self.opt = getattr(self.torch.optim, name)(self.tensors, **options, **self.mode)
        return {"step": self.opt.step}


class Optax(Contender):
    """optax under jax.jit, with donated parameters and state, which XLA may update in place."""

    def __init__(self, threads: int) -> None:
        if hasattr(os, "sched_setaffinity"):    # XLA starts a thread for every processor that it may use
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        import jax
        import optax

        self.jax, self.optax = jax, optax
        self.version = f"jax {jax.__version__}, optax {optax.__version__}"

    def adam(self, params: Arrays, grads: Arrays) -> Steps:
        self.p, self.g = self.copies(params), self.copies(grads)
        optax, rule = self.optax, self.optax.adam(LR, BETA1, BETA2, EPS)
        self.state = rule.init(self.p)

        def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = rule.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        compiled = self.jax.jit(update, donate_argnums=(0, 1))

        def step() -> None:
            self.p, self.state = compiled(self.p, self.state, self.g)

        return {"step": step}

    def copies(self, arrays: Arrays) -> Arrays:
        """Return copies that JAX owns; others cannot be donated."""
        return [self.jax.numpy.array(a, copy=True) for a in arrays]

    def finish(self) -> None:
        self.jax.block_until_ready((self.p, self.state, self.g))


CONTENDERS: dict[str, type[Contender]] = {
    "limit": Limit, "fastopt": FastOpt, "torch": TorchFused, "optax": Optax, "numba": Numba, "numpy": NumPy,
}


def time_steps(step: Step, finish: Step, seconds: float, refill: Step | None = None) -> dict[str, float]:
    """Time steps for about `seconds`; return the median and the shortest time per step.

    `refill` restores the gradients before each step, untimed; each step is timed alone then.
    """
    def sample(number: int) -> float:
        if refill:
            refill()
        start = perf_counter()
        for _ in repeat(None, number):
            step()
        finish()
        return (perf_counter() - start) / number

    gc.disable()
    try:
        start, fastest = perf_counter(), math.inf
        while perf_counter() - start < WARM_UP:
            fastest = min(fastest, sample(1))
        number = 1 if refill else max(1, round(SAMPLE / fastest))
        start, times = perf_counter(), [sample(number)]
        while (elapsed := perf_counter() - start) < seconds or (len(times) < 3 and elapsed < PATIENCE):
            times.append(sample(number))
    finally:
        gc.enable()
    return {"median": median(times), "min": min(times)}


class WorkerServer:
    """The requests that a contender's process accepts."""

    def __init__(self, name: str, threads: str) -> None:
        self.contender = CONTENDERS[name](int(threads))

    def handshake(self) -> str:
        return self.contender.version

    def setup(self, size: int) -> None:
        self.steps: Steps = {}    # frees the arrays of the previous size
        self.steps = self.contender.adam(*make_arrays([(size,)]))

    def round(self, seconds: float) -> float:
        """Return the median seconds per step of the fastest variant."""
        times = (time_steps(step, self.contender.finish, seconds) for step in self.steps.values())
        return min(time["median"] for time in times)


def serve(make_server: Callable[..., object], *args: str) -> None:
    """Reply to the requests on the standard input, one line of JSON each, until it ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)       # keeps the output of libraries out of the replies
    server = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            server = server or make_server(*args)
            reply = {"value": getattr(server, request.pop("method"))(**request)}
        except Exception as error:      # the parent continues without this contender
            reply = {"error": f"{type(error).__name__}: {error}"}
        reply["idle"] = wait_until_idle()
        print(json.dumps(reply), file=replies, flush=True)


def wait_until_idle() -> bool:
    """Return True once the threads of this process sleep, False if they keep running."""
    for _ in range(300):
        used = process_time()
        sleep(0.003)
        if process_time() - used < 5e-4:
            return True
    return False


if __name__ == "__main__":
    serve(WorkerServer, *sys.argv[1:])
