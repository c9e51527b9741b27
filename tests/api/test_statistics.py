"""Draws follow the priorities, the tree adds up, and descents are short. All seeds are fixed."""

import math

import numpy as np
import pytest
from scipy import stats

from mpbuffer import PrioritizedReplayBuffer, ReplayBuffer

BINS = 1000
EXPECTED_PER_BIN = 200  # draws; the rule of chi-square asks for at least 25 here
ROWS = 2**20
DECADES = 6
# With fixed seeds these decide once and for all; a sampler that is right passes 998 seeds of 1000.
TAIL = 1e-3
EPS = 1e-4


def uneven_priorities(order):
    """2^20 priorities, log-uniform over six decades, in an order of slots.

    The descending order is the worst for sums of small numbers onto large ones.
    """
    priorities = 10 ** np.linspace(DECADES / 2, -DECADES / 2, ROWS)
    if order == "ascending":
        return priorities[::-1].copy()
    if order == "random":
        return np.random.default_rng(0).permutation(priorities)
    return priorities


def equal_mass_bins(leaves):
    """For each row its bin, and each bin's share: rows in order of priority, cut at equal mass."""
    by_priority = np.argsort(leaves, kind="stable")
    mass = np.cumsum(leaves[by_priority]) / leaves.sum()
    middle = mass - 0.5 * leaves[by_priority] / leaves.sum()
    bins = np.empty(len(leaves), np.int64)
    bins[by_priority] = np.minimum((middle * BINS).astype(np.int64), BINS - 1)
    share = np.bincount(bins, weights=leaves, minlength=BINS) / leaves.sum()
    assert len(share) == BINS
    assert 0.5 / BINS < share.min() <= share.max() < 2 / BINS
    return bins, share


def follows_priorities(draw, leaves, batch_size):
    """Chi-square of what `draw(batches, batch_size)` drew against priorities.

    Two-sided for single draws. Stratification makes larger batches less dispersed than
    independent draws, so for these only too much deviation counts.
    """
    bins, share = equal_mass_bins(leaves)
    drawn = draw(math.ceil(BINS * EXPECTED_PER_BIN / batch_size), batch_size)
    counts = np.bincount(bins[drawn], minlength=BINS)
    expected = share * counts.sum()
    assert expected.min() >= 25
    deviation = ((counts - expected) ** 2 / expected).sum()
    exceeded = stats.chi2.sf(deviation, BINS - 1)
    if batch_size == 1:
        return TAIL / 2 < exceeded < 1 - TAIL / 2
    return exceeded > TAIL


def buffer_with(priorities, **options):
    """A buffer in which a leaf is the priority itself, but for float32."""
    buffer = PrioritizedReplayBuffer(
        len(priorities), {"a": {"dtype": "u1"}}, alpha=1.0, eps=EPS, seed=7, **options
    )
    buffer.add(a=np.zeros(len(priorities)), priorities=priorities - EPS)
    return buffer


class Float32PrefixSums:
    """The sampler that must be caught: proportional draws from a running sum in float32."""

    def __init__(self, priorities, seed=7):
        self.sums = np.cumsum(priorities.astype(np.float32), dtype=np.float32)
        self.random = np.random.default_rng(seed)

    def draw(self, batches, batch_size):
        mass = (self.strata(batches, batch_size) * self.sums[-1]).astype(np.float32)
        return np.minimum(np.searchsorted(self.sums, mass, side="right"), len(self.sums) - 1)

    def strata(self, batches, batch_size):
        """Where in the whole mass each draw is: one in each stratum of its batch."""
        return (
            (np.arange(batch_size) + self.random.random((batches, batch_size))) / batch_size
        ).ravel()


class Float64PrefixSums(Float32PrefixSums):
    """The slow sampler that is right: shows that the test does not reject everything."""

    def __init__(self, priorities, seed=7):
        self.sums = np.cumsum(priorities)
        self.random = np.random.default_rng(seed)

    def draw(self, batches, batch_size):
        return np.searchsorted(
            self.sums, self.strata(batches, batch_size) * self.sums[-1], side="right"
        )


def draws_of(buffer):
    """The draws of a buffer, as a sampler's."""
    return lambda batches, batch_size: np.concatenate(
        [buffer.sample(batch_size)["indexes"] for _ in range(batches)]
    )


@pytest.mark.parametrize("batch_size", [1, 512])
@pytest.mark.parametrize("order", ["descending", "random"])
def test_draws_follow_the_priorities(batch_size, order):
    priorities = uneven_priorities(order)
    buffer = buffer_with(priorities)
    assert follows_priorities(draws_of(buffer), buffer_leaves_in_float64(buffer), batch_size)


def buffer_leaves_in_float64(buffer):
    buffer.sample(1)
    return buffer._leaves().astype(np.float64)


@pytest.mark.parametrize("batch_size", [1, 512])
def test_draws_follow_the_priorities_after_updates(batch_size):
    """The same shares, but every leaf written by an update rather than an add."""
    priorities = uneven_priorities("descending")
    buffer = buffer_with(np.ones(ROWS))
    buffer.sample(1)
    slots = np.random.default_rng(1).permutation(ROWS)
    for part in np.array_split(slots, 200):
        assert buffer.update_priorities(part, priorities[part] - EPS) == 0
    np.testing.assert_allclose(buffer._leaves(), priorities, rtol=1e-6)
    assert follows_priorities(draws_of(buffer), priorities, batch_size)


@pytest.mark.parametrize("batch_size", [1, 512])
def test_the_test_rejects_float32_prefix_sums(batch_size):
    priorities = uneven_priorities("descending")
    assert not follows_priorities(Float32PrefixSums(priorities).draw, priorities, batch_size)


@pytest.mark.parametrize("batch_size", [1, 512])
def test_the_test_accepts_float64_prefix_sums(batch_size):
    priorities = uneven_priorities("descending")
    assert follows_priorities(Float64PrefixSums(priorities).draw, priorities, batch_size)


@pytest.mark.parametrize("batch_size", [1, 512])
def test_the_test_rejects_wrong_exponents(batch_size):
    priorities = uneven_priorities("random")
    assert not follows_priorities(Float64PrefixSums(priorities**0.9).draw, priorities, batch_size)


def test_a_batch_has_one_draw_from_each_stratum():
    rng = np.random.default_rng(5)
    priorities = 10 ** rng.uniform(-3, 3, 3000)
    buffer = buffer_with(priorities)
    leaves = buffer_leaves_in_float64(buffer)
    upper = np.cumsum(leaves) / leaves.sum()
    lower = upper - leaves / leaves.sum()
    for batch_size in (2, 7, 64, 512, 1000):
        for _ in range(20):
            indexes = np.sort(buffer.sample(batch_size)["indexes"])
            strata = np.arange(batch_size) / batch_size
            assert (upper[indexes] >= strata - 1e-9).all()
            assert (lower[indexes] <= strata + 1 / batch_size + 1e-9).all()


def test_within_a_stratum_draws_are_spread():
    """One draw a batch could sit at the same place of its stratum; these must not."""
    buffer = buffer_with(np.ones(1024))
    fourth = np.array([np.sort(buffer.sample(8)["indexes"])[3] for _ in range(6400)])
    assert ((fourth >= 384) & (fourth < 512)).all()
    counts = np.bincount(fourth - 384, minlength=128)
    assert TAIL / 2 < stats.chisquare(counts).pvalue < 1 - TAIL / 2


@pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedReplayBuffer])
@pytest.mark.parametrize("batch_size", [1, 512])
def test_uniform_draws_are_uniform_and_independent(cls, batch_size):
    """A capacity that is no power of two, on the second lap, so that a modulo would show."""
    buffer = cls(1000, {"a": {"dtype": "u1"}}, seed=11)
    buffer.add(a=np.zeros(1000))
    buffer.add(a=np.zeros(345))
    sample = getattr(buffer, "sample_uniform", buffer.sample)
    batches = [
        sample(batch_size, return_indexes=True)["indexes"] for _ in range(100_000 // batch_size)
    ]
    counts = np.bincount(np.concatenate(batches), minlength=1000)
    assert len(counts) == 1000
    assert TAIL / 2 < stats.chisquare(counts).pvalue < 1 - TAIL / 2
    drawn = np.concatenate(batches)
    pairs = np.bincount(drawn[:-1] // 50 * 20 + drawn[1:] // 50, minlength=400)
    assert TAIL / 2 < stats.chisquare(pairs).pvalue < 1 - TAIL / 2


def test_processes_and_seeds_draw_differently():
    """Two handles of one buffer never give the same draws, though the seed is one."""
    from multiprocessing import get_context

    from watched_processes import BufferElsewhere

    buffer = ReplayBuffer(10_000, {"a": {"dtype": "u1"}}, seed=11)
    buffer.add(a=np.zeros(10_000))
    context = get_context("fork")
    with BufferElsewhere(context, buffer) as one, BufferElsewhere(context, buffer) as two:
        draws = [
            np.concatenate([handle.sample(500, return_indexes=True)["indexes"] for _ in range(4)])
            for handle in (buffer, one, two)
        ]
    for i in range(3):
        for k in range(i):
            assert (draws[i] == draws[k]).mean() < 0.01
            assert abs(np.corrcoef(draws[i], draws[k])[0, 1]) < 0.1


@pytest.mark.parametrize("capacity", [1000, 2**16])
@pytest.mark.parametrize("millions", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_the_total_after_millions_of_updates(capacity, millions):
    """Sums that were carried along by differences would have drifted."""
    rng = np.random.default_rng(capacity)
    buffer = buffer_with(10 ** rng.uniform(-3, 3, capacity))
    buffer.sample(1)
    updates = 0
    while updates < millions * 1_000_000:
        n = 1_000_000
        slots = rng.integers(0, capacity, n)
        priorities = 10 ** rng.uniform(-3, 3, n)
        for first in range(0, n, 5000):
            part = slice(first, first + 5000)
            assert buffer.update_priorities(slots[part], priorities[part]) == 0
        updates += n
    leaves = buffer._leaves().astype(np.float64)
    total = buffer._tree_total()
    assert abs(total - math.fsum(leaves)) <= 1e-9 * total
    last = np.zeros(capacity)
    last[slots] = priorities  # of an index given twice NumPy too keeps the last
    touched = last > 0
    np.testing.assert_allclose(leaves[touched], (last + EPS)[touched], rtol=1e-6)
    assert buffer.learner_status().updates == updates
    np.testing.assert_allclose(buffer.learner_status().least_leaf, leaves.min(), rtol=1e-7)


def test_the_total_after_many_laps():
    """The rows themselves change, in batches that straddle the end of the ring."""
    rng = np.random.default_rng(2)
    buffer = PrioritizedReplayBuffer(5000, {"a": {"dtype": "u1"}}, alpha=1.0, seed=7)
    for _ in range(2000):
        n = int(rng.integers(1, 700))
        buffer.add(a=np.zeros(n), priorities=10 ** rng.uniform(-3, 3, n))
        buffer.update_priorities(buffer.sample(32)["indexes"], 10 ** rng.uniform(-3, 3, 32))
    leaves = buffer._leaves().astype(np.float64)
    assert (leaves > 0).all()
    assert abs(buffer._tree_total() - math.fsum(leaves)) <= 1e-9 * buffer._tree_total()
    np.testing.assert_allclose(buffer.learner_status().least_leaf, leaves.min(), rtol=1e-7)


@pytest.mark.parametrize("capacity", [1, 8, 9, 64, 100, 512, 513, 4096, 10_000, 100_000, 2**20])
def test_nodes_visited_per_draw(capacity):
    rng = np.random.default_rng(capacity)
    bound = next(levels for levels in range(30) if 8**levels >= capacity) + 1
    for batch_size, batches in [(1, 200), (512, 20)]:
        buffer = buffer_with(10 ** rng.uniform(-3, 3, capacity))
        for _ in range(batches):
            buffer.sample(batch_size)
        status = buffer.learner_status()
        assert status.draws == batch_size * batches
        visited = status.nodes_visited / status.draws
        assert visited <= bound
        # A node has at most 16 leaves or 8 nodes below it: fewer visits cannot find the row. The
        # draws of a large batch share those of the upper levels.
        fewest = 1 + max(0, math.ceil(math.log(max(1, capacity / 16), 8) - 1e-9))
        assert visited >= (fewest if batch_size == 1 else 1)
