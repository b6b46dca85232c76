"""An optimizer whose gradients are averaged over the micro-shards of a global batch on all ranks."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from fastopt._core.layout import memory_order
from fastopt._core.pytree import assemble
from fastopt._core.validation import check_bool, check_float, check_int
from fastopt.mpi.communicator import find_communicator
from fastopt.mpi.sums import ShardSums
from fastopt.optimizers.base import Optimizer
from fastopt.optimizers.hyperparameters import check_number

if TYPE_CHECKING:
    from fastopt._core.typing import FloatOrSchedule, Gradients, Number


class DistributedOptimizer:
    """Optimizer that averages the gradients of all ranks before each step.

    The global batch is cut into a fixed number of micro-shards, and each rank computes the gradients of its
    own ones. They are added up in an order that depends on the number of micro-shards only, so the
    parameters have the same bits for any number of ranks. All ranks must make the same parameters, optimizer
    and calls of `step`.

    Attributes and methods that are not described here are those of the optimizer.

    Parameters
    ----------
    opt : Optimizer
        A fastopt optimizer.
    comm : mpi4py.MPI.Intracomm, optional
        Ranks that take part: all processes of the job by default, or this process alone without MPI.
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

    Examples
    --------
    >>> opt = fastopt.mpi.DistributedOptimizer(fastopt.Adam(params))
    >>> fastopt.mpi.broadcast_parameters(params)
    >>> for shard, samples in opt.split(len(X)):
    ...     opt.accumulate(gradients(X[samples], y[samples]), shard, weight=len(X[samples]))
    >>> opt.step(max_norm=1.0)
    True
    """

    def __init__(
        self, opt: Optimizer, comm: Any = None, *, deterministic: bool = True, shards: int = 8
    ) -> None:
        if not isinstance(opt, Optimizer):
            raise TypeError(f"opt: expected a fastopt optimizer, got {type(opt).__name__}")
        check_bool("deterministic", deterministic)
        self.opt: Optimizer = opt
        self.ranks = find_communicator(comm)
        self.rank: int = self.ranks.rank
        self.size: int = self.ranks.size
        self.n_shards: int = check_int("shards", shards, 1)
        if self.n_shards < self.size:
            raise ValueError(
                f"shards: expected at least the number of ranks, {self.size}, got {shards}"
            )
        params = opt._params
        self.ranks.check_equal(
            "opt",
            ["", *(f".params{path}" for path in params.paths)],
            [
                (type(opt).__name__, self.n_shards, deterministic),
                *((array.dtype.name, array.shape, array.strides) for array in params.arrays),
            ],
        )
        self._deterministic = deterministic
        self._sums = ShardSums(params, self.ranks, self.n_shards, deterministic)
        self._are_params_checked = self.size == 1

    @property
    def shards(self) -> range:
        return self._sums.shards

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
            1; those without samples are left out.
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
            One of `shards`, in ascending order. Micro-shards that are left out do not count.
        weight : float, default 1
            Weight in the mean, such as the number of samples of the micro-shard.
        zero_grad : bool, default False
            Set the gradients to zero after use.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not match its parameter; nothing has been added then.
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
        self,
        grads: Gradients = None,
        *,
        max_norm: Number | None = None,
        clip_value: Number | None = None,
        grad_scale: Number | None = None,
        zero_grad: bool = False,
        weight: Number = 1.0,
    ) -> bool:
        """Update every parameter with the mean gradients of all ranks. A collective operation.

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
            If no rank has added gradients, or the parameters of the ranks differ.
        """
        if grads is not None:
            if self._sums.next_shard:
                raise ValueError("grads: expected None after calls of accumulate")
            self.accumulate(grads, self.shards.start, weight=weight, zero_grad=zero_grad)
        if not self._are_params_checked:
            self._check_params()
        scale = 1.0 if grad_scale is None else check_number("grad_scale", grad_scale)
        try:
            sums, total = self._sums.total()
            options: dict[str, Any] = {"max_norm": max_norm, "clip_value": clip_value}
            if self.opt._micro_batches > 1:
                options["weight"] = total
            if scale / total != 1.0:
                options["grad_scale"] = scale / total
            return self.opt.step(assemble(self.opt._params.treedef, sums), **options)
        finally:
            self._sums.clear()

    def _check_params(self) -> None:
        """Raise unless all ranks begin with the same parameters."""
        params = self.opt._params
        try:
            self.ranks.check_equal("params", params.paths, [_checksum(array) for array in params.arrays])
        except ValueError as error:
            raise ValueError(f"{error}; call fastopt.mpi.broadcast_parameters first") from None
        self._are_params_checked = True

    @property
    def lr(self) -> Any:
        """Learning rate of all groups, as for `Optimizer`. Set it on all ranks."""
        return self.opt.lr

    @lr.setter
    def lr(self, value: FloatOrSchedule) -> None:
        self.opt.lr = value

    def __getattr__(self, name: str) -> Any:
        if name == "opt":  # while it is unpickled or copied
            raise AttributeError(name)
        return getattr(self.opt, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.opt!r}, rank {self.rank} of {self.size}, {self.n_shards} shards)"


def _checksum(array: Any) -> str:
    bits: Any = memory_order(array).view("u1")
    return f"checksum {zlib.crc32(bits):08x}"
