"""What `twn doctor` finds: versions, extras, devices, attention, packaged assets, and the memory a config needs."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from twn_lightning.backbone.loading import choose_attention
from twn_lightning.backbone.packaged import PACKAGED, adapters_command, altered_files, pretraining_command
from twn_lightning.checks import CHECKS
from twn_lightning.environment import version_of
from twn_lightning.planning import items_of, memory_parts, model_shape, usual_device
from twn_lightning.planning.constants import GIB
from twn_lightning.settings import Settings

DISTRIBUTION = "twn_lightning"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was looked at, what was found, and what to do where something is missing."""

    subject: str
    found: str
    good: bool = True
    remedy: str = ""


CHECKS_PAGE = """\
# Checks

What goes wrong without an error is watched for by checks. `error` ends the run with a message that names the item, the
numbers and what to do. `warning` is logged once a run and kept in the run folder's `status.json` under `warnings`.

`TWN_CHECKS=-loss_spike,-tie_rate twn train ...` switches checks off. `non_finite` has no switch: no number behind it
would mean anything. This page is the output of `twn doctor --checks`.

| check | watches | while | a problem is |
| --- | --- | --- | --- |
{rows}
"""


def checks_page() -> str:
    """The content of docs/checks.md."""
    rows = (f"| `{name}` | {check.watches} | {check.when} | {check.severity} |" for name, check in CHECKS.items())
    return CHECKS_PAGE.format(rows="\n".join(rows))


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
    if altered := altered_files(folder):
        return Finding(name, f"altered: {', '.join(altered)}", False, "install the package again")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Finding(name, f"{size / 1e6:.1f} MB")


def memory(settings: Settings, tokens_per_item: int) -> list[Finding]:
    """An estimate of the device memory that one process of a run needs, part by part, by the formulas of `twn plan`.

    Args:
        settings: of the run.
        tokens_per_item: of a query's prompt and padded CoT, visual tokens included.

    Returns:
        One finding for each part and their sum.

    Raises:
        ConfigError: a model whose sizes are not known.
    """
    device = usual_device(settings.model)
    items = items_of(settings.model).scaled_to(tokens_per_item)
    found = memory_parts(model_shape(settings.model), settings, device, items)
    findings = [Finding(part, f"{size / GIB:8.1f} GiB") for part, size in found.parts.items()]
    return [*findings, _total(found.total)]


def _total(size: float) -> Finding:
    if not torch.cuda.is_available():
        return Finding("sum, a device", f"{size / GIB:8.1f} GiB")
    available = torch.cuda.get_device_properties(0).total_memory
    fits = size < 0.9 * available
    remedy = "" if fits else "lower stage.chunk_size, set interface.activation_checkpointing=true, or shard over more"
    return Finding("sum, a device", f"{size / GIB:8.1f} GiB of {available / GIB:.1f}", fits, remedy)
