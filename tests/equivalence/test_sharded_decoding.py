"""Two FSDP2 ranks whose CoTs end at different steps, are left early, or of which only one thinks: as one process.

Gathered, they may also have different numbers of batches.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from twn_lightning.backbone.decoding import decode_cots
from twn_lightning.backbone.decoding_rows import TokenRules
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.early_exit import ExitRule
from twn_lightning.backbone.encoding import encode
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.settings import AdapterSettings, InterfaceSettings, ModelSettings
from twn_lightning.strategy import gathered
from twn_lightning.types import Item


def _backbone(shard: bool) -> DualLoRABackbone:
    torch.manual_seed(0)
    backbone = load_backbone(ModelSettings(name="tiny"), AdapterSettings(), InterfaceSettings()).eval()
    if shard:
        mesh = init_device_mesh("cpu", (2,))
        for layer in backbone.language_model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(backbone, mesh=mesh)
    return backbone


LEAVE = ExitRule(2.0, stride=1, patience=4)
"""Leaves after four tokens: row 0, which would end after six, and not row 1, which ends after two."""


def _decode(row: int, shard: bool, exit_rule: ExitRule | None = None) -> torch.Tensor:
    backbone = _backbone(shard)
    end = _end_after(2 if row else 6, TokenRules.choose, backbone.processor.eot_id)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenRules, "choose", end)
        state = backbone.reason(backbone.processor([Item("a", "Find", "x" * (row + 1))]))
        decoded = decode_cots(backbone, state, max_new_tokens=8, exit_rule=exit_rule)
        return torch.cat([decoded.cots.ids_BT[0].float(), backbone.embed(decoded.state).generative_BD[0]])


def _end_after(tokens, choose, eot_id):
    steps = 0

    def chosen(*args):
        nonlocal steps
        ids, log_probs = choose(*args)
        steps += 1
        return (torch.full_like(ids, eot_id) if steps > tokens else ids), log_probs

    return chosen


def _encode_adaptively(row: int, shard: bool) -> torch.Tensor:
    """All five items of row 0 think, and neither of the two of row 1."""
    items = [Item(f"{row}{i}", "Find", "x" * (i + 1)) for i in range(2 if row else 5)]
    gate = lambda features: torch.full((len(features),), -9.0 if row else 9.0)  # noqa: E731
    return encode(_backbone(shard), items, "adaptive", gate=gate, max_new_tokens=4).embedding_ND


def _encode_unevenly(row: int, shard: bool) -> torch.Tensor:
    """Row 0 has three batches, row 1 a single one: gathered ranks do not wait for each other."""
    backbone = _backbone(shard)
    items = [Item(f"{row}{i}", "Find", "x" * (i + 1)) for i in range(1 if row else 5)]
    with gathered(backbone):
        return encode(backbone, items, "generative", max_new_tokens=4, batch_size=2).embedding_ND


def _rank(rank: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    adaptive = _encode_adaptively(rank, shard=True)
    decoded = _decode(rank, shard=True)
    left = _decode(rank, shard=True, exit_rule=LEAVE)
    uneven = _encode_unevenly(rank, shard=True)
    found = {"decoded": decoded, "left": left, "adaptive": adaptive, "uneven": uneven}
    torch.save(found, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_ranks_step_in_lockstep(tmp_path):
    mp.spawn(_rank, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found["adaptive"], _encode_adaptively(rank, shard=False), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found["uneven"], _encode_unevenly(rank, shard=False), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found["decoded"], _decode(rank, shard=False), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found["left"], _decode(rank, False, LEAVE), atol=1e-5, rtol=1e-4)
        assert len(found["decoded"]) - len(found["left"]) == (0 if rank else 2)
