"""`twn export`: trained adapters as a folder in the released layout, with a model card, and onto the Hub.

    FOLDER/reasoning/ embedding/ gate_mlp.pt queries.pt twn_config.json    the released layout, and our settings
    FOLDER/modules.json config_sentence_transformers.json twn_module.json  for sentence-transformers
    FOLDER/README.md                                                       the model card

The backbone is not in it, and is not loaded: files are copied as training wrote them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from twn_lightning.atomic import write_text
from twn_lightning.backbone.adapters import lora_settings
from twn_lightning.backbone.layout import CONFIG_FILE, GATE_FILE, QUERIES_FILE, read_config, require_files, settings_of
from twn_lightning.backbone.loading import HUB_IDS, adapters_folder, model_of
from twn_lightning.errors import ConfigError, DataError, unknown_name
from twn_lightning.interop.model_card import model_card
from twn_lightning.interop.training_record import evaluation_of, stages_of
from twn_lightning.json_object import write_json
from twn_lightning.types import EmbeddingMode

MODULE_FILE = "twn_module.json"
MODULE_CLASS = "twn_lightning.interop.sentence_transformers.TWNModule"
PEFT_CONFIG = "adapter_config.json"


def export_model(
    source: str | Path,
    folder: Path,
    *,
    name: str | None = None,
    evaluation: Path | None = None,
    mode: str | None = None,
    document_mode: str | None = None,
    licence: str = "apache-2.0",
    overwrite: bool = False,
) -> Path:
    """Write a folder that `TWNEncoder.from_pretrained` and `SentenceTransformer` load.

    Args:
        source: a run folder, a folder of adapters, or a packaged backbone's name for its own.
        folder: what to write.
        name: what the card calls the model; the folder's name by default.
        evaluation: the run of `twn evaluate` whose numbers the card gives; the source's own by default.
        mode: of queries in sentence-transformers; None: adaptive where there is a gate, else discriminative.
        document_mode: of documents; None: discriminative.
        licence: of the adapters, as an identifier of the Hub.
        overwrite: replace an export that is there.

    Returns:
        The folder.

    Raises:
        AdapterError: no adapters there.
        ConfigError: the folder is in the way, an unknown mode, or a mode that needs a gate and there is none.
        DataError: an evaluation that is none.
    """
    adapters = adapters_folder(source)
    settings, _ = settings_of(adapters)
    loras = list(lora_settings(settings))
    require_files(adapters, loras)
    _check_modes(adapters, mode, document_mode)
    measured = evaluation_of(evaluation or adapters.parent, required=evaluation is not None)
    _check_evaluation(measured, read_config(adapters))
    card = model_card(
        name or folder.name,
        adapters=adapters,
        stages=stages_of(adapters),
        evaluation=measured,
        licence=licence,
    )
    _make_room(folder, adapters, overwrite)
    for lora in loras:
        shutil.copytree(adapters / lora, folder / lora)
        _name_base_model(folder / lora / PEFT_CONFIG, HUB_IDS.get(model_of(adapters).name))
    for file in (QUERIES_FILE, GATE_FILE):
        if (adapters / file).is_file():
            shutil.copy(adapters / file, folder / file)
    if (adapters / CONFIG_FILE).is_file():
        write_json(folder / CONFIG_FILE, _without_paths(read_config(adapters)))
    write_json(folder / MODULE_FILE, {"mode": mode, "document_mode": document_mode})
    modules = [{"idx": 0, "name": "0", "path": "", "type": MODULE_CLASS}]
    write_text(folder / "modules.json", json.dumps(modules, indent=2) + "\n")
    sentence_transformers = {"prompts": {"query": "", "document": ""}, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", sentence_transformers)
    write_text(folder / "README.md", card)
    return folder


def push_to_hub(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload an export to a repository on the Hub, which is made if it is not there.

    Args:
        folder: what `export_model` wrote.
        repo_id: `owner/name`.
        private: of a repository that is made.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Export of twn_lightning")
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{folder} is written, but {repo_id} cannot be pushed to: {first}. Log in with `hf auth login`, or upload "
            f"it later with `hf upload {repo_id} {folder}`"
        ) from error
    return str(commit.commit_url)


def _check_modes(adapters: Path, *modes: str | None) -> None:
    known = [mode.value for mode in EmbeddingMode]
    for mode in modes:
        if mode is not None and mode not in known:
            raise ConfigError(unknown_name("mode", mode, known))
        if mode == EmbeddingMode.ADAPTIVE.value and not (adapters / GATE_FILE).is_file():
            raise ConfigError(f"mode 'adaptive' needs a gate, and {adapters} has none: train one with stage=gate")


def _check_evaluation(summary: dict[str, Any] | None, config: dict[str, Any]) -> None:
    """An evaluation under another threshold than the gate's own is one of other adapters."""
    theirs, own = (summary or {}).get("threshold"), config.get("gate_threshold")
    if theirs is not None and own is not None and abs(theirs - own) > 1e-6:
        raise DataError(
            f"the evaluation is of other adapters: its gate's threshold is {theirs:.4f}, here it is {own:.4f}. Name the"
            " run of `twn evaluate` whose adapters.init_from is what you export"
        )


def _make_room(folder: Path, adapters: Path, overwrite: bool) -> None:
    """Make the folder; an export that is there goes if it may, anything else stays."""
    if folder.resolve() == adapters.resolve():
        raise ConfigError(f"{folder} holds the adapters that are to be exported: name another folder")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MODULE_FILE).is_file():
            raise ConfigError(f"{folder} is not empty and no earlier export: name another folder")
        if not overwrite:
            raise ConfigError(f"{folder} holds an earlier export: name another folder, or pass --overwrite")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The settings without the folder that training started from, which is of this machine."""
    return {**config, "adapters": {**config["adapters"], "init_from": None}}


def _name_base_model(path: Path, hub_id: str | None) -> None:
    """Tell PEFT which backbone an adapter is for, where the Hub has it."""
    if hub_id is not None:
        config = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**config, "base_model_name_or_path": hub_id})
