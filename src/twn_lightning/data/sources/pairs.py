"""A user's own pairs: `pairs.jsonl` or `pairs.parquet` below `data.annotations_root`, as `twn annotate` writes them.

The fields are those of data/pair_rows.py. The root of their media is that of the scheme `pairs`, or the same folder
where neither `data.media_root` nor `data.media_roots` (`pairs=FOLDER`) is set. A row may name its `split`; without it
the target's hash decides. A subset is another file's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twn_lightning.data.drafts import ItemDraft, MediaRef, PairDraft
from twn_lightning.data.file_corpus import FileCorpus
from twn_lightning.data.pair_rows import side_cot, side_values
from twn_lightning.data.record_files import StoredImage
from twn_lightning.data.records import Records
from twn_lightning.data.rows import ROW_FORMATS, fields_of, open_rows
from twn_lightning.data.sources import SPLITS
from twn_lightning.errors import ConfigError, DataError, unknown_name
from twn_lightning.settings import DataSettings, SourceSettings


class UserPairs(FileCorpus):
    """One file of pairs."""

    name = "pairs"
    repo = ""
    columns = ("query", "positive")

    def __init__(self, entry: SourceSettings, settings: DataSettings) -> None:
        if settings.annotations_root is None:
            raise ConfigError(
                "data.source=pairs needs data.annotations_root: the folder with pairs.jsonl or pairs.parquet"
            )
        if settings.media_root is None and not any(text.startswith(f"{self.name}=") for text in settings.media_roots):
            own = f"{self.name}={settings.annotations_root}"
            settings = replace(settings, media_roots=[*settings.media_roots, own])
        super().__init__(entry, settings)

    def open(self) -> Records:
        folder, stem = Path(str(self.settings.annotations_root)), self.entry.subset or self.name
        there = [path for suffix in ROW_FORMATS if (path := folder / f"{stem}{suffix}").is_file()]
        if len(there) != 1 or Path(stem).name != stem:
            found = " and ".join(path.name for path in there) or "neither"
            raise DataError(
                f"source '{self.task}': expected {stem}.jsonl or {stem}.parquet in {folder}, found {found}. Check "
                "data.annotations_root"
            )
        return Records([open_rows(there[0])])

    def parse(self, row: Mapping[str, Any], where: str) -> PairDraft:
        negatives = row.get("neg") or []
        if not isinstance(negatives, Sequence) or isinstance(negatives, str):
            raise DataError(f"{where}: 'neg' must be a list of objects, found {type(negatives).__name__}")
        return PairDraft(
            self.task,
            self._draft(side_values(row, "query", f"{where}, query"), f"{where}, query", side_cot(row, "query", where)),
            self._draft(
                side_values(row, "positive", f"{where}, positive"),
                f"{where}, positive",
                side_cot(row, "positive", where),
            ),
            tuple(
                self._draft(side_values({"neg": value}, "neg", f"{where}, neg"), f"{where}, neg") for value in negatives
            ),
        )

    def _draft(self, values: Mapping[str, Any], where: str, cot: str | None = None) -> ItemDraft:
        fields = fields_of(values, where)
        images = [
            MediaRef("image", self.name, (value.path or value.name,), value)
            if isinstance(value, StoredImage)
            else MediaRef("image", self.name, (value,))
            for value in fields.images
        ]
        videos = [MediaRef("video", self.name, (value,)) for value in fields.videos]
        return ItemDraft(fields.instruction, fields.text, (*images, *videos), cot)

    def split_rows(self, rows: np.ndarray, target_hashes: Sequence[str]) -> np.ndarray:
        """The rows' own splits, and by target hash where they have none."""
        by_hash = super().split_rows(rows, target_hashes)
        found = []
        for row, default in zip(rows.tolist(), by_hash.tolist(), strict=True):
            split = self.records[row].get("split")
            if split is not None and split not in SPLITS:
                raise DataError(f"{self.where(row)}: {unknown_name('split', str(split), SPLITS)}")
            found.append(split or default)
        return np.array(found)
