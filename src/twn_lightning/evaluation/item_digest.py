"""What an item holds, as a digest: instruction, text and the bytes of its media, but neither its key nor its paths."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from twn_lightning.errors import DataError
from twn_lightning.types import Item, Media

DIGEST_BYTES = 16
DIGEST_TYPE = np.dtype(f"S{DIGEST_BYTES}")
"""Digests as a sortable array: numpy compares them as bytes; a trailing zero byte is padding, equal either way."""

_REMEMBERED_FILES = 65_536
"""Bounds the memory of file digests to some 16 MB; many items share one video's frames."""


def item_digests(items: Sequence[Item]) -> np.ndarray:
    """Digests of items (N,), dtype `DIGEST_TYPE`.

    Raises:
        DataError: a media file that cannot be read; names the item.
    """
    return np.array([item_digest(item) for item in items], dtype=DIGEST_TYPE)


def item_digest(item: Item) -> bytes:
    """First 16 bytes of a SHA-256 over everything of an item that an encoder sees.

    Raises:
        DataError: a media file that cannot be read.
    """
    try:
        media = [[media.kind, _media_digest(media)] for media in item.media]
    except OSError as error:
        raise DataError(f"item '{item.key}': its media cannot be read ({error}). Check the media root") from error
    content = json.dumps([item.instruction, item.text, media])
    return hashlib.sha256(content.encode()).digest()[:DIGEST_BYTES]


def _media_digest(media: Media) -> str:
    """`Media.digest`, with files read once per process as long as size and time of change stay."""
    if isinstance(media.content, Path):
        return _digest_of(media.content)
    if isinstance(media.content, tuple):
        return hashlib.sha256("\x1f".join(["frames", *map(_digest_of, media.content)]).encode()).hexdigest()
    return media.digest()


def _digest_of(path: Path) -> str:
    found = path.stat()
    return _file_digest(str(path), found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=_REMEMBERED_FILES)
def _file_digest(path: str, size: int, mtime_ns: int) -> str:
    return Media("image", Path(path)).digest()
