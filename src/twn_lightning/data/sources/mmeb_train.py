"""MMEB-train: 20 image subsets with one negative a row, `TIGER-Lab/MMEB-train`. It has no CoT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twn_lightning.data.drafts import ItemDraft, MediaRef, PairDraft, text_of, without_placeholders
from twn_lightning.data.file_corpus import FileCorpus, read_corpus, require_subset
from twn_lightning.data.records import Records
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.settings import DataSettings

SUBSETS = (
    "A-OKVQA", "CIRR", "ChartQA", "DocVQA", "HatefulMemes", "ImageNet_1K", "InfographicsVQA", "MSCOCO", "MSCOCO_i2t",
    "MSCOCO_t2i", "N24News", "NIGHTS", "OK-VQA", "SUN397", "VOC2007", "VisDial", "Visual7W", "VisualNews_i2t",
    "VisualNews_t2i", "WebQA",
)  # fmt: skip
SPLITS = ("original", "diverse_instruction")


class MmebTrain(FileCorpus):
    """One subset. The instruction is part of the text, as in the files; `<|image_1|>` stands before it."""

    name = "mmeb_train"
    repo = "TIGER-Lab/MMEB-train"
    columns = ("qry", "qry_image_path", "pos_text", "pos_image_path")

    @classmethod
    def subsets(cls, settings: DataSettings) -> Sequence[str]:
        return SUBSETS

    def open(self) -> Records:
        split = self.entry.split or SPLITS[0]
        if split not in SPLITS:
            raise ConfigError(f"data.sources, source '{self.name}': {unknown_name('split', split, SPLITS)}")
        return read_corpus(self.settings, self.repo, require_subset(self.name, self.entry.subset, SUBSETS), split)

    def parse(self, row: Mapping[str, Any], where: str) -> PairDraft:
        negatives = (_side(row, "neg_text", "neg_image_path", where),)
        return PairDraft(
            self.task,
            _side(row, "qry", "qry_image_path", where),
            _side(row, "pos_text", "pos_image_path", where),
            negatives,
        )


def _side(row: Mapping[str, Any], text_column: str, image_column: str, where: str) -> ItemDraft:
    text = without_placeholders(text_of(row.get(text_column), f"'{text_column}'", where))
    image = text_of(row.get(image_column), f"'{image_column}'", where)
    return ItemDraft(text=text, media=(MediaRef("image", "mmeb_train", (image,)),) if image else ())
