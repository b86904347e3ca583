"""Mixtures: weights, caps, shares of a limited number, exact resume in mid-epoch, ranks that see one global batch."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest

from tests.support.corpora_fixtures import ROWS, Mirror
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.data.corpus import columns_of
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.data.hard_negatives import HardNegatives, write_hard_negatives
from twn_lightning.data.sampler import SameSourceSampler
from twn_lightning.data.sources import SPLITS, get_source
from twn_lightning.errors import CheckpointError, ConfigError, DataError
from twn_lightning.settings import Settings, SourceSettings
from twn_lightning.types import ContrastiveBatch, Pair

WEIGHTED = [
    SourceSettings("twn", "ChartQA", weight=3.0),
    SourceSettings("twn", "Video", weight=1.0),
    SourceSettings("ume_r1", weight=4.0),
]


def pairs_of(mirror: Mirror, sources: list[SourceSettings], count: int = 10_000, split: Any = "train") -> Any:
    return get_source("mixture", mirror.settings(sources=sources)).pairs(split, count)


def module(mirror: Mirror, tiny: PromptProcessor, sources: list[SourceSettings], **changes: Any) -> TWNDataModule:
    settings = Settings(data=mirror.settings(sources=sources, **changes))
    settings.stage.batch_size, settings.stage.max_steps = 8, 40  # type: ignore[union-attr]
    return TWNDataModule(settings, tiny)


def keys(batch: ContrastiveBatch) -> list[str]:
    return [pair.query.key for pair in batch.pairs]


def test_weights_decide_how_often_a_source_is_drawn(mirror: Mirror, tiny: PromptProcessor) -> None:
    data = module(mirror, tiny, WEIGHTED)
    sampler = data.train_dataloader().sampler
    sources = columns_of(data.pairs("train")).sources
    drawn = Counter(sources[row] for step in range(400) for row in sampler.rank_rows(step))
    total = sum(drawn.values())
    assert drawn["twn/ChartQA"] / total == pytest.approx(3 / 8, abs=0.02)
    assert drawn["twn/Video"] / total == pytest.approx(1 / 8, abs=0.02)
    assert sum(n for name, n in drawn.items() if name.startswith("ume_r1")) / total == pytest.approx(4 / 8, abs=0.02)


def test_an_entry_shares_its_weight_by_size(mirror: Mirror) -> None:
    weights = columns_of(pairs_of(mirror, WEIGHTED)).weights
    assert weights is not None
    assert weights["twn/ChartQA"] == pytest.approx(3.0)
    assert weights["ume_r1/MSCOCO_t2i"] + weights["ume_r1/llavahound_qa"] == pytest.approx(4.0)
    assert weights["ume_r1/MSCOCO_t2i"] == pytest.approx(weights["ume_r1/llavahound_qa"], rel=0.2)


def test_without_weights_sources_follow_their_sizes(mirror: Mirror) -> None:
    assert columns_of(pairs_of(mirror, [SourceSettings("twn")])).weights is None


@pytest.mark.parametrize("count", [8, 40])
def test_a_limited_number_is_shared_by_weight_and_grows_by_adding(mirror: Mirror, count: int) -> None:
    few = pairs_of(mirror, WEIGHTED, count)
    shares = Counter(
        pair.source.split("/")[0] + pair.source.split("/")[1][:1] * pair.source.startswith("twn") for pair in few
    )
    assert shares["twnC"] == pytest.approx(count * 3 / 8, abs=1)
    assert shares["twnV"] == pytest.approx(count / 8, abs=1)
    more = pairs_of(mirror, WEIGHTED, count + 20)
    assert {pair.query.key for pair in few} < {pair.query.key for pair in more}


def test_every_part_of_a_mixture_is_mixed(mirror: Mirror) -> None:
    """Prefixes are used as samples: stored pairs of two-phase training, rows of a preview."""
    first = Counter(pair.source for pair in pairs_of(mirror, [SourceSettings("twn"), SourceSettings("colpali")])[:30])
    assert set(first) == {"twn/ChartQA", "twn/Video", "colpali"}
    assert min(first.values()) >= 8


def test_caps_count_rows_of_the_files(mirror: Mirror) -> None:
    entries = [SourceSettings("colpali", cap=12)]
    found = [pair.query.key for split in SPLITS for pair in pairs_of(mirror, entries, split=split)]
    assert sorted(found) == sorted(f"colpali/{row}" for row in range(12))
    entries = [SourceSettings("ume_r1", "llavahound_qa", cap=5)]
    found = [pair.query.key for split in SPLITS for pair in pairs_of(mirror, entries, split=split)]
    assert sorted(found) == sorted(f"ume_r1/llavahound_qa/{row}" for row in (1, 3, 5, 7, 9))


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_in_mid_epoch_with_weights(mirror: Mirror, tiny: PromptProcessor, workers: int) -> None:
    straight = [keys(batch) for batch in module(mirror, tiny, WEIGHTED).train_dataloader()]
    first = module(mirror, tiny, WEIGHTED, num_workers=workers)
    taken = [keys(batch) for batch in islice(first.train_dataloader(), 7)]
    resumed = module(mirror, tiny, WEIGHTED, num_workers=workers)
    resumed.load_state_dict(first.state_dict())
    assert taken + [keys(batch) for batch in resumed.train_dataloader()] == straight
    assert len(straight) == 40


def test_two_ranks_see_the_global_batches_of_one(
    mirror: Mirror, tiny: PromptProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [keys(batch) for batch in islice(module(mirror, tiny, WEIGHTED).train_dataloader(), 10)]
    monkeypatch.setattr(TWNDataModule, "_world_size", 2)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(TWNDataModule, "_rank", rank)
        ranks.append([keys(batch) for batch in islice(module(mirror, tiny, WEIGHTED).train_dataloader(), 10)])
    for whole, left, right in zip(one, *ranks, strict=True):
        assert len(left) == len(right) == 4
        assert sorted(left + right) == sorted(whole)


def test_sub_batches_have_one_source(mirror: Mirror, tiny: PromptProcessor) -> None:
    for batch in islice(module(mirror, tiny, WEIGHTED).train_dataloader(), 10):
        assert [len({p.source for p in batch.pairs[i : i + 4]}) for i in (0, 4)] == [1, 1]


def test_other_weights_are_other_data(mirror: Mirror, tiny: PromptProcessor) -> None:
    state = module(mirror, tiny, WEIGHTED).train_dataloader().state_dict()
    other = [SourceSettings(e.source, e.subset, weight=1.0) for e in WEIGHTED]
    with pytest.raises(CheckpointError, match="fingerprint"):
        module(mirror, tiny, other).train_dataloader().load_state_dict(state)


@pytest.mark.parametrize("seed", range(6))
def test_weighted_rows_are_drawn_once_a_pass(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 60, 4)
    sources = rng.permutation(np.repeat(["a", "b", "c", "d"], sizes)).tolist()
    weights = dict(zip("abcd", rng.uniform(0.1, 9, 4), strict=True))
    targets = [str(i % 9) for i in range(len(sources))]
    sampler = SameSourceSampler(
        sources, targets, batch_size=16, rows_per_source=8, max_steps=200, weights=weights, seed=seed
    )
    seen: dict[str, list[int]] = {name: [] for name in "abcd"}
    for step in range(200):
        for part in sampler.sub_batches(step):
            assert len({sources[row] for row in part}) == 1
            seen[sources[part[0]]] += part
    for name, rows in seen.items():
        own = {i for i, source in enumerate(sources) if source == name}
        assert len(rows) / 3200 == pytest.approx(weights[name] / sum(weights.values()), abs=0.02)
        for start in range(0, len(rows) - len(own) + 1, len(own)):
            assert set(rows[start : start + len(own)]) == own


def test_a_source_without_weight_is_refused() -> None:
    values: dict[str, Any] = {"batch_size": 2, "rows_per_source": 2, "max_steps": 3}
    with pytest.raises(DataError, match=r"without a weight above 0: b\. Weigh every source, or none"):
        SameSourceSampler(["a", "b"], ["1", "2"], weights={"a": 1.0}, **values)


def test_weights_by_size_draw_what_no_weights_draw() -> None:
    sources, targets = ["a"] * 30 + ["b"] * 10, [str(i) for i in range(40)]
    values: dict[str, Any] = {"batch_size": 8, "rows_per_source": 4, "max_steps": 30}
    plain = SameSourceSampler(sources, targets, **values)
    weighted = SameSourceSampler(sources, targets, weights={"a": 3.0, "b": 1.0}, **values)
    assert list(plain) == list(weighted)


def test_an_entry_listed_twice_is_refused(mirror: Mirror) -> None:
    with pytest.raises(ConfigError, match="twn/ChartQA more than once"):
        pairs_of(mirror, [SourceSettings("twn"), SourceSettings("twn", "ChartQA")])


def test_another_split_is_another_task(mirror: Mirror) -> None:
    entries = [SourceSettings("mmeb_train", "HatefulMemes", split) for split in (None, "diverse_instruction")]
    tasks = Counter(pair.source for split in SPLITS for pair in pairs_of(mirror, entries, split=split))
    assert tasks == {"mmeb_train/HatefulMemes": ROWS, "mmeb_train/HatefulMemes:diverse_instruction": 10}


def test_candidates_of_an_unknown_task(mirror: Mirror) -> None:
    source = get_source("mixture", mirror.settings("twn"))
    with pytest.raises(DataError, match="unknown task 'twn/Chart': did you mean 'twn/ChartQA'"):
        source.candidates("val", "twn/Chart")


def test_candidates_are_the_splits_own_and_then_others(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = mirror.settings("colpali")
    source = get_source("mixture", settings)
    own = {pair.positive.key for pair in source.pairs("val", 500)}
    assert 0 < len(own) < 5
    keys = [item.key for item in source.candidates("val", "colpali")]
    assert set(keys[: len(own)]) == own
    assert len(keys) == len(set(keys)) == ROWS
    monkeypatch.setattr("twn_lightning.data.mixture.TARGETS_PER_TASK", 10)
    assert {item.key for item in source.candidates("val", "colpali")} > own
    assert len(source.candidates("val", "colpali")) == 10
    assert len(source.candidates("train", "colpali")) == len(source.pairs("train", 500)), "as many as the pairs have"


def first_pair(mirror: Mirror, **changes: Any) -> Pair:
    settings = mirror.settings(sources=[SourceSettings("twn", "Video")], **changes)
    return get_source("mixture", settings).pairs("train", 1)[0]


@pytest.mark.parametrize(("count", "kept"), [(0, 0), (1, 1), (5, 2)])
def test_hard_negatives_are_capped(mirror: Mirror, count: int, kept: int) -> None:
    pair = first_pair(mirror, hard_negatives=count)
    assert len(pair.hard_negatives) == len(pair.negative_hashes) == kept
    assert [item.content_hash() for item in pair.hard_negatives] == list(pair.negative_hashes)


def test_mined_hard_negatives_follow_the_rows_own(mirror: Mirror, tmp_path: Any) -> None:
    pair = first_pair(mirror, hard_negatives=5)
    other = next(
        p
        for p in get_source("mixture", mirror.settings(sources=[SourceSettings("twn", "Video")])).pairs("train", 99)
        if p.target_hash not in (pair.target_hash, *pair.negative_hashes)
    )
    path = tmp_path / "mined.parquet"
    wanted = [pair.target_hash, pair.negative_hashes[0], other.target_hash]
    write_hard_negatives(path, HardNegatives([pair.query.key], [wanted], [[0.9, 0.8, 0.7]]))
    mined = first_pair(mirror, hard_negatives=5, hard_negatives_path=str(path))
    assert mined.negative_hashes == (*pair.negative_hashes, other.target_hash), "neither the positive nor one twice"
    assert mined.hard_negatives[-1].text == other.positive.text
    write_hard_negatives(path, HardNegatives([pair.query.key], [["gone"]], [[0.9]]))
    with pytest.raises(DataError, match="the mined hard negative gone is no target of this source"):
        first_pair(mirror, hard_negatives=5, hard_negatives_path=str(path))


def test_hard_negatives_reach_the_batch_once(mirror: Mirror, tiny: PromptProcessor) -> None:
    sources = [SourceSettings("mmeb_train", "MSCOCO_t2i")]
    data = mirror.settings(sources=sources)
    pairs = get_source("mixture", data).pairs("train", 8)
    batch = TWNDataModule(Settings(data=data), tiny).collator
    batch.think_sides = None
    collated = batch(list(pairs))
    targets = {pair.target_hash for pair in pairs}
    extra = {hash_ for pair in pairs for hash_ in pair.negative_hashes} - targets
    assert int(collated.candidate_is_negative_C.sum()) == len(extra) > 0
    assert len(collated.candidates) == len(targets | extra)
