"""``fastopt bench``: the time of an Adam step, next to plain NumPy and the libraries that are installed.

Each contender runs in a process of its own (`bench_worker.py`), since thread pools on the same cores slow
each other down. They take short turns, in another order in each round, and a time is the median over the
rounds. While one contender runs, the others wait for a request and their threads sleep.

`benchmarks/` in the repository measures more libraries and workloads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from fastopt import plots
from fastopt._core.threads import get_num_threads
from fastopt.cli import bench_worker, outputs
from fastopt.cli.bench_worker import CONTENDERS
from fastopt.cli.options import positive_float, positive_int
from fastopt.cli.training import plural
from fastopt.nn.history import is_terminal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Run = dict[str, Any]

EXAMPLES = """
fastopt bench
fastopt bench --sizes 1e4,1e6 --peers limit,torch --json times.json
"""


class WorkerError(Exception):
    """A contender failed."""


class Worker:
    """The process of a contender.

    `program` are the script and its arguments before `name` and `threads`. `python` is the path of the
    interpreter, by default of this one, with this fastopt.
    """

    error = ""      # why `attempt` failed
    idle = True     # whether the threads of the process slept after each reply

    def __init__(
        self, name: str, threads: int, program: Sequence[str] = (bench_worker.__file__,),
        python: str | None = None,
    ) -> None:
        self.name, self.threads = name, threads
        libraries = ("OMP", "NUMBA", "OPENBLAS", "MKL", "FASTOPT")
        variables = {f"{library}_NUM_THREADS": str(threads) for library in libraries}
        # NumPy asks for huge pages for large arrays; the tunable makes glibc do so for the other libraries.
        variables |= {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "JAX_PLATFORMS": "cpu"}
        dropped = {"OMP_WAIT_POLICY"} if python is None else {"OMP_WAIT_POLICY", "PYTHONPATH"}
        inherited = {key: value for key, value in os.environ.items() if key not in dropped}
        if python is None:
            paths = [str(Path(__file__).parents[2]), inherited.get("PYTHONPATH", "")]
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            [python or sys.executable, "-P", *program, name, str(threads)], env={**inherited, **variables},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True,
        )
        try:
            self.version: str = self.call("handshake")
        except WorkerError:
            self.close()
            raise

    def call(self, method: str, **values: Any) -> Any:
        """Send a request and return the value of the reply."""
        assert self._process.stdout is not None     # it is a pipe
        with suppress(OSError):     # the process has ended, see below
            print(json.dumps({"method": method, **values}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._stderr.seek(0)
            messages = self._stderr.read().strip().split("\n")
            raise WorkerError(f"its process has ended: {messages[-1].strip() or 'no message'}")
        try:
            reply = json.loads(line)
        except json.JSONDecodeError as error:
            raise WorkerError(f"expected a reply in JSON, got {line.strip()!r}") from error
        if "error" in reply:
            raise WorkerError(reply["error"])
        self.idle = self.idle and reply["idle"]
        return reply["value"]

    def attempt(self, method: str, **values: Any) -> Any:
        """Return the value of the reply, or None if this request or one before it has failed."""
        if not self.error:
            try:
                return self.call(method, **values)
            except WorkerError as error:
                self.error = str(error)
        return None

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()


def turn_order(workers: Sequence[Worker], rounds: int) -> Iterator[Worker]:
    """Yield each worker once per round; the first worker changes from round to round."""
    for turn in range(rounds):
        first = turn % max(len(workers), 1)
        yield from (*workers[first:], *workers[:first])


def measure(sizes: Mapping[str, int], names: Iterable[str], threads: int, rounds: int, seconds: float) -> Run:
    """Time Adam on one array per size; ``seconds`` of the run are medians, by size and contender."""
    run: Run = {"threads": threads, "versions": {}, "failed": {}, "seconds": {}}
    workers: list[Worker] = []
    with ExitStack() as stack:
        for name in names:
            show_progress(f"starting {name}")
            try:
                workers.append(Worker(name, threads))
            except WorkerError as error:
                run["failed"][name] = str(error)
                continue
            stack.callback(workers[-1].close)
            run["versions"][name] = workers[-1].version
        for title, size in sizes.items():
            show_progress(f"{title} elements")
            for worker in workers:
                worker.attempt("setup", size=size)
            times: dict[str, list[float]] = {worker.name: [] for worker in workers}
            for worker in turn_order(workers, rounds):
                times[worker.name].append(worker.attempt("round", seconds=seconds))
            run["failed"] |= {worker.name: worker.error for worker in workers if worker.error}
            workers = [worker for worker in workers if not worker.error]
            run["seconds"][title] = {worker.name: median(times[worker.name]) for worker in workers}
    show_progress("")
    return run


def show_progress(text: str) -> None:
    """Show what is measured, on a terminal only; an empty text removes the line."""
    if is_terminal(sys.stderr):
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def short(value: float) -> str:
    """Format a positive number with three significant digits, and with an exponent from a million on."""
    if value >= 1e6:
        return f"{value:.2e}".replace("e+0", "e")
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]], width: int = 80) -> str:
    """Format a table; columns that exceed the width follow below, with the first column repeated."""
    lines = [head, *rows]
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    widths[0] -= 2      # the other columns begin with a gap
    blocks, start = [], 1
    while start < len(head):
        stop = start + 1
        while stop < len(head) and widths[0] + sum(widths[start : stop + 1]) <= width:
            stop += 1
        blocks.append("\n".join(
            line[0].ljust(widths[0]) + "".join(map(str.rjust, line[start:stop], widths[start:stop])).rstrip()
            for line in lines
        ))
        start = stop
    return "\n\n".join(blocks)


def plot_sizes(sizes: Sequence[float], times: Mapping[str, Sequence[float | None]]) -> Figure:
    """Draw the time per element against the size of the array; `times` has seconds for each contender."""
    figure = plots.make_figure(figsize=(8, 5))
    axes = figure.add_subplot(xscale="log", yscale="log")
    for name, seconds in times.items():
        points = [(n, s / n * 1e9) for n, s in zip(sizes, seconds, strict=True) if s is not None]
        style: Run = {"color": "0.5", "linestyle": "--"} if name == "limit" else {"marker": "o"}
        axes.plot(*zip(*points, strict=True), label=name, markersize=4, **style)
    axes.set(xlabel="elements of the array (float32)", ylabel="time of an Adam step, ns per element")
    axes.grid(which="major", alpha=0.3)
    axes.legend()
    return figure


def report(run: Run) -> str:
    """Return the table and the versions of the libraries."""
    names = list(run["versions"])
    rows = []
    for title, seconds in run["seconds"].items():
        cells = {name: short(time * 1e6) for name, time in seconds.items()}
        for name in cells.keys() - {"limit"} if "limit" in cells else ():
            cells[name] += f" ({short(seconds[name] / seconds['limit'])})"
        rows.append([title, *(cells.get(name, "") for name in names)])
    caption = f"Adam, float32, {plural(run['threads'], 'thread')}: median microseconds per step"
    if "limit" in names:
        caption += ", and in parentheses the\nratio to the memory-bandwidth limit, "
        caption += "an SGD step on as many bytes"
    return "\n".join([
        f"{caption}.\n", text_table(["elements", *names], rows), "", *dict.fromkeys(run["versions"].values()),
        *(f"{name}: {reason}" for name, reason in run["failed"].items()),
    ])


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the options of ``fastopt bench``."""
    add = command.add_argument
    add("--sizes", type=_sizes, default="1e3,1e5,1e6,1e7", metavar="NUMBERS",
        help="numbers of elements of the arrays, comma-separated (default: %(default)s)")
    add("--peers", type=_peers, default="limit,torch,optax,numba,numpy", metavar="NAMES",
        help="libraries to compare with, comma-separated (default: those of %(default)s that are installed)")
    add("--threads", type=positive_int, metavar="N",
        help="number of threads (default: the value of fastopt.get_num_threads())")
    add("--rounds", type=positive_int, default=7, metavar="N",
        help="repetitions per library (default: %(default)s)")
    add("--seconds", type=positive_float, default=0.05, metavar="S",
        help="seconds per repetition (default: %(default)s)")
    add("--plot", metavar="FILE.png", help="draw the time per element against the size of the array")
    add("--json", metavar="FILE.json", help="save the times")


def _sizes(text: str) -> dict[str, int]:
    sizes = {name: bench_worker.parse_size(name) for name in text.split(",")}
    if 0 in sizes.values():
        raise argparse.ArgumentTypeError(f"expected positive numbers as in 1e3,1e5; got {text!r}")
    return sizes


def _peers(text: str) -> list[str]:
    chosen = {*text.split(","), "fastopt"}
    if unknown := sorted(chosen - CONTENDERS.keys()):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(CONTENDERS)}; got {unknown[0]!r}")
    return [name for name in CONTENDERS if name in chosen]


def run(options: argparse.Namespace) -> int:
    """Measure and report; return 1 if fastopt could not be measured."""
    outputs.check_plot(options.plot)
    if options.json:
        outputs.check_writable("--json", options.json)
    threads = options.threads or get_num_threads()
    result = measure(options.sizes, options.peers, threads, options.rounds, options.seconds)
    print(report(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        times = {name: [s.get(name) for s in result["seconds"].values()] for name in result["versions"]}
        plot_sizes([*options.sizes.values()], times).savefig(options.plot, dpi=150)
    return 1 if "fastopt" in result["failed"] else 0
