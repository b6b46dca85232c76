"""The rules of ``fastopt bench --rules``: works, contenders, timing.

As `steps.py`, this file is imported in a contender's process: NumPy and one library are all there is.

A work is a step of one rule on one array: elementwise rules have a vector of 4e6 float32, those that
bring the numbers of an array together (norms, counts, factors, matrix products) a matrix of 2000 x 2000.
Beside it stand its own limit, and torch in each of the modes that `torch.optim` has for the rule on a CPU.

How the limit counts:

- A stream is an array of the parameter's size that is read or written once. All of a rule's state is,
  the gradient is read, the parameter read and written: Adam has 4 + 3 streams, 28 bytes a parameter.
- A rule that needs sums over an array before it can move a number of it has as many passes as that
  takes, and each pass has its streams. Of the ways to divide the work between the passes the one with
  the fewest bytes counts, whether or not fastopt does it that way. LAMB's first pass reads p, g, m, v,
  writes m, v and sums, its second reads p, m, v and writes p: 7 + 3 streams. What is smaller than the
  array (Adafactor's row and column, row-wise AdaGrad's column) does not count.
- Muon's limit has, beside its streams, the float32 matrix products of its iterations by NumPy's BLAS, which
  takes half the time for a matrix by its own transpose: two of three. (torch multiplies in bfloat16.)

State is warm: before the clock starts each contender has taken some steps, with another random gradient
each, so that no moment is zero and no sum is that of one gradient; then the last of them stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from . import steps  # not by the package's name: a peer's Python may have no fastopt

if TYPE_CHECKING:
    from .steps import F32, Contender, Steps

SIZE = 4_000_000        # numbers in the array
WARM_STEPS = 12         # before the clock starts, if they do not take longer than
WARM_SECONDS = 2.0
SHIFT = 16              # numbers by which one random gradient is ahead of the one before

YARDSTICK, UNIT, PROBED = steps.YARDSTICK, steps.UNIT, steps.PROBED
TOLERANCE = 1e-4        # a tenth of a step: torch's Muon multiplies in bfloat16
EXTRA_THREADS = (1,)    # numbers of threads to measure beside all cores

# What torch.optim has for a rule on a CPU: nothing, the loop over tensors, that and foreach, all three.
KINDS = ("none", "single", "foreach", "fused")


# --- Works ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A step of a rule.

    Attributes
    ----------
    rule : str
        For the command line.
    optimizer : str
        Class of fastopt and, unless `kind` is "none", of torch.optim.
    passes : tuple of pair of str
        For each pass over memory the streams that are read, and those that are read and written: p the
        parameter, g its gradient, any other letter a state.
    options : dict
        Of the optimizer, in fastopt and in torch.
    kind : str
        The last of `KINDS` that torch has.
    elementwise : bool
        Each number of the array is moved by itself.
    products : int
        Products of square matrices; of each three the first two are symmetric.
    name : str
        `rule` or, for another size than `SIZE`, ``rule/1e5``.
    size : int
        Numbers in the array.
    """

    rule: str
    optimizer: str
    passes: tuple[tuple[str, str], ...]
    options: dict[str, Any] = field(default_factory=dict)
    kind: str = "none"
    elementwise: bool = True
    products: int = 0
    name: str = ""
    size: int = SIZE
    denormal = False

    @property
    def title(self) -> str:
        """For messages."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items() if name != "lr")
        return f"{self.optimizer}({options})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array: of rules that are not elementwise a square matrix."""
        return (self.size,) if self.elementwise else (math.isqrt(self.size),) * 2

    @property
    def streams(self) -> tuple[int, int]:
        """Numbers of arrays read and written."""
        reads, writes = (sum(map(len, streams)) for streams in zip(*self.passes, strict=True))
        return reads + writes, writes

    @property
    def summary(self) -> str:
        """For lists of works."""
        reads, writes = self.streams
        passes = f" in {len(self.passes)} passes" * (len(self.passes) > 1)
        return f"{reads} streams read, {writes} written{passes}"

    def record(self) -> dict[str, Any]:
        """What is saved of it."""
        return {
            "name": self.name, "title": self.title, "kind": self.kind, "rule": self.rule,
            "elementwise": self.elementwise, "shape": self.shape, "streams": self.streams,
            "amount": 4 * sum(self.streams) * math.prod(self.shape),
        }

    def memory(self, workers: int) -> int:
        """Bytes needed: what all hold at a time, and the temporaries of the one that runs."""
        held = 2 + len({letter for one in self.passes for letter in "".join(one)})
        return 4 * self.size * (held * workers + 8)


def _elementwise(rule: str, optimizer: str, writes: str, kind: str = "none", **options: Any) -> Work:
    """A rule of one pass that reads the gradient and updates `writes`."""
    return Work(rule, optimizer, (("g", writes),), {"lr": 1e-3, **options}, kind, name=rule)


def _whole(
    rule: str, optimizer: str, *passes: tuple[str, str], kind: str = "none", products: int = 0,
    **options: Any,
) -> Work:
    """A rule that brings the numbers of an array together."""
    return Work(rule, optimizer, passes, {"lr": 1e-3, **options}, kind, False, products, rule)


WORKS = (
    _elementwise("sgd", "SGD", "p", "fused"),
    _elementwise("momentum", "SGD", "pb", "fused", momentum=0.9),
    _elementwise("nesterov", "SGD", "pb", "fused", momentum=0.9, nesterov=True),
    _elementwise("asgd", "ASGD", "pa", "foreach"),
    _elementwise("sign-sgd", "SignSGD", "p"),
    _elementwise("signum", "SignSGD", "pb", momentum=0.9),
    _elementwise("lion", "Lion", "pm"),
    _elementwise("rprop", "Rprop", "phs", "foreach"),
    _elementwise("adagrad", "Adagrad", "ps", "fused"),
    _elementwise("adadelta", "Adadelta", "psu", "foreach", lr=1.0),
    _elementwise("ftrl", "FTRL", "psz"),
    _elementwise("rmsprop", "RMSprop", "ps", "foreach"),
    _elementwise("rmsprop-momentum", "RMSprop", "psb", "foreach", momentum=0.9),
    _elementwise("rmsprop-centered", "RMSprop", "psa", "foreach", centered=True),
    _elementwise(
        "rmsprop-centered-momentum", "RMSprop", "psab", "foreach", centered=True, momentum=0.9
    ),
    _elementwise("adam", "Adam", "pmv", "fused"),
    _elementwise("amsgrad", "Adam", "pmvx", "fused", amsgrad=True),
    _elementwise("adamw", "AdamW", "pmv", "fused", weight_decay=0.01),
    _elementwise("adamax", "Adamax", "pmu", "foreach"),
    _elementwise("nadam", "NAdam", "pmv", "foreach"),
    _elementwise("radam", "RAdam", "pmv", "foreach"),
    _elementwise("adabelief", "AdaBelief", "pmv"),
    _elementwise("yogi", "Yogi", "pmv"),
    _elementwise("adopt", "ADOPT", "pmv"),
    _elementwise("ademamix", "AdEMAMix", "pmnv"),
    _elementwise("adan", "Adan", "pmnvh"),
    _elementwise("sgd-schedule-free", "SGDScheduleFree", "pz"),
    _elementwise("adamw-schedule-free", "AdamWScheduleFree", "pzv"),
    _whole("adam-cautious", "Adam", ("gm", ""), ("g", "pmv"), cautious=True),
    _whole("adamw-cautious", "AdamW", ("gm", ""), ("g", "pmv"), cautious=True),
    _whole("lion-cautious", "Lion", ("gm", ""), ("g", "pm"), cautious=True),
    _whole("adagrad-rowwise", "Adagrad", ("g", "p"), rowwise=True),     # a row stays in the cache
    _whole("lars", "LARS", ("pg", ""), ("g", "pb"), lr=1.0),
    _whole("lamb", "LAMB", ("pg", "mv"), ("mv", "p")),
    _whole("prodigy", "Prodigy", ("gpo", "s"), ("g", "pmv"), lr=1.0),
    _whole("adafactor", "Adafactor", ("pg", ""), ("g", ""), ("g", "p"), kind="foreach", lr=1e-2),
    _whole("muon", "Muon", ("g", "b"), ("o", "p"), kind="single", products=15),
)

SWEEP: tuple[str, ...] = ()
QUICK_SWEEP: tuple[str, ...] = ()

FULL: dict[str, Any] = {"works": tuple(work.name for work in WORKS), "rounds": 7, "seconds": 0.05}
QUICK: dict[str, Any] = {"works": ("sgd", "adam", "lamb"), "size": "1e5", "rounds": 3, "seconds": 0.01}


def find_work(name: str) -> Work:
    """The work of a name; one like ``adam/1e5`` is of that size.

    Raises
    ------
    ValueError
        If there is no such work.
    """
    rule, slash, given = name.partition("/")
    work = next((work for work in WORKS if work.rule == rule), None)
    if work and not slash:
        return work
    try:
        size = int(float(given))
    except (ValueError, OverflowError):
        size = 0
    if not work or size < 1:
        known = ", ".join(work.rule for work in WORKS)
        raise ValueError(f"works: expected {known}, or one of them and its size as adam/1e5, got {name!r}")
    return replace(work, name=name, size=size)


# --- Numbers, the same for every contender ---------------------------------------------------------


@lru_cache(maxsize=1)
def _noise(size: int) -> F32:
    return np.random.default_rng(0).standard_normal(size, np.float32)


def make_param(work: Work) -> F32:
    """The initial parameter: normal numbers times 0.05."""
    return np.float32(0.05) * _numbers(work, 0)


def gradient(work: Work, k: int) -> F32:
    """The gradient of step `k`, from 0 on: normal numbers."""
    return _numbers(work, k + 1)


def _numbers(work: Work, k: int) -> F32:
    """A view of the random numbers that is `SHIFT` ahead of the one before."""
    size = math.prod(work.shape)
    return _noise(size + (WARM_STEPS + 1) * SHIFT)[k * SHIFT :][:size].reshape(work.shape)


# --- Contenders ------------------------------------------------------------------------------------


class FastOpt(steps.FastOpt):
    """fastopt."""

    kinds: tuple[str, ...] = KINDS

    def setup(self, work: Work) -> Steps:  # type: ignore[override]  # the works of this suite
        self.p, self.g = [make_param(work)], gradient(work, 0).copy()
        opt = getattr(self.fastopt, work.optimizer)(self.p, **work.options)
        return {"step": partial(opt.step, [self.g])}


class Limit(steps.Limit):
    """What memory allows: the rule's streams, each written one with a multiplication and an addition."""

    kinds: tuple[str, ...] = KINDS

    def setup(self, work: Work) -> Steps:  # type: ignore[override]  # the works of this suite
        names = sorted({name for streams in work.passes for name in "".join(streams)})
        whole, _ = steps._carve([[gradient(work, 0)]] * len(names))
        streams = dict(zip(names, whole, strict=True))
        self.g = streams["g"][: math.prod(work.shape)].reshape(work.shape)
        calls = [
            (steps.limit_loops(self.threads, len(reads)), [streams[name] for name in reads + writes])
            for reads, writes in work.passes
        ]
        factor: Any = make_param(work) if work.products else None
        product = np.zeros_like(factor)

        def step(way: int) -> None:
            for loops, arrays in calls:
                loops[way](*arrays)
            for k in range(work.products):
                np.matmul(factor, factor if k % 3 == 2 else factor.T, out=product)

        ways: Steps = {"whole": partial(step, 1)} if self.threads > 1 else {}
        if work.size <= steps.SMALL or self.threads == 1:
            ways["serial"] = partial(step, 0)
        return ways


class Torch(steps.Torch):
    """torch.optim, one tensor at a time, its default on a CPU."""

    kinds: tuple[str, ...] = KINDS[1:]

    def setup(self, work: Work) -> Steps:  # type: ignore[override]  # the works of this suite
        tensor = self.torch.tensor(make_param(work)).requires_grad_()
        tensor.grad = self.torch.tensor(gradient(work, 0))
        self.tensors, self.g = [tensor], tensor.grad.numpy()
        mode = {self.mode: True} if self.mode else {}
        self.opt = getattr(self.torch.optim, work.optimizer)(self.tensors, **work.options, **mode)
        return {"step": self.opt.step}


class TorchForeach(Torch):
    """torch.optim with foreach=True: one operation for all tensors at a time."""

    mode = "foreach"
    kinds: tuple[str, ...] = KINDS[2:]


class TorchFused(Torch):
    """torch.optim with fused=True: one compiled pass a tensor."""

    mode = "fused"
    kinds: tuple[str, ...] = KINDS[3:]


CONTENDERS: dict[str, type[Contender]] = {
    "limit": Limit,
    "fastopt": FastOpt,
    "torch-fused": TorchFused,
    "torch-foreach": TorchForeach,
    "torch": Torch,
}


# --- Timing ----------------------------------------------------------------------------------------


class Bench(steps.Bench):
    """One work of one contender, set up and warm."""

    def __init__(self, contender: Any, work: Work) -> None:
        self.contender, self.work, self.refills = contender, work, False
        self.steps = contender.setup(work)
        step, start = next(iter(self.steps.values())), perf_counter()
        for k in range(WARM_STEPS):
            np.copyto(contender.g, gradient(work, k))
            self.time(step)
            if k + 1 == steps.PROBE_STEPS:
                self.probe = None if isinstance(contender, Limit) else steps._probe(contender.params())
            elif k > steps.PROBE_STEPS and perf_counter() - start > WARM_SECONDS:
                break
