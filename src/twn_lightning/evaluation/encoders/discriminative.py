"""Discriminative LoRA embedders on Qwen2-VL, Qwen2.5-VL and Qwen3-VL: the last token's hidden state embeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.evaluation.encoders.batching import BATCH_TOKENS, encode_in_batches, visual_tokens
from twn_lightning.evaluation.encoders.preprocessing import ModelInputs
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.evaluation.encoders.styles import QWEN3VL_EMBEDDING, VLM2VEC
from twn_lightning.evaluation.encoders.transformer import EmbedderModel, load_embedder
from twn_lightning.settings import ModelSettings
from twn_lightning.types import EmbeddingMode, Item, Side

STYLES = {style.name: style for style in (VLM2VEC, QWEN3VL_EMBEDDING)}


class DiscriminativeEncoder:
    """An embedder with one embedding per input.

    Args:
        embedder: model and processor, in the style of `vlm2vec` or `qwen3vl_embedding`.
        batch_size: most rows of a batch.
        batch_tokens: most tokens of a batch, padding included.
    """

    modes = (EmbeddingMode.DISCRIMINATIVE,)

    def __init__(self, embedder: EmbedderModel, batch_size: int = 32, batch_tokens: int = BATCH_TOKENS) -> None:
        self.embedder = embedder
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens

    @classmethod
    def load(
        cls,
        style: str,
        model: ModelSettings,
        adapters_path: str | None = None,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> DiscriminativeEncoder:
        """Load a checkpoint and, where given, a PEFT folder; see `transformer.load_embedder`.

        Raises:
            ConfigError: an unknown style, or weights that cannot be had.
            AdapterError: a LoRA that does not fit.
        """
        if style not in STYLES:
            raise ConfigError(unknown_name("prompt style", style, STYLES))
        return cls(load_embedder(model, STYLES[style], adapters_path, device), batch_size)

    @property
    def name(self) -> str:
        return self.embedder.processor.style.name

    @property
    def dimension(self) -> int:
        return self.embedder.dimension

    def identity(self, side: Side, mode: EmbeddingMode) -> dict[str, Any]:
        """See `Encoder.identity`; the side makes no difference."""
        check_mode(self.name, mode, self.modes)
        return self.embedder.identity() | {"mode": mode.value}

    def encode(
        self,
        items: Sequence[Item],
        side: Side,
        mode: EmbeddingMode,
        progress: Callable[[int], None] | None = None,
    ) -> EncodedItems:
        """See `Encoder.encode`."""
        check_mode(self.name, mode, self.modes)
        processor = self.embedder.processor
        ids_N = [processor.tokenise(processor.render(item)) for item in items]
        visual_N = [visual_tokens(item, processor.patches, processor.max_frames) for item in items]
        return encode_in_batches(
            items,
            [len(ids) + visual for ids, visual in zip(ids_N, visual_N, strict=True)],
            lambda rows: processor([items[row] for row in rows], [ids_N[row] for row in rows]),
            lambda rows, inputs: EncodedItems(self._embed(inputs).numpy()),
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            progress=progress,
        )

    @torch.no_grad()
    def _embed(self, inputs: ModelInputs) -> torch.Tensor:
        """Unit-norm fp32 embeddings (B, D): left padding puts every row's last token in the last column."""
        inputs = inputs.to(self.embedder.device)
        output = self.embedder.hidden(inputs, self.embedder.positions(inputs), use_cache=False)
        return F.normalize(output.last_hidden_state[:, -1].float(), dim=-1).cpu()


def check_mode(name: str, mode: EmbeddingMode, modes: Sequence[EmbeddingMode]) -> None:
    """Refuse a mode that an encoder does not have.

    Raises:
        ConfigError: lists the modes it has.
    """
    if mode not in modes:
        raise ConfigError(f"encoder '{name}': {unknown_name('mode', mode.value, [m.value for m in modes])}")
