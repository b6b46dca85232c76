"""Saving and loading the state of a training run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt.checkpoint import load_tree, save_tree
from fastopt.nn.callbacks.control import SwapEMAWeights
from fastopt.nn.files import get_weights, set_weights
from fastopt.nn.mlp import MLP

if TYPE_CHECKING:
    from _typeshed import StrPath

    from fastopt.nn.batches import Batches
    from fastopt.nn.callbacks.base import Callback
    from fastopt.nn.epoch import PartialEpoch
    from fastopt.nn.history import History
    from fastopt.nn.ranks import SingleRank

_STATE_KEYS = frozenset((
    "net", "loss", "opt", "epoch", "history", "stopped_by", "partial_epoch", "seed", "rng", "callbacks",
))  # fmt: skip
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
# Reasons why training ended that do not hold for a run that is resumed.
_NOT_SAVED = ("interrupt", "SIGTERM", "max_time")


class Saving:
    """Base class of `Trainer`: state dicts and files."""

    net: Any
    opt: Any
    callbacks: list[Callback]
    history: History
    _rng: np.random.Generator | None
    _seed: int | np.random.Generator | None
    _running: tuple[PartialEpoch, Batches] | None   # the epoch that is being trained
    _resumed: dict[str, Any] | None     # the state of a partial epoch that the next one continues
    _ranks: SingleRank

    @property
    def is_untrained(self) -> bool:
        """Whether no epoch has been trained or loaded."""
        return not self.history.epoch and self._resumed is None

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state, from which an equal trainer resumes exactly.

        It can be called between two calls of `fit`, and in the hooks of the last callback at any time, also
        after a batch in the middle of an epoch.

        Returns
        -------
        dict
            ``net``, the weights; ``opt``, the optimizer's ``state_dict()``, which it must have; ``epoch``,
            ``history`` and ``stopped_by``; ``partial_epoch``, position and sums of an epoch that is not
            finished; ``seed`` and ``rng``, the state of the shuffling; ``callbacks``, the states of the
            callbacks that have one; and ``loss``, that of an MLP. Arrays are copies, everything else plain
            numbers and strings.
        """
        if not hasattr(self.opt, "state_dict"):
            raise TypeError(f"opt: expected an object with 'state_dict', got {type(self.opt).__name__}")
        stopped_by = self.history.stopped_by
        with self._swapped_out():
            return {
                "net": get_weights(self.net),
                "loss": self.net.loss if isinstance(self.net, MLP) else None,
                "opt": self.opt.state_dict(),
                "epoch": list(self.history.epoch),
                "history": {name: list(values) for name, values in self.history.history.items()},
                "stopped_by": None if stopped_by in _NOT_SAVED else stopped_by,
                "partial_epoch": self._partial_epoch(),
                "seed": None if isinstance(self._seed, np.random.Generator) else self._seed,
                "rng": None if self._rng is None else self._rng.bit_generator.state,
                "callbacks": [[type(c).__name__, c.state_dict()] for c in self._stateful_callbacks()],
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `state_dict`.

        If the state was saved in the middle of an epoch, the next call of `fit` continues this epoch after
        the last batch. It counts as one of the `epochs` of the call. The hooks of its beginning are not
        called again. The data and the batch size must be the same.

        Parameters
        ----------
        state : dict
            If its model, optimizer or callbacks differ from the trainer's, nothing is changed and a
            ValueError or TypeError raised.
        """
        if not isinstance(state, Mapping) or not state.keys() >= _STATE_KEYS:
            raise ValueError(f"state: expected a dict with the keys {', '.join(sorted(_STATE_KEYS))}")
        expected = [type(callback).__name__ for callback in self._stateful_callbacks()]
        actual = [name for name, _ in state["callbacks"]]
        if actual != expected:
            raise ValueError(f"state: expected that of the callbacks {expected}, got that of {actual}")
        loss = self.net.loss if isinstance(self.net, MLP) else None
        if "auto" not in (loss, state["loss"]) and state["loss"] != loss:
            raise ValueError(f"state: expected that of a model with the loss {loss!r}, got {state['loss']!r}")
        before = self.state_dict()
        try:
            self._load(state)
            if state["loss"] == "auto":
                self._set_loss(loss)
        except BaseException:
            self._load(before)
            raise

    def save(self, path: StrPath) -> None:
        """Write `state_dict` to a file.

        The file has a checksum for each array. It is read back, and then replaces an existing file
        atomically: after a crash there is either the old file or the complete new one. With a
        `fastopt.mpi.DistributedOptimizer`, all ranks call `save`, and rank 0 writes the file, which any
        number of ranks can load.

        Parameters
        ----------
        path : str or path-like
            Path of the file, used as it is. If it ends in ``.safetensors``, the file has that format
            (``pip install 'fastopt[safetensors]'``), else it is an archive of NumPy arrays (``.npz``).
        """
        self._ranks.from_main(partial(save_tree, path, self.state_dict()))

    def load(self, path: StrPath) -> None:
        """Resume from a file that `save` wrote; see `load_state_dict`.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        ValueError, TypeError
            If the file is damaged, or as for `load_state_dict`. In this case nothing is changed.
        """
        self.load_state_dict(self._ranks.from_main(lambda: load_tree(path)))

    def _load(self, state: Mapping[str, Any]) -> None:
        with self._swapped_out():
            set_weights(self.net, state["net"])
            self.opt.load_state_dict(state["opt"])
        self._set_loss(state["loss"])
        self.history.epoch[:] = state["epoch"]
        self.history.history = {name: list(values) for name, values in state["history"].items()}
        self.history.stopped_by = state["stopped_by"]
        self._resumed = state["partial_epoch"]
        self._seed = state["seed"]
        if state["rng"] is None:
            self._rng = None
        else:
            # In place, because the batches of a running fit hold this generator.
            self._rng = self._rng or _new_generator(state["rng"])
            self._rng.bit_generator.state = state["rng"]
        callbacks = self._stateful_callbacks()
        for callback, (_, saved) in zip(callbacks, state["callbacks"], strict=True):
            callback.trainer = self  # type: ignore[assignment]
            callback.load_state_dict(saved)

    def _set_loss(self, loss: Any) -> None:
        if isinstance(self.net, MLP):
            self.net.loss = loss

    def _partial_epoch(self) -> dict[str, Any] | None:
        if self._running is None:
            return self._resumed
        partial, batches = self._running
        return partial.state_dict(batches)

    @contextlib.contextmanager
    def _swapped_out(self) -> Iterator[None]:
        """Let the model hold the weights, not their averages, in this context."""
        swaps = [c for c in self.callbacks if isinstance(c, SwapEMAWeights) and c.swapped]
        for swap in swaps:
            swap.swap_out()
        try:
            yield
        finally:
            for swap in swaps:
                swap.swap_in()

    def _stateful_callbacks(self) -> list[Callback]:
        return [callback for callback in self.callbacks if callback.state_dict()]


def _new_generator(state: Mapping[str, Any]) -> np.random.Generator:
    """Return a random generator that can have this state."""
    name = state["bit_generator"]
    if name not in _BIT_GENERATORS:
        raise ValueError(f"state: expected a generator of {', '.join(_BIT_GENERATORS)}, got {name!r}")
    return np.random.Generator(getattr(np.random, name)())
