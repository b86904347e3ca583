"""A user's own rows: a .jsonl or .parquet file of them, and what one row's fields say.

    {"key": "a", "instruction": "Find it.", "text": "a red bird", "image": "birds/1.jpg", "video": "clips/1.mp4"}

Every field but one of text, image and video may be missing. `image` may be a list; a `video` may be a folder of frames.
A parquet file may hold encoded images itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twn_lightning.data.json_file import JsonFile
from twn_lightning.data.record_files import RecordFile, StoredImage, TableFile
from twn_lightning.data.roots import MediaRoot
from twn_lightning.errors import DataError, unknown_name
from twn_lightning.types import Item, Media

ROW_FORMATS = (".jsonl", ".parquet")


@dataclass(frozen=True)
class RowFields:
    """One item's fields, its media not looked up."""

    instruction: str
    text: str
    images: tuple[str | StoredImage, ...]
    videos: tuple[str, ...]

    @property
    def first_path(self) -> str | None:
        """The first media file that it names."""
        return next((value for value in (*self.images, *self.videos) if isinstance(value, str)), None)


def open_rows(path: Path) -> RecordFile:
    """The rows of a file, read when they are asked for.

    Raises:
        DataError: the file is missing, of another format, broken or empty.
    """
    if path.suffix not in ROW_FORMATS:
        raise DataError(f"{path}: {unknown_name('row format', path.suffix or path.name, ROW_FORMATS)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    rows = JsonFile(path) if path.suffix == ".jsonl" else TableFile(path)
    if not len(rows):
        raise DataError(f"{path}: the file has no rows")
    return rows


def fields_of(row: Mapping[str, Any], where: str) -> RowFields:
    """What a row says.

    Args:
        row: `instruction`, `text`, `image` and `video`, each of which may be missing or None; others are left alone.
        where: file and row, for messages.

    Raises:
        DataError: a field of the wrong type, or neither text, image nor video.
    """
    images, videos = _values(row, "image", where), _values(row, "video", where)
    if any(isinstance(value, StoredImage) for value in videos):
        raise DataError(f"{where}: field 'video' holds bytes; store videos as files and give their paths")
    text = _text(row, "text", where)
    if not (text or images or videos):
        raise DataError(f"{where}: it has no text, image or video; its fields are {', '.join(row) or 'none'}")
    return RowFields(
        _text(row, "instruction", where), text, tuple(images), tuple(v for v in videos if isinstance(v, str))
    )


def item_of(
    fields: RowFields,
    key: str,
    media: MediaRoot,
    where: str,
    *,
    instruction: str = "",
    num_frames: int | None = None,
) -> Item:
    """A row's fields as an item; nothing is decoded.

    Args:
        fields: the row.
        key: the item's key.
        media: the folder that paths are relative to, and may not leave.
        where: file and row, for messages.
        instruction: for a row that has none of its own.
        num_frames: frames taken of a folder of frames; None takes all.

    Raises:
        DataError: a path that is missing or leaves its root.
    """
    images = [Media("image", v) if isinstance(v, StoredImage) else media.image(v, where) for v in fields.images]
    videos = [media.video(name, [name], where, num_frames) for name in fields.videos]
    return Item(key, fields.instruction or instruction, fields.text, (*images, *videos))


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: field '{name}' must be text, found {type(value).__name__}")
    return value


def _values(row: Mapping[str, Any], name: str, where: str) -> list[str | StoredImage]:
    value = row.get(name)
    values = value if isinstance(value, list) else [value]
    found = [entry for entry in values if entry is not None and entry != ""]
    if not all(isinstance(entry, (str, StoredImage)) for entry in found):
        raise DataError(f"{where}: field '{name}' must be a path relative to the root, or a list of them")
    return found
