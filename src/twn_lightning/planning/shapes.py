"""What a plan must know of a model: the sizes of its parts, from its own configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twn_lightning.backbone.packaged import PACKAGED
from twn_lightning.backbone.parameters import SHAPES, VISION_SHAPES, LanguageModelShape, VisionShape
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.settings import ModelSettings


@dataclass(frozen=True)
class ModelShape:
    """Language model and vision tower."""

    language: LanguageModelShape
    vision: VisionShape

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """The shape of a transformers `Qwen3VLConfig`."""
        return cls(LanguageModelShape.from_config(config), VisionShape.from_config(config))

    @property
    def parameters(self) -> int:
        return self.language.parameters + self.vision.parameters

    def cache_bytes(self, value_bytes: float) -> float:
        """Keys and values of one token over all layers."""
        shape = self.language
        return 2 * shape.layers * shape.key_value_heads * shape.head_dim * value_bytes


def model_shape(model: ModelSettings) -> ModelShape:
    """The shape of a configured backbone.

    Args:
        model: a Qwen3-VL size, a packaged backbone, `tiny`, or a folder with a config.json.

    Raises:
        ConfigError: a name without known shapes.
    """
    if model.path is None and model.name in SHAPES:
        return ModelShape(SHAPES[model.name], VISION_SHAPES[model.name])
    if model.path is None and model.name == "tiny":
        from twn_lightning.backbone.tiny import tiny_config, tiny_tokenizer

        return ModelShape.from_config(tiny_config(tiny_tokenizer()))
    if model.path is None and model.name not in PACKAGED:
        raise ConfigError(unknown_name("backbone", model.name, [*SHAPES, *PACKAGED, "tiny"]))
    folder = PACKAGED[model.name] if model.path is None else Path(model.path).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"a plan needs the model's sizes: {folder} has no config.json")
    from transformers import Qwen3VLConfig

    return ModelShape.from_config(Qwen3VLConfig.from_pretrained(folder))
