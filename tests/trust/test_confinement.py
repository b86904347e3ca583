"""Whatever a data set names, no file outside its root is opened: each place that reads names, each way to escape."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.corpora_fixtures import png
from twn_lightning.backbone.media import load_image, load_video
from twn_lightning.data.drafts import ItemDraft, MediaFinder, MediaRef
from twn_lightning.data.pair_rows import PairRows
from twn_lightning.data.records import read_records
from twn_lightning.data.roots import MediaRoot
from twn_lightning.data.sources import get_source
from twn_lightning.errors import DataError
from twn_lightning.evaluation.inputs import read_inputs
from twn_lightning.settings import DataSettings
from twn_lightning.types import Item, Media

_watched: list[str] = []
_opened: list[str] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched and isinstance(arguments[0], (str, bytes, os.PathLike)):
        real = os.path.realpath(os.fsdecode(arguments[0]))
        if any(real.startswith(folder) for folder in _watched):
            _opened.append(real)


sys.addaudithook(_note)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A root with an image and links, and beside it a folder whose files nobody may open."""
    outside = tmp_path / "outside"
    (outside / "frames").mkdir(parents=True)
    (outside / "secret.png").write_bytes(png(0))
    (outside / "frames" / "frame1.png").write_bytes(png(1))
    folder = tmp_path / "root"
    (folder / "clip").mkdir(parents=True)
    (folder / "own.png").write_bytes(png(2))
    (folder / "clip" / "frame1.png").write_bytes(png(3))
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "again.png").symlink_to(folder / "link.png")
    (folder / "linked").symlink_to(outside)
    (folder / "relative.png").symlink_to(Path("..", "outside", "secret.png"))
    (folder / "clip" / "frame2.png").symlink_to(outside / "frames" / "frame1.png")
    _watched.append(str(outside))
    _opened.clear()
    yield folder
    _watched.clear()


ESCAPES = [
    "../outside/secret.png",
    "clip/../../outside/secret.png",
    "./../outside/secret.png",
    "linked/secret.png",
    "linked/frames",
    "link.png",
    "again.png",
    "relative.png",
    "own.png/../../outside/secret.png",
    "ABSOLUTE",
    "file://ABSOLUTE",
    "//ABSOLUTE",
    "~/../outside/secret.png",
    "%2e%2e/outside/secret.png",
    "..\\outside\\secret.png",
    "own.png\0/../../outside/secret.png",
]
"""ABSOLUTE stands for the secret's absolute path."""


def decoded(item: Item) -> None:
    """Read all pixels of an item."""
    for media in item.media:
        if media.kind == "image":
            load_image(media, item.key)
        else:
            load_video(media, item.key, 8)


def rows(folder: Path, row: dict[str, Any]) -> Path:
    """A file of one row, in the root."""
    path = folder / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return path


def embed_image(folder: Path, name: str) -> None:
    for item in read_inputs(rows(folder, {"key": "a", "image": name})).items:
        decoded(item)


def embed_video(folder: Path, name: str) -> None:
    for item in read_inputs(rows(folder, {"key": "a", "video": name})).items:
        decoded(item)


def annotate(folder: Path, name: str) -> None:
    path = rows(folder, {"key": "a", "query": {"image": name}, "positive": {"text": "x"}})
    decoded(PairRows(path).item(0, "query"))


def train_on_pairs(folder: Path, name: str) -> None:
    rows(folder, {"key": "a", "query": {"image": name}, "positive": {"text": "x"}, "split": "train"})
    for pair in get_source("pairs", DataSettings(annotations_root=str(folder))).pairs("train", 1):
        decoded(pair.query)


def corpus_image(folder: Path, name: str) -> None:
    finder = MediaFinder(DataSettings(media_roots=[f"mmeb_train={folder}"]))
    decoded(finder.item(ItemDraft(media=(MediaRef("image", "mmeb_train", (name,)),)), "a", "row 1"))


def corpus_frames(folder: Path, name: str) -> None:
    finder = MediaFinder(DataSettings(media_roots=[f"mmeb_train={folder}"]))
    frames = MediaRef("video", "mmeb_train", ("own.png", name))
    decoded(finder.item(ItemDraft(media=(frames,)), "a", "row 1"))


def benchmark_image(folder: Path, name: str) -> None:
    decoded(Item("a", "", "", (MediaRoot(folder).image(name, "task 'x', row 1"),)))


def benchmark_video(folder: Path, name: str) -> None:
    decoded(Item("a", "", "", (MediaRoot(folder).video(name, [name], "task 'x', row 1", 8),)))


PLACES: list[Callable[[Path, str], None]] = [
    embed_image,
    embed_video,
    annotate,
    train_on_pairs,
    corpus_image,
    corpus_frames,
    benchmark_image,
    benchmark_video,
]


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_no_name_leads_out(place: Callable[[Path, str], None], escape: str, root: Path) -> None:
    name = escape.replace("ABSOLUTE", str(root.parent / "outside" / "secret.png"))
    with pytest.raises(DataError):
        place(root, name)
    assert _opened == []


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_name_inside_is_read(place: Callable[[Path, str], None], root: Path) -> None:
    (root / "clip" / "frame2.png").unlink()
    place(root, "clip" if place in (embed_video, benchmark_video) else "own.png")
    assert _opened == []


def test_a_folder_of_frames_with_a_link_out_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match="symbolic link"):
        embed_video(root, "clip")
    assert _opened == []


def test_a_folder_of_inputs_skips_no_link_silently(root: Path) -> None:
    with pytest.raises(DataError, match="leaves its root"):
        read_inputs(root)
    skipped = read_inputs(root, on_error="skip")
    for item in skipped.items:
        decoded(item)
    assert {item.key for item in skipped.items} == {"own.png"}
    assert _opened == []


def test_annotations_may_not_be_links_out(root: Path) -> None:
    outside = root.parent / "outside"
    (outside / "train.jsonl").write_text('{"a": 1}\n')
    (root / "org" / "repo" / "default").mkdir(parents=True)
    (root / "org" / "repo" / "default" / "train.jsonl").symlink_to(outside / "train.jsonl")
    _opened.clear()
    for repo, subset, split in (
        ("org/repo", None, "train"),
        ("org/repo", "../../../outside", "train"),
        ("../outside", ".", "train"),
        ("org/repo", "default", "../../../../outside/train"),
    ):
        with pytest.raises(DataError):
            read_records(root, repo, subset, split)
    assert _opened == []


def test_the_tripwire_works(root: Path) -> None:
    load_image(Media("image", root.parent / "outside" / "secret.png"), "a")
    assert _opened
