"""JSON files that hold one object: written whole or not at all; whatever else such a file holds is one error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twn_lightning.atomic import write_text
from twn_lightning.errors import TWNError


def read_json_object(
    path: Path,
    error: type[TWNError],
    remedy: str,
    kinds: Mapping[str, type] | None = None,
    schema_version: int | None = None,
) -> dict[str, Any]:
    """Read a file that must hold a JSON object.

    Args:
        path: the file.
        error: what to raise.
        remedy: the end of its message: what to do.
        kinds: the type of each entry that must be there; `encoder.dimension` is an entry of the entry `encoder`.
        schema_version: that the object must have, if any.

    Raises:
        TWNError: of the class `error`: the file cannot be read, is no JSON object, is of another version, or lacks an
            entry of that type.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise error(f"{path} is broken ({problem}): {remedy}") from problem
    if not isinstance(found, dict):
        raise error(f"{path} is broken (it holds a JSON {type(found).__name__}, not an object): {remedy}")
    version = found.get("schema_version")
    if schema_version is not None and version != schema_version:
        raise error(f"{path} has schema version {version!r:.80}, this release reads {schema_version}: {remedy}")
    for name, kind in (kinds or {}).items():
        value: Any = found
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if type(value) is not kind:
            raise error(f"{path} is broken ({name!r} must be {kind.__name__}, it is {value!r:.80}): {remedy}")
    return found


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(plain_values(values), indent=2) + "\n")


def plain_values(value: Any) -> Any:
    """Tensors and numpy scalars as Python values; what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(k): plain_values(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(v) for v in value]
    if hasattr(value, "tolist"):
        return plain_values(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
