"""Time ``optimizer.step()`` of fastopt.torch next to torch.optim, after a real backward pass.

Every contender has the same tensors and runs in a process of its own. The processes take turns, and a time is
the median over all turns. Each step has the gradients of a backward pass, which allocates them; only the step
is timed. The limits are those that the project sets itself, as a multiple of the fastest time in torch.
"""

import importlib
import json
import math
import multiprocessing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.machine import describe
from benchmarks.steps import MLP_SHAPES, resnet50
from fastopt import get_num_threads
from fastopt.cli.options import positive_int

IMPLEMENTATIONS = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}
# Module of the optimizers, end of the name of the class, and options. The first step of torchao compiles.
PEERS = {
    "fastopt-int8": ("fastopt.torch", "", {"state_dtype": "int8"}),
    "bitsandbytes": ("bitsandbytes.optim", "", {}),
    "bitsandbytes-8bit": ("bitsandbytes.optim", "8bit", {}),
    "torchao-8bit": ("torchao.optim", "8bit", {}),
}


def gpt2():
    """Return the shapes of the 148 parameters of GPT-2 small (Radford et al., 2019)."""
    layer = [(768,), (768,), (768, 2304), (2304,), (768, 768), (768,), (768,), (768,), (768, 3072), (3072,),
             (3072, 768), (768,)]
    return ((50257, 768), (1024, 768), *layer * 12, (768,), (768,))


@dataclass(frozen=True)
class Workload:
    """Steps of an optimizer on tensors of some shapes.

    Attributes
    ----------
    name : str
        For the command line.
    optimizer : str
    shapes : sequence of tuple of int
    limit : float
        Largest ratio to the time of the fastest implementation in torch.
    clips : bool
        Clip by the global norm and zero the gradients, too: in torch by two more calls, here in the step.
    """

    name: str
    optimizer: str
    shapes: tuple[tuple[int, ...], ...]
    limit: float
    clips: bool = False


WORKLOADS = (
    Workload("adamw-1e3", "AdamW", ((1000,),), 0.35),
    Workload("adamw-mlp", "AdamW", MLP_SHAPES, 0.5),
    Workload("adamw-100x1024", "AdamW", ((1024,),) * 100, 0.12),
    Workload("adamw-resnet50", "AdamW", resnet50(), 0.85),
    Workload("clip-resnet50", "AdamW", resnet50(), 0.6, clips=True),
    *(Workload(f"{name.lower()}-resnet50", name, resnet50(), 0.35)
      for name in ("NAdam", "RAdam", "Rprop", "Adadelta", "Adamax", "RMSprop")),
    Workload("adamw-gpt2", "AdamW", gpt2(), 0.9),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


def add_options(command):
    add = command.add_argument
    add("--workloads", default=",".join(BY_NAME), help="(default: all)")
    add("--rounds", type=positive_int, default=5, help="turns of each contender (default: %(default)s)")
    add("--steps", type=positive_int, help="steps per turn (default: by size)")
    add("--peers", default="", help=f"further contenders: some of {','.join(PEERS)} (default: none)")
    add("--json", metavar="FILE", help="add the times to those of this file")


class Contender:
    """Parameters with an optimizer, in its own process."""

    def __init__(self, workload, contender, threads):
        import torch

        import fastopt

        torch.set_num_threads(threads)
        fastopt.set_num_threads(threads)
        torch.manual_seed(0)
        self.params = [torch.nn.Parameter(0.05 * torch.randn(shape)) for shape in workload.shapes]
        self.clips, self.is_ours, self.torch = workload.clips, contender == "fastopt", torch
        ours_or_theirs = "fastopt.torch" if self.is_ours else "torch.optim"
        module, end, options = PEERS.get(contender, (ours_or_theirs, "", IMPLEMENTATIONS.get(contender, {})))
        optimizer = getattr(importlib.import_module(module), workload.optimizer + end)
        self.optimizer = optimizer(self.params, **options)
        self.run(2)

    def run(self, steps):
        """Return the seconds of each step."""
        times = []
        for _ in range(steps):
            if not self.clips:
                self.optimizer.zero_grad()
            sum((p * p).sum() for p in self.params).backward()
            start = perf_counter()
            self.step()
            times.append(perf_counter() - start)
        return times

    def step(self):
        if not self.clips:
            self.optimizer.step()
        elif self.is_ours:
            self.optimizer.step(max_norm=1.0, zero_grad=True)
        else:
            self.torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=False)


def serve(pipe, name, contender, threads):
    """Answer requests for a number of steps with their times, until the request is 0."""
    try:
        worker = Contender(BY_NAME[name], contender, threads)
    except (TypeError, RuntimeError):       # torch does not have this implementation
        pipe.send(None)
        return
    pipe.send([])
    while steps := pipe.recv():
        pipe.send(worker.run(steps))


def measure(workload, peers, rounds, steps):
    """Return the median time of a step in microseconds for each contender."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for contender in ("fastopt", *IMPLEMENTATIONS, *peers):
        pipe, other = context.Pipe()
        args = (other, workload.name, contender, get_num_threads())
        process = context.Process(target=serve, args=args, daemon=True)
        process.start()
        workers[contender] = pipe, process
    workers = {name: worker for name, worker in workers.items() if worker[0].recv() is not None}
    times = {name: [] for name in workers}
    for _ in range(rounds):
        for contender, (pipe, _process) in workers.items():
            pipe.send(steps)
            times[contender] += pipe.recv()
    for pipe, process in workers.values():
        pipe.send(0)
        process.join()
    return {contender: 1e6 * median(values) for contender, values in times.items()}


def run(options):
    """Print the times as a table in Markdown, and save them."""
    names, peers = ([name for name in text.split(",") if name] for text in (options.workloads, options.peers))
    for what, given, known in (("workloads", names, BY_NAME), ("peers", peers, PEERS)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{what}: expected some of {', '.join(known)}; got {unknown[0]!r}")
    path = options.json and Path(options.json)
    saved = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {"times": {}}
    saved |= {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": describe(),
        "torch": version("torch"), "threads": get_num_threads(),
    }
    for workload in map(BY_NAME.get, names):
        size = sum(map(math.prod, workload.shapes))
        steps = options.steps or max(3, min(200, 20_000_000 // size))
        saved["times"][workload.name] = times = measure(workload, peers, options.rounds, steps)
        print(table({workload.name: times}), flush=True)
        if path:
            path.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


def table(times):
    """Return the times as a table in Markdown, with the ratio to torch's fastest implementation."""
    peers = [name for name in PEERS if any(name in own for own in times.values())]
    lines = [
        f"| workload | torch | mode | fastopt | ratio | target |{''.join(f' {name} |' for name in peers)}",
        "|---|---:|---|---:|---:|---:|" + "---:|" * len(peers),
    ]
    for workload in (workload for workload in WORKLOADS if workload.name in times):
        own = times[workload.name]
        mode = min((name for name in IMPLEMENTATIONS if name in own), key=own.get)
        cells = [
            workload.name, f"{own[mode]:,.1f}", mode, f"{own['fastopt']:,.1f}",
            f"{own['fastopt'] / own[mode]:.2f}", f"{workload.limit:.2f}",
            *(f"{own[name]:,.1f}" if name in own else "" for name in peers),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report(saved):
    """Return a saved run as Markdown."""
    machine = saved["machine"]
    where = f"{saved['date']}, {machine['cpu']}, {saved['threads']} threads, torch {saved['torch']}"
    return f"Microseconds per step ({where}):\n\n{table(saved['times'])}"
