"""Rollouts sampled by vLLM, an optional engine (extra `vllm`).

vLLM loads the frozen backbone once. Each version of the reasoning adapter goes to it as a PEFT folder with a name and
an id of its own, beside the backbone's weights: nothing is merged, and no cache of an older version is read. The engine
has no state that pass E could read, so the stage reads the completions again. docs/gpu.md says what has been run.

Shape letters: B completions (prompt-major), T completion tokens, L padded prompt length.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from twn_lightning.backbone.adapters import REASONING
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.layout import save_adapter
from twn_lightning.backbone.loading import weights_origin
from twn_lightning.backbone.pixels import load_resized
from twn_lightning.backbone.processor import ANSWER_CLOSE, IMAGE_PAD, VIDEO_PAD
from twn_lightning.backbone.stop_text import StopText
from twn_lightning.errors import ConfigError, RolloutError
from twn_lightning.settings import RLSettings, Settings
from twn_lightning.stages.rollout_engine import Completions
from twn_lightning.strategy import rank, world_size
from twn_lightning.types import CotBatch, Item, PromptBatch

MEMORY_SHARE = 0.4
"""Of the GPU's memory: vLLM's weights, caches and graphs. The rest is for training on the same device."""
LONGEST_PROMPT = 16_384
"""Tokens that vLLM plans for, images included; its caches must hold one such prompt with its completion."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks that vLLM can be told to expect."""


class VLLMEngine:
    """A vLLM instance in this process, fed with adapters.

    Args:
        backbone: whose reasoning adapter is sampled from.
        settings: model, stage and cap of the run.

    Raises:
        ConfigError: vLLM is not installed, or the backbone has no weights on disk for it to load.
    """

    def __init__(self, backbone: DualLoRABackbone, settings: Settings) -> None:
        assert isinstance(settings.stage, RLSettings)
        try:
            from vllm import LLM
        except ImportError as error:
            raise ConfigError(
                f"stage.rollout_engine=vllm cannot import vLLM ({error}): pip install -e '.[vllm]', or set "
                "stage.rollout_engine=builtin"
            ) from error
        self.backbone, self.processor = backbone, backbone.processor
        self.completions = settings.stage.completions_per_prompt
        self.max_new_tokens = settings.data.max_new_tokens
        self._next_match_MV = StopText.of(self.processor.tokenizer, backbone.shape.vocabulary).next_MV.numpy()
        self._adapters = tempfile.TemporaryDirectory(prefix="twn-rollouts-")
        self._adapter: Any = None
        self.llm = LLM(**_llm_arguments(backbone, settings))

    def take_weights(self, version: int) -> None:
        """See `RolloutEngine.take_weights`. The folder of the version before is deleted: vLLM has read it."""
        from vllm.lora.request import LoRARequest

        folder = Path(self._adapters.name, f"v{version}")
        save_adapter(self.backbone, REASONING, folder)
        if self._adapter is not None and self._adapter.lora_path != str(folder):
            shutil.rmtree(self._adapter.lora_path)
        # Its ids start at 1; a cached prefix belongs to an adapter's name.
        self._adapter = LoRARequest(f"{REASONING}-v{version}", version + 1, str(folder))

    def generate(self, prompts: PromptBatch, items: Sequence[Item], generator: torch.Generator) -> Completions:
        """See `RolloutEngine.generate`.

        Raises:
            RolloutError: a prompt with a video or one that is too long, or vLLM read other tokens than the backbone.
        """
        assert self._adapter is not None, "take_weights comes first"
        rows_BL = zip(prompts.input_ids_BL, prompts.attention_mask_BL.bool(), strict=True)
        expanded = [ids_L[mask_L].tolist() for ids_L, mask_L in rows_BL]
        requests = [self._request(item, len(ids)) for item, ids in zip(items, expanded, strict=True)]
        # Row r of this rank is row r * ranks + rank of the whole batch: no two prompts share a seed.
        numbers = range(rank(), len(items) * world_size(), world_size())
        sampling = [self._sampling(generator.initial_seed() + number * self.completions) for number in numbers]
        outputs = self.llm.generate(requests, sampling, lora_request=self._adapter, use_tqdm=False)
        for item, ids, output in zip(items, expanded, outputs, strict=True):
            _check_prompt(item, ids, output.prompt_token_ids)
        rows = [
            self.completion_of(completion)
            for output in outputs
            for completion in sorted(output.outputs, key=lambda found: found.index)
        ]
        ids_BT = pad_sequence([ids for ids, _, _ in rows], True, self.processor.pad_id)
        log_probs_BT = pad_sequence([log_probs for _, log_probs, _ in rows], True)
        lengths_B = torch.tensor([len(ids) for ids, _, _ in rows])
        mask_BT = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None]).long()
        cots = CotBatch(ids_BT, mask_BT, torch.tensor([closed for _, _, closed in rows]))
        device = self.backbone.device
        return Completions(cots.to(device), log_probs_BT.to(device), None)

    def _request(self, item: Item, length: int) -> dict[str, Any]:
        """A prompt with one placeholder per image, which vLLM expands, and the images at their final size."""
        if any(media.kind == "video" for media in item.media):
            raise RolloutError(
                f"item '{item.key}' has a video: vLLM's releases differ in how they sample, resize and write out "
                "videos, so stage.rollout_engine=vllm takes text and images only. Set stage.rollout_engine=builtin"
            )
        if length > LONGEST_PROMPT:
            raise RolloutError(
                f"the prompt of item '{item.key}' is {length} tokens long, and vLLM was told to expect at most "
                f"{LONGEST_PROMPT}: lower model.max_pixels, or set stage.rollout_engine=builtin"
            )
        ids = self.processor.tokenizer(self.processor.render(item), add_special_tokens=False)["input_ids"]
        images = [Image.fromarray(load_resized(item.key, m, self.processor.patches)) for m in item.media]
        return {"prompt_token_ids": ids, **({"multi_modal_data": {"image": images}} if images else {})}

    def _sampling(self, seed: int) -> Any:
        """vLLM's parameters for one prompt; completion i is seeded with `seed + i`."""
        from vllm import SamplingParams

        return SamplingParams(
            n=self.completions,
            seed=seed % 2**62,
            temperature=1.0,
            max_tokens=self.max_new_tokens,
            logprobs=0,  # of the sampled token alone
            bad_words=[IMAGE_PAD, VIDEO_PAD],
            stop=[ANSWER_CLOSE],
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            ignore_eos=True,
            stop_token_ids=[self.processor.eot_id],
        )

    def completion_of(self, found: Any) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """Ids, their log-probabilities, and whether it is closed, of one completion as vLLM returns it."""
        ids, closed = self._cut(list(found.token_ids))
        log_probs = [entry[token].logprob for token, entry in zip(ids, found.logprobs, strict=False)]
        return torch.tensor(ids, dtype=torch.long), torch.tensor(log_probs, dtype=torch.float32), closed

    def _cut(self, ids: list[int]) -> tuple[list[int], bool]:
        """The ids up to where our own decoder ends a CoT, and whether it does."""
        matched = 0
        for position, token in enumerate(ids):
            if token == self.processor.eot_id:
                return ids[:position], True
            matched = self._next_match_MV[matched, token]
            if matched == StopText.CLOSED:
                return ids[: position + 1], True
        return ids, False


def _llm_arguments(backbone: DualLoRABackbone, settings: Settings) -> dict[str, Any]:
    """How vLLM loads the frozen backbone. Its log-probabilities come from the logits, before any ban."""
    origin = weights_origin(settings.model)
    revision = None if Path(origin).is_dir() else settings.model.revision
    config: Any = backbone.model.config
    patches = backbone.processor.patches
    return {
        "model": origin,
        "revision": revision,
        "tokenizer_revision": revision,
        "dtype": settings.model.dtype,
        "seed": settings.seed,
        "max_model_len": min(LONGEST_PROMPT + settings.data.max_new_tokens, config.text_config.max_position_embeddings),
        # A prompt read in pieces rewinds its generator, which generators on a CPU cannot do.
        "enable_chunked_prefill": backbone.device.type != "cpu",
        "gpu_memory_utilization": MEMORY_SHARE,
        "generation_config": "vllm",  # not the checkpoint's own sampling defaults
        "logprobs_mode": "raw_logprobs",
        "limit_mm_per_prompt": {"video": 0},
        "mm_processor_kwargs": {"size": {"shortest_edge": patches.min_pixels, "longest_edge": patches.max_pixels}},
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": next(r for r in LORA_RANKS if r >= settings.adapters.reasoning.r),
    }


def _check_prompt(item: Item, expected: list[int], found: Sequence[int]) -> None:
    """vLLM expands image placeholders by itself; the cache would belong to another prompt if it did so differently."""
    if list(found) != expected:
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(expected, found, strict=False)))
        raise RolloutError(
            f"vLLM read another prompt for item '{item.key}' than the backbone: {len(found)} tokens instead of "
            f"{len(expected)}, of which the first {same} agree. Its tokenizer or image processor is not the "
            "backbone's: check model.path and model.revision, or set stage.rollout_engine=builtin"
        )
