"""The suite ``steps``: a step of Adam on many models, and a step with clipping, zeroing and a moving average.

- All contenders have the same values: parameters are normal numbers times 0.05, gradients times 0.01,
  float32, and the same hyperparameters. After the first steps a sample of the parameters is compared with
  that of fastopt.
- Each library allocates its own arrays and gets the same gradient objects at every step, the best case for
  all of them. Every page is written before the clock starts.
- Untimed steps come before each timing and bring the arrays back into the caches.
- Where a step zeroes its gradients, they are restored before each step, untimed and by one thread, so that
  no step is timed on zeros: these would not be clipped, and the moments would decay to denormals. Such
  steps are timed one by one, with gradients in the cache of the core that wrote them, as after a backward
  pass.
- Denormal state is set again before each turn. (Where denormals are not flushed it would stay: 0.9 times
  one of the smallest numbers is rounded back to it.)
"""

import math
from dataclasses import dataclass

import numpy as np

from benchmarks.contenders import fastopt, jax, numba, numpy, sklearn, thinc, torch
from benchmarks.suite import Settings, Suite
from fastopt.cli.bench_worker import make_arrays, parse_size, time_steps

DENORMAL = 1e-40
PROBE_STEPS = 2         # after which the parameters of all contenders are compared


@dataclass(frozen=True)
class Workload:
    """A step on float32 parameters.

    Attributes
    ----------
    name : str
        For the command line.
    title : str
        For tables.
    shapes : tuple of tuple of int
        One parameter each.
    kind : {"adam", "clip"}
        A step of Adam; or clipping by the global norm, AdamW, zeroing the gradients and a moving average of
        the parameters in one step.
    denormal : bool
        Both moments are filled with denormals and the gradients are zero.
    """

    name: str
    title: str
    shapes: tuple[tuple[int, ...], ...]
    kind: str = "adam"
    denormal: bool = False
    products = 0
    arguments = ()

    @property
    def size(self):
        """Number of elements of all parameters."""
        return sum(map(math.prod, self.shapes))

    @property
    def passes(self):
        """For each pass over memory the streams that are read, and those that are read and written.

        Adam reads the gradient and updates parameter and both moments. Clipping reads the gradient once
        more before; zeroing writes it; the average e is updated, too.
        """
        return (("g", "pmv"),) if self.kind == "adam" else (("g", ""), ("", "gpmve"))

    @property
    def bytes(self):
        """Bytes that must cross memory in a step."""
        return 4 * sum(count_streams(self.passes)) * self.size

    @property
    def summary(self):
        return f"{self.size:,} elements in {len(self.shapes)} arrays"

    def make_params(self):
        return make_arrays(self.shapes)[0]

    def make_arrays(self):
        """Return parameters and gradients, the same for every contender."""
        params, grads = make_arrays(self.shapes)
        return params, [np.full(shape, 0.0, np.float32) for shape in self.shapes] if self.denormal else grads

    def record(self):
        """Return the entry of a saved run."""
        return {
            "name": self.name, "title": self.title, "kind": self.kind, "denormal": self.denormal,
            "arrays": len(self.shapes), "size": self.size, "amount": self.bytes,
        }

    def memory(self, workers):
        """Return the bytes needed: the arrays of all processes, and temporaries of the one that runs."""
        arrays = 4 if self.kind == "adam" else 6        # p, g, m, v; average, saved gradients
        return 4 * self.size * (arrays * workers + 8)


def count_streams(passes):
    """Return how many arrays are read and written in the passes."""
    reads, writes = (sum(map(len, streams)) for streams in zip(*passes, strict=True))
    return reads + writes, writes


def resnet50():
    """Return the shapes of the 161 parameters of ResNet-50: convolutions, batch norms, classifier.

    From the architecture (He et al., "Deep residual learning for image recognition", CVPR 2016), with
    kernels of shape (out, in, height, width) and the scale and shift of a batch norm after each.
    """
    def convolution(out, channels, kernel):
        return [(out, channels, kernel, kernel), (out,), (out,)]

    shapes = convolution(64, 3, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(width, channels, 1)
            shapes += convolution(width, width, 3)
            shapes += convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, channels, 1)
            channels = 4 * width
    return (*shapes, (1000, channels), (1000,))


MLP_SHAPES = ((784, 256), (256,), (256, 128), (128,), (128, 10), (10,))

WORKLOADS = (
    Workload("1e3", "1 array of 1e3", ((1_000,),)),
    Workload("1e5", "1 array of 1e5", ((100_000,),)),
    Workload("1e6", "1 array of 1e6", ((1_000_000,),)),
    Workload("mlp", "784-256-128-10", MLP_SHAPES),
    Workload("100x1024", "100 arrays of 1024", ((1024,),) * 100),
    Workload("resnet50", "ResNet-50's 161", resnet50()),
    Workload("5e7", "1 array of 5e7", ((50_000_000,),)),
    Workload("clip-mlp", "clip+AdamW+EMA MLP", MLP_SHAPES, kind="clip"),
    Workload("clip-4e7", "clip+AdamW+EMA 4e7", ((40_000_000,),), kind="clip"),
    Workload("4e6", "1 array of 4e6", ((4_000_000,),)),
    Workload("denormal", "4e6, denormal state", ((4_000_000,),), denormal=True),
)
SWEEP = ("1e2", "3e2", "1e3", "3e3", "1e4", "3e4", "1e5", "3e5", "1e6", "3e6", "1e7", "5e7")


def find(name):
    """Return the workload of a name; a number such as ``3e4`` is one array of that size."""
    for workload in WORKLOADS:
        if workload.name == name:
            return workload
    size = parse_size(name)
    if not size:
        known = ", ".join(workload.name for workload in WORKLOADS)
        raise ValueError(f"workloads: expected {known} or the size of one array such as 3e4, got {name!r}")
    return Workload(name, f"1 array of {name}", ((size,),))


class StepBench:
    """A workload of a contender, with its arrays allocated.

    Attributes
    ----------
    probe : list of float, optional
        Some elements of the parameters after a few steps; None if the contender does not compute the step.
    """

    def __init__(self, contender, workload):
        self.contender, self.denormal = contender, workload.denormal
        refills = workload.kind == "clip" or (contender.zeroes_grads and not workload.denormal)
        self.refill = contender.refill if refills else None
        self.steps = contender.setup(workload)
        self.probe = self.warm_up(next(iter(self.steps.values())), workload)

    def warm_up(self, step, workload):
        for _ in range(PROBE_STEPS):
            if self.refill:
                self.refill()
            step()
        return sample_params(self.contender)

    def round(self, seconds):
        """Return median and shortest time per step for each variant, which is timed for about `seconds`."""
        if self.denormal:
            self.contender.fill_state(DENORMAL)
        return {
            name: time_steps(step, self.contender.finish, seconds, self.refill)
            for name, step in self.steps.items()
        }


def sample_params(contender):
    """Return some elements of the first and the last parameter, to compare contenders by."""
    if not contender.compared:
        return None
    contender.finish()
    params = contender.params()
    return [float(x) for x in (*params[0].reshape(-1)[:8], *params[-1].reshape(-1)[-8:])]


SUITE = Suite(
    name="steps",
    purpose="time a step of Adam on many models, next to other libraries and the memory-bandwidth limit",
    workloads=WORKLOADS,
    find=find,
    contenders={
        "limit": numba.Limit,
        "fastopt": fastopt.FastOpt,
        "torch-fused": torch.TorchFused,
        "torch-foreach": torch.TorchForeach,
        "torch": torch.Torch,
        "optax": jax.Optax,
        "numba": numba.Numba,
        "thinc": thinc.Thinc,
        "sklearn": sklearn.ScikitLearn,
        "numpy": numpy.NumPy,
    },
    bench=StepBench,
    full=Settings(tuple(workload.name for workload in WORKLOADS), rounds=15, seconds=0.05),
    quick=Settings(("1e3", "1e5", "mlp", "100x1024", "clip-mlp"), rounds=3, seconds=0.01),
    sweep=SWEEP,
    plots=True,
    quick_sweep=SWEEP[:9],
)
