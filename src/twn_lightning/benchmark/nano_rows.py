"""Rows of the nano world in the schemas of MMEB-V2, one writer a task: what the parser of its `parser` field reads.

Media are named by their content, so that candidates which rows share are one file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from twn_lightning.benchmark.registry import BenchmarkTask
from twn_lightning.data.nano.tasks import NanoRow, corpus, grades
from twn_lightning.types import Item, PixelArray

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How the hub stores an image column."""
_PLACEHOLDER = "<|image_1|>\n"
_ROWS_OF_A_GROUP = 256

Columns = dict[str, Any]


class TaskWriter:
    """Writes one task: media with every row, annotations at the end.

    Args:
        task: its row of the table.
        annotations_root: of the mirror.
        media_root: of the mirror.
        split: whose ingredients the corpus is drawn from.
    """

    def __init__(self, task: BenchmarkTask, annotations_root: Path, media_root: Path, split: str) -> None:
        self.task = task
        self._annotations = annotations_root / task.hf_repo
        self._media = media_root / task.media
        self._corpus = corpus(split, task.name)
        self._rows: list[Columns] = []
        self._qrels: list[Columns] = []
        self._columns: Callable[[NanoRow], Columns] = getattr(self, f"_{task.parser}")

    def __enter__(self) -> TaskWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()

    def add(self, row: NanoRow) -> None:
        """Write a row's media and keep its columns."""
        self._rows.append(self._columns(row))

    def _finish(self) -> None:
        split = f"{self.task.hf_split}.parquet"
        if self.task.parser != "vidore":
            write_rows(self._annotations / (self.task.hf_subset or "default") / split, self._rows)
            return
        pages = [
            {"corpus-id": number, "image": {"bytes": png(_pixels(page)), "path": None}}
            for number, page in enumerate(self._corpus)
        ]
        write_rows(self._annotations / "corpus" / split, pages, {"image": IMAGE_TYPE})
        write_rows(self._annotations / "queries" / split, self._rows)
        write_rows(self._annotations / "qrels" / split, self._qrels)

    # --- one method for each parser ----------------------------------------------------------------------------------

    def _image_cls(self, row: NanoRow) -> Columns:
        return {**self._asked_of_image(row), "tgt_text": [item.text for item in self._candidates(row)]}

    _image_qa = _image_i2t = _image_cls

    def _image_t2i(self, row: NanoRow) -> Columns:
        return {"qry_inst": row.query.instruction, "qry_text": row.query.text, **self._images(row)}

    def _image_i2i_vg(self, row: NanoRow) -> Columns:
        return {**self._asked_of_image(row), **self._images(row)}

    def _ssv2(self, row: NanoRow) -> Columns:
        labels = [item.text for item in self._candidates(row)]
        return {"video_id": self._video(row.query), "pos_text": row.positive.text, "neg_text": labels}

    def _videomme(self, row: NanoRow) -> Columns:
        question, *options = split_options(row.query.text)
        letter = row.positive.key.partition(".")[0]
        return {"videoID": self._video(row.query), "question": question, "options": options, "answer": letter}

    def _msrvtt(self, row: NanoRow) -> Columns:
        video = self._video(row.positive)
        return {"video_id": video, "video": f"{video}.mp4", "caption": row.query.text}

    def _moment_retrieval(self, row: NanoRow) -> Columns:
        stem = f"video{len(self._rows)}"
        self._frames(f"{stem}/query", _pixels(row.query))
        for number, clip in enumerate(self._candidates(row)):
            name = f"negative_{number}" if number else "positive"
            self._frames(f"{stem}/{name}", _pixels(clip))
        return {"query": row.query.text, "video_path": f"{stem}.mp4"}

    def _vidore(self, row: NanoRow) -> Columns:
        number = {page.key: place for place, page in enumerate(self._corpus)}
        query = len(self._rows)
        for key, grade in grades(row.task, row.target).items():
            self._qrels.append({"query-id": query, "corpus-id": number[key], "score": int(grade)})
        return {"query-id": query, "query": row.query.text}

    # --- what they share ---------------------------------------------------------------------------------------------

    def _candidates(self, row: NanoRow) -> Sequence[Item]:
        """The row's own, or the corpus; the right one first."""
        if row.candidates is not None:
            return row.candidates
        return [row.positive, *(item for item in self._corpus if item.key != row.positive.key)]

    def _asked_of_image(self, row: NanoRow) -> Columns:
        return {
            "qry_inst": _PLACEHOLDER + row.query.instruction,
            "qry_text": row.query.text,
            "qry_img_path": self._image(row.query),
        }

    def _images(self, row: NanoRow) -> Columns:
        """Candidates that are images."""
        candidates = self._candidates(row)
        return {
            "tgt_inst": _PLACEHOLDER + row.positive.instruction,
            "tgt_text": [""] * len(candidates),
            "tgt_img_path": [self._image(item) for item in candidates],
        }

    def _image(self, item: Item) -> str:
        """Path of an item's image below the task's media folder."""
        name = f"{self.task.name}/{item.media[0].digest()[:16]}.png"
        if not (self._media / name).exists():
            _write_png(self._media / name, _pixels(item))
        return name

    def _video(self, item: Item) -> str:
        """Name of an item's folder of frames."""
        name = item.media[0].digest()[:16]
        if not (self._media / name).exists():
            self._frames(name, _pixels(item))
        return name

    def _frames(self, folder: str, frames: PixelArray) -> None:
        for number, frame in enumerate(frames, start=1):
            _write_png(self._media / folder / f"frame_{number}.png", frame)


def split_options(text: str) -> list[str]:
    """A question with lettered options, taken apart: `at a1 A. red 4 B. blue 2` is `at a1`, `A. red 4`, `B. blue 2`."""
    words = text.split()
    starts = [i for i, word in enumerate(words) if len(word) == 2 and word[0].isupper() and word[1] == "."]
    bounds = [0, *starts, len(words)]
    return [" ".join(words[start:end]) for start, end in pairwise(bounds)]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], types: Mapping[str, pa.DataType] | None = None) -> None:
    """A parquet file.

    Args:
        path: the file; its folder is made.
        rows: at least one, all with the same columns.
        types: of columns whose type does not follow from their values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = [pa.array([row[name] for row in rows], type=(types or {}).get(name)) for name in rows[0]]
    pq.write_table(pa.Table.from_arrays(arrays, names=list(rows[0])), path, row_group_size=_ROWS_OF_A_GROUP)


def png(pixels: PixelArray) -> bytes:
    """An image as PNG, which loses nothing."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _write_png(path: Path, pixels: PixelArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels))


def _pixels(item: Item) -> PixelArray:
    content = item.media[0].content
    assert isinstance(content, np.ndarray), "the nano world draws pixels"
    return content
