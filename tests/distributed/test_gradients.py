"""One rank = two ranks = four under DDP and FSDP2 (gloo): losses and gradients of every stage, and resume."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from tests.distributed.ranks import run_on_ranks, save_tensors
from tests.stage_runs import InterruptAfter, StageRun, tiny_settings
from twn_lightning.backbone.adapters import full_tensor
from twn_lightning.backbone.encoding import encode
from twn_lightning.settings import GateStageSettings, RLSettings, Settings, SFTSettings
from twn_lightning.types import Item

BATCH = 8
TOLERANCE = 1e-6
"""Of a logged value, relative to it, and of an element of a gradient, relative to the norm of its group; in fp32."""
SFT: dict[str, Any] = {"batch_size": BATCH, "chunk_size": 2, "max_steps": 1, "clip_norm": 1e9}
RL: dict[str, Any] = {"prompts_per_step": BATCH, "chunk_size": 16, "max_steps": 1, "clip_norm": 1e9}
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "detached": (SFTSettings(**SFT), {}),
    "joint": (SFTSettings(**SFT), {"interface": "kv_joint"}),
    "cut": (SFTSettings(**SFT, cut_cot_share=0.5), {}),
    "checkpointed": (SFTSettings(**SFT), {}),
    "rl": (RLSettings(**RL, pool_size=4, format_weight=1.0), {}),
    "gate": (GateStageSettings(batch_size=48, max_epochs=1), {}),
}
STRATEGIES = ("ddp", "fsdp2")
RESUMED: dict[str, tuple[Any, str]] = {
    "ddp": (SFTSettings(batch_size=4, chunk_size=2, max_steps=2), "ddp"),
    "fsdp2_checkpointed": (SFTSettings(batch_size=4, chunk_size=2, max_steps=2), "fsdp2"),
    "fsdp2_rl": (RLSettings(prompts_per_step=4, completions_per_prompt=2, max_steps=2, pool_size=4), "fsdp2"),
}
ITEMS = [Item(str(i), "Find", "x" * (i + 1)) for i in range(3)]


@contextmanager
def earning() -> Iterator[None]:
    """Reward completions by their length: of a random model none is well formed, and groups would earn nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "twn_lightning.stages.rewards.format_reward",
            lambda cots, closed_B: torch.tensor([float(len(cot) % 2) for cot in cots]),
        )
        yield


class KeepGradients(Callback):
    """The gradients as the first optimizer step of the run finds them."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if not self.found:
            named = pl_module.named_parameters()
            self.found = {name: full_tensor(p.grad) for name, p in named if p.grad is not None}


def first_step(variant: str, folder: Path, devices: int, strategy: str) -> dict[str, Any]:
    """Gradients, logged values and checkpoint keys of one step from adapters that are not zero."""
    stage, sections = VARIANTS[variant]
    settings = tiny_settings(stage, folder / variant, trainer={"devices": devices, "strategy": strategy}, **sections)
    settings.interface.activation_checkpointing = variant == "checkpointed" and devices > 1
    keep = KeepGradients()
    run = StageRun(settings, callbacks=(keep,))
    torch.manual_seed(0)
    with torch.no_grad():
        for group in ("reasoning", "embedding", "queries"):
            for parameter in run.backbone.group_parameters(group):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    with earning():
        run.fit()
    lines = run.run_folder.history()
    logged = {name: value for line in lines for name, value in line.items() if value is not None}
    logged = {name: value for name, value in logged.items() if not name.startswith("grad_norm/")}
    return {"gradients": keep.found, "logged": logged, "saved": sorted(run.stage.state_dict())}


def on_rank(rank: int, folder: Path, world_size: int) -> None:
    for strategy in STRATEGIES:
        for variant in VARIANTS:
            found = first_step(variant, folder / strategy, world_size, strategy)
            if rank == 0:
                save_tensors(folder / strategy / variant / "found.pt", found)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every variant on one device."""
    folder = tmp_path_factory.mktemp("one")
    return {variant: first_step(variant, folder, 1, "single") for variant in VARIANTS}


def group_of(parameter: str) -> str:
    return next(group for group in ("reasoning", "embedding", "queries", "gate") if f".{group}" in f".{parameter}")


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_together_have_the_losses_and_gradients_of_one(
    world_size: int, one_rank: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    run_on_ranks(on_rank, tmp_path, world_size, world_size=world_size)
    for variant, expected in one_rank.items():
        norms: dict[str, float] = defaultdict(float)
        for name, gradient in expected["gradients"].items():
            norms[group_of(name)] = math.hypot(norms[group_of(name)], float(gradient.norm()))
        assert norms
        for strategy in STRATEGIES:
            found = torch.load(tmp_path / strategy / variant / "found.pt", weights_only=True)
            assert found["saved"] == expected["saved"]
            assert found["logged"] == pytest.approx(expected["logged"], rel=TOLERANCE, abs=TOLERANCE), variant
            assert found["gradients"].keys() == expected["gradients"].keys()
            for name, gradient in expected["gradients"].items():
                worst = float((found["gradients"][name] - gradient).abs().max())
                assert worst <= TOLERANCE * norms[group_of(name)], (strategy, variant, name)


@earning()
def resume_on_rank(rank: int, folder: Path) -> None:
    for name, (stage, strategy) in RESUMED.items():
        straight = StageRun(resumable(name, stage, strategy, folder / name / "straight")).fit()
        settings = resumable(name, stage, strategy, folder / name / "resumed")
        with pytest.raises(KeyboardInterrupt):
            # Ctrl-C reaches one rank a step before the other: both must stop together.
            StageRun(settings, callbacks=(InterruptAfter(1),) if rank == 0 else ()).fit()
        if rank == 0:
            shutil.copy(folder / name / "resumed/checkpoints/last.ckpt", folder / name / "interrupted.ckpt")
        resumed = StageRun(settings).fit(resume=folder / name / "resumed")
        expected, found = straight.stage.state_dict(), resumed.stage.state_dict()
        for key, value in expected.items():
            assert torch.equal(found[key], value), f"{name}: {key}"
        embeddings = encode(resumed.backbone, ITEMS[rank:], "generative", max_new_tokens=4).embedding_ND
        if rank == 0:
            save_tensors(folder / name / "embeddings.pt", {"embeddings": embeddings})


def resumable(name: str, stage: Any, strategy: str, folder: Path, devices: int = 2) -> Settings:
    settings = tiny_settings(stage, folder, trainer={"devices": devices, "strategy": strategy})
    settings.interface.activation_checkpointing = name == "fsdp2_checkpointed"
    return settings


def test_resumed_equals_straight_on_two_ranks_and_goes_on_elsewhere(tmp_path: Path) -> None:
    """To the bit with as many ranks. On one, the optimizer's moments are the same; so is what the adapters embed."""
    run_on_ranks(resume_on_rank, tmp_path)
    for name, (stage, _) in RESUMED.items():
        folder = tmp_path / name
        checkpoint = torch.load(folder / "resumed/checkpoints/last.ckpt", weights_only=True)
        assert not any("lm_head" in key or "visual" in key for key in checkpoint["state_dict"])

        alone = StageRun(resumable("alone", stage, "single", folder / "alone", devices=1))
        with earning():
            alone.fit(resume=folder / "interrupted.ckpt")
        moments = [c["optimizer_states"][0]["state"] for c in (checkpoint, alone.last_checkpoint())]
        for found, expected in zip(moments[0].values(), moments[1].values(), strict=True):
            worst = float((found["exp_avg"] - expected["exp_avg"]).abs().max())
            assert worst <= 1e-4 * float(expected["exp_avg"].norm()) + 1e-9, name

        alone.backbone.load_adapters(folder / "resumed/adapters")
        embeddings = torch.load(folder / "embeddings.pt", weights_only=True)["embeddings"]
        expected = encode(alone.backbone, ITEMS, "generative", max_new_tokens=4).embedding_ND
        torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-5)
