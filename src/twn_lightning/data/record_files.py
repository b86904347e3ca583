"""One file of records behind one interface, rows read when they are asked for; Parquet and Arrow (JSON: json_file).

Encoded images inside Parquet and Arrow files (`struct<bytes, path>` or plain binary columns) come back as
`StoredImage`: their bytes stay in the file until something decodes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from twn_lightning.data.file_state import FileState, check_state, file_state
from twn_lightning.data.row_groups import ArrowGroups, ParquetGroups, is_image, is_image_list
from twn_lightning.errors import DataError

_IMAGE_FILES = 64
"""Files that stay open for their images alone, beside the ones whose rows are read."""
_ROWS_AT_A_TIME = 64
"""Rows turned into Python objects together where they are read in order."""


class RecordFile(Protocol):
    """Rows of one file, counted from 0."""

    path: Path

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All rows in order, faster than one by one."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns; of a JSON file, those of its first row."""

    def row(self, index: int) -> dict[str, Any]: ...

    def place(self, index: int) -> str:
        """File and row, for messages."""

    def column(self, name: str) -> Iterable[Any]:
        """One column of every row, None where a row has none; not for images."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An encoded image in a row of a Parquet or Arrow file (`types.StoredBytes`).

    It holds no open file, so it pickles in a few bytes, and any process can read it.
    """

    file: Path
    state: FileState
    """The file's when the row was read."""
    row: int
    column: str
    element: int | None = None
    """Its place in a column of lists of images."""
    path: str | None = None
    """The image's own file name, where the file records it."""

    @property
    def name(self) -> str:
        """File, row and column."""
        place = "" if self.element is None else f"[{self.element}]"
        return f"{self.file}, row {self.row}, column '{self.column}'{place}"

    def read(self) -> bytes:
        """The encoded bytes.

        Of a Parquet file the row group around them is held until others are read, so that rows in order are fast.

        Raises:
            DataError: the row holds no bytes, or the file was replaced or cannot be read.
        """
        value = _table(self.file, self.state).stored(self.row, self.column)
        if self.element is not None and value is not None:
            value = value[self.element]
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content:
            named = f" (it names the file {self.path!r})" if self.path else ""
            raise DataError(f"{self.name} holds no image bytes{named}. Embed the images in the file, or drop the row")
        return bytes(content)


class TableFile:
    """A Parquet file, or an Arrow file as `datasets` saves it. Only the row group asked for is decoded.

    Args:
        path: a `.parquet` or `.arrow` file.
        state: what the file must be like; None takes it as it is.

    Raises:
        DataError: it is neither, cannot be read, or is not in that state.
    """

    def __init__(self, path: Path, state: FileState | None = None) -> None:
        self.path = path
        with _readable(path):
            self.state = file_state(path) if state is None else state
            check_state(path, self.state)
            self._starts = np.cumsum([0, *self._groups.sizes])
            schema = self._groups.schema
        self.columns: list[str] = list(schema.names)
        self._images = [f.name for f in schema if is_image(f.type) or is_image_list(f.type)]
        self._light = tuple(name for name in self.columns if name not in self._images)
        self._chunk: tuple[int, list[dict[str, Any]]] = (0, [])

    def __reduce__(self) -> tuple[type[TableFile], tuple[Path, FileState]]:
        """Worker processes open the file anew."""
        return type(self), (self.path, self.state)

    @cached_property
    def _groups(self) -> ParquetGroups | ArrowGroups:
        return ArrowGroups(self.path) if self.path.suffix == ".arrow" else ParquetGroups(self.path)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.row, range(len(self)))

    def place(self, index: int) -> str:
        return f"{self.path}, row {index}"

    def row(self, index: int) -> dict[str, Any]:
        start, rows = self._chunk
        if not start <= index < start + len(rows):
            # Reading in order goes by chunks; a row out of order, and a chunk with a bad row, by single rows.
            try:
                rows = self._rows(index, _ROWS_AT_A_TIME if index == start + len(rows) else 1)
            except DataError:
                rows = self._rows(index, 1)
            self._chunk = start, rows = index, rows
        return dict(rows[index - start])

    def _rows(self, index: int, count: int) -> list[dict[str, Any]]:
        """Rows from one on, as many as asked for or as its row group has."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        offset = index - int(self._starts[group])
        count = min(count, int(self._starts[group + 1]) - index)
        with _readable(self.place(index)):
            check_state(self.path, self.state)
            table = self._groups.read(group, self._light) if self._light else None
            rows = [{} for _ in range(count)] if table is None else table.slice(offset, count).to_pylist()
            for name in self._images:
                for position, mark in enumerate(self._groups.marks(group, name, offset, count)):
                    rows[position][name] = self._references(mark, index + position, name)
        return rows

    def _references(self, mark: Any, index: int, name: str) -> Any:
        """The row's image, its images, or None; see `row_groups.marks_of`."""
        if mark is None:
            return None
        if isinstance(mark, list):
            return [
                StoredImage(self.path, self.state, index, name, element, path)
                for element, (path,) in enumerate(entry or (None,) for entry in mark)
            ]
        return StoredImage(self.path, self.state, index, name, None, mark[0])

    def stored(self, index: int, name: str) -> Any:
        """The value of an image column, with its bytes.

        Raises:
            DataError: the file was replaced or cannot be read.
        """
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        with _readable(f"{self.place(index)}, column '{name}'"):
            check_state(self.path, self.state)
            return self._groups.read_stored(group, name)[index - int(self._starts[group])].as_py()

    def column(self, name: str) -> Iterator[Any]:
        for group in range(len(self._starts) - 1):
            if name not in self.columns:
                yield from [None] * int(self._starts[group + 1] - self._starts[group])
                continue
            with _readable(f"{self.path}, column '{name}'"):
                check_state(self.path, self.state)
                values = self._groups.read(group, (name,)).column(name).to_pylist()
            yield from values


@lru_cache(maxsize=_IMAGE_FILES)
def _table(path: Path, state: FileState) -> TableFile:
    return TableFile(path, state)


@contextmanager
def _readable(place: object) -> Iterator[None]:
    """Turn the ways in which a table can be broken into one error that names it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise DataError(
            f"{place} cannot be read ({error}). It is truncated or of another format: fetch it again"
        ) from error
