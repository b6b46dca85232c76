"""Kill a rank of training runs at random moments, and resume them on another number of ranks.

Each run ends with a model that must be equal byte for byte to that of a run in one process that was never
stopped. All other ranks must have ended, with a message and a status other than 0, within 10 seconds.

Usage: python tools/kill_ranks.py [--kills 20] [--seed 0] [--mpiexec PATH]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_TRAIN = (sys.executable, "-m", "fastopt", "train")
_OPTIONS = ("--epochs=20", "--batch-size=128", "--dropout=0.2", "--norm=batch", "--ema=0.9", "--save-freq=10")
_RANKS = (1, 2, 3, 4)
_LIMIT = 10.0   # seconds


def ranks_of(job: int) -> list[int]:
    """Return the processes of the ranks of a job, by their environment variable with the run's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"FASTOPT_JOB={job}".encode() in environment and b"fastopt" in command and command[1] == b"-m":
                found.append(int(entry.name))
    return sorted(found)


def main() -> None:
    """Print how many runs were killed, and after how many seconds the last rank had ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mpiexec", default=str(Path(sys.executable).with_name("mpiexec")))
    args = parser.parse_args()
    rng, longest, kills, runs, spent = random.Random(args.seed), 0.0, 0, 0, 3.0
    with tempfile.TemporaryDirectory() as root:
        expected = Path(root, "expected")
        subprocess.run(
            [*_TRAIN, *_OPTIONS, "--micro-shards=8", "--out", expected], check=True, capture_output=True
        )
        run = Path(root, "run")
        while kills < args.kills:
            where = ["--resume", run] if (run / "config.toml").exists() else [*_OPTIONS, "--out", run]
            n = rng.choice(_RANKS[1:])
            job = rng.getrandbits(40)
            start = time.monotonic()
            process = subprocess.Popen(
                [args.mpiexec, "-n", str(n), *_TRAIN, *where], stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, env=os.environ | {"FASTOPT_JOB": str(job)},
            )
            time.sleep(rng.uniform(0.0, 1.2 * spent))
            victims = ranks_of(job)
            if len(victims) == n and process.poll() is None:
                killed_at = time.monotonic()
                os.kill(rng.choice(victims), signal.SIGKILL)
                output = process.communicate()[0]
                if process.returncode:
                    assert b"signal 9" in output, output
                    while ranks_of(job):
                        time.sleep(0.02)
                    longest = max(longest, time.monotonic() - killed_at)
                    assert longest < _LIMIT, f"{longest} s"
                    kills += 1
                    continue
            output = process.communicate()[0]
            assert process.returncode == 0, output
            spent, runs = time.monotonic() - start, runs + 1
            check(run, expected)
        if run.exists():
            n = rng.choice(_RANKS)
            launcher = [args.mpiexec, "-n", str(n)] if n > 1 else []
            subprocess.run([*launcher, *_TRAIN, "--resume", run], check=True, capture_output=True)
            runs += 1
            check(run, expected)
    print(f"{kills} kills in {runs} runs; the last rank ended after at most {longest:.1f} s")


def check(run: Path, expected: Path) -> None:
    """Compare the model of a run, and remove the run."""
    assert (run / "model.npz").read_bytes() == (expected / "model.npz").read_bytes(), "the models differ"
    for path in run.iterdir():
        path.unlink()
    run.rmdir()


if __name__ == "__main__":
    main()
