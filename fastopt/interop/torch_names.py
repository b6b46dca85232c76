"""Names that differ between the optimizers of torch and fastopt, or that only one of them has.

Hyperparameters and state arrays have the same names in both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Classes of torch.optim, and a key by which to tell their groups from those of the classes further down.
DISTINCT_KEYS = {
    "Muon": "ns_coefficients", "Adafactor": "beta2_decay", "Rprop": "etas", "ASGD": "lambd",
    "Adagrad": "lr_decay", "Adadelta": "rho", "RMSprop": "centered", "SGD": "dampening",
    "NAdam": "momentum_decay", "AdamW": "amsgrad", "Adam": "amsgrad", "RAdam": "decoupled_weight_decay",
    "Adamax": "weight_decay", "SparseAdam": "betas",
}
# Scalars in the state of a parameter, of any optimizer.
SCALARS = ("step", "mu_product", "eta", "mu")
# Optimizers that do not count steps in torch, and their kernels, which do not need the count.
WITHOUT_STEP_COUNT = {"SGD": ("sgd", "momentum", "nesterov"), "Muon": ("muon",)}
# Arguments that choose an implementation, with their defaults.
FLAGS = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}
# Items of groups by which torch tells two optimizers of one class apart.
CONSTANTS = {"Adam": {"decoupled_weight_decay": False}, "AdamW": {"decoupled_weight_decay": True}}


def asgd_scalars(group: Mapping[str, Any], steps: int) -> dict[str, float]:
    """Return the step size and the weight of the average that ASGD of torch keeps for its next step."""
    eta = group["lr"] / (1.0 + group["lambd"] * group["lr"] * steps) ** group["alpha"]
    return {"eta": eta, "mu": 1.0 / max(1.0, steps - group["t0"])}
