"""What one device holds in a stage, part by part.

A forward pass that will be trained through keeps, for every token and layer, the inputs that backward reads. The counts
below are those of the tensors that torch saves, counted on small models in float32 and bf16.
"""

from __future__ import annotations

from dataclasses import dataclass

from twn_lightning.backbone.adapters import EMBEDDING, REASONING, lora_settings
from twn_lightning.backbone.parameters import LanguageModelShape, added_parameters
from twn_lightning.planning.constants import GIB, Device, Items
from twn_lightning.planning.layout import Span, is_sharded, sides, value_bytes, weight_bytes, world_of
from twn_lightning.planning.shapes import ModelShape
from twn_lightning.settings import GateStageSettings, RLSettings, Settings, SFTSettings

ADAMW_BYTES = 12
"""Gradient and two moments of a trained parameter, float32."""
USABLE = 0.92
"""Share of a device's memory that a plan may fill."""


@dataclass(frozen=True)
class Activations:
    """Bytes that forward passes leave for their backward passes."""

    shape: LanguageModelShape
    rank: int
    value_bytes: int
    dropout_mask_bytes: int | None
    """Of one value's dropout mask; None: LoRA without dropout."""

    def per_layer(self, tokens: float, columns: float, past: float = 0.0) -> float:
        """Of one layer.

        Args:
            tokens: that pass through the layer, padding included.
            columns: of the attention mask, for each token.
            past: columns of other tokens' caches that are read, over all rows; each is copied for every head.
        """
        shape, size = self.shape, self.value_bytes
        queries, keys = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
        token = (
            16 * shape.hidden  # both norms: inputs in float32, outputs; the residual stream
            + (4 + 4 * size) * queries  # queries in float32 for their norm; queries, keys, values, output of all heads
            + 4 * keys  # keys in float32 for their norm
            + 4 * size * shape.intermediate  # gate, its activation, up, their product
            + 7 * size * self.rank
            + size * columns  # the mask
        )
        if self.dropout_mask_bytes is not None:  # a dropped copy of each linear's input instead of a shared one, a mask
            mask = self.dropout_mask_bytes
            token += (3 * size + 5 * mask) * shape.hidden + (size + mask) * queries + mask * shape.intermediate
        return tokens * token + past * 2 * queries * size

    def whole(self, tokens: float, columns: float, past: float = 0.0, checkpointing: bool = False) -> float:
        """Of all layers, and the gradients inside of one; with checkpointing only layers' inputs, and one layer."""
        shape, size = self.shape, self.value_bytes
        layer = self.per_layer(tokens, columns, past)
        gradients = tokens * (3 * shape.intermediate + 2 * shape.hidden) * size
        if checkpointing:
            return shape.layers * tokens * shape.hidden * size + layer + gradients
        return shape.layers * layer + gradients


@dataclass(frozen=True)
class Memory:
    """Bytes on one device by what they are for."""

    parts: dict[str, float]
    kept_share: float = 1.0
    """Of stage 1's caches; the others are read again."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    def fits(self, device: Device) -> bool:
        return self.total <= USABLE * device.memory_gib * GIB


def memory_parts(shape: ModelShape, settings: Settings, device: Device, items: Items) -> Memory:
    """The peak of one device in a step.

    Args:
        shape: of the backbone.
        settings: of the stage, with its strategy.
        device: for its runtime's share, and for how many of stage 1's caches stay.
        items: how long prompts and CoTs are.
    """
    stage, parts = settings.stage, _standing(shape, settings, device)
    if isinstance(stage, SFTSettings):
        return _sft(shape, settings, stage, device, items, parts)
    if isinstance(stage, RLSettings):
        moments = [moment(shape, settings, stage, device, items) for moment in (_rollout, _update)]
        return Memory(parts | max(moments, key=lambda moment: sum(moment.values())))
    return Memory(parts | _labels(shape, settings, stage, device, items))


def _standing(shape: ModelShape, settings: Settings, device: Device) -> dict[str, float]:
    """What lies in memory throughout."""
    shards = world_of(settings) if is_sharded(settings) else 1
    counts = added_parameters(shape.language, settings.adapters)
    trained, held = 0, counts["added"]
    if isinstance(settings.stage, SFTSettings):
        trained = counts["added"]
    elif isinstance(settings.stage, RLSettings):
        trained = counts["reasoning"]
        held += counts["reasoning"]  # the frozen reference
    return {
        "weights": shape.parameters * weight_bytes(settings) / shards,
        "adapters": held * 4 / shards,
        "gradients and AdamW": trained * ADAMW_BYTES / shards,
        "runtime": device.reserved_gib * GIB,
    }


def _gathered(shape: ModelShape, settings: Settings, whole: bool) -> float:
    """Weights held besides the device's share: all of them while decoding, else two layers and what is no layer."""
    if not is_sharded(settings):
        return 0.0
    language = shape.language
    layers = 2 * language.layer_parameters / language.layers
    rest = shape.parameters - language.layer_parameters
    return (shape.parameters if whole else layers + rest) * weight_bytes(settings)


def _activations(shape: ModelShape, settings: Settings, device: Device, adapter: str) -> Activations:
    adapters, size = settings.adapters, value_bytes(settings, device)
    loras = lora_settings(adapters)
    mask = size if device.dropout_mask_bytes is None else device.dropout_mask_bytes
    rank = loras[adapter].r if adapter in loras else max(lora.r for lora in loras.values())
    return Activations(shape.language, rank, size, mask if adapters.dropout else None)


def _logits(shape: ModelShape, tokens: float, size: int) -> float:
    """Logits, their log-softmax in float32, and the gradients of both."""
    return tokens * shape.language.vocabulary * (2 * size + 8)


def _sft(
    shape: ModelShape, settings: Settings, stage: SFTSettings, device: Device, items: Items, parts: dict[str, float]
) -> Memory:
    """A chunk's activations, and as many caches of the step as fit beside them."""
    size, rows = value_bytes(settings, device), stage.batch_size / world_of(settings)
    chunk, spans = min(stage.chunk_size, rows), sides(settings, items)
    thinking = max(spans, key=lambda span: span.cot)
    checkpointing = settings.interface.activation_checkpointing
    reasoner = _activations(shape, settings, device, REASONING)
    pass_r = reasoner.whole(chunk * thinking.columns, thinking.columns, checkpointing=checkpointing)
    logits = _logits(shape, chunk * (thinking.cot + 1), size)
    embedding = [_pass_e(shape, settings, device, span, chunk * span.rows_per_pair) for span in spans]
    pass_e = sum(embedding) if rows <= stage.chunk_size else max(embedding)
    parts = parts | {
        "gathered weights": _gathered(shape, settings, whole=False),
        "activations": max(pass_r + logits, pass_e),
    }
    token = shape.cache_bytes(size)
    one_chunk = chunk * max(span.columns for span in spans) * token
    if settings.interface.name == "reencode" or stage.schedule == "two_phase":
        return Memory(parts | {"caches": one_chunk})
    wanted = rows * sum(span.rows_per_pair * span.columns for span in spans) * token
    room = USABLE * device.memory_gib * GIB - sum(parts.values())
    kept = min(1.0, max(0.0, room / wanted))
    return Memory(parts | {"caches": max(kept * wanted, one_chunk)}, kept)


def _pass_e(shape: ModelShape, settings: Settings, device: Device, span: Span, rows: float) -> float:
    """Activations of embedding one side's rows in each of its modes."""
    queries = settings.adapters.num_queries * (2 if span.cot else 1)
    columns = span.columns + queries
    embedder = _activations(shape, settings, device, EMBEDDING)
    checkpointing = settings.interface.activation_checkpointing
    if settings.interface.name == "reencode":
        return embedder.whole(rows * columns, columns, checkpointing=checkpointing)
    return embedder.whole(rows * queries, columns, rows * columns, checkpointing)


def _rollout(
    shape: ModelShape, settings: Settings, stage: RLSettings, device: Device, items: Items
) -> dict[str, float]:
    """All completions of a step are decoded together, over whole weights."""
    size = value_bytes(settings, device)
    rows = stage.prompts_per_step * stage.completions_per_prompt / world_of(settings)
    columns = items.prompt_tokens + settings.data.max_new_tokens
    return {
        "gathered weights": _gathered(shape, settings, whole=True),
        "caches": rows * columns * shape.cache_bytes(size),
        "activations": _logits(shape, rows, size),
    }


def _update(shape: ModelShape, settings: Settings, stage: RLSettings, device: Device, items: Items) -> dict[str, float]:
    """A chunk of completions, each reading its prompt's cache."""
    size = value_bytes(settings, device)
    prompts = max(1, stage.chunk_size // stage.completions_per_prompt)
    rows = prompts * stage.completions_per_prompt
    longest = min(items.padded_cot, settings.data.max_new_tokens)
    prompt = items.prompt_tokens
    kept = _activations(shape, settings, device, REASONING).whole(
        prompts * prompt + rows * longest,
        prompt + longest,
        past=rows * prompt,
        checkpointing=settings.interface.activation_checkpointing,
    )
    return {
        "gathered weights": _gathered(shape, settings, whole=False),
        "caches": rows * (prompt + longest) * shape.cache_bytes(size),
        "activations": kept + _logits(shape, rows * (longest + 1), size),
    }


def _labels(
    shape: ModelShape, settings: Settings, stage: GateStageSettings, device: Device, items: Items
) -> dict[str, float]:
    """A batch is read, then decoded; no gradient reaches the backbone."""
    size, rows = value_bytes(settings, device), stage.decode_batch_size
    columns = items.prompt_tokens + settings.data.max_new_tokens
    reading = _activations(shape, settings, device, REASONING).per_layer(
        rows * items.prompt_tokens, items.prompt_tokens
    )
    return {
        "gathered weights": _gathered(shape, settings, whole=True),
        "caches": rows * columns * shape.cache_bytes(size),
        "activations": max(reading, _logits(shape, rows, size)),
    }
