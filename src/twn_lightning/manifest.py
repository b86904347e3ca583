"""manifest.json of a finished run folder: size and SHA-256 of every file that is part of the result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from twn_lightning.atomic import whole_file
from twn_lightning.errors import CheckpointError

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
_FILES = ("config.yaml", "overrides.txt", "env.json", "metrics.jsonl", "metrics.json", "summary.json", "*.parquet")
_FOLDERS = ("adapters", "checkpoints", "eval", "gate_labels")


def write_manifest(folder: Path) -> None:
    """Write manifest.json for what a run folder holds now.

    Reports, profiles and loggers' files may come and change later; they are no part of it.
    """
    files = {name: _entry(folder / name) for name in _names(folder)}
    with whole_file(folder / MANIFEST) as temporary:
        content = {"schema_version": SCHEMA_VERSION, "files": files}
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def manifest_differences(folder: Path) -> list[str]:
    """What has changed in a run folder since its manifest was written, one sentence a file.

    Raises:
        CheckpointError: there is no manifest, or none that this release reads.
    """
    listed = _read(folder / MANIFEST)
    found = set(_names(folder))
    differences = [f"{name} is missing" for name in sorted(listed.keys() - found)]
    differences += [f"{name} was added after the run had finished" for name in sorted(found - listed.keys())]
    for name in sorted(found & listed.keys()):
        expected, now = listed[name], _entry(folder / name)
        if now["bytes"] != expected["bytes"]:
            differences.append(f"{name} has {now['bytes']} bytes, {expected['bytes']} when the run finished")
        elif now["sha256"] != expected["sha256"]:
            differences.append(f"{name} has other content than when the run finished, of the same size")
    return differences


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, listed = content["schema_version"], content["files"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: an older release wrote this run, or someone removed it") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is torn or altered ({type(error).__name__}: {error})") from error
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{path} has schema version {version}, this release reads {SCHEMA_VERSION}")
    return dict(listed)


def _names(folder: Path) -> list[str]:
    """The files that belong in the manifest, by their path in the folder."""
    found = [path for pattern in _FILES for path in folder.glob(pattern)]
    found += [path for name in _FOLDERS for path in (folder / name).rglob("*")]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file() and path.name[0] != ".")


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}
