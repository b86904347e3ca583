"""One rank = two ranks under DDP and FSDP2 (gloo): adapter gradients with chunked accumulation, and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.distributed.ranks import run_on_ranks, save_tensors
from tests.stage_runs import InterruptAfter, StageRun, tiny_settings
from twn_lightning.backbone.adapters import full_tensor
from twn_lightning.settings import GateStageSettings, SFTSettings

BATCH = 8
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "detached": (SFTSettings(batch_size=BATCH, chunk_size=2, max_steps=1, clip_norm=1e9), {}),
    "joint": (SFTSettings(batch_size=BATCH, chunk_size=2, max_steps=1, clip_norm=1e9), {"interface": "kv_joint"}),
    "gate": (GateStageSettings(batch_size=48, max_epochs=1), {}),
}


class KeepGradients(Callback):
    """The gradients as the first optimizer step of the run finds them."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if not self.found:
            named = pl_module.named_parameters()
            self.found = {name: full_tensor(p.grad) for name, p in named if p.grad is not None}


def gradients(variant: str, folder: Path, devices: int, strategy: str) -> tuple[dict[str, torch.Tensor], StageRun]:
    stage, sections = VARIANTS[variant]
    trainer = {"devices": devices, "strategy": strategy}
    keep = KeepGradients()
    run = StageRun(tiny_settings(stage, folder / variant, trainer=trainer, **sections), callbacks=(keep,)).fit()
    return keep.found, run


def on_rank(rank: int, folder: Path, strategy: str) -> None:
    for variant in VARIANTS:
        found, run = gradients(variant, folder, 2, strategy)
        state = run.stage.state_dict()
        if rank == 0:
            save_tensors(folder / variant / "gradients.pt", found)
            save_tensors(folder / variant / "state.pt", state)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_in_chunks_have_the_gradients_of_one(strategy: str, tmp_path: Path) -> None:
    run_on_ranks(on_rank, tmp_path / "two", strategy)
    for variant, (stage, _) in VARIANTS.items():
        if isinstance(stage, SFTSettings):
            stage.chunk_size = BATCH
        expected, run = gradients(variant, tmp_path / "one", 1, "single")
        found = torch.load(tmp_path / "two" / variant / "gradients.pt")
        assert expected
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=2e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.load(tmp_path / "two" / variant / "state.pt").keys() == run.stage.state_dict().keys()


def resume_on_rank(rank: int, folder: Path, strategy: str) -> None:
    stage = SFTSettings(batch_size=4, chunk_size=2, max_steps=2)
    trainer = {"devices": 2, "strategy": strategy}
    straight = StageRun(tiny_settings(stage, folder / "straight", trainer=trainer)).fit()
    settings = tiny_settings(stage, folder / "resumed", trainer=trainer)
    with pytest.raises(KeyboardInterrupt):
        # Ctrl-C reaches one rank a step before the other: both must stop together.
        StageRun(settings, callbacks=(InterruptAfter(1),) if rank == 0 else ()).fit()
    resumed = StageRun(settings).fit(resume=folder / "resumed")
    expected, found = straight.stage.state_dict(), resumed.stage.state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_resumed_equals_straight_on_two_ranks(strategy: str, tmp_path: Path) -> None:
    run_on_ranks(resume_on_rank, tmp_path, strategy)
    checkpoint = torch.load(tmp_path / "resumed" / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any("lm_head" in name or "visual" in name for name in checkpoint["state_dict"])
