"""Steps for airspeed velocity (``asv run``, see ``asv.conf.json``): the history of fastopt alone."""

import fastopt
from benchmarks.contenders.fastopt import FastOpt
from benchmarks.steps import DENORMAL, WORKLOADS, StepBench, find
from fastopt.cli.bench_worker import make_arrays


class Adam:
    """A plain step, on all cores and on one."""

    params = ([w.name for w in WORKLOADS if w.kind == "adam" and not w.denormal], [1, 2])
    param_names = ("workload", "threads")
    timeout = 300

    def setup(self, workload, threads):
        self.before = fastopt.get_num_threads()
        self.step = StepBench(FastOpt(threads), find(workload)).steps["step"]

    def teardown(self, workload, threads):
        fastopt.set_num_threads(self.before)

    def time_step(self, workload, threads):
        self.step()


class Optimizers:
    """A step of several optimizers on one array of a million elements."""

    params = (["SGD", "momentum", "Adagrad", "RMSprop", "Adam", "AdamW"], ["float32", "float64"])
    param_names = ("optimizer", "dtype")

    def setup(self, optimizer, dtype):
        params, self.grads = ([a.astype(dtype) for a in arrays] for arrays in make_arrays([(1_000_000,)]))
        options = {"momentum": 0.9} if optimizer == "momentum" else {}
        self.opt = getattr(fastopt, "SGD" if options else optimizer)(params, **options)
        self.opt.step(self.grads)

    def time_step(self, optimizer, dtype):
        self.opt.step(self.grads)


class Changing:
    """Steps that change what they are timed on: each is timed alone, after a `setup` of its own.

    Clipping zeroes the gradients, which would not be clipped again; a step with denormal state flushes it.
    """

    params = (["clip-mlp", "clip-4e7", "denormal"],)
    param_names = ("workload",)
    number = 1
    warmup_time = 0.0
    timeout = 300

    def setup(self, workload):
        bench = StepBench(FastOpt(fastopt.get_num_threads()), find(workload))
        self.step = bench.steps["step"]
        bench.refill() if bench.refill else bench.contender.fill_state(DENORMAL)

    def time_step(self, workload):
        self.step()


class Construct:
    """The construction of an optimizer: its arrays are resolved and its state is allocated."""

    params = (["1e3", "mlp", "100x1024", "resnet50"],)
    param_names = ("workload",)

    def setup(self, workload):
        self.arrays = find(workload).make_params()

    def time_adam(self, workload):
        fastopt.Adam(self.arrays)
