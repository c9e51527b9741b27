"""Explorers of several processes add sequences that share steps; some are killed at any moment."""

import os
import random
import signal
import time

import multiprocess
import numpy as np
import pytest
from sequence_streams import FIELDS, Rule, assert_whole, found_in, steps_of

from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer

RULE = Rule(12, 5, burn_in=2)


def assert_of_one_episode(batch, rule=RULE):
    """That each sequence is whole, and of steps that one explorer added one after another."""
    __tracebackhide__ = True
    assert_whole(batch, rule)
    for ids, begins_episode in found_in(batch):
        assert ids == tuple(range(ids[0], ids[0] + len(ids)))
        number, step = ids[0] >> 32, ids[0] & 0xFFFF
        assert number >= 0 and step % rule.period == 0
        assert begins_episode == (step == 0)


def number_of(explorer, episode, step):
    return (explorer << 32) + (episode << 16) + step


def explore(buffer, explorer, how, steps):
    """Episodes of random lengths, whose numbers tell where each step is."""
    rng = random.Random(explorer)
    episode = added = 0
    while added < steps:
        length = rng.randrange(1, 60)
        if rng.random() < 0.2:
            buffer.add(**steps_of([number_of(explorer, episode, t) for t in range(length)]))
        else:
            for t in range(length):
                buffer.add(**steps_of(number_of(explorer, episode, t), t == length - 1))
        buffer.on_episode_end()
        if how == "pauses" and rng.random() < 0.05:
            time.sleep(0.1)
        added += length
        episode += 1


def explore_environments(buffer, explorer, how, steps):
    """Three environments with episodes of their own, by a writer."""
    rng = random.Random(explorer)
    with buffer.writer(n_envs=3) as writer:
        at = [(3 * explorer + env, 0, 0, rng.randrange(1, 60)) for env in range(3)]
        for _ in range(steps // 3):
            ids = [number_of(who, episode, t) for who, episode, t, _ in at]
            writer.add(**steps_of(ids, [t == last for _, _, t, last in at]))
            at = [
                (who, episode + 1, 0, rng.randrange(1, 60))
                if t == last
                else (who, episode, t + 1, last)
                for who, episode, t, last in at
            ]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])
def test_explorers_of_every_start_method(cls, method):
    ctx = multiprocess.get_context(method)
    with cls(300, FIELDS, sequence=RULE.argument(), sources=6000) as buffer:
        buffer.add(**steps_of(np.arange(20)))
        jobs = [
            ctx.Process(
                target=explore if i % 2 else explore_environments, args=(buffer, i, "", 1500)
            )
            for i in (101, 102, 103, 104)
        ]
        for job in jobs:
            job.start()
        while any(job.is_alive() for job in jobs):
            assert_of_one_episode(buffer.sample(64))
        for job in jobs:
            job.join()
            assert job.exitcode == 0
        assert len(buffer) == 300
        sequences = buffer.get_all_transitions()
        assert len(set(found_in(sequences))) == 300
        assert_of_one_episode(sequences)


def test_a_forked_child_makes_its_own_sequences():
    with ReplayBuffer(100, FIELDS, sequence=RULE.argument()) as buffer:
        buffer.add(**steps_of(np.arange(8)))
        pid = os.fork()
        if pid == 0:
            buffer.add(**steps_of(number_of(7, 0, 0) + np.arange(12)))
            os._exit(0)
        os.waitpid(pid, 0)
        buffer.add(**steps_of(np.arange(8, 17)))
        assert sorted(ids[0] for ids, _ in found_in(buffer.get_all_transitions())) == [
            0,
            5,
            number_of(7, 0, 0),
        ]
        assert_of_one_episode(buffer.get_all_transitions())


@pytest.mark.parametrize("sources", [None, 600])
def test_killed_and_stopped_explorers_leave_no_wrong_step(sources):
    campaign(sources, seconds=1.5, least_killed=5)


@pytest.mark.slow
@pytest.mark.parametrize("sources", [None, 300, 600, 1500])
def test_killed_and_stopped_explorers_for_long(sources):
    campaign(sources, seconds=30, least_killed=200)


def campaign(sources, seconds, least_killed):
    ctx = multiprocess.get_context("fork")
    rng = random.Random(1)
    sequence = RULE.argument()
    with PrioritizedReplayBuffer(200, FIELDS, sequence=sequence, sources=sources) as buffer:
        buffer.add(**steps_of(np.arange(12)))
        started, jobs, killed, checked = 1000, [], 0, 0
        begun = time.monotonic()
        while killed < least_killed or time.monotonic() < begun + seconds:
            assert time.monotonic() < begun + seconds + 60
            while len(jobs) < 4:
                started += 1
                explorer = rng.choice([explore, explore_environments])
                jobs.append(ctx.Process(target=explorer, args=(buffer, started, "pauses", 10**7)))
                jobs[-1].start()
            time.sleep(rng.random() * 0.02)
            sample = buffer.sample(64)
            assert_of_one_episode(sample)
            checked += 64
            buffer.update_priorities(sample["indexes"], np.ones(64))
            victim = jobs[rng.randrange(4)]
            if rng.random() < 0.3:
                os.kill(victim.pid, signal.SIGSTOP)
                for _ in range(5):
                    assert_of_one_episode(buffer.sample(32))
                    time.sleep(0.005)
                os.kill(victim.pid, signal.SIGCONT)
            else:
                victim.kill()
                victim.join()
                jobs.remove(victim)
                killed += 1
            if rng.random() < 0.03:
                buffer.clear()
                buffer.add(**steps_of(np.arange(12)))
        for job in jobs:
            job.kill()
            job.join()
        print(f"{killed} killed, {checked} sequences of samples whole, {buffer.rows_added()} added")
        size = len(buffer)
        sequences = buffer.get_all_transitions()
        assert len(sequences["id"]) == size
        assert_of_one_episode(sequences)
        buffer.on_episode_end()
        buffer.add(**steps_of(number_of(9, 0, 0) + np.arange(2000)))
        assert len(buffer) == len(buffer.get_all_transitions()["id"])
        assert sources is not None or len(buffer) == 200
        assert_of_one_episode(buffer.sample(256))
