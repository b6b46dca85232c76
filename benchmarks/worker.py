"""The program of a contender's process, possibly under a Python without fastopt.

Arguments: path of `fastopt/cli/bench_worker.py`, suite, contender, number of threads.
"""

import gc
import importlib
import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType


class SuiteServer:
    """The requests that a contender's process accepts."""

    def __init__(self, suite, name, threads):
        self.suite = suite
        self.make_contender = partial(suite.contenders[name], int(threads))
        self.bench = None

    def handshake(self):
        return self.make_contender().version

    def setup(self, workload):
        """Allocate the arrays of a workload, after those of the previous one are freed; return the probe."""
        self.drop()
        self.bench = self.suite.bench(self.make_contender(), self.suite.find(workload))
        return self.bench.probe

    def round(self, seconds):
        """Return median and shortest time per step for each variant."""
        return self.bench.round(seconds)

    def drop(self):
        self.bench = None
        gc.collect()


def main(bench_worker, suite, *args):
    spec = importlib.util.spec_from_file_location("fastopt.cli.bench_worker", bench_worker)
    shared = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shared)
    # The repository is not on the path, where its folder of fastopt would hide the installed one.
    package = sys.modules["benchmarks"] = ModuleType("benchmarks")
    package.__path__ = [str(Path(__file__).parent)]
    shared.serve(SuiteServer, importlib.import_module(f"benchmarks.{suite}").SUITE, *args)


if __name__ == "__main__":
    main(*sys.argv[1:])
