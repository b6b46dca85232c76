"""State arrays of the parameters, and the buffers of options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fastopt._core.arena import alloc_views

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike

    from fastopt._core.typing import Array
    from fastopt.optimizers.hyperparameters import Hyperparameters
    from fastopt.optimizers.rule import Rule


class State(Mapping[str, "Array"]):
    """State arrays of one parameter by name. An assigned value is copied into the array."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __setitem__(self, name: str, value: ArrayLike) -> None:
        if name not in self._arrays:
            raise ValueError(f"{name}: unknown state array, expected one of {', '.join(self._arrays)}")
        array, value = self[name], np.asarray(value)
        if value.shape != array.shape:
            raise ValueError(f"{name}: expected shape {array.shape}, got {value.shape}")
        array[...] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return repr(self._arrays)


def allocate(
    rule: type[Rule], arrays: list[Array], kernels: Sequence[str], hps: Sequence[Hyperparameters],
    buffer_names: Sequence[str], old_states: Sequence[Mapping[str, Array]],
    old_buffers: Mapping[str, Sequence[Array]],
) -> tuple[tuple[State, ...], dict[str, list[Array]]]:
    """Allocate the state arrays and option buffers of all parameters.

    Parameters
    ----------
    rule : type
    arrays : list of ndarray
        Parameters.
    kernels, hps : sequence
        Kernel and hyperparameters of each parameter.
    buffer_names : sequence of str
        Option buffers; each has the shape of its parameter.
    old_states, old_buffers
        State and buffers to copy where names and shapes agree; may be shorter than `arrays`.

    Returns
    -------
    states : tuple of State
    buffers : dict of str to list of ndarray
    """
    shapes = [rule.state_shapes(kernel, array) for kernel, array in zip(kernels, arrays, strict=True)]
    views = alloc_views(arrays, [
        [*own.values()] + [array.shape] * len(buffer_names) for own, array in zip(shapes, arrays, strict=True)
    ])
    states = tuple(
        State(dict(zip(own, own_views, strict=False))) for own, own_views in zip(shapes, views, strict=True)
    )
    for k, (state, hp) in enumerate(zip(states, hps, strict=True)):
        old = old_states[k] if k < len(old_states) else {}
        for name, array in state.items():
            if name in old and old[name].shape == array.shape:
                array[...] = old[name]
            elif initial := rule.init_value(name, hp):
                array[...] = initial
    buffers = {}
    for i, name in enumerate(buffer_names):
        buffers[name] = [own_views[i - len(buffer_names)] for own_views in views]
        start = [*old_buffers.get(name, [])]
        if name != "accumulated":  # the others are copies of the parameters
            start += arrays[len(start) :]
        for buffer, value in zip(buffers[name], start, strict=False):
            buffer[...] = value
    return states, buffers
