"""Minari's datasets: imported with their episodes, exported, and imported again."""

import numpy as np
import pytest

import mpbuffer

pytest.importorskip("minari")
pytest.importorskip("h5py")
pytest.importorskip("gymnasium")

import gymnasium

from mpbuffer.adapters.minari import add_dataset, create_dataset, fields_of

SPACES = (
    gymnasium.spaces.Dict(
        position=gymnasium.spaces.Box(-9, 9, (2,)), phase=gymnasium.spaces.Discrete(5)
    ),
    gymnasium.spaces.Box(-1, 1, (3,)),
)


@pytest.fixture(autouse=True)
def datasets_in_a_folder_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def play(buffer, lengths, first=0):
    rng = np.random.default_rng(first)
    for number, length in enumerate(lengths, first):
        obs = rng.random((length + 1, 2), np.float32)
        phase = rng.integers(0, 5, length + 1)
        ends = number % 2 == 0
        for step in range(length):
            last = step == length - 1
            buffer.add(
                **{"obs.position": obs[step], "next_obs.position": obs[step + 1]},
                **{"obs.phase": phase[step], "next_obs.phase": phase[step + 1]},
                act=rng.random(3) - 0.5,
                rew=rng.random(),
                terminated=last and ends,
                truncated=last and not ends,
                **({"episode": number} if "episode" in dict(names(buffer)) else {}),
            )


def names(buffer):
    return [(name, dtype) for name, dtype, _ in buffer._fields()]


@pytest.mark.parametrize("with_episodes", [True, False])
def test_a_dataset_made_of_rows_gives_the_same_rows(with_episodes):
    fields = mpbuffer.schema_from(*SPACES) | (
        {"episode": {"dtype": np.int64}} if with_episodes else {}
    )
    with mpbuffer.ReplayBuffer(100, fields) as buffer:
        play(buffer, [4, 9, 1, 7])
        dataset = create_dataset(buffer, "test/rows-v0", *SPACES, data_format="hdf5")
        assert [len(each) for each in dataset.iterate_episodes()] == [4, 9, 1, 7]
        with mpbuffer.PrioritizedReplayBuffer(100, fields_of(dataset)) as again:
            assert add_dataset(again, dataset, priorities=3.0) == 21
            rows, others = buffer.get_all_transitions(), again.get_all_transitions()
            for name, values in rows.items():
                np.testing.assert_array_equal(values, others[name], name)
            assert others["episode"].ravel().tolist() == [0] * 4 + [1] * 9 + [2] + [3] * 7
            assert again.get_max_priority() == 3.0


def test_interleaved_episodes_are_told_apart_by_their_numbers():
    fields = mpbuffer.schema_from(*SPACES) | {"episode": {"dtype": int}}
    with mpbuffer.ReplayBuffer(
        100, mpbuffer.schema_from(*SPACES) | {"episode": {"dtype": int}}
    ) as one:
        play(one, [5, 5])
        rows = one.get_all_transitions()
        order = np.ravel(np.column_stack([np.arange(5), np.arange(5, 10)]))
        with mpbuffer.ReplayBuffer(100, fields) as mixed:
            mixed.add(**{name: values[order] for name, values in rows.items()})
            dataset = create_dataset(mixed, "test/mixed-v0", *SPACES, data_format="hdf5")
        for number, episode in enumerate(dataset.iterate_episodes()):
            np.testing.assert_array_equal(
                episode.rewards, rows["rew"].ravel()[5 * number : 5 * number + 5]
            )
            np.testing.assert_array_equal(
                episode.observations["position"][1:],
                rows["next_obs.position"][5 * number : 5 * number + 5],
            )


def test_a_full_buffer_exports_from_its_oldest_row():
    with mpbuffer.ReplayBuffer(10, mpbuffer.schema_from(*SPACES)) as buffer:
        play(buffer, [8, 8])
        dataset = create_dataset(buffer, "test/full-v0", *SPACES, data_format="hdf5")
        assert [len(each) for each in dataset.iterate_episodes()] == [2, 8]


def test_nstep_rows_end_with_their_episode():
    nstep = {"size": 3, "rew": "rew", "gamma": 0.5, "next": ["next_obs.position", "next_obs.phase"]}
    with mpbuffer.ReplayBuffer(100, mpbuffer.schema_from(*SPACES)) as buffer:
        play(buffer, [4, 6])
        dataset = create_dataset(buffer, "test/steps-v0", *SPACES, data_format="hdf5")
        rewards = buffer.get_all_transitions()["rew"].ravel()
    with mpbuffer.ReplayBuffer(100, fields_of(dataset), Nstep=nstep) as folded:
        add_dataset(folded, dataset)
        rows = folded.get_all_transitions()
        assert len(folded) == 10
        assert rows["rew"][3] == pytest.approx(rewards[3])
        assert rows["rew"][0] == pytest.approx(rewards[0] + 0.5 * rewards[1] + 0.25 * rewards[2])
        with pytest.raises(ValueError, match="single steps"):
            create_dataset(folded, "test/folded-v0", *SPACES)


def test_an_empty_buffer_makes_no_dataset():
    with (
        mpbuffer.ReplayBuffer(10, mpbuffer.schema_from(*SPACES)) as buffer,
        pytest.raises(ValueError, match="no rows"),
    ):
        create_dataset(buffer, "test/empty-v0", *SPACES)
