"""The suite ``optimizers``: a step of every optimizer on one array, next to its own memory-bandwidth limit
and torch.

Elementwise optimizers have a vector of 4e6 float32; those that combine the elements of an array (norms,
counts, factors, matrix products) have a matrix of 2000 x 2000. torch is measured in each of the modes that
`torch.optim` has for the optimizer on a CPU.

The limit is defined as follows:

- A stream is an array of the parameter's size that is read or written once. All of an optimizer's state is
  read and written, the gradient is read, the parameter is read and written: Adam has 4 + 3 streams, 28
  bytes per parameter.
- An optimizer that needs sums over an array before it can update an element has as many passes as that
  takes, and each pass has its streams. Of the possible divisions of the work between passes the one with
  the fewest bytes counts, whether fastopt uses it or not. The first pass of LAMB reads p, g, m, v, writes
  m, v and sums, the second reads p, m, v and writes p: 7 + 3 streams. State that is smaller than the array
  (row and column of Adafactor, column of row-wise AdaGrad) does not count.
- In addition to its streams, the limit of Muon has the float32 matrix products of its iterations by NumPy's
  BLAS, which takes half the time for a matrix by its own transpose: two products of three. (torch
  multiplies in bfloat16.)

State is warm: before the clock starts each contender takes some steps with different random gradients, so
that no moment is zero and no sum is that of one gradient; then the last gradient stays.
"""

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.contenders import fastopt, numba, torch
from benchmarks.steps import PROBE_STEPS, StepBench, count_streams, sample_params
from benchmarks.suite import Settings, Suite
from fastopt.cli.bench_worker import parse_size

SIZE = 4_000_000        # elements of the array
WARM_STEPS = 12         # before the clock starts, unless they take longer than
WARM_SECONDS = 2.0
SHIFT = 16              # elements by which a random gradient is shifted against the previous one


@dataclass(frozen=True)
class Workload:
    """A step of an optimizer.

    Attributes
    ----------
    row : str
        Name in the table.
    optimizer : str
        Class of fastopt and, unless `torch` is empty, of torch.optim.
    passes : tuple of pair of str
        For each pass over memory the streams that are read, and those that are read and written: p the
        parameter, g its gradient, any other letter a state.
    options : dict
        Of the optimizer, in fastopt and in torch.
    torch : str
        The fastest of `contenders.torch.MODES` that torch.optim has for the optimizer on a CPU, or "".
    elementwise : bool
        Each element is updated independently of the others.
    products : int
        Products of square matrices; of each three the first two are symmetric.
    name : str
        `row`, or ``row/1e5`` for another size than `SIZE`.
    size : int
        Number of elements.
    """

    row: str
    optimizer: str
    passes: tuple[tuple[str, str], ...]
    options: dict[str, Any] = field(default_factory=dict)
    torch: str = ""
    elementwise: bool = True
    products: int = 0
    name: str = ""
    size: int = SIZE
    kind = "optimizer"
    denormal = False

    @property
    def title(self):
        options = ", ".join(f"{name}={value}" for name, value in self.options.items() if name != "lr")
        return f"{self.optimizer}({options})"

    @property
    def shape(self):
        """Shape of the array: a square matrix unless the optimizer is elementwise."""
        return (self.size,) if self.elementwise else (math.isqrt(self.size),) * 2

    @property
    def streams(self):
        """Numbers of arrays read and written."""
        return count_streams(self.passes)

    @property
    def summary(self):
        reads, writes = self.streams
        passes = f" in {len(self.passes)} passes" * (len(self.passes) > 1)
        return f"{reads} streams read, {writes} written{passes}"

    @property
    def arguments(self):
        """Arguments of a contender's method `optimizer` after parameters and gradients."""
        return self.optimizer, self.options

    def make_params(self):
        """Return a list of the initial parameter: normal numbers times 0.05."""
        return [np.float32(0.05) * self._normal(0)]

    def make_arrays(self):
        return self.make_params(), [self.gradient(0).copy()]

    def gradient(self, k):
        """Return the gradient of step `k`, counted from 0: normal numbers."""
        return self._normal(k + 1)

    def _normal(self, k):
        """Return a view of the random numbers, shifted `k` times."""
        size = math.prod(self.shape)
        return _noise(size + (WARM_STEPS + 1) * SHIFT)[k * SHIFT :][:size].reshape(self.shape)

    def record(self):
        """Return the entry of a saved run."""
        return {
            "name": self.name, "title": self.title, "row": self.row, "elementwise": self.elementwise,
            "shape": self.shape, "streams": self.streams,
            "amount": 4 * sum(self.streams) * math.prod(self.shape),
        }

    def memory(self, workers):
        """Return the bytes needed: the arrays of all processes, and temporaries of the one that runs."""
        arrays = 2 + len({letter for streams in self.passes for letter in "".join(streams)})
        return 4 * self.size * (arrays * workers + 8)


@lru_cache(maxsize=1)
def _noise(size):
    return np.random.default_rng(0).standard_normal(size, np.float32)


def elementwise(row, optimizer, writes, torch="", **options):
    """Describe an optimizer of one pass that reads the gradient and updates `writes`."""
    return Workload(row, optimizer, (("g", writes),), {"lr": 1e-3, **options}, torch, name=row)


def combining(row, optimizer, *passes, torch="", products=0, **options):
    """Describe an optimizer that combines the elements of an array."""
    return Workload(row, optimizer, passes, {"lr": 1e-3, **options}, torch, False, products, row)


WORKLOADS = (
    elementwise("sgd", "SGD", "p", "fused"),
    elementwise("momentum", "SGD", "pb", "fused", momentum=0.9),
    elementwise("nesterov", "SGD", "pb", "fused", momentum=0.9, nesterov=True),
    elementwise("asgd", "ASGD", "pa", "foreach"),
    elementwise("sign-sgd", "SignSGD", "p"),
    elementwise("signum", "SignSGD", "pb", momentum=0.9),
    elementwise("lion", "Lion", "pm"),
    elementwise("rprop", "Rprop", "phs", "foreach"),
    elementwise("adagrad", "Adagrad", "ps", "fused"),
    elementwise("adadelta", "Adadelta", "psu", "foreach", lr=1.0),
    elementwise("ftrl", "FTRL", "psz"),
    elementwise("rmsprop", "RMSprop", "ps", "foreach"),
    elementwise("rmsprop-momentum", "RMSprop", "psb", "foreach", momentum=0.9),
    elementwise("rmsprop-centered", "RMSprop", "psa", "foreach", centered=True),
    elementwise("rmsprop-centered-momentum", "RMSprop", "psab", "foreach", centered=True, momentum=0.9),
    elementwise("adam", "Adam", "pmv", "fused"),
    elementwise("amsgrad", "Adam", "pmvx", "fused", amsgrad=True),
    elementwise("adamw", "AdamW", "pmv", "fused", weight_decay=0.01),
    elementwise("adamax", "Adamax", "pmu", "foreach"),
    elementwise("nadam", "NAdam", "pmv", "foreach"),
    elementwise("radam", "RAdam", "pmv", "foreach"),
    elementwise("adabelief", "AdaBelief", "pmv"),
    elementwise("yogi", "Yogi", "pmv"),
    elementwise("adopt", "ADOPT", "pmv"),
    elementwise("ademamix", "AdEMAMix", "pmnv"),
    elementwise("adan", "Adan", "pmnvh"),
    elementwise("sgd-schedule-free", "SGDScheduleFree", "pz"),
    elementwise("adamw-schedule-free", "AdamWScheduleFree", "pzv"),
    combining("adam-cautious", "Adam", ("gm", ""), ("g", "pmv"), cautious=True),
    combining("adamw-cautious", "AdamW", ("gm", ""), ("g", "pmv"), cautious=True),
    combining("lion-cautious", "Lion", ("gm", ""), ("g", "pm"), cautious=True),
    combining("adagrad-rowwise", "Adagrad", ("g", "p"), rowwise=True),     # a row stays in the cache
    combining("lars", "LARS", ("pg", ""), ("g", "pb"), lr=1.0),
    combining("lamb", "LAMB", ("pg", "mv"), ("mv", "p")),
    combining("prodigy", "Prodigy", ("gpo", "s"), ("g", "pmv"), lr=1.0),
    combining("adafactor", "Adafactor", ("pg", ""), ("g", ""), ("g", "p"), torch="foreach", lr=1e-2),
    combining("muon", "Muon", ("g", "b"), ("o", "p"), torch="single", products=15),
)


def find(name):
    """Return the workload of a name; one such as ``adam/1e5`` has that size."""
    row, slash, text = name.partition("/")
    workload = next((workload for workload in WORKLOADS if workload.row == row), None)
    size = parse_size(text) if slash else SIZE
    if not workload or not size:
        known = ", ".join(workload.row for workload in WORKLOADS)
        raise ValueError(
            f"workloads: expected {known}, or one of them and its size such as adam/1e5, got {name!r}"
        )
    return replace(workload, name=name, size=size)


class OptimizerBench(StepBench):
    """A workload of a contender, with its arrays allocated and its state warm."""

    def warm_up(self, step, workload):
        probe, start = None, perf_counter()
        for k in range(WARM_STEPS):
            np.copyto(self.contender.g, workload.gradient(k))
            step()
            if k + 1 == PROBE_STEPS:
                probe = sample_params(self.contender)
            elif k > PROBE_STEPS and perf_counter() - start > WARM_SECONDS:
                break
        return probe


SUITE = Suite(
    name="optimizers",
    purpose="time a step of every optimizer, next to its own memory-bandwidth limit and torch at its best",
    workloads=WORKLOADS,
    find=find,
    contenders={
        "limit": numba.Limit,
        "fastopt": fastopt.FastOpt,
        "torch-fused": torch.TorchFused,
        "torch-foreach": torch.TorchForeach,
        "torch": torch.Torch,
    },
    bench=OptimizerBench,
    full=Settings(tuple(workload.row for workload in WORKLOADS), rounds=7, seconds=0.05),
    quick=Settings(("sgd", "adam", "lamb"), rounds=3, seconds=0.01, size="1e5"),
    tolerance=1e-4,         # a tenth of a step: torch's Muon multiplies in bfloat16
    extra_threads=(1,),
)
