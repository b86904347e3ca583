"""Writes the files an MMEB-V2 mirror is made of: annotation tables in every layout, images and frame folders."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from twn_lightning.benchmark.registry import BenchmarkTask

Rows = Sequence[Mapping[str, Any]]
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How the hub stores an image column."""
FRAMES = 9
"""Frames of a video folder: one more than the protocol's eight, so that sampling shows."""


def annotation_path(
    annotations_root: Path,
    task: BenchmarkTask,
    *,
    repo: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    suffix: str = ".parquet",
) -> Path:
    """Where the annotations of a task lie in a mirror; without a suffix it is the folder of a saved data set."""
    folder = annotations_root / (repo or task.hf_repo) / (subset or task.hf_subset or "default")
    return folder / f"{split or task.hf_split}{suffix}"


def write_parquet(path: Path, rows: Rows, types: Mapping[str, pa.DataType] | None = None, group: int = 3) -> None:
    """A parquet file with several row groups.

    Args:
        path: the file; its folder is made.
        rows: all with the same columns.
        types: of the columns whose type cannot be told from the values, such as `IMAGE_TYPE`.
        group: rows of a row group.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(_table(rows, types), path, row_group_size=group)


def write_shards(path: Path, rows: Rows, shards: int, types: Mapping[str, pa.DataType] | None = None) -> None:
    """`<split>-00000-of-0000N.parquet` files instead of the one at `path`, the last ones possibly empty."""
    table = _table(rows, types)
    size = -(-len(rows) // shards)
    path.parent.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        name = f"{path.stem}-{shard:05d}-of-{shards:05d}.parquet"
        pq.write_table(table.slice(shard * size, size), path.with_name(name))


def write_jsonl(path: Path, rows: Rows) -> None:
    """One JSON object a line, UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_dataset_folder(folder: Path, rows: Rows, types: Mapping[str, pa.DataType] | None = None) -> None:
    """A folder as `datasets.Dataset.save_to_disk` writes it: two Arrow stream files and their list."""
    folder.mkdir(parents=True, exist_ok=True)
    table = _table(rows, types)
    half = -(-len(rows) // 2)
    names = [f"data-{part:05d}-of-00002.arrow" for part in range(2)]
    for part, name in enumerate(names):
        piece = table.slice(part * half, half)
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(piece, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_indices_files": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    (folder / "dataset_info.json").write_text("{}", encoding="utf-8")


def image_bytes(seed: int = 0, size: tuple[int, int] = (12, 8), mode: str = "RGB", orientation: int = 1) -> bytes:
    """An encoded image of random pixels: PNG, or JPEG with an EXIF tag where it is to be turned.

    Args:
        seed: of the pixels.
        size: width and height.
        mode: RGB, L or RGBA.
        orientation: the EXIF orientation; 1 is upright.
    """
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if orientation == 1:
        image.save(buffer, "PNG")
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@cache
def odd_images() -> tuple[bytes, ...]:
    """Images as they occur: plain, grayscale, with transparency, turned by EXIF, and one pixel high."""
    return (
        image_bytes(1),
        image_bytes(2, mode="L"),
        image_bytes(3, mode="RGBA"),
        image_bytes(4, orientation=6),
        image_bytes(5, size=(12, 1)),
    )


def write_image(path: Path, number: int = 0) -> Path:
    """One of `odd_images` (Pillow goes by content, so the suffix need not fit)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = odd_images()
    path.write_bytes(images[number % len(images)])
    return path


@cache
def _frame(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 25 % 256, 60, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_frames(folder: Path, count: int = FRAMES, start: int = 0) -> Path:
    """Frames `frame_1.jpg`, `frame_2.jpg`, ... whose order by name differs from time once there are ten."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        (folder / f"frame_{number}.jpg").write_bytes(_frame(start + number))
    return folder


def _table(rows: Rows, types: Mapping[str, pa.DataType] | None) -> pa.Table:
    names = list(rows[0]) if rows else list(types or {})
    arrays = [pa.array([row[name] for row in rows], type=(types or {}).get(name)) for name in names]
    return pa.Table.from_arrays(arrays, names=names)
