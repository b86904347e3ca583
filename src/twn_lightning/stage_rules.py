"""What a stage may not ask of its data, its losses and its devices. Split from `rules`, which calls it."""

from __future__ import annotations

from collections.abc import Iterator

from twn_lightning.settings import Settings, SFTSettings

KeysAndMessage = tuple[tuple[str, ...], str]

SMALL_BACKBONES = ("micro", "nano", "tiny")
"""Backbones whose whole batch any machine holds, which this layer cannot import; a test compares."""
MOST_JOINT_ROWS = 64
"""Most rows of one chunk on a real backbone: with them 2B needs 70 GiB, even with activation checkpointing."""


def contradictions(settings: Settings) -> Iterator[KeysAndMessage]:
    """The keys a problem rests on, and what is wrong."""
    yield from _quantization(settings)
    if isinstance(settings.stage, SFTSettings):
        yield from _sub_batches(settings, settings.stage)
        yield from _joint_chunks(settings, settings.stage)
        yield from _losses(settings, settings.stage)


def _sub_batches(settings: Settings, stage: SFTSettings) -> Iterator[KeysAndMessage]:
    """A global batch is made of whole same-source sub-batches, and each rank takes its part of every one of them."""
    rows, world = settings.data.rows_per_source_global, settings.trainer.devices * settings.trainer.num_nodes
    if rows < 1 or world < 1:
        return
    for key in ("batch_size", *(["embedding_batch_size"] if stage.schedule == "two_phase" else [])):
        size = getattr(stage, key)
        used = min(rows, size)
        if size > 1 and size % used:
            yield (
                (f"stage.{key}", "data.rows_per_source_global"),
                f"stage.{key} ({size}) is not a multiple of data.rows_per_source_global ({rows}), the rows of one "
                f"source in a row: set it to {round(size / used) * used}, or lower data.rows_per_source_global",
            )
        elif size % world == 0 and used % world:
            yield (
                (f"stage.{key}", "data.rows_per_source_global", "trainer.devices", "trainer.num_nodes"),
                f"data.rows_per_source_global ({rows}) must divide among {world} devices: set it to a multiple of them",
            )


def _joint_chunks(settings: Settings, stage: SFTSettings) -> Iterator[KeysAndMessage]:
    """The joint interface needs pass R's graph until pass E's loss is known: only GradCache's chunks bound both."""
    model, world = settings.model, max(1, settings.trainer.devices * settings.trainer.num_nodes)
    rows = stage.batch_size // world
    is_small = model.name in SMALL_BACKBONES
    if settings.interface.name == "kv_joint" and not is_small and min(rows, stage.chunk_size) > MOST_JOINT_ROWS:
        yield (
            ("interface.name", "stage.chunk_size", "stage.batch_size", "model.name"),
            f"interface=kv_joint keeps the graphs of both passes for a whole chunk, and stage.chunk_size="
            f"{stage.chunk_size} puts {min(rows, stage.chunk_size)} of a device's {rows} rows into one: set "
            f"stage.chunk_size to at most {MOST_JOINT_ROWS} (8 on Qwen3-VL), so that GradCache goes over chunks; "
            "gradients stay the same",
        )


def _losses(settings: Settings, stage: SFTSettings) -> Iterator[KeysAndMessage]:
    world = settings.trainer.devices * settings.trainer.num_nodes
    if stage.conflict_every_steps and world > 1:
        yield (
            ("stage.conflict_every_steps", "trainer.devices", "trainer.num_nodes"),
            f"stage.conflict_every_steps={stage.conflict_every_steps} measures the gradients of one process, and this "
            f"run has {world}: set trainer.devices=1, or stage.conflict_every_steps=0",
        )
    reaches = settings.interface.name == "kv_joint" or (
        settings.interface.name == "kv_detached" and settings.adapters.prefix == "embedding"
    )
    if stage.cot_weight == 0 and not reaches and settings.adapters.arrangement == "dual":
        yield (
            ("stage.cot_weight", "interface.name", "adapters.prefix", "adapters.arrangement"),
            f"stage.cot_weight is 0, and with interface.name={settings.interface.name} no other loss reaches the "
            "reasoning adapter: it would stay random. Raise stage.cot_weight, or set interface=kv_joint",
        )


def _quantization(settings: Settings) -> Iterator[KeysAndMessage]:
    trainer, world = settings.trainer, settings.trainer.devices * settings.trainer.num_nodes
    sharded_by_default = trainer.strategy == "auto" and world > 1 and trainer.accelerator != "cpu"
    if sharded_by_default and settings.model.quantization != "none":
        yield (
            ("trainer.strategy", "trainer.devices", "trainer.num_nodes", "model.quantization"),
            f"trainer.strategy=auto is fsdp2 on {world} devices, which cannot shard a {settings.model.quantization} "
            "base: set trainer.strategy=ddp, or model.quantization=none",
        )
