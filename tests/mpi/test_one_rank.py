"""What needs no MPI: one rank, the order of sums, and errors."""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest

import fastopt
from fastopt import mpi
from fastopt._core.layout import memory_order, with_layout
from fastopt.mpi.sums import Node, nodes_of, tree_sum
from fastopt.mpi.threads import processors_per_rank


def make_params():
    rng = np.random.default_rng(0)
    return {"W": rng.normal(size=(5, 3)).astype("f4"), "b": rng.normal(size=3)}


def make_grads(seed=1):
    rng = np.random.default_rng(seed)
    return {"W": rng.normal(size=(5, 3)).astype("f4"), "b": rng.normal(size=3)}


def wrap(params, optimizer=fastopt.Adam, *, sharded=False, shards=8, **options):
    return mpi.DistributedOptimizer(optimizer(params, **options), sharded=sharded, shards=shards)


# --- Without MPI ---


def test_ranks():
    assert (mpi.rank(), mpi.size(), mpi.local_rank(), mpi.local_size()) == (0, 1, 0, 1)


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_rank_of_a_job_without_mpi4py(variable):
    program = "import sys; sys.modules['mpi4py'] = None; from fastopt import mpi; print(mpi.size())"
    for n, expected in (("1", "1\n"), ("2", r"pip install 'fastopt[mpi]'")):
        done = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {variable: n}, capture_output=True, text=True,
            check=False,
        )
        assert expected in done.stdout + done.stderr
        assert (done.returncode == 0) == (n == "1")


def test_broadcast_on_one_rank_changes_nothing():
    params = make_params()
    opt = fastopt.Adam(params)
    opt.step(make_grads())
    before = copy.deepcopy(params)
    mpi.broadcast_parameters(params)
    mpi.broadcast_optimizer_state(opt)
    assert all(np.array_equal(params[name], before[name]) for name in params)
    with pytest.raises(ValueError, match="root: expected a rank from 0 to 0, got 1"):
        mpi.broadcast_parameters(params, root=1)


# --- Sums ---


@pytest.mark.parametrize("n_shards", range(1, 18))
def test_sums_do_not_depend_on_the_number_of_ranks(n_shards):
    def add(left, right):
        return f"({left}+{right})"

    root = Node((n_shards - 1).bit_length(), 0)
    for missing in (set(), {0}, {n_shards - 1}, set(range(1, n_shards, 2))):
        shards = {Node(0, k): str(k) for k in range(n_shards) if k not in missing}
        expected = tree_sum(root, shards, add)
        for n_ranks in range(1, n_shards + 1):
            partial = {}
            for r in range(n_ranks):
                own = range(r * n_shards // n_ranks, (r + 1) * n_shards // n_ranks)
                assert sum(2**node.level for node in nodes_of(own)) == len(own)
                partial |= {node: tree_sum(node, shards, add) for node in nodes_of(own)}
            partial = {node: value for node, value in partial.items() if value is not None}
            assert tree_sum(root, partial, add) == expected


@pytest.mark.parametrize("sharded", [False, True])
def test_one_shard_is_an_ordinary_step(sharded):
    expected, params = make_params(), make_params()
    plain, opt = fastopt.Adam(expected), wrap(params, sharded=sharded)
    for seed in range(3):
        plain.step(make_grads(seed), max_norm=0.5)
        assert opt.step(make_grads(seed), max_norm=0.5)
    assert opt.grad_norm == plain.grad_norm and opt.steps == 3
    for name, p in params.items():
        assert np.array_equal(p, expected[name])


def test_weighted_mean():
    params, expected = make_params(), make_params()
    opt, weights = wrap(params, fastopt.SGD, shards=3, lr=1.0), (2.0, 5.0, 1.0)
    for shard, weight in enumerate(weights):
        opt.accumulate(make_grads(shard), shard, weight=weight)
    opt.step()
    for name, p in params.items():
        grads = [make_grads(k)[name] * p.dtype.type(weight) for k, weight in enumerate(weights)]
        assert np.array_equal(p, expected[name] - p.dtype.type(1 / 8) * ((grads[0] + grads[1]) + grads[2]))


def test_split():
    opt = wrap(make_params())
    assert opt.split(17)[:3] == [(0, slice(0, 2)), (1, slice(2, 4)), (2, slice(4, 6))]
    assert opt.split(2) == [(3, slice(0, 1)), (7, slice(1, 2))]
    assert opt.split(0) == []


def test_zero_grad():
    grads = make_grads()
    wrap(make_params()).accumulate(grads, 0, zero_grad=True)
    assert not any(g.any() for g in grads.values())


# --- The optimizer's attributes ---


def test_attributes_are_those_of_the_optimizer():
    opt = wrap(make_params(), lr=0.1)
    opt.lr = 0.2
    opt.steps = 7
    assert opt.opt.groups[0]["lr"] == opt.lr == 0.2 and opt.opt.steps == 7
    with pytest.raises(AttributeError):
        opt.unknown  # noqa: B018
    with pytest.raises(AttributeError):
        opt.averaged()


def test_added_group_and_rebound_arrays():
    params = [np.zeros(3)]
    opt = wrap(params, fastopt.SGD, lr=1.0)
    opt.add_param_group({"params": [np.zeros(2)], "lr": 2.0})
    opt.step([[np.ones(3)], [np.ones(2)]])
    assert [p[0] for p in opt.params[0]["params"]] == [-1.0]
    assert opt.params[1]["params"][0][0] == -2.0


@pytest.mark.parametrize("optimizer", [fastopt.Adam, fastopt.Muon])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_state_of_a_started_optimizer_is_kept(optimizer, is_sharded):
    expected, params = make_params(), make_params()
    plain, inner = optimizer(expected), optimizer(params)
    for own in (plain, inner):
        own.step(make_grads())
    opt = mpi.DistributedOptimizer(inner, sharded=is_sharded)
    plain.step(make_grads(2))
    opt.step(make_grads(2))
    assert all(np.array_equal(params[name], p) for name, p in expected.items())


def test_file(tmp_path):
    params = make_params()
    opt = wrap(params, sharded=True)
    opt.step(make_grads())
    opt.save(tmp_path / "state.npz")
    other = fastopt.Adam(make_params())
    other.load(tmp_path / "state.npz")
    for own, loaded in zip(opt.state, other.state, strict=True):
        assert np.array_equal(np.ravel(own["exp_avg"]), np.ravel(loaded["exp_avg"]))
    with pytest.raises(OSError):
        opt.save(tmp_path)


# --- Errors ---


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shards": 0}, ValueError, "shards: expected at least 1"),
        ({"sharded": 1}, TypeError, "sharded: expected True or False"),
        ({"deterministic": None}, TypeError, "deterministic: expected True or False"),
        ({"comm": 3}, TypeError, "comm: expected a communicator of mpi4py, got int"),
        ({"opt": make_params()}, TypeError, "opt: expected a fastopt optimizer, got dict"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        mpi.DistributedOptimizer(**{"opt": fastopt.Adam(make_params()), **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"shard": 3}, ValueError, "shard: expected a micro-shard from 4 to 7 on rank 0, got 3"),
        ({"shard": 8}, ValueError, "shard: expected a micro-shard from 4 to 7"),
        ({"shard": 4.0}, TypeError, "shard: expected an integer"),
        ({"weight": 0.0}, ValueError, "weight: expected"),
        ({"grads": {"W": np.ones(4)}}, ValueError, r'grads\["W"\]: expected shape'),
        ({"grads": [1]}, TypeError, "grads: expected a dict"),
    ],
)
def test_bad_gradients_change_nothing(arguments, error, message):
    params, expected = make_params(), make_params()
    opt, plain = wrap(params), wrap(expected)
    for own in (opt, plain):
        own.accumulate(make_grads(), 3)
    with pytest.raises(error, match=message):
        opt.accumulate(**{"grads": make_grads(), "shard": 4, **arguments})
    for own in (opt, plain):
        own.accumulate(make_grads(2), 4, weight=2)
        own.step()
    assert all(np.array_equal(params[name], p) for name, p in expected.items())


def test_step_without_gradients():
    opt = wrap(make_params())
    with pytest.raises(ValueError, match="expected gradients of at least one micro-shard"):
        opt.step()
    opt.accumulate(make_grads(), 0)
    with pytest.raises(ValueError, match="grads: expected None after calls of accumulate"):
        opt.step(make_grads())
    with pytest.raises(RuntimeError, match="rebind: not allowed between accumulate and step"):
        opt.rebind(make_params())
    assert opt.step()


def test_rows_and_dense_gradients_cannot_be_mixed():
    opt = wrap(make_params())
    opt.accumulate({"W": fastopt.Rows([1], np.ones((1, 3)))}, 0)
    opt.accumulate(make_grads(), 1)
    with pytest.raises(ValueError, match="expected rows in all micro-shards or in none"):
        opt.step()


def test_what_a_sharded_optimizer_refuses():
    params = [np.zeros((4, 3))]
    opt = wrap(params, sharded=True)
    with pytest.raises(ValueError, match="the parameters of a sharded optimizer are fixed"):
        opt.add_param_group({"params": [np.zeros(2)]})
    with pytest.raises(ValueError, match="the parameters of a sharded optimizer are fixed"):
        opt.rebind([np.zeros((4, 3))])
    with pytest.raises(ValueError, match=r"grads\[0\]: .* takes rows only with sparse='dense'"):
        opt.step([fastopt.Rows([1], np.ones((1, 3)))])
    with pytest.raises(ValueError, match="rowwise: not supported by a sharded optimizer"):
        wrap(params, fastopt.Adagrad, sharded=True, rowwise=True)
    with pytest.raises(ValueError, match=r"exp_avg'\]: expected shape \(4, 3\), got \(3,\)"):
        opt.load_state_dict(
            {"state": {"0": {"step": 1, "exp_avg": np.zeros(3), "exp_avg_sq": np.zeros(3)}}}
        )
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.deepcopy(opt)
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.deepcopy(opt.opt)


# --- Memory and threads ---


@pytest.mark.parametrize("index", [np.s_[:], np.s_[::-1], np.s_[:, ::-1], np.s_[:, :, ::-1]])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_memory_order(axes, index):
    array = np.arange(24).reshape(2, 3, 4).transpose(axes)[index]
    vector = memory_order(array)
    assert np.array_equal(vector, np.arange(24)) and np.shares_memory(vector, array)
    assert np.array_equal(with_layout(vector, array), array)


def test_memory_order_without_axes():
    array = np.array(3.0)
    memory_order(array)[0] = 4.0
    assert array == 4.0


@pytest.mark.parametrize(
    ("available", "quota", "expected"),
    [
        ([range(8)] * 2, np.inf, [4, 4]),
        ([range(8)] * 3, np.inf, [2, 2, 2]),
        ([range(6)] * 3, np.inf, [2, 2, 2]),
        ([range(2)] * 4, np.inf, [1] * 4),
        ([range(4), range(4, 8)], np.inf, [4, 4]),
        ([range(8), range(4, 8)], np.inf, [6, 2]),
        ([range(8)] * 2, 4.0, [2, 2]),
    ],
)
def test_processors_per_rank(available, quota, expected):
    of_ranks = [(frozenset(own), quota) for own in available]
    assert [processors_per_rank(of_ranks, rank) for rank in range(len(of_ranks))] == expected
