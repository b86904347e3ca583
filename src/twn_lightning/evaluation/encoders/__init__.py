"""Models that the benchmark can evaluate, behind one protocol: TWN and its peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from twn_lightning.backbone.packaged import PACKAGED
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.evaluation.encoders.protocol import EncodedItems, Encoder
from twn_lightning.settings import ModelSettings
from twn_lightning.types import EmbeddingMode, Side

__all__ = [
    "ENCODERS",
    "EncodedItems",
    "Encoder",
    "EncoderRequest",
    "default_cot_cap",
    "default_mode",
    "get_encoder",
]


@dataclass(frozen=True)
class EncoderRequest:
    """What an encoder is built from; each takes what it has use for."""

    model: ModelSettings
    adapters_path: str | None
    device: str
    max_new_tokens: int
    batch_size: int
    threshold: float
    blank_image: bool
    exit_tolerance: float | None


def _twn(request: EncoderRequest) -> Encoder:
    from twn_lightning.backbone.early_exit import ExitRule
    from twn_lightning.evaluation.encoders.twn import AdaptiveEncoder, load_trained

    backbone, gate, threshold = load_trained(request.model, request.adapters_path, request.threshold, request.device)
    exit_rule = None if request.exit_tolerance is None else ExitRule(request.exit_tolerance)
    return AdaptiveEncoder(backbone, gate, threshold, request.max_new_tokens, request.batch_size, exit_rule=exit_rule)


def _discriminative(style: str) -> Callable[[EncoderRequest], Encoder]:
    def build(request: EncoderRequest) -> Encoder:
        from twn_lightning.evaluation.encoders.discriminative import DiscriminativeEncoder

        return DiscriminativeEncoder.load(
            style, request.model, request.adapters_path, request.device, request.batch_size
        )

    return build


def _ume_r1(request: EncoderRequest) -> Encoder:
    from twn_lightning.evaluation.encoders.ume_r1 import UMER1Encoder

    return UMER1Encoder.load(
        request.model,
        request.adapters_path,
        request.device,
        request.max_new_tokens,
        request.batch_size,
        blank_image=request.blank_image,
    )


OWN_BACKBONES = (*PACKAGED, "tiny")
"""Backbones that only `twn` can be built on."""
SHORT_COT, LONG_COT = 64, 512
"""Caps of a CoT in tokens: of these backbones, whose CoTs are short, and of real ones."""
ENCODERS: dict[str, Callable[[EncoderRequest], Encoder]] = {
    "twn": _twn,
    "vlm2vec": _discriminative("vlm2vec"),
    "qwen3vl_embedding": _discriminative("qwen3vl_embedding"),
    "ume_r1": _ume_r1,
}
"""Encoders by name; a model's modules are imported only when it is built."""


def get_encoder(
    name: str,
    *,
    model: ModelSettings,
    adapters_path: str | None = None,
    device: str = "cpu",
    max_new_tokens: int = 64,
    batch_size: int = 32,
    threshold: float = 0.5,
    blank_image: bool = False,
    exit_tolerance: float | None = None,
) -> Encoder:
    """Build an encoder from settings.

    Args:
        name: `twn`, `vlm2vec`, `qwen3vl_embedding` or `ume_r1`.
        model: the backbone of `twn`; for the others `path` is a checkpoint's folder, or `name` its hub id.
        adapters_path: `twn`: a run's `adapters` folder, None for the packaged ones; the others: a PEFT folder, None
            where the checkpoint is whole.
        device: where to put it.
        max_new_tokens: cap of a CoT.
        batch_size: most rows of a batch.
        threshold: `twn`: the gate's, where its folder has none saved.
        blank_image: `ume_r1`: a white image before inputs without media, as in its own evaluation.
        exit_tolerance: `twn`: leave a CoT once its embedding moves by less; None: never.

    Raises:
        ConfigError: unknown name, weights that cannot be had, or early exit of an encoder without it.
        AdapterError: adapters that do not fit.
    """
    if name not in ENCODERS:
        raise ConfigError(unknown_name("encoder", name, ENCODERS))
    if name != "twn" and model.path is None and model.name in OWN_BACKBONES:
        raise ConfigError(
            f"encoder '{name}' runs a checkpoint of its own kind, and model.name is '{model.name}': set model.path to "
            "the checkpoint's folder, or model.name to its id on the hub"
        )
    if name != "twn" and exit_tolerance is not None:
        raise ConfigError(
            f"encoder '{name}' cannot leave a CoT early: evaluation.exit_tolerance is {exit_tolerance}, set it to null"
        )
    return ENCODERS[name](
        EncoderRequest(model, adapters_path, device, max_new_tokens, batch_size, threshold, blank_image, exit_tolerance)
    )


def default_cot_cap(model_name: str) -> int:
    """Most tokens of a CoT where nothing else is asked for."""
    return SHORT_COT if model_name in OWN_BACKBONES else LONG_COT


def default_mode(encoder: Encoder, side: Side) -> EmbeddingMode:
    """Queries think where the encoder has a gate; nothing else does."""
    adaptive = side is Side.QUERY and EmbeddingMode.ADAPTIVE in encoder.modes
    return EmbeddingMode.ADAPTIVE if adaptive else EmbeddingMode.DISCRIMINATIVE
