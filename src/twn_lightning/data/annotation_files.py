"""The files of `twn annotate`, which only grow, and the record that says how much of them is done.

    OUTPUT/pairs.jsonl      the rows that are fit for training, with `query_cot` and `positive_cot`
    OUTPUT/dropped.jsonl    the others, with the reason and what the teacher wrote
    OUTPUT/annotate.json    settings, counts, and the sizes of both files

annotate.json is replaced after each chunk of rows. What an interrupt left beyond those sizes is cut off and the chunk
is done again: interrupted and resumed = straight, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twn_lightning.atomic import writing
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.json_object import write_json

SCHEMA_VERSION = 1
FILES = ("pairs.jsonl", "dropped.jsonl")


def claim(output: Path, plain: dict[str, Any], total: int, overwrite: bool) -> dict[str, Any]:
    """A new record, or the one that is there and fits, with both files cut to where it stands.

    Args:
        output: the folder.
        plain: teacher, settings and pairs: what a rerun must have in common with what is there.
        total: rows in all.
        overwrite: start anew whatever is there.

    Raises:
        ConfigError: results of another teacher, settings or file are there.
        CheckpointError: a record that is broken, or files that are shorter than it says.
    """
    path = output / "annotate.json"
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]
    if overwrite or not path.exists():
        there = [name for name in FILES if (output / name).exists() and (output / name).stat().st_size]
        if there and not overwrite:
            raise ConfigError(f"{output / there[0]} is in the way: name another --output, or pass --overwrite")
        record = {
            "schema_version": SCHEMA_VERSION,
            "digest": digest,
            **plain,
            "rows_total": total,
            "rows_done": 0,
            "counts": {},
            "dropped": {},
            "bytes": dict.fromkeys(FILES, 0),
        }
    else:
        record = _read_record(path)
        different = [f"{n}: there {record.get(n)}, now {plain[n]}" for n in plain if record.get(n) != plain[n]]
        if record["digest"] != digest:
            raise ConfigError(
                f"{output} holds CoTs of another teacher, settings or pairs; "
                + "; ".join(different)
                + ". Name another "
                "--output, or pass --overwrite to replace them"
            )
    output.mkdir(parents=True, exist_ok=True)
    for name, size in record["bytes"].items():
        with (output / name).open("ab") as file:
            if file.tell() < size:
                raise CheckpointError(f"{output / name} has {file.tell()} bytes, expected {size}: pass --overwrite")
            file.truncate(size)
    write_json(path, record)
    return record


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is broken ({error}): pass --overwrite") from error
    if record.get("schema_version") != SCHEMA_VERSION:
        found = record.get("schema_version")
        raise CheckpointError(
            f"{path} has schema version {found}, this release writes {SCHEMA_VERSION}: pass --overwrite"
        )
    return record


def append(
    output: Path, record: dict[str, Any], kept: Sequence[Any], dropped: Sequence[dict[str, Any]], counts: Counter[str]
) -> None:
    """Append a chunk to both files, then make it count.

    Args:
        output: the folder.
        record: of the run so far; brought up to date and written.
        kept: rows for pairs.jsonl.
        dropped: rows for dropped.jsonl, each with its `reason`.
        counts: of the whole run, this chunk included.
    """
    for name, lines in zip(FILES, (kept, dropped), strict=True):
        with writing(output / name), (output / name).open("ab") as file:
            file.writelines((json.dumps(line, ensure_ascii=False) + "\n").encode() for line in lines)
            file.flush()
            os.fsync(file.fileno())
            record["bytes"][name] = file.tell()
    reasons = Counter(record["dropped"]) + Counter(line["reason"] for line in dropped)
    record["counts"] = {name: counts[name] for name in sorted(counts)}
    record["dropped"] = {name: reasons[name] for name in sorted(reasons)}
    record["rows_done"] += len(kept) + len(dropped)
    write_json(output / "annotate.json", record)
