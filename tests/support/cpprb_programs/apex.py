"""Ape-X on a corridor of cells, for cpprb: explorers, one learner, weights through queues."""

import json
import time
from multiprocessing import Event, Process, SimpleQueue

import numpy as np
from cpprb import MPPrioritizedReplayBuffer, ReplayBuffer

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


def explorer(number, global_rb, is_training_done, queue):
    random = np.random.default_rng(number)
    env = Corridor(number)
    epsilon = 0.4 ** (1 + 3 * number)
    q = np.zeros((CELLS, 2))
    local_rb = ReplayBuffer(LOCAL_SIZE, ENV_DICT)

    obs = env.reset()
    while not is_training_done.is_set():
        if not queue.empty():
            q = queue.get()
        act = int(random.integers(2)) if random.random() < epsilon else int((obs @ q).argmax())
        next_obs, rew, done, truncated = env.step(act)
        local_rb.add(obs=obs, act=act, rew=rew, next_obs=next_obs, done=done)
        obs = next_obs
        if done or truncated:
            local_rb.on_episode_end()
            obs = env.reset()

        if local_rb.get_stored_size() == LOCAL_SIZE:
            local_sample = local_rb.get_all_transitions()
            local_rb.clear()
            errors, _, _ = td_errors(q, local_sample)
            global_rb.add(**local_sample, priorities=np.abs(errors))
            time.sleep(0.001)


def learner(global_rb, queues):
    q = np.zeros((CELLS, 2))
    while global_rb.get_stored_size() < WARM_UP:
        time.sleep(0.01)
    for step in range(LEARNER_STEPS):
        sample = global_rb.sample(BATCH, beta=0.4)
        errors, cell, action = td_errors(q, sample)
        np.add.at(q, (cell, action), 0.1 * sample["weights"] * errors)
        global_rb.update_priorities(sample["indexes"], np.abs(errors))
        if step % 50 == 0:
            for queue in queues:
                queue.put(q)
    return q


if __name__ == "__main__":
    global_rb = MPPrioritizedReplayBuffer(5000, ENV_DICT, alpha=0.6)
    is_training_done = Event()
    is_training_done.clear()
    queues = [SimpleQueue() for _ in range(EXPLORERS)]
    processes = [
        Process(target=explorer, args=(number, global_rb, is_training_done, queues[number]))
        for number in range(EXPLORERS)
    ]
    for process in processes:
        process.start()
    try:
        q = learner(global_rb, queues)
    finally:
        is_training_done.set()
        for process in processes:
            process.join()
    assert [process.exitcode for process in processes] == [0] * EXPLORERS
    print(
        json.dumps(
            {
                "stored": global_rb.get_stored_size(),
                "solved": bool((q.argmax(axis=1)[:GOAL] == 1).all()),
            }
        )
    )
