"""
Learning rate schedules
=======================

A schedule is a function of the number of steps taken. Every hyperparameter of an optimizer accepts one.
"""

import matplotlib.pyplot as plt
import numpy as np

import fastopt
from fastopt import schedules

STEPS = 1000
SCHEDULES = {
    "Cosine": schedules.Cosine(0.1, STEPS),
    "LinearWarmup, then Cosine": schedules.LinearWarmup(200, schedules.Cosine(0.1, 800), start_factor=0.0),
    "WSD": schedules.WSD(0.1, STEPS, decay_steps=300, warmup_steps=100),
    "OneCycle": schedules.OneCycle(0.1, STEPS),
    "Step": schedules.Step(0.1, 250, gamma=0.5),
    "Exponential": schedules.Exponential(0.1, 0.997),
    "InverseTime": schedules.InverseTime(0.1, 0.01),
    "Polynomial": schedules.Polynomial(0.1, STEPS, power=2.0),
    "CosineRestarts": schedules.CosineRestarts(0.1, 143, multiplier=2),
}

figure, axes = plt.subplots(3, 3, figsize=(8.0, 5.4), sharex=True, sharey=True)
for panel, (name, schedule) in zip(axes.flat, SCHEDULES.items(), strict=True):
    panel.plot([schedule(step) for step in range(STEPS)])
    panel.set_title(name)
figure.supxlabel("Step", fontsize="medium")
figure.supylabel("Learning rate", fontsize="medium")
plt.show()

# %%
# The optimizer evaluates the schedule at each step, so there is no scheduler to call. Any function of the
# step is also a schedule.

w = np.ones(3)
opt = fastopt.SGD(w, lr=SCHEDULES["WSD"], momentum=lambda step: min(0.9, 0.5 + step / 1000))
for _ in range(3):
    opt.step(w.copy())
print("Steps:", opt.steps, "  next learning rate:", round(opt.groups[0]["lr"](opt.steps), 4))

# %%
# ``Join`` applies several schedules one after the other. Each of them starts at its own step 0.

joined = schedules.Join(
    [schedules.LinearWarmup(100, 0.1), schedules.Step(0.1, 200, gamma=0.5), schedules.Cosine(0.0125, 200)],
    lengths=[100, 700],
)
figure, panel = plt.subplots(figsize=(6.4, 3.0))
panel.plot([joined(step) for step in range(STEPS)])
panel.set(xlabel="Step", ylabel="Learning rate", title="Warmup, then steps, then a cosine")
plt.show()

# %%
# The guide :doc:`/schedules` lists all schedules and the equivalent classes of ``torch.optim.lr_scheduler``.
