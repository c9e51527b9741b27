"""Buffers for Tianshou: its own arithmetic of episodes, its own algorithms, on our rows."""

import pickle

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
torch = pytest.importorskip("torch")
theirs = pytest.importorskip("tianshou.data")

import tianshou  # noqa: E402
from tianshou.algorithm.algorithm_base import Algorithm  # noqa: E402
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy  # noqa: E402
from tianshou.algorithm.optim import AdamOptimizerFactory  # noqa: E402
from tianshou.trainer import OffPolicyTrainerParams  # noqa: E402
from tianshou.utils.net.common import Net  # noqa: E402

import mpbuffer  # noqa: E402
from mpbuffer.adapters import tianshou as ours  # noqa: E402


class Steps:
    """Steps of environments whose observations tell which step they are."""

    def __init__(self, n_envs, seed=0, nested=False):
        self.rng, self.nested = np.random.default_rng(seed), nested
        self.at = np.arange(n_envs) * 1_000.0

    def batch(self, envs):
        obs = self.at[envs]
        self.at[envs] += 1
        return theirs.Batch(
            obs=self.seen(obs),
            act=self.rng.integers(3, size=len(envs)),
            rew=self.rng.normal(size=len(envs)),
            terminated=self.rng.random(len(envs)) < 0.15,
            truncated=self.rng.random(len(envs)) < 0.1,
            obs_next=self.seen(obs + 1),
            info=theirs.Batch(env_id=envs),
        )

    def seen(self, numbers):
        frames = np.stack([numbers, -numbers], axis=1)
        return theirs.Batch(camera=frames, room=theirs.Batch(at=numbers)) if self.nested else frames


def filled(buffer, n_envs, count, all_step=True, seed=0, nested=False):
    """Return what add() has told, of each step; some steps are only of some environments."""
    steps, told, rng = Steps(n_envs, seed, nested), [], np.random.default_rng(seed)
    for _ in range(count):
        envs = np.arange(n_envs)
        if not all_step:
            envs = np.flatnonzero(rng.random(n_envs) < 0.6)
        if len(envs):
            told.append(buffer.add(steps.batch(envs), buffer_ids=envs))
    return told


def identities(buffer, indices):
    return buffer[np.asarray(indices)].obs[:, 0].astype(int).tolist()


@pytest.mark.parametrize("count", [5, 30, 77])
@pytest.mark.parametrize("n_envs", [1, 4])
def test_neighbours_are_those_of_tianshou(n_envs, count):
    buffer = ours.VectorReplayBuffer(30 * n_envs, n_envs)
    own = theirs.VectorReplayBuffer(30 * n_envs, n_envs)
    told, expected = filled(buffer, n_envs, count), filled(own, n_envs, count)
    for (slots, *statistics, starts), (their_slots, *of_theirs, their_starts) in zip(
        told, expected, strict=True
    ):
        for one, other in zip(statistics, of_theirs, strict=True):
            np.testing.assert_allclose(one, other)
        assert len(slots) == len(starts) == len(their_slots) == len(their_starts)
    assert len(buffer) == len(own)
    all_ours, all_theirs = buffer.sample_indices(0), own.sample_indices(0)
    assert identities(buffer, all_ours) == identities(own, all_theirs)
    for step in ("prev", "next"):
        reached = [
            identities(each, getattr(each, step)(indices))
            for each, indices in ((buffer, all_ours), (own, all_theirs))
        ]
        assert reached[0] == reached[1]
    unfinished = [identities(each, each.unfinished_index()) for each in (buffer, own)]
    assert unfinished[0] == unfinished[1]
    for name in ("act", "rew", "terminated", "truncated", "done", "obs", "obs_next"):
        one, other = buffer[all_ours][name], own[all_theirs][name]
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    for column in ("rew", "done", "terminated", "truncated"):
        np.testing.assert_array_equal(
            getattr(buffer, column)[all_ours], getattr(own, column)[all_theirs]
        )
    buffer.close()


def test_environments_that_step_at_different_times_keep_to_their_episodes():
    buffer = ours.VectorReplayBuffer(40, 4)
    filled(buffer, 4, 60, all_step=False)
    obs = buffer[:].obs[:, 0]
    assert len(set(obs)) == len(buffer) == 40
    left = {obs: index for obs, index in zip(obs, buffer.sample_indices(0), strict=True)}
    for at, index in left.items():
        after = left.get(at + 1)
        expected = index if after is None or buffer.done[index] else after
        assert buffer.next(index) == expected
        before = left.get(at - 1)
        expected = index if before is None or buffer.done[before] else before
        assert buffer.prev(index) == expected
    buffer.close()


def test_an_episode_is_found_by_the_indices_that_add_tells():
    buffer = ours.VectorReplayBuffer(40, 4)
    steps, rng, running = Steps(4, 3), np.random.default_rng(3), {env: [] for env in range(4)}
    found = 0
    for _ in range(30):
        envs = np.flatnonzero(rng.random(4) < 0.6)
        if not len(envs):
            continue
        batch = steps.batch(envs)
        slots, returns, lengths, starts = buffer.add(batch, buffer_ids=envs)
        for row, env in enumerate(envs):
            running[env].append(batch.obs[row, 0])
            if not (batch.terminated[row] or batch.truncated[row]):
                assert returns[row] == lengths[row] == 0
                continue
            episode = buffer[buffer.get_buffer_indices(int(starts[row]), int(slots[row] + 1))]
            assert lengths[row] == len(running[env])
            assert episode.obs[:, 0].tolist() == running[env][-len(episode) :]
            found += len(episode) == len(running[env])
            running[env] = []
    assert found > 5
    buffer.close()


@pytest.mark.parametrize("nested", [False, True])
def test_observations_are_stacked_as_tianshou_does(nested):
    options = {"stack_num": 3, "ignore_obs_next": True}
    buffer = ours.VectorReplayBuffer(60, 2, **options)
    own = theirs.VectorReplayBuffer(60, 2, **options)
    for each in (buffer, own):
        filled(each, 2, 25, nested=nested)
    batches = [each[each.sample_indices(0)] for each in (buffer, own)]
    for name in ("obs", "obs_next"):
        one, other = batches[0][name], batches[1][name]
        for path in (("camera",), ("room", "at")) if nested else ((),):
            for key in path:
                one, other = one[key], other[key]
            np.testing.assert_array_equal(one, other)
            one, other = batches[0][name], batches[1][name]
    assert "obs_next" not in {name for name in buffer.rows.get_all_transitions()}
    buffer.close()


def test_the_last_observation_of_a_stack_is_stored():
    buffer = ours.VectorReplayBuffer(10, 1, save_only_last_obs=True, stack_num=2)
    frames = np.arange(4.0).reshape(1, 4, 1)
    step = Steps(1).batch(np.array([0]))
    step.obs, step.obs_next, step.terminated[:], step.truncated[:] = frames, frames + 1, 0, 0
    buffer.add(step)
    buffer.add(step)
    assert buffer[np.array([0, 1])].obs.tolist() == [[[3.0], [3.0]], [[3.0], [3.0]]]
    assert buffer.rows.get_all_transitions()["obs"].shape == (2, 1)
    buffer.close()


def test_nstep_returns_are_those_of_tianshou():
    buffer, own = ours.VectorReplayBuffer(60, 3), theirs.VectorReplayBuffer(60, 3)
    results = []
    for each in (buffer, own):
        filled(each, 3, 33)
        indices = each.sample_indices(0)
        batch = Algorithm.compute_nstep_return(
            each[indices],
            each,
            indices,
            lambda b, at: torch.tensor(b[at].obs_next[:, :1]),
            gamma=0.9,
            n_step=3,
        )
        results.append(batch.returns)
    assert torch.equal(*results)
    buffer.close()


def test_samples_are_whole_rows():
    buffer = ours.VectorReplayBuffer(40, 2)
    assert len(buffer) == 0 and len(buffer.sample_indices(0)) == 0
    filled(buffer, 2, 50)
    batch, indices = buffer.sample(800)
    assert np.array_equal(batch.obs, buffer[indices].obs) and len(set(indices)) == 40
    assert np.array_equal(batch.obs_next - batch.obs, np.tile([1.0, -1.0], (800, 1)))
    assert sorted(buffer.sample(None)[1]) == list(range(40))
    assert buffer[3].obs.shape == (2,) and not buffer.hasnull()
    assert identities(buffer, [5, 6]) == buffer.get([5, 6], "obs")[:, 0].astype(int).tolist()
    buffer.reset()
    assert len(buffer) == 0 and len(buffer.unfinished_index()) == 0
    buffer.close()


def test_priorities_are_updated_and_weigh():
    buffer = ours.PrioritizedVectorReplayBuffer(40, 2, alpha=1.0, beta=1.0)
    filled(buffer, 2, 20)
    batch, indices = buffer.sample(40)
    np.testing.assert_allclose(batch.weight, 1.0)
    every = np.arange(40)
    buffer.update_weight(every, torch.tensor(-(every + 1.0)))
    batch, indices = buffer.sample(400)
    np.testing.assert_allclose(batch.weight, (indices.min() + 1) / (indices + 1), rtol=1e-5)
    buffer.set_beta(0.0)
    assert np.all(buffer.sample(9)[0].weight == 1)
    buffer.close()


def test_a_pickle_holds_rows_and_episodes():
    buffer = ours.PrioritizedVectorReplayBuffer(20, 2, alpha=0.6, beta=0.4, name="of-tianshou")
    filled(buffer, 2, 33)
    loaded = pickle.loads(pickle.dumps(buffer))
    assert loaded.rows.name != buffer.rows.name
    for each in (buffer, loaded):
        filled(each, 2, 4, seed=1)
    assert identities(loaded, loaded.sample_indices(0)) == identities(
        buffer, buffer.sample_indices(0)
    )
    np.testing.assert_array_equal(loaded.prev(np.arange(20)), buffer.prev(np.arange(20)))
    loaded.close()
    buffer.close()


def test_it_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="buffer_num"):
        ours.VectorReplayBuffer(10, 0)
    with pytest.raises(ValueError, match="stack_num"):
        ours.VectorReplayBuffer(10, 1, stack_num=0)
    buffer = ours.VectorReplayBuffer(10, 2)
    filled(buffer, 2, 1)
    with pytest.raises(ValueError, match="one for each of the environments"):
        buffer.add(Steps(3).batch(np.arange(3)))
    with pytest.raises(NotImplementedError):
        buffer.update(buffer)
    with mpbuffer.attach(buffer.rows.name) as rows:
        rows.add(obs=[1, 2], obs_next=[1, 2], act=0, rew=0, terminated=0, truncated=0)
    for call in (lambda: buffer.sample(4), lambda: filled(buffer, 2, 1)):
        with pytest.raises(RuntimeError, match="other processes have added 1"):
            call()
    buffer.close()


def trained(buffer, epochs, steps, stop_at=None):
    """Tianshou's own example of DQN on CartPole, with this buffer; return its best result."""
    torch.manual_seed(1)
    np.random.seed(1)
    envs = [
        tianshou.env.DummyVectorEnv([lambda: gymnasium.make("CartPole-v1")] * count)
        for count in (10, 20)
    ]
    for each in envs:
        each.seed(1)
    space = envs[0].action_space[0]
    policy = DiscreteQLearningPolicy(
        model=Net(state_shape=(4,), action_shape=2, hidden_sizes=[128, 128, 128]),
        action_space=space,
        eps_training=0.1,
        eps_inference=0.05,
    )
    algorithm = tianshou.algorithm.DQN(
        policy=policy,
        optim=AdamOptimizerFactory(lr=1e-3),
        gamma=0.9,
        n_step_return_horizon=3,
        target_update_freq=320,
    )
    collectors = [
        theirs.Collector(algorithm, envs[0], buffer, exploration_noise=True),
        theirs.Collector(algorithm, envs[1], exploration_noise=True),
    ]
    result = algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=collectors[0],
            test_collector=collectors[1],
            max_epochs=epochs,
            epoch_num_steps=steps,
            collection_step_num_env_steps=10,
            test_step_num_episodes=20,
            batch_size=64,
            update_step_num_gradient_steps_per_sample=0.1,
            stop_fn=None if stop_at is None else (lambda reward: reward >= stop_at),
            test_in_training=stop_at is not None,
            show_progress=False,
            verbose=False,
        )
    )
    return result.best_reward


@pytest.mark.parametrize("prioritized", [False, True])
def test_dqn_trains(prioritized):
    exponents = {"alpha": 0.6, "beta": 0.4} if prioritized else {}
    cls = ours.PrioritizedVectorReplayBuffer if prioritized else ours.VectorReplayBuffer
    buffer = cls(2_000, 10, **exponents)
    assert trained(buffer, 1, 200) > 0
    assert len(buffer) >= 200
    if prioritized:
        assert buffer.rows.learner_status().updates > 0
    buffer.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dqn_solves_cartpole():
    buffer = ours.VectorReplayBuffer(20_000, 10)
    assert trained(buffer, 10, 10_000, stop_at=475) >= 475
    buffer.close()
