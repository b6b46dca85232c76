"""
Optimizers on surfaces
======================

This example shows the paths of six optimizers on two functions of two variables. fastopt includes the
functions and the plots, and you can add an optimizer or a surface of your own.
"""

# %%
# Beale's function has flat regions between steep slopes. `find_rate` selects the learning rate of each
# optimizer that gives its best path, so that no optimizer is at a disadvantage.

import fastopt
from fastopt.plots import plot_paths
from fastopt.surfaces import SURFACES, descend, find_rate

OPTIMIZERS = {
    "SGD": lambda point, lr: fastopt.SGD(point, lr=lr),
    "momentum": lambda point, lr: fastopt.SGD(point, lr=lr, momentum=0.9),
    "Nesterov": lambda point, lr: fastopt.SGD(point, lr=lr, momentum=0.9, nesterov=True),
    "AdaGrad": lambda point, lr: fastopt.Adagrad(point, lr=lr),
    "RMSprop": lambda point, lr: fastopt.RMSprop(point, lr=lr),
    "Adam": lambda point, lr: fastopt.Adam(point, lr=lr),
}


def best_paths(surface, steps):
    """Return the path of each optimizer at its best learning rate, and print where it ends."""
    paths = {}
    print(f"{surface.name}: value above the minimum after {steps} steps")
    for name, make in OPTIMIZERS.items():
        lr = find_rate(surface, make, steps)
        path = descend(surface, lambda point, make=make, lr=lr: make(point, lr), steps)
        paths[f"{name}, lr {lr:g}"] = path
        print(f"    {name:10} {surface.value(*path[-1]) - surface.least:.1e}")
    return paths


beale = SURFACES["beale"]
plot_paths(beale, best_paths(beale, 100))

# %%
# Rosenbrock's function is a narrow, curved valley. Every optimizer reaches the valley quickly; the optimizers
# differ in how far they move along it.

rosenbrock = SURFACES["rosenbrock"]
plot_paths(rosenbrock, best_paths(rosenbrock, 200))

# %%
# On the command line, ``fastopt compare --surface beale --plot paths.gif`` draws an animation. The
# tutorial :doc:`/story` derives these optimizers from one another.
