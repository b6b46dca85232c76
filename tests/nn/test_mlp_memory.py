"""Networks when memory runs out, when arrays are replaced, and when a pass is entered twice."""

import os

import numpy as np
import pytest
from mlp_helpers import flat

import fastopt
from fastopt.nn import MLP, network
from fastopt.nn._core import net as net_module
from fastopt.nn._core.gemm import Blas

X, Y = np.ones((8, 3), np.float32), np.arange(8) % 2


def no_memory(*args, **kwargs):
    raise MemoryError


def bits(net):
    return [array.tobytes() for array in net.state_dict().values()]


def test_batch_for_which_there_is_no_memory(monkeypatch):
    """The next batch, smaller or larger than those before, is trained as if nothing had happened."""
    net, twin = (MLP([3, 50, 2], seed=0, dropout=0.5, norm="batch") for _ in range(2))
    trainer, other = (fastopt.Trainer(n, fastopt.SGD(n.params, lr=0.1)) for n in (net, twin))
    for t in (trainer, other):
        t.fit(X[:2], Y[:2], verbose=0, shuffle=False)
    before = bits(net)
    with monkeypatch.context() as patch:
        patch.setattr(net_module, "aligned_zeros", no_memory)
        with pytest.raises(MemoryError):
            trainer.fit(X, Y, verbose=0)
    assert bits(net) == before and trainer.opt.steps == 1
    for t in (trainer, other):
        t.fit(X[:4], Y[:4], verbose=0, shuffle=False)
        t.fit(X, Y, verbose=0, shuffle=False)
    assert bits(net) == bits(twin)


@pytest.mark.parametrize(
    ("order", "begin", "rows", "error", "message"),
    [
        (None, 0, 9, IndexError, "rows: expected at least one of 8 samples, got 9 from sample 0 on"),
        (None, 5, 4, IndexError, "got 4 from sample 5 on"),
        (None, -1, 2, IndexError, "got 2 from sample -1 on"),
        (None, 0, 0, IndexError, "got 0 from sample 0 on"),
        (None, 2**62, 2**62, IndexError, "from sample 4611686018427387904 on"),
        (np.arange(8), 0, 9, IndexError, "one of 8 entries of the index, got 9 from entry 0"),
        (np.arange(8), 0, 0, IndexError, "got 0 from entry 0 on"),
        (np.arange(1, 9), 0, 8, IndexError, r"index\[7\]: expected a sample from 0 to 7, got 8"),
        (np.arange(8, dtype=np.int32), 0, 8, TypeError, "index: expected a contiguous vector of int64"),
        (np.arange(16)[::2], 0, 8, TypeError, "index: expected a contiguous vector of int64"),
    ],
)
def test_samples_that_do_not_exist(order, begin, rows, error, message):
    net = MLP([3, 2], seed=0)
    data = net.bind_data(X, Y)
    with pytest.raises(error, match=message):
        data.step(order, begin, rows)
    data.step(None)


# --- Arrays of the model ------------------------------------------------------------------------------


def test_replaced_arrays_are_trained():
    net, twin = MLP([3, 4, 2], seed=0), MLP([3, 4, 2], seed=1)
    net.train_step(X, Y)
    net.params = [[array.copy() for array in layer] for layer in twin.params]
    loss, grads = net.train_step(X, Y)
    expected, expected_grads = twin.train_step(X, Y)
    assert loss == expected and net.evaluate(X, Y) == expected
    assert all(np.array_equal(a, b) for a, b in zip(flat(grads), flat(expected_grads), strict=True))


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (np.zeros((3, 4)), "got float64 of shape (3, 4)"),
        (np.zeros((2, 4), np.float32), "got float32 of shape (2, 4)"),
        (np.zeros((4, 3), np.float32).T, "of shape (3, 4), not C-contiguous or read-only"),
        (np.broadcast_to(np.float32(0), (3, 4)), "of shape (3, 4), not C-contiguous or read-only"),
        ([[0.0] * 4] * 3, "got list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsuitable_arrays_are_refused(value, given):
    net = MLP([3, 4, 2], seed=0)
    net.train_step(X, Y)
    net.params[0][0] = value
    for use in (net.train_step, net.evaluate):
        with pytest.raises(ValueError, match=r"params\[0\]\[0\]: expected a writeable, C-contig") as info:
            use(X, Y)
        assert given in str(info.value)
    del net.params[0][0]
    with pytest.raises(ValueError, match=r"params\[0\]: expected 2 arrays, got 1"):
        net.predict(X)


# --- Products through NumPy, during which the test can intervene -------------------------------------------


def interrupted_net(monkeypatch, intervene, at):
    """Return a network that calls a function before one of its matrix products."""
    monkeypatch.setattr(network, "blas", Blas("numpy.matmul"))
    net = MLP([3, 4, 2], seed=0, norm=None)
    matmul, calls = np.matmul, []

    def hooked(*args, **kwargs):
        calls.append(len(calls))
        if calls[-1] == at:
            intervene(net)
        return matmul(*args, **kwargs)

    monkeypatch.setattr(np, "matmul", hooked)
    return net


@pytest.mark.parametrize("at", range(5))
def test_product_that_fails(monkeypatch, at):
    net = interrupted_net(monkeypatch, no_memory, at)
    before = bits(net)
    with pytest.raises(MemoryError, match="a matrix product of the network failed"):
        net.train_step(X, Y)
    assert bits(net) == before and net._pass.step == 0
    net.train_step(X, Y)
    assert net._pass.step == 1


def test_prediction_with_a_product_that_fails(monkeypatch):
    net = interrupted_net(monkeypatch, no_memory, 1)
    with pytest.raises(MemoryError, match="a matrix product of the network failed"):
        net.evaluate(X, Y)
    net.evaluate(X, Y)


def test_pass_is_not_entered_twice(monkeypatch):
    errors = []

    def again(net):
        with pytest.raises(RuntimeError, match="in use by another thread") as info:
            net.train_step(X, Y)
        errors.append(info.value)

    net = interrupted_net(monkeypatch, again, 0)
    net.train_step(X, Y)
    assert len(errors) == 1 and net._pass.step == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_process_that_is_forked_during_a_pass(monkeypatch):
    """The child can use the network, although a thread of its parent was using it."""
    statuses = []

    def fork(net):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                net.train_step(X, Y)
                status = 0
            finally:
                os._exit(status)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    interrupted_net(monkeypatch, fork, 0).train_step(X, Y)
    assert statuses == [0]


def test_step_that_fails_does_not_count(monkeypatch):
    """Dropout masks and running averages are those of the next step, as if there had been none."""
    net, twin = (MLP([3, 50, 2], seed=0, dropout=0.5, norm="batch") for _ in range(2))
    before = bits(net)
    with pytest.raises(ValueError, match="expected finite numbers"):
        net.train_step(np.full((8, 3), np.nan), Y)
    assert bits(net) == before and net.loss == "auto"
    assert net.train_step(X, Y)[0] == twin.train_step(X, Y)[0]
    assert bits(net) == bits(twin)
