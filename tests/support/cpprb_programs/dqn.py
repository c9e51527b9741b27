"""Double Q-learning with prioritized replay of gymnasium's frozen lake, for cpprb."""

import json

import gymnasium
import numpy as np
from cpprb import PrioritizedReplayBuffer, create_before_add_func, create_env_dict

STEPS, BATCH, GAMMA = 3000, 32, 0.95


def train():
    random = np.random.default_rng(0)
    env = gymnasium.make("FrozenLake-v1", is_slippery=False)
    states, actions = env.observation_space.n, env.action_space.n
    rb = PrioritizedReplayBuffer(1e4, create_env_dict(env))
    before_add = create_before_add_func(env)
    q = np.ones((states, actions))  # hope: it explores what it has not tried
    target = q.copy()
    beta, beta_step = 0.4, 0.6 / STEPS

    obs, _ = env.reset(seed=1)
    for step in range(STEPS):
        explores = random.random() < 0.1
        act = int(random.integers(actions)) if explores else int(q[obs].argmax())
        next_obs, rew, terminated, truncated, _ = env.step(act)
        rb.add(**before_add(obs=obs, act=act, next_obs=next_obs, rew=rew, done=terminated))
        obs = next_obs
        if terminated or truncated:
            rb.on_episode_end()
            obs, _ = env.reset()
        if step < 100:
            continue

        sample = rb.sample(BATCH, beta)
        beta += beta_step
        state, action = sample["obs"].ravel(), sample["act"].ravel()
        following = sample["next_obs"].ravel()
        value = target[following, q[following].argmax(axis=1)]
        wanted = sample["rew"].ravel() + GAMMA * (1 - sample["done"].ravel()) * value
        error = wanted - q[state, action]
        np.add.at(q, (state, action), 0.2 * sample["weights"] * error)
        rb.update_priorities(sample["indexes"], np.abs(error))
        if step % 50 == 0:
            target = q.copy()
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
