"""What a stage may not ask of its data, its losses and its devices. Split from `rules`, which calls it."""

from __future__ import annotations

from collections.abc import Iterator

from twn_lightning.settings import Settings, SFTSettings

KeysAndMessage = tuple[tuple[str, ...], str]


def contradictions(settings: Settings) -> Iterator[KeysAndMessage]:
    """The keys a problem rests on, and what is wrong."""
    yield from _quantization(settings)
    if isinstance(settings.stage, SFTSettings):
        yield from _sub_batches(settings, settings.stage)
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
