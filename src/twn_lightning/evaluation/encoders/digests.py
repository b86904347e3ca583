"""Digests of what an embedding depends on, for the identity of an encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twn_lightning.backbone.pixels import PatchSettings

SCALING_KEYS = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")
"""What of a PEFT configuration changes the merged weights without being in the tensors."""


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and every value."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().float().contiguous().numpy()
        digest.update(f"{name} {tensors[name].dtype} {value.shape} ".encode() + value.tobytes())
    return digest.hexdigest()


def adapter_digest(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256 over a PEFT adapter's tensors and scaling."""
    scaling = json.dumps({key: config.get(key) for key in SCALING_KEYS}, sort_keys=True)
    return hashlib.sha256(f"{tensors_digest(tensors)} {scaling}".encode()).hexdigest()


def weights_digest(model: Any) -> str:
    """SHA-256 over every parameter's name, shape, a sample of its values and the exact sum of its bits.

    Reads each weight once, where it lies; a single changed weight changes the sum, which is the same on every device.
    """
    digest = hashlib.sha256()
    integers = {2: torch.int16, 4: torch.int32}
    for name, parameter in sorted(model.named_parameters()):
        bits = parameter.detach().flatten().view(integers[parameter.element_size()])
        sample = bits[:: max(1, len(bits) // 256)].cpu().numpy()
        total = int(bits.sum(dtype=torch.int64))
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)} {total} ".encode())
        digest.update(np.ascontiguousarray(sample).tobytes())
    return digest.hexdigest()


def processor_settings(patches: PatchSettings, max_frames: int) -> dict[str, Any]:
    """Patch geometry, pixel budget and frames as values that survive JSON."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(patches).items()} | {"max_frames": max_frames}


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 over a fast tokenizer's rules and vocabulary, and the chat template."""
    parts = [tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template)]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
