"""Q-learning with prioritized experience replay on a blind cliff walk, for cpprb."""

import json

import cpprb
import numpy as np

STATES = 10
GAMMA = 1 - 1 / STATES


class BlindCliffWalk:
    """One right action a state; any other ends the episode. Only the last one is rewarded."""

    def reset(self):
        self.state = 0
        return np.array([0.0])

    def step(self, action):
        if action != self.state % 2:
            return np.array([-1.0]), 0.0, True
        self.state += 1
        if self.state == STATES:
            return np.array([-1.0]), 1.0, True
        return np.array([float(self.state)]), 0.0, False


def train():
    random = np.random.default_rng(3)
    env = BlindCliffWalk()
    rb = cpprb.PrioritizedReplayBuffer(
        4096,
        {
            "obs": {},
            "act": {"dtype": np.int32},
            "rew": {},
            "next_obs": {},
            "done": {"dtype": bool},
        },
        alpha=0.5,
        eps=1e-3,
    )
    assert rb.get_max_priority() == 1.0

    # A batch of what an expert did, each with the same scalar priority.
    states = np.arange(STATES)
    rb.add(
        obs=states,
        act=states % 2,
        rew=states == STATES - 1,
        next_obs=np.where(states == STATES - 1, -1, states + 1),
        done=states == STATES - 1,
        priorities=np.full(STATES, 2.0),
    )
    assert rb.get_max_priority() == 2.0

    q = 0.1 * random.random((STATES, 2))
    obs = env.reset()
    largest_weight = 0.0
    cycles = 2500
    for cycle in range(cycles):
        state = int(obs[0])
        explores = random.random() < 0.5
        act = int(random.integers(2)) if explores else int(q[state].argmax())
        next_obs, rew, done = env.step(act)
        if cycle % 3 == 0:
            rb.add(obs=obs, act=act, rew=rew, next_obs=next_obs, done=done, priorities=0.5)
        else:
            rb.add(obs=obs, act=act, rew=rew, next_obs=next_obs, done=done)
        obs = next_obs
        if done:
            rb.on_episode_end()
            obs = env.reset()

        sample = rb.sample(16, beta=0.4 + 0.6 * cycle / cycles)
        weights = sample["weights"]
        assert weights.shape == (16,) and weights.dtype == np.float32
        largest_weight = max(largest_weight, float(weights.max()))
        state = sample["obs"].astype(int).ravel()
        action = sample["act"].ravel()
        following = sample["next_obs"].astype(int).ravel()
        ended = sample["done"].ravel()
        value = np.where(ended, 0.0, q[np.maximum(following, 0)].max(axis=1))
        error = sample["rew"].ravel() + GAMMA * value - q[state, action]
        np.add.at(q, (state, action), 0.2 * weights * error)
        rb.update_priorities(sample["indexes"], np.abs(error))

    rb.update_priorities(sample["indexes"].astype(np.int64), [0.25] * 16)
    rows = rb._encode_sample(sample["indexes"])
    assert (rows["act"] == sample["act"]).all()
    return q, rb.get_stored_size(), largest_weight


if __name__ == "__main__":
    q, stored, largest_weight = train()
    policy = q.argmax(axis=1)
    solved = bool((policy == np.arange(STATES) % 2).all())
    print(json.dumps({"stored": stored, "largest weight": largest_weight, "solved": solved}))
