"""What settings may not say together: ranges of single values, contradictions between values, needs of this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch

from twn_lightning import gate_rules, rollout_rules, source_rules, stage_rules, task_rules
from twn_lightning.errors import unknown_name
from twn_lightning.settings import GateStageSettings, RLSettings, Settings, SFTSettings


@dataclass(frozen=True)
class Problem:
    """A message, and the keys it rests on: when one of them could not be read, the message is not worth showing."""

    keys: tuple[str, ...]
    message: str


ROUTERS = ("never", "always", "adaptive", "random", "random_equal_tokens", "margin", "query_length", "oracle")
"""The names of gate.routers, which this layer cannot import; a test compares."""

_POSITIVE = "greater than 0"
_AT_LEAST_0 = "at least 0"
_AT_LEAST_1 = "at least 1"
_FRACTION = "at least 0 and below 1"

_CHECKS = {
    _POSITIVE: lambda v: v > 0,
    _AT_LEAST_0: lambda v: v >= 0,
    _AT_LEAST_1: lambda v: v >= 1,
    _FRACTION: lambda v: 0 <= v < 1,
    "above 0 and at most 1": lambda v: 0 < v <= 1,
    "above 0 and below 1": lambda v: 0 < v < 1,
    "at least 2": lambda v: v >= 2,
}

_RANGES: dict[str, str] = {
    "seed": _AT_LEAST_0,
    **dict.fromkeys(["model.min_pixels", "model.max_pixels", "model.max_frames"], _AT_LEAST_1),
    **dict.fromkeys([f"adapters.{a}.{k}" for a in ("reasoning", "embedding") for k in ("r", "alpha")], _AT_LEAST_1),
    "adapters.dropout": _FRACTION,
    "adapters.num_queries": _AT_LEAST_1,
    **dict.fromkeys(["gate.hidden", "gate.num_negatives"], _AT_LEAST_1),
    **dict.fromkeys(["gate.label_temperature", "gate.soft_scale", "adapters.query_std"], _POSITIVE),
    **dict.fromkeys(["gate.threshold", "gate.delta"], "above 0 and below 1"),
    "gate.price": _AT_LEAST_0,
    "gate.quality_tolerance": _FRACTION,
    "gate.token_budget": "above 0 and at most 1",
    **dict.fromkeys([f"data.{s}_pairs" for s in ("train", "rl", "gate", "calibration", "val", "test")], _AT_LEAST_1),
    **dict.fromkeys(["data.max_cot_tokens", "data.max_new_tokens", "data.rows_per_source_global"], _AT_LEAST_1),
    **dict.fromkeys(["data.seed", "data.num_workers", "data.hard_negatives"], _AT_LEAST_0),
    "data.num_frames": _AT_LEAST_1,
    **dict.fromkeys([f"trainer.{k}" for k in ("devices", "num_nodes", "val_every_steps")], _AT_LEAST_1),
    **dict.fromkeys(["trainer.log_every_steps", "trainer.checkpoint_every_steps"], _AT_LEAST_1),
    "trainer.profile_steps": _AT_LEAST_0,
    **dict.fromkeys([f"task.{k}" for k in ("num_frames", "min_pixels", "max_pixels")], _AT_LEAST_1),
    **dict.fromkeys(["evaluation.batch_size", "evaluation.bootstrap_samples"], _AT_LEAST_1),
    "evaluation.exit_tolerance": "above 0 and at most 1",
}

_STAGE_RANGES: dict[type, dict[str, str]] = {
    SFTSettings: {
        **dict.fromkeys(["batch_size", "embedding_batch_size", "stored_pairs"], "at least 2"),
        **dict.fromkeys(["chunk_size", "max_steps", "embedding_steps"], _AT_LEAST_1),
        **dict.fromkeys(["learning_rate", "embedding_learning_rate", "query_learning_rate"], _POSITIVE),
        **dict.fromkeys(["temperature", "clip_norm", "margin_mask"], _POSITIVE),
        **dict.fromkeys(["weight_decay", "cot_weight", "conflict_every_steps"], _AT_LEAST_0),
        **dict.fromkeys(["cross_query_generative", "cross_candidate_generative", "distill_weight"], _AT_LEAST_0),
        **dict.fromkeys(["warmup_ratio", "cut_cot_share"], _FRACTION),
    },
    GateStageSettings: {
        "batch_size": "at least 2",
        **dict.fromkeys(["max_epochs", "patience", "decode_batch_size"], _AT_LEAST_1),
        "learning_rate": _POSITIVE,
        "weight_decay": _AT_LEAST_0,
    },
    RLSettings: {
        "completions_per_prompt": "at least 2",
        **dict.fromkeys(["prompts_per_step", "max_steps", "updates_per_rollout", "chunk_size"], _AT_LEAST_1),
        **dict.fromkeys(["pool_size", "pool_refresh_steps"], _AT_LEAST_1),
        **dict.fromkeys(["learning_rate", "clip_norm", "sampling_temperature", "reward_temperature"], _POSITIVE),
        **dict.fromkeys(["clip_low", "clip_high"], "above 0 and below 1"),
        **dict.fromkeys(["kl", "min_live_groups"], _AT_LEAST_0),
        **dict.fromkeys(["format_weight", "rank_weight", "gap_weight"], _AT_LEAST_0),
    },
}


def problems(settings: Settings) -> list[Problem]:
    """Everything wrong with the settings, wherever they would run."""
    found = list(out_of_range(settings))
    found += [Problem(keys, message) for keys, message in source_rules.contradictions(settings.data)]
    found += [Problem(keys, message) for keys, message in task_rules.contradictions(settings.task)]
    for rules in (rollout_rules, stage_rules):
        found += [Problem(keys, message) for keys, message in rules.contradictions(settings)]
    if isinstance(settings.stage, GateStageSettings):
        found += [Problem(keys, message) for keys, message in gate_rules.contradictions(settings.gate, settings.data)]
    for rule in (_general, _backbone, _thinking, _sft, _rl, _trainer):
        found += rule(settings)
    return found


def out_of_range(settings: Settings) -> Iterator[Problem]:
    """Numbers that are too small or too large, each on its own."""
    ranges = {**_RANGES, **{f"stage.{k}": v for k, v in _STAGE_RANGES[type(settings.stage)].items()}}
    for key, allowed in ranges.items():
        value = attrgetter(key)(settings)
        if value is not None and not _CHECKS[allowed](value):
            yield Problem((key,), f"{key} must be {allowed}, not {value}")


def _general(settings: Settings) -> Iterator[Problem]:
    if settings.name in ("", ".", "..") or "/" in settings.name or not settings.name.isprintable():
        yield Problem(("name",), f"name must be a folder name without slashes, not {settings.name!r}")
    for router in settings.evaluation.routers:
        if router not in ROUTERS:
            yield Problem(("evaluation.routers",), "evaluation.routers: " + unknown_name("router", router, ROUTERS))


def _backbone(settings: Settings) -> Iterator[Problem]:
    model, adapters = settings.model, settings.adapters
    if model.min_pixels and model.max_pixels and model.max_pixels < model.min_pixels:
        yield Problem(
            ("model.min_pixels", "model.max_pixels"),
            f"model.max_pixels ({model.max_pixels}) is below model.min_pixels ({model.min_pixels}): no image size fits",
        )
    if adapters.arrangement == "shared" and adapters.prefix == "embedding":
        yield Problem(
            ("adapters.arrangement", "adapters.prefix"),
            "adapters.arrangement=shared has one adapter for both passes: set adapters.prefix to reasoning or none",
        )
    if adapters.dropout > 0 and not isinstance(settings.stage, SFTSettings):
        yield Problem(
            ("adapters.dropout", "stage"),
            f"adapters.dropout is {adapters.dropout}, but only stage 1 trains with dropout: the {settings.stage.name} "
            "stage reads the adapters as they will be used. Set adapters.dropout=0",
        )


def _thinking(settings: Settings) -> Iterator[Problem]:
    stage, sides = settings.stage, settings.data.think_sides
    if not isinstance(stage, SFTSettings):
        if sides != "query":
            yield Problem(
                ("data.think_sides",),
                f"data.think_sides={sides} trains stage sft only: the gate, RL and evaluation think on queries so "
                "far, set data.think_sides=query",
            )
        return
    if sides == "query" and stage.cross_candidate_generative > 0:
        yield Problem(
            ("data.think_sides", "stage.cross_candidate_generative"),
            f"stage.cross_candidate_generative is {stage.cross_candidate_generative}, but with data.think_sides=query "
            "candidates have no CoT: set it to 0, or data.think_sides=both",
        )
    for key in ("cross_query_generative", "distill_weight"):
        if sides == "candidate" and getattr(stage, key) > 0:
            yield Problem(
                ("data.think_sides", f"stage.{key}"),
                f"stage.{key} is {getattr(stage, key)}, but with data.think_sides=candidate queries have no CoT: set "
                "it to 0, or data.think_sides=both",
            )


def _sft(settings: Settings) -> Iterator[Problem]:
    stage = settings.stage
    if not isinstance(stage, SFTSettings):
        return
    if stage.schedule == "two_phase":
        conditions = [
            ("interface.name", settings.interface.name == "kv_joint", "kv_joint lets the contrastive loss reach it"),
            ("adapters.prefix", settings.adapters.prefix == "embedding", "the embedding adapter writes the caches"),
            ("adapters.arrangement", settings.adapters.arrangement == "shared", "both phases train one adapter"),
        ]
        for key, violated, why in conditions:
            if violated:
                yield Problem(
                    ("stage.schedule", key),
                    f"stage.schedule=two_phase trains the reasoning adapter first and then works on stored caches, but "
                    f"with {key}={attrgetter(key)(settings)} {why}: set stage.schedule=joint",
                )
    if any(dim < 1 for dim in stage.matryoshka_dims):
        yield Problem(("stage.matryoshka_dims",), f"stage.matryoshka_dims must be positive: {stage.matryoshka_dims}")


def _rl(settings: Settings) -> Iterator[Problem]:
    stage = settings.stage
    if not isinstance(stage, RLSettings):
        return
    if stage.clip_high < stage.clip_low:
        yield Problem(
            ("stage.clip_low", "stage.clip_high"),
            f"stage.clip_high ({stage.clip_high}) is below stage.clip_low ({stage.clip_low}): clip-higher is the "
            "asymmetry meant here, such as .2 and .28",
        )
    if stage.min_live_groups > stage.prompts_per_step:
        yield Problem(
            ("stage.min_live_groups", "stage.prompts_per_step"),
            f"stage.min_live_groups ({stage.min_live_groups}) is above stage.prompts_per_step "
            f"({stage.prompts_per_step}), so no rollout would ever change the weights: lower it",
        )
    if stage.format_weight + stage.rank_weight + stage.gap_weight == 0:
        keys = ("stage.format_weight", "stage.rank_weight", "stage.gap_weight")
        yield Problem(keys, "every reward weight is 0, so no completion is better than another: raise one of them")
    if settings.interface.name == "kv_joint":
        yield Problem(
            ("stage", "interface.name"),
            "stage=rl moves the reasoning adapter by its reward alone, interface=kv_joint would add the contrastive "
            "gradient: set interface=kv_detached (the forward pass is the same)",
        )
    if settings.adapters.arrangement == "shared":
        yield Problem(
            ("stage", "adapters.arrangement"),
            "stage=rl freezes the embedder, and adapters.arrangement=shared has no embedder of its own to freeze: "
            "set adapters.arrangement=dual",
        )


def _trainer(settings: Settings) -> Iterator[Problem]:
    trainer = settings.trainer
    world = trainer.devices * trainer.num_nodes
    if world > 1 and trainer.strategy == "single":
        yield Problem(
            ("trainer.devices", "trainer.num_nodes", "trainer.strategy"),
            f"trainer.strategy=single runs on one device, but devices x num_nodes = {world}: set trainer.strategy to "
            "auto, ddp or fsdp2, or trainer.devices=1",
        )
    if trainer.strategy == "fsdp2" and settings.model.quantization != "none":
        yield Problem(
            ("trainer.strategy", "model.quantization"),
            f"trainer.strategy=fsdp2 cannot shard a {settings.model.quantization} base: set model.quantization=none, "
            "or trainer.strategy=ddp",
        )
    rows_key = "prompts_per_step" if isinstance(settings.stage, RLSettings) else "batch_size"
    rows = getattr(settings.stage, rows_key)
    if world > 1 and rows % world:
        yield Problem(
            ("trainer.devices", "trainer.num_nodes", f"stage.{rows_key}"),
            f"stage.{rows_key} ({rows}) is the global number and must divide among {world} devices",
        )


def machine_problems(settings: Settings) -> list[Problem]:
    """What the settings need that this machine does not have."""
    return [*_missing_devices(settings), *_missing_files(settings), *_missing_packages(settings)]


def _missing_devices(settings: Settings) -> Iterator[Problem]:
    trainer = settings.trainer
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if trainer.accelerator == "cuda" and cuda == 0:
        yield Problem(
            ("trainer.accelerator",),
            f"trainer.accelerator=cuda, but torch {torch.__version__} finds no CUDA device: "
            "set trainer.accelerator=cpu, or see `twn doctor` for what is installed",
        )
    elif trainer.accelerator != "cpu" and 0 < cuda < trainer.devices:
        yield Problem(
            ("trainer.devices",), f"trainer.devices is {trainer.devices}, but this machine has {cuda}: set at most that"
        )
    needs_cuda = {"model.attention": "flash_attention_2", "model.quantization": "nf4"}
    for key, value in needs_cuda.items():
        if attrgetter(key)(settings) == value and (cuda == 0 or trainer.accelerator == "cpu"):
            other = "sdpa" if key == "model.attention" else "none"
            yield Problem((key,), f"{key}={value} runs on CUDA only, and this run has none: set {key}={other}")


def _missing_files(settings: Settings) -> Iterator[Problem]:
    path, data = settings.model.path, settings.data
    if path is not None and path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        yield Problem(("model.path",), f"model.path={path}: there is no such folder")
    for keys, message in [*source_rules.missing(data), *task_rules.missing(settings.task)]:
        yield Problem(keys, message)


def _missing_packages(settings: Settings) -> Iterator[Problem]:
    wanted = [
        ("model.attention", settings.model.attention == "flash_attention_2", "flash_attn", "pip install -e '.[flash]'"),
        ("model.quantization", settings.model.quantization == "nf4", "bitsandbytes", "pip install bitsandbytes"),
        ("stage.rollout_engine", rollout_rules.uses_vllm(settings), "vllm", "pip install -e '.[vllm]'"),
        ("logger.name", settings.logger.name == "wandb", "wandb", "pip install wandb"),
        ("logger.name", settings.logger.name == "tensorboard", "tensorboard", "pip install tensorboard"),
    ]
    for key, asked, package, remedy in wanted:
        if asked and not importable(package):
            yield Problem(
                (key,),
                f"{key}={attrgetter(key)(settings)} needs the package {package}, which is not installed: {remedy}",
            )


def importable(package: str) -> bool:
    """Whether a package could be imported, without importing it."""
    return importlib.util.find_spec(package) is not None
