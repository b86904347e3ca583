"""ColPali's training set: a page with a question, and the answer as text, `vidore/colpali_train_set`. It has no CoT.

As in VLM2Vec-V2, the page belongs to the query: a question-answering pairing, although evaluation retrieves pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twn_lightning.data.drafts import ItemDraft, MediaRef, PairDraft, text_of, without_placeholders
from twn_lightning.data.file_corpus import FileCorpus, read_corpus
from twn_lightning.data.record_files import StoredImage
from twn_lightning.data.records import Records, field_of
from twn_lightning.errors import DataError


def stored_image(row: Mapping[str, Any], scheme: str, where: str) -> MediaRef:
    """The image in the column `image`.

    Raises:
        DataError: the row has none.
    """
    image = field_of(row, ("image",), where)
    if isinstance(image, StoredImage):
        return MediaRef("image", scheme, (image.path or image.name,), image)
    if isinstance(image, str) and image:
        return MediaRef("image", scheme, (image,))
    raise DataError(f"{where}: 'image' must be an embedded image or a path, this is {type(image).__name__}")


class ColPali(FileCorpus):
    """The whole set; it has no subsets."""

    name = "colpali"
    repo = "vidore/colpali_train_set"
    columns = ("query", "image", "answer")

    def open(self) -> Records:
        return read_corpus(self.settings, self.repo, self.entry.subset, self.entry.split or "train")

    def parse(self, row: Mapping[str, Any], where: str) -> PairDraft:
        question = without_placeholders(text_of(row.get("query"), "'query'", where))
        answer = text_of(row.get("answer"), "'answer'", where).strip()
        media = (stored_image(row, "vidore_colpali", where),)
        # An unanswered or unasked row is empty, although it has a page.
        return PairDraft(self.task, ItemDraft(text=question, media=media if question else ()), ItemDraft(text=answer))
