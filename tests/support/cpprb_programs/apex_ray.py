"""Ape-X on a corridor of cells, for cpprb on Ray: each explorer is an actor, its rows a result."""

import json

import numpy as np
import ray
from cpprb import PrioritizedReplayBuffer, ReplayBuffer

CELLS = 10
GOAL = CELLS - 1
GAMMA = 0.95
EXPLORERS = 2
LOCAL_SIZE = 50
BATCH = 32
WARM_UP = 200
LEARNER_STEPS = 1500

ENV_DICT = {
    "obs": {"shape": CELLS},
    "act": {"dtype": np.int64},
    "rew": {},
    "next_obs": {"shape": CELLS},
    "done": {},
}


class Corridor:
    def __init__(self, seed):
        self.random = np.random.default_rng(seed)

    def reset(self):
        self.cell = int(self.random.integers(0, GOAL))
        self.steps = 0
        return np.eye(CELLS)[self.cell]

    def step(self, action):
        self.cell = min(max(self.cell + (1 if action == 1 else -1), 0), GOAL)
        self.steps += 1
        return (
            np.eye(CELLS)[self.cell],
            float(self.cell == GOAL) - 0.01,
            self.cell == GOAL,
            self.steps >= 100,
        )


def td_errors(q, rows):
    cell = rows["obs"].argmax(axis=1)
    action = rows["act"].ravel()
    following = (rows["next_obs"] @ q).max(axis=1, keepdims=True)
    target = rows["rew"] + GAMMA * (1 - rows["done"]) * following
    return target.ravel() - q[cell, action], cell, action


@ray.remote(num_cpus=0)
class Explorer:
    def __init__(self, number):
        self.random = np.random.default_rng(number)
        self.env = Corridor(number)
        self.epsilon = 0.4 ** (1 + 3 * number)
        self.local_rb = ReplayBuffer(LOCAL_SIZE, ENV_DICT)
        self.obs = self.env.reset()

    def explore(self, q):
        while self.local_rb.get_stored_size() < LOCAL_SIZE:
            greedy = self.random.random() >= self.epsilon
            act = int((self.obs @ q).argmax()) if greedy else int(self.random.integers(2))
            next_obs, rew, done, truncated = self.env.step(act)
            self.local_rb.add(obs=self.obs, act=act, rew=rew, next_obs=next_obs, done=done)
            self.obs = next_obs
            if done or truncated:
                self.local_rb.on_episode_end()
                self.obs = self.env.reset()
        local_sample = self.local_rb.get_all_transitions()
        self.local_rb.clear()
        errors, _, _ = td_errors(q, local_sample)
        return local_sample, np.abs(errors)


def learn(global_rb, explorers):
    q = np.zeros((CELLS, 2))
    q_of_all = ray.put(q)
    exploring = {explorer.explore.remote(q_of_all): explorer for explorer in explorers}
    step = 0
    while step < LEARNER_STEPS:
        (ready,), _ = ray.wait(list(exploring), num_returns=1)
        explorer = exploring.pop(ready)
        local_sample, priorities = ray.get(ready)
        global_rb.add(**local_sample, priorities=priorities)
        exploring[explorer.explore.remote(q_of_all)] = explorer
        if global_rb.get_stored_size() < WARM_UP:
            continue
        for _ in range(25):
            sample = global_rb.sample(BATCH, beta=0.4)
            errors, cell, action = td_errors(q, sample)
            np.add.at(q, (cell, action), 0.1 * sample["weights"] * errors)
            global_rb.update_priorities(sample["indexes"], np.abs(errors))
        step += 25
        q_of_all = ray.put(q)
    return q


if __name__ == "__main__":
    ray.init(num_cpus=EXPLORERS, include_dashboard=False, log_to_driver=False, logging_level=40)
    global_rb = PrioritizedReplayBuffer(5000, ENV_DICT, alpha=0.6)
    q = learn(global_rb, [Explorer.remote(number) for number in range(EXPLORERS)])
    print(
        json.dumps(
            {
                "stored": global_rb.get_stored_size(),
                "solved": bool((q.argmax(axis=1)[:GOAL] == 1).all()),
            }
        )
    )
    ray.shutdown()
