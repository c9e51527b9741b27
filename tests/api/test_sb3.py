"""Buffers for Stable-Baselines3: the values of its own, in rows that other processes can add to."""

import io
import pickle

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
torch = pytest.importorskip("torch")
pytest.importorskip("stable_baselines3")

from gymnasium import spaces  # noqa: E402
from stable_baselines3 import DQN, SAC, TD3  # noqa: E402
from stable_baselines3.common import buffers as theirs  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402
from stable_baselines3.her import HerReplayBuffer  # noqa: E402
from watched_processes import run_python  # noqa: E402

import mpbuffer  # noqa: E402
from mpbuffer.adapters import sb3  # noqa: E402
from mpbuffer.errors import EmptyBuffer  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Walk(gymnasium.Env):
    """A walk that ends at random, and that a time limit cuts off."""

    observation_space = spaces.Box(-9, 9, (3,), np.float32)

    def __init__(self, discrete=True):
        self.action_space = spaces.Discrete(2) if discrete else spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.normal(size=3).astype(np.float32)
        return self.at, {}

    def step(self, action):
        move = np.float32(np.sum(action) - isinstance(self.action_space, spaces.Discrete) / 2)
        self.at = np.clip(self.at + move + self.np_random.normal(size=3) / 2, -9, 9)
        self.at = self.at.astype(np.float32)
        ends = bool(self.np_random.random() < 0.1)  # whatever the policy learns
        return self.at, float(self.at[0]), ends, False, {}


class WideWalk(Walk):
    """The same, its observations large enough for frames to be worth it."""

    observation_space = spaces.Box(-9, 9, (36,), np.float32)

    def reset(self, **options):
        obs, info = super().reset(**options)
        return np.tile(obs, 12), info

    def step(self, action):
        obs, *others = super().step(action)
        return np.tile(obs, 12), *others


def walks(n_envs, discrete=True, walk=Walk):
    def limited():
        return gymnasium.wrappers.TimeLimit(walk(discrete), 6)

    return make_vec_env(limited, n_envs, seed=1)


class DrawsOfSb3(sb3.ReplayBuffer):
    """Our buffer at the draws that Stable-Baselines3's own would make."""

    def sample(self, batch_size, env=None):
        return theirs.BaseBuffer.sample(self, batch_size, env)


def trained(algorithm, n_envs, buffer, steps, wrapped=lambda env: env, walk=Walk, **arguments):
    env = wrapped(walks(n_envs, algorithm is DQN, walk))
    model = algorithm(
        "MlpPolicy",
        env,
        seed=3,
        learning_starts=20,
        buffer_size=steps // 2,
        batch_size=8,
        policy_kwargs={"net_arch": [8]},
        replay_buffer_class=buffer,
        device="cpu",
        **arguments,
    )
    return model.learn(steps)


def weights_of(model):
    return torch.cat([value.detach().flatten() for value in model.policy.state_dict().values()])


def assert_same_weights(algorithm, n_envs, steps, **arguments):
    ours = trained(algorithm, n_envs, DrawsOfSb3, steps, **arguments)
    own = trained(algorithm, n_envs, theirs.ReplayBuffer, steps, **arguments)
    assert torch.equal(weights_of(ours), weights_of(own))
    buffer = ours.replay_buffer
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(buffer, name), getattr(own.replay_buffer, name))
    assert buffer.full and buffer.pos == own.replay_buffer.pos
    assert 0 < buffer.timeouts.sum() < buffer.dones.sum()
    buffer.close()


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("algorithm", [DQN, SAC, TD3])
def test_networks_are_those_of_sb3_at_the_same_draws(algorithm, n_envs):
    assert_same_weights(algorithm, n_envs, 120, train_freq=4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("algorithm", [DQN, SAC, TD3])
def test_networks_are_those_of_sb3_after_5000_steps(algorithm, n_envs):
    assert_same_weights(algorithm, n_envs, 5_000, train_freq=1)


def test_normalized_samples_are_those_of_sb3():
    def normalized(env):
        return VecNormalize(env, gamma=0.9)

    assert_same_weights(DQN, 2, 120, wrapped=normalized)


def test_an_algorithm_of_sb3_contrib_trains():
    contrib = pytest.importorskip("sb3_contrib")
    arguments = {"buffer_size": 200, "learning_starts": 20, "policy_kwargs": {"net_arch": [8]}}
    model = contrib.QRDQN(
        "MlpPolicy", walks(2), replay_buffer_class=sb3.ReplayBuffer, **arguments
    ).learn(60)
    assert model.replay_buffer.size() >= 30
    model.replay_buffer.close()


SPACES = {
    "a number": spaces.Discrete(5),
    "many numbers": spaces.MultiDiscrete([3, 4]),
    "bits": spaces.MultiBinary(3),
    "doubles": spaces.Box(-1, 1, (2,), np.float64),
    "a matrix": spaces.Box(-1, 1, (2, 3), np.float32),
    "frames": spaces.Box(0, 255, (1, 4, 4), np.uint8),
}


def sampled(space, n_envs):
    if isinstance(space, spaces.Dict):
        return {key: sampled(each, n_envs) for key, each in space.spaces.items()}
    return np.stack([np.asarray(space.sample()) for _ in range(n_envs)])


def steps_of(observation_space, action_space, n_envs, count, seed=0, ends=0.3):
    """Arguments of add(): episodes of which some are cut off, each step beginning where one ended.

    Stable-Baselines3 writes into the dicts it is given: each call makes them anew.
    """
    rng = np.random.default_rng(seed)
    observation_space.seed(seed)
    action_space.seed(seed)
    obs = sampled(observation_space, n_envs)
    for _ in range(count):
        next_obs = sampled(observation_space, n_envs)
        done = rng.random(n_envs) < ends
        infos = [{"TimeLimit.truncated": bool(end and rng.random() < 0.5)} for end in done]
        reward = rng.normal(size=n_envs).astype(np.float32)
        yield obs, next_obs, sampled(action_space, n_envs), reward, done, infos
        obs = next_obs


def filled(buffer, *arguments, **options):
    for step in steps_of(buffer.observation_space, buffer.action_space, *arguments, **options):
        buffer.add(*step)
    return buffer


def assert_same_samples(ours, own):
    for name, expected in own._asdict().items():
        actual = getattr(ours, name)
        pairs = [(actual, expected)]
        if isinstance(expected, dict):
            assert set(actual) == set(expected)
            pairs = [(actual[key], expected[key]) for key in expected]
        for one, other in pairs:
            assert (one is None) == (other is None), name
            if one is not None:
                assert (one.dtype, one.shape) == (other.dtype, other.shape), name
                assert torch.equal(one, other), name


def draw(buffer, count, method=theirs.BaseBuffer.sample):
    np.random.seed(5)
    return method(buffer, count)


@pytest.mark.parametrize("timeouts", [True, False])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("kind", SPACES)
def test_samples_are_those_of_sb3_in_each_space(kind, n_envs, timeouts):
    both = [(SPACES[kind], SPACES[kind]), (SPACES["doubles"], SPACES[kind])]
    for observation_space, action_space in both:
        arguments = (20, observation_space, action_space, "cpu", n_envs)
        for count in (4, 33):
            ours, own = (
                filled(cls(*arguments, handle_timeout_termination=timeouts), n_envs, count)
                for cls in (sb3.ReplayBuffer, theirs.ReplayBuffer)
            )
            assert (ours.size(), ours.pos, ours.full) == (own.size(), own.pos, own.full)
            assert_same_samples(draw(ours, 50), draw(own, 50))
            assert ours.action_dim == own.action_dim and ours.obs_shape == own.obs_shape
            ours.close()


OBSERVATIONS = spaces.Dict({"camera": SPACES["frames"], "room": SPACES["a number"]})


@pytest.mark.parametrize("n_envs", [1, 3])
def test_dict_samples_are_those_of_sb3(n_envs):
    ours, own = (
        filled(cls(20, OBSERVATIONS, SPACES["a number"], "cpu", n_envs), n_envs, 33)
        for cls in (sb3.DictReplayBuffer, theirs.DictReplayBuffer)
    )
    assert_same_samples(draw(ours, 50), draw(own, 50))
    for key in OBSERVATIONS.spaces:
        np.testing.assert_array_equal(ours.observations[key], own.observations[key])
    ours.close()


def test_samples_are_whole_rows_drawn_by_the_buffer_itself():
    ours = filled(sb3.DictReplayBuffer(20, OBSERVATIONS, SPACES["a number"], "cpu", 2), 2, 33)
    known = {row.tobytes() for row in ours.observations["camera"].reshape(20, 16)}
    batch = ours.sample(500)
    drawn = {row.tobytes() for row in batch.observations["camera"].numpy().reshape(500, 16)}
    assert drawn == known and len(known) == 20
    ours.close()


# Observations that are stored once

SCREENS = spaces.Box(0, 255, (1, 16, 16), np.uint8)


class OptimizedDrawsOfSb3(sb3.ReplayBuffer):
    """Our buffer at the draws of Stable-Baselines3's that stores observations once."""

    def sample(self, batch_size, env=None):
        return theirs.ReplayBuffer.sample(self, batch_size, env)


def episodes_of(space, n_envs, count, ends=0.3):
    """As steps_of, but what follows an end is another observation, as after a reset."""
    begins = np.zeros(n_envs, bool)
    for obs, *others in steps_of(space, SPACES["a number"], n_envs, count, ends=ends):
        fresh = sampled(space, n_envs)
        yield np.where(begins.reshape(-1, *[1] * (obs.ndim - 1)), fresh, obs), *others
        begins = others[-2]


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("count", [9, 70])
def test_observations_that_are_stored_once_are_those_of_sb3(n_envs, count):
    arguments = 60, SCREENS, SPACES["a number"], "cpu", n_envs
    options = {"optimize_memory_usage": True, "handle_timeout_termination": False}
    ours, own = sb3.ReplayBuffer(*arguments, **options), theirs.ReplayBuffer(*arguments, **options)
    whole = theirs.ReplayBuffer(*arguments, handle_timeout_termination=False)
    begun = n_envs
    for step in episodes_of(SCREENS, n_envs, count):
        for buffer in (ours, own, whole):
            buffer.add(*step)
        begun += np.count_nonzero(step[4])
    batches = [draw(buffer, 200, theirs.ReplayBuffer.sample) for buffer in (ours, own)]
    assert batches[0].dones.any() and not batches[0].dones.all()
    goes_on = batches[0].dones.flatten() == 0
    assert_same_samples(*(type(own_)(*(each[goes_on] for each in own_[:5])) for own_ in batches))
    assert torch.equal(batches[0].observations, batches[1].observations)
    assert_same_samples(draw(ours, 200), draw(whole, 200))  # ends have their observation, too
    written = ours.rows.stats()["sources_written"]
    assert n_envs * count + begun - n_envs <= written <= n_envs * count + begun
    assert ours.optimize_memory_usage and ours.rows.stats()["early"] == 0
    ours.close()


@pytest.mark.parametrize("n_envs", [1, 3])
def test_time_limits_are_told_from_ends_where_observations_are_stored_once(n_envs):
    arguments = 60, SCREENS, SPACES["a number"], "cpu", n_envs
    ours, own = (
        sb3.ReplayBuffer(*arguments, optimize_memory_usage=True),
        theirs.ReplayBuffer(*arguments),
    )
    for step in episodes_of(SCREENS, n_envs, 50):
        ours.add(*step)
        own.add(*step)
    assert 0 < own.timeouts.sum() < own.dones.sum()
    assert_same_samples(draw(ours, 200), draw(own, 200))
    copied = pickle.loads(pickle.dumps(ours))
    assert_same_samples(draw(copied, 200), draw(own, 200))
    assert copied.rows.stats()["sources"] == ours.rows.stats()["sources"] > 0
    ours.close()
    copied.close()


@pytest.mark.parametrize("n_envs", [1, 4])
def test_networks_are_those_of_sb3_where_observations_are_stored_once(n_envs):
    weights = []
    for buffer in (OptimizedDrawsOfSb3, theirs.ReplayBuffer):
        model = trained(
            DQN,
            n_envs,
            buffer,
            120,
            walk=WideWalk,
            optimize_memory_usage=True,
            replay_buffer_kwargs={"handle_timeout_termination": False},
        )
        weights.append(weights_of(model))
        if buffer is OptimizedDrawsOfSb3:
            assert model.replay_buffer.rows.stats()["sources_written"] < 2 * 120
            model.replay_buffer.close()
    assert torch.equal(*weights)


def test_stacked_frames_take_a_fifth_of_the_memory():
    stacks = spaces.Box(0, 255, (4, 42, 42), np.uint8)
    arguments = 8_000, stacks, SPACES["a number"], "cpu", 2
    plain = sb3.ReplayBuffer(*arguments)
    once = sb3.ReplayBuffer(*arguments, optimize_memory_usage=True)
    stacked = sb3.ReplayBuffer(*arguments, optimize_memory_usage=True, stack_compress="obs")
    prioritized = sb3.PrioritizedReplayBuffer(
        *arguments, optimize_memory_usage=True, stack_compress="obs"
    )
    assert once.rows.nbytes < 0.68 * plain.rows.nbytes
    assert stacked.rows.nbytes < 0.19 * plain.rows.nbytes
    frames = np.random.default_rng(0).integers(0, 256, (2, 60, 42, 42), np.uint8)
    for buffer in (once, stacked, prioritized):
        for at in range(50):
            obs, next_obs = frames[:, at : at + 4], frames[:, at + 1 : at + 5]
            buffer.add(obs, next_obs, np.zeros(2), np.ones(2), np.zeros(2, bool), [{}, {}])
        np.testing.assert_array_equal(buffer.observations[:50, 1, 0], frames[1, :50])
        np.testing.assert_array_equal(buffer.next_observations[:50, 0, 3], frames[0, 4:54])
        assert buffer.sample(32).observations.shape == (32, 4, 42, 42)
    assert stacked.rows.stats()["sources_written"] == 2 * (50 + 4)
    for buffer in (plain, once, stacked, prioritized):
        buffer.close()


def test_dict_observations_are_stored_once():
    screens = spaces.Dict({"camera": SCREENS, "room": SPACES["a number"]})
    ours, own = (
        filled(cls(20, screens, SPACES["a number"], "cpu", 2, **options), 2, 33)
        for cls, options in (
            (sb3.DictReplayBuffer, {"optimize_memory_usage": True}),
            (theirs.DictReplayBuffer, {}),
        )
    )
    assert_same_samples(draw(ours, 50), draw(own, 50))
    assert ours.rows.stats()["sources_written"] == 2 * 34
    ours.close()


# n steps


def nstep_pair(n_envs, count, n_steps=3, ends=0.3):
    pair = []
    for cls in (sb3.ReplayBuffer, theirs.NStepReplayBuffer):
        buffer = cls(
            400, SPACES["doubles"], SPACES["a number"], "cpu", n_envs, n_steps=n_steps, gamma=0.9
        )
        pair.append(filled(buffer, n_envs, count, ends=ends))
    return pair


@pytest.mark.parametrize("n_steps", [2, 5])
@pytest.mark.parametrize("n_envs", [1, 4])
def test_nstep_rows_are_those_of_sb3(n_envs, n_steps):
    ours, own = nstep_pair(n_envs, 90, n_steps)
    for env in range(n_envs):
        last = own.timeouts[89, env] or own.dones[89, env]
        whole = 90 if last else 90 - n_steps
        places = np.arange(whole)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(np.random, "randint", lambda *_, size, env=env: np.full(size, env))
            expected = own._get_samples(places)
        rows = ours.rows.get_all_transitions()
        row_of = {obs.tobytes(): index for index, obs in enumerate(rows["obs"])}
        found = [row_of[obs.numpy().tobytes()] for obs in expected.observations]
        for field, values in (
            ("act", expected.actions),
            ("next_obs", expected.next_observations),
            ("terminated", expected.dones),
        ):
            np.testing.assert_array_equal(rows[field][found], values.numpy())
        np.testing.assert_allclose(rows["rew"][found], expected.rewards.numpy(), atol=1e-6)
        bootstrapped = expected.discounts.numpy() * (1 - expected.dones.numpy())
        np.testing.assert_allclose(rows["discount"][found], bootstrapped, rtol=1e-6)
    ours.close()


def test_nstep_samples_have_discounts():
    ours, _ = nstep_pair(2, 90)
    batch = ours.sample(64)
    assert batch.discounts.shape == (64, 1) and batch.discounts.dtype == torch.float32
    assert set(np.round(batch.discounts.flatten().tolist(), 4)) <= {0.0, 0.9, 0.81, 0.729}
    ours.close()


@pytest.mark.parametrize("n_envs", [1, 3])
def test_an_episode_that_a_reset_cuts_off_is_not_joined_to_the_next(n_envs):
    space = spaces.Box(-99, 99, (1,), np.float32)
    buffer = sb3.ReplayBuffer(90, space, SPACES["a number"], "cpu", n_envs, n_steps=3, gamma=1.0)

    def go(start, count):
        for at in range(start, start + count):
            obs = np.full((n_envs, 1), at, np.float32)
            ones, none = np.ones(n_envs), np.zeros(n_envs, bool)
            buffer.add(obs, obs + 1, np.zeros(n_envs, int), ones, none, [{}] * n_envs)

    go(0, 4)
    go(50, 3)  # env.reset() came between
    rows = buffer.rows.get_all_transitions()
    expected = {0: (3, 3), 1: (4, 3), 2: (4, 2), 3: (4, 1), 50: (53, 3)}
    assert len(rows["obs"]) == n_envs * len(expected)
    for obs, next_obs, reward in zip(rows["obs"], rows["next_obs"], rows["rew"], strict=True):
        assert expected[int(obs[0])] == (next_obs[0], reward[0])
    buffer.close()


def test_an_algorithm_trains_on_nstep_rows_of_many_environments():
    model = trained(
        DQN, 4, sb3.ReplayBuffer, 120, replay_buffer_kwargs={"n_steps": 3, "gamma": 0.9}
    )
    assert model.replay_buffer.sample(8).discounts is not None
    model.replay_buffer.close()


# Hindsight


class Goals(gymnasium.Env):
    """Reaches what it is told to, seldom; `compute_reward` looks at infos if they are there."""

    goal = spaces.Box(-1, 1, (2,), np.float64)
    observation_space = spaces.Dict(observation=goal, achieved_goal=goal, desired_goal=goal)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def compute_reward(self, achieved, desired, infos):
        bonus = np.array([info.get("bonus", 0.0) for info in infos])
        return -np.linalg.norm(achieved - desired, axis=-1) + bonus


def her_pair(strategy, n_envs, copy_info_dict=False, size=60, count=47):
    env = DummyVecEnv([Goals] * n_envs)
    pair = []
    for cls in (sb3.HerReplayBuffer, HerReplayBuffer):
        buffer = cls(
            size,
            env.observation_space,
            env.action_space,
            env,
            device="cpu",
            n_envs=n_envs,
            n_sampled_goal=3,
            goal_selection_strategy=strategy,
            copy_info_dict=copy_info_dict,
        )
        for at, step in enumerate(
            steps_of(env.observation_space, env.action_space, n_envs, count, ends=0.2)
        ):
            for info in step[-1]:
                info["bonus"] = float(at)
            buffer.add(*step)
        pair.append(buffer)
    return pair


@pytest.mark.parametrize("copy_info_dict", [False, True])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_hindsight_samples_are_those_of_sb3(strategy, n_envs, copy_info_dict):
    for size in (60, 240):  # wrapped, and not
        ours, own = her_pair(strategy, n_envs, copy_info_dict, size)
        for count in (1, 7, 50):
            assert_same_samples(
                draw(ours, count, type(ours).sample), draw(own, count, type(own).sample)
            )
        ours.close()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hindsight_buffers_are_saved_with_their_episodes():
    ours, own = her_pair("future", 2)
    for _ in range(2):
        loaded = [pickle.loads(pickle.dumps(each)) for each in (ours, own)]
        ours.close()
        with pytest.raises(RuntimeError, match="set_env"):
            loaded[0].sample(1)
        ours, own = loaded
        for each in loaded:
            each.set_env(DummyVecEnv([Goals] * 2))
            each.truncate_last_trajectory()
            filled(each, 2, 11, seed=8, ends=0.2)
        assert_same_samples(draw(ours, 50, type(ours).sample), draw(own, 50, type(own).sample))
    ours.close()


def test_hindsight_refuses_what_it_cannot_know():
    ours, _ = her_pair("final", 1, count=3)
    ours.reset()
    with pytest.raises(RuntimeError, match="no episode has ended"):
        ours.sample(4)
    with mpbuffer.attach(ours.rows.name) as rows:
        rows.add(
            **{name: 0 for name in ("act", "rew", "terminated", "truncated")},
            **{
                f"{which}.{key}": np.zeros(2)
                for which in ("obs", "next_obs")
                for key in Goals.observation_space
            },
        )
    for call in (lambda: ours.sample(4), lambda: filled(ours, 1, 1)):
        with pytest.raises(RuntimeError, match="other processes have added 1"):
            call()
    ours.close()


def test_an_algorithm_trains_with_hindsight():
    class Playable(Goals):
        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.goals = self.np_random.uniform(-1, 1, (3, 2))
            self.steps = 0
            return dict(zip(self.observation_space, self.goals, strict=True)), {}

        def step(self, action):
            self.steps += 1
            self.goals[:2] = np.clip(self.goals[:2] + action, -1, 1)
            observation = dict(zip(self.observation_space, self.goals.copy(), strict=True))
            return observation, -1.0, False, self.steps == 5, {}

    model = SAC(
        "MultiInputPolicy",
        make_vec_env(Playable, 2),
        learning_starts=20,
        buffer_size=100,
        batch_size=8,
        policy_kwargs={"net_arch": [8]},
        replay_buffer_class=sb3.HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 2},
    ).learn(40)
    saved = io.BytesIO()
    model.save_replay_buffer(saved)
    saved.seek(0)
    model.replay_buffer.close()
    model.load_replay_buffer(saved)
    model.learn(20, reset_num_timesteps=False)
    model.replay_buffer.close()


# Priorities


def prioritized(count=40, **arguments):
    return filled(
        sb3.PrioritizedReplayBuffer(
            40, SPACES["doubles"], SPACES["a number"], "cpu", 2, seed=1, **arguments
        ),
        2,
        count,
    )


def test_prioritized_samples_have_weights_and_indexes():
    buffer = prioritized(alpha=1.0, eps=0.0, beta=1.0)
    batch = buffer.sample(40)
    assert batch.weights.shape == (40, 1) and torch.all(batch.weights == 1)
    buffer.update_priorities(np.arange(40), torch.arange(1.0, 41.0).unsqueeze(1))
    batch = buffer.sample(400)
    np.testing.assert_allclose(batch.weights.numpy().ravel(), 1 / (batch.indexes + 1), rtol=1e-5)
    rows = buffer.rows.get_all_transitions()
    np.testing.assert_array_equal(batch.observations.numpy(), rows["obs"][batch.indexes])
    with pytest.raises(ValueError):
        buffer.update_priorities(batch.indexes, -batch.rewards.abs() - 1)
    buffer.close()


class Weighed(sb3.PrioritizedReplayBuffer):
    """Uniform draws of Stable-Baselines3, with weights that a test sets."""

    weights_given = None

    def sample(self, batch_size, env=None):
        batch = theirs.BaseBuffer.sample(self, batch_size, env)
        weights = torch.ones(batch_size, 1) if self.weights_given is None else self.weights_given
        self.last = sb3.WeightedSamples(*batch, weights, np.arange(batch_size))
        return self.last


def test_networks_with_equal_weights_are_those_of_dqn():
    own = trained(DQN, 2, theirs.ReplayBuffer, 120)
    env = walks(2)
    model = sb3.PrioritizedDQN(
        "MlpPolicy",
        env,
        seed=3,
        learning_starts=20,
        buffer_size=60,
        batch_size=8,
        policy_kwargs={"net_arch": [8]},
        replay_buffer_class=Weighed,
        replay_buffer_kwargs={"beta": 0.6},
        device="cpu",
    ).learn(120)
    assert torch.equal(weights_of(model), weights_of(own))
    assert model.replay_buffer.beta == pytest.approx(1.0)

    buffer, before = model.replay_buffer, weights_of(model)
    buffer.weights_given = torch.zeros(8, 1)
    with torch.no_grad():
        batch = draw(buffer, 8, Weighed.sample)
        follows = model.q_net_target(batch.next_observations).amax(1)
        target = batch.rewards[:, 0] + 0.99 * (1 - batch.dones[:, 0]) * follows
        value = model.q_net(batch.observations).gather(1, batch.actions)[:, 0]
    for group in model.policy.optimizer.param_groups:
        group["betas"] = (0.0, 0.999)  # no momentum of earlier steps
    np.random.seed(5)
    model.train(1, 8)
    assert torch.equal(weights_of(model), before)
    expected = (target - value).abs().numpy()
    np.testing.assert_allclose(buffer.rows.get_priorities(np.arange(8)), expected, rtol=1e-4)
    buffer.close()


def test_prioritized_dqn_trains_by_default():
    model = sb3.PrioritizedDQN(
        "MlpPolicy", walks(2), learning_starts=20, buffer_size=200, policy_kwargs={"net_arch": [8]}
    ).learn(120)
    status = model.replay_buffer.rows.learner_status()
    assert status.updates > 0 and status.stale == 0
    model.replay_buffer.close()
    with pytest.raises(TypeError, match="must be a PrioritizedReplayBuffer"):
        sb3.PrioritizedDQN("MlpPolicy", walks(1), replay_buffer_class=sb3.ReplayBuffer)


def test_an_algorithm_that_updates_no_priorities_is_warned_of():
    arguments = {"learning_starts": 2, "train_freq": 1, "policy_kwargs": {"net_arch": [8]}}
    model = DQN(
        "MlpPolicy",
        walks(1),
        buffer_size=200,
        replay_buffer_class=sb3.PrioritizedReplayBuffer,
        **arguments,
    )
    with pytest.warns(UserWarning, match="not updated in 100 samples") as warned:
        model.learn(220)
    assert len(warned) == 1
    model.replay_buffer.close()


def test_a_saved_algorithm_is_loaded_with_its_buffer_class(tmp_path):
    arguments = {"learning_starts": 2, "buffer_size": 200, "policy_kwargs": {"net_arch": [8]}}
    exponents = {"beta": 0.7, "alpha": 0.5}
    model = sb3.PrioritizedDQN("MlpPolicy", walks(1), replay_buffer_kwargs=exponents, **arguments)
    model.learn(20).save(tmp_path / "model")
    model.replay_buffer.close()
    loaded = sb3.PrioritizedDQN.load(tmp_path / "model", walks(1))
    assert torch.equal(weights_of(loaded), weights_of(model))
    assert loaded.replay_buffer.rows.alpha == 0.5 and loaded.replay_buffer.beta == 0.7
    loaded.learn(20)
    loaded.replay_buffer.close()


# Saved, handed over, shared


@pytest.mark.parametrize("count", [7, 33])
def test_a_saved_buffer_has_its_rows(count, tmp_path):
    model = DQN("MlpPolicy", walks(2), buffer_size=40, replay_buffer_class=DrawsOfSb3)
    own = filled(
        theirs.ReplayBuffer(40, Walk.observation_space, model.action_space, n_envs=2), 2, count
    )
    filled(model.replay_buffer, 2, count)
    model.save_replay_buffer(tmp_path / "rows")
    model.replay_buffer.close()
    model.load_replay_buffer(tmp_path / "rows")
    for buffer in (own, model.replay_buffer):
        filled(buffer, 2, 9, seed=4)
    assert_same_samples(draw(model.replay_buffer, 30), draw(own, 30))
    assert model.replay_buffer.pos == own.pos
    model.replay_buffer.close()


def test_a_saved_buffer_has_its_priorities():
    buffer = prioritized(alpha=1.0, eps=0.0)
    buffer.update_priorities(buffer.sample(40).indexes, np.arange(40))
    loaded = pickle.loads(pickle.dumps(buffer))
    for each in (loaded.rows, buffer.rows):
        assert each.get_max_priority() == 39
    np.testing.assert_array_equal(*(e.rows.get_priorities(np.arange(40)) for e in (loaded, buffer)))
    assert loaded.rows.name != buffer.rows.name
    loaded.close()
    buffer.close()


def add_elsewhere(buffer, envs):
    filled(buffer, envs, 3, ends=0.0)


@pytest.mark.parametrize("n_steps", [1, 2])
def test_a_buffer_handed_to_a_process_shares_its_rows(context, n_steps):
    buffer = sb3.ReplayBuffer(60, SPACES["doubles"], SPACES["a number"], "cpu", 2, n_steps=n_steps)
    filled(buffer, 2, 2, ends=0.0)
    process = context.Process(target=add_elsewhere, args=(buffer, 2))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert len(buffer.rows) == 2 * (3 - n_steps) + 6  # its end ends the episodes there
    assert buffer.sample(8).observations.shape == (8, 2)
    buffer.close()


def test_a_named_buffer_takes_rows_of_other_programs():
    buffer = sb3.ReplayBuffer(
        60, Walk.observation_space, SPACES["a number"], "cpu", name="rows-of-sb3", overwrite=True
    )
    env = walks_of_gymnasium = gymnasium.vector.SyncVectorEnv([Walk] * 3)
    transitions = mpbuffer.VectorTransitions(walks_of_gymnasium)
    transitions.reset(env.reset(seed=1)[0])
    with mpbuffer.attach("rows-of-sb3") as rows:
        actions = env.action_space.sample()
        rows.add(**transitions.step(actions, *env.step(actions)))
    assert buffer.sample(8).actions.shape == (8, 1) and len(buffer.rows) == 3
    buffer.close()


# What it refuses, and where draws come from


def test_draws_follow_from_the_algorithms_seed_and_leave_numpys_alone():
    drawn = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        before = np.random.get_state()[1].tobytes(), np.random.get_state()[2]
        buffer = sb3.ReplayBuffer(40, SPACES["doubles"], SPACES["a number"], "cpu")
        assert (np.random.get_state()[1].tobytes(), np.random.get_state()[2]) == before
        drawn.append(filled(buffer, 1, 40).sample(40).observations)
        buffer.close()
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_it_refuses_what_it_does_not_do():
    arguments = SPACES["doubles"], SPACES["a number"], "cpu"
    with pytest.raises(TypeError, match="unexpected argument 'sise'"):
        sb3.ReplayBuffer(10, *arguments, sise=1)
    with pytest.raises(TypeError, match="unexpected argument 'Nstep'; expected n_steps"):
        sb3.ReplayBuffer(10, *arguments, Nstep={"size": 2})
    with pytest.raises(ValueError, match="size"):
        sb3.ReplayBuffer(10, *arguments, n_steps=0)
    env = DummyVecEnv([Goals])
    her = 10, env.observation_space, env.action_space, env
    with pytest.raises(NotImplementedError, match="optimize_memory_usage"):
        sb3.HerReplayBuffer(*her, optimize_memory_usage=True)
    with pytest.raises(NotImplementedError, match="n_steps=3"):
        sb3.HerReplayBuffer(*her, n_steps=3)
    with pytest.raises(ValueError, match="goal_selection_strategy"):
        sb3.HerReplayBuffer(*her, goal_selection_strategy="best")
    with pytest.raises(EmptyBuffer):
        sb3.ReplayBuffer(10, *arguments).sample(1)


def test_a_step_that_cannot_be_stored_changes_nothing():
    buffer = sb3.ReplayBuffer(10, SPACES["frames"], SPACES["a number"], "cpu", n_envs=2)
    step = list(next(steps_of(SPACES["frames"], SPACES["a number"], 2, 1)))
    step[1] = step[1].astype(int) + 300
    with pytest.raises(ValueError, match="next_obs"):
        buffer.add(*step)
    assert buffer.pos == 0 and len(buffer.rows) == 0
    buffer.close()


def test_rows_shown_in_the_shape_of_sb3_are_read_only():
    buffer = filled(sb3.ReplayBuffer(10, SPACES["doubles"], SPACES["a number"], "cpu"), 1, 3)
    for values in (buffer.observations, buffer.rewards, buffer.actions):
        with pytest.raises(ValueError):
            values[0] = 1
    buffer.close()


def test_mpbuffer_does_not_import_the_libraries():
    ended = run_python(
        script="import sys, mpbuffer\n"
        "print({'torch', 'stable_baselines3', 'gymnasium'} & set(sys.modules))"
    )
    assert ended.stdout.decode().strip() == "set()", ended.stderr.decode()
