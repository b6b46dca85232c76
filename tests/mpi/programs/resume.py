"""Train in two parts on different numbers of ranks: ``resume.py DIRECTORY begin|resume|whole``.

Each optimizer takes three steps in each part. Rank 0 writes the parameters to ``OPTIMIZER-PART.npz`` and the
state to ``OPTIMIZER.npz``, and prints the bytes of the state of each rank.
"""

import sys
from pathlib import Path

import numpy as np

import fastopt
from fastopt import mpi

sys.path.append(str(Path(__file__).parent))

from train import LARGE, make_params, train

OPTIMIZERS = {
    "adam": (fastopt.Adam, {"ema": 0.9, "accumulate": 2}),
    "int8": (fastopt.Adam, {"state_dtype": "int8"}),
    "lamb": (fastopt.LAMB, {}),
    "muon": (fastopt.Muon, {}),
    "prodigy": (fastopt.Prodigy, {}),
}
SHARDED = {"begin": True, "resume": True, "whole": False}


def main(directory, part):
    directory = Path(directory)
    for name, (optimizer, options) in OPTIMIZERS.items():
        params = make_params(shapes=LARGE)
        if part == "resume":
            with np.load(directory / f"{name}-begin.npz") as file:
                for key, value in file.items():
                    params[key][...] = value
        opt = mpi.DistributedOptimizer(optimizer(params, **options), sharded=SHARDED[part])
        if part == "resume":
            opt.load(directory / f"{name}.npz")
        for _ in range(2 if part == "whole" else 1):
            train(opt, params, steps=3)
        if part == "begin":
            opt.save(directory / f"{name}.npz")
        if mpi.rank() == 0:
            np.savez(directory / f"{name}-{part}.npz", **params)
        nbytes = opt.ranks.allgather(opt.state_nbytes)
        if mpi.rank() == 0:
            print(name, *nbytes)


if __name__ == "__main__":
    main(*sys.argv[1:])
