"""Reads an offline wandb run as `wandb sync` would: records of wandb's own protocol in a LevelDB log."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, FILE_HEADER, CHUNK_HEADER = 32768, 7, 7
FULL, LAST = 1, 4


@dataclass
class OfflineRun:
    """What one `.wandb` file holds."""

    run_id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """With `_step`; nested keys are joined by dots."""
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    staged: list[Path] = field(default_factory=list)
    """Files of tables and pictures that are still to be uploaded."""

    def logged(self, name: str) -> list[Any]:
        return [row[name] for row in self.history if name in row]

    @property
    def names(self) -> set[str]:
        """Of values and tables, in history and summary."""
        names = {name for row in [*self.history, self.summary] for name in row}
        return {name.removesuffix("._type") for name in names}


def offline_runs(run_dir: Path) -> list[OfflineRun]:
    """All starts of a run, in order of time."""
    return [read_run(path) for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))]


def read_run(path: Path, patience: float = 60.0) -> OfflineRun:
    """One file, once its last record is there: wandb's own process writes it, shortly after `finish` has returned."""
    end = time.monotonic() + patience
    while (run := _read(path)).exit_code is None and time.monotonic() < end:
        time.sleep(0.05)
    return run


def _read(path: Path) -> OfflineRun:
    run = OfflineRun()
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run_id = record.run.run_id
            run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            run.history.append(_values(record.history.item))
        elif kind == "summary":
            run.summary |= _values(record.summary.update)
        elif kind == "artifact":
            run.staged += [Path(entry.local_path) for entry in record.artifact.manifest.contents]
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(content: bytes) -> Iterator[Record]:
    assert content[:4] == b":W&B"
    offset, parts = FILE_HEADER, b""
    while offset + CHUNK_HEADER <= len(content):
        left = BLOCK - offset % BLOCK
        if left < CHUNK_HEADER:
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", content[offset : offset + CHUNK_HEADER])
        offset += CHUNK_HEADER
        if offset + length > len(content):
            return  # still being written
        parts += content[offset : offset + length]
        offset += length
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
            parts = b""
