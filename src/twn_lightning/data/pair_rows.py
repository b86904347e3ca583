"""A file of pairs, one side at a time, for annotation.

    {"key": "1", "query": {"instruction": "Find it.", "image": "q/1.jpg"}, "positive": {"text": "a red bird"},
     "query_cot": "<think>...</think><answer>...</answer>", "positive_cot": null, "neg": [{"text": "a blue bird"}]}

Only `query` and `positive` must be there; their fields are those of data/rows.py, media as paths. data/sources/pairs.py
trains on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twn_lightning.data.roots import MediaRoot
from twn_lightning.data.rows import fields_of, item_of, open_rows
from twn_lightning.errors import DataError
from twn_lightning.types import Item


class PairRows:
    """The rows of one file of pairs, read when they are asked for.

    Args:
        path: a .jsonl or .parquet file.
        root: what its media paths are relative to, and may not leave; the file's folder by default.
        num_frames: frames taken of a folder of frames.

    Raises:
        DataError: no such file, no rows, or two rows of one key.
    """

    def __init__(self, path: Path, root: Path | None = None, num_frames: int = 8) -> None:
        self.path = path
        self._media = MediaRoot(root or path.parent, "--root")
        self._num_frames = num_frames
        self._rows = open_rows(path)
        self._keys = self._checked_keys()

    def _checked_keys(self) -> list[str]:
        first: dict[str, int] = {}
        for index, given in enumerate(self._rows.column("key")):
            key = f"row {index}" if given is None else str(given)
            if key in first:
                raise DataError(f"{self.where(index)}: key {key!r} is there twice, first in {self.where(first[key])}")
            first[key] = index
        return list(first)

    def __len__(self) -> int:
        return len(self._keys)

    def where(self, index: int) -> str:
        """File and line or row, for messages."""
        return self._rows.place(index)

    def values(self, index: int) -> dict[str, Any]:
        """A row as it is in the file."""
        return self._rows.row(index)

    def item(self, index: int, side: str) -> Item:
        """One side of a row, `query` or `positive`, without the other.

        Raises:
            DataError: the side is missing, or its fields cannot be used.
        """
        where = f"{self.where(index)}, {side}"
        fields = fields_of(side_values(self.values(index), side, where), where)
        return item_of(fields, self._keys[index], self._media, where, num_frames=self._num_frames)

    def cot(self, index: int, side: str) -> str:
        """The CoT that a side has already; empty where it has none.

        Raises:
            DataError: it is not text.
        """
        return side_cot(self.values(index), side, self.where(index)) or ""


def side_values(row: Mapping[str, Any], side: str, where: str) -> Mapping[str, Any]:
    """The fields of one side.

    Raises:
        DataError: the row has no such side.
    """
    values = row.get(side)
    if not isinstance(values, Mapping):
        raise DataError(f"{where}: expected an object with text, image or video, found {type(values).__name__}")
    return values


def side_cot(row: Mapping[str, Any], side: str, where: str) -> str | None:
    """The CoT of one side; None where there is none.

    Raises:
        DataError: it is not text.
    """
    cot = row.get(f"{side}_cot")
    if cot is not None and not isinstance(cot, str):
        raise DataError(f"{where}: '{side}_cot' must be text, found {type(cot).__name__}")
    return cot or None
