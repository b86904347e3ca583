"""What every corpus must keep: the source protocol, lazy columns, batches of the tiny processor, splits by target."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from tests.support.corpora_fixtures import ENTRIES, WRITERS, Mirror
from twn_lightning import source_rules
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.data import mixture, sources
from twn_lightning.data.corpus import columns_of
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.data.sources import SPLITS, get_source
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.settings import DataSettings, RLSettings, Settings, SourceSettings
from twn_lightning.types import Media

NAMES = sorted(WRITERS)


def source_of(mirror: Mirror, *names: str, **changes: object) -> mixture.Mixture:
    source = get_source("mixture", mirror.settings(*names, **changes))
    assert isinstance(source, mixture.Mixture)
    return source


def test_the_rules_know_every_source() -> None:
    assert set(source_rules.CORPORA) == set(mixture.CORPORA) >= set(WRITERS)
    assert set(source_rules.SOURCES) >= set(source_rules.CORPORA) | {"nano", "mixture"}
    assert set(sources._MODULES) == set(source_rules.SOURCES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_corpora_keep_the_protocol(mirror: Mirror, name: str, split: str) -> None:
    source = source_of(mirror, name)
    pairs = source.pairs(split, 30)
    again = source_of(mirror, name).pairs(split, 30)
    columns = columns_of(pairs)
    assert len(pairs) == 30 or split != "train"
    assert [(p.query.key, p.target_hash) for p in pairs] == [(p.query.key, p.target_hash) for p in again]
    assert columns.sources == [p.source for p in pairs]
    assert columns.target_hashes == [p.target_hash for p in pairs]
    assert list(columns.query_cots) == [p.query.cot for p in pairs]
    assert list(columns.candidate_cots) == [p.positive.cot for p in pairs]
    for task in {p.source for p in pairs}:
        keys = [item.key for item in source.candidates(split, task)]
        assert len(keys) == len(set(keys))
        assert {p.positive.key for p in pairs if p.source == task} <= set(keys)


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_query_and_cover_every_row(mirror: Mirror, name: str) -> None:
    source = source_of(mirror, name)
    keys = [pair.query.key for split in SPLITS for pair in source.pairs(split, 10_000)]
    rows = sum(len(corpus.index.rows) for corpus in source._corpora)
    assert len(keys) == len(set(keys)) == rows > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("workers", [0, 1])
def test_every_corpus_reaches_the_model(mirror: Mirror, tiny: PromptProcessor, name: str, workers: int) -> None:
    data = mirror.settings(name, train_pairs=40, rl_pairs=40, val_pairs=8, num_workers=workers)
    settings = Settings(stage=RLSettings(prompts_per_step=4, max_steps=3), data=data)
    module = TWNDataModule(settings, tiny)
    module._pairs["rl"], module._pairs["val"] = module.source.pairs("train", 40), module.source.pairs("train", 8)
    for batch in [*module.train_dataloader(), *module.val_dataloader()]:
        assert len(batch.queries) == 4
        assert len(batch.candidates) >= len({pair.target_hash for pair in batch.pairs})
        wanted = sum(m.kind == "image" for pair in batch.pairs for m in pair.query.media)
        assert sum(batch.queries.images_per_row) == wanted


@pytest.mark.parametrize("name", ["pairs", "twn", "ume_r1"])
def test_corpora_with_cots_train_stage_1(mirror: Mirror, tiny: PromptProcessor, name: str) -> None:
    data = mirror.settings(name, train_pairs=40, think_sides="both", max_cot_tokens=100)
    settings = Settings(data=data)
    settings.stage.batch_size, settings.stage.max_steps = 8, 2  # type: ignore[union-attr]
    batch = next(iter(TWNDataModule(settings, tiny).train_dataloader()))
    assert batch.query_cots is not None
    assert bool(batch.query_cots.closed_B.all())
    assert batch.candidate_cots is not None


def test_a_corpus_without_cots_says_so_in_stage_1(mirror: Mirror, tiny: PromptProcessor) -> None:
    settings = Settings(data=mirror.settings("colpali"))
    settings.stage.batch_size = 8  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"item 'colpali/\d+' \(query\) has no CoT, but the query side thinks"):
        next(iter(TWNDataModule(settings, tiny).train_dataloader()))


def test_equal_targets_hash_equal_across_corpora(mirror: Mirror) -> None:
    def hashes(name: str, entry: SourceSettings | None = None) -> set[str]:
        changes = {} if entry is None else {"sources": [entry]}
        source = source_of(mirror, name, **changes)
        return {h for corpus in source._corpora for h in corpus.index.target_hashes}

    texts = hashes("mmeb_train", SourceSettings("mmeb_train", "HatefulMemes"))
    assert texts == hashes("twn") == hashes("colpali") == hashes("ume_r1")
    pair = source_of(mirror, "colpali").pairs("train", 1)[0]
    assert pair.target_hash == pair.positive.content_hash()


def test_names_of_files_are_equal_across_schemes(mirror: Mirror) -> None:
    def names(name: str) -> set[str]:
        corpora = source_of(mirror, name)._corpora
        return {ref.name for c in corpora for i in range(len(c.index.rows)) for ref in c.draft(i).query.media}

    from_twn, from_ume = names("twn"), names("ume_r1")
    assert "image:mmeb_train://coco/2.png" in from_twn & from_ume & names("mmeb_train")
    assert "video:sharegpt_video://v1" in from_twn & from_ume & names("llava_hound")


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_looked_up_before_a_pair_is_built(mirror: Mirror, tmp_path: Path, name: str) -> None:
    settings = mirror.settings(name, media_root=str(tmp_path / "nowhere"))
    source = get_source("mixture", settings)
    pairs = source.pairs("train", 20)
    assert len(columns_of(pairs).target_hashes) == 20
    if name in ("colpali", "visrag"):
        assert isinstance(pairs[0].query.media or pairs[0].positive.media, tuple)
    else:
        with pytest.raises(DataError, match=rf"source '{name}/?.*(row|line) \d+: (image|video) .* does not exist"):
            list(pairs)


def test_a_root_that_is_not_configured_is_named(mirror: Mirror) -> None:
    roots = [f"sharegpt_video={mirror.media / 'sharegpt_video'}"]
    source = get_source("mixture", mirror.settings("twn", media_root=None, media_roots=roots))
    with pytest.raises(DataError, match=r"no root for mmeb_train://coco/\d+.png. Set data.media_root"):
        list(source.pairs("train", 200))


def test_one_root_can_be_elsewhere(mirror: Mirror, tmp_path: Path) -> None:
    shutil.copytree(mirror.media / "mmeb_train/images", tmp_path / "pictures")
    settings = mirror.settings("mmeb_train", media_roots=[f"mmeb_train={tmp_path / 'pictures'}"])
    media = [m for pair in get_source("mixture", settings).pairs("train", 10) for m in pair.query.media]
    assert {Path(str(m.content)).parent for m in media} == {tmp_path / "pictures/coco"}


def test_frames_are_sampled_in_natural_order(mirror: Mirror) -> None:
    entry = SourceSettings("llava_hound", "qa")
    (video,) = source_of(mirror, "llava_hound", sources=[entry]).pairs("train", 1)[0].query.media
    assert isinstance(video, Media)
    assert [path.name for path in video.content] == ["frame1.png", "frame10.png"]  # type: ignore[union-attr]


def test_pairs_survive_pickling(mirror: Mirror) -> None:
    pairs = source_of(mirror).pairs("train", 25)
    columns_of(pairs)
    again = pickle.loads(pickle.dumps(pairs))
    assert [p.query.key for p in again] == [p.query.key for p in pairs]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (SourceSettings("mmeb_train", "HatefulMeme"), "unknown subset 'HatefulMeme': did you mean 'HatefulMemes'"),
        (SourceSettings("mmeb_train", "HatefulMemes", "orignal"), "unknown split 'orignal': did you mean 'original'"),
        (SourceSettings("twn", "Chart"), "unknown subset 'Chart': did you mean 'ChartQA'"),
        (SourceSettings("visrag", "indomain"), "did you mean 'in_domain'"),
        (SourceSettings("ume_r1", "MSCOCO"), "unknown subset 'MSCOCO': did you mean 'MSCOCO_t2i'"),
        (SourceSettings("mmebtrain"), "unknown source 'mmebtrain': did you mean 'mmeb_train'"),
    ],
)
def test_unknown_names_get_the_nearest_match(mirror: Mirror, entry: SourceSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source_of(mirror, "twn", sources=[entry]).pairs("train", 1)


def test_a_missing_mirror_is_named(tmp_path: Path) -> None:
    for name, entries in ENTRIES.items():
        settings = DataSettings(source="mixture", sources=entries, annotations_root=str(tmp_path))
        with pytest.raises(DataError, match=r"annotations_root"):
            get_source("mixture", settings).pairs("train", 1), name
