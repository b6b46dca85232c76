"""Learn to balance a pole on a cart with an evolution strategy, without derivatives.

Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning", 2017: evaluate
the policy with pairs of opposite random perturbations, and weight each perturbation by the rank of its
reward. The weighted sum estimates the gradient of the reward, which Adam maximizes. The task is the cart-pole
of Barto, Sutton and Anderson, 1983. All policies of a generation are simulated as one batch.
"""

import numpy as np

import fastopt

PAIRS, SIGMA, GENERATIONS = 32, 0.1, 30
STEPS = 500  # of 0.02 s; a pole that stays up for all of them is balanced


def steps_upright(policies, rng):
    """Return for each policy, a row of four weights, the number of steps before the pole falls."""
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


def main():
    rng = np.random.default_rng(0)
    policy = np.zeros(4)
    opt = fastopt.Adam(policy, lr=0.1, maximize=True)
    for generation in range(1, GENERATIONS + 1):
        noise = rng.standard_normal((PAIRS, policy.size))
        noise = np.concatenate([noise, -noise])
        reward = steps_upright(policy + SIGMA * noise, rng)
        ranks = reward.argsort().argsort() / (len(noise) - 1) - 0.5
        opt.step(ranks @ noise / (len(noise) * SIGMA))
        if generation % 10 == 1:
            print(f"Generation {generation}: up for {reward.mean():.0f} of {STEPS} steps")
    trials = [steps_upright(policy[None], rng)[0] for _ in range(20)]
    print(f"The policy balances the pole in {trials.count(STEPS)} of {len(trials)} trials")


if __name__ == "__main__":
    main()
