"""The cost model of training on many ranks."""

import itertools
import math

import numpy as np
import pytest
from mpi.launch import launch_python, needs_mpi

import fastopt
from fastopt import mpi

COMPUTE = mpi.Compute(fixed=1e-3, per_sample=1e-5, step=2e-3)
NETWORK = mpi.Network(alpha=1e-5, beta=1e-9, gamma=1e-10)
FREE = mpi.Network(0.0, 0.0)


def one(ranks, batch_size=1024, network=NETWORK, n_params=1_000_000, **options):
    (cost,) = mpi.predict(n_params, batch_size, COMPUTE, network, ranks=[ranks], **options)
    return cost


@pytest.mark.parametrize("ranks", (2, 3, 8, 1000))
@pytest.mark.parametrize("nbytes", (1000, 100_000, 10_000_000))
def test_collectives(ranks, nbytes):
    """Thakur, Rabenseifner and Gropp 2005, sections 4 and 5, written out."""
    a, b, g, lg = 1e-5, 1e-9, 1e-10, math.ceil(math.log2(ranks))
    part = (ranks - 1) / ranks * nbytes
    few = lg if nbytes < 524_288 else ranks - 1
    assert NETWORK.alltoall(ranks, nbytes) == pytest.approx((ranks - 1) * a + part * b)
    assert NETWORK.allgather(ranks, nbytes) == pytest.approx(few * a + part * b)
    assert NETWORK.reduce_scatter(ranks, nbytes) == pytest.approx(few * a + part * (b + g))
    whole = lg * (a + nbytes * (b + g)) if nbytes <= 1024 else 2 * lg * a + 2 * part * b + part * g
    assert NETWORK.allreduce(ranks, nbytes) == pytest.approx(whole)


def test_parts_add_up():
    for cost in mpi.predict(1_000_000, 1024, COMPUTE, NETWORK):
        assert cost.seconds == pytest.approx(cost.compute + cost.communication + cost.update)
        assert cost.efficiency == pytest.approx(cost.speedup / cost.ranks)
    assert [cost.ranks for cost in mpi.predict(10, 1, COMPUTE, NETWORK)] == [2**k for k in range(11)]


def test_one_rank_is_what_was_measured():
    cost = one(1)
    assert (cost.compute, cost.communication, cost.update) == (8e-3 + 1024e-5, 0.0, 2e-3)
    assert (cost.speedup, cost.efficiency, cost.pays_from) == (1.0, 1.0, None)


@pytest.mark.parametrize(("ranks", "own"), [(2, 4), (3, 3), (8, 1), (16, 1)])
def test_slowest_rank_counts(ranks, own):
    assert one(ranks).compute == pytest.approx(own * (1e-3 + 1e-5 * 1024 / max(8, ranks)))


def test_micro_shards_without_samples_cost_nothing():
    assert one(1, batch_size=3).compute == pytest.approx(3 * (1e-3 + 1e-5))


def test_ranks_share_cores():
    assert one(4, cores=2, ranks_per_machine=4).compute == pytest.approx(2 * one(4).compute)
    assert one(4, cores=2).compute == pytest.approx(one(4).compute)     # on two machines
    threads = {1: COMPUTE, 2: mpi.Compute(5e-4, 5e-6, 1e-3)}
    (cost,) = mpi.predict(10, 800, threads, FREE, ranks=[1], cores=2)
    assert cost.compute == pytest.approx(8 * (5e-4 + 5e-6 * 100))


def test_sharded_state():
    for cost in mpi.predict(1_000_000, 1024, COMPUTE, NETWORK, sharded=True):
        assert cost.update == pytest.approx(2e-3 / cost.ranks)
        assert cost.state_bytes == pytest.approx(8e6 / cost.ranks)
    assert one(4).state_bytes == 8e6


@pytest.mark.parametrize(
    ("ranks", "vectors"), [(1, 2 + 4), (2, 2 + 3 + 1), (4, 2 + 2 + 1), (8, 2 + 1 + 1), (64, 2 + 1 + 1)]
)
def test_memory(ranks, vectors):
    """Parameters and gradients, the sums of 8, 4, 2 and 1 micro-shards in a tree, and what is received."""
    cost = one(ranks)
    assert cost.total_bytes == cost.state_bytes + 4e6 * vectors


def test_allreduce_needs_fewer_messages():
    assert one(1024, deterministic=False).communication < one(1024).communication / 3
    sharded = one(1024, deterministic=False, sharded=True)
    assert one(1024, deterministic=False).communication < sharded.communication <= one(1024).communication


@pytest.mark.parametrize("options", ({}, {"sharded": True}, {"deterministic": False}))
def test_batch_size_from_which_more_ranks_pay(options):
    costs = mpi.predict(1_000_000, 1024, COMPUTE, NETWORK, ranks=(4, 16, 64, 256), **options)
    for fewer, more in itertools.pairwise(costs):
        for batch_size, pays in ((more.pays_from - 1, False), (more.pays_from, True)):
            if batch_size:
                first, second = (one(cost.ranks, batch_size, **options) for cost in (fewer, more))
                assert (second.seconds < first.seconds) == pays


def test_more_ranks_than_cores_never_pay():
    costs = mpi.predict(1000, 64, COMPUTE, NETWORK, ranks=(1, 2, 4), cores=1, ranks_per_machine=4)
    assert [cost.pays_from for cost in costs] == [None, None, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_params": 0}, "n_params: expected at least 1"),
        ({"batch_size": 2.5}, "batch_size: expected an integer"),
        ({"compute": {2: COMPUTE}}, "compute: expected an entry for one thread"),
        ({"ranks": [0]}, "ranks: expected at least 1"),
        ({"cores": 0}, "cores: expected at least 1"),
        ({"state_bytes": -1.0}, "state_bytes"),
    ],
)
def test_bad_input(change, message):
    arguments = {"n_params": 10, "batch_size": 10, "compute": COMPUTE, "network": NETWORK} | change
    with pytest.raises((ValueError, TypeError), match=message):
        mpi.predict(**arguments)


@pytest.mark.parametrize("make", (mpi.Network, mpi.Compute))
def test_negative_times(make):
    with pytest.raises(ValueError, match=r"alpha|fixed"):
        make(-1.0, 0.0, 0.0)


def test_measured_compute():
    X = np.random.default_rng(0).normal(size=(256, 10)).astype("f4")
    y = (X[:, 0] > 0).astype(int)
    net = fastopt.MLP([10, 8, 2], seed=0)
    measured = mpi.measure_compute(net, fastopt.Adam(net.params), X, y, (64, 128), epochs=2)
    assert measured.step > 0.0 and measured.fixed + measured.per_sample > 0.0
    with pytest.raises(ValueError, match="batch_sizes: expected two ascending numbers up to 256"):
        mpi.measure_compute(net, fastopt.Adam(net.params), X, y, (64, 512))


@needs_mpi
def test_measured_network():
    program = (
        "from mpi4py import MPI; from fastopt import mpi\n"
        "network = mpi.measure_network(MPI.COMM_WORLD, [1 << 10, 1 << 14, 1 << 18], repetitions=3)\n"
        "assert network.alpha > 0 or network.beta > 0; assert network.gamma > 0\n"
        "assert len(set(MPI.COMM_WORLD.allgather(network))) == 1\n"
    )
    launch_python(2, "-c", program)
