"""All 78 tasks from the offline mirror: consistent, decodable, and nothing decoded on the way."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.mmeb_fixtures import MirrorPaths
from twn_lightning.benchmark import EvalTask, all_tasks, load_task
from twn_lightning.types import Media

NAMES = [task.name for task in all_tasks()]


def load(name: str, mirror: MirrorPaths, protocol: str = "vlm2vec") -> EvalTask:
    return load_task(name, mirror.annotations_root, mirror.media_root, protocol, strict_counts=False)


def image_files(media: Media) -> Iterator[bytes]:
    """The encoded images of an item; a raw video has none."""
    if isinstance(media.content, tuple):
        yield from (path.read_bytes() for path in media.content)
    elif isinstance(media.content, Path):
        if media.kind == "image":
            yield media.content.read_bytes()
    else:
        yield media.content.read()  # type: ignore[union-attr]


@pytest.mark.parametrize("protocol", ["vlm2vec", "qwen3"])
@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_consistent(name: str, protocol: str, mirror: MirrorPaths) -> None:
    task = load(name, mirror, protocol)
    keys = [item.key for item in task.candidates]
    assert len(set(keys)) == len(keys)
    assert len({query.key for query in task.queries}) == len(task.queries) == len(task.items) > 0
    assert all(query.key.startswith(f"{name}/") for query in task.queries)
    assert all(query.instruction for query in task.queries)
    if protocol == "qwen3":
        assert not any(item.instruction for item in task.candidates)
    for item in task.items:
        own = item.candidate_keys
        assert (own is None) == (task.task.eval_type == "global")
        assert set(item.labels) <= (set(keys) if own is None else set(own))
        assert own is None or (set(own) <= set(keys) and len(set(own)) == len(own) > 1)
        assert item.relevance is None or len(item.relevance) == len(item.labels)
    assert task.counts["num_queries"] == len(task.queries)
    assert task.counts["num_candidates"] == len(keys)
    assert task.skipped == []


@pytest.mark.parametrize("name", NAMES)
def test_loading_opens_no_image(name: str, mirror: MirrorPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr("twn_lightning.data.record_files.StoredImage.read", refuse)
    assert load(name, mirror).queries


@pytest.mark.parametrize("name", NAMES)
def test_media_of_a_task_can_be_decoded(name: str, mirror: MirrorPaths) -> None:
    task = load(name, mirror)
    for item in [*task.queries, *task.candidates]:
        for media in item.media:
            for encoded in image_files(media):
                Image.open(io.BytesIO(encoded)).load()


def test_loading_twice_gives_the_same(mirror: MirrorPaths) -> None:
    for name in NAMES:
        assert load(name, mirror) == load(name, mirror)
