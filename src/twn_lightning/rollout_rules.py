"""What `stage.rollout_engine=vllm` cannot be combined with. Split from `rules`, which calls it."""

from __future__ import annotations

from collections.abc import Iterator

from twn_lightning.settings import RLSettings, Settings

KeysAndMessage = tuple[tuple[str, ...], str]


def uses_vllm(settings: Settings) -> bool:
    """Whether the run samples completions with vLLM."""
    return isinstance(settings.stage, RLSettings) and settings.stage.rollout_engine == "vllm"


def contradictions(settings: Settings) -> Iterator[KeysAndMessage]:
    """The keys a problem rests on, and what is wrong."""
    stage, model, trainer = settings.stage, settings.model, settings.trainer
    if not isinstance(stage, RLSettings) or not uses_vllm(settings):
        return
    world = trainer.devices * trainer.num_nodes
    conditions = [
        (
            ("stage.sampling_temperature",),
            stage.sampling_temperature != 1,
            f"stage.sampling_temperature is {stage.sampling_temperature}, but vLLM reports log-probabilities from "
            "before the temperature, or with the ban on image tokens in them, and the loss can use neither: set "
            "stage.sampling_temperature=1",
        ),
        (
            ("trainer.devices", "trainer.num_nodes"),
            world > 1,
            f"stage.rollout_engine=vllm shares one device with the training, but devices x num_nodes = {world}: set "
            "both to 1, or stage.rollout_engine=builtin",
        ),
        (
            ("model.quantization",),
            model.quantization != "none",
            f"stage.rollout_engine=vllm would sample from the unquantised backbone, not from the {model.quantization} "
            "one that trains: set model.quantization=none, or stage.rollout_engine=builtin",
        ),
        (
            ("model.name",),
            model.name == "tiny",
            "stage.rollout_engine=vllm loads the backbone from a folder or from the hub, and model.name=tiny is built "
            "in memory: choose another model, or set stage.rollout_engine=builtin",
        ),
    ]
    for keys, violated, message in conditions:
        if violated:
            yield ("stage.rollout_engine", *keys), message
