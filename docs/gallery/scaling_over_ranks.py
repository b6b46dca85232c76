"""
Scaling over ranks
==================

The same training script runs on 1, 2 and 4 ranks of MPI, and the weights have the same bits. A cost
model predicts the time per step on machines that you do not have yet.

.. only:: not mpi

   This page was built without MPI, so it does not show the output.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from fastopt import mpi

# %%
# ``DistributedOptimizer`` divides each batch among the ranks and sums their gradients in a fixed order.

SCRIPT = '''
import zlib
import fastopt
from fastopt import mpi
from fastopt.nn.data import load_digits, train_test_split

X_train, X_test, y_train, y_test = train_test_split(*load_digits())
net = fastopt.MLP([64, 64, 10], seed=0)
opt = mpi.DistributedOptimizer(fastopt.Adam(net.params, lr=0.01))
fastopt.Trainer(net, opt).fit(X_train, y_train, batch_size=128, epochs=5, verbose=0, seed=0)
if mpi.rank() == 0:
    checksum = zlib.crc32(b"".join(array.tobytes() for layer in net.params for array in layer))
    accuracy = (net.predict(X_test) == y_test).mean()
    print(f"Ranks: {mpi.size()}, test accuracy: {accuracy:.3f}, checksum of the weights: {checksum:08x}")
'''

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "train.py")
    path.write_text(SCRIPT)
    for ranks in (1, 2, 4):
        command = ["mpiexec", "-n", str(ranks), sys.executable, str(path)]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="")

# %%
# The prediction is for a network of 1.3 million parameters and machines with two cores, one rank per
# core. The times of the gradients and of the network connection were measured (:doc:`/distributed`);
# ``mpi.measure_compute`` and ``mpi.measure_network`` measure yours.

compute = mpi.Compute(fixed=2.71e-3, per_sample=63.4e-6, step=1.19e-3)
figure, panel = plt.subplots()
for gigabits, style in ((25, "o-"), (10, "s--"), (1, "^:")):
    network = mpi.Network(alpha=20e-6, beta=8 / (1e9 * gigabits), gamma=21e-12)
    costs = mpi.predict(1_333_770, 65_536, compute, network, cores=2, ranks_per_machine=2)
    speedups = [costs[0].seconds / cost.seconds for cost in costs]
    panel.loglog([cost.ranks for cost in costs], speedups, style, base=2, label=f"{gigabits} Gbit/s")
panel.plot([1, 1024], [1, 1024], color="0.5", linewidth=0.8, label="ideal")
panel.set(xlabel="Ranks", ylabel="Speedup")
panel.set_title("Adam, 1.3 million parameters, batches of 65,536 (predicted)")
panel.set_xticks([1, 4, 16, 64, 256, 1024], [1, 4, 16, 64, 256, 1024])
panel.set_yticks([1, 4, 16, 64, 256, 1024], [1, 4, 16, 64, 256, 1024])
panel.set_ylim(0.8, 1300)
figure.legend(loc="outside right center")
plt.show()
