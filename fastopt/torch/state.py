"""State arrays as tensors in the state of a torch optimizer.

A state array is one tensor with its name, of the computing dtype or bfloat16. One of 8-bit codes consists of
two: ``<name>_codes`` with the shape and the memory layout of the parameter, int8 if the values have a sign,
else uint8; and ``<name>_scales``, of one axis. Optimizers of torch do not find the name and raise an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastopt._core.encoded import BLOCK_SIZES, Encoded
from fastopt._core.formats import BFLOAT16, decode
from fastopt._core.layout import is_dense, memory_order, same_layout
from fastopt.optimizers.state import LOW_BITS, assign
from fastopt.torch import tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fastopt._core.arena import View
    from fastopt._core.typing import AnyArray
    from fastopt.optimizers.state import StateLayout, Stored

CODES, SCALES = "_codes", "_scales"  # ends of keys
_CODE_DTYPES = {"signed8": torch.int8, "unsigned8": torch.uint8}


def all_keys(name: str) -> tuple[str, ...]:
    """Return the keys that a state array of any form may have."""
    return name, name + CODES, name + SCALES


def keys_of(name: str, stored: Stored) -> tuple[str, ...]:
    """Return the keys of a state array in the state of its parameter."""
    is_8bit = isinstance(stored, Encoded) and stored.encoding in _CODE_DTYPES
    return (name + CODES, name + SCALES) if is_8bit else (name,)


def to_tensors(name: str, stored: Stored, param: Any) -> dict[str, Any]:
    """View a state array as the items of the state of a parameter, complex if it is complex."""
    if not isinstance(stored, Encoded):
        if name == LOW_BITS:
            return {name: torch.from_numpy(stored.view(np.int16))}
        return {name: tensors.like(param, stored)}
    dtype = _CODE_DTYPES.get(stored.encoding, torch.bfloat16)
    bits = torch.from_numpy(stored.view).view(dtype)
    return dict(zip(keys_of(name, stored), (bits, torch.from_numpy(stored.scales)), strict=False))


def from_tensors(name: str, own: Mapping[str, Any], path: str) -> Stored | None:
    """View the items of the state of a parameter as a state array; None if it is missing.

    Raises
    ------
    TypeError, ValueError
        If they are not what `to_tensors` returns, or a tensor of a floating dtype.
    """
    if own.get(name) is not None:
        return _from_tensor(tensors.unwrap(own[name]), f"{path}[{name!r}]", is_bits=name == LOW_BITS)
    if name + CODES not in own:
        return None
    codes = _check(own[name + CODES], f"{path}[{name + CODES!r}]", *_CODE_DTYPES.values())
    scales = _check(own.get(name + SCALES), f"{path}[{name + SCALES!r}]", torch.float32)
    array = codes.numpy()
    sizes = [n for n in BLOCK_SIZES if scales.shape == (-(-array.size // n),)]
    if not sizes or not is_dense(array) or not scales.is_contiguous():
        raise ValueError(
            f"{path}[{name + CODES!r}]: expected dense codes and one scale per block of {BLOCK_SIZES} "
            f"elements, got {array.size} codes and scales of shape {tuple(scales.shape)}"
        )
    encoding = "signed8" if codes.dtype == torch.int8 else "unsigned8"
    return Encoded(encoding, memory_order(array).view(np.uint8), scales.numpy(), sizes[0], array)


def _check(tensor: Any, path: str, *dtypes: torch.dtype) -> Any:
    """Return a dense tensor of one of the dtypes, or raise."""
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in dtypes:
        expected, found = " or ".join(map(str, dtypes)), getattr(tensor, "dtype", repr(tensor))
        raise TypeError(f"{path}: expected a tensor of {expected}, got {found}")
    tensors.check_dense(tensor, path)
    return tensor


def _from_tensor(tensor: Any, path: str, is_bits: bool) -> Stored:
    if is_bits:
        bits: Stored = _check(tensor, path, torch.int16).numpy().view(np.uint16)
        return bits
    array = tensors.to_array(_check(tensor, path, *tensors.DTYPES))
    if array.dtype != BFLOAT16 or not is_dense(array):
        return array
    return Encoded("bfloat16", memory_order(array).view(np.uint16), np.zeros(0, np.float32), 0, array)


class ParamState:
    """The state arrays of one parameter: those that it has as tensors, and new ones in place of the others.

    Attributes
    ----------
    arrays : dict
        Arrays that the kernels can update.
    absent : set of str
        Names that the parameter has no tensors of.
    """

    def __init__(
        self, layout: StateLayout, param: AnyArray, buffers: Iterable[str], own: Mapping[str, Any], path: str
    ) -> None:
        self.layout, self._param = layout, param
        self._views = layout.views | {name: [(None, layout.dtype)] for name in buffers}
        self._found = {name: from_tensors(name, own, path) for name in self._views}
        for name, found in self._found.items():
            wanted = layout.shapes.get(name, layout.shape)
            if found is not None and found.shape != wanted:
                raise ValueError(f"{path}[{name!r}]: expected shape {wanted}, got {found.shape}")
        self.absent = {name for name, found in self._found.items() if found is None}
        self.arrays: dict[str, Any] = {
            name: found for name, found in self._found.items() if self._is_usable(name, found)
        }

    def _is_usable(self, name: str, found: Stored | None) -> bool:
        """Whether the kernels can update an array where it is."""
        array, encoding = self._param, self.layout.encodings.get(name, "")
        if isinstance(found, Encoded):
            is_alike = found.encoding == "bfloat16" or found.block_size == self.layout.storage.block_size
            return found.encoding == encoding and is_alike and same_layout(found.view, array)
        shape, dtype = self._views[name][0]
        if found is None or encoding or found.dtype != dtype:
            return False
        return same_layout(found, array) if shape is None else bool(found.flags.c_contiguous)

    def missing_views(self) -> list[View]:
        """Return the views that `add_missing` needs, for `alloc_views`."""
        return [view for name, own in self._views.items() if name not in self.arrays for view in own]

    def add_missing(self, views: Iterator[AnyArray], init_value: Callable[[str], float]) -> list[str]:
        """Add the other arrays, with the values of the tensors that there are, and return their names."""
        missing = [name for name in self._views if name not in self.arrays]
        for name in missing:
            is_buffer, found = name not in self.layout.views, self._found[name]
            made = next(views) if is_buffer else self.layout.make(name, self._param, views)
            if found is not None:
                assign(made, found if isinstance(found, Encoded) else decode(found))
            elif is_buffer:
                assign(made, decode(self._param))
            elif initial := init_value(name):
                assign(made, initial)
            self.arrays[name] = made
        return missing


def decode_items(own: dict[str, Any], param: Any) -> None:
    """Replace 8-bit codes in the state of a parameter by tensors of float32."""
    for key in [key for key in own if key.endswith(CODES)]:
        name = key.removesuffix(CODES)
        stored = from_tensors(name, own, "state")
        assert isinstance(stored, Encoded)
        own[name] = tensors.like(param, stored.read().copy(order="K"))
        for used in keys_of(name, stored):
            del own[used]
