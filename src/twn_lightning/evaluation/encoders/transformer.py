"""Qwen-VL checkpoints of other embedders: load, merge their LoRA, run. Safetensors only, never remote code.

Shape letters: B rows, L padded prompt length, D hidden size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from twn_lightning.backbone.adapters import check_tensors
from twn_lightning.backbone.loading import HUB_IDS, choose_attention
from twn_lightning.backbone.pixels import PatchSettings
from twn_lightning.backbone.vision import pack_vision_attention, project_patches_linearly
from twn_lightning.errors import AdapterError, ConfigError, unknown_name
from twn_lightning.evaluation.encoders.digests import (
    adapter_digest,
    processor_settings,
    tokenizer_digest,
    weights_digest,
)
from twn_lightning.evaluation.encoders.preprocessing import ModelInputs, StyledProcessor
from twn_lightning.evaluation.encoders.styles import PromptStyle
from twn_lightning.settings import ModelSettings

ARCHITECTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
HEAD = "lm_head.weight"
RENAMED = (
    ("base_model.model.model.layers.", "base_model.model.model.language_model.layers."),
    ("base_model.model.visual.", "base_model.model.model.visual."),
)
"""Adapters saved before transformers 4.52 call the same linears by other names."""


class EmbedderModel:
    """A frozen Qwen-VL model with the processor of one prompt style.

    Args:
        model: a transformers Qwen2-VL, Qwen2.5-VL or Qwen3-VL for conditional generation.
        processor: renders items for it.
        weights: digests that stand for the weights in `identity`; by default they are taken of the model as it is.
    """

    def __init__(self, model: Any, processor: StyledProcessor, weights: dict[str, Any] | None = None) -> None:
        self.model = model.requires_grad_(False).eval()
        self.processor = processor
        self.weights = weights or {"weights": weights_digest(model), "adapter": None}

    @property
    def dimension(self) -> int:
        return int(self.model.config.text_config.hidden_size)

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def identity(self) -> dict[str, Any]:
        """What of the model, its weights and its preprocessing decides an embedding."""
        config, style = self.model.config, self.processor.style
        return {
            "encoder": style.name,
            "prompt_version": style.version,
            **self.weights,
            "tokenizer": tokenizer_digest(self.processor.tokenizer),
            "processor": processor_settings(self.processor.patches, self.processor.max_frames),
            "dtype": str(self.model.get_input_embeddings().weight.dtype).removeprefix("torch."),
            "attention": [config.text_config._attn_implementation, config.vision_config._attn_implementation],
        }

    def positions(self, inputs: ModelInputs) -> Tensor:
        """Rotary positions of a left-padded batch (3, B, L), in the way of the style."""
        prompts = inputs.prompts
        if self.processor.style.positions == "text":
            through_BL = prompts.attention_mask_BL.cumsum(-1)
            return (through_BL - 1).clamp(min=0).expand(3, -1, -1)
        spacing = {} if inputs.seconds_per_grid is None else {"second_per_grid_ts": inputs.seconds_per_grid}
        positions, _ = self.model.model.get_rope_index(
            prompts.input_ids_BL,
            mm_token_type_ids=prompts.mm_token_type_ids_BL,
            image_grid_thw=prompts.image_grid_thw,
            video_grid_thw=prompts.video_grid_thw,
            attention_mask=prompts.attention_mask_BL,
            **(spacing if self.processor.architecture == "qwen2_5_vl" else {}),
        )
        return positions

    def hidden(self, inputs: ModelInputs, positions_3BL: Tensor, **options: Any) -> Any:
        """The transformer's output on a batch; `last_hidden_state` (B, L, D) is behind the final norm."""
        prompts = inputs.prompts
        return self.model.model(
            input_ids=prompts.input_ids_BL,
            attention_mask=prompts.attention_mask_BL,
            position_ids=positions_3BL,
            mm_token_type_ids=prompts.mm_token_type_ids_BL,
            pixel_values=prompts.pixel_values,
            image_grid_thw=prompts.image_grid_thw,
            pixel_values_videos=prompts.pixel_values_videos,
            video_grid_thw=prompts.video_grid_thw,
            **options,
        )


def load_embedder(
    settings: ModelSettings, style: PromptStyle, adapters_path: str | None = None, device: str = "cpu"
) -> EmbedderModel:
    """Load a checkpoint, merge a LoRA into it, and set it up in a style.

    Args:
        settings: `path` is a local folder, else `name` a hub id; revision, dtype, attention, pixel budget, max_frames.
        style: prompt and media conventions.
        adapters_path: a PEFT folder; None where the checkpoint is whole.
        device: where to put it.

    Raises:
        ConfigError: weights that cannot be had, another architecture, incomplete weights.
        AdapterError: a LoRA that does not fit.
    """
    origin = settings.path or HUB_IDS.get(settings.name, settings.name)
    revision = None if Path(origin).is_dir() else settings.revision
    if settings.quantization != "none":
        raise ConfigError(
            f"model.quantization={settings.quantization}: other embedders run unquantised; set it to none"
        )
    try:
        architecture = AutoConfig.from_pretrained(origin, revision=revision, trust_remote_code=False).model_type
        if architecture not in ARCHITECTURES:
            raise ConfigError(f"{origin}: {unknown_name('architecture', architecture, ARCHITECTURES)}")
        model = _load_weights(origin, revision, settings, torch.device(device), needs_head=style.generates)
        tokenizer = AutoTokenizer.from_pretrained(origin, revision=revision, trust_remote_code=False)
        patches = PatchSettings.from_folder(
            origin, revision, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{origin} (revision {revision or 'default'}) cannot be loaded: {str(error).strip().splitlines()[0]}. "
            "Set model.path to a folder in Hugging Face layout, or model.name to a hub id; weights must be safetensors"
        ) from error
    # Before the merge, whose rounding differs between machines.
    weights: dict[str, Any] = {"weights": weights_digest(model), "adapter": None}
    if adapters_path:
        model, weights["adapter"] = merge_adapter(model, adapters_path)
    processor = StyledProcessor(tokenizer, patches, style, architecture, settings.max_frames)
    return EmbedderModel(model.to(device), processor, weights)


def _load_weights(
    origin: str, revision: str | None, settings: ModelSettings, device: torch.device, *, needs_head: bool
) -> Any:
    """The model, whole; only an embedder that writes nothing may be saved without its language-model head."""
    attention = choose_attention(settings.attention, device)
    model, report = AutoModelForImageTextToText.from_pretrained(
        origin,
        revision=revision,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=getattr(torch, settings.dtype),
        attn_implementation={"": "sdpa", **attention},
        output_loading_info=True,
    )
    missing = sorted(set(report["missing_keys"]) - (set() if needs_head else {HEAD}))
    if missing:
        raise ConfigError(
            f"{origin}: {len(missing)} weights are not in the checkpoint and would be random: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}. It is incomplete, or its names are unknown to this transformers"
        )
    if attention["vision_config"] == "sdpa" and settings.attention == "auto":
        pack_vision_attention(model.model.visual)
    project_patches_linearly(model.model.visual)
    return model


def merge_adapter(model: Any, folder: str | Path) -> tuple[Any, str]:
    """Add a PEFT LoRA into the weights, strictly: every tensor of the file is used, and none is missing.

    Returns:
        The model, merged, and the adapter's digest.

    Raises:
        AdapterError: no such adapter, no safetensors, or one made for another model; names the tensors.
    """
    folder = Path(folder)
    needed = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if needed:
        raise AdapterError(f"{folder} is not a PEFT adapter in safetensors: {' and '.join(needed)} missing")
    try:
        wrapped = get_peft_model(model, PeftConfig.from_pretrained(str(folder)))
        found = load_file(folder / "adapter_model.safetensors")
    except (ValueError, SafetensorError) as error:
        raise AdapterError(f"{folder} does not fit this model: {str(error).splitlines()[0]}") from error
    own = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    renamed = {key if key in own else _renamed(key): tensor for key, tensor in found.items()}
    check_tensors(str(folder), renamed, {key: tensor.shape for key, tensor in own.items()})
    set_peft_model_state_dict(wrapped, renamed)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return wrapped.merge_and_unload(), adapter_digest(renamed, config)


def _renamed(key: str) -> str:
    for old, new in RENAMED:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
