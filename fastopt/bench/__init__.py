"""``fastopt bench``: a step's time beside that of other libraries, and beside what memory allows.

What is timed, and how, is said by a suite: `steps.py`, the step of Adam on many models, `rules.py`, the
step of every rule, or `training.py`, the training of small nets. Every contender runs in a process of
its own (`worker.py`), so that no two thread pools meet. They take short turns, in another order each
round, so that whatever slows the machine for a while slows all; a contender's time is the median over
the rounds.
While one runs, all others are blocked with their threads asleep. All times are also given as ratios
to a yardstick: to "limit", which is no optimizer but the same streams of memory with next to no
arithmetic; or to "floor", which trains nothing but takes the matrix products of a training.

Huge pages are the same for all: NumPy asks for them on its own for arrays from 4 MB on, so glibc is
told to do likewise for whatever another library allocates.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from fastopt._core.threads import get_num_threads
from fastopt.bench import report, rules, steps, training, worker

if TYPE_CHECKING:
    from fastopt.bench.report import Run

    # Median and least time of a step in one turn, by variant.
    Turn = Mapping[str, Mapping[str, float]]

__all__ = ["add_options", "measure", "run"]

FORMAT = 2                      # of the JSON
_N = TypeVar("_N", int, float)
SUITES: dict[str, ModuleType] = {"steps": steps, "rules": rules, "training": training}
OPTIONS = {"rules": "--rules", "training": "--trainer"}     # that ask for a suite
BUSY = 0.05                     # processors busy for others above which times are not to be trusted


class WorkerError(Exception):
    """A contender could not do what it was asked for."""


class Worker:
    """A contender's process.

    Parameters
    ----------
    suite : str
        A key of `SUITES`.
    name : str
        A key of the suite's `CONTENDERS`.
    threads : int
    python : str
        Path of the interpreter, which must have NumPy.

    Attributes
    ----------
    hello : dict
        Its first answer: ``version``, or ``absent`` and the reason.
    """

    def __init__(self, suite: str, name: str, threads: int, python: str) -> None:
        self.name, self.threads = name, threads
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close)
        self.process = subprocess.Popen(
            [python, "-P", worker.__file__, suite, name, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env=_environment(threads),
        )
        try:
            self.hello = self.read()
        except WorkerError:
            self.close()
            raise

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        try:
            print(json.dumps({"do": do, **values}), file=self.process.stdin, flush=True)
        except OSError as error:
            raise WorkerError(f"its process has ended: {self.last_words()}") from error
        answer = self.read()
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None      # it is a pipe
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"its process has ended: {self.last_words()}")
        try:
            answer: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError as error:
            raise WorkerError(f"it answered {line.strip()!r}") from error
        return answer

    def last_words(self) -> str:
        """The last line on its standard error; it has closed its end of the conversation."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.errors.seek(0)
        lines = self.errors.read().split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no message")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def _environment(threads: int) -> dict[str, str]:
    """The environment of a contender: its number of threads, and huge pages for all alike."""
    names = ("OMP", "NUMBA", "OPENBLAS", "MKL", "FASTOPT")
    counts = {f"{name}_NUM_THREADS": str(threads) for name in names}
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    tunables = "glibc.malloc.hugetlb=1"
    return {**kept, **counts, "GLIBC_TUNABLES": tunables, "JAX_PLATFORMS": "cpu"}


# --- Measuring -----------------------------------------------------------------------------------


def measure(
    works: Sequence[Any], names: Sequence[str], threads: list[int], *, suite: str = "steps", rounds: int,
    seconds: float, pythons: Mapping[str, str] | None = None, command: str = "",
    progress: Callable[[str], object] | None = None,
) -> Run:
    """Time contenders at works.

    Parameters
    ----------
    works : list of Work
    names : list of str
        Keys of the suite's `CONTENDERS`.
    threads : list of int
        Numbers of threads; contenders that know one thread only run once.
    suite : str
        A key of `SUITES`.
    rounds : int
        Turns of every contender at every work.
    seconds : float
        What a turn lasts, about.
    pythons : dict of str, optional
        Interpreters of contenders that are not installed beside this one.
    command : str
        Is kept in the result.
    progress : callable, optional
        Is called with a line of text now and then.

    Returns
    -------
    dict
        The run, as ``--json`` writes it: ``suite``, its ``yardstick`` and the ``unit`` of the works'
        amounts in a second, ``date``, ``command``, ``machine``, ``settings``, ``threads``,
        ``versions`` and ``absent`` by contender, ``works``, ``notes``, and
        ``results``: for each work, contender, number of threads (None where there is but one) and
        variant the times of a step in seconds: ``rounds`` (the median of each), their ``median``
        and ``quartiles``, and ``min``.
    """
    progress = progress or (lambda line: None)
    chosen = SUITES[suite]
    run: Run = {
        "format": FORMAT,
        "suite": suite,
        "yardstick": chosen.YARDSTICK,
        "unit": chosen.UNIT,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
        "machine": machine(),
        "settings": {"rounds": rounds, "seconds": seconds},
        "threads": threads,
        "versions": {},
        "absent": {},
        "works": [],
        "results": [],
        "notes": [],
    }
    before = perf_counter(), _busy_all(), _busy_own()
    with contextlib.ExitStack() as stack:
        workers = []
        for name in names:
            progress(f"starting {name}")
            workers += _start(run, stack, name, threads, pythons or {})
        for work in works:
            progress(f"{work.title}")
            _measure_work(run, workers, work, rounds, seconds)
    run["notes"] += _note_others(*before)
    if chosen.YARDSTICK not in run["versions"]:
        run["notes"].append(f"Without the {chosen.YARDSTICK} there are no ratios to it.")
    return run


def _start(
    run: Run, stack: contextlib.ExitStack, name: str, threads: list[int], pythons: Mapping[str, str]
) -> list[Worker]:
    """Processes of a contender, one a number of threads; none if it is not installed."""
    started = []
    python = pythons.get(name) or pythons.get(name.partition("-")[0]) or sys.executable
    threaded = SUITES[run["suite"]].CONTENDERS[name].threaded
    for count in threads if threaded else [max(threads)]:
        try:
            process = Worker(run["suite"], name, count, python)
        except (WorkerError, OSError) as error:
            run["absent"][name] = f"failed to start: {error}"
            return []
        stack.callback(process.close)
        if "absent" in process.hello:
            run["absent"][name] = f"not installed ({process.hello['absent']})"
            return []
        run["versions"][name] = process.hello["version"]
        started.append(process)
    return started


def _measure_work(run: Run, workers: list[Worker], work: Any, rounds: int, seconds: float) -> None:
    contenders = SUITES[run["suite"]].CONTENDERS
    able = [w for w in workers if work.kind in contenders[w.name].kinds]
    needed, there = work.memory(len(able)), _memory_available()
    if there is not None and needed > there:
        run["notes"].append(
            f"{work.title}: left out, as it needs {needed / 2**30:.1f} GiB and {there / 2**30:.1f} "
            "are available. With fewer --peers it needs less."
        )
        return
    run["works"].append(work.record())
    ready = _set_up(run, able, work)
    _compare(run, ready, work)
    times = _take_turns(run, list(ready), work, rounds, seconds)
    run["results"] += _results(work, times, contenders)
    for process in able:
        _ask(run, process, work.title, do="drop")


def _ask(run: Run, process: Worker, title: str, **request: Any) -> dict[str, Any] | None:
    """A contender's answer, or None and a note."""
    try:
        answer = process.ask(**request)
    except WorkerError as error:
        run["notes"].append(f"{process.name} at {title}: {error}")
        return None
    if not answer.get("quiet", True):
        run["notes"].append(f"{process.name} at {title}: its threads go on running when idle")
    return answer


def _set_up(run: Run, workers: list[Worker], work: Any) -> dict[Worker, dict[str, Any]]:
    """Let each make its arrays; their answers by worker."""
    answers = {w: _ask(run, w, work.title, do="setup", work=work.name) for w in workers}
    return {process: answer for process, answer in answers.items() if answer}


def _compare(run: Run, ready: Mapping[Worker, dict[str, Any]], work: Any) -> None:
    """Note who has other parameters, or another loss, than fastopt after the same steps."""
    suite = SUITES[run["suite"]]
    probes = {process: answer["probe"] for process, answer in ready.items() if answer["probe"]}
    expected = next((probe for process, probe in probes.items() if process.name == "fastopt"), None)
    if expected is None:
        return
    for process, probe in probes.items():
        pairs = list(zip(probe, expected, strict=True))
        differing = [(x, y) for x, y in pairs if not abs(x - y) <= suite.TOLERANCE]   # NaN differs
        if differing:
            x, y = differing[0]
            run["notes"].append(
                f"{process.name} at {work.title}: other {suite.PROBED} than fastopt, {x:.9g} for {y:.9g}"
            )


def _take_turns(
    run: Run, workers: list[Worker], work: Any, rounds: int, seconds: float
) -> dict[Worker, list[Turn]]:
    """Times of every round by worker; the one who begins changes from round to round."""
    times: dict[Worker, list[Turn]] = {process: [] for process in workers}
    for turn in range(rounds):
        first = turn % len(workers) if workers else 0
        for process in workers[first:] + workers[:first]:
            answer = _ask(run, process, work.title, do="round", seconds=seconds)
            if answer is None:
                workers = [w for w in workers if w is not process]
                times.pop(process)
            else:
                times[process].append(answer["times"])
    return times


def _results(
    work: Any, times: Mapping[Worker, list[Turn]], contenders: Mapping[str, Any]
) -> Iterator[report.Result]:
    for process, turns in times.items():
        threaded = contenders[process.name].threaded
        for variant in turns[0]:
            medians = [turn[variant]["median"] for turn in turns]
            low, high = _quartiles(medians)
            yield {
                "work": work.name, "contender": process.name,
                "threads": process.threads if threaded else None, "variant": variant,
                "median": median(medians), "quartiles": [low, high],
                "min": min(turn[variant]["min"] for turn in turns), "rounds": medians,
            }


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


# --- The machine ---------------------------------------------------------------------------------


def machine() -> report.Machine:
    """What the times depend on: processor, cores, caches, system."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "caches": _caches(Path("/sys/devices/system/cpu/cpu0/cache")),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "huge pages": _huge_pages(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _caches(root: Path) -> list[report.Cache]:
    """Data caches of the first processor, smallest first; none where the system does not say."""
    found: list[report.Cache] = []
    for index in sorted(root.glob("index*")):
        try:
            kind, level, size, shared = (
                (index / name).read_text().strip()
                for name in ("type", "level", "size", "shared_cpu_list")
            )
        except OSError:
            continue
        if kind != "Instruction":
            found.append({"level": int(level), "bytes": _bytes(size), "cores": _count(shared)})
    return found


def _bytes(size: str) -> int:
    """Bytes of a size as sysfs writes it: ``2048K``."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(size[:-1]) * units[size[-1]] if size[-1] in units else int(size)


def _count(processors: str) -> int:
    """How many processors are in a list like ``0-3,8``."""
    ranges = [part.partition("-")[::2] for part in processors.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, last in ranges)


def _huge_pages() -> str | None:
    try:
        policy = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    return policy.partition("[")[2].partition("]")[0]


def _note_others(start: float, busy: float | None, own: float) -> list[str]:
    """A note if other processes, or other guests of the host, took part of the processors."""
    now = _busy_all()
    if busy is None or now is None:
        return []
    others = (now - busy - _busy_own() + own) / (perf_counter() - start)
    if others <= BUSY:
        return []
    return [f"Other processes kept {others:.2f} processors busy: do not trust these times."]


def _busy_all() -> float | None:
    """Processor seconds spent by the whole machine, or None where the system does not say.

    Time that the host gave to other guests counts as spent.
    """
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _busy_own() -> float:
    """Processor seconds spent by this process and those that it has started and ended."""
    return sum(os.times()[:4])


def _memory_available() -> int | None:
    """Bytes that can be had without swapping, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))


# --- The command line ----------------------------------------------------------------------------


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the options of ``fastopt bench`` on an argparse parser."""
    add = command.add_argument
    suite = command.add_mutually_exclusive_group().add_argument
    suite("--rules", dest="suite", action="store_const", const="rules", default="steps",
          help="time the step of every rule, beside its own limit and torch at its best")
    suite("--trainer", dest="suite", action="store_const", const="training", default="steps",
          help="time the training of small nets, beside its matrix products alone")
    add("--list", action="store_true", help="say which works and peers there are")
    add("--works", type=_names, metavar="NAMES",
        help="comma-separated; 3e4: an array of that size; sweep: many sizes; with --trainer "
        "784-256-10/64: a net and its batch, and after another / the rows of the data; with --rules "
        "adam,lion: these rules")
    add("--size", metavar="NUMBER", help="with --rules: numbers in the array (default 4e6, quick 1e5)")
    add("--peers", type=_names, metavar="NAMES",
        help="whom to measure beside fastopt (default: all installed)")
    add("--threads", type=_counts, metavar="NUMBERS",
        help="numbers of threads, comma-separated (default: all cores; with --rules or --trainer one, too)")
    add("--quick", action="store_true", help="small works, few rounds")
    add("--rounds", type=_positive(int), metavar="N",
        help="turns of every contender (default 15, with --rules or --trainer 7, quick 3)")
    add("--seconds", type=_positive(float), metavar="S",
        help="length of a turn (default 0.05, with --trainer 0.5, quick a fifth or tenth)")
    add("--python", type=_pair, action="append", default=[], metavar="PEER=PATH",
        help="an interpreter that has a peer which this one has not")
    add("--details", action="store_true", help="show the shortest times and the spread, too")
    add("--json", metavar="FILE", help="save the run")
    add("--markdown", metavar="FILE", help="write the tables as Markdown ('-': to the terminal)")
    add("--plot", metavar="FILE.png", help="draw time a number against array size, measuring many")
    add("--from", dest="saved", metavar="FILE", help="measure nothing, show a run saved by --json")


def run(options: argparse.Namespace) -> int:
    """Do what parsed options ask for.

    Returns
    -------
    int
        0; or 1 if fastopt itself could not be measured.

    Raises
    ------
    ValueError, OSError, ImportError
        If an option is wrong; nothing has been measured then.
    """
    if options.list:
        _list()
        return 0
    if options.size and options.suite != "rules":
        raise ValueError("--size: expected --rules beside it")
    _check_outputs(options)
    saved = _saved(options.saved) if options.saved else None
    result = saved or _measured(options)
    _write(result, options)
    return 0 if "fastopt" in report.contenders(result) else 1


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _counts(text: str) -> list[int]:
    counts = sorted({_positive(int)(part) for part in text.split(",")})
    return counts


def _positive(number: Callable[[str], _N]) -> Callable[[str], _N]:
    def convert(text: str) -> _N:
        value = number(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    convert.__name__ = f"positive {number.__name__}"
    return convert


def _pair(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"expected PEER=PATH, got {text!r}")
    return name, path


def _list() -> None:
    for name, suite in SUITES.items():
        print(" ".join([name.capitalize(), *([f"({OPTIONS[name]})"] if name in OPTIONS else [])]) + "\n")
        for work in suite.WORKS:
            print(f"{work.name:16} {work.title}: {work.summary}")
        if suite.SWEEP:
            print(f"{'sweep':16} one array of {', '.join(suite.SWEEP)}")
        print()
        for name, contender in suite.CONTENDERS.items():
            print(f"{name:16} {contender.__doc__.splitlines()[0]}")
        print()


def _measured(options: argparse.Namespace) -> Run:
    chosen = SUITES[options.suite]
    defaults = chosen.QUICK if options.quick else chosen.FULL
    progress = _show_progress if sys.stderr.isatty() else None
    result = measure(
        _chosen_works(options, chosen, defaults),
        _chosen_peers(options.peers, chosen.CONTENDERS),
        options.threads or sorted({*chosen.EXTRA_THREADS, get_num_threads()}),
        suite=options.suite,
        rounds=options.rounds or defaults["rounds"],
        seconds=options.seconds or defaults["seconds"],
        pythons=dict(options.python),
        command=_command(options.argv, options.python),
        progress=progress,
    )
    if progress:
        progress("")
    return result


def _command(argv: Sequence[str], pythons: Iterable[tuple[str, str]]) -> str:
    """What was typed, without where the interpreters lie: that means nothing elsewhere."""
    command = shlex.join(["fastopt", *argv])
    for name, path in pythons:
        command = command.replace(f"{name}={path}", f"{name}=PATH")
    return command


def _show_progress(line: str) -> None:
    print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def _chosen_works(options: argparse.Namespace, suite: ModuleType, defaults: Mapping[str, Any]) -> list[Any]:
    names = options.works
    if names is None:
        names = [*defaults["works"], *(["sweep"] if options.plot else [])]
    sweep = suite.QUICK_SWEEP if options.quick else suite.SWEEP
    names = [one for name in names for one in (sweep if sweep and name == "sweep" else [name])]
    size = options.size or defaults.get("size")
    if size:
        names = [f"{name}/{size}" for name in names]
    return [suite.find_work(name) for name in dict.fromkeys(names)]


def _chosen_peers(names: list[str] | None, contenders: Mapping[str, Any]) -> list[str]:
    if names is None:
        return list(contenders)
    unknown = [name for name in names if name not in contenders]
    if unknown:
        raise ValueError(f"peers: expected some of {', '.join(contenders)}, got {unknown[0]!r}")
    return [name for name in contenders if name in {*names, "fastopt"}]


def _saved(path: str) -> Run:
    run: Run = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        raise ValueError(f"--from: {path} is not a run saved by this version of fastopt bench")
    return run


def _check_outputs(options: argparse.Namespace) -> None:
    """Raise now rather than after all that measuring."""
    if options.plot:
        if options.suite != "steps":
            raise ValueError(f"--plot: expected no {OPTIONS[options.suite]}, of which there is no plot")
        report.load_figure()
    for path in (options.json, options.markdown, options.plot):
        if path and not Path(path).parent.is_dir():
            raise ValueError(f"no such directory: {Path(path).parent}")


def _write(run: Run, options: argparse.Namespace) -> None:
    """The run's JSON first: what else goes wrong can be tried again from it."""
    if options.json:
        Path(options.json).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    if options.markdown == "-":
        print(report.markdown(run), end="")
    else:
        print(report.table(run, options.details), end="")
    if options.markdown and options.markdown != "-":
        Path(options.markdown).write_text(report.markdown(run), encoding="utf-8")
    if options.plot:
        report.plot(run, options.plot)
