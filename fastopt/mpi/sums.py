"""Sums of the gradients of micro-shards, in an order that does not depend on the number of ranks.

The micro-shards of a step are the leaves of a binary tree: its nodes of level k are the sums of 2**k
consecutive shards. Each rank has a range of shards and adds up the nodes that contain no other shards. Then
all ranks exchange these partial sums: each receives one part of all vectors, adds up the rest of the tree in
this part, and gives the result to all ranks. As in a ring, each rank sends about two vectors.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastopt._core import dispatch
from fastopt._core.arena import aligned_zeros
from fastopt._core.formats import computing_dtype
from fastopt._core.rows import Rows
from fastopt._core.step_table import Entry, StepCounter, Table
from fastopt.optimizers.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastopt._core.typing import AnyArray, Array, Gradients, TreeDef
    from fastopt.mpi.communicator import Communicator
    from fastopt.mpi.layout import Layout
    from fastopt.mpi.partition import Partition
    from fastopt.optimizers.groups import ParamGroups

BUCKET = 1 << 20  # elements that are exchanged at once, which limits the memory for received values


class Node(NamedTuple):
    """The sum of the shards from ``i * 2**level`` on, of which there are at most ``2**level``."""

    level: int
    i: int


def nodes_of(shards: range) -> list[Node]:
    """Return the largest nodes of the tree into which consecutive shards can be divided."""
    nodes, begin = [], shards.start
    while begin < shards.stop:
        level = (shards.stop - begin).bit_length() - 1
        while begin % (1 << level):
            level -= 1
        nodes.append(Node(level, begin >> level))
        begin += 1 << level
    return nodes


def tree_sum(node: Node, values: Mapping[Node, Any], add: Callable[[Any, Any], Any]) -> Any:
    """Return the value of a node from those of nodes below it; None if there are none.

    ``add(left, right)`` may overwrite `left`. A child without a value does not count.
    """
    if node in values or not node.level:
        return values.get(node)
    left, right = (tree_sum(Node(node.level - 1, 2 * node.i + side), values, add) for side in (0, 1))
    if left is None or right is None:
        return right if left is None else left
    return add(left, right)


class Buffer:
    """Weighted gradients of one shard, or sums of several, with one vector per dtype.

    Gradients are checked and written by a step of SGD on zeros with the negative weight as learning rate.

    Attributes
    ----------
    vectors : dict of dtype to ndarray
    views : list of ndarray
        The part of each parameter.
    counts : ndarray of int64
        1 for the parameters that had a gradient, else 0.
    """

    def __init__(self, layout: Layout, params: ParamGroups, sparse: str) -> None:
        self.vectors = {
            dtype: aligned_zeros(size, computing_dtype(dtype)) for dtype, size in layout.sizes.items()
        }
        self.views = layout.views(self.vectors)
        self.counts = np.zeros(len(self.views), np.int64)
        self._table = Table(
            dispatch.kernels, params.treedef, [f"grads{path}" for path in params.paths],
            [Entry(array, [], sparse=sparse) for array in self.views], StepCounter(), self.counts,
            np.zeros(len(self.views), np.uint8), lambda hp, t: {}, params.arrays,
        )
        self._table.set_scalar_groups([0] * len(self.views), ["sgd"], [Hyperparameters({})])
        self._table.watch = params.watch

    def set(self, grads: Gradients, weight: float, zero_grad: bool) -> None:
        """Set the vectors to the gradients times a weight. Gradients that are None are zero."""
        for vector in self.vectors.values():
            vector[...] = 0.0
        self.counts[:] = 0
        self._table.set_constants(0, {"lr": -weight})
        self._table.full_step(grads, 1.0, math.inf, math.inf, zero_grad, False, False)


class ShardSums:
    """Sums of weighted gradients over the micro-shards of a step on all ranks.

    Parameters
    ----------
    params : ParamGroups
    layout : Layout
    ranks : Communicator
    n_shards : int
        Number of micro-shards, at least that of the ranks.
    deterministic : bool
        Whether the sums over ranks have a fixed order.
    sparse : str
        Meaning of `Rows`: "dense" sums them as dense gradients, otherwise they are gathered.
    partition : Partition, optional
        If there is one, a rank gets its part of the sums only.

    Attributes
    ----------
    shards : range
        The micro-shards of this rank.
    """

    def __init__(
        self, params: ParamGroups, layout: Layout, ranks: Communicator, n_shards: int, deterministic: bool,
        sparse: str, partition: Partition | None,
    ) -> None:
        self._params, self._layout, self._ranks, self._deterministic = params, layout, ranks, deterministic
        self._sparse, self._partition = sparse, partition
        self._root = Node((n_shards - 1).bit_length(), 0)
        self._shards = [
            range(r * n_shards // ranks.size, (r + 1) * n_shards // ranks.size) for r in range(ranks.size)
        ]
        self.shards = self._shards[ranks.rank]
        self._nodes: dict[Node, Buffer] = {}
        self._free: list[Buffer] = []
        self._rows: list[tuple[int, int, float, Rows]] = []  # index of the parameter, shard, weight
        n = len(params.arrays)
        self._counts = np.zeros(n_shards + 2 * n)       # of all ranks after one sum
        self._weights, present = np.split(self._counts, [n_shards])
        self._present = present.reshape(2, n)           # shards with dense gradients, and with rows

    @property
    def next_shard(self) -> int:
        """The shard after the last one whose gradients were added."""
        return int(max(np.flatnonzero(self._weights), default=-1)) + 1

    def add(self, grads: Gradients, shard: int, weight: float, zero_grad: bool) -> None:
        """Add the gradients of a shard, which must not be before `next_shard`."""
        found: list[tuple[int, Rows]] = []
        if self._sparse != "dense":
            grads = _without_rows(self._params.treedef, grads, found)
        if found and self._partition is not None:
            path = self._params.paths[found[0][0]]
            raise ValueError(f"grads{path}: a sharded optimizer takes rows only with sparse='dense'")
        buffer = self._take_buffer()
        try:
            buffer.set(grads, weight, zero_grad)
        except BaseException:
            self._free.append(buffer)
            raise
        self._nodes[Node(0, shard)] = buffer
        self._weights[shard] = weight
        self._present[0] += buffer.counts
        for k, rows in found:
            self._rows.append((k, shard, weight, rows))
            self._present[1, k] += 1
        self._nodes = self._add_up(nodes_of(range(self.shards.start, shard + 1)))

    def clear(self) -> None:
        """Forget all gradients."""
        self._free += self._nodes.values()
        self._nodes, self._rows = {}, []
        self._counts[:] = 0.0

    def scratch(self) -> dict[Any, AnyArray]:
        """Return a vector per dtype that may be overwritten. They are valid until the next `add`."""
        buffer = self._take_buffer()
        self._free.append(buffer)
        return buffer.vectors

    def _take_buffer(self) -> Buffer:
        if self._free:
            return self._free.pop()
        return Buffer(self._layout, self._params, "dense" if self._sparse == "dense" else "")

    def _add_up(self, nodes: list[Node]) -> dict[Node, Buffer]:
        """Return the values of those nodes that have one."""
        values = {node: tree_sum(node, self._nodes, self._add) for node in nodes}
        return {node: buffer for node, buffer in values.items() if buffer is not None}

    def _add(self, left: Buffer, right: Buffer) -> Buffer:
        for dtype, vector in left.vectors.items():
            vector += right.vectors[dtype]
        self._free.append(right)
        return left

    def total(self) -> tuple[list[Array | Rows | None], float]:
        """Add up the gradients of all ranks.

        Returns
        -------
        grads : list
            Sum of each parameter; None if no shard had a gradient. The arrays are valid until the next `add`.
        weight : float
            Sum of the weights of all shards.
        """
        self._ranks.sum_in_place(self._counts)  # exact: one rank has each weight, the others are integers
        weight = 0.0
        for own in self._weights.tolist():
            weight += own
        if not weight:
            raise ValueError("step: expected gradients of at least one micro-shard, got none on any rank")
        for path, (dense, rows) in zip(self._params.paths, self._present.T, strict=True):
            if dense and rows:
                raise ValueError(f"grads{path}: expected rows in all micro-shards or in none, got both")
        is_ordered = self._deterministic and self._ranks.size > 1
        nodes = self._add_up(nodes_of(self.shards) if is_ordered else [self._root])
        self._nodes = {}
        total = self._sum_in_order if is_ordered else self._sum_in_any_order
        buffer = total(*nodes.values())
        self._nodes = {self._root: buffer}      # so that `clear` returns it
        views = buffer.views if self._partition is None else self._partition.parts(buffer.views)
        grads: list[Array | Rows | None] = [
            array if count else None for array, count in zip(views, self._present[0], strict=True)
        ]
        if self._present[1].any():
            self._gather_rows(grads)
        return grads, weight

    def _sum_in_any_order(self, buffer: Buffer | None = None) -> Buffer:
        if buffer is None:
            buffer = self._take_buffer()
            for vector in buffer.vectors.values():
                vector[...] = 0.0
        for vector in buffer.vectors.values():
            self._ranks.sum_vectors_in_place(vector)
        return buffer

    def _sum_in_order(self, *own: Buffer) -> Buffer:
        result = own[0] if own else self._take_buffer()
        for dtype, size in self._layout.sizes.items():
            bounds = [r * size // self._ranks.size for r in range(self._ranks.size + 1)]
            if self._partition is not None:
                bounds = self._partition.bounds[dtype]
            self._reduce(result.vectors[dtype], [buffer.vectors[dtype] for buffer in own], bounds)
        self._free += own[1:]
        return result

    def _reduce(self, result: AnyArray, own: list[AnyArray], bounds: list[int]) -> None:
        """Write the sum over all ranks, or the part of this rank in it, to `result`.

        Parameters
        ----------
        result : ndarray
            May be the first of `own`.
        own : list of ndarray
            Partial sums of this rank.
        bounds : list of int
            Rank r computes the elements from ``bounds[r]`` to ``bounds[r + 1]``.
        """
        ranks, rank = self._ranks, self._ranks.rank
        nodes = [
            [node for node in nodes_of(shards) if self._weights[_shards_of(node)].any()]
            for shards in self._shards
        ]
        step = -(-BUCKET // ranks.size)
        longest = max(end - begin for begin, end in itertools.pairwise(bounds))
        for offset in range(0, longest, step):
            starts = [min(begin + offset, end) for begin, end in itertools.pairwise(bounds)]
            counts = [min(step, end - start) for start, end in zip(starts, bounds[1:], strict=True)]
            count = counts[rank]
            values: dict[Node, AnyArray] = {}
            for i in range(max(map(len, nodes))):
                senders = [r for r in range(ranks.size) if i < len(nodes[r])]
                received = np.empty((len(senders), count), result.dtype)
                ranks.exchange(
                    own[i] if rank in senders else result, starts,
                    counts if rank in senders else [0] * ranks.size, received,
                    [count if r in senders else 0 for r in range(ranks.size)],
                )
                values |= zip((nodes[r][i] for r in senders), received, strict=True)
            result[starts[rank] : starts[rank] + count] = tree_sum(self._root, values, _add_vectors)
            if self._partition is None:
                ranks.gather_segments(result, starts, counts)

    def _gather_rows(self, grads: list[Array | Rows | None]) -> None:
        """Set the gradients of some rows to those of all shards, one after the other."""
        gathered = [item for of_rank in self._ranks.allgather(self._pack_rows()) for item in of_rank]
        for k in np.flatnonzero(self._present[1]).tolist():
            own = sorted((item for item in gathered if item[0] == k), key=lambda item: item[1])
            grads[k] = Rows(
                np.concatenate([rows for _, _, rows, _ in own]), np.concatenate([g for _, _, _, g in own])
            )

    def _pack_rows(self) -> list[tuple[int, int, AnyArray, AnyArray]]:
        packed = []
        for k, shard, weight, rows in self._rows:
            dtype = computing_dtype(self._params.arrays[k].dtype)
            packed.append((k, shard, rows.rows, rows.grads.astype(dtype) * dtype.type(weight)))
        return packed


def _shards_of(node: Node) -> slice:
    return slice(node.i << node.level, (node.i + 1) << node.level)


def _add_vectors(left: AnyArray, right: AnyArray) -> AnyArray:
    left += right
    return left


def _without_rows(treedef: TreeDef, grads: Any, found: list[tuple[int, Rows]]) -> Any:
    """Return gradients with None in place of each `Rows`, which is appended to `found` with its index."""
    if isinstance(treedef, int):
        if not isinstance(grads, Rows):
            return grads
        found.append((treedef, grads))
        return None
    if isinstance(treedef, dict) and isinstance(grads, dict):
        return {
            key: _without_rows(treedef[key], value, found) if key in treedef else value
            for key, value in grads.items()
        }
    if isinstance(treedef, tuple) and isinstance(grads, (list, tuple)) and len(grads) == len(treedef):
        return [_without_rows(inner, g, found) for inner, g in zip(treedef, grads, strict=True)]
    return grads
