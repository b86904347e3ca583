"""The strategy factory, and the helpers that are plain on one rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import SingleDeviceStrategy

from twn_lightning.errors import ConfigError, LostProcessError
from twn_lightning.settings import TrainerSettings
from twn_lightning.strategy import (
    AdapterDDPStrategy,
    AdapterFSDP2Strategy,
    build_strategy,
    gathered,
    interleave,
    naming_lost_ranks,
    resolve_accelerator,
    sync_gradients,
)


@pytest.mark.parametrize(
    ("name", "devices", "expected"),
    [
        ("auto", 1, SingleDeviceStrategy),
        ("single", 1, SingleDeviceStrategy),
        ("auto", 2, AdapterDDPStrategy),
        ("ddp", 2, AdapterDDPStrategy),
        ("fsdp2", 2, AdapterFSDP2Strategy),
    ],
)
def test_the_strategy_on_cpu(name: Any, devices: int, expected: type) -> None:
    strategy = build_strategy(TrainerSettings(accelerator="cpu", devices=devices, strategy=name))
    assert type(strategy) is expected


def test_several_cuda_devices_shard_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert isinstance(build_strategy(TrainerSettings(devices=4)), AdapterFSDP2Strategy)
    assert resolve_accelerator(TrainerSettings()) == "cuda"
    with pytest.raises(ConfigError, match=r"trainer\.devices=8, but this machine has 4 CUDA devices"):
        build_strategy(TrainerSettings(accelerator="cuda", devices=8))


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"0 CUDA devices: set trainer\.accelerator=cpu"):
        build_strategy(TrainerSettings(accelerator="cuda"))


def test_single_with_several_devices() -> None:
    with pytest.raises(ConfigError, match=r"devices x num_nodes = 2"):
        build_strategy(TrainerSettings(accelerator="cpu", devices=2, strategy="single"))


def test_one_rank_leaves_gradients_alone() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    sync_gradients([parameter])
    assert parameter.grad is None
    parameter.grad = torch.tensor([1.0, 2.0])
    sync_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]


def test_gathered_is_without_gradients() -> None:
    with gathered(torch.nn.Linear(2, 2)):
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_interleave_undoes_the_split_over_ranks() -> None:
    items = list(range(7))
    assert interleave([items[rank::3] for rank in range(3)]) == items


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/pair.cc:5] Connection closed"),
        dist.DistBackendError("NCCL error\nLast error: Connection closed"),
    ],
)
def test_what_the_transport_says_of_lost_ranks_becomes_an_error_for_people(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(type(error)), naming_lost_ranks():
        raise error  # alone, nobody can be lost
    monkeypatch.setattr("twn_lightning.strategy.world_size", lambda: 4)
    with pytest.raises(LostProcessError, match="rank 0 has lost another of the 4 ranks"), naming_lost_ranks():
        raise error
    for own in (RuntimeError("other"), dist.DistBackendError("NCCL: invalid usage\nDuplicate GPU detected")):
        with pytest.raises(type(own)), naming_lost_ranks():
            raise own
