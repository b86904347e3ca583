"""The sampler as a property: pure batches, every row once a pass, exact resume, ranks that partition."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from twn_lightning.data.sampler import SameSourceSampler, spread_targets
from twn_lightning.errors import CheckpointError, ConfigError, DataError


def draw_rows(seed: int) -> tuple[list[str], list[str]]:
    """Rows of one to four sources of random sizes, in random order, with random targets."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 60, rng.integers(1, 5))
    names = rng.permutation(np.repeat([f"s{i}" for i in range(len(sizes))], sizes)).tolist()
    return names, [f"t{t}" for t in rng.integers(0, 12, len(names))]


def sampler(seed: int = 0, **changes: int) -> SameSourceSampler:
    sources, targets = draw_rows(seed)
    values = {"batch_size": 16, "rows_per_source": 8, "max_steps": 40, "seed": seed} | changes
    return SameSourceSampler(sources, targets, **values)


@pytest.mark.parametrize("seed", range(12))
def test_sub_batches_are_pure_and_no_row_is_lost_or_repeated_within_a_pass(seed):
    sources, _ = draw_rows(seed)
    seen: dict[str, list[int]] = {name: [] for name in sources}
    for step in range(40):
        parts = sampler(seed).sub_batches(step)
        assert [len(part) for part in parts] == [8, 8]
        for part in parts:
            assert len({sources[row] for row in part}) == 1
            seen[sources[part[0]]] += part
    for name, rows in seen.items():
        own = {i for i, source in enumerate(sources) if source == name}
        for start in range(0, len(rows) - len(own) + 1, len(own)):
            assert set(rows[start : start + len(own)]) == own


@pytest.mark.parametrize("seed", range(6))
def test_sources_are_drawn_in_proportion_to_their_sizes(seed):
    sources, _ = draw_rows(seed)
    drawn = Counter(sources[row] for step in range(300) for row in sampler(seed).rank_rows(step))
    for name, size in Counter(sources).items():
        assert drawn[name] / sum(drawn.values()) == pytest.approx(size / len(sources), abs=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_ranks_partition_every_sub_batch(seed):
    for step in range(10):
        whole = sampler(seed).sub_batches(step)
        ranks = [sampler(seed, rank=r, world_size=4).rank_rows(step) for r in range(4)]
        assert sorted(row for rows in ranks for row in rows) == sorted(row for part in whole for row in part)
        assert {len(rows) for rows in ranks} == {4}


def test_batches_depend_on_seed_and_step_alone():
    first, again, other = sampler(3), sampler(3), SameSourceSampler(*draw_rows(3), **sizes(), seed=99)
    list(again)  # drawing everything first must not matter
    assert first.rank_rows(17) == again.rank_rows(17)
    assert first.rank_rows(17) != other.rank_rows(17)


def sizes() -> dict[str, int]:
    return {"batch_size": 16, "rows_per_source": 8, "max_steps": 40}


@pytest.mark.parametrize("step", [0, 1, 13, 39])
def test_resumes_exactly(step):
    straight = list(sampler(5))
    resumed = sampler(5)
    state = {**sampler(5).state_dict(), "step": step}
    resumed.load_state_dict(state)
    assert list(resumed) == straight[step:]


def test_refuses_a_state_of_other_data():
    state = sampler(1).state_dict()
    with pytest.raises(CheckpointError, match="fingerprint"):
        SameSourceSampler(*draw_rows(2), **sizes(), seed=1).load_state_dict(state)
    with pytest.raises(CheckpointError, match="batch_size 16 in the checkpoint, 8 now"):
        sampler(1, batch_size=8).load_state_dict(state)


@pytest.mark.parametrize("num_targets", [64, 70, 500])
def test_equal_targets_are_spread_while_there_are_distinct_ones(num_targets):
    targets = np.random.default_rng(0).integers(0, num_targets, 4000)
    order = spread_targets(targets, 64, np.random.default_rng(1))
    assert sorted(order) == list(range(4000))
    windows = [len(set(targets[order[i : i + 64]])) for i in range(0, 3968, 64)]
    assert min(windows) >= 55
    assert np.mean(windows) >= 60  # a plain shuffle has 42 of 64 here


def test_a_target_too_frequent_to_be_distinct_repeats_evenly():
    targets = np.array([0] * 500 + list(range(1, 501)))
    order = spread_targets(targets, 50, np.random.default_rng(0))
    shares = [(targets[order[i : i + 50]] == 0).mean() for i in range(0, 1000, 50)]
    assert max(shares) - min(shares) < 0.35


def test_reports_sizes_that_do_not_divide():
    with pytest.raises(ConfigError, match=r"batch_size 20 is not a multiple of .* 8; set it to 16"):
        sampler(batch_size=20)
    with pytest.raises(ConfigError, match="does not divide among 3 ranks"):
        sampler(world_size=3)
    with pytest.raises(DataError, match="0 rows"):
        SameSourceSampler([], [], **sizes())


def test_a_small_batch_lowers_the_rows_per_source():
    assert len(sampler(batch_size=4, rows_per_source=64).rank_rows(0)) == 4
