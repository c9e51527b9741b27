"""Q-learning with loss-adjusted prioritized replay of gymnasium's frozen lake, for cpprb."""

import json

import gymnasium
import numpy as np
from cpprb import PrioritizedReplayBuffer

STEPS, BATCH, GAMMA = 3000, 64, 0.95


def train():
    random = np.random.default_rng(0)
    env = gymnasium.make("FrozenLake-v1", is_slippery=False)
    states, actions = env.observation_space.n, env.action_space.n
    env_dict = {
        "obs": {"dtype": np.int32},
        "act": {"shape": 1, "dtype": np.ubyte},
        "rew": {},
        "next_obs": {"dtype": np.int32},
        "done": {},
    }
    rb = PrioritizedReplayBuffer(1e4, env_dict, eps=0)
    q = np.ones((states, actions))  # hope: it explores what it has not tried

    obs, _ = env.reset(seed=1)
    for step in range(STEPS):
        explores = random.random() < 0.1
        act = int(random.integers(actions)) if explores else int(q[obs].argmax())
        next_obs, rew, terminated, truncated, _ = env.step(act)
        rb.add(obs=obs, act=act, rew=rew, next_obs=next_obs, done=terminated)
        obs = next_obs
        if terminated or truncated:
            rb.on_episode_end()
            obs, _ = env.reset()
        if step < 100:
            continue

        sample = rb.sample(BATCH, beta=0.0)
        assert (sample["weights"] == 1).all()
        state, action = sample["obs"].ravel(), sample["act"].ravel()
        value = q[sample["next_obs"].ravel()].max(axis=1)
        wanted = sample["rew"].ravel() + GAMMA * (1 - sample["done"].ravel()) * value
        error = wanted - q[state, action]
        np.add.at(q, (state, action), 0.1 * np.clip(error, -1, 1))
        rb.update_priorities(sample["indexes"], np.maximum(np.abs(error), 1.0))
    return env, q, rb.get_stored_size()


def walk(env, q):
    obs, _ = env.reset(seed=2)
    while True:
        obs, rew, terminated, truncated, _ = env.step(int(q[obs].argmax()))
        if terminated or truncated:
            return rew


if __name__ == "__main__":
    env, q, stored = train()
    print(json.dumps({"stored": stored, "solved": walk(env, q) == 1}))
