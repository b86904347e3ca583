"""A search index on disk: generations of its two files, and `index.json`, which says which one is current.

    INDEX/index.json                     replaced last, in one step
    INDEX/000002/index.faiss             vectors by document id
    INDEX/000002/documents.parquet       id, key, path, text, hash

Saving writes a new generation and then replaces index.json: a crash in between leaves the earlier one in use.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.json_object import read_json_object, write_json
from twn_lightning.manifest import file_digest

SCHEMA_VERSION = 1
_FIELDS = {"generation": int, "kind": str, "dimension": int, "documents": int, "bytes": dict, "encoder": dict}
_FILES = ("index.faiss", "documents.parquet")
_REMEDY = "build the index again"
_DOCUMENTS = pa.schema(
    [("id", pa.int64()), ("key", pa.string()), ("path", pa.string()), ("text", pa.string()), ("hash", pa.string())]
)


def faiss() -> Any:
    """FAISS.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss as module
    except ImportError as error:
        raise ConfigError("a search index needs FAISS: pip install 'twn_lightning[search]'") from error
    return module


def write_generation(
    folder: Path, generation: int, vectors: Any, documents: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Write the two files of a generation; index.json still names the earlier one.

    Returns:
        For index.json: `bytes` and `sha256` by file name.
    """
    files = generation_folder(folder, generation)
    shutil.rmtree(files, ignore_errors=True)  # what an interrupted save left
    files.mkdir(parents=True)
    faiss().write_index(vectors, str(files / "index.faiss"))
    pq.write_table(pa.Table.from_pylist(documents, schema=_DOCUMENTS), files / "documents.parquet")
    written = sorted(files.iterdir())
    for path in written:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return {
        "bytes": {path.name: path.stat().st_size for path in written},
        "sha256": {path.name: file_digest(path) for path in written},
    }


def commit(folder: Path, state: dict[str, Any]) -> None:
    """Make a written generation the current one, and drop the others."""
    write_json(folder / "index.json", {"schema_version": SCHEMA_VERSION, **state})
    current = generation_folder(folder, state["generation"])
    for stale in folder.glob("[0-9]" * 6):
        if stale != current:
            shutil.rmtree(stale, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any]:
    """The content of index.json.

    Raises:
        CheckpointError: it is missing, broken or of another version.
    """
    path = folder / "index.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no search index there (no index.json); make one with `twn search build`")
    return read_json_object(path, CheckpointError, _REMEDY, _FIELDS, SCHEMA_VERSION)


def read_generation(folder: Path, state: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Vectors and documents of the current generation.

    Raises:
        CheckpointError: a file is missing, cut short or not what index.json says.
    """
    files = generation_folder(folder, state["generation"])
    digests = state.get("sha256")  # indexes of release 0.1 have none
    for name in _FILES:
        path, size = files / name, state["bytes"].get(name)
        found = path.stat().st_size if path.is_file() else None
        problem = None
        if found != size:
            problem = "is missing" if found is None else f"has {found} bytes, expected {size}"
        elif digests is not None and (not isinstance(digests, dict) or file_digest(path) != digests.get(name)):
            problem = "is damaged (its content is not what was saved)"
        if problem is not None:
            raise CheckpointError(f"{path} {problem}; copy the whole folder again, or {_REMEDY}")
    try:
        vectors = faiss().read_index(str(files / "index.faiss"))
        documents: list[dict[str, Any]] = pq.read_table(files / "documents.parquet", schema=_DOCUMENTS).to_pylist()
    except (RuntimeError, OSError, pa.ArrowException) as error:
        raise CheckpointError(f"{files}: the index cannot be read ({error}); build it again") from error
    if not (vectors.ntotal == len(documents) == state["documents"]) or vectors.d != state["dimension"]:
        raise CheckpointError(
            f"{folder}: index.json says {state['documents']} documents of width {state['dimension']}, there are "
            f"{vectors.ntotal} vectors of width {vectors.d} and {len(documents)} documents; build it again"
        )
    return vectors, documents


def generation_folder(folder: Path, generation: int) -> Path:
    """Where a generation's files are."""
    return folder / f"{generation:06d}"
