"""Importance weights by each norm, probabilities and priorities, against NumPy."""

import math

import numpy as np
import pytest

import mpbuffer
from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer

NORMS = ["buffer", "batch", None]
ALL_NORMS = pytest.mark.parametrize("norm", NORMS)


def filled(priorities, alpha=0.6, eps=1e-4, **fields):
    buffer = PrioritizedReplayBuffer(
        len(priorities) + 3, {"a": {}} | fields, alpha=alpha, eps=eps, seed=1
    )
    buffer.add(a=np.arange(len(priorities)), priorities=priorities)
    return buffer


def oracle(priorities, indexes, alpha, eps, beta, norm):
    """Schaul et al., 2016, equations 1 and 2 and section 3.4, in double."""
    leaves = (np.asarray(priorities, np.float64) + eps) ** alpha
    drawable = leaves > 0
    probabilities = leaves / leaves.sum()
    weights = np.zeros(len(leaves))
    weights[drawable] = (drawable.sum() * probabilities[drawable]) ** -beta
    drawn = weights[indexes]
    largest = {"buffer": weights.max(), "batch": drawn.max(), None: 1.0}[norm]
    return drawn / largest, probabilities[indexes]


@ALL_NORMS
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("n", [1, 7, 500])
def test_weights_and_probabilities_equal_numpy(norm, beta, alpha, n):
    priorities = 10 ** np.random.default_rng(n).uniform(-3, 3, n)
    buffer = filled(priorities, alpha)
    for _ in range(3):
        batch = buffer.sample(64, beta, weight_norm=norm, return_probabilities=True)
        weights, probabilities = oracle(priorities, batch["indexes"], alpha, 1e-4, beta, norm)
        np.testing.assert_allclose(batch["weights"], weights, rtol=1e-6)
        np.testing.assert_allclose(batch["probabilities"], probabilities, rtol=1e-6)
        assert batch["weights"].dtype == batch["probabilities"].dtype == np.float32
        priorities[batch["indexes"][:9]] = 5.0
        buffer.update_priorities(batch["indexes"][:9], 5.0)


@ALL_NORMS
def test_rows_that_cannot_be_drawn_do_not_count(norm):
    priorities = [0.0, 1.0, 2.0, 0.0, 4.0]
    batch = filled(priorities, 1.0, 0.0).sample(30, 1.0, weight_norm=norm)
    weights, _ = oracle(priorities, batch["indexes"], 1.0, 0.0, 1.0, norm)
    np.testing.assert_allclose(batch["weights"], weights, rtol=1e-6)


def test_the_default_is_the_largest_weight_of_the_buffer():
    one, other = filled([1e-6, 1, 1, 1]), filled([1e-6, 1, 1, 1])
    np.testing.assert_array_equal(
        one.sample(3)["weights"], other.sample(3, weight_norm="buffer")["weights"]
    )
    assert filled([1e-6, 1, 1, 1]).sample(3, 1.0)["weights"].max() < 0.01
    assert filled([1e-6, 1, 1, 1]).sample(3, 1.0, weight_norm="batch")["weights"].max() == 1


def test_weights_without_a_norm_weigh_all_rows_alike():
    """With beta 1 the weighted mean over draws is the mean over rows."""
    priorities = np.arange(1, 101)
    batch = filled(priorities, 1.0).sample(100_000, 1.0, weight_norm=None)
    mean = (batch["weights"].astype(float) * batch["a"].ravel()).mean()
    assert mean == pytest.approx(np.arange(100).mean(), rel=2e-3)


def test_a_weight_beyond_float32_is_the_largest_float():
    buffer = filled([0.0, 1e30], 1.0, 1e-30)
    weights = np.concatenate([buffer.sample(1, 2.0, weight_norm=None)["weights"] for _ in range(3)])
    assert np.isfinite(weights).all()
    buffer = filled([0.0] + [1e-3] * 50, 1.0, 1e-38)
    buffer.sample_uniform(1)
    batch = buffer.sample(10**6, 5.0, weight_norm=None)
    assert np.isfinite(batch["weights"]).all()


@pytest.mark.parametrize("norm", ["Buffer", "", 1, "max", True])
def test_other_norms_are_refused(norm):
    buffer = filled([1.0, 2.0])
    for ask in (buffer.sample, buffer.batches):
        with pytest.raises(ValueError, match=r"weight_norm is .*'buffer', 'batch' or None"):
            ask(2, weight_norm=norm)


# batches() and out=


@ALL_NORMS
@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_take_the_norm_and_give_probabilities(norm, prefetch):
    priorities = 10 ** np.random.default_rng(3).uniform(-3, 3, 50)
    options = {"weight_norm": norm, "return_probabilities": True, "prefetch": prefetch}
    with filled(priorities).batches(16, 0.7, **options) as batches:
        for _ in range(4):
            batch = next(batches)
            weights, probabilities = oracle(
                priorities, batch["indexes"], 0.6, 1e-4, batches.beta, norm
            )
            np.testing.assert_allclose(batch["weights"], weights, rtol=1e-6)
            np.testing.assert_allclose(batch["probabilities"], probabilities, rtol=1e-6)


def test_batches_of_tensors_have_probabilities():
    torch = pytest.importorskip("torch")
    options = {"return_probabilities": True, "tensors": True}
    with filled([1.0, 2.0]).batches(4, **options) as batches:
        assert next(batches)["probabilities"].dtype == torch.float32


def test_out_takes_probabilities():
    buffer = filled([1.0, 2.0, 3.0])
    with pytest.raises(KeyError, match="probabilities"):
        buffer.sample(4, out=buffer.sample(4), return_probabilities=True)
    out = buffer.sample(4, return_probabilities=True)
    again = buffer.sample(4, out=out, return_probabilities=True)
    assert again is out
    _, probabilities = oracle([1, 2, 3], out["indexes"], 0.6, 1e-4, 0.4, "buffer")
    np.testing.assert_allclose(out["probabilities"], probabilities, rtol=1e-6)


def test_probabilities_of_other_rows_are_removed_from_out():
    buffer = filled([1.0, 2.0, 3.0])
    assert "probabilities" not in buffer.sample(4, out=buffer.sample(4, return_probabilities=True))
    batch = buffer.sample(4, return_probabilities=True)
    assert set(buffer.sample_uniform(4, out=batch)) == {"a", "indexes"}


def test_a_field_named_probabilities_stays_a_field():
    buffer = PrioritizedReplayBuffer(5, {"probabilities": {"shape": 2}})
    buffer.add(probabilities=[0.25, 0.75])
    assert buffer.sample(3, out=buffer.sample(3))["probabilities"].shape == (3, 2)
    with pytest.raises(ValueError, match="a field has the name 'probabilities'"):
        buffer.sample(3, return_probabilities=True)


# get_priorities


@pytest.mark.parametrize("alpha", [0.3, 0.6, 1.0])
def test_priorities_are_those_that_were_given(alpha):
    priorities = 10 ** np.random.default_rng(5).uniform(-2, 4, 50)
    buffer = filled(priorities, alpha)
    np.testing.assert_allclose(buffer.get_priorities(range(50)), priorities, rtol=1e-5)
    buffer.sample(5)
    buffer.update_priorities([7, 3], [0.5, 123.0])
    priorities[[7, 3]] = 0.5, 123.0
    np.testing.assert_allclose(buffer.get_priorities(range(50)), priorities, rtol=1e-5)
    assert buffer.get_priorities([3]).dtype == np.float64
    assert buffer.get_priorities([]).shape == (0,)


def test_slots_without_a_row_have_no_priority():
    buffer = filled([1.0, 2.0])
    assert [math.isnan(each) for each in buffer.get_priorities(range(5))] == [False] * 2 + [
        True
    ] * 3
    buffer.clear()
    assert np.isnan(buffer.get_priorities(range(5))).all()


def test_a_row_that_overwrites_another_has_its_own_priority():
    buffer = PrioritizedReplayBuffer(2, {"a": {}})
    buffer.add(a=[1, 2], priorities=[3, 4])
    buffer.sample(2)
    buffer.update_priorities([0, 1], [5, 6])
    buffer.add(a=3, priorities=7)
    np.testing.assert_allclose(buffer.get_priorities([1, 0]), [6, 7], rtol=1e-5)


def test_other_handles_read_priorities_too():
    buffer = filled([1.0, 2.0])
    buffer.sample(2)
    buffer.update_priorities([1], 9.0)
    with mpbuffer.attach(buffer.name) as other:
        np.testing.assert_allclose(other.get_priorities([0, 1]), [1, 9], rtol=1e-5)


def test_without_alpha_all_priorities_are_one():
    assert filled([5.0, 7.0], 0.0).get_priorities([0, 1]).tolist() == [1, 1]


def test_priorities_of_zero():
    assert filled([0.0, 1.0], 0.5, 0.0).get_priorities([0]).tolist() == [0]


def test_bad_indexes_of_priorities():
    with pytest.raises(IndexError, match=r"index 0 is -1, expected one in \[0, 4\)"):
        filled([1.0]).get_priorities([-1])


def test_a_uniform_buffer_has_no_priorities():
    assert not hasattr(ReplayBuffer, "get_priorities")
