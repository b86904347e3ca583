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

    def lora_parameters(self, rank: int) -> int:
        """Parameters of one LoRA of this rank on every adapted linear."""
        return rank * self.layers * sum(i + o for i, o in self.linears)


SHAPES = {
    "qwen3vl_2b": LanguageModelShape(2048, 28, 16, 8, 128, 6144, 151_936, True),
    "qwen3vl_4b": LanguageModelShape(2560, 36, 32, 8, 128, 9728, 151_936, True),
    "qwen3vl_8b": LanguageModelShape(4096, 36, 32, 8, 128, 12_288, 151_936, False),
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
