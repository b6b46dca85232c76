"""Time a step on some rows of a table, next to a step on the whole table: the table of docs/sparse-rows.md.

With ``--torch`` measure torch.optim on sparse gradients instead, in a process without the threads of
fastopt. Times are medians in microseconds. Each step has other random rows, so that they come from main
memory.
"""

from statistics import median
from time import perf_counter

import numpy as np

import fastopt
from fastopt.cli.options import positive_int


def add_options(command):
    add = command.add_argument
    add("--rows", type=positive_int, default=1_000_000, help="rows of the table (default: %(default)s)")
    add("--width", type=positive_int, default=64, help="(default: %(default)s)")
    add("--active", type=positive_int, default=1024, help="rows per step (default: %(default)s)")
    add("--threads", type=positive_int, default=1, help="(default: %(default)s)")
    add("--torch", action="store_true", help="measure torch.optim")


def run(options):
    fastopt.set_num_threads(options.threads)
    for name, microseconds in (in_torch if options.torch else in_fastopt)(options):
        print(f"{name:34}{microseconds:12,.0f}", flush=True)


def batches(options, count):
    """Yield rows and gradients; half of the rows are from a hundredth of the table, like frequent words."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        rows = rng.integers(0, options.rows, options.active)
        rows[::2] //= 100
        yield rows, rng.standard_normal((options.active, options.width)).astype(np.float32)


def timed(call, batches, count):
    times = []
    for batch in batches:
        start = perf_counter()
        call(*batch)
        times.append(perf_counter() - start)
    return 1e6 * median(times[-count:])


def in_fastopt(options):
    table = np.ones((options.rows, options.width), np.float32)
    makes = {
        "SGD": lambda: fastopt.SGD(table),
        "Adagrad": lambda: fastopt.Adagrad(table),
        "Adagrad, row-wise": lambda: fastopt.Adagrad(table, rowwise=True),
        "Adam, lazy": lambda: fastopt.Adam(table),
    }
    for name, make in makes.items():
        opt = with_state(make())
        step = lambda rows, g, opt=opt: opt.step_rows(table, rows, g)  # noqa: E731
        yield name, timed(step, batches(options, 100), 80)
    opt = with_state(fastopt.Adam(table, sparse="exact"))
    replay_times = []

    def exact(rows, g):
        start = perf_counter()
        opt.catch_up(table, rows)
        replay_times.append(perf_counter() - start)
        opt.step_rows(table, rows, g)

    yield "Adam, exact, with catching up", timed(exact, batches(options, 1000), 300)
    yield "  of which catching up", 1e6 * median(replay_times[-300:])
    opt, whole = with_state(fastopt.Adam(table)), np.zeros_like(table)
    yield "Adam, a dense step", timed(lambda *_: opt.step(whole), batches(options, 8), 5)
    opt = with_state(fastopt.Adam(table, sparse="dense"))
    yield 'Adam, sparse="dense"', timed(lambda rows, g: opt.step_rows(table, rows, g), batches(options, 8), 5)


def with_state(opt):
    """Write every page of the state, as some steps would."""
    for state in opt.state:
        for array in state.values():
            array[...] = 1e-12
    return opt


def in_torch(options):
    import torch

    torch.set_num_threads(options.threads)
    shape = options.rows, options.width
    for name in ("SGD", "Adagrad", "SparseAdam"):
        table = torch.nn.Parameter(torch.ones(shape))
        opt = getattr(torch.optim, name)([table], lr=1e-3)

        def step(rows, g, table=table, opt=opt):
            table.grad = torch.sparse_coo_tensor(
                torch.from_numpy(rows)[None], torch.from_numpy(g), shape, check_invariants=False
            )
            opt.step()

        yield f"torch {name}", timed(step, batches(options, 200), 80)
