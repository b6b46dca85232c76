"""A run of a suite: every contender in a process of its own, in turns.

The contenders take short turns, in another order in each round, so that a disturbance slows all of them; a
time is the median over the rounds. While one runs, the others wait for a request and their threads sleep.
Tables also give the ratio to a yardstick: for steps the limit, the same memory streams with almost no
arithmetic; for training the floor, the matrix products alone.
"""

import json
import math
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

from benchmarks import estimators, grid, machine, optimizers, steps, training
from fastopt.cli import bench_worker
from fastopt.cli.bench import Worker, WorkerError, show_progress, turn_order

FORMAT = 3      # of a saved run
SUITES = {suite.SUITE.name: suite.SUITE for suite in (steps, optimizers, training, grid, estimators)}
PROGRAM = Path(__file__).with_name("worker.py")

# Seconds before each turn: idle threads of OpenBLAS run for up to 0.13 s before they sleep.
PAUSE = 0.15


def measure(
    suite, workloads, names, threads, *, rounds, seconds, limit=math.inf, pythons=None, command=""
):
    """Time contenders at workloads.

    Parameters
    ----------
    suite : Suite
    workloads : list
    names : list of str
        Keys of the suite's contenders.
    threads : list of int
        Numbers of threads; contenders that know one thread only run once.
    rounds : int
        Turns per contender and workload.
    seconds : float
        Approximate length of a turn.
    limit : float
        Seconds after which a workload gets no further turns, but at least two.
    pythons : dict of str to str, optional
        Interpreters by contender, or by the name of the library before a dash.
    command : str
        Is saved in the result.

    Returns
    -------
    dict
        The run as ``--json`` saves it. Its ``results`` have for each workload, contender, number of threads
        (None for contenders that know one thread only) and variant the seconds per step: the median of each
        round, ``rounds``, their ``median``, and ``min``.
    """
    run = {
        "format": FORMAT, "suite": suite.name, "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command, "machine": machine.describe(), "settings": {"rounds": rounds, "seconds": seconds},
        "threads": threads, "versions": {}, "absent": {}, "workloads": [], "results": [], "notes": [],
    }
    disturbance = machine.Disturbance()
    with ExitStack() as stack:
        workers = []
        for name in names:
            show_progress(f"starting {name}")
            workers += start(run, suite, name, threads, pythons or {}, stack)
        for workload in workloads:
            show_progress(workload.title)
            Measurement(run, suite, workload).measure(workers, rounds, seconds, limit)
    show_progress("")
    run["notes"] += disturbance.notes()
    if suite.yardstick not in run["versions"]:
        run["notes"].append(f"Without the {suite.yardstick} there are no ratios to it.")
    return run


def merge(runs):
    """Return one run with the results of several runs of a suite, which measured parts of its workloads."""
    first, *others = runs
    merged = json.loads(json.dumps(first))
    for run in others:
        for name in ("suite", "threads", "settings", "machine"):
            if run[name] != first[name]:
                raise ValueError(f"show: expected the same {name}, got {first[name]} and {run[name]}")
        known = {workload["name"] for workload in merged["workloads"]}
        if twice := known.intersection(workload["name"] for workload in run["workloads"]):
            raise ValueError(f"show: expected runs of different workloads, got {sorted(twice)[0]!r} twice")
        for name in ("workloads", "results"):
            merged[name] += run[name]
        merged["notes"] += [note for note in run["notes"] if note not in merged["notes"]]
        for name in ("versions", "absent"):
            merged[name] |= run[name]
    return merged


def start(run, suite, name, threads, pythons, stack):
    """Return the processes of a contender, one per number of threads; none if its library is missing."""
    workers = []
    program = [str(PROGRAM), bench_worker.__file__, suite.name]
    python = pythons.get(name) or pythons.get(name.partition("-")[0])
    for count in threads if suite.contenders[name].threaded else [max(threads)]:
        try:
            workers.append(Worker(name, count, program, python))
        except (WorkerError, OSError) as error:
            run["absent"][name] = str(error)
            return []
        stack.callback(workers[-1].close)
    run["versions"][name] = workers[0].version
    return workers


class Measurement:
    """The measurement of one workload; results and notes are appended to the run."""

    def __init__(self, run, suite, workload):
        self.run, self.suite, self.workload = run, suite, workload

    def measure(self, workers, rounds, seconds, limit=math.inf):
        able = [worker for worker in workers if self.is_able(worker)]
        needed, available = self.workload.memory(len(able)), machine.memory_available()
        if available is not None and needed > available:
            self.note(
                f"left out, since it needs {needed / 2**30:.1f} GiB and {available / 2**30:.1f} are "
                "available. With fewer --peers it needs less."
            )
            return
        self.run["workloads"].append(self.workload.record())
        for worker in able:
            worker.error, worker.idle = "", True        # not those of the previous workload
        probes = {worker: worker.attempt("setup", workload=self.workload.name) for worker in able}
        self.compare({worker: probe for worker, probe in probes.items() if probe})
        turns = {worker: [] for worker in able}
        start = perf_counter()
        for i, worker in enumerate(turn_order(able, rounds)):
            if i % len(able) == 0 and i >= 2 * len(able) and perf_counter() - start > limit:
                break
            sleep(PAUSE)
            turns[worker].append(worker.attempt("round", seconds=seconds))
        for worker in able:
            if not worker.idle:
                self.note("its threads keep running when idle", worker)
            if worker.error:
                self.note(worker.error, worker)
            else:
                self.append_results(worker, turns[worker])
            worker.attempt("drop")

    def is_able(self, worker):
        contender = self.suite.contenders[worker.name]
        has_fewer_threads = contender.threaded and worker.threads < max(self.run["threads"])
        is_left_out = has_fewer_threads and self.suite.is_large(self.workload)
        return contender.supports(self.workload) and not is_left_out

    def note(self, text, worker=None):
        title = self.workload.title
        self.run["notes"].append(f"{worker.name} at {title}: {text}" if worker else f"{title}: {text}")

    def compare(self, probes):
        """Add a note for each contender whose probe differs from that of fastopt."""
        expected = next((probe for worker, probe in probes.items() if worker.name == "fastopt"), None)
        for worker, actual in probes.items() if expected else ():
            pairs = zip(actual, expected, strict=True)
            differing = [(x, y) for x, y in pairs if not abs(x - y) <= self.suite.tolerance]    # NaN differs
            if differing:
                x, y = differing[0]
                self.note(f"{self.suite.compared}: expected {y:.9g} as fastopt, got {x:.9g}", worker)

    def append_results(self, worker, turns):
        threaded = self.suite.contenders[worker.name].threaded
        for variant in turns[0]:
            medians = [turn[variant]["median"] for turn in turns]
            self.run["results"].append({
                "workload": self.workload.name, "contender": worker.name,
                "threads": worker.threads if threaded else None, "variant": variant,
                "median": median(medians), "min": min(turn[variant]["min"] for turn in turns),
                "rounds": medians,
            })
