"""The command line of the benchmarks."""

import argparse
import importlib
import json
import os
import shlex
import sys
from pathlib import Path

from benchmarks import report
from benchmarks.measure import FORMAT, SUITES, measure, merge
from fastopt import get_num_threads
from fastopt.cli.options import positive_float, positive_int

STUDIES = {
    "learning-rates": "find the best learning rate of each optimizer",
    "functions": "time the functions without an optimizer object",
    "formats": "time a step with every number format",
    "ranks": "compare the cost model of fastopt.mpi with measured steps",
    "tables": "write the tables of README and documentation from the saved runs",
    "formats-accuracy": "train with every number format and compare the losses",
    "sparse-rows": "time a step on some rows of a table",
    "torch-steps": "compare optimizers for tensors with those of torch.optim",
    "sklearn-parity": "compare scores and times with the MLPs of scikit-learn",
}


def sentence(purpose):
    """Return the purpose of a command with a capital first letter."""
    return purpose[0].upper() + purpose[1:]


def main(argv=None):
    """Run a command; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure fastopt.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for suite in SUITES.values():
        command = commands.add_parser(suite.name, help=suite.purpose, description=sentence(suite.purpose))
        add_suite(command, suite)
    show = commands.add_parser("show", help="report a saved run again")
    show.add_argument("saved", metavar="FILE", nargs="+", help="a run saved by --json, or its parts")
    show.set_defaults(run=show_saved)
    add_outputs(show)
    for name, purpose in STUDIES.items():
        command = commands.add_parser(name, help=purpose, description=sentence(purpose))
        if argv[:1] == [name]:      # imported only if chosen, as it may need other libraries
            study = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
            study.add_options(command)
            command.set_defaults(run=study.run)
    options = parser.parse_args(argv)
    options.command = f"python -m benchmarks {shlex.join(argv)}"
    try:
        return options.run(options) or 0
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))


def add_suite(command, suite):
    """Declare the options of a suite."""
    add = command.add_argument
    full, quick = suite.full, suite.quick
    add("--list", action="store_true", help="list workloads and contenders")
    add("--workloads", type=names, metavar="NAMES", help="names of --list, or of others like them")
    add("--peers", type=names, metavar="NAMES",
        help="contenders next to fastopt (default: all that are installed)")
    add("--threads", type=counts, metavar="NUMBERS",
        help=f"numbers of threads (default: all cores{', and one' * bool(suite.extra_threads)})")
    add("--quick", action="store_true", help="small workloads, few rounds")
    if suite.whole:
        add("--whole", action="store_true", help=f"all {len(suite.whole)} workloads")
    add("--part", type=part, default=(1, 1), metavar="K/N", help="the K-th of N parts of the workloads")
    add("--rounds", type=positive_int, metavar="N",
        help=f"turns per contender (default: {full.rounds}, quick {quick.rounds})")
    add("--seconds", type=positive_float, metavar="S",
        help=f"length of a turn (default: {full.seconds}, quick {quick.seconds})")
    add("--python", type=pair, action="append", default=[], metavar="PEER=PATH",
        help="interpreter of a contender")
    if quick.size:
        add("--size", metavar="NUMBER", help=f"elements of the array (default: 4e6, quick {quick.size})")
    add("--json", metavar="FILE", help="save the run")
    add_outputs(command, has_plot=suite.plots)
    command.set_defaults(run=run_suite, suite=suite, size=None, plot=None, whole=False)


def add_outputs(command, has_plot=True):
    """Declare the options of reports."""
    add = command.add_argument
    add("--details", action="store_true", help="also print the shortest times and the spread")
    add("--markdown", metavar="FILE", help="write the tables as Markdown")
    if has_plot:
        add("--plot", metavar="FILE.svg",
            help="draw the time per element against the size of the array, or the grid as a heat map")


def names(text):
    return [name for name in text.split(",") if name]


def counts(text):
    return sorted({positive_int(part) for part in text.split(",")})


def pair(text):
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"expected PEER=PATH, got {text!r}")
    return name, path


def part(text):
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected K/N with 1 <= K <= N, got {text!r}")
    return int(number), int(count)


def run_suite(options):
    """Measure a suite and report; return 1 if fastopt could not be measured."""
    suite = options.suite
    if options.list:
        for name, text in [(w.name, f"{w.title}: {w.summary}") for w in suite.workloads] + [
            (name, contender.__doc__.splitlines()[0]) for name, contender in suite.contenders.items()
        ]:
            print(f"{name:25} {text}")
        return 0
    check_outputs(options, suite.name, options.json)
    settings = suite.quick if options.quick else suite.full
    run = measure(
        suite, choose_workloads(options, settings), choose_peers(options.peers, suite),
        options.threads or sorted({*suite.extra_threads, get_num_threads()}),
        rounds=options.rounds or settings.rounds, seconds=options.seconds or settings.seconds,
        limit=settings.limit, pythons=dict(options.python),
        command=without_paths(options.command, options.python),
    )
    if options.json:    # first, so that nothing is lost if a report fails
        Path(options.json).write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    write(run, options)
    return 0 if "fastopt" in report.contenders(run) else 1


def without_paths(command, pythons):
    """Return the command without the paths of interpreters, which mean nothing elsewhere."""
    for name, path in pythons:
        command = command.replace(f"{name}={path}", f"{name}=PATH")
    return command


def choose_workloads(options, settings):
    suite = options.suite
    sweep = suite.quick_sweep if options.quick else suite.sweep
    default = [*(suite.whole if options.whole else settings.workloads)]
    chosen = options.workloads or default + ["sweep"] * bool(options.plot and sweep)
    chosen = [name for given in chosen for name in (sweep if sweep and given == "sweep" else [given])]
    if size := options.size or settings.size:
        chosen = [f"{name}/{size}" for name in chosen]
    number, count = options.part
    return [suite.find(name) for name in [*dict.fromkeys(chosen)][number - 1 :: count]]


def choose_peers(chosen, suite):
    unknown = [name for name in chosen or () if name not in suite.contenders]
    if unknown:
        raise ValueError(f"peers: expected some of {', '.join(suite.contenders)}; got {unknown[0]!r}")
    return [name for name in suite.contenders if chosen is None or name in {*chosen, "fastopt"}]


def show_saved(options):
    runs = []
    for saved in options.saved:
        runs.append(json.loads(Path(saved).read_text(encoding="utf-8")))
        if not isinstance(runs[-1], dict) or runs[-1].get("format") != FORMAT:
            raise ValueError(f"{saved}: expected a run saved by this version of the benchmarks")
    run = merge(runs)
    check_outputs(options, run["suite"])
    write(run, options)


def check_outputs(options, suite_name, *paths):
    """Raise before the measurement if a report cannot be written."""
    if options.plot:
        if suite_name not in report.PLOTS:
            known = " or ".join(report.PLOTS)
            raise ValueError(f"--plot: expected a run of {known}, got one of {suite_name}")
        import matplotlib.figure  # noqa: F401
    for path in (*paths, options.markdown, options.plot):
        if path and not Path(path).parent.is_dir():
            raise ValueError(f"no such directory: {Path(path).parent}")


def write(run, options):
    print(report.text(run, options.details), end="")
    if options.markdown:
        Path(options.markdown).write_text(report.markdown(run), encoding="utf-8")
    if options.plot:
        report.PLOTS[run["suite"]](run, options.plot)


if __name__ == "__main__":
    os.environ.setdefault("MATPLOTLIBRC", str(Path(__file__).parents[1] / "docs" / "matplotlibrc"))
    sys.exit(main())
