"""TWN's released pairs with CoTs, `zhanglx/TWN-training-data`: `sft/<Subset>.json`, and `rl/rl.json` as the RL split.

What is stated of the format: SFT rows start `{data_info: {data_type, dataset_name, data_id}, query: {text, image, ...},
...}` and carry `neg`; RL rows carry `data_index, modality, source_dataset, target_hash`; media are URIs. The remaining
field names are not known, so each field is read under the first of several usual names, and a row in which none fits is
refused with the names that it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from twn_lightning.data.corpus import split_by_hash
from twn_lightning.data.drafts import (
    ItemDraft,
    MediaRef,
    PairDraft,
    media_of_uri,
    text_of,
    videos_of,
    without_placeholders,
)
from twn_lightning.data.file_corpus import FileCorpus, read_corpus, require_subset
from twn_lightning.data.records import Records, field_of, split_names
from twn_lightning.errors import DataError
from twn_lightning.settings import DataSettings

POSITIVE = ("pos", "positive", "target", "candidate")
NEGATIVES = ("neg", "negs", "negative", "negatives", "hard_negatives")
TEXT = ("text", "content", "caption")
INSTRUCTION = ("instruction", "inst")
IMAGES = ("image", "images", "image_path")
VIDEOS = ("video", "videos", "video_path", "frames")
COT = ("cot", "CoT", "chain_of_thought", "reasoning", "response")

_REPO = "zhanglx/TWN-training-data"


class TwnTrainingData(FileCorpus):
    """One subset: its file in `sft/`, and the rows of `rl/rl.json` that come from it.

    `data_index` is taken as the row of the subset's file, or as its `data_id` where there is no such row. RL rows are
    in no other split; the others follow their target hashes, with `rl` counting as `train` where there is an RL file.
    """

    name = "twn"
    repo = _REPO
    columns = ("query",)

    @classmethod
    def subsets(cls, settings: DataSettings) -> Sequence[str]:
        return split_names(settings.annotations_root, _REPO, "sft")

    def open(self) -> Records:
        subset = require_subset(self.name, self.entry.subset, self.subsets(self.settings))
        return read_corpus(self.settings, self.repo, "sft", subset)

    def parse(self, row: Mapping[str, Any], where: str) -> PairDraft:
        query = _side(field_of(row, ("query",), where), row, "query", where)
        positive = _side(field_of(row, POSITIVE, where), row, "pos", where)
        if query.cot is None and positive.cot is None:
            names = ", ".join(map(str, row))
            found = ", ".join(map(str, row["query"])) if isinstance(row["query"], Mapping) else "none"
            raise DataError(
                f"{where}: no CoT under any of {', '.join(COT)}; the row has {names}, its query has {found}"
            )
        negatives = _first(row, NEGATIVES) or []
        listed = negatives if isinstance(negatives, list) else [negatives]
        return PairDraft(self.task, query, positive, tuple(_side(one, {}, "neg", where) for one in listed))

    def split_rows(self, rows: np.ndarray, target_hashes: Sequence[str]) -> np.ndarray:
        by_hash = {target_hash: split_by_hash(target_hash) for target_hash in set(target_hashes)}
        splits = np.array([by_hash[target_hash] for target_hash in target_hashes], dtype="U16")
        if self._rl_rows is not None:
            splits[splits == "rl"] = "train"
            splits[np.isin(rows, self._rl_rows)] = "rl"
        return splits

    @cached_property
    def _rl_rows(self) -> list[int] | None:
        """Rows of this subset that `rl/rl.json` names; None where there is no such file."""
        if "rl" not in split_names(self.settings.annotations_root, _REPO, "rl"):
            return None
        names = {self.entry.subset, *self._dataset_names}
        rows = []
        for place, dataset, index in _rl_index(self.settings.annotations_root):
            if dataset in names:
                rows.append(self._row_of(index, place))
        return rows

    @cached_property
    def _dataset_names(self) -> set[str]:
        info = self.records[0].get("data_info")
        return {str(info["dataset_name"])} if isinstance(info, Mapping) and "dataset_name" in info else set()

    def _row_of(self, index: Any, place: str) -> int:
        if isinstance(index, int) and 0 <= index < len(self.records):
            return index
        row = self._row_of_id.get(str(index))
        if row is None:
            raise DataError(
                f"{place}: data_index {index!r} is neither a row nor a data_id of {self.records.files[0].path}, which "
                f"has {len(self.records)} rows"
            )
        return row

    @cached_property
    def _row_of_id(self) -> dict[str, int]:
        infos = self.records.column("data_info")
        return {str(info["data_id"]): row for row, info in enumerate(infos) if info and "data_id" in info}


@lru_cache(maxsize=2)
def _rl_index(annotations_root: str | None) -> list[tuple[str, str, Any]]:
    """Place, source data set and index of every row of `rl/rl.json`: read once for all subsets."""
    records = read_corpus(DataSettings(annotations_root=annotations_root), _REPO, "rl", "rl")
    records.require(("data_index", "source_dataset"), "source 'twn'")
    rows = zip(records.column("source_dataset"), records.column("data_index"), strict=True)
    return [(f"source 'twn', {records.source(row)}", str(name), index) for row, (name, index) in enumerate(rows)]


def _side(side: Any, row: Mapping[str, Any], prefix: str, where: str) -> ItemDraft:
    """A side, which may be an object or just its text; its CoT may also be a field of the row (`query_cot`)."""
    fields = {"text": side} if isinstance(side, str) else side
    if not isinstance(fields, Mapping):
        raise DataError(f"{where}: '{prefix}' must be an object or text, this is {type(side).__name__}")
    if not any(name in fields for name in (*TEXT, *IMAGES, *VIDEOS)):
        raise DataError(
            f"{where}: '{prefix}' has no text, image or video under a known name; its fields are "
            f"{', '.join(map(str, fields)) or 'none'}"
        )
    cot = _first(fields, COT) or _first(row, tuple(f"{prefix}_{name}" for name in COT))
    images = _first(fields, IMAGES)
    videos = _first(fields, VIDEOS)
    return ItemDraft(
        text_of(_first(fields, INSTRUCTION), "the instruction", where),
        without_placeholders(text_of(_first(fields, TEXT), f"the text of '{prefix}'", where)),
        (
            *(_media(images, "image", where) if images else ()),
            *(videos_of(_media(videos, "video", where)) if videos else ()),
        ),
        text_of(cot, f"the CoT of '{prefix}'", where) or None,
    )


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first value under one of several names that is not empty; None where all are."""
    for name in names:
        value = fields.get(name)
        if value:
            return value
    return None


def _media(value: Any, kind: Literal["image", "video"], where: str) -> list[MediaRef]:
    uris = [value] if isinstance(value, str) else value
    if not isinstance(uris, list) or not all(isinstance(uri, str) for uri in uris):
        raise DataError(f"{where}: '{kind}' must be a URI or a list of them, this is {value!r:.80}")
    return [media_of_uri(uri, kind, where) for uri in uris]
