"""Annotations as rows, from a local mirror or from the hub, in one layout.

`<annotations_root>/<org>/<repo>/<subset or "default">/<split>` followed by `.parquet`, by `-00000-of-00004.parquet`
(all shards), `.jsonl`, `.json`, or a folder that `datasets` saved. A clone of a hub repository without configurations
keeps its files in `data/` or at its top, which are looked into after `default/`. Rows count from 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from twn_lightning.data.json_file import JsonFile
from twn_lightning.data.lazy import LazyRows
from twn_lightning.data.record_files import RecordFile, TableFile
from twn_lightning.data.roots import MediaRoot
from twn_lightning.errors import DataError

_DEFAULT_FOLDERS = ("default", "data", ".")


class Records(LazyRows[dict[str, Any]]):
    """The rows of one or several files; each is read when it is indexed.

    Args:
        files: the files, in order.
    """

    def __init__(self, files: Sequence[RecordFile]) -> None:
        self.files = list(files)
        self._starts = np.cumsum([0, *map(len, self.files)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for file in self.files:
            yield from file

    def row(self, index: int) -> dict[str, Any]:
        """The row, read from its file."""
        file, row = self._place(index)
        return file.row(row)

    def source(self, row: int) -> str:
        """File and row, for messages; of JSON lines the line, from 1."""
        file, inner = self._place(row)
        return file.place(inner)

    @property
    def columns(self) -> list[str]:
        """Columns of the first file."""
        return self.files[0].columns

    def column(self, name: str) -> list[Any]:
        """One column of every row, None where a row has none; not for images."""
        return [value for file in self.files for value in file.column(name)]

    def require(self, columns: Sequence[str], what: str) -> None:
        """Refuse files that lack columns.

        Raises:
            DataError: names the file, what is missing and what is there.
        """
        for file in self.files:
            missing = [name for name in columns if name not in file.columns]
            if missing and len(file):
                raise DataError(
                    f"{what}: {file.path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; it "
                    f"has {', '.join(file.columns) or 'none'}. Is it another data set, or another split?"
                )

    def _place(self, row: int) -> tuple[RecordFile, int]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.files[number], row - int(self._starts[number])


def read_records(
    annotations_root: str | Path | None, repo: str, subset: str | None, split: str, *, revision: str | None = None
) -> Records:
    """The rows of one split.

    Args:
        annotations_root: the mirror; None fetches the files from the hub into its cache.
        repo: `org/name`.
        subset: the configuration, or None for the only one.
        split: the split.
        revision: of the hub repository; ignored for a mirror.

    Raises:
        DataError: no such files, files that cannot be read, or names that leave the root.
    """
    if annotations_root is None:
        paths = _fetched(repo, subset, split, revision)
    else:
        paths = _mirrored(MediaRoot(annotations_root, "annotations_root"), repo, subset, split)
    return Records([JsonFile(path) if path.suffix in (".json", ".jsonl") else TableFile(path) for path in paths])


def split_names(annotations_root: str | Path | None, repo: str, subset: str) -> list[str]:
    """The splits that a subset has as JSON files, in order; none where there is no such folder.

    Raises:
        DataError: the hub cannot be reached, or names that leave the root.
    """
    if annotations_root is None:
        inside = [PurePosixPath(name) for name in _hub_files(repo, None)]
        names = [path.name for path in inside if str(path.parent) == subset]
    else:
        root = MediaRoot(annotations_root, "annotations_root")
        folder = root.path(f"{repo}/{subset}", f"annotations of {repo}")
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted({PurePosixPath(name).stem for name in names if name.endswith((".json", ".jsonl"))})


def field_of(row: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """The value under the first of several names that a row has.

    Raises:
        DataError: it has none of them; lists what it has.
    """
    for name in names:
        if name in row:
            return row[name]
    wanted = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    raise DataError(f"{where}: the row lacks {wanted}; its fields are {', '.join(map(str, row)) or 'none'}")


def _folders(subset: str | None) -> tuple[str, ...]:
    return _DEFAULT_FOLDERS if subset is None else (subset,)


def _mirrored(root: MediaRoot, repo: str, subset: str | None, split: str) -> list[Path]:
    where = f"annotations of {repo}"
    tried = []
    for folder in _folders(subset):
        base = root.path(str(PurePosixPath(repo) / folder / split), where)
        names = sorted(path.name for path in base.parent.iterdir()) if base.parent.is_dir() else []
        if base.is_dir():
            names += [f"{split}/{name}" for name in _saved_files(base)]
        chosen = _matching(names, base.name, split)
        if chosen:
            return [root.path(str(PurePosixPath(repo) / folder).rstrip("/") + "/" + name, where) for name in chosen]
        there = ", ".join(names[:10]) or ("an empty folder" if base.parent.is_dir() else "no such folder")
        tried.append(f"{base} (there: {there})")
    raise DataError(
        f"{repo}, subset {subset or 'default'}, split {split}: nothing to read at {' or '.join(tried)}; expected "
        ".parquet, .jsonl, .json, numbered Parquet shards, or a folder saved by datasets. Check annotations_root, or "
        "fetch the files"
    )


def _matching(names: Sequence[str], stem: str, split: str) -> list[str]:
    """The files of a split in a folder: the first format that is there, shards in order and complete."""
    for suffix in (".parquet", ".jsonl", ".json"):
        if f"{stem}{suffix}" in names:
            return [f"{stem}{suffix}"]
    shard = re.compile(re.escape(stem) + r"-(\d{5})-of-(\d{5})(-[0-9a-f]+)?\.parquet")
    shards = sorted((match for name in names if (match := shard.fullmatch(name))), key=lambda match: match[1])
    if shards:
        numbers, totals = [int(match[1]) for match in shards], sorted({int(match[2]) for match in shards})
        if numbers != list(range(totals[0])) or len(totals) > 1:
            raise DataError(
                f"{split}: {len(shards)} of {totals[-1]} Parquet shards are there, or they are of several versions: "
                f"numbers {_shortened(numbers)} of {_shortened(totals)}. Fetch them again"
            )
        return [match[0] for match in shards]
    return [name for name in names if name.startswith(f"{split}/") and name.endswith(".arrow")]


def _shortened(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")


def _saved_files(folder: Path) -> list[str]:
    """The Arrow files of a folder that `datasets` saved."""
    state = folder / "state.json"
    if not state.is_file():
        return []
    try:
        names = [entry["filename"] for entry in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{state} is not the state of a data set saved by datasets ({error!r})") from error
    if bad := [name for name in names if not isinstance(name, str) or "/" in name]:
        raise DataError(f"{state} names the file {bad[0]!r}, which is not in its folder")
    return names


def _fetched(repo: str, subset: str | None, split: str, revision: str | None) -> list[Path]:
    """The same files from the hub, through huggingface_hub's cache."""
    from huggingface_hub import hf_hub_download

    names = _hub_files(repo, revision)
    for folder in _folders(subset):
        prefix = "" if folder == "." else f"{folder}/"
        inside = sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))
        if chosen := _matching(inside, split, split):
            with _hub_errors(repo):
                return [
                    Path(hf_hub_download(repo, prefix + name, repo_type="dataset", revision=revision))
                    for name in chosen
                ]
    raise DataError(
        f"{repo}, subset {subset or 'default'}, split {split}: the hub repository has no such files. Check the names, "
        "or mirror it below annotations_root"
    )


@lru_cache(maxsize=16)
def _hub_files(repo: str, revision: str | None) -> tuple[str, ...]:
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        return tuple(HfApi().list_repo_files(repo, repo_type="dataset", revision=revision))


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{repo}: the hub cannot be reached or refuses ({reason}). Set annotations_root to a local mirror"
        ) from error
