"""Uses of `fastopt.mpi` as with Horovod, and errors, on several ranks; each rank checks the results."""

import numpy as np

import fastopt
from fastopt import mpi
from fastopt.nn._core.blas import blas

RANK, SIZE = mpi.rank(), mpi.size()


def raises(error, message, function, *args, **kwargs):
    """Check that a call raises an error on this rank."""
    try:
        function(*args, **kwargs)
    except error as raised:
        assert message in str(raised), raised
    else:
        raise AssertionError(f"expected {error.__name__}: {message}")


def same_on_all_ranks(opt, arrays):
    return len({array.tobytes() for own in opt.ranks.allgather(list(arrays)) for array in own}) == len(arrays)


def step_with_a_gradient_of_each_rank():
    """The mean over the ranks is weighted."""
    for deterministic in (True, False):
        for sharded in (False, True):
            p = np.zeros(20000)
            opt = mpi.DistributedOptimizer(
                fastopt.SGD(p, lr=1.0), deterministic=deterministic, sharded=sharded
            )
            opt.step(np.full(20000, float(RANK)), weight=RANK + 1.0)
            ranks = np.arange(SIZE)
            np.testing.assert_allclose(p, -np.average(ranks, weights=ranks + 1.0), rtol=1e-12)
            assert same_on_all_ranks(opt, [p])


def a_rank_without_gradients():
    p = np.zeros(3)
    opt = mpi.DistributedOptimizer(fastopt.SGD(p, lr=1.0))
    if RANK == SIZE - 1:
        opt.accumulate(np.ones(3), opt.shards.start)
    assert opt.step()
    assert np.array_equal(p, [-1.0] * 3)
    raises(ValueError, "got none on any rank", opt.step)


def broadcast_of_state():
    p = np.full((4, 3), float(RANK), "f4")
    opt = fastopt.Adam(p, lr=0.1 * (RANK + 1))
    for _ in range(RANK + 1):
        opt.step(np.full((4, 3), RANK + 1.0))
    root = SIZE - 1
    mpi.broadcast_optimizer_state(opt, root=root)
    mpi.broadcast_parameters([p.T], root=root)
    assert opt.steps == SIZE and opt.lr == 0.1 * SIZE
    wrapped = mpi.DistributedOptimizer(opt)
    assert same_on_all_ranks(wrapped, [p, opt.state[0]["exp_avg"]])
    mpi.broadcast_optimizer_state(wrapped)


def errors():
    shapes = (3,) if RANK == 0 else (4,)
    raises(ValueError, "on all ranks, got ('float64', (3,)", mpi.broadcast_parameters, [np.zeros(shapes)])
    opt = fastopt.SGD([np.zeros(shapes)])
    raises(ValueError, "params[0]: expected the same", mpi.DistributedOptimizer, opt)
    opt = fastopt.SGD([np.zeros(3)]) if RANK == 0 else fastopt.Adam([np.zeros(3)])
    raises(ValueError, "'SGD'", mpi.DistributedOptimizer, opt)
    raises(ValueError, "shards: expected at least the number of ranks", mpi.DistributedOptimizer,
           fastopt.SGD([np.zeros(3)]), shards=SIZE - 1)
    opt = mpi.DistributedOptimizer(fastopt.SGD([np.full(3, float(RANK))]))
    raises(ValueError, "call fastopt.mpi.broadcast_parameters first", opt.step, [np.ones(3)])
    raises(ValueError, f"root: expected a rank from 0 to {SIZE - 1}, got -1", mpi.broadcast_parameters,
           [np.zeros(3)], root=-1)
    sharded = mpi.DistributedOptimizer(fastopt.SGD([np.zeros(3)], momentum=0.9), sharded=True)
    raises(ValueError, "opt: expected an optimizer whose state is not sharded", mpi.broadcast_optimizer_state,
           sharded)
    raises(OSError, "", sharded.save, "/")      # rank 0 alone writes


def a_part_of_the_ranks():
    comm = opt_comm = mpi.DistributedOptimizer(fastopt.SGD(np.zeros(1))).ranks.comm.Split(RANK % 2)
    p = np.full(3, float(RANK % 2))
    opt = mpi.DistributedOptimizer(fastopt.SGD(p, lr=1.0), opt_comm)
    assert opt.size == comm.Get_size() == len(range(RANK % 2, SIZE, 2))
    opt.step(np.full(3, float(RANK)))
    assert np.allclose(p, RANK % 2 - np.mean(range(RANK % 2, SIZE, 2)))


def main():
    assert (mpi.local_rank(), mpi.local_size()) == (RANK, SIZE)
    for check in (step_with_a_gradient_of_each_rank, a_rank_without_gradients, broadcast_of_state, errors,
                  a_part_of_the_ranks):
        check()
    n_threads = mpi.DistributedOptimizer(fastopt.SGD(np.zeros(1))).ranks.allgather(
        (fastopt.get_num_threads(), blas.n_threads)
    )
    if RANK == 0:       # lines that several ranks print at the same time may be mixed
        for rank, (own, of_blas) in enumerate(n_threads):
            print("rank", rank, "threads", own, "of the BLAS", of_blas)


if __name__ == "__main__":
    main()
