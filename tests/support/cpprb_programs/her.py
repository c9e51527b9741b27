"""Q-learning with hindsight goals: flip bits until they are those of the goal, for cpprb."""

import json

import gymnasium
import numpy as np
from cpprb import HindsightReplayBuffer

BITS, LONGEST, EPISODES, BATCH, GAMMA = 4, 6, 500, 64, 0.9


class BitFlipping(gymnasium.Env):
    def __init__(self):
        self.observation_space = gymnasium.spaces.MultiBinary(BITS)
        self.action_space = gymnasium.spaces.Discrete(BITS)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bits = self.np_random.integers(0, 2, BITS)
        self.goal = self.np_random.integers(0, 2, BITS)
        return self.bits.copy(), {}

    def step(self, action):
        self.bits[action] ^= 1
        reached = bool((self.bits == self.goal).all())
        return self.bits.copy(), 0.0 if reached else -1.0, reached, False, {}


def reward(next_states, actions, goals):
    return -1.0 * (next_states != goals).any(axis=1)


def number(bits):
    return (np.asarray(bits, int) << np.arange(BITS)).sum(axis=-1)


def train():
    random = np.random.default_rng(0)
    env = BitFlipping()
    rb = HindsightReplayBuffer(
        1e5,
        {
            "obs": {"shape": BITS, "dtype": np.ubyte},
            "act": {"shape": 1, "dtype": np.ubyte},
            "next_obs": {"shape": BITS, "dtype": np.ubyte},
        },
        LONGEST,
        reward,
        strategy="future",
        additional_goals=4,
        prioritized=True,
    )
    q = np.full((2**BITS, 2**BITS, BITS), -10.0)  # of state, goal and action; never reached

    obs, _ = env.reset(seed=1)
    for _ in range(EPISODES):
        for _ in range(LONGEST):
            explores = random.random() < 0.3
            values = q[number(obs), number(env.goal)]
            act = int(random.integers(BITS)) if explores else int(values.argmax())
            next_obs, rew, terminated, _, _ = env.step(act)
            rb.add(obs=obs, act=act, rew=rew, next_obs=next_obs)
            obs = next_obs
            if terminated:
                break
        rb.on_episode_end(env.goal)
        obs, _ = env.reset()
        for _ in range(10):
            sample = rb.sample(BATCH, beta=1.0)
            state, goal = number(sample["obs"]), number(sample["goal"])
            following, action = number(sample["next_obs"]), sample["act"].ravel()
            value = np.where(following == goal, 0.0, q[following, goal].max(axis=1))
            wanted = sample["rew"].ravel() + GAMMA * value
            error = wanted - q[state, goal, action]
            q[state, goal, action] = wanted
            rb.update_priorities(sample["indexes"], np.abs(error))
    return env, q, rb.get_stored_size()


def success_rate(env, q):
    reached = 0
    for _ in range(100):
        obs, _ = env.reset()
        for _ in range(LONGEST):
            obs, _, terminated, _, _ = env.step(int(q[number(obs), number(env.goal)].argmax()))
            if terminated:
                reached += 1
                break
    return reached / 100


if __name__ == "__main__":
    env, q, stored = train()
    rate = success_rate(env, q)
    print(json.dumps({"stored": stored, "success rate": rate, "solved": rate > 0.9}))
