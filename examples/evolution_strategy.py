"""An evolution strategy learns to balance a pole on a cart, without a derivative anywhere.

Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning", 2017:
try the policy with random changes and their opposites, and weight each change by the rank of its
success. That estimates the gradient of the success, which Adam climbs. The task is the cart-pole of
Barto, Sutton and Anderson, 1983; all policies of a generation run side by side.
"""

import numpy as np

import fastopt

PAIRS, SPREAD, GENERATIONS = 32, 0.1, 30
STEPS = 500  # of 0.02 s, after which the pole counts as balanced


def steps_upright(policies, rng):
    """How long each policy, a row of four weights, keeps the pole up, from 0 to STEPS."""
    x, speed, angle, spin = np.repeat(rng.uniform(-0.05, 0.05, (4, 1)), len(policies), axis=1)
    up, steps = np.ones(len(policies), bool), np.zeros(len(policies), int)
    for _ in range(STEPS):
        score = (policies * np.stack([x, speed, angle, spin], axis=1)).sum(axis=1)
        push = np.where(score > 0, 10.0, -10.0)
        sine, cosine = np.sin(angle), np.cos(angle)
        thrust = (push + 0.05 * spin**2 * sine) / 1.1
        turn = (9.8 * sine - cosine * thrust) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
        drive = thrust - 0.05 * turn * cosine / 1.1
        x, speed = x + 0.02 * speed, speed + 0.02 * drive
        angle, spin = angle + 0.02 * spin, spin + 0.02 * turn
        up &= (np.abs(x) < 2.4) & (np.abs(angle) < 0.21)
        steps += up
        if not up.any():
            break
    return steps


def main():
    rng = np.random.default_rng(0)
    policy = np.zeros(4)
    opt = fastopt.Adam(policy, lr=0.1, maximize=True)
    for generation in range(1, GENERATIONS + 1):
        noise = rng.standard_normal((PAIRS, policy.size))
        noise = np.concatenate([noise, -noise])
        success = steps_upright(policy + SPREAD * noise, rng)
        ranks = success.argsort().argsort() / (len(noise) - 1) - 0.5
        opt.step(ranks @ noise / (len(noise) * SPREAD))
        if generation % 10 == 1:
            print(f"Generation {generation}: up for {success.mean():.0f} of {STEPS} steps")
    trials = [steps_upright(policy[None], rng)[0] for _ in range(20)]
    print(f"The policy balances the pole in {trials.count(STEPS)} of {len(trials)} trials")


if __name__ == "__main__":
    main()
