"""Large batch experience replay: hand-worked weights, the paper's expectations, bad input."""

import doctest
import importlib

import numpy as np
import pytest

from mpbuffer import LaBERlazy, LaBERmax, LaBERmean, ReplayBuffer

CLASSES = [LaBERmean, LaBERlazy, LaBERmax]
every_class = pytest.mark.parametrize("cls", CLASSES)


def test_examples():
    tested = doctest.testmod(importlib.import_module("mpbuffer.replay.large_batch"))
    assert tested.attempted > 0 and tested.failed == 0


@pytest.mark.parametrize(
    ("cls", "weights"),
    [
        (LaBERmean, {1: 2.5 / 1, 2: 2.5 / 2, 3: 2.5 / 3, 4: 2.5 / 4}),
        (LaBERlazy, {1: 10 / 1, 2: 10 / 2, 3: 10 / 3, 4: 10 / 4}),
    ],
)
def test_weights_by_hand(cls, weights):
    draw = cls(64, 1 / 16, eps=0)
    seen = set()
    for _ in range(20):
        batch = draw(priorities=[1, 2, 3, 4], p=np.array([1, 2, 3, 4]))
        seen |= set(batch["p"].tolist())
        np.testing.assert_array_equal(batch["p"], batch["indexes"] + 1)
        np.testing.assert_allclose(
            batch["weights"], [weights[p] for p in batch["p"].tolist()], rtol=1e-12
        )
    assert seen == {1, 2, 3, 4}


def test_the_largest_weight_of_a_batch_is_1_in_max():
    draw = LaBERmax(3, 2, eps=0)
    for _ in range(50):
        batch = draw(priorities=[1, 2, 4, 8, 16, 32], p=np.array([1, 2, 4, 8, 16, 32]))
        np.testing.assert_allclose(batch["weights"], batch["p"].min() / batch["p"], rtol=1e-12)


@every_class
def test_draws_are_in_proportion_to_priorities(cls):
    draw = cls(50, 4 / 50, eps=0)
    draw.rng = np.random.default_rng(1)
    counts = np.zeros(4)
    for _ in range(400):
        counts += np.bincount(draw(priorities=[0, 1, 3, 6])["indexes"], minlength=4)
    assert counts[0] == 0
    expected = np.array([0.1, 0.3, 0.6]) * counts.sum()
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 20  # chi-square, 2 degrees


def test_the_mean_variant_estimates_the_large_batch_s_mean_without_bias():
    """The paper's reason for it: so would a uniform draw, but with a larger variance."""
    rng = np.random.default_rng(2)
    losses = rng.exponential(size=128)
    draw = LaBERmean(32, 4, eps=0)
    draw.rng = rng
    estimates = []
    for _ in range(2000):
        batch = draw(priorities=np.sqrt(losses), loss=losses)
        estimates.append(np.mean(batch["weights"] * batch["loss"]))
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - losses.mean()) < 4 * error
    uniform = [losses[rng.integers(0, 128, 32)].mean() for _ in range(2000)]
    assert np.var(estimates) < 0.7 * np.var(uniform)


@every_class
def test_it_draws_from_what_a_buffer_sampled(cls):
    with ReplayBuffer(100, {"obs": {"shape": 3}, "rew": {}}) as buffer:
        buffer.add(obs=np.arange(300).reshape(100, 3), rew=np.arange(100))
        large = buffer.sample(4 * 8)
        batch = cls(8)(priorities=np.abs(large["rew"].ravel()), **large)
        assert batch["obs"].shape == (8, 3) and batch["rew"].shape == (8, 1)
        assert batch["weights"].shape == batch["indexes"].shape == (8,)
        for name in ("obs", "rew"):
            np.testing.assert_array_equal(batch[name], large[name][batch["indexes"]])


def test_tensors_stay_tensors():
    torch = pytest.importorskip("torch")
    priorities = torch.rand(32, requires_grad=True)
    batch = LaBERmean(8)(priorities=priorities, obs=torch.arange(32), names=list(range(32)))
    assert isinstance(batch["obs"], torch.Tensor)
    assert batch["obs"].tolist() == batch["indexes"].tolist() == batch["names"].tolist()


@every_class
@pytest.mark.parametrize(
    ("priorities", "said"),
    [
        ([1.0] * 7, r"must have shape \(8,\), which is m \* batch_size, got \(7,\)"),
        ([[1.0]] * 8, r"got \(8, 1\)"),
        ([], r"got \(0,\)"),
        ([1.0] * 7 + [np.nan], "must be finite numbers"),
        ([1.0] * 7 + [np.inf], "must be finite numbers"),
        ([1.0] * 7 + [-0.5], "must be finite numbers of at least 0"),
        ([0.0] * 8, "not all 0 with eps=0"),
    ],
)
def test_bad_priorities(cls, priorities, said):
    with pytest.raises(ValueError, match=said):
        cls(2, eps=0)(priorities=priorities)


def test_a_field_of_other_rows_is_refused():
    with pytest.raises(ValueError, match=r"field 'obs' must have 8 rows.*got shape \(7, 2\)"):
        LaBERmean(2)(priorities=[1.0] * 8, obs=np.zeros((7, 2)))


@every_class
@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an int"),
        ({"m": 0}, ValueError, "m must be a finite number above 0"),
        ({"m": np.inf}, ValueError, "m must be"),
        ({"m": 0.1}, ValueError, r"m \* batch_size must be at least 1"),
        ({"eps": -1e-9}, ValueError, "eps must be a finite number of at least 0"),
    ],
)
def test_bad_arguments(cls, arguments, error, said):
    with pytest.raises(error, match=said):
        cls(**{"batch_size": 2, **arguments})
