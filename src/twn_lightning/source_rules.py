"""What `data` may not say about where pairs come from. Split from `rules`, which calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from twn_lightning.errors import unknown_name
from twn_lightning.settings import DataSettings

CORPORA = ("colpali", "llava_hound", "mmeb_train", "pairs", "twn", "ume_r1", "visrag")
OFFLINE = ("mmeb_nano", "nano")
"""Worlds that are drawn and need no files."""
SOURCES = (*CORPORA, "mixture", *OFFLINE)
"""The names of data.sources, which this layer cannot import; a test compares."""
MEDIA_SCHEMES = (
    "mmeb_train",
    "pairs",
    "sharegpt_video",
    "ume_r1",
    "vidore_colpali",
    "visrag_in_domain",
    "visrag_synthetic",
)
"""Each names a folder of media, as in `mmeb_train://MSCOCO/1.jpg`."""

KeysAndMessage = tuple[tuple[str, ...], str]


def contradictions(data: DataSettings) -> Iterator[KeysAndMessage]:
    """The keys a problem rests on, and what is wrong."""
    if data.source not in SOURCES:
        yield ("data.source",), f"data.source: {unknown_name('source', data.source, SOURCES)}"
    if data.source == "mixture" and not data.sources:
        yield (
            ("data.source", "data.sources"),
            "data.source=mixture mixes what data.sources lists, which is empty: choose a preset, such as "
            "data=vlm2vec_v2, or name one corpus as data.source",
        )
    yield from _entries(data)
    for text in data.media_roots:
        scheme, _, folder = text.partition("=")
        if not folder:
            yield ("data.media_roots",), f"data.media_roots: {text!r} is not scheme=folder"
        elif scheme not in MEDIA_SCHEMES:
            yield ("data.media_roots",), f"data.media_roots: {unknown_name('scheme', scheme, MEDIA_SCHEMES)}"
    if data.hard_negatives_path is not None and data.hard_negatives == 0:
        yield (
            ("data.hard_negatives", "data.hard_negatives_path"),
            f"data.hard_negatives_path={data.hard_negatives_path} is not read while data.hard_negatives is 0: say how "
            "many to use of each pair, or set the path to null",
        )


def _entries(data: DataSettings) -> Iterator[KeysAndMessage]:
    for index, entry in enumerate(data.sources):
        key = f"data.sources[{index}]"
        if entry.source not in CORPORA:
            yield (f"{key}.source",), f"{key}.source: {unknown_name('source', entry.source, CORPORA)}"
        for name, value in (("weight", entry.weight), ("cap", entry.cap)):
            if value is not None and value <= 0:
                yield (f"{key}.{name}",), f"{key}.{name} must be greater than 0, not {value}"
    weighed = sum(entry.weight is not None for entry in data.sources)
    if 0 < weighed < len(data.sources):
        count = len(data.sources)
        yield ("data.sources",), f"data.sources: {weighed} of {count} have a weight: weigh all of them or none"


def missing(data: DataSettings) -> Iterator[KeysAndMessage]:
    """Folders and files that are named but are not on this machine."""
    if data.source in OFFLINE:
        return
    folders = [("data.annotations_root", data.annotations_root), ("data.media_root", data.media_root)]
    folders += [("data.media_roots", text.partition("=")[2]) for text in data.media_roots]
    for key, folder in folders:
        if folder and not Path(folder).is_dir():
            yield (key,), f"{key}={folder}: there is no such folder"
    path = data.hard_negatives_path
    if path and not Path(path).is_file():
        yield ("data.hard_negatives_path",), f"data.hard_negatives_path={path}: there is no such file"
