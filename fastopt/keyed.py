"""An optimizer for code that updates one array per call and continues with the array that is returned."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt._core.validation import DTYPES
from fastopt.optimizers import Optimizer

if TYPE_CHECKING:
    from collections.abc import Hashable

    from fastopt._core.typing import Array


class KeyedOptimizer:
    """Optimizer that keeps a separate state for each key and returns every update as a new array.

    This is for code in which each layer updates its arrays one by one, ``w = opt.update(w, g)``, and in which
    the old weights may still be needed, for example in the backward pass of the layers below. The arrays that
    you pass are never changed. If all gradients are available at once, a single optimizer for all arrays is
    faster, and can clip their global norm.

    Parameters
    ----------
    optimizer : type
        An optimizer class, such as `fastopt.Adam`.
    **hyperparameters
        Arguments of this class without `params`. Schedules are called with the number of steps of the key.

    Attributes
    ----------
    optimizers : dict of Optimizer
        The optimizer of each key that has been used, for its state and its hyperparameters.

    Examples
    --------
    >>> opt = fastopt.KeyedOptimizer(fastopt.Adam, lr=0.1)
    >>> w, b = np.ones((2, 3)), np.zeros(3)
    >>> new_w = opt.update(w, np.ones((2, 3)), key="w")
    >>> new_b = opt.update(b, np.ones(3), key="b")
    >>> new_b, b
    (array([-0.1, -0.1, -0.1]), array([0., 0., 0.]))
    """

    def __init__(self, optimizer: type[Optimizer], **hyperparameters: Any) -> None:
        if not isinstance(optimizer, type) or not issubclass(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected a class such as fastopt.Adam, got {optimizer!r}")
        optimizer(np.zeros((1, 1)), **hyperparameters)      # checks them
        self._optimizer, self._hyperparameters = optimizer, hyperparameters
        self.optimizers: dict[Hashable, Optimizer] = {}
        self._arrays: dict[Hashable, Array] = {}            # the parameters of `optimizers`
        self._returned: Array | None = None                 # by the last update without a key

    def update(self, w: Any, g: Any, key: Hashable = None, **options: Any) -> Array:
        """Return the array `w` after one step, as a new array.

        Parameters
        ----------
        w : ndarray
            Parameters, of float32 or float64.
        g : array_like
            Gradient, which can be broadcast to the shape of `w`.
        key : hashable, optional
            Name of the array. Each key has a separate state. Without keys, an object can update only one
            array, and `w` must be the array that the previous update returned.
        **options
            Passed to `Optimizer.step`: `max_norm`, `clip_value`, `grad_scale`.

        Returns
        -------
        ndarray
            Of the shape and dtype of `w`.
        """
        w = np.asarray(w)
        if w.dtype not in DTYPES:
            raise TypeError(f"w: expected an array of float32 or float64, got {w.dtype}")
        array = self._arrays.get(key)
        if array is not None:
            if array.shape != w.shape or array.dtype != w.dtype:
                raise ValueError(
                    f"w: expected {array.dtype} of shape {array.shape}, as in the previous update with the "
                    f"key {key!r}, got {w.dtype} of shape {w.shape}; each array needs its own key"
                )
            if key is None and self._returned is not None and w is not self._returned:
                raise ValueError(
                    "w: expected the array that the previous update without a key returned; pass a key, such "
                    "as the name of the array"
                )
        g = np.asarray(g)
        gradient = np.empty(w.shape, w.dtype)
        try:
            np.copyto(gradient, g, casting="same_kind")
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"g: expected numbers that can be broadcast to shape {w.shape}, "
                f"got {g.dtype} of shape {g.shape}"
            ) from None
        if array is None:
            array = np.array(w, dtype=w.dtype.newbyteorder("="), order="C")
            optimizer = self._optimizer(array, **self._hyperparameters)
            optimizer.step(gradient, **options)
            self.optimizers[key], self._arrays[key] = optimizer, array
        else:
            np.copyto(array, w)
            self.optimizers[key].step(gradient, **options)
        updated = array.copy()
        if key is None:
            self._returned = updated
        return updated

    def __copy__(self) -> KeyedOptimizer:
        """Return an independent copy, as for ``copy.deepcopy``."""
        return copy.deepcopy(self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_returned": None}      # a copy has returned nothing
