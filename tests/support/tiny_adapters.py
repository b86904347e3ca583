"""Adapters of the `tiny` backbone that tests of several folders start from."""

from __future__ import annotations

from pathlib import Path

import torch

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.gate.routing_gate import RoutingGate
from twn_lightning.settings import AdapterSettings, InterfaceSettings, LoraSettings, ModelSettings


def random_backbone(std: float) -> DualLoRABackbone:
    """`tiny` in eval mode, its small adapters and 3 queries drawn with a standard deviation instead of zero."""
    settings = AdapterSettings(reasoning=LoraSettings(4, 8), embedding=LoraSettings(4, 8), num_queries=3)
    made = load_backbone(ModelSettings(name="tiny"), settings, InterfaceSettings())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for group in ("reasoning", "embedding", "queries"):
            for parameter in made.group_parameters(group):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return made.eval()


def save_undecided_adapters(folder: Path) -> Path:
    """Fresh adapters with a random gate, which thinks about some inputs and not about others."""
    backbone = load_backbone(ModelSettings(name="tiny"), AdapterSettings(), InterfaceSettings())
    torch.manual_seed(4)
    gate = RoutingGate(2 * backbone.hidden_size)
    torch.nn.init.normal_(gate.outer.weight)
    backbone.save_adapters(folder, gate.state_dict())
    return folder


def save_fresh_adapters(folder: Path, threshold: float) -> Path:
    """Fresh adapters of conf's default shape, with an untrained gate and its threshold."""
    from twn_lightning.config import load_settings

    settings = load_settings(["model=tiny"])
    backbone = load_backbone(settings.model, settings.adapters, settings.interface)
    gate = RoutingGate(2 * backbone.hidden_size, 8)
    backbone.save_adapters(folder, gate.state_dict(), {"gate_threshold": threshold})
    return folder
