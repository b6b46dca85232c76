"""The steps of ``fastopt bench``: works, contenders, timing.

`worker.py` imports this file in a contender's process, perhaps under another Python: it needs NumPy
and the one library that is measured, nothing else.

What keeps the numbers honest:

- The same numbers for all: parameters of normal weights times 0.05, gradients times 0.01, float32,
  lr 0.001, betas (0.9, 0.999), eps 1e-8. After the first steps a sample of the parameters is
  reported, and the caller compares it: every contender really does the work.
- Each library holds its arrays as it allocates them itself, and gets the same gradient objects at
  every step, which is the best case of all of them. Every page is written before the clock starts.
- Every timing begins with untimed steps, which bring the work back into the caches.
- Where a step zeroes its gradients, they are filled anew before each step, outside the timed region
  and by one thread, so that no step is timed on zeros: clipping would then be skipped, and the
  moments would die out into denormals. Such steps are timed one by one, their gradients warm in the
  cache of the core that wrote them, as they are after a backward pass.
- Denormal state is set anew before each turn. (Where denormals are not flushed it would stay: 0.9
  times a few of the smallest numbers is rounded back to them.)
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import repeat
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    F32 = NDArray[np.float32]
    Shapes = tuple[tuple[int, ...], ...]
    Step = Callable[[], object]
    Steps = dict[str, Step]     # by variant
    Loop = Callable[..., object]
    Times = dict[str, float]

_F = TypeVar("_F", bound=Callable[..., Any])

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8
DECAY, MAX_NORM, AVERAGE = 1e-2, 1.0, 0.999     # of the works of kind "clip"
DENORMAL = 1e-40
ALIGN = 64              # bytes in a cache line
PROBE_STEPS = 2         # after which the parameters of all contenders are compared
SMALL = 1_000_000       # numbers up to which a loop on one thread may be the better choice
SAMPLE = 5e-4           # seconds that a sample should last, so that the clock costs nothing
WARM_UP = 5e-3          # seconds of untimed steps before the samples
PATIENCE = 0.5          # seconds after which a slow contender's samples are enough

YARDSTICK = "limit"     # the contender that is no contender: times are given as ratios to its
UNIT = "GB/s"           # of a work's amount in a second
PROBED = "parameters"   # what contenders are compared by
TOLERANCE = 1e-5        # between them, after two steps of 1e-3 each
EXTRA_THREADS: tuple[int, ...] = ()     # numbers of threads to measure beside all cores


# --- Works ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a step has to do.

    Attributes
    ----------
    name : str
        For the command line.
    title : str
        For tables.
    shapes : tuple of tuple of int
        One float32 parameter each.
    kind : {"adam", "clip"}
        A step of Adam; or clipping by the global norm, AdamW, zeroing the gradients and a moving
        average of the parameters, all of them one step.
    denormal : bool
        Both moments are filled with denormals and the gradients are zero.
    """

    name: str
    title: str
    shapes: Shapes
    kind: str = "adam"
    denormal: bool = False

    @property
    def size(self) -> int:
        """Numbers in all parameters."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def bytes(self) -> int:
        """Bytes that must cross memory in a step, each array read and written once.

        Adam reads p, g, m, v and writes p, m, v. With clipping, g is read once more before and
        written as zero, and the average is read and written.
        """
        return self.size * (28 if self.kind == "adam" else 44)

    @property
    def summary(self) -> str:
        """For lists of works."""
        return f"{self.size:,} numbers in {len(self.shapes)} arrays"

    def record(self) -> dict[str, Any]:
        """What is saved of it."""
        return {
            "name": self.name, "title": self.title, "kind": self.kind, "denormal": self.denormal,
            "arrays": len(self.shapes), "size": self.size, "amount": self.bytes,
        }

    def memory(self, workers: int) -> int:
        """Bytes needed: what all hold at a time, and the temporaries of the one that runs."""
        held = 4 if self.kind == "adam" else 6      # p, g, m, v; average, gradients to refill from
        return 4 * self.size * (held * workers + 8)


def resnet50() -> Shapes:
    """Shapes of ResNet-50's 161 parameters: convolutions, batch norms, classifier.

    From the architecture (He et al., "Deep residual learning for image recognition", CVPR 2016),
    with the kernels (out, in, height, width) and a batch norm's scale and shift after each.
    """
    def convolution(out: int, inside: int, kernel: int) -> list[tuple[int, ...]]:
        return [(out, inside, kernel, kernel), (out,), (out,)]

    shapes = convolution(64, 3, 7)
    inside = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(width, inside, 1)
            shapes += convolution(width, width, 3)
            shapes += convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, inside, 1)
            inside = 4 * width
    return (*shapes, (1000, inside), (1000,))


MLP_SHAPES = ((784, 256), (256,), (256, 128), (128,), (128, 10), (10,))

WORKS = (
    Work("1e3", "1 array of 1e3", ((1_000,),)),
    Work("1e5", "1 array of 1e5", ((100_000,),)),
    Work("1e6", "1 array of 1e6", ((1_000_000,),)),
    Work("mlp", "784-256-128-10", MLP_SHAPES),
    Work("100x1024", "100 arrays of 1024", ((1024,),) * 100),
    Work("resnet50", "ResNet-50's 161", resnet50()),
    Work("5e7", "1 array of 5e7", ((50_000_000,),)),
    Work("clip-mlp", "clip+AdamW+EMA MLP", MLP_SHAPES, kind="clip"),
    Work("clip-4e7", "clip+AdamW+EMA 4e7", ((40_000_000,),), kind="clip"),
    Work("4e6", "1 array of 4e6", ((4_000_000,),)),
    Work("denormal", "4e6, denormal state", ((4_000_000,),), denormal=True),
)

SWEEP = ("1e2", "3e2", "1e3", "3e3", "1e4", "3e4", "1e5", "3e5", "1e6", "3e6", "1e7", "5e7")
QUICK_SWEEP = SWEEP[:9]

FULL: dict[str, Any] = {"works": tuple(work.name for work in WORKS), "rounds": 15, "seconds": 0.05}
QUICK: dict[str, Any] = {"works": ("1e3", "1e5", "mlp", "100x1024", "clip-mlp"), "rounds": 3, "seconds": 0.01}


def find_work(name: str) -> Work:
    """The work of a name; a number like ``3e4`` is one array of that size.

    Raises
    ------
    ValueError
        If there is no such work.
    """
    for work in WORKS:
        if work.name == name:
            return work
    try:
        size = int(float(name))
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        known = ", ".join(work.name for work in WORKS)
        raise ValueError(f"works: expected {known} or the size of one array as 3e4, got {name!r}")
    return Work(name, f"1 array of {name}", ((size,),))


def make_numbers(work: Work) -> tuple[list[F32], list[F32]]:
    """Parameters and gradients, the same for every contender."""
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...], scale: float) -> F32:
        array = rng.standard_normal(shape, dtype=np.float32)
        array *= np.float32(scale)
        return array

    params = [normal(shape, 0.05) for shape in work.shapes]
    if work.denormal:
        return params, [np.full(shape, 0.0, np.float32) for shape in work.shapes]
    return params, [normal(shape, 0.01) for shape in work.shapes]


# --- Contenders ----------------------------------------------------------------------------------


class Contender:
    """A way to do the works.

    `__init__` imports the library. `setup` makes the arrays and returns the steps, by variant: a
    contender's time is that of its best variant.
    """

    threaded = True             # whether it uses the threads it is given
    kinds: tuple[str, ...] = ("adam", "clip")
    eats_gradients = False      # whether a plain step of Adam zeroes them, too
    version: str
    g: Any                      # gradients, as the contender has them
    p: list[F32]                # parameters; both moments, of those that have them as arrays
    m: list[F32]
    v: list[F32]
    kept: list[Any]

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def setup(self, work: Work) -> Steps:
        raise NotImplementedError

    def params(self) -> Any:
        """The parameters as NumPy arrays, for comparison."""
        return self.p

    def fill_state(self, value: float) -> None:
        """Set both moments."""
        for array in self.m + self.v:
            array.fill(value)

    def keep_gradients(self, arrays: Iterable[F32]) -> None:
        """Remember the gradients that `refill` brings back."""
        self.kept = [(array, array.copy()) for array in arrays]

    def refill(self) -> None:
        for array, kept in self.kept:
            np.copyto(array, kept)

    def finish(self) -> None:
        """Wait until what was asked for has been done."""


class FastOpt(Contender):
    """fastopt."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        here = str(Path(__file__).parents[2])
        if sys.path[0] != here:     # this very installation
            sys.path.insert(0, here)
        import fastopt
        from fastopt._core import dispatch

        fastopt.set_num_threads(threads)
        self.fastopt = fastopt
        self.version = f"fastopt {fastopt.__version__} ({dispatch.isa})"

    def setup(self, work: Work) -> Steps:
        self.p, g = make_numbers(work)
        if work.kind == "adam":
            self.opt = self.fastopt.Adam(self.p, lr=LR, betas=(BETA1, BETA2), eps=EPS)
            return {"step": partial(self.opt.step, g)}
        self.keep_gradients(g)
        self.opt = self.fastopt.AdamW(
            self.p, lr=LR, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY, ema=AVERAGE
        )
        return {"step": partial(self.opt.step, g, max_norm=MAX_NORM, zero_grad=True)}

    def fill_state(self, value: float) -> None:
        for state in self.opt.state:
            state["exp_avg"].fill(value)
            state["exp_avg_sq"].fill(value)


class NumPy(Contender):
    """The textbook in three lines, as they stand in many a training loop."""

    threaded = False

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.version = f"NumPy {np.__version__}"

    def setup(self, work: Work) -> Steps:
        self.p, self.g = make_numbers(work)
        self.m, self.v = ([np.zeros_like(p) for p in self.p] for _ in range(2))
        self.t = 0
        if work.kind == "adam":
            return {"step": self.adam}
        self.e = [p.copy() for p in self.p]
        self.keep_gradients(self.g)
        return {"step": self.clip}

    def adam(self) -> None:
        self.t += 1
        lr, root = LR / (1 - BETA1**self.t), math.sqrt(1 - BETA2**self.t)
        for p, g, m, v in zip(self.p, self.g, self.m, self.v, strict=True):
            m[...] = BETA1 * m + (1 - BETA1) * g
            v[...] = BETA2 * v + (1 - BETA2) * g**2
            p -= lr * m / (np.sqrt(v) / root + EPS)

    def clip(self) -> None:
        norm = math.sqrt(sum(float(np.vdot(g, g)) for g in self.g))
        for g, p in zip(self.g, self.p, strict=True):
            g *= min(1.0, MAX_NORM / (norm + 1e-6))
            p *= 1 - LR * DECAY
        self.adam()
        for g, p, e in zip(self.g, self.p, self.e, strict=True):
            g.fill(0)
            e[...] = AVERAGE * e + (1 - AVERAGE) * p


class Numba(Contender):
    """The whole rule in one loop compiled with fast-math: a parallel or a serial call an array."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import numba

        numba.set_num_threads(threads)
        self.version = f"numba {numba.__version__}"

    def setup(self, work: Work) -> Steps:
        self.p, self.g = make_numbers(work)
        self.m, self.v = ([np.zeros_like(p) for p in self.p] for _ in range(2))
        self.t = 0
        if work.kind == "clip":
            self.e = [p.copy() for p in self.p]
            self.keep_gradients(self.g)
        prepare = self.adam if work.kind == "adam" else self.clip
        steps = {"parallel": prepare(parallel=True)}
        if work.size <= SMALL or self.threads == 1:
            steps["serial"] = prepare(parallel=False)
        return steps

    def scalars(self) -> list[np.float32]:
        """Scalars of a step, in single precision: a double would turn the loop into doubles."""
        self.t += 1
        lr, root = LR / (1 - BETA1**self.t), math.sqrt(1 - BETA2**self.t)
        values = lr, 1 / root, EPS, BETA1, 1 - BETA1, BETA2, 1 - BETA2
        return [np.float32(value) for value in values]

    def adam(self, parallel: bool) -> Step:
        update = _numba_adam(parallel)
        arrays = _flat(self.p, self.g, self.m, self.v)

        def step() -> None:
            scalars = self.scalars()
            for streams in arrays:
                update(*streams, *scalars)

        return step

    def clip(self, parallel: bool) -> Step:
        squares, update = _numba_clip(parallel)
        arrays = _flat(self.p, self.g, self.m, self.v, self.e)

        def step() -> None:
            norm = math.sqrt(sum(squares(streams[1]) for streams in arrays))
            values = min(1.0, MAX_NORM / (norm + 1e-6)), 1 - LR * DECAY, AVERAGE, 1 - AVERAGE
            scalars = [np.float32(value) for value in values] + self.scalars()
            for streams in arrays:
                update(*streams, *scalars)

        return step


class Limit(Numba):
    """What memory allows: the streams of the work with a multiplication and an addition each.

    Not an optimizer, but the yardstick: for Adam it reads p, g, m, v and writes p, m, v. It is
    compiled by numba and called from Python as a step is. Its variants are "serial" (one thread),
    "whole" (all arrays as one, one contiguous part a thread, in one call) and "arrays" (the same
    with one call an array, as numba's users would). All streams lie in one block, each array from a
    cache line on, at distances that do not alias. The limit is the best of the variants. It is one
    of memory and threads together: where it takes few microseconds, it is mostly the call.
    """

    def setup(self, work: Work) -> Steps:
        params, gradients = make_numbers(work)
        if work.denormal:       # the streams alone, whatever is in them
            gradients = params
        names = "gpmv" if work.kind == "adam" else "gpmve"
        whole, arrays = _carve([gradients if name == "g" else params for name in names])
        if work.kind == "adam":
            serial, parallel = limit_loops(self.threads, reads=1)
        else:
            serial, parallel = _limit_clip(self.threads)
            self.keep_gradients([whole[0]])
        steps: Steps = {"arrays": partial(self.each, parallel, arrays)}
        if self.threads > 1:
            steps["whole"] = partial(self.each, parallel, [whole])
        if work.size <= SMALL or self.threads == 1:
            steps["serial"] = partial(self.each, serial, [whole])
        return steps

    @staticmethod
    def each(loop: Callable[..., object], arrays: Iterable[Iterable[F32]]) -> None:
        for streams in arrays:
            loop(*streams)


class Torch(Contender):
    """torch.optim, one tensor at a time, its default on a CPU."""

    mode: str | None = None     # a flag of the optimizer

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        torch.set_num_threads(threads)
        self.torch: Any = torch
        self.version = f"torch {torch.__version__}"

    def setup(self, work: Work) -> Steps:
        torch, (params, grads) = self.torch, make_numbers(work)
        self.tensors = [torch.tensor(p).requires_grad_() for p in params]
        for tensor, g in zip(self.tensors, grads, strict=True):
            tensor.grad = torch.tensor(g)
        options = {"lr": LR, "betas": (BETA1, BETA2), "eps": EPS}
        if self.mode:
            options[self.mode] = True
        if work.kind == "adam":
            self.opt = torch.optim.Adam(self.tensors, **options)
            return {"step": self.opt.step}
        self.opt = torch.optim.AdamW(self.tensors, weight_decay=DECAY, **options)
        self.averages = [p.detach().clone() for p in self.tensors]
        self.keep_gradients([p.grad.numpy() for p in self.tensors])
        return {"step": self.clip}

    def clip(self) -> None:
        torch = self.torch
        torch.nn.utils.clip_grad_norm_(self.tensors, MAX_NORM)
        self.opt.step()
        self.opt.zero_grad(set_to_none=False)
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.tensors, 1 - AVERAGE)

    def params(self) -> Any:
        return [p.detach().numpy() for p in self.tensors]

    def fill_state(self, value: float) -> None:
        for state in self.opt.state.values():
            state["exp_avg"].fill_(value)
            state["exp_avg_sq"].fill_(value)


class TorchForeach(Torch):
    """torch.optim with foreach=True: one operation for all tensors at a time."""

    mode = "foreach"


class TorchFused(Torch):
    """torch.optim with fused=True, its fastest on a CPU: one compiled pass a tensor."""

    mode = "fused"


class Optax(Contender):
    """optax under jax.jit, parameters and state donated, so that XLA may update them in place."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        if hasattr(os, "sched_setaffinity"):    # XLA has a thread for every processor it may run on
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        import jax
        import optax

        self.jax, self.optax = jax, optax
        self.version = f"jax {jax.__version__}, optax {optax.__version__}"

    def setup(self, work: Work) -> Steps:
        params, self.kept = make_numbers(work)
        self.place(params)
        return {"step": self.make_adam() if work.kind == "adam" else self.make_clip()}

    def place(self, params: Iterable[F32]) -> None:
        """Copies of the arrays, as only JAX's own can be donated."""
        self.arrays, self.grads = (
            [self.jax.numpy.array(a, copy=True) for a in arrays] for arrays in (params, self.kept)
        )

    def make_adam(self) -> Step:
        optax, rule = self.optax, self.optax.adam(LR, BETA1, BETA2, EPS)
        self.state = rule.init(self.arrays)

        @partial(self.jax.jit, donate_argnums=(0, 1))
        def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
            updates, state = rule.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        def step() -> None:
            self.arrays, self.state = update(self.arrays, self.state, self.grads)

        return step

    def make_clip(self) -> Step:
        optax, jax = self.optax, self.jax
        rule = optax.chain(
            optax.clip_by_global_norm(MAX_NORM),
            optax.adamw(LR, BETA1, BETA2, EPS, weight_decay=DECAY),
        )
        self.state = rule.init(self.arrays)
        self.averages = [a.copy() for a in self.arrays]

        @partial(jax.jit, donate_argnums=(0, 1, 2, 3))
        def update(params: Any, state: Any, averages: Any, grads: Any) -> tuple[Any, ...]:
            updates, state = rule.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            averages = optax.incremental_update(params, averages, 1 - AVERAGE)
            return params, state, averages, jax.tree.map(jax.numpy.zeros_like, grads)

        def step() -> None:
            self.arrays, self.state, self.averages, self.grads = update(
                self.arrays, self.state, self.averages, self.grads
            )

        return step

    def refill(self) -> None:
        self.grads = [self.jax.numpy.array(g, copy=True) for g in self.kept]
        self.jax.block_until_ready(self.grads)

    def params(self) -> Any:
        return [np.asarray(a) for a in self.arrays]

    def fill_state(self, value: float) -> None:
        moments, *rest = self.state
        full = partial(self.jax.tree.map, lambda a: self.jax.numpy.full_like(a, value))
        self.state = (moments._replace(mu=full(moments.mu), nu=full(moments.nu)), *rest)
        self.finish()

    def finish(self) -> None:
        self.jax.block_until_ready((self.arrays, self.state, self.grads))


class ScikitLearn(Contender):
    """The Adam of scikit-learn's MLPClassifier."""

    threaded = False
    kinds: tuple[str, ...] = ("adam",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import sklearn
        from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

        self.adam = AdamOptimizer
        self.version = f"scikit-learn {sklearn.__version__}"

    def setup(self, work: Work) -> Steps:
        self.p, g = make_numbers(work)
        self.opt = self.adam(self.p, LR, BETA1, BETA2, EPS)
        return {"step": partial(self.opt.update_params, self.p, g)}

    def fill_state(self, value: float) -> None:
        for array in self.opt.ms + self.opt.vs:
            array.fill(value)


class Thinc(Contender):
    """thinc's Adam, without its clipping, decay and averages. It zeroes the gradient after use."""

    threaded = False
    kinds: tuple[str, ...] = ("adam",)
    eats_gradients = True

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import thinc
        from thinc.api import Adam

        self.adam = Adam
        self.version = f"thinc {thinc.about.__version__}"

    def setup(self, work: Work) -> Steps:
        self.p, self.g = make_numbers(work)
        self.keep_gradients(self.g)
        self.opt = self.adam(
            LR, beta1=BETA1, beta2=BETA2, eps=EPS, L2=0.0, grad_clip=0.0, use_averages=False
        )
        self.keys = [(i, "W") for i in range(len(self.p))]
        return {"step": self.step}

    def step(self) -> None:
        for key, p, g in zip(self.keys, self.p, self.g, strict=True):
            self.opt(key, p, g)

    def fill_state(self, value: float) -> None:
        for array in (*self.opt.mom1.values(), *self.opt.mom2.values()):
            array.fill(value)


CONTENDERS: dict[str, type[Contender]] = {
    "limit": Limit,
    "fastopt": FastOpt,
    "torch-fused": TorchFused,
    "torch-foreach": TorchForeach,
    "torch": Torch,
    "optax": Optax,
    "numba": Numba,
    "thinc": Thinc,
    "sklearn": ScikitLearn,
    "numpy": NumPy,
}


def _compile(parallel: bool) -> Callable[[_F], _F]:
    """numba's compiler, at its fastest: unless told so, a division is checked for zero."""
    from numba import njit

    return cast("Callable[[_F], _F]", njit(parallel=parallel, fastmath=True, error_model="numpy"))


@cache
def _numba_adam(parallel: bool) -> Loop:
    from numba import prange

    @_compile(parallel)
    def update(
        p: F32, g: F32, m: F32, v: F32, lr: np.float32, root: np.float32, eps: np.float32, b1: np.float32,
        c1: np.float32, b2: np.float32, c2: np.float32,
    ) -> None:
        for i in prange(p.size):
            m[i] = b1 * m[i] + c1 * g[i]
            v[i] = b2 * v[i] + c2 * g[i] * g[i]
            p[i] -= lr * m[i] / (np.sqrt(v[i]) * root + eps)

    return update


@cache
def _numba_clip(parallel: bool) -> tuple[Callable[[F32], np.float32], Loop]:
    from numba import prange

    @_compile(parallel)
    def squares(g: F32) -> Any:     # float32: NumPy's types of an element differ between its versions
        total = np.float32(0)
        for i in prange(g.size):
            total += g[i] * g[i]
        return total

    @_compile(parallel)
    def update(
        p: F32, g: F32, m: F32, v: F32, e: F32, scale: np.float32, keep: np.float32, average: np.float32,
        rest: np.float32, lr: np.float32, root: np.float32, eps: np.float32, b1: np.float32, c1: np.float32,
        b2: np.float32, c2: np.float32,
    ) -> None:
        for i in prange(p.size):
            d = g[i] * scale
            m[i] = b1 * m[i] + c1 * d
            v[i] = b2 * v[i] + c2 * d * d
            p[i] = keep * p[i] - lr * m[i] / (np.sqrt(v[i]) * root + eps)
            e[i] = average * e[i] + rest * p[i]
            g[i] = 0

    return squares, update


@cache
def limit_loops(parts: int, reads: int) -> tuple[Loop, Loop]:
    """A serial and a parallel loop over any streams: the first `reads` are read, the others written, too.

    Each stream that is written takes a multiplication and an addition.
    """
    from numba import prange

    a, b = np.float32(0.1), np.float32(0.9)
    cut = _compile(parallel=False)(_cut)

    @_compile(parallel=False)
    def run(lo: int, hi: int, streams: tuple[F32, ...]) -> np.float32:
        total, first = np.float32(0), np.uintp(lo)      # signed, the loop would not be vectorized
        for i in range(np.uintp(hi - lo)):
            x = np.float32(0)
            for k in range(reads):
                x += streams[k][first + i]
            for k in range(reads, len(streams)):
                streams[k][first + i] = b * streams[k][first + i] + a * x
            total += x
        return total

    @_compile(parallel=False)
    def serial(*streams: F32) -> np.float32:
        return run(0, streams[0].size, streams)

    @_compile(parallel=True)
    def parallel(*streams: F32) -> np.float32:
        total, n = np.float32(0), streams[0].size
        for k in prange(parts):
            total += run(cut(n, k, parts), cut(n, k + 1, parts), streams)
        return total

    return serial, parallel


@cache
def _limit_clip(parts: int) -> tuple[Loop, Loop]:
    """The same with one reading of g before, g zeroed, and one more stream read and written."""
    from numba import prange

    a, b, c = np.float32(0.1), np.float32(0.9), np.float32(1e-6)
    cut = _compile(parallel=False)(_cut)

    @_compile(parallel=False)
    def total(g: F32) -> np.float32:
        result = np.float32(0)
        for i in range(g.size):
            result += g[i]
        return result

    @_compile(parallel=False)
    def run(g: F32, p: F32, m: F32, v: F32, e: F32) -> None:
        for i in range(p.size):
            m[i] = b * m[i] + a * g[i]
            v[i] = b * v[i] + a * g[i]
            p[i] += c * g[i]
            e[i] = b * e[i] + a * p[i]
            g[i] = 0

    @_compile(parallel=False)
    def serial(g: F32, p: F32, m: F32, v: F32, e: F32) -> np.float32:
        result = total(g)
        run(g, p, m, v, e)
        return result

    @_compile(parallel=True)
    def parallel(g: F32, p: F32, m: F32, v: F32, e: F32) -> np.float32:
        result = np.float32(0)
        for k in prange(parts):
            result += total(g[cut(g.size, k, parts) : cut(g.size, k + 1, parts)])
        for k in prange(parts):
            lo, hi = cut(p.size, k, parts), cut(p.size, k + 1, parts)
            run(g[lo:hi], p[lo:hi], m[lo:hi], v[lo:hi], e[lo:hi])
        return result

    return serial, parallel


def _flat(*lists: Iterable[F32]) -> list[tuple[F32, ...]]:
    """Tuples of the arrays that belong together, each as one dimension."""
    return [tuple(a.reshape(-1) for a in arrays) for arrays in zip(*lists, strict=True)]


def _cut(n: int, k: int, parts: int) -> int:
    """Where part k of n numbers begins: on a multiple of 16, which is a cache line."""
    return n if k == parts else n // 16 * k // parts * 16


def _carve(streams: Sequence[Sequence[F32]]) -> tuple[list[F32], list[list[F32]]]:
    """Lay streams, lists of arrays, out in one block.

    Returns
    -------
    whole : list of ndarray
        Each stream as one array.
    arrays : list of list of ndarray
        For each array its streams, views of the block.
    """
    line = ALIGN // 4
    starts = [0]
    for array in streams[0]:
        starts.append(starts[-1] - (-array.size // line) * line)
    # Streams a multiple of 4 KiB apart would make each load wait for the store of another stream.
    stride = -(-starts[-1] // 1024) * 1024 + 13 * line
    block = np.empty(len(streams) * stride + line, np.float32)
    first = -block.ctypes.data % ALIGN // 4
    block.fill(0)
    whole = []
    for k, stream in enumerate(streams):
        view = block[first + k * stride :][: starts[-1]]
        for array, start in zip(stream, starts, strict=False):
            view[start : start + array.size] = array.reshape(-1)
        whole.append(view)
    arrays = [
        [view[start : start + array.size] for view in whole]
        for array, start in zip(streams[0], starts, strict=False)
    ]
    return whole, arrays


# --- Timing --------------------------------------------------------------------------------------


class Bench:
    """One work of one contender, set up."""

    contender: Any
    work: Any       # of whichever suite it is
    steps: Steps

    def __init__(self, contender: Contender, work: Work) -> None:
        self.contender, self.work = contender, work
        self.refills = work.kind == "clip" or (contender.eats_gradients and not work.denormal)
        self.steps = contender.setup(work)
        step = next(iter(self.steps.values()))
        for _ in range(PROBE_STEPS):
            self.time(step)
        self.probe = None if isinstance(contender, Limit) else _probe(contender.params())

    def time(self, step: Step, number: int = 1) -> float:
        """Seconds of one step, on the average of `number` steps."""
        if self.refills:
            self.contender.refill()
        start = perf_counter()
        for _ in repeat(None, number):
            step()
        self.contender.finish()
        return (perf_counter() - start) / number

    def round(self, seconds: float) -> dict[str, Times]:
        """Samples of each variant for about `seconds`: median and least seconds a step."""
        gc.disable()
        try:
            if self.work.denormal and not isinstance(self.contender, Limit):
                self.contender.fill_state(DENORMAL)
            return {name: self.samples(step, seconds) for name, step in self.steps.items()}
        finally:
            gc.enable()

    def samples(self, step: Step, seconds: float) -> Times:
        start, fastest = perf_counter(), math.inf
        while perf_counter() - start < WARM_UP:
            fastest = min(fastest, self.time(step))
        number = 1 if self.refills else max(1, round(SAMPLE / fastest))
        start = perf_counter()
        times: list[float] = []
        while _goes_on(len(times), perf_counter() - start, seconds):
            times.append(self.time(step, number))
        return {"median": median(times), "min": min(times)}


def _goes_on(count: int, elapsed: float, seconds: float) -> bool:
    return elapsed < seconds or (count < 3 and elapsed < PATIENCE)


def _probe(params: Sequence[F32]) -> list[float]:
    """A few numbers of the first and the last parameter, to compare contenders by."""
    numbers = [*params[0].reshape(-1)[:8], *params[-1].reshape(-1)[-8:]]
    return [float(x) for x in numbers]
