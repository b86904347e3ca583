"""TWN as an encoder of mteb: `mteb.evaluate(MTEBEncoder("nano"), tasks)`.

Queries think where the gate says so, documents do not, unless other modes are asked for. A task's prompt is the
instruction of queries, and of documents where it has one for them; a query's own instruction goes before it. Videos
come decoded: their frames count as sampled at two a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twn_lightning.backbone.media import sample_frames
from twn_lightning.encoder import TWNEncoder
from twn_lightning.errors import ConfigError
from twn_lightning.types import Side

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import PromptType
except ImportError as error:
    raise ConfigError("this needs mteb 2: pip install 'twn_lightning[interop]'") from error


class MTEBEncoder(AbsEncoder):
    """An encoder for text, image and video tasks.

    Args:
        model_name: what `TWNEncoder.from_pretrained` takes, or a loaded encoder.
        revision: of a repository on the Hub.
        device: by default the first CUDA device where there is one.
        mode: of queries, and of inputs whose side a task does not tell; None: adaptive where there is a gate.
        document_mode: of documents; None: discriminative.
        options: further arguments of `from_pretrained`.

    Raises:
        AdapterError, ConfigError: as `from_pretrained`, or a mode that the encoder does not have.
    """

    def __init__(
        self,
        model_name: str | Path | TWNEncoder,
        revision: str | None = None,
        *,
        device: str | None = None,
        mode: str | None = None,
        document_mode: str | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model_name, TWNEncoder):
            model_name = TWNEncoder.from_pretrained(model_name, revision=revision, device=device, **options)
        self.model = model_name
        self.mode = self.model.mode_named(mode, Side.QUERY)
        self.document_mode = self.model.mode_named(document_mode, Side.CANDIDATE)
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"twn_lightning/{self.model.item_encoder.model_name()}",
                "revision": f"{self.mode.value}-{self.document_mode.value}",
                "embed_dim": self.model.dimension,
                "similarity_fn_name": ScoringFunction.COSINE,
                "modalities": ["text", "image", "video"],
                "use_instructions": True,
                "framework": ["PyTorch"],
            }
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Embed a task's queries or documents.

        Args:
            inputs: mteb's batches of columns: `text`, `image`, `video`, and of queries `query` and `instruction`.
            task_metadata: the task; its prompt is the instruction.
            hf_split: not used.
            hf_subset: not used.
            prompt_type: queries, documents, or None where both sides are alike.
            kwargs: mteb's `show_progress_bar`; batches are the encoder's own.

        Returns:
            Embeddings (N, D) float32, unit norm.
        """
        document = prompt_type == PromptType.document
        max_frames = self.model.item_encoder.backbone.processor.max_frames
        rows = [row for batch in inputs for row in _rows(batch, max_frames)]
        out = self.model.encode(
            rows,
            mode=self.document_mode if document else self.mode,
            side=Side.CANDIDATE if document else Side.QUERY,
            instruction=self._instruction(task_metadata, prompt_type),
            show_progress=bool(kwargs.get("show_progress_bar")),
        )
        return np.asarray(out.embeddings)

    def _instruction(self, task_metadata: Any, prompt_type: Any) -> str:
        """What the task asks for. mteb's own prompt for tasks without one is worded for queries."""
        prompt = task_metadata.prompt
        if prompt_type == PromptType.document:
            return (prompt.get("document") or "") if isinstance(prompt, Mapping) else ""
        return self.get_instruction(task_metadata, prompt_type) or ""


def _rows(batch: Mapping[str, Any], max_frames: int) -> list[dict[str, Any]]:
    """A batch of columns as one dictionary an input."""
    columns = {name: batch[name] for name in ("text", "image", "video") if name in batch}
    if "instruction" in batch:  # `text` would hold the query and its instruction in one
        columns |= {"text": batch["query"], "instruction": batch["instruction"]}
    if "video" in columns:
        columns["video"] = [_frames(video, max_frames) for video in columns["video"]]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _frames(video: Any, max_frames: int) -> Any:
    """Frames (F, channels, height, width) of a torchcodec decoder; what is no decoder stays as it is."""
    if not hasattr(video, "get_frames_at"):
        return video
    return video.get_frames_at(list(sample_frames(video.metadata.num_frames, max_frames))).data
