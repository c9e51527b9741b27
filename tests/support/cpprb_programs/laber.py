"""Q-learning on batches that are drawn from large ones by their errors, for cpprb."""

import json

import gymnasium
import numpy as np
from cpprb import LaBERmean, ReplayBuffer

STEPS, BATCH, LARGER, GAMMA = 3000, 16, 4, 0.95


def train():
    random = np.random.default_rng(0)
    env = gymnasium.make("FrozenLake-v1", is_slippery=False)
    states, actions = env.observation_space.n, env.action_space.n
    integer = {"shape": 1, "dtype": np.int32}
    rb = ReplayBuffer(
        1e4, {"obs": integer, "act": integer, "rew": {}, "next_obs": dict(integer), "done": {}}
    )
    laber = LaBERmean(BATCH, LARGER)
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

        large = rb.sample(BATCH * LARGER)
        value = q[large["next_obs"].ravel()].max(axis=1)
        wanted = large["rew"].ravel() + GAMMA * (1 - large["done"].ravel()) * value
        error = wanted - q[large["obs"].ravel(), large["act"].ravel()]
        sample = laber(priorities=np.abs(error), error=error, **large)
        assert np.array_equal(sample["error"], error[sample["indexes"]])
        place = sample["obs"].ravel(), sample["act"].ravel()
        np.add.at(q, place, 0.1 * np.minimum(sample["weights"], 5) * sample["error"])
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
