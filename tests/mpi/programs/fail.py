"""A rank fails or exits in the middle of a fit: ``fail.py HOW RANK``.

It exits before the fit if HOW is "leave". The process numbers of all ranks are printed.
"""

import os
import signal
import sys

import numpy as np

import fastopt
from fastopt import callbacks, mpi


class Fail(callbacks.Callback):
    def on_train_batch_end(self, batch, logs):
        if batch != 3 or mpi.rank() != int(sys.argv[2]):
            return
        if sys.argv[1] == "raise":
            raise RuntimeError("the disk is full")
        if sys.argv[1] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if sys.argv[1] == "exit":
            sys.exit()
        if sys.argv[1] == "nan":
            X[...] = np.nan


X = np.random.default_rng(0).normal(size=(4000, 8)).astype("f4")
y = (X[:, 0] > 0).astype(int)
print(f"process {os.getpid()}", flush=True)
if sys.argv[1] == "leave" and mpi.rank() == int(sys.argv[2]):
    sys.exit()
net = fastopt.MLP([8, 16, 2], seed=0)
opt = mpi.DistributedOptimizer(fastopt.Adam(net.params))
fastopt.Trainer(net, opt, [Fail()]).fit(X, y, batch_size=32, epochs=1000, verbose=0)
