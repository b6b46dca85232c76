"""Tests of benchmarks/, which is in the repository and the source archive but not in a wheel."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))     # last, so that the tested fastopt is the installed one


def make_result(workload, contender, threads, median, variant="step"):
    """Return a result of a saved run."""
    return {
        "workload": workload, "contender": contender, "threads": threads, "variant": variant,
        "median": median, "min": 0.8 * median, "rounds": [0.9 * median, median, 1.1 * median],
    }


@pytest.fixture
def make_run():
    """Return a function that makes a saved run of invented results."""
    def make(suite, workloads, results):
        return {
            "format": 3, "suite": suite, "date": "2000-01-01 00:00 UTC",
            "command": "python -m benchmarks steps",
            "machine": {
                "cpu": "Some CPU", "cores": 2, "system": "Linux", "python": "3.11.0",
                "caches": [
                    {"level": 1, "bytes": 49152, "cores": 1}, {"level": 3, "bytes": 33554432, "cores": 2},
                ],
            },
            "settings": {"rounds": 3, "seconds": 1}, "threads": [1, 2],
            "versions": dict.fromkeys([contender for _, contender, *_ in results], "1.0"),
            "absent": {"thinc": "No module named 'thinc'"}, "notes": ["Something happened."],
            "workloads": [workload.record() for workload in workloads],
            "results": [make_result(*result) for result in results],
        }

    return make


@pytest.fixture
def rows_of():
    """Return a function that splits the rows of Markdown tables whose title is given."""
    def find(markdown, title):
        lines = [line for line in markdown.splitlines() if line.startswith(f"| {title} ")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    return find
