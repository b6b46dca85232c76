"""``rounding=`` and ``seed=``: how parameters of 16 bits are stored."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastopt._core.validation import check_choice, check_int

_MAX_SEED = 2**64


class Storage(NamedTuple):
    """How the arrays of an optimizer are stored.

    Attributes
    ----------
    to_nearest : bool
        Whether parameters of 16 bits are rounded to nearest, else stochastically.
    seed : int
        Seed of stochastic rounding, below 2**64.
    """

    to_nearest: bool = False
    seed: int = 0


def check_storage(rounding: Any, seed: Any) -> Storage:
    """Return the storage that the arguments of an optimizer describe."""
    check_choice("rounding", rounding, ("stochastic", "nearest"))
    seed = check_int("seed", seed, 0)
    if seed >= _MAX_SEED:
        raise ValueError(f"seed: expected less than 2**64, got {seed}")
    return Storage(rounding == "nearest", seed)
