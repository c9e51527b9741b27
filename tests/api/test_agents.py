"""Parallel environments of many agents, and rewards of several numbers, as fields of a buffer."""

import doctest
import importlib

import numpy as np
import pytest

import mpbuffer

gymnasium = pytest.importorskip("gymnasium", minversion="1.0")
spaces = pytest.importorskip("gymnasium.spaces")

CAMERA = spaces.Box(0, 255, (2, 3), np.uint8)
OBJECTIVES = spaces.Box(-1, 1, (3,), np.float32)


class Walkers:
    """As PettingZoo's ParallelEnv. Agent b leaves after two steps; c comes with the third."""

    def __init__(self):
        self.possible_agents, self.agents = ["a", "b", "c"], []

    def observation_space(self, agent):
        return {
            "a": spaces.Dict({"eye": CAMERA, "clock": spaces.Discrete(100)}),
            "b": spaces.Box(-9, 99, (2,), np.float32),
            "c": spaces.Discrete(100),
        }[agent]

    def action_space(self, agent):
        return spaces.Discrete(5) if agent != "b" else spaces.Box(-1, 1, (2,), np.float32)

    def observe(self, agent):
        t = self.t
        return {
            "a": {"eye": np.full((2, 3), t, np.uint8), "clock": np.int64(t)},
            "b": np.array([t, -t], np.float32),
            "c": np.int64(t),
        }[agent]

    def reset(self, seed=None, options=None):
        self.t, self.agents = 0, ["a", "b"]
        return {agent: self.observe(agent) for agent in self.agents}, {}

    def step(self, actions):
        assert set(actions) == set(self.agents)
        self.t += 1
        acted = list(self.agents)
        seen = acted + (["c"] if self.t == 2 else [])
        observations = {agent: self.observe(agent) for agent in seen}
        rewards = {agent: 10.0 * self.t + index for index, agent in enumerate(seen)}
        terminated = {agent: agent == "b" and self.t == 2 for agent in seen}
        truncated = {agent: self.t == 4 for agent in seen}
        self.agents = [agent for agent in seen if not terminated[agent] and not truncated[agent]]
        return observations, rewards, terminated, truncated, {agent: {} for agent in seen}


def plain(schema):
    return {name: (each["shape"], each.get("dtype", "default")) for name, each in schema.items()}


def test_each_agent_has_fields_of_its_own():
    assert plain(mpbuffer.schema_from(Walkers())) == {
        "obs.a.eye": ((2, 3), np.uint8),
        "obs.a.clock": ((1,), np.int64),
        "obs.b": ((2,), np.float32),
        "obs.c": ((1,), np.int64),
        "act.a": ((1,), np.int64),
        "act.b": ((2,), np.float32),
        "act.c": ((1,), np.int64),
        **{f"rew.{agent}": ((1,), "default") for agent in "abc"},
        "next_obs.a.eye": ((2, 3), np.uint8),
        "next_obs.a.clock": ((1,), np.int64),
        "next_obs.b": ((2,), np.float32),
        "next_obs.c": ((1,), np.int64),
        **{f"terminated.{agent}": ((1,), np.bool_) for agent in "abc"},
        **{f"truncated.{agent}": ((1,), np.bool_) for agent in "abc"},
    }
    names = set(mpbuffer.schema_from(Walkers(), rew="r", terminated="done", truncated=None))
    assert {"r.a", "done.a"} <= names and not any(name.startswith("trunc") for name in names)


def actions_of(env):
    every = {"a": np.int64(1), "b": np.full(2, 0.5, np.float32), "c": np.int64(2)}
    return {agent: every[agent] for agent in env.agents}


def test_rows_of_agents_that_leave_and_come():
    env = Walkers()
    transitions = mpbuffer.AgentTransitions(env)
    with mpbuffer.ReplayBuffer(100, mpbuffer.schema_from(env), strict=True) as buffer:
        for _ in range(2):
            transitions.reset(env.reset()[0])
            while env.agents:
                actions = actions_of(env)
                buffer.add(**transitions.step(actions, *env.step(actions)))
        rows = {name: values.tolist() for name, values in buffer.get_all_transitions().items()}
    for values in rows.values():
        assert values[:4] == values[4:] and len(values) == 8
    rows = {name: np.array(values[:4]) for name, values in rows.items()}
    flat = {name: values.reshape(4, -1)[:, 0].tolist() for name, values in rows.items()}
    assert flat["obs.a.clock"] == [0, 1, 2, 3] and flat["next_obs.a.clock"] == [1, 2, 3, 4]
    assert rows["obs.a.eye"][2].tolist() == [[2] * 3] * 2
    assert flat["obs.b"] == [0, 1, 0, 0] and flat["next_obs.b"] == [1, 2, 0, 0]
    assert flat["obs.c"] == [0, 0, 2, 3] and flat["next_obs.c"] == [0, 0, 3, 4]
    assert flat["act.a"] == [1] * 4
    assert flat["act.b"] == [0.5, 0.5, 0, 0] and flat["act.c"] == [0, 0, 2, 2]
    assert flat["rew.a"] == [10, 20, 30, 40]
    assert flat["rew.b"] == [11, 21, 0, 0] and flat["rew.c"] == [0, 0, 31, 41]
    assert flat["terminated.a"] == [False] * 4
    assert flat["terminated.b"] == [False, True, True, True]
    assert flat["terminated.c"] == [True, True, False, False]
    assert flat["truncated.a"] == flat["truncated.c"] == [False] * 3 + [True]
    assert flat["truncated.b"] == [False] * 4


def test_observations_are_copied():
    """An environment may write all its observations into the same arrays."""
    env = Walkers()
    transitions = mpbuffer.AgentTransitions(env)
    observations, _ = env.reset()
    transitions.reset(observations)
    observations["b"][:] = 77
    rows = transitions.step(actions_of(env), *env.step(actions_of(env)))
    assert rows["obs.b"].tolist() == [0, 0]


def test_an_agent_that_was_not_observed_has_no_part():
    env = Walkers()
    transitions = mpbuffer.AgentTransitions(env)
    transitions.reset(env.reset()[0])
    actions = actions_of(env)
    returned = env.step(actions)
    row = transitions.step({**actions, "c": np.int64(4)}, *returned)
    assert row["act.c"] == 0 and row["terminated.c"] and not row["terminated.a"]


def test_fields_of_agents_split_and_join():
    env = Walkers()
    observation_spaces = {agent: env.observation_space(agent) for agent in env.possible_agents}
    observations = {agent: space.sample() for agent, space in observation_spaces.items()}
    fields = mpbuffer.to_fields(observation_spaces, observations)
    assert set(fields) == {"obs.a.eye", "obs.a.clock", "obs.b", "obs.c"}
    batch = {name: np.stack([values, values]) for name, values in fields.items()}
    joined = mpbuffer.from_fields(observation_spaces, batch)
    np.testing.assert_array_equal(joined["a"]["eye"][1], observations["a"]["eye"])
    assert joined["c"].tolist() == [observations["c"]] * 2


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda values: values[1].pop("a"), r"observations lack \['a'\], which acted"),
        (lambda values: values[2].pop("b"), r"rewards lack \['b'\]"),
        (lambda values: values[3].pop("b"), r"terminated lack \['b'\]"),
        (lambda values: values[4].pop("b"), r"truncated lack \['b'\]"),
        (lambda values: values[0].clear(), "no agent that was observed has acted"),
        (lambda values: values[1].update(z=0), r"observations of \['z'\]: possible_agents are"),
    ],
)
def test_a_bad_step_takes_nothing(spoil, said):
    env = Walkers()
    transitions = mpbuffer.AgentTransitions(env)
    with pytest.raises(ValueError, match="call reset"):
        transitions.step({}, {}, {}, {}, {})
    transitions.reset(env.reset()[0])
    actions = actions_of(env)
    values = [dict(actions), *(dict(each) for each in env.step(actions))]
    good = [dict(each) for each in values]
    spoil(values)
    with pytest.raises(ValueError, match=said):
        transitions.step(*values)
    assert transitions.step(*good)["obs.b"].tolist() == [0, 0]


def test_what_is_no_parallel_environment():
    with pytest.raises(TypeError, match="expected a parallel environment with possible_agents"):
        mpbuffer.AgentTransitions(gymnasium.make("CartPole-v1"))

    class InTurns(Walkers):
        def agent_iter(self):
            return iter(())

    for refuses in (mpbuffer.schema_from, mpbuffer.AgentTransitions):
        with pytest.raises(TypeError, match="agents act one after another"):
            refuses(InTurns())


def test_a_parallel_environment_of_pettingzoo():
    pytest.importorskip("pettingzoo.classic.rps_v2")
    tested = doctest.testmod(importlib.import_module("mpbuffer.envs.agents"))
    assert tested.attempted > 5 and tested.failed == 0


# Rewards of several numbers


class Weighing(gymnasium.Env):
    """As MO-Gymnasium's environments."""

    observation_space, action_space, reward_space = (
        spaces.Discrete(9),
        spaces.Discrete(2),
        OBJECTIVES,
    )

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return 0, {}

    def step(self, action):
        self.t += 1
        reward = np.array([0.1 * self.t, -0.5, 0.25 * action], np.float32)
        return self.t, reward, self.t == 8, False, {}


def test_a_reward_space_gives_the_reward_s_field():
    env = gymnasium.wrappers.TimeLimit(Weighing(), 10)
    assert plain(mpbuffer.schema_from(env))["rew"] == ((1,), "default")  # may be a weighted sum
    schema = mpbuffer.schema_from(env, reward_space=env.unwrapped.reward_space)
    assert plain(schema)["rew"] == ((3,), np.float32)
    assert plain(mpbuffer.schema_from(env.unwrapped)) == plain(schema)
    named = mpbuffer.schema_from(spaces.Discrete(9), spaces.Discrete(2), reward_space=OBJECTIVES)
    assert plain(named) == plain(schema)
    with mpbuffer.ReplayBuffer(10, schema, Nstep={"size": 2, "rew": "rew", "gamma": 0.5}) as buffer:
        obs, _ = env.reset()
        for action in (0, 1, 1):
            next_obs, rew, terminated, truncated, _ = env.step(action)
            flags = {"terminated": terminated, "truncated": truncated}
            buffer.add(obs=obs, act=action, rew=rew, next_obs=next_obs, **flags)
            obs = next_obs
        np.testing.assert_allclose(
            buffer.get_all_transitions()["rew"],
            [[0.1 + 0.1, -0.75, 0.125], [0.2 + 0.15, -0.75, 0.375]],
            rtol=1e-6,
        )


def test_each_agent_may_have_a_reward_space():
    each = {agent: spaces.Box(-1, 1, (n,)) for n, agent in enumerate("abc", 1)}
    for reward_space, lengths in ((OBJECTIVES, [3, 3, 3]), (each, [1, 2, 3])):
        schema = mpbuffer.schema_from(Walkers(), reward_space=reward_space)
        assert [schema[f"rew.{agent}"]["shape"] for agent in "abc"] == [(n,) for n in lengths]

    class Many(Walkers):
        def reward_space(self, agent):  # as in MOMAland
            return each[agent]

        def step(self, actions):
            observations, rewards, *others = super().step(actions)
            return observations, {a: np.full(each[a].shape, 0.5) for a in rewards}, *others

    env = Many()
    transitions = mpbuffer.AgentTransitions(env)
    with mpbuffer.ReplayBuffer(10, mpbuffer.schema_from(env)) as buffer:
        transitions.reset(env.reset()[0])
        buffer.add(**transitions.step(actions_of(env), *env.step(actions_of(env))))
        rows = buffer.get_all_transitions()
    assert rows["rew.b"].tolist() == [[0.5, 0.5]] and rows["rew.c"].tolist() == [[0, 0, 0]]


def test_a_vector_environment_of_mo_gymnasium():
    wrappers = pytest.importorskip("mo_gymnasium.wrappers.vector")
    envs = wrappers.MOSyncVectorEnv([Weighing for _ in range(3)])
    transitions = mpbuffer.VectorTransitions(envs)
    with mpbuffer.ReplayBuffer(100, mpbuffer.schema_from(envs)) as buffer:
        observations, _ = envs.reset()
        transitions.reset(observations)
        for _ in range(7):
            actions = np.array([0, 1, 1])
            observations, *others = envs.step(actions)
            buffer.add(**transitions.step(actions, observations, *others))
        rows = buffer.get_all_transitions()
    assert rows["rew"].shape == (21, 3)
    np.testing.assert_allclose(rows["rew"][:, 0], 0.1 * rows["next_obs"][:, 0], rtol=1e-6)
    np.testing.assert_allclose(rows["rew"][:, 2], 0.25 * rows["act"][:, 0])
