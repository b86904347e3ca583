"""What one device computes: operations and layer calls of reading, training, vision and decoding.

One multiplication with one addition counts as two operations. Norms, activations and softmaxes are not counted: the
measured rates include their time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from twn_lightning.planning.shapes import ModelShape

Kind = Literal["read", "train", "vision", "decode"]


@dataclass(frozen=True)
class Load:
    """Work of one kind."""

    operations: float = 0.0
    layers: float = 0.0
    """Layers called, each with its fixed cost."""
    bytes: float = 0.0
    """Weights and caches that decoding reads."""

    def __add__(self, other: Load) -> Load:
        return Load(
            self.operations + other.operations,
            self.layers + other.layers,
            self.bytes + other.bytes,
        )

    def times(self, count: float) -> Load:
        return Load(count * self.operations, count * self.layers, count * self.bytes)


Work = Mapping[Kind, Load]


def total(*works: Work) -> Work:
    """The sum of several works, kind by kind."""
    summed: dict[Kind, Load] = {}
    for work in works:
        for kind, load in work.items():
            summed[kind] = summed.get(kind, Load()) + load
    return summed


def times(count: float, work: Work) -> Work:
    """The same work several times."""
    return {kind: load.times(count) for kind, load in work.items()}


@dataclass(frozen=True)
class Costs:
    """Counts the work of passes over one model.

    Args:
        shape: of the model.
        rank: of the LoRA that a pass runs under, on every linear of the language model.
        weight_bytes: of one frozen weight as it is read from memory.
        value_bytes: of one cached key or value.
    """

    shape: ModelShape
    rank: int
    weight_bytes: float
    value_bytes: float

    @property
    def lora(self) -> int:
        return self.shape.language.lora_parameters(self.rank)

    def _forward(self, tokens: float, columns: float, logits: float) -> float:
        """Operations of a forward pass whose tokens attend to so many columns each, masked ones included."""
        language = self.shape.language
        attention = 4 * language.layers * language.heads * language.head_dim * columns
        head = 2 * language.vocabulary * language.hidden * logits
        return tokens * (2 * (language.layer_parameters + self.lora) + attention) + head

    def read(self, tokens: float, columns: float, passes: float, logits: float = 0.0) -> Work:
        """Forward passes without gradient.

        Args:
            tokens: that pass through the layers, over all passes.
            columns: keys that each token attends to.
            passes: calls of the language model.
            logits: tokens that also pass through the head.
        """
        return {"read": Load(self._forward(tokens, columns, logits), passes * self.shape.language.layers)}

    def train(self, tokens: float, columns: float, passes: float, logits: float = 0.0) -> Work:
        """Forward and backward passes; arguments as for `read`. Frozen weights have no gradient, LoRA weights do."""
        operations = 2 * self._forward(tokens, columns, logits) + 2 * tokens * self.lora
        return {"train": Load(operations, passes * self.shape.language.layers)}

    def see(self, visual_tokens: float, passes: float, image_tokens: float) -> Work:
        """The frozen vision tower.

        Args:
            visual_tokens: over all passes, as the language model gets them.
            passes: calls of the tower.
            image_tokens: of one image, whose patches attend to each other.
        """
        vision = self.shape.vision
        patches = visual_tokens * vision.merged
        attention = 4 * vision.depth * vision.hidden * image_tokens * vision.merged
        weights = vision.parameters - vision.positions * vision.hidden
        return {"vision": Load(patches * (2 * weights + attention), passes * vision.depth if visual_tokens else 0.0)}

    def decode(self, rows: float, prompt: float, tokens: float, steps: float, batches: float = 1.0) -> Work:
        """Token by token behind caches that are there already; finished rows are dropped.

        Args:
            rows: over all batches.
            prompt: columns of a row's cache at the start.
            tokens: a row writes on average.
            steps: of one batch, until its longest row has ended.
            batches: decoded one after another.
        """
        language = self.shape.language
        written = rows * tokens
        columns = prompt + tokens / 2
        weights = (language.layer_parameters + self.lora + language.vocabulary * language.hidden) * self.weight_bytes
        caches = written * columns * self.shape.cache_bytes(self.value_bytes)
        return {
            "decode": Load(
                self._forward(written, columns, logits=written),
                batches * steps * language.layers,
                batches * steps * weights + caches,
            )
        }
