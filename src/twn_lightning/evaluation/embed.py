"""Embed many inputs into files: in chunks, resumable, sharded. Interrupted and resumed = straight, byte for byte.

A chunk is a fixed slice of the inputs: it is encoded in one call and written as one part file, whole or not at all. A
shard takes a run of consecutive chunks, so neither an interrupt nor the number of shards changes what is in a batch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.embedding_files import (
    SCHEMA_VERSION,
    OutputPaths,
    file_digests,
    merge_npy,
    merge_parquet,
    part_table,
    read_hashes,
    read_record,
    skipped_of,
    write_part,
    write_record,
)
from twn_lightning.evaluation.encoders.batching import check_finite
from twn_lightning.evaluation.encoders.protocol import EncodedItems, Encoder
from twn_lightning.evaluation.inputs import Inputs, OnError
from twn_lightning.evaluation.item_digest import item_digest
from twn_lightning.types import EmbeddingMode, Item, Side

_MUST_MATCH = ("encoder", "side", "mode", "settings", "inputs", "shard")
"""What a rerun must have in common with what is there."""


@dataclass(frozen=True)
class EmbedSettings:
    """How to embed."""

    side: Side = Side.QUERY
    mode: EmbeddingMode = EmbeddingMode.ADAPTIVE
    batch_size: int = 64
    """Inputs encoded and written together."""
    output_format: Literal["parquet", "npy"] = "parquet"
    on_error: OnError = "raise"
    shard: int = 0
    shards: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"the batch size must be at least 1, it is {self.batch_size}")
        if not 0 <= self.shard < self.shards:
            raise ConfigError(f"shard {self.shard}/{self.shards}: shards count from 0 to {self.shards - 1}")


def embed_inputs(
    encoder: Encoder,
    inputs: Inputs,
    output: Path,
    settings: EmbedSettings,
    *,
    loaded_with: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Embed inputs into a folder, or go on where an earlier run with the same encoder and inputs stopped.

    Args:
        encoder: any model behind the protocol.
        inputs: what to embed.
        output: the folder for embeddings and `embed.json`.
        settings: side, mode, chunks, format, shard.
        loaded_with: how to load this encoder again, for the record.
        overwrite: start anew whatever is there.
        progress: called with the number of inputs done, those of an earlier run at once.

    Returns:
        The content of `embed.json`: encoder, settings, counts, what was skipped.

    Raises:
        ConfigError: a mode the encoder does not have, or embeddings of another encoder, settings or inputs are there.
        DataError: an input that cannot be read (under `raise`), or one that has changed since an earlier run.
        NumericalError: an embedding that is not finite.
    """
    if settings.mode not in encoder.modes:
        has = ", ".join(mode.value for mode in encoder.modes)
        raise ConfigError(f"encoder '{encoder.name}' has no mode '{settings.mode.value}'; it has: {has}")
    paths = OutputPaths(output, settings.shard, settings.shards)
    record = _new_record(encoder, inputs, settings, loaded_with or {})
    if overwrite:
        _clear(paths)
    _claim(paths, record)
    chunks = dict(_chunks(len(inputs), settings))
    done = [] if record["status"] == "complete" else [chunk for chunk in chunks if paths.part(chunk).exists()]
    if done or record["status"] == "complete":
        _check_unchanged(read_hashes(paths, [paths.part(chunk) for chunk in done]), inputs)
    for chunk, rows in chunks.items():
        if record["status"] != "complete" and chunk not in done:
            write_part(_embed_chunk(encoder, inputs, rows, settings), paths.part(chunk))
        if progress is not None:
            progress(len(rows))
    if record["status"] != "complete":
        _finish(paths, [paths.part(chunk) for chunk in chunks], record, settings, encoder.dimension)
    shutil.rmtree(paths.parts, ignore_errors=True)
    return record


def write_encoded(
    encoder: Encoder,
    inputs: Inputs,
    encoded: EncodedItems,
    output: Path,
    settings: EmbedSettings,
    *,
    loaded_with: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write embeddings that are there already, into the files that `embed_inputs` would have written.

    Args:
        encoder: what made them.
        inputs: what they are of.
        encoded: the embeddings, in the order of the inputs.
        output, settings, loaded_with: as in `embed_inputs`.
        overwrite: replace what is there.

    Returns:
        The content of `embed.json`.

    Raises:
        ConfigError: the folder holds embeddings already.
    """
    paths = OutputPaths(output, settings.shard, settings.shards)
    if overwrite:
        _clear(paths)
    elif paths.all_files:
        raise ConfigError(f"{paths.folder} holds {paths.all_files[0].name} already: name another folder, or overwrite")
    record = _new_record(encoder, inputs, settings, loaded_with or {})
    part = paths.part(0)
    write_part(part_table(inputs.items, inputs.paths, encoded, encoder.dimension, []), part)
    _finish(paths, [part], record, settings, encoder.dimension)
    shutil.rmtree(paths.parts, ignore_errors=True)
    return record


def _new_record(
    encoder: Encoder, inputs: Inputs, settings: EmbedSettings, loaded_with: Mapping[str, Any]
) -> dict[str, Any]:
    record = {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "encoder": {
            "name": encoder.name,
            "dimension": encoder.dimension,
            "identity": encoder.identity(settings.side, settings.mode),
        },
        "side": settings.side.value,
        "mode": settings.mode.value,
        "settings": {
            "batch_size": settings.batch_size,
            "format": settings.output_format,
            "on_error": settings.on_error,
        },
        "inputs": {"count": len(inputs), "digest": inputs.digest()},
        "source": inputs.name,
        "shard": f"{settings.shard}/{settings.shards}",
        "loaded_with": dict(loaded_with),
        "counts": {},
        "skipped": list(inputs.skipped) if settings.shard == 0 else [],
    }
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def _claim(paths: OutputPaths, record: dict[str, Any]) -> None:
    """Write the record of a new run, or take over the one that is there and fits."""
    if not paths.record.exists():
        if paths.all_files:
            raise ConfigError(
                f"{paths.all_files[0]} is in the way: {paths.folder} holds files of another run without their "
                f"{paths.record.name}. Name another --output, or pass --overwrite"
            )
        write_record(paths.record, record)
        return
    earlier = read_record(paths.record)
    differences = [line for name in _MUST_MATCH for line in _differences(earlier.get(name), record[name], name)]
    if differences:
        shown = "".join(f"\n  - {line}" for line in differences[:6])
        raise ConfigError(
            f"{paths.folder} holds embeddings of another encoder, settings or inputs; {len(differences)} differ:{shown}"
            "\nName another --output, or pass --overwrite to replace them"
        )
    record.update(earlier)


def _differences(earlier: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        for key in sorted({*earlier, *now}):
            yield from _differences(earlier.get(key), now.get(key), f"{name}.{key}")
    elif earlier != now:
        yield f"{name}: there {earlier}, now {now}"


def _clear(paths: OutputPaths) -> None:
    shutil.rmtree(paths.parts, ignore_errors=True)
    for path in paths.all_files:
        path.unlink()


def _chunks(count: int, settings: EmbedSettings) -> Iterator[tuple[int, range]]:
    """Number and rows of this shard's chunks."""
    size = settings.batch_size
    total = -(-count // size)
    for chunk in range(settings.shard * total // settings.shards, (settings.shard + 1) * total // settings.shards):
        yield chunk, range(chunk * size, min((chunk + 1) * size, count))


def _check_unchanged(hashes: Mapping[str, str], inputs: Inputs) -> None:
    """What an earlier run wrote must be of the same content: the digest of the inputs does not cover media files.

    Raises:
        DataError: an input that has changed.
    """
    for item in inputs.items:
        if item.key in hashes and item_digest(item).hex() != hashes[item.key]:
            raise DataError(
                f"{inputs.name}: '{item.key}' has changed since it was embedded. Pass --overwrite to embed all again"
            )


def _embed_chunk(encoder: Encoder, inputs: Inputs, rows: range, settings: EmbedSettings) -> pa.Table:
    skipped: list[dict[str, str]] = []
    kept, encoded = _encode(encoder, inputs, list(rows), settings, skipped)
    if encoded is not None:
        _check(encoder, [inputs.items[row] for row in kept], encoded)
    return part_table(
        [inputs.items[row] for row in kept], [inputs.paths[row] for row in kept], encoded, encoder.dimension, skipped
    )


def _encode(
    encoder: Encoder, inputs: Inputs, rows: list[int], settings: EmbedSettings, skipped: list[dict[str, str]]
) -> tuple[list[int], EncodedItems | None]:
    """Encode rows; under `skip`, halve them until what cannot be read stands alone, and leave that out.

    An encoder reads a batch's media before it computes anything, so the failed attempts cost little.
    """
    try:
        return rows, encoder.encode([inputs.items[row] for row in rows], settings.side, settings.mode)
    except DataError as error:
        if settings.on_error == "raise":
            raise
        if len(rows) == 1:
            skipped.append({"key": inputs.items[rows[0]].key, "reason": str(error)})
            return [], None
    half = len(rows) // 2
    halves = [_encode(encoder, inputs, part, settings, skipped) for part in (rows[:half], rows[half:])]
    parts = [encoded for _, encoded in halves if encoded is not None]
    return [row for kept, _ in halves for row in kept], EncodedItems.join(parts) if parts else None


def _check(encoder: Encoder, items: Sequence[Item], encoded: EncodedItems) -> None:
    """What every encoder promises."""
    shape = encoded.embedding_ND.shape
    if shape != (len(items), encoder.dimension):
        raise DataError(
            f"encoder '{encoder.name}' gave embeddings of shape {shape} for {len(items)} inputs of width "
            f"{encoder.dimension}"
        )
    check_finite(encoded.embedding_ND, [item.key for item in items])


def _finish(
    paths: OutputPaths, parts: Sequence[Path], record: dict[str, Any], settings: EmbedSettings, dimension: int
) -> None:
    """Join the parts, count, mark the run complete."""
    if settings.output_format == "npy":
        merge_npy(paths, parts, dimension)
    else:
        merge_parquet(paths, parts, dimension)
    counts = dict.fromkeys(("embedded", "thought", "malformed", "cot_tokens"), 0)
    for part in parts:
        table = pq.read_table(part, columns=["think", "malformed", "cot_tokens"])
        counts["embedded"] += table.num_rows
        for name, column in (("thought", "think"), ("malformed", "malformed"), ("cot_tokens", "cot_tokens")):
            counts[name] += pc.sum(table.column(column)).as_py() or 0
        record["skipped"] += skipped_of(part)
    record["counts"] = {**counts, "skipped": len(record["skipped"])}
    record["sha256"] = file_digests(paths)
    record["status"] = "complete"
    write_record(paths.record, record)
