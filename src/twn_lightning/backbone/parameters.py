"""How many parameters the method adds, for the backbone at hand and for Qwen3-VL from its shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twn_lightning.backbone.adapters import lora_settings
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.settings import AdapterSettings


@dataclass(frozen=True)
class LanguageModelShape:
    """The sizes of a Qwen3-VL language model that its parameter count follows from."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied_embeddings: bool

    @classmethod
    def from_config(cls, config: Any) -> LanguageModelShape:
        """The shape of a transformers `Qwen3VLConfig`."""
        text = config.text_config
        return cls(
            text.hidden_size,
            text.num_hidden_layers,
            text.num_attention_heads,
            text.num_key_value_heads,
            text.head_dim,
            text.intermediate_size,
            text.vocab_size,
            bool(config.tie_word_embeddings),
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the seven adapted linears of one layer."""
        queries, keys = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        up = (self.hidden, self.intermediate)
        return [*attention, up, up, (self.intermediate, self.hidden)]

    @property
    def parameters(self) -> int:
        """Parameters of the language model: layers, norms, token embeddings, and the head where it is not tied."""
        layer = sum(i * o for i, o in self.linears) + 2 * self.hidden + 2 * self.head_dim
        embeddings = self.vocabulary * self.hidden * (1 if self.tied_embeddings else 2)
        return self.layers * layer + self.hidden + embeddings

    @property
    def layer_parameters(self) -> int:
        """Parameters of the adapted linears of all layers: what every token is multiplied with."""
        return self.layers * sum(i * o for i, o in self.linears)

    def lora_parameters(self, rank: int) -> int:
        """Parameters of one LoRA of this rank on every adapted linear."""
        return rank * self.layers * sum(i + o for i, o in self.linears)


@dataclass(frozen=True)
class VisionShape:
    """The sizes of a Qwen3-VL vision tower that its parameter count follows from."""

    depth: int
    hidden: int
    intermediate: int
    patch_values: int
    """Channels times frames times height times width of a patch."""
    merged: int
    """Patches that one visual token stands for."""
    positions: int
    deepstack: int
    """Mergers besides the last one."""
    out_hidden: int

    @classmethod
    def from_config(cls, config: Any) -> VisionShape:
        """The shape of a transformers `Qwen3VLConfig`."""
        vision = config.vision_config
        return cls(
            vision.depth,
            vision.hidden_size,
            vision.intermediate_size,
            vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            vision.spatial_merge_size**2,
            vision.num_position_embeddings,
            len(vision.deepstack_visual_indexes),
            vision.out_hidden_size,
        )

    @property
    def parameters(self) -> int:
        """Parameters of the tower: patch and position embeddings, blocks, mergers."""
        wide = self.merged * self.hidden
        block = 4 * self.hidden**2 + 2 * self.hidden * self.intermediate + 9 * self.hidden + self.intermediate
        merger = wide**2 + wide + wide * self.out_hidden + self.out_hidden
        norms = 2 * self.hidden + self.deepstack * 2 * wide
        embeddings = (self.patch_values + 1 + self.positions) * self.hidden
        return embeddings + self.depth * block + (1 + self.deepstack) * merger + norms


SHAPES = {
    "qwen3vl_2b": LanguageModelShape(2048, 28, 16, 8, 128, 6144, 151_936, True),
    "qwen3vl_4b": LanguageModelShape(2560, 36, 32, 8, 128, 9728, 151_936, True),
    "qwen3vl_8b": LanguageModelShape(4096, 36, 32, 8, 128, 12_288, 151_936, False),
}


VISION_SHAPES = {
    "qwen3vl_2b": VisionShape(24, 1024, 4096, 1536, 4, 2304, 3, 2048),
    "qwen3vl_4b": VisionShape(24, 1024, 4096, 1536, 4, 2304, 3, 2560),
    "qwen3vl_8b": VisionShape(27, 1152, 4304, 1536, 4, 2304, 3, 4096),
}


def added_parameters(shape: LanguageModelShape, adapters: AdapterSettings) -> dict[str, int]:
    """Parameters per trained part, and of the language model they are added to.

    Returns:
        adapter names, `queries`, `added` (their sum) and `language_model`.
    """
    counts = {name: shape.lora_parameters(lora.r) for name, lora in lora_settings(adapters).items()}
    counts["queries"] = adapters.num_queries * shape.hidden
    counts["added"] = sum(counts.values())
    counts["language_model"] = shape.parameters
    return counts


def added_parameter_ratio_for(name: str, adapters: AdapterSettings) -> float:
    """Share of added parameters for a Qwen3-VL size, from shapes alone: nothing is loaded.

    Args:
        name: `qwen3vl_2b`, `qwen3vl_4b` or `qwen3vl_8b`.
        adapters: ranks and number of queries.

    Raises:
        ConfigError: a size whose shapes are not known.
    """
    if name not in SHAPES:
        raise ConfigError(unknown_name("backbone size", name, SHAPES))
    counts = added_parameters(SHAPES[name], adapters)
    return counts["added"] / counts["language_model"]
