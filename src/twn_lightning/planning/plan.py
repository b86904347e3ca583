"""A plan of one stage: memory of a device, tokens a second, hours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from twn_lightning.planning.constants import Device, Items
from twn_lightning.planning.layout import is_sharded, weight_bytes, world_of
from twn_lightning.planning.memory import Memory, memory_parts
from twn_lightning.planning.shapes import ModelShape
from twn_lightning.planning.stages import Phase, StageWork
from twn_lightning.settings import GateStageSettings, InterfaceSettings, Settings


@dataclass(frozen=True)
class StagePlan:
    """What a stage is predicted to take."""

    stage: str
    devices: int
    steps: float
    seconds_per_step: float
    """Mean over the steps."""
    tokens_per_second: float
    """Prompt and CoT tokens over all devices."""
    hours: float
    seconds: dict[str, float]
    """Of one device in the whole stage, by kind of work; `prepare` is turning items into tokens and patches,
    `gather` what arithmetic does not hide of FSDP2's."""
    memory: Memory
    checkpointing: bool
    memory_otherwise: Memory
    """With activation checkpointing, where the configuration is without, or without."""

    @property
    def device_hours(self) -> float:
        return self.hours * self.devices


def plan_stage(shape: ModelShape, settings: Settings, device: Device, items: Items) -> StagePlan:
    """Predict one stage.

    Args:
        shape: of the backbone.
        settings: of the stage.
        device: how fast, and with how much memory.
        items: how long prompts and CoTs are.
    """
    memory = memory_parts(shape, settings, device, items)
    checkpointing = settings.interface.activation_checkpointing
    phases = StageWork(shape, settings, device, items, memory.kept_share).phases()
    gather = _seconds_to_gather(shape, settings, device)
    seconds: dict[str, float] = {}
    for phase in phases:
        for kind, value in _seconds(phase, device, checkpointing, gather).items():
            seconds[kind] = seconds.get(kind, 0.0) + phase.steps * value
    whole, steps = sum(seconds.values()), sum(phase.steps for phase in phases)
    tokens = world_of(settings) * sum(phase.steps * phase.tokens for phase in phases)
    other = replace(settings, interface=_other_checkpointing(settings.interface))
    return StagePlan(
        stage=settings.stage.name,
        devices=world_of(settings),
        steps=steps,
        seconds_per_step=whole / steps,
        tokens_per_second=tokens / whole,
        hours=whole / 3600,
        seconds=seconds,
        memory=memory,
        checkpointing=checkpointing,
        memory_otherwise=memory_parts(shape, other, device, items),
    )


def what_fits(shape: ModelShape, settings: Settings, device: Device, items: Items) -> list[str]:
    """Overrides, each of which makes a stage fit that does not; arguments as for `plan_stage`."""

    def fits(changed: Settings) -> bool:
        return memory_parts(shape, changed, device, items).fits(device)

    if fits(settings):
        return []
    found = []
    key = "decode_batch_size" if isinstance(settings.stage, GateStageSettings) else "chunk_size"
    rows = getattr(settings.stage, key)
    while rows > 1:
        rows //= 2
        changed: Any = replace(settings.stage, **{key: rows})
        if fits(replace(settings, stage=changed)):
            found.append(f"stage.{key}={rows}")
            break
    checkpointed = replace(settings.interface, activation_checkpointing=True)
    if fits(replace(settings, interface=checkpointed)):
        found.append("interface.activation_checkpointing=true")
    return found


def _other_checkpointing(interface: InterfaceSettings) -> InterfaceSettings:
    return replace(interface, activation_checkpointing=not interface.activation_checkpointing)


def _seconds_to_gather(shape: ModelShape, settings: Settings, device: Device) -> float:
    """Of all layers once, where FSDP2 shards them."""
    if not is_sharded(settings):
        return 0.0
    return device.seconds_to_gather(shape.language.layer_parameters * weight_bytes(settings), world_of(settings))


def _seconds(phase: Phase, device: Device, checkpointing: bool, gather: float) -> dict[str, float]:
    """One step of a phase; layers are gathered while others compute."""
    found = device.seconds(phase.work, checkpointing)
    if phase.items:
        found["prepare"] = phase.items * device.seconds_per_item
    exposed = phase.gathers * gather - sum(found.values())
    return found | {"gather": exposed} if exposed > 0 else found
