"""The released layout on disk: `reasoning/`, `embedding/`, `gate_mlp.pt`, `queries.pt`, and our `twn_config.json`.

Adapters are ordinary PEFT folders. Loading is strict: whatever is missing, unexpected, wrongly shaped or made for
another backbone is an error that names it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from twn_lightning.atomic import whole_file
from twn_lightning.backbone.adapter_files import (
    PEFT_CONFIG_FILE,
    read_gate,
    read_peft_config,
    read_queries,
    read_tensors,
)
from twn_lightning.backbone.adapters import (
    EMBEDDING,
    REASONING,
    assign,
    check_tensors,
    check_update,
    full_tensor,
    lora_settings,
)
from twn_lightning.backbone.processor import PROMPT_VERSION
from twn_lightning.errors import AdapterError, ConfigError
from twn_lightning.json_object import read_json_object
from twn_lightning.settings import AdapterSettings, InterfaceSettings, LoraSettings
from twn_lightning.validation import section_from_dict

if TYPE_CHECKING:
    from twn_lightning.backbone.dual_lora import DualLoRABackbone

SCHEMA_VERSION = 1
_CONFIG_KINDS = {
    "prompt_version": int,
    "interface": str,
    "adapters": dict,
    "backbone.name": str,
    "backbone.digest": str,
}
CONFIG_FILE, QUERIES_FILE, GATE_FILE = "twn_config.json", "queries.pt", "gate_mlp.pt"
PEFT_PREFIX = "base_model.model."
_TEXT_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
_VISION_SIZES = ("depth", "hidden_size", "intermediate_size", "num_heads", "patch_size")


def backbone_digest(model: nn.Module) -> str:
    """SHA-256 over the sizes and a sample of the weights, equal for float32, bfloat16 and 4-bit loads of one model.

    Samples token embeddings, norms and the patch projection, which quantisation leaves alone, rounded to bfloat16.
    """
    config: Any = model.config
    digest = hashlib.sha256()
    # Named one by one: what else a config knows of itself differs between releases of transformers.
    for part, names in ((config.text_config, _TEXT_SIZES), (config.vision_config, _VISION_SIZES)):
        digest.update(json.dumps({name: getattr(part, name) for name in names}).encode())
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name or not any(part in name for part in ("embed_tokens", "norm", "patch_embed")):
            continue
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 1024)].to(torch.bfloat16).float().cpu().numpy()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()


def save(
    backbone: DualLoRABackbone, folder: str | Path, gate_state: dict[str, Any] | None, extra: dict[str, Any] | None
) -> None:
    """Write adapters, queries, gate and settings; overwrites what is there.

    Args:
        backbone: its trained parts are written, `reasoning_reference` never.
        folder: created if missing.
        gate_state: the gate's state dictionary, or None to write no gate.
        extra: further plain values for `twn_config.json`, such as the gate's threshold.
    """
    folder = Path(folder)
    for name in lora_settings(backbone.settings):
        save_adapter(backbone, name, folder / name)
    _save_pt({"queries": full_tensor(backbone.queries)}, folder / QUERIES_FILE)
    if gate_state is not None:
        _save_pt(gate_state, folder / GATE_FILE)
    config = {
        "schema_version": SCHEMA_VERSION,
        "prompt_version": PROMPT_VERSION,
        "interface": backbone.interface.name,
        "num_queries": backbone.settings.num_queries,
        "pooling": backbone.settings.pooling,
        "backbone": {"name": backbone.name, "digest": backbone.digest},
        "adapters": asdict(backbone.settings),
        **(extra or {}),
    }
    with whole_file(folder / CONFIG_FILE) as temporary:  # the last one: without it the folder does not load
        temporary.write_text(json.dumps(config, indent=2) + "\n")


def save_adapter(backbone: DualLoRABackbone, name: str, folder: Path) -> None:
    """Write one adapter as a PEFT folder, created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_peft_key(k): full_tensor(p) for k, p in backbone.adapters.named_parameters(name).items()}
    with tempfile.TemporaryDirectory(dir=folder) as scratch, whole_file(folder / PEFT_CONFIG_FILE) as temporary:
        backbone.adapters.config(name).save_pretrained(scratch)
        Path(scratch, PEFT_CONFIG_FILE).replace(temporary)
    with whole_file(folder / "adapter_model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def _peft_key(name: str) -> str:
    return PEFT_PREFIX + name


def read_config(folder: str | Path) -> dict[str, Any]:
    """`twn_config.json` of an adapter folder; of a folder as the authors release theirs, what its files say.

    Raises:
        AdapterError: the folder is none, or the schema of its file is newer than this package.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file() and (Path(folder) / QUERIES_FILE).is_file():
        return _released_config(Path(folder))
    if not path.is_file():
        raise AdapterError(
            f"no {CONFIG_FILE} in {folder}: {_listing(Path(folder))}. Point to a run's `adapters` folder"
        )
    remedy = "copy the folder again, or load it with the release that wrote it"
    return read_json_object(path, AdapterError, remedy, _CONFIG_KINDS, SCHEMA_VERSION)


def _released_config(folder: Path) -> dict[str, Any]:
    """Settings of a folder without `twn_config.json`: sizes as in its files, the rest our reading of the paper."""
    peft = {name: read_peft_config(folder, name) for name in (REASONING, EMBEDDING)}
    reasoning, embedding = (LoraSettings(found["r"], found["lora_alpha"]) for found in peft.values())
    queries_KD = read_queries(folder / QUERIES_FILE)
    settings = AdapterSettings(reasoning=reasoning, embedding=embedding, num_queries=len(queries_KD))
    return {
        "interface": InterfaceSettings().name,
        "backbone": {"name": peft[REASONING].get("base_model_name_or_path"), "digest": None},
        "adapters": asdict(settings),
    }


def settings_of(folder: str | Path) -> tuple[AdapterSettings, InterfaceSettings]:
    """The settings a saved adapter folder was trained with, to load a backbone that fits it.

    Raises:
        AdapterError: the folder is none, or its settings are not ones that this package knows.
    """
    config = read_config(folder)
    try:
        interface = section_from_dict(InterfaceSettings, {"name": config["interface"]}, "interface")
        return section_from_dict(AdapterSettings, config["adapters"], "adapters"), interface
    except ConfigError as error:
        raise AdapterError(f"{Path(folder) / CONFIG_FILE} does not fit this package: {error}") from error


def load(backbone: DualLoRABackbone, folder: str | Path) -> dict[str, Any] | None:
    """Load adapters and queries into a backbone.

    Returns:
        The gate's state dictionary, or None where the folder has no gate.

    Raises:
        AdapterError: see the module's first lines.
    """
    folder = Path(folder)
    names = list(lora_settings(backbone.settings))
    require_files(folder, names)
    if (folder / CONFIG_FILE).is_file():
        _check_config(backbone, folder)
    else:
        warnings.warn(f"{folder} has no {CONFIG_FILE}: only names and shapes can be checked", stacklevel=3)
    pending: list[tuple[nn.Parameter, Tensor]] = []
    for name in names:
        found = read_tensors(folder / name / "adapter_model.safetensors")
        own = {_peft_key(k): p for k, p in backbone.adapters.named_parameters(name).items()}
        check_tensors(f"{folder / name}", found, {k: p.shape for k, p in own.items()})
        _check_scaling(backbone, folder, name)
        pending += [(own[k], found[k]) for k in own if k in found]
        check_update(f"{folder / name}", found)
    queries_KD = read_queries(folder / QUERIES_FILE)
    if queries_KD.shape != backbone.queries.shape:
        raise AdapterError(
            f"{folder / QUERIES_FILE}: queries are {tuple(queries_KD.shape)}, expected (K, D) = "
            f"{tuple(backbone.queries.shape)}: set num_queries"
        )
    pending.append((backbone.queries, queries_KD))
    gate = read_gate(folder / GATE_FILE) if (folder / GATE_FILE).is_file() else None
    for parameter, value in pending:
        assign(parameter, value)
    return gate


def require_files(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder that lacks the queries or the weights of an adapter.

    Raises:
        AdapterError: naming what is missing, and what is there.
    """
    needed = [QUERIES_FILE, *(f"{name}/adapter_model.safetensors" for name in names)]
    missing = [file for file in needed if not (folder / file).is_file()]
    if missing:
        raise AdapterError(f"{folder} is not an adapter folder: {', '.join(missing)} missing; {_listing(folder)}")


def _check_config(backbone: DualLoRABackbone, folder: Path) -> None:
    config = read_config(folder)
    trained = config["backbone"]
    if trained["digest"] != backbone.digest:
        raise AdapterError(
            f"the adapters in {folder} were trained for backbone '{trained['name']}' (digest "
            f"{trained['digest'][:12]}), this one is '{backbone.name}' (digest {backbone.digest[:12]}). "
            f"Set model.name to '{trained['name']}', or train adapters for this backbone"
        )
    if config["prompt_version"] != PROMPT_VERSION:
        raise AdapterError(
            f"{folder}: prompt version {config['prompt_version']}, this package renders {PROMPT_VERSION}"
        )
    mine = asdict(backbone.settings) | {"interface": backbone.interface.name}
    theirs = config["adapters"] | {"interface": config["interface"]}
    keys = ("arrangement", "prefix", "num_queries", "query_attention", "pooling", "interface", REASONING, EMBEDDING)
    differing = [f"{k} is {theirs.get(k)} there and {mine[k]} here" for k in keys if theirs.get(k) != mine[k]]
    if differing:
        raise AdapterError(
            f"{folder} was trained with other settings: {'; '.join(differing)}. Set them to what is there"
        )


def _check_scaling(backbone: DualLoRABackbone, folder: Path, name: str) -> None:
    """Alpha is not in the tensors: another one loads without complaint and scales every update."""
    theirs, own = read_peft_config(folder, name), backbone.adapters.config(name)
    for key in ("r", "lora_alpha", "use_rslora", "use_dora"):
        if theirs.get(key, False) != getattr(own, key):
            raise AdapterError(
                f"{folder / name}: {key} is {theirs.get(key)}, the backbone was built with {getattr(own, key)}"
            )


def _save_pt(content: dict[str, Any], path: Path) -> None:
    with whole_file(path) as temporary, temporary.open("wb") as file:  # torch would store the name of a path
        torch.save(content, file)


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    return "it holds " + (", ".join(sorted(p.name for p in folder.iterdir())) or "nothing")
