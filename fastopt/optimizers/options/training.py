"""The options that all optimizers take, checked together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fastopt._core.validation import check_bool
from fastopt.optimizers.hyperparameters import check_number
from fastopt.optimizers.options.base import Option, check_options
from fastopt.optimizers.options.ema import EMA
from fastopt.optimizers.options.lookahead import Lookahead
from fastopt.optimizers.options.sparse import check_mode
from fastopt.optimizers.options.storage import Storage, check_storage

if TYPE_CHECKING:
    from fastopt.optimizers.rule import Rule


class TrainingOptions(NamedTuple):
    """Options of an optimizer.

    Attributes
    ----------
    updates : dict of str to Option
        Options that act on the parameters after each update, by name.
    units : (bool, float or None)
        Arguments of `unit_transform`.
    skip_nonfinite : bool
    sparse : str
    storage : Storage
        How parameters and state are stored.
    """

    updates: dict[str, Option]
    units: tuple[bool, float | None]
    skip_nonfinite: bool
    sparse: str
    storage: Storage


def check_training_options(
    rule: type[Rule], *, ema: Any = None, lookahead: Any = None, centralize: Any = False,
    unit_clip: Any = None, skip_nonfinite: Any = False, sparse: Any = None, rounding: Any = "stochastic",
    seed: Any = 0, state_dtype: Any = "float32", block_size: Any = 256,
    master_weights: Any = None,
) -> TrainingOptions:
    """Return the options, or raise if one has a wrong value or the rule does not support it."""
    skip_nonfinite = check_bool("skip_nonfinite", skip_nonfinite)
    units = (
        check_bool("centralize", centralize),
        unit_clip if unit_clip is None else check_number("unit_clip", unit_clip),
    )
    updates: list[Option] = [] if ema is None else [EMA(ema)]
    if lookahead is not None:
        updates.append(Lookahead(lookahead))
    check_options(rule, [option.name for option in updates])
    return TrainingOptions(
        {option.name: option for option in updates}, units, skip_nonfinite, check_mode(sparse, rule.SPARSE),
        check_storage(rounding, seed, state_dtype, block_size, master_weights),
    )
