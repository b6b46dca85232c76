"""The part of an epoch that has been trained, from which the epoch can be resumed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastopt.nn.batches import Batches


@dataclass
class PartialEpoch:
    """The batches of an epoch that have been trained, and the sums over them.

    Attributes
    ----------
    n_samples, batch_size : int
        Those of the epoch.
    batch : int
        Number of batches that have been trained.
    loss, weight : float
        Sums of the weighted losses and of the weights of the batches.
    seconds : float
        Time of their steps.
    counts : list of float
        Sums for the training accuracy; empty if the steps do not count.
    rng : dict or None
        State of the random generator before it drew the order of the samples; None if it has not, or
        without shuffling.
    is_begun : bool
        Whether the order has been determined.
    """

    n_samples: int
    batch_size: int
    batch: int = 0
    loss: float = 0.0
    weight: float = 0.0
    seconds: float = 0.0
    counts: list[float] | None = None
    rng: dict[str, Any] | None = None
    is_begun: bool = False

    @classmethod
    def begin(cls, batches: Batches) -> PartialEpoch:
        """Return an epoch that has not started."""
        batches.counts = [0.0, 0.0]
        return cls(batches.n_samples, batches.batch_size)

    @classmethod
    def resume(cls, saved: Mapping[str, Any], batches: Batches) -> PartialEpoch:
        """Return the epoch whose state `state_dict` returned, or raise a ValueError."""
        partial = cls(**saved)
        for name, given in (("n_samples", batches.n_samples), ("batch_size", batches.batch_size)):
            if (expected := getattr(partial, name)) != given:
                argument = "X" if name == "n_samples" else name
                unit = " samples" if name == "n_samples" else ""
                raise ValueError(
                    f"{argument}: expected {expected}{unit}, with which the epoch that is resumed began, "
                    f"got {given}"
                )
        if partial.is_begun and (partial.rng is None) == batches.is_shuffled:
            raise ValueError(
                f"shuffle: expected {not batches.is_shuffled}, with which the epoch that is resumed began, "
                f"got {batches.is_shuffled}"
            )
        batches.counts = partial.counts or []
        return partial

    def shuffle(self, batches: Batches) -> None:
        """Determine the order of the samples: a new one, or again that of the epoch that is resumed."""
        if self.is_begun:
            batches.shuffle_again(self.rng)
        else:
            self.rng = batches.shuffle()
            self.is_begun = True

    def add(self, batch: int, loss: float, weight: float, seconds: float) -> None:
        """Add a batch that has been trained; `seconds` is the time since the epoch began."""
        self.batch = batch + 1
        self.loss += loss * weight
        self.weight += weight
        self.seconds = seconds

    def state_dict(self, batches: Batches) -> dict[str, Any]:
        """Return the state as plain numbers."""
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        return state | {"counts": batches.counts}
