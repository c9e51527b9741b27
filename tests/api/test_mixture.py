"""Batches from several buffers: shares, indexes, weights and updates."""

import itertools

import numpy as np
import pytest

import mpbuffer
from mpbuffer import Mixture, PrioritizedReplayBuffer, ReplayBuffer

ENV = {"obs": {"shape": 3}, "id": {"dtype": np.int64}}


@pytest.fixture
def buffers():
    """A prioritized one, a uniform one, and another prioritized one, with ids of their own."""
    made = [
        PrioritizedReplayBuffer(100, ENV, seed=1),
        ReplayBuffer(70, ENV, seed=2),
        PrioritizedReplayBuffer(40, ENV, alpha=1.0, eps=0.0, seed=3),
    ]
    rng = np.random.default_rng(0)
    for i, buffer in enumerate(made):
        ids = np.arange(buffer.get_buffer_size()) + 1_000 * i
        given = {"priorities": rng.random(len(ids)) + 0.1} if i != 1 else {}
        buffer.add(obs=ids[:, None] * np.ones(3), id=ids, **given)
    yield made
    for buffer in made:
        buffer.close()


def test_each_row_tells_its_buffer_and_its_slot(buffers):
    mixture = Mixture(buffers, [2, 1, 1])
    batch = mixture.sample(64)
    firsts = np.array([0, 100, 170])
    assert batch["id"].shape == (64, 1) and batch["obs"].shape == (64, 3)
    np.testing.assert_array_equal(batch["id"].ravel() // 1_000, batch["buffers"])
    slots = batch["indexes"] - firsts[batch["buffers"]]
    np.testing.assert_array_equal(batch["id"].ravel() % 1_000, slots)
    assert np.bincount(batch["buffers"]).tolist() == [32, 16, 16]


@pytest.mark.parametrize("proportions", [[1, 1, 1], [0.9, 0.05, 0.05], [0, 1, 0], [3, 0.001, 1e-9]])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_shares_are_exact_over_many_batches(buffers, proportions, batch_size):
    mixture = Mixture(buffers, proportions)
    shares = np.array(proportions) / sum(proportions)
    np.testing.assert_allclose(mixture.proportions, shares)
    given = np.zeros(3)
    for number, batch in enumerate(itertools.islice(mixture.batches(batch_size), 60), 1):
        assert len(batch["id"]) == batch_size
        given += np.bincount(batch["buffers"], minlength=3)
        assert np.abs(given - number * batch_size * shares).max() <= 1 + 1e-6


def test_updates_reach_the_rows_that_were_drawn(buffers):
    mixture = Mixture(buffers, [1, 1, 1])
    batch = mixture.sample(60)
    before = [buffer.get_priorities(range(buffer.get_buffer_size())) for buffer in buffers[::2]]
    priorities = 5 + batch["id"].ravel() / 1_000
    assert mixture.update_priorities(batch["indexes"], priorities) == 0
    for buffer, place, old in zip(buffers[::2], (0, 2), before, strict=True):
        slots = batch["id"].ravel()[batch["buffers"] == place] % 1_000
        new = buffer.get_priorities(range(buffer.get_buffer_size()))
        np.testing.assert_allclose(new[slots], 5 + place + slots / 1_000, rtol=1e-5)
        others = np.setdiff1d(np.arange(len(new)), slots)
        np.testing.assert_array_equal(new[others], old[others])


def test_updates_of_rows_overwritten_since_are_stale(buffers):
    mixture = Mixture(buffers, [1, 0, 1])
    batch = mixture.sample(20)
    generations = mixture.get_generations(batch["indexes"])
    buffers[2].add(obs=np.zeros((40, 3)), id=np.arange(40), priorities=1.0)
    for given in (None, generations):
        stale = mixture.update_priorities(batch["indexes"], 9.0, given)
        assert stale == (batch["buffers"] == 2).sum() == 10
    np.testing.assert_allclose(buffers[2].get_priorities(range(40)), 1.0)


def test_weights_are_those_of_each_buffer(buffers):
    for norm in ("buffer", "batch", None):
        batch = Mixture(buffers, [1, 1, 1]).sample(300, 0.7, weight_norm=norm)
        for place, buffer in enumerate(buffers):
            weights = batch["weights"][batch["buffers"] == place]
            if place == 1:
                expected = np.ones(100)
            else:
                size = buffer.get_buffer_size()
                leaves = (buffer.get_priorities(range(size)) + buffer.eps) ** buffer.alpha
                everyone = (size * leaves / leaves.sum()) ** -0.7
                drawn = batch["id"].ravel()[batch["buffers"] == place] % 1_000
                expected = everyone[drawn] / (everyone.max() if norm == "buffer" else 1)
            scale = weights[0] / expected[0] if norm == "batch" else 1
            np.testing.assert_allclose(weights, expected * scale, rtol=1e-4)
        assert batch["weights"].max() <= 1.0 or norm is None


def test_bad_mixtures_are_refused(buffers):
    with (
        ReplayBuffer(5, {"obs": {"shape": 2}, "id": {"dtype": np.int64}}) as other,
        ReplayBuffer(5, {"buffers": {}}) as named_buffers,
    ):
        for arguments, error in (
            (([], []), ValueError),
            ((buffers, [1, 1]), ValueError),
            ((buffers, [1, -1, 1]), ValueError),
            ((buffers, [0, 0, 0]), ValueError),
            ((buffers, [1, np.nan, 1]), ValueError),
            (([*buffers, other], [1] * 4), ValueError),
            (([buffers[0], {}], [1, 1]), TypeError),
            (([named_buffers], [1]), ValueError),
        ):
            with pytest.raises(error, match=r"mix|proportions"):
                Mixture(*arguments)


def test_an_empty_buffer_is_told_and_one_without_a_share_is_not(buffers):
    with ReplayBuffer(5, ENV, name="mixture.empty") as empty:
        with pytest.raises(mpbuffer.EmptyBuffer, match=r"mixture\.empty"):
            Mixture([*buffers, empty], [1, 1, 1, 1]).sample(8)
        assert len(Mixture([*buffers, empty], [1, 1, 1, 0]).sample(8)["id"]) == 8


def test_bad_updates_change_nothing(buffers):
    mixture = Mixture(buffers, [1, 1, 1])
    batch = mixture.sample(30)
    before = [buffer.get_priorities(range(40)) for buffer in buffers[::2]]
    many = np.ones(30)
    for bad in (np.nan, np.inf, -1.0, 1e300):
        with pytest.raises(ValueError, match="update priorities"):
            mixture.update_priorities(batch["indexes"], np.where(np.arange(30) == 29, bad, many))
    with pytest.raises(ValueError):
        mixture.update_priorities(batch["indexes"], many[:7])
    with pytest.raises(ValueError, match="generations"):
        mixture.update_priorities(batch["indexes"], many, [1, 2])
    for index in (-1, 210):
        with pytest.raises(IndexError, match=r"is not in \[0, 210\)"):
            mixture.update_priorities([0, index], [1.0, 1.0])
    with pytest.raises(TypeError, match="expected integers"):
        mixture.update_priorities([0.5], [1.0])
    for wrong in ({"batch_size": 0}, {"batch_size": 4, "weight_norm": "x"}):
        with pytest.raises(ValueError):
            mixture.sample(**wrong)
    for buffer, old in zip(buffers[::2], before, strict=True):
        np.testing.assert_array_equal(buffer.get_priorities(range(40)), old)
    assert mixture.update_priorities([], []) == 0


def test_buffers_of_another_learner_are_busy(buffers):
    name = "mixture.busy"
    with (
        PrioritizedReplayBuffer(10, ENV, name=name) as buffer,
        mpbuffer.attach(name) as other,
    ):
        buffer.add(obs=np.zeros((5, 3)), id=range(5))
        other.acquire_learner()
        mixture = Mixture([buffer, buffers[1]], [1, 1])
        with pytest.raises(mpbuffer.LearnerBusy):
            mixture.sample(4)
        with pytest.raises(mpbuffer.LearnerBusy):
            mixture.update_priorities([1], [2.0])
