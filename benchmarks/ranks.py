"""Measure steps on several ranks and compare them with the cost model: tables of docs/distributed.md.

Each number of ranks is a job of its own, started by ``mpiexec``. The times of the network are measured in it,
those of the gradients and of the update in the job of one rank.
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np

import fastopt
from fastopt import mpi
from fastopt.cli.options import positive_int

# Sizes of the layers, and samples per step.
WORKLOADS = {
    "small": ((784, 64, 10), 8192),
    "medium": ((784, 256, 128, 10), 4096),
    "large": ((784, 1024, 512, 10), 1024),
}
SAMPLES = 16384
RANKS = (1, 2, 4)
EPOCHS = 3              # per measurement
CLUSTER = 20e-6, 8 / 25e9   # latency in seconds, and seconds per byte at 25 Gbit/s
PREDICTED_BATCH = 65_536
CORES = os.cpu_count() or 1


def add_options(command):
    add = command.add_argument
    add("--mpiexec", default=str(Path(sys.executable).with_name("mpiexec")), metavar="PATH")
    add("--rounds", type=positive_int, default=5, help="measurements per size (default: %(default)s)")


def run(options):
    jobs = {n: start(options, n) for n in RANKS}
    network = {n: mpi.Network(*job["network"]) for n, job in jobs.items() if n > 1}
    for n, each in network.items():
        print(f"{n} ranks: alpha {each.alpha * 1e6:.1f} us, beta {1e-9 / each.beta:.2f} GB/s, "
              f"gamma {1e-9 / each.gamma:.1f} GB/s")
    print("\n| parameters | batch size | ranks | measured ms | predicted ms | ratio |\n|" + 6 * "---:|")
    for name, (sizes, batch_size) in WORKLOADS.items():
        n_params = count(sizes)
        compute = {CORES // n: mpi.Compute(*jobs[n]["compute"][name]) for n in RANKS if n <= CORES}
        for n in RANKS:
            (cost,) = mpi.predict(
                n_params, batch_size, compute, network.get(n, mpi.Network(0.0, 0.0)), ranks=[n], cores=CORES,
                ranks_per_machine=n,
            )
            measured = jobs[n]["steps"][name]
            cells = f"{measured * 1e3:.2f} | {cost.seconds * 1e3:.2f} | {cost.seconds / measured:.2f}"
            print(f"| {n_params:,} | {batch_size:,} | {n} | {cells} |")
    print_prediction(jobs, network)
    print(f"\n{json.dumps(jobs)}")


def print_prediction(jobs, network):
    """Print what a cluster of these machines would need, with one rank per core."""
    cluster = mpi.Network(*CLUSTER, network[2].gamma)
    compute = mpi.Compute(*jobs[CORES]["compute"]["large"])
    n_params = count(WORKLOADS["large"][0])
    arguments = n_params, PREDICTED_BATCH, compute, cluster
    whole, sharded, any_order = (
        mpi.predict(*arguments, cores=CORES, ranks_per_machine=CORES, **options)
        for options in ({}, {"sharded": True}, {"deterministic": False})
    )
    print(f"\n{n_params:,} parameters, {PREDICTED_BATCH:,} samples per step, {compute}, {cluster}\n")
    names = (
        "ranks", "ms", "efficiency", "break-even batch size", "sharded ms", "state MB", "total MB",
        "Allreduce ms",
    )
    print(f"| {' | '.join(names)} |\n|{len(names) * '---:|'}")
    for a, b, c in zip(whole, sharded, any_order, strict=True):
        pays = "" if a.pays_from is None else f"{a.pays_from:,}"
        print(f"| {a.ranks:,} | {a.seconds * 1e3:.1f} | {100 * a.efficiency:.0f} % | {pays} | "
              f"{b.seconds * 1e3:.1f} | {b.state_bytes / 1e6:.2f} | {b.total_bytes / 1e6:.1f} | "
              f"{c.seconds * 1e3:.1f} |")


def start(options, n):
    """Run `measure` on n ranks, and return what rank 0 prints."""
    command = [options.mpiexec, "-n", str(n), sys.executable, "-m", "benchmarks.ranks", str(options.rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout)


def count(sizes):
    return sum((m + 1) * n for m, n in itertools.pairwise(sizes))


def measure(rounds):
    """Return the times of this job as numbers: medians of measurements that alternate."""
    fastopt.set_num_threads(max(1, CORES // mpi.size()))
    result = {"steps": {}, "compute": {}}
    if mpi.size() > 1:
        from mpi4py import MPI

        networks = [dataclasses.astuple(mpi.measure_network(MPI.COMM_WORLD)) for _ in range(rounds)]
        result["network"] = np.median(networks, axis=0).tolist()
    for name, (sizes, batch_size) in WORKLOADS.items():
        X, y, net, opt = make(sizes)
        other_net, other_opt = make(sizes)[2:]
        trainer = fastopt.Trainer(net, mpi.DistributedOptimizer(opt))
        steps, computes = [], []
        for _ in range(rounds):
            trainer.fit(X, y, batch_size, epochs=EPOCHS, verbose=0, seed=0, training_accuracy=False)
            steps += trainer.history.history["seconds"][1 - EPOCHS :]
            if mpi.size() <= CORES:
                compute = mpi.measure_compute(
                    other_net, other_opt, X, y, (batch_size // 2, batch_size), epochs=EPOCHS
                )
                computes.append(dataclasses.astuple(compute))
        result["steps"][name] = median(steps) / (len(y) // batch_size)
        if computes:
            result["compute"][name] = np.median(computes, axis=0).tolist()
    return result


def make(sizes):
    rng = np.random.default_rng(0)
    X = rng.random((SAMPLES, sizes[0]), np.float32)
    net = fastopt.MLP(sizes, seed=0)
    return X, rng.integers(10, size=len(X)), net, fastopt.Adam(net.params)


if __name__ == "__main__":
    times = measure(int(sys.argv[1]))
    if mpi.rank() == 0:
        print(json.dumps(times))
