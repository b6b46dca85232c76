"""Compare the speed of two installations of fastopt, and print a table of ratios in Markdown.

`fastopt bench` runs in both, in turns, who begins changing, so that what slows the machine for a while
slows both. A time is the median over the runs; a ratio below 1 says that the second is faster. Beside it
stands the range of the ratios of neighboring runs: what it does not leave is no more than noise.

Usage: python tools/compare_bench.py PYTHON PYTHON [FILE]      interpreters that have fastopt; also into FILE
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

# Works of a step, and of a training, that are as quick to measure as they are telling.
SUITES = (
    ["--works", "1e3,1e5,1e6,mlp,100x1024,clip-mlp", "--rounds", "5"],
    ["--trainer", "--works", "fashion-128,digits-32", "--rounds", "3", "--threads", "1"],
)
RUNS = 5


def main(pythons, *paths):
    times = {}
    for run in range(RUNS):
        for which in (0, 1) if run % 2 == 0 else (1, 0):
            for suite in SUITES:
                for work, seconds in measure(pythons[which], suite).items():
                    times.setdefault(work, ([], []))[which].append(seconds)
    text = "\n".join(table(times))
    print(text)
    for path in paths:
        Path(path).write_text(text + "\n", encoding="utf-8")


def measure(python, options):
    """Seconds of a step by the title of its work and the number of threads, a dict of float."""
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
    """Lines of Markdown; works that one of the two does not have are left out."""
    yield "| work | before, µs | after, µs | ratio | range |"
    yield "|---|---:|---:|---:|---:|"
    for work, (before, after) in times.items():
        if before and after:
            ratios = [b / a for a, b in zip(before, after, strict=True)]
            yield (
                f"| {work} | {median(before) * 1e6:.1f} | {median(after) * 1e6:.1f} "
                f"| **{median(ratios):.2f}** | {min(ratios):.2f} to {max(ratios):.2f} |"
            )


if __name__ == "__main__":
    main(sys.argv[1:3], *sys.argv[3:])
