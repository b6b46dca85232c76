"""Time steps with every number format: the table "Number formats" of docs/performance-log.md.

The formats take turns in one process. A cell is the time of the float32 step over that of the format: above 1
the format is faster. Times are medians; every call gets other gradient objects.

With ``--memory``, each format takes two steps of AdamW in a process of its own, and the peak of the resident
memory is compared with the bytes of parameters, gradients and state.
"""

import multiprocessing
import resource
from statistics import median
from time import perf_counter

import numpy as np

import fastopt
from fastopt.cli.options import positive_int

OPTIMIZERS = {
    "AdamW": fastopt.AdamW,
    "SGD, momentum": lambda p, **options: fastopt.SGD(p, lr=0.01, momentum=0.9, **options),
    "Lion": fastopt.Lion,
}
FORMATS = {     # parameters and gradients, and options
    "float32 / float32": (False, {}),
    "bfloat16 / float32": (True, {}),
    "float32 / bfloat16": (False, {"state_dtype": "bfloat16"}),
    "bfloat16 / bfloat16": (True, {"state_dtype": "bfloat16"}),
    "float32 / int8": (False, {"state_dtype": "int8"}),
    "bfloat16 / int8": (True, {"state_dtype": "int8"}),
    "split / float32": (True, {"master_weights": "split"}),
    "split / int8": (True, {"master_weights": "split", "state_dtype": "int8"}),
}


def add_options(command):
    add = command.add_argument
    add("--threads", type=positive_int, default=fastopt.get_num_threads(), help="(default: %(default)s)")
    add("--rounds", type=positive_int, default=7, help="turns per format (default: %(default)s)")
    add("--sizes", type=lambda text: [int(float(n)) for n in text.split(",")], default=[100_000, 25_000_000],
        help="elements, separated by commas (default: 1e5,2.5e7)")
    add("--memory", action="store_true", help="measure memory, not time")


def run(options):
    if options.memory:
        compare_memory(options.sizes[-1])
        return
    fastopt.set_num_threads(options.threads)
    for size in options.sizes:
        print(f"\n| {size:,} elements: parameters and gradients / state | {' | '.join(OPTIMIZERS)} |")
        print("|---|" + len(OPTIMIZERS) * "---:|")
        times = {name: measure(make, size, options.rounds) for name, make in OPTIMIZERS.items()}
        for name in FORMATS:
            cells = (f"{own['float32 / float32'] / own[name]:.2f}" for own in times.values())
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def measure(make, size, rounds):
    """Return the median seconds of a step for each format."""
    import ml_dtypes  # of the extra bf16

    times = {name: [] for name in FORMATS}
    calls = max(3, 5_000_000 // size)
    steps = {}
    for name, (is_bfloat16, options) in FORMATS.items():
        dtype = ml_dtypes.bfloat16 if is_bfloat16 else np.float32
        opt = make(np.zeros(size, dtype), **options)
        steps[name] = opt, [np.full(size, value, dtype) for value in (0.1, -0.1)]
        time_steps(*steps[name], 2)
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(time_steps(*step, calls))
    return {name: median(values) for name, values in times.items()}


def time_steps(opt, grads, calls):
    opt.step(grads[1])      # wakes the threads
    start = perf_counter()
    for i in range(calls):
        opt.step(grads[i % 2])
    return (perf_counter() - start) / calls


def compare_memory(size):
    """Print the peak of the resident memory for each format next to the bytes of the arrays."""
    print(f"| {size:,} elements: parameters and gradients / state | arrays, MB | peak, MB | ratio |")
    print("|---|---:|---:|---:|")
    context = multiprocessing.get_context("spawn")
    for name in FORMATS:
        with context.Pool(1) as pool:
            nbytes, peak = pool.apply(use_memory, (name, size))
        print(f"| {name} | {nbytes / 1e6:.0f} | {peak / 1e6:.0f} | {peak / nbytes:.3f} |", flush=True)


def use_memory(name, size):
    """Return the bytes of all arrays of an optimizer, and the growth of the peak of resident memory."""
    import ml_dtypes  # of the extra bf16

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    is_bfloat16, options = FORMATS[name]
    p = np.ones(size, ml_dtypes.bfloat16 if is_bfloat16 else np.float32)
    g = np.ones_like(p)
    opt = fastopt.AdamW(p, **options)
    opt.step(g)
    opt.step(g)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return p.nbytes + g.nbytes + opt.state_nbytes, (peak - before) * 1024
