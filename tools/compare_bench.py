"""Compare the speed of two installations of fastopt, and print a table of ratios in Markdown.

`fastopt bench` runs alternately in both, in alternating order, so that a temporary slowdown of the machine
affects both. A time is the median over the runs. A ratio below 1 means that the second installation is
faster. The last column is the range of the ratios of neighboring runs; a ratio within it may be noise.

Usage: python tools/compare_bench.py PYTHON PYTHON [FILE]

The first two arguments are interpreters that have fastopt installed. The table is also written to FILE.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

# Representative workloads of steps and of training runs that are quick to measure.
SUITES = (
    ["--works", "1e3,1e5,1e6,mlp,100x1024,clip-mlp", "--rounds", "5"],
    ["--trainer", "--works", "fashion-128,digits-32", "--rounds", "3", "--threads", "1"],
)
RUNS = 5


def main(pythons, *paths):
    times = {}
    for run in range(RUNS):
        for index in (0, 1) if run % 2 == 0 else (1, 0):
            for suite in SUITES:
                for workload, seconds in measure(pythons[index], suite).items():
                    times.setdefault(workload, ([], []))[index].append(seconds)
    text = "\n".join(table(times))
    print(text)
    for path in paths:
        Path(path).write_text(text + "\n", encoding="utf-8")


def measure(python, options):
    """Return seconds per step by workload and number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        subprocess.run(
            [python, "-P", "-m", "fastopt", "bench", *options, "--peers", "fastopt", "--json", str(path)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        run = json.loads(path.read_text())
    titles = {work["name"]: work["title"] for work in run["works"]}
    return {
        f"{titles[result['work']]}; threads: {result['threads']}": result["median"]
        for result in run["results"]
    }


def table(times):
    """Yield lines of Markdown; workloads that only one installation has are omitted."""
    yield "| workload | before, µs | after, µs | ratio | range |"
    yield "|---|---:|---:|---:|---:|"
    for workload, (before, after) in times.items():
        if before and after:
            ratios = [b / a for a, b in zip(before, after, strict=True)]
            yield (
                f"| {workload} | {median(before) * 1e6:.1f} | {median(after) * 1e6:.1f} "
                f"| **{median(ratios):.2f}** | {min(ratios):.2f} to {max(ratios):.2f} |"
            )


if __name__ == "__main__":
    main(sys.argv[1:3], *sys.argv[3:])
