"""Backbones by name: the packaged `nano` and `micro`, the random `tiny`, Qwen3-VL from the hub or a local folder."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3VLForConditionalGeneration

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.layout import read_config
from twn_lightning.backbone.packaged import PACKAGED, packaged_adapters, packaged_backbone
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.backbone.tiny import build_tiny
from twn_lightning.backbone.vision import pack_vision_attention, project_patches_linearly
from twn_lightning.errors import AdapterError, ConfigError, unknown_name
from twn_lightning.settings import AdapterSettings, InterfaceSettings, ModelSettings
from twn_lightning.validation import section_from_dict

log = logging.getLogger(__name__)

HUB_IDS = {
    "qwen3vl_2b": "Qwen/Qwen3-VL-2B-Instruct",
    "qwen3vl_4b": "Qwen/Qwen3-VL-4B-Instruct",
    "qwen3vl_8b": "Qwen/Qwen3-VL-8B-Instruct",
}


def load_backbone(
    model: ModelSettings,
    adapters: AdapterSettings,
    interface: InterfaceSettings,
    device: torch.device | str = "cpu",
) -> DualLoRABackbone:
    """Load a frozen backbone and put adapters on it, freshly initialised or from `adapters.init_from`.

    Args:
        model: which backbone, from where, in which dtype.
        adapters: ranks, arrangement, prefix, queries; `init_from` names an adapter folder, or a packaged
            backbone for its own.
        interface: what pass E sees.
        device: where to put it.

    Raises:
        ConfigError: an unknown name, weights that cannot be had, CUDA or an extra that is missing.
        AdapterError: `init_from` does not fit.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("CUDA was asked for and this machine has none: set trainer.accelerator=cpu")
    attention = choose_attention(model.attention, device)
    if model.name == "tiny":
        transformer, processor = build_tiny(attention["text_config"], model.max_frames)
        transformer = transformer.to(getattr(torch, model.dtype))
        origin = "tiny"
    else:
        origin = weights_origin(model)
        transformer = _load_weights(model, origin, attention, device)
        processor = load_processor(model)
    if attention["vision_config"] == "sdpa" and model.attention == "auto":
        pack_vision_attention(transformer.model.visual)
    project_patches_linearly(transformer.model.visual)
    backbone = DualLoRABackbone(transformer, processor, adapters, interface, name=model.name)
    backbone.to(device)
    if adapters.init_from:
        backbone.load_adapters(adapters_folder(adapters.init_from))
    _report(backbone, origin, attention, device)
    return backbone


def adapters_folder(name: str | Path) -> Path:
    """A folder of adapters: of a packaged backbone by its name, else a path; a run folder means its `adapters` folder.

    Raises:
        ConfigError: a packaged backbone that comes without adapters.
    """
    if str(name) in PACKAGED:
        return packaged_adapters(str(name))
    path = Path(name).expanduser()
    inner = path / "adapters"
    return inner if inner.is_dir() and not (path / "queries.pt").exists() else path


def model_of(adapters: str | Path) -> ModelSettings:
    """The backbone that adapters were trained on, and how it was loaded, where their folder keeps that.

    Args:
        adapters: a folder of adapters. Of one without `twn_config.json`, PEFT's `base_model_name_or_path` counts.

    Raises:
        AdapterError: no folder of adapters, or one that does not say its backbone.
    """
    config = read_config(adapters)
    name = config["backbone"]["name"]
    if not name:
        raise AdapterError(f"{adapters} does not say which backbone its adapters are for: name it")
    name = {hub_id: known for known, hub_id in HUB_IDS.items()}.get(name, name)
    values = config.get("model", {"dtype": "bfloat16"} if name in HUB_IDS else {})
    try:
        return replace(section_from_dict(ModelSettings, values, "model"), name=name)
    except ConfigError as error:
        raise AdapterError(f"{adapters} says of its backbone what does not fit this package: {error}") from error


def choose_attention(wanted: str, device: torch.device) -> dict[str, str]:
    """Attention implementation per tower.

    The language model reads explicit 4D masks (pass E's disjoint query groups), which flash-attention cannot take, so
    it runs on sdpa; flash-attention serves the vision tower, whose packed images it is made for.

    Raises:
        ConfigError: flash-attention asked for where it cannot run.
    """
    usable = device.type == "cuda" and importlib.util.find_spec("flash_attn") is not None
    if wanted == "flash_attention_2" and not usable:
        raise ConfigError(
            f"model.attention=flash_attention_2 on {device.type} with flash-attn "
            f"{'installed' if importlib.util.find_spec('flash_attn') else 'not installed'}: it needs both CUDA and the "
            "package. Set model.attention=auto, or install the extra `flash`"
        )
    vision = "flash_attention_2" if usable and wanted in ("auto", "flash_attention_2") else "sdpa"
    if wanted == "eager":
        return {"text_config": "eager", "vision_config": "eager"}
    return {"text_config": "sdpa", "vision_config": vision}


def weights_origin(model: ModelSettings) -> str:
    """Where the weights come from: a given folder, a packaged one, or a hub id.

    Raises:
        ConfigError: no weights in the folder, or an unknown name; `tiny` has no weights on disk either.
    """
    if model.path:
        if not Path(model.path, "config.json").is_file():
            raise ConfigError(f"model.path={model.path}: no config.json there; give a folder in Hugging Face layout")
        return model.path
    if model.name in PACKAGED:
        return str(packaged_backbone(model.name))
    if model.name not in HUB_IDS:
        raise ConfigError(unknown_name("backbone", model.name, [*PACKAGED, "tiny", *HUB_IDS]))
    return HUB_IDS[model.name]


def _load_weights(model: ModelSettings, origin: str, attention: dict[str, str], device: torch.device) -> Any:
    options: dict[str, Any] = {"dtype": getattr(torch, model.dtype), "attn_implementation": {"": "sdpa", **attention}}
    if model.quantization == "nf4":
        options |= {"quantization_config": _nf4(device), "device_map": {"": device}}
    try:
        return Qwen3VLForConditionalGeneration.from_pretrained(
            origin, revision=None if Path(origin).is_dir() else model.revision, trust_remote_code=False, **options
        )
    except OSError as error:
        raise _unavailable(model, origin, error) from error


def load_processor(model: ModelSettings) -> PromptProcessor:
    """A backbone's processor alone: what it takes to render prompts, without weights.

    Raises:
        ConfigError: an unknown name, or a tokenizer that cannot be had.
    """
    if model.name == "tiny":
        return build_tiny(max_frames=model.max_frames)[1]
    origin = weights_origin(model)
    try:
        return PromptProcessor.from_folder(
            origin,
            None if Path(origin).is_dir() else model.revision,
            min_pixels=model.min_pixels,
            max_pixels=model.max_pixels,
            max_frames=model.max_frames,
        )
    except OSError as error:
        raise _unavailable(model, origin, error) from error


def _unavailable(model: ModelSettings, origin: str, error: OSError) -> ConfigError:
    first = str(error).strip().splitlines()[0]
    return ConfigError(
        f"backbone '{model.name}' cannot be loaded from {origin} (revision {model.revision or 'default'}): {first}. "
        f"Offline? Download it once with `hf download {origin}`, or set model.path to a folder that holds it; "
        "model.name=nano needs no network"
    )


def _nf4(device: torch.device) -> Any:
    """4-bit NormalFloat weights for the frozen linears of the language model."""
    if device.type != "cuda" or importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.quantization=nf4 needs CUDA and bitsandbytes; the device is {device.type} and bitsandbytes is "
            f"{'there' if importlib.util.find_spec('bitsandbytes') else 'missing'}. Set model.quantization=none"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["visual", "lm_head"],
    )


def _report(backbone: DualLoRABackbone, origin: str, attention: dict[str, str], device: torch.device) -> None:
    counts, towers = backbone.added_parameters(), backbone.adapters.modules_per_tower
    vision: Any = backbone.model.model.visual  # type: ignore[union-attr]
    log.info(
        "backbone %s from %s on %s: language attention %s, vision attention %s; LoRA on %d language and %d vision "
        "linears; %s parameters added, %.2f %% of the language model",
        backbone.name,
        origin,
        device,
        attention["text_config"],
        vision.config._attn_implementation,
        towers["language"],
        towers["vision"],
        f"{counts['added']:,}",
        100 * backbone.added_parameter_ratio(),
    )
