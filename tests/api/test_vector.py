"""Transitions of vector environments, against an oracle that steps single environments.

The oracle never sees a vector environment: each environment is made once more, seeded alike, and
stepped by itself with the actions that the policy takes on what it observes.
"""

import doctest
import importlib
import zlib
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpbuffer

gymnasium = pytest.importorskip("gymnasium", minversion="1.0")
spaces = pytest.importorskip("gymnasium.spaces")
vector = pytest.importorskip("gymnasium.vector")

HAS_MODES = hasattr(vector, "AutoresetMode")  # since 1.1; 1.0 knows the first mode only
MODES = ["NextStep", "SameStep", "Disabled"] if HAS_MODES else ["NextStep"]
needs_modes = pytest.mark.skipif(not HAS_MODES, reason="gymnasium 1.0 has one autoreset mode")

TERMINATED, TRUNCATED = 1, 2
SEED = 100


class Ending(NamedTuple):
    steps: int  # of the episode
    flags: int  # TERMINATED, TRUNCATED or both


class Scripted(gymnasium.Env):
    """Its observations tell the seed, the episode and the step, so that no two are alike."""

    observation_space = spaces.Box(-1, 2**40, (4,), np.int64)
    action_space = spaces.Discrete(5)

    def __init__(self, endings):
        self.endings = endings
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        self.nonce = int(self.np_random.integers(2**40))
        self.acted = -1
        self.running = True
        return self.observed(), {}

    def step(self, action):
        assert self.running, "stepped after the end of an episode"
        self.steps += 1
        self.acted = self.code_of(action)
        ending = self.endings[self.episode % len(self.endings)]
        flags = ending.flags if self.steps >= ending.steps else 0
        self.running = flags == 0
        reward = self.acted + 10.0 * self.steps
        seen = {"steps": self.steps, "about": {"episode": self.episode}}
        return self.observed(), reward, bool(flags & TERMINATED), bool(flags & TRUNCATED), seen

    def code_of(self, action):
        return int(action)

    def observed(self):
        return np.array([self.nonce, self.episode, self.steps, self.acted])


class ScriptedNested(Scripted):
    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (2, 3), np.uint8),
            "state": spaces.Tuple(
                [
                    spaces.Discrete(1000),
                    spaces.Dict({"code": spaces.Box(-1, 2**40, (4,), np.int64)}),
                ]
            ),
        }
    )
    action_space = spaces.Dict(
        {"move": spaces.Discrete(3), "aim": spaces.Box(0, 9, (2,), np.int32)}
    )

    def code_of(self, action):
        return int(action["move"]) + 3 * int(action["aim"].sum())

    def observed(self):
        code = super().observed()
        camera = np.full((2, 3), (self.episode * 16 + self.steps) % 256, np.uint8)
        return {"camera": camera, "state": (self.steps, {"code": code})}


def flat(value, name):
    """Fields of a nested value, by the test's own rules."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, tuple):
        parts = enumerate(value)
    else:
        return {name: np.asarray(value)}
    return {
        field: array for key, part in parts for field, array in flat(part, f"{name}.{key}").items()
    }


def digest(observation):
    fields = flat(observation, "obs")
    return zlib.crc32(b"".join(fields[name].tobytes() for name in sorted(fields)))


def choose(action_space, observation):
    """The policy: an action that depends on all of the observation, and on nothing else."""
    number = digest(observation)
    if isinstance(action_space, spaces.Discrete):
        return number % int(action_space.n)
    return {"move": number % 3, "aim": np.array([number % 10, number // 10 % 10], np.int32)}


def one_of(batch, index):
    """An environment's part of a batched observation."""
    if isinstance(batch, dict):
        return {key: one_of(part, index) for key, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(one_of(part, index) for part in batch)
    return np.array(batch[index])


def actions_for(envs, observations):
    chosen = [
        choose(envs.single_action_space, one_of(observations, index))
        for index in range(envs.num_envs)
    ]
    if isinstance(envs.single_action_space, spaces.Discrete):
        return np.array(chosen)
    return {key: np.array([each[key] for each in chosen]) for key in chosen[0]}


class Oracle:
    """One environment by itself: its transitions, and how often an episode ended or was cut."""

    def __init__(self, make, seed):
        self.env = make()
        self.observation = self.env.reset(seed=seed)[0]
        self.over = False
        self.begun = False
        self.transitions = []
        self.endings = 0
        self.cuts = 0

    def reset(self, again=False):
        self.observation = self.env.reset()[0]
        self.cuts += self.begun
        self.begun = False
        self.over = again

    def tick(self, mode):
        """What one step of a vector environment of this mode does to it."""
        if self.over:
            assert mode == "NextStep"
            self.reset()
            return
        action = choose(self.env.action_space, self.observation)
        following, reward, terminated, truncated, _ = self.env.step(action)
        self.transitions.append(
            {
                **flat(self.observation, "obs"),
                **flat(action, "act"),
                "rew": reward,
                **flat(following, "next_obs"),
                "terminated": terminated,
                "truncated": truncated,
            }
        )
        self.observation = following
        self.over = terminated or truncated
        self.begun = not self.over
        self.endings += self.over
        if self.over and mode == "SameStep":
            self.reset()


def rows_of(columns, schema):
    """The rows as a multiset, by value and dtype."""
    columns = {
        name: np.ascontiguousarray(columns[name], each.get("dtype", np.float32))
        for name, each in schema.items()
    }
    count = len(next(iter(columns.values())))
    return Counter(
        tuple((name, values[row].tobytes()) for name, values in columns.items())
        for row in range(count)
    )


def make_envs(makers, mode, asynchronous=False, **options):
    kind = vector.AsyncVectorEnv if asynchronous else vector.SyncVectorEnv
    if HAS_MODES:
        options["autoreset_mode"] = vector.AutoresetMode(mode)
    return kind(makers, **options)


def check_against_oracle(makers, mode, ticks, resets=None, wrap=lambda envs: envs, **options):
    """Step both; `resets` gives the masks of resets by hand, by the tick before which they come.

    Returns how many episodes ended.
    """
    resets = resets or {}
    twice = mode == "NextStep" and not options.get("shared_memory", True)
    envs = wrap(make_envs(makers, mode, **options))
    try:
        oracles = [Oracle(make, SEED + index) for index, make in enumerate(makers)]
        schema = mpbuffer.schema_from(envs)
        size = ticks * len(makers)
        with mpbuffer.ReplayBuffer(size, schema, strict=True) as buffer:
            transitions = mpbuffer.VectorTransitions(envs)
            observations, _ = envs.reset(seed=SEED)
            assert transitions.reset(observations).tolist() == []
            origin, ended, cut = [], Counter(), Counter()
            for tick in range(ticks):
                mask = resets.get(tick)
                if mask is not None:
                    if mask.all():
                        observations, _ = envs.reset()
                        cut.update(transitions.reset(observations).tolist())
                    else:
                        observations, _ = envs.reset(options={"reset_mask": mask.copy()})
                        cut.update(transitions.reset(observations, mask).tolist())
                    for oracle, wanted in zip(oracles, mask, strict=True):
                        if wanted:
                            oracle.reset(again=twice and oracle.over)
                actions = actions_for(envs, observations)
                observations, *others = envs.step(actions)
                rows = transitions.step(actions, observations, *others)
                buffer.add(**rows)
                assert all(len(values) == len(rows.envs) for values in rows.values())
                assert set(rows.ended) <= set(rows.envs)
                origin += rows.envs.tolist()
                ended.update(rows.ended.tolist())
                for oracle in oracles:
                    oracle.tick(mode)
                if mode == "Disabled" and (others[1] | others[2]).any():
                    mask = others[1] | others[2]
                    observations, _ = envs.reset(options={"reset_mask": mask.copy()})
                    assert transitions.reset(observations, mask).tolist() == []
                    for oracle in oracles:
                        if oracle.over:
                            oracle.reset()
            stored = buffer.get_all_transitions()
    finally:
        envs.close()

    everything = [each for oracle in oracles for each in oracle.transitions]
    columns = {
        name: np.array([np.reshape(each[name], schema[name]["shape"]) for each in everything])
        for name in schema
    }
    got, expected = rows_of(stored, schema), rows_of(columns, schema)
    assert not got - expected, "made up"
    assert not expected - got, "lost"
    for index, oracle in enumerate(oracles):
        assert origin.count(index) == len(oracle.transitions)
        mine = {name: values[np.array(origin) == index] for name, values in stored.items()}
        theirs = {name: values[: len(oracle.transitions)] for name, values in columns.items()}
        columns = {name: values[len(oracle.transitions) :] for name, values in columns.items()}
        assert rows_of(mine, schema) == rows_of(theirs, schema)
        assert ended[index] == oracle.endings
        assert cut[index] == oracle.cuts
    return sum(oracle.endings for oracle in oracles)


def scripted(kind, *scripts):
    return [lambda script=script: kind(script) for script in scripts]


FIRST_STEP = [Ending(1, TERMINATED)]
MIXED = [Ending(3, TERMINATED), Ending(1, TRUNCATED), Ending(4, TERMINATED | TRUNCATED)]
LONG = [Ending(7, TRUNCATED)]


def cartpoles():
    return [lambda: gymnasium.make("CartPole-v1", max_episode_steps=15) for _ in range(3)]


ENVIRONMENTS = {
    "CartPole": cartpoles,
    "scripted": lambda: scripted(Scripted, MIXED, LONG, MIXED, FIRST_STEP),
    "nested": lambda: scripted(ScriptedNested, MIXED, LONG, MIXED, FIRST_STEP),
}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("kind", ENVIRONMENTS)
@pytest.mark.parametrize("mode", MODES)
def test_stored_is_what_single_environments_do(mode, kind, asynchronous):
    endings = check_against_oracle(ENVIRONMENTS[kind](), mode, 60, asynchronous=asynchronous)
    assert endings > 3


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("mode", MODES)
def test_observations_that_the_environments_write_over(mode, asynchronous):
    makers = ENVIRONMENTS["nested"]()
    check_against_oracle(makers, mode, 30, asynchronous=asynchronous, copy=False)


@pytest.mark.parametrize("mode", MODES)
def test_wrapped_environments(mode):
    wrap = gymnasium.wrappers.vector.RecordEpisodeStatistics
    check_against_oracle(ENVIRONMENTS["scripted"](), mode, 30, wrap=wrap)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shared_memory", [True, False])
def test_resets_by_hand_of_asynchronous_environments(mode, shared_memory):
    """Also in the step after the end of an episode, which resets again without shared memory."""
    makers = ENVIRONMENTS["scripted"]()
    every = np.ones(len(makers), np.bool_)
    resets = {3: every, 4: every, 8: every}
    if HAS_MODES:
        resets |= {5: np.array([0, 1, 1, 0], np.bool_), 11: np.array([0, 0, 0, 1], np.bool_)}
    check_against_oracle(makers, mode, 20, resets, asynchronous=True, shared_memory=shared_memory)


scripts = st.lists(st.builds(Ending, st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from([Scripted, ScriptedNested]),
    per_env=st.lists(scripts, min_size=1, max_size=5),
    mode=st.sampled_from(MODES),
    ticks=st.integers(1, 25),
    data=st.data(),
)
def test_ends_and_resets_anywhere(kind, per_env, mode, ticks, data):
    bits = st.lists(st.booleans(), min_size=len(per_env), max_size=len(per_env))
    masks = bits.map(np.array).filter(lambda mask: mask.any() if HAS_MODES else mask.all())
    resets = data.draw(st.dictionaries(st.integers(0, ticks - 1), masks, max_size=3))
    check_against_oracle(scripted(kind, *per_env), mode, ticks, resets)


def test_of_a_reset_of_some_only_their_observations_are_taken():
    envs = make_envs(scripted(Scripted, LONG, LONG, LONG), MODES[-1])
    transitions = mpbuffer.VectorTransitions(envs)
    first, _ = envs.reset(seed=SEED)
    transitions.reset(first)
    actions = actions_for(envs, first)
    result = envs.step(actions)
    transitions.step(actions, *result)
    told = np.full_like(first, 77)
    assert transitions.reset(told, [False, True, False]).tolist() == [1]
    assert transitions.reset(told, [False, True, False]).tolist() == []  # not begun again
    rows = transitions.step(actions, *envs.step(actions))
    np.testing.assert_array_equal(rows["obs"], [result[0][0], told[1], result[0][2]])
    assert transitions.reset(told).tolist() == [0, 1, 2]
    envs.close()


def test_the_example_of_the_docstring():
    tested = doctest.testmod(importlib.import_module("mpbuffer.envs.vector"))
    assert tested.attempted > 5 and tested.failed == 0


def envs_of_envpool():
    envpool = pytest.importorskip("envpool")
    return envpool.make_gymnasium("CartPole-v1", num_envs=5, seed=SEED, max_episode_steps=15)


def envs_in_one_array():
    module = pytest.importorskip("gymnasium.envs.classic_control.cartpole")
    return module.CartPoleVectorEnv(num_envs=5, max_episode_steps=15)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [envs_of_envpool, envs_in_one_array])
def test_environments_that_were_made_as_vectors(make):
    """Each row obeys the laws of motion, which a made-up one would not."""
    envs = make()
    transitions = mpbuffer.VectorTransitions(envs)
    schema = mpbuffer.schema_from(envs)
    cartpole = gymnasium.make("CartPole-v1").unwrapped
    observations, _ = envs.reset() if make is envs_of_envpool else envs.reset(seed=SEED)
    transitions.reset(observations)
    generator = np.random.default_rng(SEED)
    over = np.zeros(5, np.bool_)
    skipped = terminations = truncations = 0
    for _ in range(60):
        actions = generator.integers(2, size=5)
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        rows = transitions.step(actions, observations, rewards, terminated, truncated, infos)
        assert set(rows) == set(schema)
        np.testing.assert_array_equal(rows.envs, np.flatnonzero(~over))
        if "elapsed_step" in infos:
            np.testing.assert_array_equal(infos["elapsed_step"] == 0, over)
        over = terminated | truncated
        np.testing.assert_array_equal(rows.ended, np.flatnonzero(over))
        skipped += 5 - len(rows.envs)
        terminations += rows["terminated"].sum()
        truncations += rows["truncated"].sum()
        for obs, act, next_obs in zip(rows["obs"], rows["act"], rows["next_obs"], strict=True):
            cartpole.reset()
            cartpole.state = tuple(map(float, obs))
            expected = cartpole.step(int(act))[0]
            np.testing.assert_allclose(next_obs, expected, rtol=1e-4, atol=1e-5)
    assert skipped > 10 and terminations > 0 and truncations > 0
    envs.close()


def test_flags_of_a_step_that_only_resets_mean_nothing(envs):
    transitions = mpbuffer.VectorTransitions(envs)
    observations, _ = envs.reset(seed=SEED)
    transitions.reset(observations)
    for envs_of_rows, ended in (([0, 1, 2, 3], [3]), ([0, 1, 2], []), ([0, 1, 2, 3], [0, 2, 3])):
        actions = actions_for(envs, observations)
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        terminated |= np.array([False, False, False, True])
        rows = transitions.step(actions, observations, rewards, terminated, truncated, infos)
        assert rows.envs.tolist() == envs_of_rows and rows.ended.tolist() == ended


# What is refused


@pytest.fixture
def envs():
    made = make_envs(ENVIRONMENTS["nested"](), "NextStep")
    yield made
    made.close()


def test_a_step_before_the_first_reset(envs):
    observations, _ = envs.reset(seed=SEED)
    actions = actions_for(envs, observations)
    transitions = mpbuffer.VectorTransitions(envs)
    with pytest.raises(ValueError, match="first observations"):
        transitions.step(actions, *envs.step(actions))
    with pytest.raises(ValueError, match="reset all of them first"):
        transitions.reset(observations, [True, False, True, True])


def test_results_of_another_shape_change_nothing(envs):
    transitions = mpbuffer.VectorTransitions(envs)
    first, _ = envs.reset(seed=SEED)
    transitions.reset(first)
    actions = actions_for(envs, first)
    result = envs.step(actions)
    for position, pattern in (
        (0, r"'obs\.camera' must have shape \(4, 2, 3\), got \(2, 2, 3\)"),
        (1, r"'rewards' must have a row for each of 4 environments, got shape \(2,\)"),
        (2, r"terminated must have shape \(4,\), got \(2,\)"),
        (3, r"truncated must have shape \(4,\)"),
    ):
        wrong = list(result)
        wrong[position] = (
            {"camera": result[0]["camera"][:2], "state": result[0]["state"]}
            if position == 0
            else result[position][:2]
        )
        with pytest.raises(ValueError, match=pattern):
            transitions.step(actions, *wrong)
    with pytest.raises(ValueError, match=r"'act\.move' must have a row for each of 4"):
        transitions.step({**actions, "move": actions["move"][:1]}, *result)
    with pytest.raises(ValueError, match=r"reset_mask must have shape \(4,\), got \(1,\)"):
        transitions.reset(first, [True])
    rows = transitions.step(actions, *result)
    np.testing.assert_array_equal(rows["obs.camera"], first["camera"])
    assert rows.envs.tolist() == [0, 1, 2, 3] and rows.ended.tolist() == [3]
    with pytest.raises(ValueError, match="read-only"):
        rows["next_obs.camera"][0] = 0


@needs_modes
def test_an_episode_that_was_not_reset():
    envs = make_envs(scripted(Scripted, LONG, FIRST_STEP), "Disabled")
    transitions = mpbuffer.VectorTransitions(envs)
    observations, _ = envs.reset(seed=SEED)
    transitions.reset(observations)
    actions = actions_for(envs, observations)
    result = envs.step(actions)
    assert transitions.step(actions, *result).ended.tolist() == [1]
    with pytest.raises(ValueError, match=r"environments \[1\].*reset_mask"):
        transitions.step(actions, *result)
    envs.close()


class WithoutMode:
    """A vector environment that does not tell its mode."""

    def __init__(self, envs):
        self.single_observation_space = envs.single_observation_space
        self.single_action_space = envs.single_action_space


@needs_modes
def test_a_mode_that_is_not_told_is_refused_with_the_remedy():
    envs = make_envs(scripted(Scripted, FIRST_STEP, LONG), "SameStep")
    observations, _ = envs.reset(seed=SEED)
    actions = actions_for(envs, observations)
    result = envs.step(actions)
    with pytest.raises(ValueError, match=r"when WithoutMode resets.*'SameStep' if it resets in"):
        mpbuffer.VectorTransitions(WithoutMode(envs))
    for mode in ("SameStep", vector.AutoresetMode.SAME_STEP):
        transitions = mpbuffer.VectorTransitions(WithoutMode(envs), autoreset=mode)
        transitions.reset(observations)
        rows = transitions.step(actions, *result)
        assert rows["next_obs"][:, 2].tolist() == [1, 1]
    transitions.reset(observations)
    with pytest.raises(ValueError, match=r"environments \[0\] have ended.*'final_obs'"):
        transitions.step(actions, *result[:4], {})
    with pytest.raises(ValueError, match=r"autoreset must be 'NextStep'.*got 'Never'"):
        mpbuffer.VectorTransitions(envs, autoreset="Never")
    envs.close()


@pytest.mark.parametrize(
    ("package", "version", "mode"),
    [
        ("stable_baselines3.common", "1.4", "SameStep"),
        ("gym.vector", "1.4", "SameStep"),
        ("envpool.python", "1.4", "NextStep"),
        ("gymnasium.vector", "0.29.1", "SameStep"),
        ("gymnasium.vector", "1.0.0", "NextStep"),
        ("gymnasium.vector", "1.1.0", None),
        ("supersuit.vector", "1.4", None),
    ],
)
def test_packages_of_one_mode(package, version, mode, envs, monkeypatch):
    monkeypatch.setattr(gymnasium, "__version__", version)
    made = type("Envs", (WithoutMode,), {"__module__": package})(envs)
    if mode is None:
        with pytest.raises(ValueError, match="cannot tell when Envs resets"):
            mpbuffer.VectorTransitions(made)
    else:
        assert mpbuffer.VectorTransitions(made)._mode == mode


@needs_modes
def test_a_package_whose_mode_has_changed_is_noticed():
    envs = make_envs(scripted(Scripted, FIRST_STEP, LONG), "SameStep")
    observations, _ = envs.reset(seed=SEED)
    made = type("Envs", (WithoutMode,), {"__module__": "envpool.python"})(envs)
    transitions = mpbuffer.VectorTransitions(made)
    transitions.reset(observations)
    actions = actions_for(envs, observations)
    with pytest.raises(ValueError, match=r"'final_obs'.*expected autoreset='SameStep'"):
        transitions.step(actions, *envs.step(actions))
    envs.close()


@needs_modes
def test_a_wrapper_that_hides_the_mode():
    class Hiding(vector.VectorWrapper):
        metadata = {"render_modes": []}  # noqa: RUF012

    for mode in MODES:
        check_against_oracle(ENVIRONMENTS["scripted"](), mode, 20, wrap=Hiding)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["scripted", "nested"])
def test_infos_as_a_list(mode, kind):
    wrap = gymnasium.wrappers.vector.DictInfoToList
    check_against_oracle(ENVIRONMENTS[kind](), mode, 30, wrap=wrap)


@pytest.mark.parametrize(
    ("infos", "error", "message"),
    [
        (None, TypeError, "infos must be a mapping, or a list of one for each environment"),
        ("no", TypeError, "infos must be a mapping"),
        ([{}, 3, {}, {}], TypeError, "infos must be a mapping"),
        ([{}], ValueError, "infos has 1 mappings, expected one for each of 4 environments"),
    ],
)
def test_infos_of_another_form_are_refused(envs, infos, error, message):
    transitions = mpbuffer.VectorTransitions(envs)
    observations, _ = envs.reset(seed=SEED)
    transitions.reset(observations)
    actions = actions_for(envs, observations)
    result = envs.step(actions)
    with pytest.raises(error, match=message):
        transitions.step(actions, *result[:4], infos)
    assert len(transitions.step(actions, *result).envs) == 4


# Values that cannot be


def test_flags_are_truth_values(envs):
    transitions = mpbuffer.VectorTransitions(envs)
    observations, _ = envs.reset(seed=SEED)
    transitions.reset(observations)
    actions = actions_for(envs, observations)
    result = envs.step(actions)
    for wrong in ([0, 0, 2, 0], [0, np.nan, 0, 0], [0.5, 0, 0, 0]):
        with pytest.raises(ValueError, match=r"terminated: got .*, expected 0 or 1"):
            transitions.step(actions, *result[:2], wrong, *result[3:])
    assert len(transitions.step(actions, *result).envs) == 4


@pytest.mark.parametrize(
    ("final", "error", "message"),
    [
        ([1.5, 0, 0, 0], ValueError, "got 1.5 .*, expected whole numbers"),
        ([1, 0, 0], ValueError, r"must have shape \(4,\), got \(3,\)"),
        (7, ValueError, r"must have shape \(4,\), got \(\)"),
        ("text", TypeError, "expected int64"),
    ],
)
def test_a_last_observation_that_is_none(final, error, message):
    envs = make_envs(scripted(Scripted, FIRST_STEP), MODES[0])
    transitions = mpbuffer.VectorTransitions(envs, autoreset="SameStep")
    observations, _ = envs.reset(seed=SEED)
    transitions.reset(observations)
    result = envs.step([0])
    with pytest.raises(error, match=r"'obs' of infos\['final_obs'\]\[0\].*" + message):
        transitions.step([0], *result[:4], [{"final_obs": final}])
    envs.close()


# A VecEnv of Stable-Baselines3


class ScriptedDict(Scripted):
    observation_space = spaces.Dict(
        {
            "code": Scripted.observation_space,
            "camera": spaces.Box(0, 255, (2, 3), np.uint8),
        }
    )

    def observed(self):
        camera = np.full((2, 3), (self.episode * 16 + self.steps) % 256, np.uint8)
        return {"code": super().observed(), "camera": camera}


class LikeDummyVecEnv:
    """Returns what DummyVecEnv of Stable-Baselines3 2 returns."""

    def __init__(self, makers):
        self.envs = [make() for make in makers]
        self.num_envs = len(self.envs)
        self.observation_space = self.envs[0].observation_space
        self.action_space = self.envs[0].action_space
        self.metadata = self.envs[0].metadata

    def seed(self, seed):
        self.seeds = [seed + index for index in range(self.num_envs)]

    def stacked(self, observations):
        if not isinstance(observations[0], dict):
            return np.stack(observations)
        return {key: np.stack([each[key] for each in observations]) for key in observations[0]}

    def reset(self):
        pairs = zip(self.envs, self.seeds, strict=True)
        return self.stacked([env.reset(seed=seed)[0] for env, seed in pairs])

    def step(self, actions):
        results = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        observations, rewards, terminated, truncated, infos = map(list, zip(*results, strict=True))
        for index, info in enumerate(infos):
            info["TimeLimit.truncated"] = truncated[index] and not terminated[index]
            if terminated[index] or truncated[index]:
                info["terminal_observation"] = observations[index]
                observations[index] = self.envs[index].reset()[0]
        dones = np.array(terminated) | np.array(truncated)
        return self.stacked(observations), np.array(rewards, np.float32), dones, infos

    def close(self):
        pass


LikeDummyVecEnv.__module__ = "stable_baselines3.common.vec_env.dummy_vec_env"


def dummy_vec_env(makers):
    return pytest.importorskip("stable_baselines3.common.vec_env").DummyVecEnv(makers)


def wrapped_vec_env(makers):
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    return vec_env.VecMonitor(vec_env.DummyVecEnv(makers))


@pytest.mark.parametrize("make", [LikeDummyVecEnv, dummy_vec_env, wrapped_vec_env])
@pytest.mark.parametrize("kind", [Scripted, ScriptedDict])
def test_rows_of_a_vec_env_are_what_single_environments_do(make, kind):
    makers = scripted(kind, MIXED, LONG, FIRST_STEP)
    envs = make(makers)
    oracles = [Oracle(maker, SEED + index) for index, maker in enumerate(makers)]
    schema = mpbuffer.schema_from(envs)
    transitions = mpbuffer.VectorTransitions(envs)
    envs.seed(SEED)
    observations = envs.reset()
    assert transitions.reset(observations).tolist() == []
    rows_seen = []
    for _ in range(30):
        actions = np.array(
            [choose(kind.action_space, one_of(observations, index)) for index in range(3)]
        )
        observations, *others = envs.step(actions)
        rows = transitions.step(actions, observations, *others)
        assert rows.envs.tolist() == [0, 1, 2]
        np.testing.assert_array_equal(rows.ended, np.flatnonzero(others[1]))
        rows_seen.append({name: np.array(values) for name, values in rows.items()})
        for oracle in oracles:
            oracle.tick("SameStep")
    envs.close()
    everything = [each for oracle in oracles for each in oracle.transitions]
    for each in everything:
        each["truncated"] = each["truncated"] and not each["terminated"]
    columns = {name: np.array([each[name] for each in everything]) for name in schema}
    got = {name: np.concatenate([rows[name] for rows in rows_seen]) for name in schema}
    assert rows_of(got, schema) == rows_of(columns, schema)
    assert sum(oracle.endings for oracle in oracles) > 30


def test_a_vec_env_that_loses_the_last_observation_is_refused():
    envs = LikeDummyVecEnv(scripted(Scripted, FIRST_STEP, LONG))
    transitions = mpbuffer.VectorTransitions(envs)
    envs.seed(SEED)
    transitions.reset(envs.reset())
    observations, rewards, dones, infos = envs.step([0, 0])
    for info in infos:
        info.pop("terminal_observation", None)
    with pytest.raises(ValueError, match=r"episodes of environments \[0\] have ended"):
        transitions.step([0, 0], observations, rewards, dones, infos)


def test_infos_of_earlier_gymnasiums():
    """A mapping whose "_final_observation" tells where there is one."""
    envs = LikeDummyVecEnv(scripted(ScriptedDict, FIRST_STEP, LONG))
    transitions = mpbuffer.VectorTransitions(envs, autoreset="SameStep")
    envs.seed(SEED)
    transitions.reset(envs.reset())
    observations, rewards, dones, infos = envs.step([0, 0])
    wanted = infos[0]["terminal_observation"]
    as_objects = np.array([wanted, None], object)
    as_arrays = {key: np.stack([value, np.zeros_like(value)]) for key, value in wanted.items()}
    for final in (as_objects, as_arrays):
        told = {"final_observation": final, "_final_observation": np.array([True, False])}
        rows = transitions.step([0, 0], observations, rewards, dones, dones & False, told)
        np.testing.assert_array_equal(rows["next_obs.code"][0], wanted["code"])
        np.testing.assert_array_equal(rows["next_obs.code"][1], observations["code"][1])
        told["_final_observation"][0] = False
        with pytest.raises(ValueError, match=r"environments \[0\] have ended"):
            transitions.step([0, 0], observations, rewards, dones, dones & False, told)


def test_names_are_those_of_the_schema(envs):
    names = {"obs": "s", "rew": "r", "next_obs": "t", "terminated": "done", "truncated": None}
    transitions = mpbuffer.VectorTransitions(envs, **names)
    observations, _ = envs.reset(seed=SEED)
    transitions.reset(observations)
    actions = actions_for(envs, observations)
    rows = transitions.step(actions, *envs.step(actions))
    assert set(rows) == set(mpbuffer.schema_from(envs, **names))
    assert rows["done"].tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match="two fields would be named 'rew'"):
        mpbuffer.VectorTransitions(envs, terminated="rew")
