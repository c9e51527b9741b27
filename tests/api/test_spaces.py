"""Spaces of gymnasium as fields of a buffer, there and back."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpbuffer

gymnasium = pytest.importorskip("gymnasium", minversion="1.0")
spaces = pytest.importorskip("gymnasium.spaces")
concatenate = gymnasium.vector.utils.concatenate
create_empty_array = gymnasium.vector.utils.create_empty_array

ROBOT = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (6, 5, 3), np.uint8),
        "arm": spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float64)]),
        "clock": spaces.Box(0, 1, (), np.float32),
        "doors": spaces.MultiBinary(4),
        "gears": spaces.MultiDiscrete([3, 4]),
    }
)
ARRAYS_OF_ROBOT = {
    ".camera": ((6, 5, 3), np.uint8),
    ".arm.0": ((1,), np.int64),
    ".arm.1": ((2,), np.float64),
    ".clock": ((1,), np.float32),
    ".doors": ((4,), np.int8),
    ".gears": ((2,), np.int64),
}


class NeverStepped(gymnasium.Env):
    def __init__(self, observation_space, action_space):
        self.observation_space = observation_space
        self.action_space = action_space


def plain(schema):
    return {name: (each["shape"], each.get("dtype", "default")) for name, each in schema.items()}


def test_fields_of_cartpole():
    schema = mpbuffer.schema_from(gymnasium.make("CartPole-v1"))
    assert plain(schema) == {
        "obs": ((4,), np.float32),
        "act": ((1,), np.int64),
        "rew": ((1,), "default"),
        "next_obs": ((4,), np.float32),
        "terminated": ((1,), np.bool_),
        "truncated": ((1,), np.bool_),
    }


def test_a_vector_environment_has_the_fields_of_a_single_one():
    envs = gymnasium.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    assert mpbuffer.schema_from(envs) == mpbuffer.schema_from(gymnasium.make("CartPole-v1"))
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    assert mpbuffer.schema_from(wrapped) == mpbuffer.schema_from(envs)
    envs.close()


def test_nested_spaces_become_fields():
    env = NeverStepped(ROBOT, spaces.Tuple([ROBOT["arm"], spaces.Discrete(2)]))
    schema = plain(mpbuffer.schema_from(env))
    assert {name: each for name, each in schema.items() if name.startswith("obs")} == {
        f"obs{end}": each for end, each in ARRAYS_OF_ROBOT.items()
    }
    assert {name[8:]: each for name, each in schema.items() if name.startswith("next_obs")} == (
        ARRAYS_OF_ROBOT
    )
    assert {name for name in schema if name.startswith("act")} == {"act.0.0", "act.0.1", "act.1"}
    assert mpbuffer.schema_from(env.observation_space, env.action_space) == (
        mpbuffer.schema_from(env)
    )


def test_names_can_be_chosen():
    schema = mpbuffer.schema_from(
        ROBOT["arm"],
        spaces.Discrete(2),
        obs="s",
        act="a",
        rew="r",
        next_obs="s'",
        terminated="done",
        truncated=None,
    )
    assert list(schema) == ["s.0", "s.1", "a", "r", "s'.0", "s'.1", "done"]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Graph(spaces.Box(0, 1, (2,)), None),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]),
        np.zeros(3),
    ],
    ids=lambda space: type(space).__name__,
)
def test_unsupported_spaces_are_named(space):
    place, nested = "obs", space
    if isinstance(space, gymnasium.Space):
        place, nested = r"obs\.parts\.1", spaces.Dict({"parts": spaces.Tuple([ROBOT, space])})
    with pytest.raises(TypeError, match=f"'{place}'.*expected a space of type Box, .* got"):
        mpbuffer.schema_from(nested, spaces.Discrete(2))
    with pytest.raises(TypeError, match=r"'act'.*expected a space"):
        mpbuffer.schema_from(ROBOT, space)


def test_what_cannot_be_fields():
    act = spaces.Discrete(2)
    with pytest.raises(TypeError, match="cannot find the spaces of 3"):
        mpbuffer.schema_from(3)
    with pytest.raises(TypeError, match="cannot find the spaces of Discrete"):
        mpbuffer.schema_from(act)
    with pytest.raises(ValueError, match=r"two fields would be named 'obs'"):
        mpbuffer.schema_from(act, act, act="obs")
    with pytest.raises(ValueError, match=r"two would be named 'obs\.a\.b'"):
        mpbuffer.schema_from(spaces.Dict({"a.b": act, "a": spaces.Dict({"b": act})}), act)
    with pytest.raises(ValueError, match=r"'obs\.0'.* no elements"):
        mpbuffer.schema_from(spaces.Tuple([spaces.Box(0, 1, (0, 2))]), act)
    with pytest.raises(ValueError, match="contains no arrays"):
        mpbuffer.schema_from(spaces.Dict({}), act)
    with pytest.raises(TypeError, match="non-empty str"):
        mpbuffer.schema_from(act, act, rew="rew", act="")


def test_a_batch_that_lacks_a_field():
    with pytest.raises(KeyError, match=r"no field 'obs\.1' among \['obs\.0'\]"):
        mpbuffer.from_fields(ROBOT["arm"], {"obs.0": np.zeros((2, 1))})


def test_spaces_of_other_packages_will_do():
    class Discrete:  # as a package with spaces of its own may have it
        shape, dtype = (), np.dtype(np.int16)

        def sample(self):
            return np.int16(0)

    schema = mpbuffer.schema_from(Discrete(), Discrete())
    assert plain(schema)["obs"] == ((1,), np.int16)


def test_gymnasium_is_not_imported(tmp_path):
    program = "import mpbuffer, sys; assert 'gymnasium' not in sys.modules"
    # Elsewhere: in the tree, its folder of sources would be found before what is installed.
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=tmp_path)


leaf_spaces = st.one_of(
    st.builds(spaces.Discrete, st.integers(1, 9), start=st.integers(-5, 5)),
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 9), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 4), st.just((2, 3)))),
    st.builds(
        lambda shape, dtype: spaces.Box(0, 100, tuple(shape), dtype),
        st.lists(st.integers(1, 3), max_size=3),
        st.sampled_from([np.uint8, np.int64, np.float16, np.float32, np.float64]),
    ),
)
nested_spaces = st.recursive(
    leaf_spaces,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3).map(spaces.Dict),
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=6,
)


def assert_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    else:
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected, strict=True)


def batch_of(space, elements):
    return concatenate(space, elements, create_empty_array(space, len(elements)))


@settings(max_examples=40, deadline=None)
@given(space=nested_spaces, act=nested_spaces, rows=st.integers(1, 4), seed=st.integers(0, 99))
def test_round_trip_through_a_buffer(space, act, rows, seed):
    space.seed(seed)
    act.seed(seed)
    obs, following = ([space.sample() for _ in range(rows)] for _ in range(2))
    taken = [act.sample() for _ in range(rows)]
    flags = {"rew": np.zeros(rows), "terminated": np.zeros(rows), "truncated": np.ones(rows)}
    with mpbuffer.ReplayBuffer(2 * rows, mpbuffer.schema_from(space, act), strict=True) as buffer:
        buffer.add(
            **mpbuffer.to_fields(space, batch_of(space, obs)),
            **mpbuffer.to_fields(space, batch_of(space, following), "next_obs"),
            **mpbuffer.to_fields(act, batch_of(act, taken), "act"),
            **flags,
        )
        for row in range(rows):  # and one by one
            buffer.add(
                **mpbuffer.to_fields(space, obs[row]),
                **mpbuffer.to_fields(space, following[row], "next_obs"),
                **mpbuffer.to_fields(act, taken[row], "act"),
                **{name: values[row] for name, values in flags.items()},
            )
        batch = buffer.get_all_transitions()
    assert_same(mpbuffer.from_fields(space, batch), batch_of(space, obs + obs))
    assert_same(
        mpbuffer.from_fields(space, batch, "next_obs"), batch_of(space, following + following)
    )
    assert_same(mpbuffer.from_fields(act, batch, "act"), batch_of(act, taken + taken))


def test_batches_of_torch_tensors_are_put_together():
    torch = pytest.importorskip("torch")
    fields = {"obs.0": torch.zeros((5, 1), dtype=torch.int64), "obs.1": torch.ones((5, 2))}
    first, second = mpbuffer.from_fields(ROBOT["arm"], fields)
    assert first.shape == (5,) and second.shape == (5, 2)
    assert torch.is_tensor(first) and torch.is_tensor(second)
