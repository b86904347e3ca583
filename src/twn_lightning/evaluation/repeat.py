"""What a score file keeps so that its scores can be computed again: settings, digests of the adapters, versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twn_lightning.backbone.loading import adapters_folder
from twn_lightning.backbone.packaged import default_adapters
from twn_lightning.environment import version_of
from twn_lightning.evaluation.embedding_cache import identity_digest
from twn_lightning.evaluation.encoders.protocol import Encoder
from twn_lightning.manifest import file_digest
from twn_lightning.settings import Settings
from twn_lightning.types import EmbeddingMode, Side
from twn_lightning.validation import settings_to_dict

VERSIONED = ("twn_lightning", "torch", "transformers", "numpy")
"""Packages whose versions a score file names."""


def repeat_record(settings: Settings) -> dict[str, Any]:
    """The entry `repeat` of a score file.

    Returns:
        `settings`, all of the run's; `adapters`, SHA-256 by file, empty for encoders that have none.
    """
    folder = evaluated_adapters(settings)
    return {"settings": settings_to_dict(settings), "adapters": {} if folder is None else adapter_digests(folder)}


def encoder_record(encoder: Encoder, mode: EmbeddingMode, settings: Settings) -> dict[str, Any]:
    """Where the scores of a data source come from: `encoder`, `versions` and `repeat`.

    Args:
        encoder: what was scored.
        mode: of the queries.
        settings: of the run.
    """
    digest = identity_digest(encoder.identity(Side.QUERY, mode))
    return {
        "encoder": {"name": encoder.name, "digest": digest, "dimension": encoder.dimension},
        "versions": {name: version_of(name) for name in VERSIONED},
        "repeat": repeat_record(settings),
    }


def evaluated_adapters(settings: Settings) -> Path | None:
    """The folder of the adapters that these settings evaluate; None for encoders that have none."""
    if settings.task.encoder != "twn":
        return None
    return adapters_folder(settings.adapters.init_from or default_adapters(settings.model.name))


def adapter_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files in a folder of adapters, by their path in it; without cards and other texts."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".pt", ".json"))
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
