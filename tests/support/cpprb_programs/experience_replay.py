"""Q-learning with experience replay on a corridor of cells, for cpprb."""

import json

import numpy as np
from cpprb import ReplayBuffer

CELLS = 12
GOAL = CELLS - 1
GAMMA = 0.95


class Corridor:
    """Walk left (0) or right (1); the goal is at the right end."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)

    def reset(self):
        self.cell = int(self.random.integers(0, GOAL))
        self.steps = 0
        return self.observe()

    def observe(self):
        observation = np.zeros(CELLS)
        observation[self.cell] = 1.0
        return observation

    def step(self, action):
        self.cell = min(max(self.cell + (1 if action == 1 else -1), 0), GOAL)
        self.steps += 1
        solved = self.cell == GOAL
        return self.observe(), float(solved) - 0.01, solved, self.steps >= 200


def train():
    random = np.random.default_rng(0)
    env = Corridor(seed=1)
    env_dict = {
        "obs": {"shape": CELLS},
        "act": {"shape": 1, "dtype": np.ubyte},
        "rew": {},
        "next_obs": {"shape": (CELLS,)},
        "done": {},
    }
    rb = ReplayBuffer(1e3, env_dict, default_dtype=np.float32)
    assert rb.get_buffer_size() == 1000
    assert not rb.is_Nstep()
    q = np.zeros((CELLS, 2))
    episodes = 0
    added = 0

    obs = env.reset()
    for step in range(6000):
        if random.random() < max(0.1, 1 - step / 2000):
            act = int(random.integers(2))
        else:
            act = int(np.argmax(obs @ q))
        next_obs, rew, done, truncated = env.step(act)
        assert rb.get_next_index() == added % 1000
        index = rb.add(obs=obs, act=act, rew=rew, next_obs=next_obs, done=done)
        assert index == added % 1000
        added += 1
        obs = next_obs
        if done or truncated:
            assert rb.get_current_episode_len() == env.steps
            rb.on_episode_end()
            obs = env.reset()
            episodes += 1

        if rb.get_stored_size() < 32:
            continue
        sample = rb.sample(32)
        cell = sample["obs"].argmax(axis=1)
        action = sample["act"].ravel()
        following = (sample["next_obs"] @ q).max(axis=1, keepdims=True)
        target = sample["rew"] + GAMMA * (1.0 - sample["done"]) * following
        error = target.ravel() - q[cell, action]
        np.add.at(q, (cell, action), 0.1 * error)

    rows = rb.get_all_transitions()
    assert rows["obs"].shape == (1000, CELLS)
    assert rows["act"].dtype == np.ubyte
    shuffled = rb.get_all_transitions(shuffle=True)
    assert np.isclose(shuffled["rew"].sum(), rows["rew"].sum())
    size = rb.get_stored_size()
    rb.clear()
    assert rb.get_stored_size() == 0
    return q, episodes, size


if __name__ == "__main__":
    q, episodes, size = train()
    policy = q.argmax(axis=1)[:GOAL]
    print(json.dumps({"episodes": episodes, "stored": size, "solved": bool((policy == 1).all())}))
