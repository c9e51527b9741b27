"""The buffer for CleanRL's scripts: their networks and returns, with one line changed."""

import importlib.util
import random
import sys
import types
from pathlib import Path

import numpy as np
import pytest

gymnasium = pytest.importorskip("gymnasium")
torch = pytest.importorskip("torch")

from mpbuffer.adapters import cleanrl  # noqa: E402
from mpbuffer.errors import EmptyBuffer  # noqa: E402

OBS = gymnasium.spaces.Box(-1, 1, (2,), np.float64)
ACT = gymnasium.spaces.Discrete(3)


class Vector:
    """One environment as early gym's SyncVectorEnv has it: reset in the step that ends an episode.

    `early`: one flag and a list of infos, as gym 0.23; else as gymnasium 0.28.
    """

    def __init__(self, makers, early):
        (self.env,) = (make() for make in makers)
        self.early, self.num_envs = early, 1
        self.single_action_space = self.env.action_space
        self.single_observation_space = self.env.observation_space

    @property
    def action_space(self):
        return gymnasium.vector.utils.batch_space(self.env.action_space)

    def reset(self, seed=None):
        self.total = self.length = 0
        obs = self.env.reset(seed=seed if seed is not None else self.env.first_seed)[0][None]
        self.env.first_seed = None
        return obs if self.early else (obs, {})

    def step(self, actions):
        obs, reward, terminated, truncated, _ = self.env.step(actions[0])
        obs = np.asarray(obs, np.float32)
        self.total, self.length = self.total + reward, self.length + 1
        episode = {"episode": {"r": self.total, "l": self.length}}
        info, infos = {}, {}
        if terminated or truncated:
            info = {**episode, "terminal_observation": obs}
            info |= {"TimeLimit.truncated": True} if truncated else {}
            infos = {"final_info": [episode], "final_observation": [obs]}
            obs = self.env.reset()[0]
            self.total = self.length = 0
        obs, rewards = obs[None], np.array([reward])
        if self.early:
            return obs, rewards, np.array([terminated or truncated]), [info]
        return obs, rewards, np.array([terminated]), np.array([truncated]), infos

    def close(self):
        self.env.close()


def gym_of(early):
    """What the scripts use of the gym of their time, on today's gymnasium."""
    gym = types.ModuleType("gym")

    class Seeded(gymnasium.Wrapper):
        first_seed = None

        def seed(self, seed):
            self.first_seed = seed

    def make(name):
        env = gymnasium.make(name, max_episode_steps=40)
        return Seeded(gymnasium.wrappers.RescaleAction(env, -1.0, 1.0) if name[0] == "P" else env)

    gym.make, gym.Env, gym.spaces = make, gymnasium.Env, gymnasium.spaces
    gym.wrappers = types.SimpleNamespace(RecordEpisodeStatistics=lambda env: env)
    gym.vector = types.SimpleNamespace(SyncVectorEnv=lambda makers: Vector(makers, early))
    return gym


def logged(script, early, monkeypatch, tmp_path, changed, *options):
    """Run a script of CleanRL's wheel; return all that it logs but speeds."""
    scalars = []

    class SummaryWriter:
        def __init__(self, *_):
            pass

        def add_text(self, *_):
            pass

        def add_scalar(self, name, value, step):
            if name != "charts/SPS":
                scalars.append((name, float(value), step))

        def close(self):
            pass

    tensorboard = types.ModuleType("torch.utils.tensorboard")
    tensorboard.SummaryWriter = SummaryWriter
    gym = gym_of(early)
    for name, module in (
        ("torch.utils.tensorboard", tensorboard),
        ("gym", gym),
        ("pybullet_envs", types.ModuleType("pybullet_envs")),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    folder = Path(importlib.util.find_spec("cleanrl").submodule_search_locations[0])
    source = (folder / f"{script}.py").read_text().replace("import gymnasium as gym", "import gym")
    if changed:
        ours = "from mpbuffer.adapters.cleanrl import ReplayBuffer"
        own = "from stable_baselines3.common.buffers import ReplayBuffer"
        assert source.count(own) == 1
        source = source.replace(own, ours)
    monkeypatch.setattr(sys, "argv", [script, "--cuda", "False", *options])
    monkeypatch.chdir(tmp_path)
    module = {"__name__": "__main__", "__file__": str(folder / f"{script}.py")}
    exec(compile(source, script, "exec"), module)
    assert isinstance(module["rb"], cleanrl.ReplayBuffer) == changed
    return scalars


COMMON = ("--total-timesteps", "130", "--learning-starts", "60", "--batch-size", "16")
SCRIPTS = {
    "dqn": (False, *COMMON, "--env-id", "CartPole-v1", "--buffer-size", "90"),
    "c51": (True, *COMMON, "--env-id", "CartPole-v1", "--buffer-size", "90"),
    "sac_continuous_action": (True, *COMMON, "--env-id", "Pendulum-v1", "--buffer-size", "90"),
    "td3_continuous_action": (True, *COMMON, "--env-id", "Pendulum-v1", "--buffer-size", "90"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_log_the_same_at_the_same_draws(script, monkeypatch, tmp_path):
    pytest.importorskip("cleanrl")
    pytest.importorskip("stable_baselines3")

    def drawn(self, batch_size):
        places = np.random.randint(0, self.buffer_size if self.full else self.pos, size=batch_size)
        envs = np.random.randint(0, self.n_envs, size=batch_size)
        return self._samples(self._rows_at(places, envs))

    monkeypatch.setattr(cleanrl.ReplayBuffer, "sample", drawn)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        both = []
        for changed in (True, False):
            random.seed(0)
            both.append(
                logged(
                    script, SCRIPTS[script][0], monkeypatch, tmp_path, changed, *SCRIPTS[script][1:]
                )
            )
    finally:
        torch.set_num_threads(threads)
    ours, own = both
    assert ours == own
    assert {name.partition("/")[0] for name, _, _ in own} == {"charts", "losses"}


def test_a_script_of_frames_stores_observations_once():
    frames = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    buffer = cleanrl.ReplayBuffer(
        1_000, frames, ACT, "cpu", optimize_memory_usage=True, handle_timeout_termination=False
    )
    assert buffer.optimize_memory_usage and buffer.rows.stats()["sources"] > 1_000
    buffer.add(np.ones((1, 4, 84, 84)), np.ones((1, 4, 84, 84)), np.array([2]), [1.0], [0], {})
    batch = buffer.sample(3)
    assert batch.observations.dtype == torch.uint8 and batch.actions.tolist() == [[2]] * 3
    buffer.close()


def test_steps_that_a_time_limit_cut_off_are_not_done():
    for handled in (True, False):
        buffer = cleanrl.ReplayBuffer(
            6, OBS, ACT, "cpu", n_envs=3, handle_timeout_termination=handled
        )
        infos = [{}, {"TimeLimit.truncated": True}, {"TimeLimit.truncated": False}]
        obs, done = np.zeros((3, 2)), np.array([False, True, True])
        buffer.add(obs, obs + 1, np.arange(3), np.arange(3.0), done, infos)
        batch = buffer.sample(60)
        assert batch.discounts is None and batch.rewards.shape == batch.dones.shape == (60, 1)
        expected = batch.rewards == 2 if handled else batch.rewards >= 1
        assert torch.equal(batch.dones.bool(), expected)
        assert torch.equal(batch.actions.flatten().float(), batch.rewards.flatten())
        buffer.close()


def test_nstep_samples_have_discounts():
    with pytest.raises(EmptyBuffer):
        cleanrl.ReplayBuffer(6, OBS, ACT, "cpu").sample(1)
    buffer = cleanrl.ReplayBuffer(6, OBS, ACT, "cpu", n_steps=2, gamma=0.5)
    for at in range(4):
        obs = np.full((1, 2), at / 9)
        buffer.add(obs, obs + 1 / 9, np.array([0]), [1.0], [at == 3], [{}])
    rows = buffer.rows.get_all_transitions()
    assert rows["rew"].ravel().tolist() == [1.5, 1.5, 1.5, 1.0]
    assert set(buffer.sample(50).discounts.flatten().tolist()) == {0.25, 0.0}
    buffer.close()
