"""Tensors as arrays: their memory, in the forms that the kernels take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastopt._core.formats import BFLOAT16
from fastopt._core.rows import Rows

if TYPE_CHECKING:
    from fastopt._core.typing import AnyArray

DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128,
)
PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_wrapper(tensor: Any) -> bool:
    """Whether the memory of a tensor is that of another one, as of a DTensor."""
    return type(tensor) not in PLAIN and hasattr(tensor, "to_local")


def unwrap(tensor: Any) -> Any:
    """Return the tensor with the memory of a tensor that is a wrapper; any other tensor as it is."""
    if not is_wrapper(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def to_array(tensor: Any) -> AnyArray:
    """View the memory of a dense tensor as an array; complex numbers have a last axis of length 2."""
    tensor = tensor.detach()
    array: AnyArray
    if tensor.dtype == torch.bfloat16:
        array = tensor.view(torch.uint16).numpy().view(BFLOAT16)
    else:
        array = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).numpy()
    return array


def like(tensor: Any, array: AnyArray) -> Any:
    """View an array with the layout of `to_array` of a tensor as a tensor, complex if that one is."""
    made = torch.from_numpy(array)
    return torch.view_as_complex(made) if tensor.is_complex() else made


def check_parameter(tensor: Any, name: str) -> None:
    """Raise unless the kernels can update a tensor."""
    check_dense(tensor, name)
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {tensor.dtype}")


def check_dense(tensor: Any, name: str) -> None:
    """Raise unless a tensor has memory on the CPU with all its elements."""
    _check_memory(tensor, name)
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one with the layout {tensor.layout}")


def to_gradient(tensor: Any, name: str) -> tuple[AnyArray | Rows, bool]:
    """Return a gradient as an array or as `Rows`, and whether it was copied."""
    _check_memory(tensor, name)
    if tensor.layout == torch.sparse_coo:
        if tensor.sparse_dim() != 1:
            expected = "a sparse gradient whose first dimension alone is sparse"
            raise ValueError(f"{name}: expected {expected}, got {tensor.sparse_dim()} sparse dimensions")
        return Rows(tensor._indices()[0].numpy(), to_array(tensor._values())), True
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense or sparse COO tensor, got the layout {tensor.layout}")
    is_known = tensor.dtype in DTYPES
    if not is_known:
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name}: expected a floating dtype, got {tensor.dtype}")
        tensor = tensor.float()
    return to_array(tensor.resolve_conj().resolve_neg()), not is_known


def _check_memory(tensor: Any, name: str) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}")
    if type(tensor) not in PLAIN and torch.utils._python_dispatch.is_traceable_wrapper_subclass(tensor):
        raise TypeError(f"{name}: expected a tensor with memory of its own, got {type(tensor).__name__}")


def with_units_last(array: AnyArray) -> AnyArray:
    """View an array with its first axis, which counts the output units of a layer in torch, as the last."""
    return np.moveaxis(array, 0, -1) if array.ndim > 1 else array
