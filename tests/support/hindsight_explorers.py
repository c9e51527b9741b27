"""Explorers of the hindsight tests: episodes that follow from their number, and a slow oracle.

Light to import: each spawned process imports it.
"""

import numpy as np

FIELDS = {
    "obs": {"shape": 3},
    "act": {"dtype": "i4"},
    "next_obs": {"shape": 3},
    "episode": {"dtype": "i4"},
    "done": {"dtype": "?"},
}
LONGEST = 20
GOALS = 3


def goals_of(states):
    return states[:, :2]


def rewards_of(next_states, actions, goals):
    return np.where((next_states[:, :2] == goals).all(axis=1), 0.0, -1.0) - 0.25 * actions[:, 0]


def play(number):
    """The steps of an episode, and its goal."""
    rng = np.random.default_rng(number)
    states = rng.integers(0, 3, (int(rng.integers(1, LONGEST + 1)) + 1, 3)).astype(np.float32)
    steps = [
        {
            "obs": states[t],
            "act": int(rng.integers(4)),
            "next_obs": states[t + 1],
            "episode": number,
            "done": t == len(states) - 2,
        }
        for t in range(len(states) - 1)
    ]
    return steps, rng.integers(0, 3, 2)


def explore(buffer, numbers):
    """Play these episodes, with the goals' draws of each from its number."""
    for number in numbers:
        steps, goal = play(number)
        buffer.rng = np.random.default_rng([7, number])
        for step in steps:
            buffer.add(**step)
        buffer.on_episode_end(goal)


def explore_without_end(buffer, first):
    number = first
    while True:
        explore(buffer, [number])
        number += 1


def explore_by_name(name, strategy, numbers):
    """The same in a process that was told the name only."""
    from mpbuffer import HindsightReplayBuffer

    rules = {"goal_func": goals_of, "strategy": strategy, "additional_goals": GOALS}
    with HindsightReplayBuffer.attach(name, LONGEST, rewards_of, timeout=60, **rules) as buffer:
        explore(buffer, numbers)


def oracle(number, strategy):
    """The rows of an episode as the paper has them, one number at a time."""
    steps, goal = play(number)
    rng = np.random.default_rng([7, number])
    n = len(steps)
    sets = [[np.asarray(goal, np.float32)] * n]
    if strategy == "future":
        drawn = [[int(rng.integers(t, n)) for _ in range(GOALS)] for t in range(n)]
        places = [[drawn[t][k] for t in range(n)] for k in range(GOALS)]
    elif strategy == "episode":
        places = [[int(rng.integers(0, n)) for _ in range(n)] for _ in range(GOALS)]
    else:
        places = [[n - 1] * n]
    sets += [[steps[place]["next_obs"][:2] for place in each] for each in places]
    rows = []
    for each in sets:
        for step, wanted in zip(steps, each, strict=True):
            reached = all(step["next_obs"][i] == wanted[i] for i in range(2))
            reward = (0.0 if reached else -1.0) - 0.25 * step["act"]
            rows.append({**step, "goal": wanted, "rew": reward})
    return rows
