"""Saving and loading the state of an optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from fastopt._core.validation import check_bool
from fastopt.checkpoint import load_tree, save_tree
from fastopt.optimizers.arrangement import Arrangement
from fastopt.optimizers.load_state import StateReader, load_all
from fastopt.optimizers.state_dict import export_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import StrPath

    from fastopt.optimizers.load_state import IncompatibleKeys


class Saving(Arrangement):
    """Base class of `Optimizer`: state dicts, files and copies."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later run needs to resume, as plain numbers, strings and copies of arrays.

        Schedules are not saved: the optimizer that loads the state dict keeps its own schedules, and restores
        the state of those that have a state. Skipped steps of sparse rows are applied first.

        Returns
        -------
        dict
            ``version`` of the format, ``optimizer``, ``steps``, ``skipped_steps``; ``groups``, which contain
            the hyperparameters, the keys of the parameters and the states of the schedules of each group;
            ``state``, which contains the number of steps, the scalars and the arrays by name for each key of
            a parameter; and the buffers of options: ``ema``, ``lookahead``, ``accumulated``. The key of a
            parameter is its path in the nesting, such as ``"encoder.0.W"``.
        """
        self._refuse_swapped("state_dict")
        self.catch_up()
        self._sync_hyperparams()
        return export_state(
            type(self).__name__, self._counter, self._params, self._state, self._accumulator
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Resume from the state of another optimizer.

        The states of parameters are found by their keys, whatever their order or group.

        Parameters
        ----------
        state_dict : dict
            As returned by `state_dict`.
        strict : bool, default True
            Whether everything must match. False loads the parts that match and leaves the rest unchanged;
            missing moving averages and slow parameters start as copies of the parameters.

        Returns
        -------
        IncompatibleKeys
            The entries that did not match, in the lists ``missing_keys``, ``unexpected_keys`` and
            ``mismatched_keys``, which are empty with `strict`.

        Raises
        ------
        ValueError, TypeError
            If `state_dict` belongs to another optimizer, has an invalid value or, with `strict`, does not
            match. In this case nothing is changed.
        """
        self._refuse_swapped("load_state_dict")
        check_bool("strict", strict)
        loaded = StateReader(
            type(self).__name__, self._params, self._state.buffers, self._storage
        ).read(state_dict)
        if strict:
            loaded.check_complete(type(self).__name__)
        if None in loaded.states:
            self.catch_up()     # else the skipped steps are those of a state that is replaced
        new: dict[str, Any] = {}
        if loaded.kernels != self._kernels:
            new = self._arrangement(self._params, loaded.kernels, loaded.hyperparameters, self._state)
        state, accumulator = new.get("_state", self._state), new.get("_accumulator", self._accumulator)
        calls = loaded.calls(self._params, self._counter, state, accumulator)
        load_all([self._plan.table.drop_deferred, *calls, *self._swapping(new)], loaded.schedules)
        return loaded.incompatible

    def save(self, path: StrPath) -> None:
        """Write `state_dict` to a file.

        The file has a checksum for each array. It replaces an existing file atomically: after a crash there
        is either the old file or the complete new one. The parameters are not saved.

        Parameters
        ----------
        path : str or path-like
            Path of the file, used as it is. If it ends in ``.safetensors``, the file has that format
            (``pip install 'fastopt[safetensors]'``), else it is an archive of NumPy arrays (``.npz``).
        """
        save_tree(path, self.state_dict())

    def load(self, path: StrPath, strict: bool = True) -> IncompatibleKeys:
        """Resume from a file that `save` wrote.

        Parameters
        ----------
        path : str or path-like
        strict : bool, default True
            As for `load_state_dict`.

        Returns
        -------
        IncompatibleKeys
            As for `load_state_dict`.

        Raises
        ------
        ValueError, TypeError
            If the file is damaged, or as for `load_state_dict`. In this case nothing is changed.
        """
        return self.load_state_dict(load_tree(path), strict)

    def __copy__(self) -> NoReturn:
        raise TypeError(
            f"copy: expected copy.deepcopy, as a shallow copy of this {type(self).__name__} would share its "
            "state"
        )

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: the parameters are included, addresses are not."""
        self._refuse_swapped("copying")
        self.catch_up()
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._arrange(self._params, self._state)
