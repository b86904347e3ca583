"""What `twn doctor` finds: versions, extras, devices, attention, packaged assets, and the memory a config needs."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from twn_lightning.backbone.loading import choose_attention
from twn_lightning.backbone.packaged import PACKAGED, adapters_command, pretraining_command
from twn_lightning.backbone.parameters import SHAPES, LanguageModelShape, added_parameters
from twn_lightning.environment import version_of
from twn_lightning.settings import GateStageSettings, RLSettings, Settings

DISTRIBUTION = "twn_lightning"
VISION_PARAMETERS = {"qwen3vl_2b": 0.41e9, "qwen3vl_4b": 0.41e9, "qwen3vl_8b": 0.58e9}
"""Vision tower and mergers, from their shapes."""

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was looked at, what was found, and what to do where something is missing."""

    subject: str
    found: str
    good: bool = True
    remedy: str = ""


def packages() -> list[Finding]:
    """Every required package with its version, then every extra with what it lacks."""
    required, extras = _requirements()
    findings = [_package(requirement) for requirement in required]
    for extra, requirements in extras.items():
        missing = [r for r in requirements if version_of(r) is None]
        found = "complete" if not missing else f"without {', '.join(missing)}"
        remedy = f"pip install '{DISTRIBUTION}[{extra}]'" if missing else ""
        findings.append(Finding(f"extra {extra}", found, not missing, remedy))
    return findings


def _package(name: str) -> Finding:
    version = version_of(name)
    return Finding(name, version or "missing", version is not None, "" if version else f"pip install {name}")


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Names of the core requirements, and of each extra's, from the package's own metadata."""
    core: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        name = re.split(r"[ \[<>=!~;]", line, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        if extra:
            extras.setdefault(extra[1], []).append(name)
        else:
            core.append(name)
    return core, extras


def devices() -> Iterator[Finding]:
    """CPU and CUDA, and which attention would run where."""
    yield Finding("cpu", f"{torch.get_num_threads()} threads, float32 (bfloat16 is about 10 times slower without AMX)")
    names = [torch.device("cpu")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield Finding(f"cuda:{index}", f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
        names.append(torch.device("cuda"))
    else:
        why = "this torch is built without CUDA" if torch.version.cuda is None else "the driver shows no device"
        yield Finding("cuda", f"none: {why}", False, "needed for qwen3vl backbones only; install a CUDA build of torch")
    for device in names:
        attention = choose_attention("auto", device)
        text = f"language {attention['text_config']}, vision {attention['vision_config']}"
        yield Finding(f"attention on {device.type}", text)


def assets() -> Iterator[Finding]:
    """The packaged backbones and their trained adapters."""
    for name, folder in PACKAGED.items():
        yield _asset(f"{name} backbone", folder, "model.safetensors", pretraining_command(name))
        yield _asset(f"{name} adapters", folder / "adapters", "queries.pt", adapters_command(name))


def _asset(name: str, folder: Path, witness: str, remedy: str) -> Finding:
    if not (folder / witness).is_file():
        return Finding(name, f"missing from {folder}", False, remedy)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Finding(name, f"{size / 1e6:.1f} MB")


def memory(settings: Settings, tokens_per_item: int) -> list[Finding]:
    """An estimate of the device memory that one process of a run needs, part by part.

    Weights, optimizer and cache follow from shapes. Activations are those a layer keeps for its backward pass, summed
    without allocator overhead or the attention's workspace: expect up to a quarter more.

    Args:
        settings: of the run; one of the Qwen3-VL backbones.
        tokens_per_item: prompt and CoT tokens of an item, visual tokens included.

    Returns:
        One finding for each part and their sum; a single one where the backbone's shapes are not known.
    """
    name = settings.model.name
    if name not in SHAPES:
        return [Finding("memory", f"{name} needs well below 1 GiB: no estimate")]
    shape = SHAPES[name]
    counts = added_parameters(shape, settings.adapters)
    shards = settings.trainer.devices * settings.trainer.num_nodes if _is_sharded(settings) else 1
    weight_bytes = _bytes_per_weight(settings)
    rows = _rows_at_once(settings)
    value_bytes = 4 if settings.trainer.precision == "32-true" else 2
    trained = _trained_parameters(settings, counts)
    parts = {
        f"weights, {settings.model.quantization} {settings.model.dtype}, 1/{shards}": (
            shape.parameters + VISION_PARAMETERS[name]
        )
        * weight_bytes
        / shards,
        f"adapters and queries, float32, 1/{shards}": counts["added"] * 4 / shards,
        f"gradients and AdamW of {trained / 1e6:.0f} M parameters, 1/{shards}": trained * 12 / shards,
        f"cache of {rows} x {tokens_per_item} tokens": rows * tokens_per_item * _cache_bytes(shape, value_bytes),
        f"activations of {rows} x {tokens_per_item} tokens": rows
        * tokens_per_item
        * _activation_bytes(shape, settings, value_bytes),
    }
    findings = [Finding(part, f"{size / GIB:8.1f} GiB") for part, size in parts.items()]
    return [*findings, _total(sum(parts.values()))]


def _total(size: float) -> Finding:
    if not torch.cuda.is_available():
        return Finding("sum, a device", f"{size / GIB:8.1f} GiB")
    available = torch.cuda.get_device_properties(0).total_memory
    fits = size < 0.9 * available
    remedy = "" if fits else "lower stage.chunk_size, set interface.activation_checkpointing=true, or shard over more"
    return Finding("sum, a device", f"{size / GIB:8.1f} GiB of {available / GIB:.1f}", fits, remedy)


def _is_sharded(settings: Settings) -> bool:
    trainer = settings.trainer
    return trainer.strategy == "fsdp2" or (trainer.strategy == "auto" and trainer.devices * trainer.num_nodes > 1)


def _bytes_per_weight(settings: Settings) -> float:
    if settings.model.quantization == "nf4":
        return 0.56  # 4 bits, and the doubly quantised scales
    return 4 if settings.model.dtype == "float32" else 2


def _rows_at_once(settings: Settings) -> int:
    stage = settings.stage
    return stage.decode_batch_size if isinstance(stage, GateStageSettings) else stage.chunk_size


def _trained_parameters(settings: Settings, counts: dict[str, int]) -> int:
    if isinstance(settings.stage, GateStageSettings):
        return 0
    return counts["reasoning"] if isinstance(settings.stage, RLSettings) else counts["added"]


def _cache_bytes(shape: LanguageModelShape, value_bytes: int) -> float:
    """Keys and values of one token over all layers."""
    return 2 * shape.layers * shape.key_value_heads * shape.head_dim * value_bytes


def _activation_bytes(shape: LanguageModelShape, settings: Settings, value_bytes: int) -> float:
    """What the backward pass reads of one token: inputs of norms and linears, attention's inputs and output."""
    if isinstance(settings.stage, GateStageSettings):
        return 0
    if settings.interface.activation_checkpointing:
        return shape.layers * shape.hidden * value_bytes
    queries, keys = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    layer = 6 * shape.hidden + 2 * queries + 2 * keys + 4 * shape.intermediate
    return shape.layers * layer * value_bytes
