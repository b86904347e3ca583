"""What `twn embed` and `twn search` embed: a folder of files, a file of rows, or a data source's split."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from twn_lightning.data.roots import FRAME_SUFFIXES, MediaRoot, natural_key
from twn_lightning.data.rows import ROW_FORMATS, fields_of, item_of, open_rows
from twn_lightning.data.sources import get_source, require_split
from twn_lightning.errors import ConfigError, DataError, unknown_name
from twn_lightning.settings import DataSettings
from twn_lightning.types import Item, Media, Side

log = logging.getLogger(__name__)

IMAGE_TYPES = (".jpg", ".jpeg", ".png", ".webp")
TEXT_TYPES = (".txt",)
VIDEO_TYPES = (".mp4", ".avi", ".mkv", ".mov", ".webm")

OnError = Literal["raise", "skip"]
SubFolders = Literal["frames", "items"]


@dataclass
class Inputs:
    """Items in a fixed order, with the file each came from, where it came from one."""

    name: str
    """Where they are from, for messages and records."""
    items: list[Item] = field(default_factory=list)
    paths: list[str | None] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    """Key and reason of what could not be read."""

    def __len__(self) -> int:
        return len(self.items)

    def digest(self) -> str:
        """Digest of keys, instructions, texts and paths, in order; the media's bytes are in each row's own hash."""
        digest = hashlib.sha256()
        for item, path in zip(self.items, self.paths, strict=True):
            digest.update(json.dumps([item.key, item.instruction, item.text, path]).encode())
        return digest.hexdigest()[:16]

    def add(self, item: Item, path: str | None) -> None:
        self.items.append(item)
        self.paths.append(path)

    def fail(self, key: str, error: DataError, on_error: OnError) -> None:
        """Raise an error, or note it where it may be skipped."""
        if on_error == "raise":
            raise error
        self.skipped.append({"key": key, "reason": str(error)})

    def checked(self) -> Inputs:
        """Itself.

        Raises:
            DataError: nothing to embed.
        """
        if not self.items and self.skipped:
            reason = self.skipped[0]["reason"]
            raise DataError(f"{self.name}: all {len(self.skipped)} inputs were skipped, the first because: {reason}")
        if not self.items:
            raise DataError(f"{self.name}: nothing to embed")
        return self


def read_inputs(
    path: Path,
    *,
    root: Path | None = None,
    instruction: str = "",
    num_frames: int = 8,
    sub_folders: SubFolders = "frames",
    on_error: OnError = "raise",
) -> Inputs:
    """A folder of files, or a file of rows.

    Args:
        path: the folder, or the .jsonl or .parquet file.
        root: what the paths in a file of rows are relative to; the file's own folder by default.
        instruction: of every item; a row's own goes before it.
        num_frames: frames taken of a folder of frames.
        sub_folders: a sub-folder's images are one video's `frames`, or `items` of their own at any depth.
        on_error: `skip` lists what cannot be read in `Inputs.skipped`.

    Raises:
        DataError: nothing there, or (under `raise`) something that cannot be read.
    """
    if path.is_dir():
        return _read_folder(path, instruction, num_frames, sub_folders, on_error).checked()
    if path.suffix in ROW_FORMATS:
        return _read_file(path, root or path.parent, instruction, num_frames, on_error).checked()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    raise DataError(f"{path}: expected a folder, or a file of rows ({', '.join(ROW_FORMATS)})")


def read_source(data: DataSettings, split: str, side: Side, count: int, instruction: str = "") -> Inputs:
    """Queries of a data source's split, or the candidates of all its tasks, each once.

    Args:
        data: the source and where its files are.
        split: its split.
        side: queries or candidates.
        count: pairs to read.
        instruction: takes the place of the items' own, where given.

    Raises:
        ConfigError: unknown source.
        DataError: unknown split, or no pairs.
    """
    name = data.source
    source = get_source(name, data)
    require_split(name, split)
    inputs = Inputs(f"source '{name}', split '{split}'")
    if side is Side.QUERY:
        items: Iterator[Item] = (pair.query for pair in source.pairs(split, count))  # type: ignore[arg-type]
    else:
        items = (item for task in source.tasks for item in source.candidates(split, task))  # type: ignore[arg-type]
    seen: set[str] = set()
    for item in items:
        if item.key not in seen:
            seen.add(item.key)
            chosen = Item(item.key, instruction or item.instruction, item.text, item.media)
            inputs.add(chosen, None)
    return inputs.checked()


def _read_folder(folder: Path, instruction: str, num_frames: int, sub_folders: SubFolders, on_error: OnError) -> Inputs:
    if sub_folders not in ("frames", "items"):
        raise ConfigError(unknown_name("way to read sub-folders", sub_folders, ["frames", "items"]))
    inputs, root = Inputs(f"folder {folder}"), MediaRoot(folder, "the folder")
    ignored: Counter[str] = Counter()
    for entry in _entries(folder, sub_folders):
        key = entry.relative_to(folder).as_posix()
        known = entry.is_dir() or entry.suffix.lower() in (*IMAGE_TYPES, *TEXT_TYPES, *VIDEO_TYPES)
        if not known:
            ignored[entry.suffix.lower() or entry.name] += 1
            continue
        try:
            inputs.add(item_of_file(root, key, instruction, num_frames), key)
        except DataError as error:
            inputs.fail(key, error, on_error)
    if ignored:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))
        log.warning("%s: %d files of other types are left out: %s", folder, ignored.total(), kinds)
    return inputs


def _entries(folder: Path, sub_folders: SubFolders) -> list[Path]:
    """Files, and in `frames` mode the folders directly below, in natural order; hidden ones are left out."""
    found = folder.rglob("*") if sub_folders == "items" else folder.iterdir()
    visible = [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    wanted = [p for p in visible if not p.is_dir()] if sub_folders == "items" else visible
    return sorted(wanted, key=lambda p: natural_key(p.relative_to(folder).as_posix()))


def item_of_file(root: MediaRoot, key: str, instruction: str, num_frames: int) -> Item:
    """An image, a video, a text file or a folder of frames as an item; images and videos are not decoded.

    Args:
        root: the folder it is in.
        key: its path below the root, and the item's key.
        instruction: of the item.
        num_frames: frames taken of a folder of frames.

    Raises:
        DataError: a name or a text file that is not UTF-8, an empty text file, or a folder that holds more than frames.
    """
    where = f"folder {root.root}"
    path = root.path(key, where)
    if path.is_dir():
        _check_frames(path)
        return Item(key, instruction, "", (root.frames(key, where, num_frames),))
    if path.suffix.lower() in TEXT_TYPES:
        return Item(key, instruction, _text(path))
    kind: Literal["image", "video"] = "video" if path.suffix.lower() in VIDEO_TYPES else "image"
    return Item(key, instruction, "", (Media(kind, path),))


def _check_frames(folder: Path) -> None:
    names = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
    strangers = sorted(name for name in names if not name.lower().endswith(FRAME_SUFFIXES))
    if strangers:
        raise DataError(
            f"folder {folder} is not one video's frames: {len(strangers)} of its {len(names)} entries are no frames, "
            f"{strangers[0]!r} for one. Move them, or read sub-folders as items (--sub-folders items)"
        )


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if not text:
        raise DataError(f"{path}: the file is empty")
    return text


def _read_file(path: Path, root: Path, instruction: str, num_frames: int, on_error: OnError) -> Inputs:
    inputs, media = Inputs(f"file {path}"), MediaRoot(root, "--root")
    seen: dict[str, int] = {}
    rows = open_rows(path)
    for index in range(len(rows)):
        where, row = rows.place(index), rows.row(index)
        key = row.get("key")
        try:
            if not isinstance(key, str) or not key:
                raise DataError(f"{where}: field 'key' must be a text that is not empty, found {key!r}")
            if key in seen:
                raise DataError(f"{where}: key {key!r} is there twice, first in {rows.place(seen[key])}")
            fields = fields_of(row, where)
            item = item_of(fields, key, media, where, instruction=instruction, num_frames=num_frames)
        except DataError as error:
            inputs.fail(str(key), error, on_error)
            continue
        seen[key] = index
        inputs.add(item, fields.first_path)
    return inputs
