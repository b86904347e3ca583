"""LLaVA-Hound: captions and videos both ways, video questions, `ShareGPTVideo/train_video_and_instruction`. No CoT.

Frames are at `<root of sharegpt_video>/train_300k/<video>/`. The prompts are VLM2Vec-V2's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twn_lightning.data.drafts import ItemDraft, MediaRef, PairDraft, text_of, without_placeholders
from twn_lightning.data.file_corpus import FileCorpus, read_corpus, require_subset
from twn_lightning.data.records import Records, field_of
from twn_lightning.errors import DataError
from twn_lightning.settings import DataSettings

FILES = {
    "caption_to_video": "video_caption_300k",
    "video_to_caption": "video_caption_300k",
    "qa": "video_240k_caption_15k",
}
"""The file of each subset, in the repository's folder `video_instruction/train/sft`."""
FOLDER = "video_instruction/train/sft"
FIND_VIDEO = "Find a video that contains the following visual content:"
UNDERSTAND_VIDEO = "Understand the content of the provided video:"
ANSWER_QUESTION = "Answer a question based on the content of a video."


class LlavaHound(FileCorpus):
    """One of the three subsets: a caption and its video, either way round, or a question and its answer."""

    name = "llava_hound"
    repo = "ShareGPTVideo/train_video_and_instruction"
    columns = ("video", "conversations")

    @classmethod
    def subsets(cls, settings: DataSettings) -> Sequence[str]:
        return tuple(FILES)

    def open(self) -> Records:
        subset = require_subset(self.name, self.entry.subset, tuple(FILES))
        return read_corpus(self.settings, self.repo, FOLDER, self.entry.split or FILES[subset])

    def parse(self, row: Mapping[str, Any], where: str) -> PairDraft:
        video = text_of(field_of(row, ("video",), where), "'video'", where)
        media = (MediaRef("video", "sharegpt_video", (video,)),) if video else ()
        asked, answered = _turns(field_of(row, ("conversations",), where), where)
        if self.entry.subset == "caption_to_video":
            return PairDraft(self.task, ItemDraft(FIND_VIDEO, answered), ItemDraft(UNDERSTAND_VIDEO, "", media))
        instruction = ANSWER_QUESTION if self.entry.subset == "qa" else ""
        return PairDraft(self.task, ItemDraft(instruction, asked, media), ItemDraft(text=answered))


def _turns(conversations: Any, where: str) -> tuple[str, str]:
    """What the first two turns say."""
    if not isinstance(conversations, Sequence) or isinstance(conversations, str) or len(conversations) < 2:
        raise DataError(f"{where}: 'conversations' must hold a question and an answer, it is {conversations!r:.80}")
    values = [turn.get("value") if isinstance(turn, Mapping) else None for turn in conversations[:2]]
    asked, answered = (text_of(value, f"turn {i} of 'conversations'", where) for i, value in enumerate(values))
    return without_placeholders(asked), answered.strip()
