"""UME-R1 and its descendants: one embedding at `<disc_emb>` in the prompt, one at `<gen_emb>` behind a CoT.

Shape letters: B rows, A rows still decoding, L padded prompt length, S columns of the cache, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from twn_lightning.evaluation.encoders.batching import BATCH_TOKENS, encode_in_batches, visual_tokens
from twn_lightning.evaluation.encoders.discriminative import check_mode
from twn_lightning.evaluation.encoders.preprocessing import ModelInputs
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.evaluation.encoders.styles import DISC_EMB, GEN_EMB, UME_R1
from twn_lightning.evaluation.encoders.transformer import EmbedderModel, load_embedder
from twn_lightning.settings import ModelSettings
from twn_lightning.types import EmbeddingMode, Item, Media, Side

log = logging.getLogger(__name__)


@dataclass
class Generated:
    """What greedy decoding left of each row; all on the model's device but the tokens."""

    embedding_BD: Tensor
    """Hidden state of the step that consumed the last `<gen_emb>`, else of the row's last step."""
    consumed_B: Tensor
    """True where a `<gen_emb>` was consumed."""
    tokens: list[list[int]]
    """Per row, the tokens generated, the end of the turn included."""


class UMER1Encoder:
    """A model with `<disc_emb>` and `<gen_emb>` in its vocabulary.

    Args:
        embedder: model and processor, in style `ume_r1`.
        max_new_tokens: cap of a CoT.
        batch_size: most rows of a batch.
        batch_tokens: most prompt tokens of a batch, padding included.
        blank_image: put a white image of one token before inputs without media, as UME-R1's evaluation does.
    """

    modes = (EmbeddingMode.DISCRIMINATIVE, EmbeddingMode.GENERATIVE)

    def __init__(
        self,
        embedder: EmbedderModel,
        max_new_tokens: int = 8192,
        batch_size: int = 16,
        batch_tokens: int = BATCH_TOKENS,
        *,
        blank_image: bool = False,
    ) -> None:
        self.embedder = embedder
        self.max_new_tokens, self.batch_size, self.batch_tokens = max_new_tokens, batch_size, batch_tokens
        self.blank_image = blank_image
        self.disc_id = embedder.processor.token_id(DISC_EMB)
        self.gen_id = embedder.processor.token_id(GEN_EMB)
        self.stop_ids = _stop_ids(embedder)

    @classmethod
    def load(
        cls,
        model: ModelSettings,
        adapters_path: str | None = None,
        device: str = "cpu",
        max_new_tokens: int = 8192,
        batch_size: int = 16,
        *,
        blank_image: bool = False,
    ) -> UMER1Encoder:
        """Load a checkpoint and, where given, a PEFT folder; see `transformer.load_embedder`.

        Raises:
            ConfigError: weights that cannot be had, or a tokenizer without the two tokens.
            AdapterError: a LoRA that does not fit.
        """
        embedder = load_embedder(model, UME_R1, adapters_path, device)
        return cls(embedder, max_new_tokens, batch_size, blank_image=blank_image)

    @property
    def name(self) -> str:
        return UME_R1.name

    @property
    def dimension(self) -> int:
        return self.embedder.dimension

    def identity(self, side: Side, mode: EmbeddingMode) -> dict[str, Any]:
        """See `Encoder.identity`; the side makes no difference."""
        check_mode(self.name, mode, self.modes)
        found = self.embedder.identity() | {"mode": mode.value, "blank_image": self.blank_image}
        if mode is EmbeddingMode.GENERATIVE:
            found |= {"max_new_tokens": self.max_new_tokens, "decoding": "greedy", "stop_ids": sorted(self.stop_ids)}
        return found

    def encode(
        self,
        items: Sequence[Item],
        side: Side,
        mode: EmbeddingMode,
        progress: Callable[[int], None] | None = None,
    ) -> EncodedItems:
        """See `Encoder.encode`.

        A CoT whose `<gen_emb>` is missing, or came with the last token of the cap and was never consumed, is embedded
        by the last generated step, as in UME-R1's evaluation. `malformed_N` flags it, and a warning counts them.
        """
        check_mode(self.name, mode, self.modes)
        thinks = mode is EmbeddingMode.GENERATIVE
        processor = self.embedder.processor
        shown = [self._with_blank(item) for item in items]
        # Causal attention: nothing behind `<disc_emb>` reaches it, so a prompt that only needs it ends there.
        ids_N = [processor.tokenise(processor.render(item)) for item in shown]
        if not thinks:
            ids_N = [ids[: _last(ids, self.disc_id) + 1] for ids in ids_N]
        visual_N = [visual_tokens(item, processor.patches, processor.max_frames) for item in shown]
        encoded = encode_in_batches(
            shown,
            [len(ids) + visual for ids, visual in zip(ids_N, visual_N, strict=True)],
            lambda rows: processor([shown[row] for row in rows], [ids_N[row] for row in rows]),
            lambda rows, inputs: self._generative(inputs) if thinks else self._discriminative(inputs),
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            progress=progress,
        )
        if encoded.malformed_N is not None and encoded.malformed_N.any():
            log.warning(
                "%d of %d CoTs never reached %s within %d tokens: their embeddings are those of the last step",
                int(encoded.malformed_N.sum()),
                len(items),
                GEN_EMB,
                self.max_new_tokens,
            )
        return encoded

    def _with_blank(self, item: Item) -> Item:
        if item.media or not self.blank_image:
            return item
        side = self.embedder.processor.patches.factor
        return replace(item, media=(Media("image", np.full((side, side, 3), 255, np.uint8)),))

    @torch.no_grad()
    def _discriminative(self, inputs: ModelInputs) -> EncodedItems:
        """The prompts end in `<disc_emb>`, and left padding puts every row's end in the last column."""
        inputs = inputs.to(self.embedder.device)
        output = self.embedder.hidden(inputs, self.embedder.positions(inputs), use_cache=False)
        return EncodedItems(_unit(output.last_hidden_state[:, -1]))

    @torch.no_grad()
    def _generative(self, inputs: ModelInputs) -> EncodedItems:
        inputs = inputs.to(self.embedder.device)
        positions_3BL = self.embedder.positions(inputs)
        cache = DynamicCache()
        prefill = self.embedder.hidden(inputs, positions_3BL, use_cache=True, past_key_values=cache)
        ids_BL = inputs.prompts.input_ids_BL
        columns = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        disc_B = torch.where(ids_BL == self.disc_id, columns, -1).amax(-1)
        rows = torch.arange(len(ids_BL), device=ids_BL.device)
        generated = self._decode(inputs, positions_3BL.amax((0, 2)) + 1, prefill.last_hidden_state[:, -1], cache)
        consumed = generated.consumed_B.cpu().numpy()
        tokenizer = self.embedder.processor.tokenizer
        return EncodedItems(
            embedding_ND=_unit(generated.embedding_BD),
            discriminative_ND=_unit(prefill.last_hidden_state[rows, disc_B]),
            think_N=np.ones(len(rows), dtype=bool),
            tokens_N=np.array([len(tokens) for tokens in generated.tokens], dtype=np.int64),
            malformed_N=~consumed,
            cots=tokenizer.batch_decode(generated.tokens, skip_special_tokens=False),
        )

    def _decode(self, inputs: ModelInputs, position_B: Tensor, hidden_BD: Tensor, cache: DynamicCache) -> Generated:
        """Greedy decoding from a prefilled cache, until every row has ended its turn or met the cap.

        Args:
            inputs: the prompts.
            position_B: where the next token of each row stands.
            hidden_BD: hidden state of each prompt's last token.
            cache: of the prompts; it grows.
        """
        model, device = self.embedder.model, hidden_BD.device
        embedding_BD, consumed_B = hidden_BD.clone(), torch.zeros(len(hidden_BD), dtype=torch.bool, device=device)
        tokens: list[list[int]] = [[] for _ in hidden_BD]
        stops = torch.tensor(sorted(self.stop_ids), device=device)
        rows_A, hidden_AD, position_A = torch.arange(len(hidden_BD), device=device), hidden_BD, position_B
        mask_AS = inputs.prompts.attention_mask_BL
        for step in range(self.max_new_tokens):
            ids_A = model.lm_head(hidden_AD).argmax(-1)
            for row, token in zip(rows_A.tolist(), ids_A.tolist(), strict=True):
                tokens[row].append(token)
            running = (~torch.isin(ids_A, stops)).nonzero()[:, 0]
            if not len(running) or step + 1 == self.max_new_tokens:
                break
            if len(running) < len(ids_A):
                cache.batch_select_indices(running)
                rows_A, ids_A, mask_AS, position_A = (x[running] for x in (rows_A, ids_A, mask_AS, position_A))
            mask_AS = F.pad(mask_AS, (0, 1), value=1)
            hidden_AD = model.model.language_model(
                inputs_embeds=model.get_input_embeddings()(ids_A[:, None]),
                attention_mask=mask_AS,
                position_ids=(position_A + step)[None, :, None].expand(3, -1, -1),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            marked_A = ids_A == self.gen_id
            taken_A = marked_A | ~consumed_B[rows_A]
            embedding_BD[rows_A[taken_A]] = hidden_AD[taken_A]
            consumed_B[rows_A[marked_A]] = True
        return Generated(embedding_BD, consumed_B, tokens)


def _unit(hidden_BD: Tensor) -> np.ndarray:
    return F.normalize(hidden_BD.float(), dim=-1).cpu().numpy()


def _last(ids: Sequence[int], token: int) -> int:
    return len(ids) - 1 - list(reversed(ids)).index(token)


def _stop_ids(embedder: EmbedderModel) -> set[int]:
    """Tokens that end a turn: those of the checkpoint's generation settings and of its tokenizer."""
    stored = getattr(embedder.model.generation_config, "eos_token_id", None)
    listed = stored if isinstance(stored, list) else [stored]
    return {int(token) for token in (*listed, embedder.processor.tokenizer.eos_token_id) if token is not None}
