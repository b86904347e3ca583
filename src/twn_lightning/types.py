"""The data that travels between the layers: items, batches, rollouts, embeddings, decisions.

Shape letters used in names across the package:
B rows of a batch, L padded prompt length, T padded CoT length, K learnable queries, D embedding width,
Q queries of a similarity matrix, C candidates of a similarity matrix, G completions of one prompt, V vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from twn_lightning.errors import DataError
from twn_lightning.patches import Patches

PixelArray = np.ndarray
"""uint8 pixels: (height, width, 3) for an image, (frames, height, width, 3) for a video."""


class EmbeddingMode(str, Enum):
    """Which of an input's embeddings is meant."""

    DISCRIMINATIVE = "discriminative"
    GENERATIVE = "generative"
    ADAPTIVE = "adaptive"


class Side(str, Enum):
    """Which side of a pair an input stands on."""

    QUERY = "query"
    CANDIDATE = "candidate"


class StoredBytes(Protocol):
    """An encoded image inside another file (a row of a parquet column), read when asked for."""

    @property
    def name(self) -> str:
        """Where it is, for messages: file, row and column."""

    def read(self) -> bytes: ...


@dataclass(frozen=True)
class Media:
    """One image or one video, as decoded pixels or as files that are decoded once, later.

    A video's `content` may be a tuple of image files: frames already chosen, all of which are used, in order.
    """

    kind: Literal["image", "video"]
    content: PixelArray | Path | tuple[Path, ...] | StoredBytes

    def digest(self) -> str:
        """SHA-256 of the content: pixel shape and bytes, or the encoded bytes of the file or files."""
        if isinstance(self.content, Path):
            return hashlib.sha256(self.content.read_bytes()).hexdigest()
        if isinstance(self.content, tuple):
            frames = [hashlib.sha256(path.read_bytes()).digest() for path in self.content]
            return hashlib.sha256(b"frames" + b"".join(frames)).hexdigest()
        if not isinstance(self.content, np.ndarray):
            return hashlib.sha256(self.content.read()).hexdigest()
        shape = "x".join(map(str, self.content.shape)).encode()
        return hashlib.sha256(shape + np.ascontiguousarray(self.content).tobytes()).hexdigest()


@dataclass(frozen=True)
class Item:
    """A query or a candidate: what goes into one user turn, and the teacher's CoT where there is one."""

    key: str
    instruction: str
    text: str
    media: tuple[Media, ...] = ()
    cot: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no tokenizer and no file takes.

        Raises:
            DataError: a text that is no valid Unicode.
        """
        for name in ("key", "instruction", "text", "cot"):
            try:
                (getattr(self, name) or "").encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"item {self.key!r}: its {name} is no valid Unicode (half of a surrogate pair, or a file name that "
                    f"is not UTF-8, at character {error.start}). Mend the text, or rename the file"
                ) from error

    def content_hash(self) -> str:
        """Digest of normalised text and media content: equal hashes are the same target."""
        text = " ".join(self.text.lower().split())
        return hashlib.sha256("\x1f".join([text, *(m.digest() for m in self.media)]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Pair:
    """A training or evaluation row: a query with its positive."""

    query: Item
    positive: Item
    source: str
    target_hash: str
    hard_negatives: tuple[Item, ...] = ()
    steps: int | None = None
    """True number of reasoning steps where the source knows it (the nano world does)."""
    negative_hashes: tuple[str, ...] = ()
    """Target hash of each hard negative where the source knows them; empty: digests of their contents."""


@dataclass(frozen=True)
class RankingItem:
    """What scoring needs to know of one query."""

    labels: tuple[str, ...]
    """Keys of the right candidates; at least one."""
    relevance: tuple[float, ...] | None = None
    """Grade of each label, in the order of `labels`; None: all 1."""
    candidate_keys: tuple[str, ...] | None = None
    """The query's own candidates (local ranking), or None for the whole corpus (global)."""


@dataclass
class PromptBatch:
    """Rendered prompts `P(x)`, left-padded, with their pixels. Media are flattened in row order."""

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    mm_token_type_ids_BL: Tensor
    """0 text, 1 image, 2 video."""
    images: Patches | None = None
    videos: Patches | None = None
    images_per_row: tuple[int, ...] = ()
    videos_per_row: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.input_ids_BL.shape[0]

    @property
    def pixel_values(self) -> Tensor | None:
        """Of the images, as transformers' models take them; computed at each access (`Patches.values`)."""
        return self.images.values() if self.images else None

    @property
    def pixel_values_videos(self) -> Tensor | None:
        """Of the videos, computed at each access."""
        return self.videos.values() if self.videos else None

    @property
    def image_grid_thw(self) -> Tensor | None:
        return self.images.grid_thw if self.images else None

    @property
    def video_grid_thw(self) -> Tensor | None:
        return self.videos.grid_thw if self.videos else None

    def to(self, device: torch.device | str) -> PromptBatch:
        moved: dict[str, Any] = {}
        for field_ in fields(self):
            value = getattr(self, field_.name)
            moved[field_.name] = value.to(device) if isinstance(value, (Tensor, Patches)) else value
        return PromptBatch(**moved)

    def select(self, rows: list[int]) -> PromptBatch:
        """The same prompts for some rows, in the order given, with just their media."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.input_ids_BL.device)
        return PromptBatch(
            self.input_ids_BL[index],
            self.attention_mask_BL[index],
            self.mm_token_type_ids_BL[index],
            _select_media(self.images, self.images_per_row, rows),
            _select_media(self.videos, self.videos_per_row, rows),
            tuple(self.images_per_row[r] for r in rows) if self.images_per_row else (),
            tuple(self.videos_per_row[r] for r in rows) if self.videos_per_row else (),
        )


def _select_media(patches: Patches | None, per_row: tuple[int, ...], rows: list[int]) -> Patches | None:
    """The media of some rows."""
    ends = np.cumsum([0, *per_row])
    chosen = [medium for row in rows for medium in range(ends[row], ends[row + 1])] if patches else []
    return patches.select(chosen) if patches and chosen else None


@dataclass
class CotBatch:
    """Chains of thought as token ids, right-padded: first generated token to the one completing `</answer>`."""

    ids_BT: Tensor
    mask_BT: Tensor
    """1 where a token belongs to the CoT."""
    closed_B: Tensor
    """True where the CoT ended by itself (`</answer>` or end-of-turn) before the cap."""

    def __len__(self) -> int:
        return self.ids_BT.shape[0]

    @property
    def lengths_B(self) -> Tensor:
        return self.mask_BT.sum(-1)

    def to(self, device: torch.device | str) -> CotBatch:
        return CotBatch(self.ids_BT.to(device), self.mask_BT.to(device), self.closed_B.to(device))

    def select(self, rows: list[int]) -> CotBatch:
        index = torch.as_tensor(rows, dtype=torch.long, device=self.ids_BT.device)
        return CotBatch(self.ids_BT[index], self.mask_BT[index], self.closed_B[index])


@dataclass
class ContrastiveBatch:
    """One stage-1 step of one rank: queries, candidates (distinct targets, encoded once), CoTs and the labels."""

    queries: PromptBatch
    query_cots: CotBatch | None
    candidates: PromptBatch
    candidate_cots: CotBatch | None
    positive_B: Tensor
    """Row of `candidates` holding each query's positive."""
    target_hash_Q: Tensor
    """int64 hash of each query's positive target."""
    target_hash_C: Tensor
    """int64 hash of each candidate."""
    candidate_is_negative_C: Tensor
    """True where the candidate is a mined hard negative of some query."""
    source: str
    pairs: list[Pair] = field(default_factory=list)

    def to(self, device: torch.device | str) -> ContrastiveBatch:
        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, (Tensor, PromptBatch, CotBatch)) else value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


@dataclass
class EmbeddingOutput:
    """Unit-norm fp32 embeddings (B, D); a mode that was not asked for is None."""

    discriminative_BD: Tensor | None = None
    generative_BD: Tensor | None = None


@dataclass
class GateDecision:
    """What the gate said of each row."""

    probability_B: Tensor
    think_B: Tensor
    threshold: float


@dataclass
class Rollout:
    """Completions of one RL step: `prompts` prompts times G completions, prompt-major."""

    cots: CotBatch
    log_probs_BT: Tensor
    """Log-probabilities of the sampled tokens under the sampling policy, temperature 1."""
    group_size: int
    rewards_B: Tensor | None = None
    advantages_B: Tensor | None = None
