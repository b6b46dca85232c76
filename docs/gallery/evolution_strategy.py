"""
Evolution strategy
==================

A policy of four weights learns to balance a pole on a cart, without derivatives. Pairs of opposite
random perturbations of the policy are simulated, and each is weighted by the rank of its reward. The
weighted sum estimates the gradient of the reward, which Adam maximizes (Salimans et al., *Evolution
strategies as a scalable alternative to reinforcement learning*, 2017).
"""

import matplotlib.pyplot as plt
import numpy as np

import fastopt

PAIRS, SIGMA, GENERATIONS = 32, 0.1, 30
STEPS = 500  # of 0.02 s; a pole that stays up for all of them is balanced

# %%
# The cart-pole of Barto, Sutton and Anderson, 1983. All policies of a generation are simulated as one
# batch.


def steps_upright(policies, rng):
    """Return the number of steps before the pole falls, for each policy (a row of four weights)."""
    x, velocity, angle, angular_velocity = np.repeat(rng.uniform(-0.05, 0.05, (4, 1)), len(policies), axis=1)
    is_up, steps = np.ones(len(policies), bool), np.zeros(len(policies), int)
    for _ in range(STEPS):
        score = (policies * np.stack([x, velocity, angle, angular_velocity], axis=1)).sum(axis=1)
        force = np.where(score > 0, 10.0, -10.0)
        sine, cosine = np.sin(angle), np.cos(angle)
        total = (force + 0.05 * angular_velocity**2 * sine) / 1.1
        angular_acceleration = (9.8 * sine - cosine * total) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
        acceleration = total - 0.05 * angular_acceleration * cosine / 1.1
        x, velocity = x + 0.02 * velocity, velocity + 0.02 * acceleration
        angle = angle + 0.02 * angular_velocity
        angular_velocity = angular_velocity + 0.02 * angular_acceleration
        is_up &= (np.abs(x) < 2.4) & (np.abs(angle) < 0.21)
        steps += is_up
        if not is_up.any():
            break
    return steps


# %%
# The loop is the same for any reward.

rng = np.random.default_rng(0)
policy = np.zeros(4)
opt = fastopt.Adam(policy, lr=0.1, maximize=True)
rewards = []
for generation in range(1, GENERATIONS + 1):
    noise = rng.standard_normal((PAIRS, policy.size))
    noise = np.concatenate([noise, -noise])
    rewards.append(steps_upright(policy + SIGMA * noise, rng))
    ranks = rewards[-1].argsort().argsort() / (len(noise) - 1) - 0.5
    opt.step(ranks @ noise / (len(noise) * SIGMA))
    if generation % 10 == 1:
        print(f"Generation {generation}: up for {rewards[-1].mean():.0f} of {STEPS} steps")
trials = [steps_upright(policy[None], rng)[0] for _ in range(20)]
print(f"The policy balances the pole in {trials.count(STEPS)} of {len(trials)} trials")

figure, panel = plt.subplots()
generations = np.arange(1, GENERATIONS + 1)
panel.fill_between(generations, *np.quantile(rewards, (0.1, 0.9), axis=1), alpha=0.25, label="10 % to 90 %")
panel.plot(generations, np.median(rewards, axis=1), label="median policy")
panel.set(xlabel="Generation", ylabel="Steps before the pole falls")
panel.set_title("Cart-pole, evolution strategy with Adam")
figure.legend(loc="outside right center")
plt.show()

# %%
# :doc:`/evolution-strategies` solves another problem, and gives advice on the optimizer and its learning
# rate.
