"""``rounding=``, ``seed=``, ``state_dtype=``, ``block_size=``, ``master_weights=``: how arrays are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastopt._core.encoded import BLOCK_SIZES
from fastopt._core.formats import FLOAT16, FLOAT64
from fastopt._core.validation import check_choice, check_int

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastopt._core.typing import Array
    from fastopt.optimizers.rule import Rule

STATE_DTYPES = ("float32", "bfloat16", "int8")
MIN_INT8_SIZE = 4096    # elements of a parameter below which its state is float32
_MAX_SEED = 2**64
_INT8 = {"signed": "signed8", "nonnegative": "unsigned8", "precise": "bfloat16"}    # by kind of state array


class Storage(NamedTuple):
    """How the arrays of an optimizer are stored.

    Attributes
    ----------
    to_nearest : bool
        Whether parameters of 16 bits are rounded to nearest, else stochastically.
    seed : int
        Seed of stochastic rounding, below 2**64.
    state_dtype : {"float32", "bfloat16", "int8"}
    block_size : int
        Elements of 8-bit state that share a scale.
    is_split : bool
        Whether the state contains the low 16 bits of parameters of bfloat16.
    """

    to_nearest: bool = False
    seed: int = 0
    state_dtype: str = "float32"
    block_size: int = 256
    is_split: bool = False

    def encoding(self, kind: str | None, size: int) -> str:
        """Encoding of a state array of a kind of `Rule.STATE_KINDS` with `size` elements; "" for none."""
        if kind is None or (self.state_dtype == "int8" and size < MIN_INT8_SIZE):
            return ""
        return _INT8[kind] if self.state_dtype == "int8" else "bfloat16"


def check_storage(
    rounding: Any = "stochastic", seed: Any = 0, state_dtype: Any = "float32", block_size: Any = 256,
    master_weights: Any = None,
) -> Storage:
    """Return the storage that the arguments of an optimizer describe."""
    check_choice("rounding", rounding, ("stochastic", "nearest"))
    seed = check_int("seed", seed, 0)
    if seed >= _MAX_SEED:
        raise ValueError(f"seed: expected less than 2**64, got {seed}")
    state_dtype = check_choice("state_dtype", _name(state_dtype), STATE_DTYPES)
    block_size = check_choice("block_size", check_int("block_size", block_size, 1), BLOCK_SIZES)
    check_choice("master_weights", master_weights, (None, "split"))
    return Storage(rounding == "nearest", seed, state_dtype, block_size, master_weights == "split")


def _name(dtype: Any) -> Any:
    """Name of a dtype that is given as such or as a type."""
    try:
        return dtype if isinstance(dtype, str) else np.dtype(dtype).name
    except TypeError:
        return dtype


def check_master_weights(
    storage: Storage, arrays: Sequence[Array], paths: Sequence[str], root: str = "params"
) -> None:
    """Raise ValueError if a parameter has 16 bits that are not the high half of a float32."""
    for array, path in zip(arrays if storage.is_split else (), paths, strict=False):
        if array.dtype == FLOAT16:
            raise ValueError(
                "master_weights: 'split' needs parameters of bfloat16, float32 or float64, got float16 for "
                f"{root}{path}"
            )


def check_state_dtype(
    rule: type[Rule], storage: Storage, sparse: str, arrays: Sequence[Array], paths: Sequence[str],
    root: str = "params",
) -> None:
    """Raise ValueError if the state of these parameters cannot be stored in this way."""
    state_dtype = storage.state_dtype
    if state_dtype == "float32":
        return
    if reason := rule.REFUSED_OPTIONS.get("state_dtype"):
        raise ValueError(f"state_dtype: not supported by this optimizer: {reason}")
    if sparse == "exact":
        raise ValueError(
            f"state_dtype: {state_dtype!r} cannot be combined with sparse='exact', whose rows take several "
            "steps at once"
        )
    for array, path in zip(arrays, paths, strict=True):
        if array.dtype == FLOAT64:
            raise ValueError(
                f"state_dtype: {state_dtype!r} needs parameters of float32, bfloat16 or float16, got float64 "
                f"for {root}{path}"
            )
