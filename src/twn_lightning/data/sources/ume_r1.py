"""UME-R1's conversations with CoTs on both sides, `zhibinlan/UME-sft-train`. Its 25 sources are told apart by row.

The teacher's text is `<think>...</think><answer>summary <gen_emb>` and the answer is hardly ever closed, so it is what
stands between `</think>` and `<gen_emb>`. A blank image fills the slot of an item without media and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal

from twn_lightning.data.drafts import ItemDraft, MediaRef, PairDraft, text_of, videos_of, without_placeholders
from twn_lightning.data.file_corpus import FileCorpus, read_corpus, require_subset
from twn_lightning.data.records import Records, field_of
from twn_lightning.errors import DataError

BLANK_IMAGE = "blank.jpg"
DISCRIMINATIVE_TAG, GENERATIVE_TAG = "<disc_emb>", "<gen_emb>"
SCHEMES = {
    "images": "mmeb_train",
    "llavahound": "sharegpt_video",
    "vidore": "vidore_colpali",
    "visrag": "visrag_in_domain",
}
"""Which scheme a first folder below UME-R1's media root is the same as, for hashes across sources."""

_BOX = re.compile(r"<\|(?:begin|end)_of_box\|>")
_ANSWER_TAGS = re.compile(r"</?answer>")


class UmeR1(FileCorpus):
    """All rows, or those whose `dataset_name` is the entry's subset. The task is `ume_r1/<dataset_name>`."""

    name = "ume_r1"
    repo = "zhibinlan/UME-sft-train"
    columns = ("dataset_name", "qry", "pos")

    def open(self) -> Records:
        records = read_corpus(self.settings, self.repo, None, self.entry.split or "train")
        if self.entry.subset is not None:
            require_subset(self.name, self.entry.subset, sorted(set(map(str, records.column("dataset_name")))))
        return records

    def parse(self, row: Mapping[str, Any], where: str) -> PairDraft | None:
        dataset = text_of(field_of(row, ("dataset_name",), where), "'dataset_name'", where)
        if self.entry.subset not in (None, dataset):
            return None
        return PairDraft(f"{self.name}/{dataset}", _side(row, "qry", where), _side(row, "pos", where))


def normalise_ume_cot(text: str) -> str:
    """The teacher's turn as `<think>...</think><answer>...</answer>`; text without a closed thought is unchanged."""
    clean = _BOX.sub("", text)
    before, closed, after = clean.partition("</think>")
    if not closed or "<think>" not in before:
        return clean.strip()
    thought = before.partition("<think>")[2].strip()
    answer = _ANSWER_TAGS.sub("", after.partition(GENERATIVE_TAG)[0]).strip()
    return f"<think>{thought}</think><answer>{answer}</answer>"


def _side(row: Mapping[str, Any], name: str, where: str) -> ItemDraft:
    side = field_of(row, (name,), where)
    if not isinstance(side, Mapping):
        raise DataError(f"{where}: '{name}' must be a conversation with its media, this is {type(side).__name__}")
    said = {"human": "", "gpt": ""}
    turns = field_of(side, ("conversations",), f"{where}, '{name}'")
    if not isinstance(turns, list):
        raise DataError(f"{where}: the conversations of '{name}' must be a list of turns, they are {turns!r:.80}")
    for turn in turns:
        if not isinstance(turn, Mapping) or turn.get("from") not in tuple(said):
            raise DataError(f"{where}: '{name}' has a turn that is neither from human nor from gpt: {turn!r:.80}")
        said[turn["from"]] = text_of(turn.get("value"), f"a turn of '{name}'", where)
    text = without_placeholders(said["human"].partition(DISCRIMINATIVE_TAG)[0])
    images = _media(side.get("image"), "image", f"{where}, '{name}'")
    videos = videos_of(_media(side.get("video"), "video", f"{where}, '{name}'"))
    return ItemDraft("", text, (*images, *videos), normalise_ume_cot(said["gpt"]) or None)


def _media(value: Any, kind: Literal["image", "video"], where: str) -> list[MediaRef]:
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, Sequence) or not all(isinstance(path, str) for path in paths):
        raise DataError(f"{where}: '{kind}' must be a list of paths, this is {value!r:.80}")
    kept = [path for path in paths if path and PurePosixPath(path).name != BLANK_IMAGE]
    return [MediaRef(kind, "ume_r1", (path,), same_as=SCHEMES.get(path.partition("/")[0])) for path in kept]
