"""Compare the speed of two installations of fastopt, and print a table of ratios in Markdown.

The benchmarks of this tree measure both in turns, the first one changing, so that a disturbance slows both.
A time is the median over the runs; a ratio below 1 means that the second installation is faster. The range
is that of the ratios of neighboring runs: a difference within it is noise.

Usage: python tools/compare_bench.py PYTHON PYTHON [FILE]      interpreters that have fastopt; also into FILE
"""

import sys
from pathlib import Path
from statistics import median

sys.path.append(str(Path(__file__).parents[1]))     # last, so that fastopt is the installed one

from benchmarks.measure import SUITES, measure
from fastopt import get_num_threads

# Workloads that are quick to measure.
WORKLOADS = (
    ("steps", "1e3,1e5,1e6,mlp,100x1024,clip-mlp", {"rounds": 5, "seconds": 0.05}),
    ("training", "fashion-128,digits-32", {"rounds": 3, "seconds": 0.5, "threads": [1]}),
)
RUNS = 5


def main(pythons, *paths):
    times = {}
    for run in range(RUNS):
        for which in (0, 1) if run % 2 == 0 else (1, 0):
            for workloads in WORKLOADS:
                for title, seconds in times_of(pythons[which], *workloads):
                    times.setdefault(title, ([], []))[which].append(seconds)
    text = "\n".join(table(times))
    print(text)
    for path in paths:
        Path(path).write_text(text + "\n", encoding="utf-8")


def times_of(python, name, workloads, settings):
    """Yield the titles of workloads, with the number of threads, and the seconds per step."""
    suite = SUITES[name]
    run = measure(
        suite, [suite.find(workload) for workload in workloads.split(",")], ["fastopt"],
        pythons={"fastopt": python}, **{"threads": [get_num_threads()], **settings},
    )
    if "fastopt" not in run["versions"]:
        raise SystemExit(f"{python}: {run['absent']['fastopt']}")
    titles = {workload["name"]: workload["title"] for workload in run["workloads"]}
    for result in run["results"]:
        yield f"{titles[result['workload']]}; threads: {result['threads']}", result["median"]


def table(times):
    """Yield lines of Markdown; workloads that one of the two does not have are left out."""
    yield "| workload | before, µs | after, µs | ratio | range |"
    yield "|---|---:|---:|---:|---:|"
    for title, (before, after) in times.items():
        if before and after:
            ratios = [b / a for a, b in zip(before, after, strict=True)]
            yield (
                f"| {title} | {median(before) * 1e6:.1f} | {median(after) * 1e6:.1f} "
                f"| **{median(ratios):.2f}** | {min(ratios):.2f} to {max(ratios):.2f} |"
            )


if __name__ == "__main__":
    main(sys.argv[1:3], *sys.argv[3:])
