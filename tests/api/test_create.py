"""cpprb's functions that create buffers and fields: spaces round-trip, dtypes are kept."""

import numpy as np
import pytest

import mpbuffer
from mpbuffer import create_before_add_func, create_buffer, create_env_dict

FIELDS = {"obs": {"shape": 3}, "rew": {}}


@pytest.mark.parametrize(
    ("prioritized", "cls"),
    [(False, mpbuffer.ReplayBuffer), (True, mpbuffer.PrioritizedReplayBuffer)],
)
def test_create_buffer_makes_the_class(prioritized, cls):
    with create_buffer(10, FIELDS, prioritized=prioritized, default_dtype=np.float64) as buffer:
        assert type(buffer) is cls
        buffer.add(obs=[1, 2, 3], rew=0.1)
        assert buffer.sample(1)["rew"].tolist() == [[0.1]]
    with pytest.raises(TypeError, match="alfa"):
        create_buffer(10, FIELDS, prioritized=prioritized, alfa=0.5)


gymnasium = pytest.importorskip("gymnasium", minversion="1.0")
from gymnasium import spaces  # noqa: E402 - beyond the skip

ACTIONS = spaces.Discrete(3)
FRAMES = spaces.Box(0, 255, (4, 4, 3), np.uint8)


class Made(gymnasium.Env):
    def __init__(self, observation_space, action_space=ACTIONS):
        self.observation_space, self.action_space = observation_space, action_space


def plain(env_dict):
    return {name: (each["shape"], each["dtype"]) for name, each in env_dict.items()}


def test_fields_of_cartpole():
    assert plain(create_env_dict(gymnasium.make("CartPole-v1"))) == {
        "rew": (1, np.float32),
        "done": (1, np.float32),
        "obs": ((4,), np.float32),
        "next_obs": ((4,), np.float32),
        "act": (1, np.int32),
    }


def test_types_may_be_chosen():
    env = Made(spaces.Box(-1, 1, (2,), np.float64))
    fields = plain(create_env_dict(env, int_type=np.int64, float_type="f8"))
    assert fields["obs"] == ((2,), np.float64) and fields["act"] == (1, np.int64)
    assert plain(create_env_dict(env))["obs"] == ((2,), np.float32)


def test_uint8_frames_stay_uint8():
    fields = plain(create_env_dict(Made(FRAMES)))
    assert fields["obs"] == fields["next_obs"] == ((4, 4, 3), np.uint8)
    counts = plain(create_env_dict(Made(spaces.Box(0, 9, (2,), np.int16))))
    assert counts["obs"] == ((2,), np.int16)


SPACES = {
    "discrete": spaces.Discrete(5),
    "frames": FRAMES,
    "scalar": spaces.Box(0, 1, (), np.float32),
    "binary": spaces.MultiBinary(4),
    "grid": spaces.MultiBinary((2, 3)),
    "multi": spaces.MultiDiscrete([3, 4]),
    "tuple": spaces.Tuple([spaces.Discrete(32), FRAMES, spaces.MultiBinary(2)]),
    "dict": spaces.Dict({"camera": FRAMES, "speed": spaces.Box(-1, 1, (), np.float32)}),
    "nested": spaces.Dict(
        {"arm": spaces.Tuple([spaces.Discrete(3), spaces.Dict({"x": FRAMES})]), "leg": ACTIONS}
    ),
}


def parts(value):
    """The arrays inside a sample of a space, in the order of its spaces."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return [part for each in value for part in parts(each)]
    return [np.asarray(value)]


@pytest.mark.parametrize("name", SPACES)
def test_spaces_round_trip(name):
    env = Made(SPACES[name], spaces.Dict({"push": ACTIONS, "aim": spaces.Box(-1, 1, (2,))}))
    env.observation_space.seed(1)
    env_dict, before_add = create_env_dict(env), create_before_add_func(env)
    with mpbuffer.ReplayBuffer(10, env_dict, strict=True) as buffer:
        observation, action = env.observation_space, env.action_space
        added = [[observation.sample(), action.sample(), observation.sample()] for _ in range(4)]
        for t, (obs, act, next_obs) in enumerate(added):
            buffer.add(**before_add(obs=obs, act=act, next_obs=next_obs, rew=t, done=t == 3))
        rows = buffer.get_all_transitions()
    assert rows["rew"].ravel().tolist() == [0, 1, 2, 3]
    assert rows["done"].ravel().tolist() == [0, 0, 0, 1]
    columns = [rows[field] for field in env_dict if field not in ("rew", "done")]
    for t, (obs, act, next_obs) in enumerate(added):
        given = [*parts(obs), *parts(next_obs), *parts(act)]
        assert len(given) == len(columns)
        for column, value in zip(columns, given, strict=True):
            np.testing.assert_array_equal(column[t].ravel(), value.ravel())


def test_names_of_parts():
    names = set(create_env_dict(Made(SPACES["tuple"], SPACES["tuple"])))
    assert {"obs0", "obs1", "next_obs2", "act0", "act2"} <= names and len(names) == 11
    assert set(create_env_dict(Made(SPACES["dict"]))) == {
        *("rew", "done", "act", "camera", "speed", "next_camera", "next_speed")
    }
    assert set(create_env_dict(Made(SPACES["nested"]))) == {
        *("rew", "done", "act", "arm.0", "arm.1.x", "leg"),
        *("next_arm.0", "next_arm.1.x", "next_leg"),
    }


def test_early_gym_s_environments_need_no_gymnasium():
    class Discrete:  # of gym 0.21
        shape, dtype = (), np.dtype(np.int64)

        def sample(self):
            return 1

    class Env:
        observation_space = action_space = Discrete()

    assert plain(create_env_dict(Env()))["obs"] == (1, np.int32)
    assert create_before_add_func(Env())(1, 2, 3, 4, 5) == {
        **{"obs": 1, "act": 2, "next_obs": 3, "rew": 4, "done": 5}
    }


@pytest.mark.parametrize(
    ("env", "error", "said"),
    [
        (Made(spaces.Text(5)), TypeError, "cannot make fields of 'obs'"),
        (object(), TypeError, "cannot find the spaces"),
        (Made(spaces.Dict({"x": ACTIONS}), spaces.Dict({"x": ACTIONS})), ValueError, "named 'x'"),
        (Made(spaces.Dict({"rew": ACTIONS})), ValueError, r"named 'rew'; use schema_from\(\) and"),
    ],
)
def test_spaces_without_fields_of_their_own_are_refused(env, error, said):
    for function in (create_env_dict, create_before_add_func):
        with pytest.raises(error, match=said):
            function(env)
