"""Optimizer state that is divided between ranks: each updates its part of the parameters (ZeRO stage 1).

Parts begin and end at the blocks over which the norm is summed, so that norms do not depend on the number of
ranks. An optimizer that needs whole arrays, such as Muon, has whole parameters in each part.
"""

from __future__ import annotations

import itertools
from bisect import bisect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.encoded import from_export
from fastopt._core.formats import computing_dtype
from fastopt._core.layout import copy_with_layout, memory_order, with_layout
from fastopt._core.step_table import SUM_BLOCK
from fastopt.mpi.communicator import as_bits
from fastopt.optimizers.options.storage import MIN_INT8_SIZE
from fastopt.optimizers.state_dict import COPIES, param_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastopt._core.typing import AnyArray, Array
    from fastopt.mpi.communicator import Communicator
    from fastopt.mpi.layout import Layout
    from fastopt.optimizers.groups import ParamGroups

_WITH_ARRAYS = ((), ("state",), ("accumulated",), *((name,) for name in COPIES))   # items of a state dict


class Partition:
    """The part of all parameters that a rank updates.

    Parameters
    ----------
    params : ParamGroups
    layout : Layout
    ranks : Communicator
    by_elements : bool
        Whether a parameter may be divided between ranks.

    Attributes
    ----------
    bounds : dict of dtype to list of int
        Rank r updates the elements from ``bounds[dtype][r]`` to ``bounds[dtype][r + 1]`` of the vector of all
        parameters of this dtype.
    spans : list of (int, int)
        The elements of each parameter that this rank updates, in the order of memory.
    origins, sizes
        See `fastopt._core.typing.Partition`.
    """

    def __init__(self, params: ParamGroups, layout: Layout, ranks: Communicator, by_elements: bool) -> None:
        self._arrays, self._keys, self._layout = params.arrays, param_keys(params), layout
        self._ranks, self._by_elements, self._rule = ranks, by_elements, params.rule
        self.bounds = {dtype: self._divide(dtype) for dtype in layout.sizes}
        self.spans = self._spans(ranks.rank)
        self.origins = [begin if by_elements else 0 for begin, _ in self.spans]
        self.sizes = [array.size for array in self._arrays]

    def _divide(self, dtype: Any) -> list[int]:
        """Return the possible bounds of the parts of a vector that are nearest to those of equal parts."""
        possible = [self._layout.sizes[dtype]]
        for array, start in zip(self._arrays, self._layout.starts, strict=True):
            if array.dtype == dtype:
                # What remains of a parameter must not be so small that its state would be stored differently.
                end = array.size - MIN_INT8_SIZE + 1 if self._by_elements else 1
                possible += range(start, start + max(end, 1), SUM_BLOCK)
        possible.sort()
        bounds = [0]
        for r in range(1, self._ranks.size):
            equal = r * possible[-1] / self._ranks.size
            i = bisect(possible, equal)
            nearest = min(possible[max(i - 1, 0) : i + 1], key=lambda bound: abs(bound - equal))
            bounds.append(max(nearest, bounds[-1]))
        return [*bounds, possible[-1]]

    def _spans(self, rank: int) -> list[tuple[int, int]]:
        spans = []
        for array, start in zip(self._arrays, self._layout.starts, strict=True):
            begin, end = (bound - start for bound in self.bounds[array.dtype][rank : rank + 2])
            spans.append((min(max(begin, 0), array.size), min(max(end, 0), array.size)))
        return spans

    # --- Parts of arrays ---

    def parts(self, arrays: Sequence[AnyArray]) -> list[AnyArray]:
        """Return views of the parts of this rank, of one array for each parameter."""
        return [self.part(k, array) for k, array in enumerate(arrays)]

    def part(self, k: int, array: AnyArray) -> AnyArray:
        """Return a view of the part of this rank of an array with the layout of parameter `k`."""
        begin, end = self.spans[k]
        if self._by_elements:
            return memory_order(array)[begin:end]
        return array if begin < end or not array.size else array.reshape(array.shape or 1)[:0]

    # --- Combined results of all parts, see `fastopt._core.typing.Partition` ---

    def gather_sums(self, sums: Array, counts: list[int]) -> tuple[Array, list[int]]:
        parts = self._ranks.allgather((sums, counts))
        blocks = [np.split(own, np.cumsum(own_counts)[:-1]) for own, own_counts in parts]
        ordered = itertools.chain(*zip(*blocks, strict=True))   # those of a parameter from all ranks
        return np.concatenate([*ordered]), np.sum([own_counts for _, own_counts in parts], axis=0).tolist()

    def all(self, value: bool) -> bool:
        return all(self._ranks.allgather(value))

    def gather_arrays(self, arrays: Sequence[AnyArray], vectors: Mapping[Any, AnyArray]) -> None:
        """Give all ranks all parts of arrays with the layouts of the parameters.

        `vectors` are overwritten: one of at least the size of the layout for each dtype of parameters.
        """
        scratch = {}
        for dtype, vector in vectors.items():
            bits = vector.view("u1")[: self._layout.sizes[dtype] * dtype.itemsize]
            scratch[dtype] = bits.view(f"u{dtype.itemsize}")
        sources = [as_bits(memory_order(array)) for array in arrays]
        places = [
            scratch[array.dtype][start : start + array.size]
            for array, start in zip(self._arrays, self._layout.starts, strict=True)
        ]
        for place, source, (begin, end) in zip(places, sources, self.spans, strict=True):
            place[begin:end] = source[begin:end]
        for dtype, bits in scratch.items():
            bounds = self.bounds[dtype]
            counts = [end - begin for begin, end in itertools.pairwise(bounds)]
            self._ranks.gather_segments(bits, bounds[:-1], counts)
        for place, source, (begin, end) in zip(places, sources, self.spans, strict=True):
            source[:begin], source[end:] = place[:begin], place[end:]

    def restore_others(self, arrays: Sequence[AnyArray], values: Sequence[AnyArray]) -> None:
        """Set the parts of arrays that the other ranks update."""
        for array, value, (begin, end) in zip(arrays, values, self.spans, strict=True):
            target, source = memory_order(array), memory_order(copy_with_layout(value, array, array.dtype))
            target[:begin], target[end:] = source[:begin], source[end:]

    # --- State dicts ---

    def join(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the state dict of all parameters, from those of all ranks."""
        joined: dict[str, Any] = self._map_arrays(lambda k, name, path, values: self._join(k, values), parts)
        return joined

    def join_arrays(self, parts: Sequence[Sequence[AnyArray]]) -> list[AnyArray]:
        """Return whole arrays from the parts that the ranks have, one for each parameter."""
        return [self._join(k, values) for k, values in enumerate(zip(*parts, strict=True))]

    def _join(self, k: int, values: Sequence[Any]) -> Any:
        array, spans = self._arrays[k], [self._spans(r)[k] for r in range(self._ranks.size)]
        owners = [value for value, (begin, end) in zip(values, spans, strict=True) if begin < end] or values
        if not self._by_elements:
            return owners[0]
        if not isinstance(owners[0], Mapping):
            return with_layout(np.concatenate(owners), array).copy()
        joined = {**owners[0], "shape": list(array.shape), "strides": _strides(array)}
        for name in ("stored", "scales"):
            if name in joined:
                joined[name] = np.concatenate([value[name] for value in owners])
        return joined

    def split(self, state_dict: Any, kernels: Sequence[str]) -> Any:
        """Return the part of this rank of a state dict; `kernels` are those of the parameters."""

        def split_array(k: int, name: str, path: str, values: Sequence[Any]) -> Any:
            (value,), array, (begin, end) = values, self._arrays[k], self.spans[k]
            if self._by_elements:
                return self._split_elements(array, path, value, begin, end)
            if begin < end:
                return value
            part = self.part(k, array)
            shape = self._rule.state_shapes(kernels[k], part).get(name, part.shape)
            return np.zeros(shape, computing_dtype(array.dtype))

        return self._map_arrays(split_array, [state_dict])

    def _split_elements(self, array: AnyArray, path: str, value: Any, begin: int, end: int) -> Any:
        """Return some elements of an array of a state dict, which belongs to the parameter `array`."""
        encoded = from_export(path, value) if isinstance(value, Mapping) else None
        shape = value.shape if encoded is None else encoded.shape
        if shape != array.shape:
            raise ValueError(f"{path}: expected shape {array.shape}, got {shape}")
        if encoded is None or value["strides"] != _strides(array) or begin == end:
            values = value if encoded is None else encoded.read()
            return memory_order(copy_with_layout(values, array, values.dtype))[begin:end]
        part = value | {"shape": [end - begin], "strides": [1], "stored": encoded.stored[begin:end]}
        if "scales" in value:
            size = encoded.block_size
            part["scales"] = encoded.scales[begin // size : -(-end // size)]
        return part

    def _map_arrays(
        self, convert: Callable[[int, str, str, Sequence[Any]], Any], state_dicts: Sequence[Any]
    ) -> Any:
        """Return the first of some state dicts with other arrays: ``convert(k, name, path, values)``.

        Anything that is not as in a state dict is left as it is.
        """
        index = {key: k for k, key in enumerate(self._keys)}

        def walk(dicts: Sequence[Any], path: tuple[Any, ...]) -> Any:
            first = dicts[0]
            depth = 2 if path[:1] == ("accumulated",) else 1        # of the keys of parameters
            k = index.get(path[depth]) if len(path) > depth else None
            if k is not None and (isinstance(first, np.ndarray) or _is_encoded(first)):
                text = "".join(f"[{key!r}]" for key in path)
                return convert(k, path[-1], f"state_dict{text}", dicts)
            if not isinstance(first, Mapping) or path[:1] not in _WITH_ARRAYS:
                return first
            return {key: walk([own[key] for own in dicts], (*path, key)) for key in first}

        return walk(state_dicts, ())


def _is_encoded(value: object) -> bool:
    return isinstance(value, Mapping) and "encoding" in value


def _strides(array: AnyArray) -> list[int]:
    return [stride // array.itemsize for stride in array.strides]
