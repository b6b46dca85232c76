"""An optimizer whose gradients are averaged over the micro-shards of a global batch on all ranks."""

from __future__ import annotations

import contextlib
import zlib
from typing import TYPE_CHECKING, Any

from fastopt._core.layout import memory_order
from fastopt._core.pytree import assemble
from fastopt._core.rows import Rows
from fastopt._core.validation import check_bool, check_float, check_int
from fastopt.checkpoint import load_tree, save_tree
from fastopt.mpi.communicator import find_communicator
from fastopt.mpi.layout import Layout
from fastopt.mpi.partition import Partition
from fastopt.mpi.sums import ShardSums
from fastopt.mpi.threads import divide_processors
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.hyperparameters import check_number
from fastopt.optimizers.options.sparse import index_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from _typeshed import StrPath
    from numpy.typing import ArrayLike

    from fastopt._core.typing import AnyArray, Array, Gradients, Number, Params
    from fastopt.optimizers.load_state import IncompatibleKeys

_ATTRIBUTES = ("opt", "ranks", "rank", "size", "n_shards")      # the others are those of the optimizer


class DistributedOptimizer:
    """Optimizer that averages the gradients of all ranks before each step.

    The global batch is split into a fixed number of micro-shards, and each rank computes the gradients of its
    own micro-shards. They are added up in an order that depends only on the number of micro-shards, so the
    parameters have the same bits for any number of ranks. All ranks must create the same parameters and the
    same optimizer, and make the same method calls.

    Attributes and methods that are not described here are those of the optimizer.

    Parameters
    ----------
    opt : Optimizer
        A fastopt optimizer. It must not be used directly afterwards.
    comm : mpi4py.MPI.Intracomm, optional
        Ranks that take part: all processes of the job by default, or this process alone without MPI.
    sharded : bool, default False
        Whether each rank stores only the state of its part of the parameters, and updates only this part
        (ZeRO stage 1; Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter
        models", SC 2020). Parameters and gradients are complete on every rank, and results have the same
        bits. The parameters are divided by elements. If the optimizer or an option needs whole arrays, as
        Muon and `centralize` do, arrays are not divided, so the parts can be uneven if an array is large.
        `state` and `state_nbytes` are those of the rank. Gradients of type `fastopt.Rows` require
        ``sparse="dense"``, row-wise AdaGrad is not supported, and parameters cannot be added or replaced.
    deterministic : bool, default True
        Whether sums have a fixed order. False leaves the order of the sum over the ranks to MPI
        (``MPI_Allreduce``).
    shards : int, default 8
        Number of micro-shards of the global batch, at least the number of ranks. The work is balanced if it
        is a multiple of the number of ranks.

    Attributes
    ----------
    opt : Optimizer
        As passed to the constructor.
    rank, size : int
        Index of this rank, and number of ranks.
    shards : range
        The micro-shards of this rank.
    n_shards : int
        Number of micro-shards of all ranks.
    sharded : bool
        As passed to the constructor.

    Examples
    --------
    >>> opt = fastopt.mpi.DistributedOptimizer(fastopt.Adam(params))
    >>> fastopt.mpi.broadcast_parameters(params)
    >>> for shard, samples in opt.split(len(X)):
    ...     opt.accumulate(gradients(X[samples], y[samples]), shard, weight=len(X[samples]))
    >>> opt.step(max_norm=1.0)
    True
    """

    opt: Optimizer

    def __init__(
        self, opt: Optimizer, comm: Any = None, *, sharded: bool = False, deterministic: bool = True,
        shards: int = 8,
    ) -> None:
        if not isinstance(opt, Optimizer):
            raise TypeError(f"opt: expected a fastopt optimizer, got {type(opt).__name__}")
        check_bool("sharded", sharded)
        self._deterministic = check_bool("deterministic", deterministic)
        self.opt = opt
        self.ranks = find_communicator(comm)
        self.rank: int = self.ranks.rank
        self.size: int = self.ranks.size
        self.n_shards: int = check_int("shards", shards, 1)
        if self.n_shards < self.size:
            raise ValueError(f"shards: expected at least the number of ranks, {self.size}, got {shards}")
        self.ranks.check_equal("opt", [""], [(type(opt).__name__, sharded, deterministic, shards)])
        divide_processors(self.ranks)
        self._partition: Partition | None = None
        self._prepare(sharded)

    def _prepare(self, sharded: bool) -> None:
        """Make everything that depends on the parameters."""
        opt, params = self.opt, self.opt._params
        self.ranks.check_equal(
            "params", params.paths, [(a.dtype.name, a.shape, a.strides) for a in params.arrays]
        )
        self._params, layout = params, Layout(params.arrays)
        if sharded:
            state = opt.state_dict()
            partition = Partition(params, layout, self.ranks, opt._plan.prepass is None)
            opt._arrange(params.partitioned(partition, partition.parts(params.arrays)), None)
            self._partition = partition
            self.load_state_dict(state)
        self._sums = ShardSums(
            params, layout, self.ranks, self.n_shards, self._deterministic, opt.sparse, self._partition
        )
        self._are_params_checked = self.size == 1

    # --- Gradients and steps ---

    @property
    def shards(self) -> range:
        return self._sums.shards

    @property
    def sharded(self) -> bool:
        return self._partition is not None

    def split(self, n_samples: int) -> list[tuple[int, slice]]:
        """Divide a global batch into micro-shards, and return those of this rank.

        Parameters
        ----------
        n_samples : int
            Samples of the global batch.

        Returns
        -------
        list of (int, slice)
            Each micro-shard of this rank with its samples in the global batch. Their sizes differ by at most
            1; micro-shards without samples are left out.
        """
        n_samples, n = check_int("n_samples", n_samples, 0), self.n_shards
        parts = [(k, slice(k * n_samples // n, (k + 1) * n_samples // n)) for k in self.shards]
        return [(k, part) for k, part in parts if part.start < part.stop]

    def accumulate(
        self, grads: Gradients, shard: int, *, weight: Number = 1.0, zero_grad: bool = False
    ) -> None:
        """Add the gradients of a micro-shard.

        Parameters
        ----------
        grads : nesting of ndarrays
            Mean gradients over the samples of the micro-shard, as for `Optimizer.step`. They can be
            overwritten afterwards. None stands for zeros, unless it is None in all micro-shards: then the
            parameter is left unchanged.
        shard : int
            One of `shards`, in ascending order. Micro-shards that are left out do not contribute to the mean.
        weight : float, default 1
            Weight in the mean, such as the number of samples of the micro-shard.
        zero_grad : bool, default False
            Set the gradients to zero after use.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not match its parameter. In this case nothing is added.
        """
        shard = check_int("shard", shard, 0)
        weight = check_float("weight", weight, 0.0, open_low=True)
        check_bool("zero_grad", zero_grad)
        first, last = max(self.shards.start, self._sums.next_shard), self.shards.stop - 1
        if not first <= shard <= last:
            expected = f"a micro-shard from {first} to {last}" if first <= last else "no further micro-shard"
            raise ValueError(f"shard: expected {expected} on rank {self.rank}, got {shard}")
        self._sums.add(grads, shard, weight, zero_grad)

    def step(
        self, grads: Gradients = None, *, max_norm: Number | None = None, clip_value: Number | None = None,
        grad_scale: Number | None = None, zero_grad: bool = False, weight: Number = 1.0,
    ) -> bool:
        """Update every parameter with the mean gradients of all ranks. All ranks must call it.

        Parameters
        ----------
        grads : nesting of ndarrays, optional
            Mean gradients of all samples of this rank, in place of calls of `accumulate`. The bits of the
            result then depend on the number of ranks.
        max_norm, clip_value, grad_scale : float, optional
            As for `Optimizer.step`. They apply to the mean gradients.
        zero_grad : bool, default False
            Set `grads` to zero after use.
        weight : float, default 1
            Weight of `grads` in the mean over the ranks, such as the number of samples.

        Returns
        -------
        bool
            Whether a step was taken, as for `Optimizer.step`.

        Raises
        ------
        ValueError
            If no rank has added gradients, or the initial parameters of the ranks differ.
        """
        if grads is not None:
            if self._sums.next_shard:
                raise ValueError("grads: expected None after calls of accumulate")
            self.accumulate(grads, self.shards.start, weight=weight, zero_grad=zero_grad)
        scale = 1.0 if grad_scale is None else check_number("grad_scale", grad_scale)
        try:
            if not self._are_params_checked:
                self._check_params()
            sums, total = self._sums.total()
            options: dict[str, Any] = {"max_norm": max_norm, "clip_value": clip_value}
            if self.opt._micro_batches > 1:
                options["weight"] = total
            if scale / total != 1.0:
                options["grad_scale"] = scale / total
            stepped = self.opt.step(assemble(self._params.treedef, sums), **options)
        finally:
            self._sums.clear()
        return self._gather_params(stepped)

    def step_rows(
        self, param: AnyArray | int, rows: ArrayLike, grads: Array, **options: Any
    ) -> bool:
        """Take a step in which only some rows of one parameter have a gradient, see `Optimizer.step_rows`."""
        gradients: list[Rows | None] = [None] * len(self._params.arrays)
        gradients[index_of(param, self._params.arrays)] = Rows(rows, grads)
        return self.step(assemble(self._params.treedef, gradients), **options)

    def flush(self, *, max_norm: Number | None = None, clip_value: Number | None = None) -> bool:
        """Take a step with the gradients that ``accumulate=`` has not used yet, see `Optimizer.flush`."""
        return self._gather_params(self.opt.flush(max_norm=max_norm, clip_value=clip_value))

    def _gather_params(self, changed: bool = True) -> bool:
        """If parameters have changed, give all ranks the parts that the others have updated."""
        if changed and self._partition is not None and self.size > 1:
            self._partition.gather_arrays(self._params.arrays, self._sums.scratch())
        return changed

    def _check_params(self) -> None:
        """Raise unless all ranks begin with the same parameters."""
        try:
            checksums = [_checksum(array) for array in self._params.arrays]
            self.ranks.check_equal("params", self._params.paths, checksums)
        except ValueError as error:
            raise ValueError(f"{error}; call fastopt.mpi.broadcast_parameters first") from None
        self._are_params_checked = True

    # --- Parameters ---

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add a group of parameters, see `Optimizer.add_param_group`. Not supported if `sharded`."""
        self._rearrange(self.opt.add_param_group, group)

    def rebind(self, params: Params) -> None:
        """Update other arrays from now on, see `Optimizer.rebind`. Not supported if `sharded`."""
        self._rearrange(self.opt.rebind, params)

    def _rearrange(self, method: Callable[[Any], None], argument: Any) -> None:
        if self._sums.next_shard:
            raise RuntimeError(f"{method.__name__}: not allowed between accumulate and step")
        method(argument)
        self._prepare(False)

    @property
    def ema(self) -> Any:
        """Moving averages of the parameters. All ranks must read it if `sharded`."""
        averages = self.opt.ema
        if averages is None or self._partition is None:
            return averages
        parts = self.ranks.allgather(self.opt._state.buffers["ema"])
        return assemble(self._params.treedef, self._partition.join_arrays(parts))

    def swapped_ema(self) -> AbstractContextManager[None]:
        """Context manager in which the parameters hold their averages; no step can be taken in it."""
        return self._swapped(self.opt.swapped_ema())

    def averaged(self) -> AbstractContextManager[None]:
        """Context manager in which the parameters hold the averages of a schedule-free optimizer."""
        context: AbstractContextManager[None] = self._method("averaged")()
        return self._swapped(context)

    def keep_average(self) -> None:
        """Copy the averages of a schedule-free optimizer to the parameters."""
        self._method("keep_average")()
        self._gather_params()

    def _method(self, name: str) -> Any:
        if not hasattr(self.opt, name):
            raise AttributeError(f"{type(self.opt).__name__!r} object has no attribute {name!r}")
        return getattr(self.opt, name)

    @contextlib.contextmanager
    def _swapped(self, context: AbstractContextManager[None]) -> Iterator[None]:
        if self._partition is None:
            with context:
                yield
            return
        # The ranks do not communicate at the end, so that an exception in one of them does not block it.
        saved = [array.copy() for array in self._params.arrays]
        with context:
            self._gather_params()
            try:
                yield
            finally:
                self._partition.restore_others(self._params.arrays, saved)

    # --- State dicts and files ---

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict of the optimizer, with the whole state on every rank.

        It is independent of the number of ranks, and of `sharded`. All ranks must call it if `sharded`.
        """
        state = self.opt.state_dict()
        return state if self._partition is None else self._partition.join(self.ranks.allgather(state))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Resume from a state dict, see `Optimizer.load_state_dict`. All ranks must load the same state."""
        if self._partition is not None:
            state_dict = self._partition.split(state_dict, self.opt._kernels)
        return self.opt.load_state_dict(state_dict, strict)

    def save(self, path: StrPath) -> None:
        """Write `state_dict` to a file on rank 0, see `Optimizer.save`. All ranks must call it."""
        state, error = self.opt.state_dict(), None
        if self._partition is not None:
            parts = self.ranks.gather(state)
            state = self._partition.join(parts) if self.rank == 0 else state
        if self.rank == 0:
            try:
                save_tree(path, state)
            except Exception as failure:
                error = failure
        error = self.ranks.broadcast(error)
        if error is not None:
            raise error

    def load(self, path: StrPath, strict: bool = True) -> IncompatibleKeys:
        """Resume from a file, which every rank reads, see `Optimizer.load`."""
        return self.load_state_dict(load_tree(path), strict)

    # --- Attributes of the optimizer ---

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in _ATTRIBUTES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.opt, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or name in _ATTRIBUTES:
            object.__setattr__(self, name, value)
        else:
            setattr(self.opt, name, value)

    def __reduce__(self) -> Any:
        raise TypeError("a DistributedOptimizer cannot be copied or pickled; use its state_dict")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.opt!r}, rank {self.rank} of {self.size}, {self.n_shards} shards)"


def _checksum(array: AnyArray) -> str:
    data: Any = memory_order(array).view("u1")
    return f"checksum {zlib.crc32(data):08x}"
