"""TWN itself as an encoder: the dual-LoRA backbone, its gate and the gate's threshold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from twn_lightning.backbone.adapters import REFERENCE
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.early_exit import ExitRule
from twn_lightning.backbone.encoding import Encoded, encode
from twn_lightning.backbone.layout import read_config, settings_of
from twn_lightning.backbone.loading import adapters_folder, load_backbone
from twn_lightning.backbone.media import load_image, load_video
from twn_lightning.backbone.packaged import default_adapters
from twn_lightning.backbone.processor import PROMPT_VERSION
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.evaluation.encoders.batching import BATCH_TOKENS, encode_in_batches, visual_tokens
from twn_lightning.evaluation.encoders.digests import processor_settings, tensors_digest
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.gate.routing_gate import RoutingGate
from twn_lightning.settings import ModelSettings
from twn_lightning.types import EmbeddingMode, Item, Media, Side

_LOCKS: WeakKeyDictionary[DualLoRABackbone, threading.RLock] = WeakKeyDictionary()
_LOCKS_IN_USE = threading.Lock()


def _in_use(backbone: DualLoRABackbone) -> threading.RLock:
    """What to hold while a backbone encodes."""
    with _LOCKS_IN_USE:
        return _LOCKS.setdefault(backbone, threading.RLock())


class AdaptiveEncoder:
    """Discriminative, generative and, with a gate, adaptive embeddings.

    Several threads may share one, and several encoders a backbone: it switches adapters while it reads, so calls are
    answered one at a time.

    Args:
        backbone: with the adapters to evaluate.
        gate: None leaves out the adaptive mode.
        threshold: think iff probability > threshold.
        max_new_tokens: cap of a CoT.
        batch_size: most rows prefetched and decoded together.
        batch_tokens: most prompt tokens of a batch, padding included.
        exit_rule: when to leave a CoT early; None: never.
    """

    def __init__(
        self,
        backbone: DualLoRABackbone,
        gate: RoutingGate | None,
        threshold: float = 0.5,
        max_new_tokens: int = 64,
        batch_size: int = 500,
        batch_tokens: int = BATCH_TOKENS,
        exit_rule: ExitRule | None = None,
    ) -> None:
        self.backbone = backbone
        self.gate = gate
        self.threshold = threshold
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.exit_rule = exit_rule

    @property
    def name(self) -> str:
        return "twn"

    @property
    def dimension(self) -> int:
        return self.backbone.hidden_size

    @property
    def modes(self) -> tuple[EmbeddingMode, ...]:
        plain = (EmbeddingMode.DISCRIMINATIVE, EmbeddingMode.GENERATIVE)
        return plain if self.gate is None else (*plain, EmbeddingMode.ADAPTIVE)

    def model_name(self) -> str:
        """Backbone and the first 8 digits of the adapters' digest."""
        return f"{self.backbone.name}+{self._adapters_digest()[:8]}"

    def identity(self, side: Side, mode: EmbeddingMode) -> dict[str, Any]:
        """See `Encoder.identity`. Digests are taken now: adapters that train on give another identity.

        What a mode does not use is left out, so that a new gate, say, leaves discriminative vectors valid.
        """
        self._check_mode(mode)
        found = self._reading() if mode is not EmbeddingMode.ADAPTIVE else self.decision_identity(side)
        found["mode"] = mode.value
        if mode is not EmbeddingMode.DISCRIMINATIVE:
            found["max_new_tokens"] = self.max_new_tokens
            if self.exit_rule is not None:
                found["exit_rule"] = asdict(self.exit_rule)
        if mode is EmbeddingMode.ADAPTIVE:
            found["threshold"] = self.threshold
        return found

    def decision_identity(self, side: Side) -> dict[str, Any]:
        """See `GatedEncoder.decision_identity`."""
        self._check_mode(EmbeddingMode.ADAPTIVE)
        assert self.gate is not None
        told = side.value if self.gate.side is not None else None
        return {**self._reading(), "mode": "decision", "gate": tensors_digest(self.gate.state_dict()), "side": told}

    def _reading(self) -> dict[str, Any]:
        """What every mode depends on."""
        backbone = self.backbone
        settings = asdict(backbone.settings)
        del settings["init_from"]
        return {
            "encoder": self.name,
            "backbone": backbone.digest,
            "adapters": self._adapters_digest(),
            "adapter_settings": settings,
            "interface": backbone.interface.name,
            "prompt_version": PROMPT_VERSION,
            "processor": processor_settings(backbone.processor.patches, backbone.processor.max_frames),
            **_arithmetic(backbone.model),
        }

    def _adapters_digest(self) -> str:
        trained = self.backbone.trainable_state()
        return tensors_digest({k: v for k, v in trained.items() if not k.startswith(f"{REFERENCE}.")})

    def encode(
        self,
        items: Sequence[Item],
        side: Side,
        mode: EmbeddingMode,
        progress: Callable[[int], None] | None = None,
    ) -> EncodedItems:
        """See `Encoder.encode`. Prompts of like length share a batch; media are decoded ahead.

        The gate's probability is given in adaptive mode only, where the gate is part of the identity.
        """
        self._check_mode(mode)
        gate = self.gate if mode is EmbeddingMode.ADAPTIVE else None
        with _in_use(self.backbone):
            return self._in_batches(items, side, mode, gate, progress)

    def decide(self, items: Sequence[Item], side: Side, progress: Callable[[int], None] | None = None) -> EncodedItems:
        """See `GatedEncoder.decide`."""
        self._check_mode(EmbeddingMode.ADAPTIVE)
        with _in_use(self.backbone):
            return self._in_batches(items, side, EmbeddingMode.DISCRIMINATIVE, self.gate, progress)

    def _in_batches(
        self,
        items: Sequence[Item],
        side: Side,
        mode: EmbeddingMode,
        gate: RoutingGate | None,
        progress: Callable[[int], None] | None,
    ) -> EncodedItems:
        processor = self.backbone.processor
        lengths = [
            processor.count_tokens(processor.render(item))
            + visual_tokens(item, processor.patches, processor.max_frames)
            for item in items
        ]

        def run(rows: list[int], decoded: list[Item]) -> EncodedItems:
            return _as_items(
                encode(
                    self.backbone,
                    decoded,
                    mode,
                    gate=gate,
                    threshold=self.threshold,
                    max_new_tokens=self.max_new_tokens,
                    exit_rule=self.exit_rule,
                    batch_size=self.batch_size,
                    side=side if gate is not None and gate.side is not None else None,
                ),
                mode,
            )

        return encode_in_batches(
            items,
            lengths,
            lambda rows: [decoded_ahead(items[row], processor.max_frames) for row in rows],
            run,
            batch_size=self.batch_size,
            batch_tokens=self.batch_tokens,
            progress=progress,
        )

    def _check_mode(self, mode: EmbeddingMode) -> None:
        if mode not in self.modes:
            raise ConfigError(
                f"{unknown_name('mode', mode.value, [m.value for m in self.modes])}. Adaptive needs adapters with a "
                "gate: train one with stage=gate"
            )


def _as_items(encoded: Encoded, mode: EmbeddingMode) -> EncodedItems:
    plain = mode is EmbeddingMode.DISCRIMINATIVE
    return EncodedItems(
        embedding_ND=encoded.embedding_ND.float().numpy(),
        discriminative_ND=None if plain else encoded.discriminative_ND.float().numpy(),
        think_N=None if plain else encoded.think_N.numpy(),
        probability_N=None if encoded.probability_N is None else encoded.probability_N.float().numpy(),
        tokens_N=None if plain else encoded.tokens_N.numpy(),
        malformed_N=None if plain else encoded.malformed_N.numpy(),
        cots=[] if plain else list(encoded.cot_texts),
    )


def decoded_ahead(item: Item, max_frames: int) -> Item:
    """The item with images, and videos of at most `max_frames` chosen frames, as the pixels the processor would read.

    Other videos stay as they are: of their pixels alone the processor could not tell the time of a frame.
    """
    if not item.media:
        return item
    return replace(item, media=tuple(_decoded(media, item.key, max_frames) for media in item.media))


def _decoded(media: Media, key: str, max_frames: int) -> Media:
    if media.kind == "image":
        return Media("image", load_image(media, key))
    if isinstance(media.content, tuple) and len(media.content) <= max_frames:
        return Media("video", load_video(media, key, max_frames).frames)
    return media


def _arithmetic(model: Any) -> dict[str, Any]:
    """What rounds: dtype, quantisation and attention kernels."""
    config = model.config
    return {
        "dtype": str(model.get_input_embeddings().weight.dtype).removeprefix("torch."),
        "quantization": "nf4" if getattr(config, "quantization_config", None) else "none",
        "attention": [config.text_config._attn_implementation, config.vision_config._attn_implementation],
    }


def load_trained(
    model: ModelSettings | None = None,
    adapters_path: str | None = None,
    threshold: float = 0.5,
    device: str = "cpu",
) -> tuple[DualLoRABackbone, RoutingGate | None, float]:
    """The backbone with trained adapters in eval mode, its gate and the gate's threshold.

    Args:
        model: the backbone; None: nano.
        adapters_path: a run's `adapters` folder, a packaged backbone's name for its own, None for the model's own.
            The folder's own settings decide ranks, queries and interface.
        threshold: where the folder has none saved.
        device: where to put it.

    Raises:
        AdapterError: the folder is not one, or was made for another backbone.
        ConfigError: a packaged backbone without adapters or weights.
    """
    model = model or ModelSettings()
    folder = adapters_folder(adapters_path or default_adapters(model.name))
    adapters, interface = settings_of(folder)
    backbone = load_backbone(model, replace(adapters, init_from=None), interface, device)
    state = backbone.load_adapters(folder)
    gate = None if state is None else RoutingGate.from_state(state).to(device).eval()
    return backbone.eval(), gate, saved_threshold(folder, threshold)


def saved_threshold(folder: Path, default: float) -> float:
    """The threshold that a gate's training calibrated, as saved beside its adapters."""
    return float(read_config(folder).get("gate_threshold", default))
