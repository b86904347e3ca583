"""Row groups of Parquet files and record batches of Arrow files, of which only the columns asked for are decoded."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from twn_lightning.errors import DataError

_CACHED_GROUPS = 8
"""Row groups of a Parquet file, without images, that stay decoded."""
_HELD_IMAGE_GROUPS = 2
"""Row groups of one column of encoded images that stay decoded, of all files together."""
_BUFFER = 1 << 20


class ParquetGroups:
    """Row groups of a Parquet file."""

    def __init__(self, path: Path) -> None:
        # Not mapped into memory: pages of images would stay, and a file cut short would end the process.
        self.path = path
        self._file = pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
        self.schema: pa.Schema = self._file.schema_arrow
        self._metadata = self._file.metadata
        self.sizes = [self._metadata.row_group(i).num_rows for i in range(self._metadata.num_row_groups)]
        self.read = lru_cache(maxsize=_CACHED_GROUPS)(self.row_group)
        self._read_paths = lru_cache(maxsize=_CACHED_GROUPS)(self._paths)

    def _paths(self, group: int, name: str) -> pa.ChunkedArray:
        leaves = [self._file.schema.column(i).path for i in range(len(self._file.schema))]
        wanted = [leaf for leaf in leaves if leaf.startswith(f"{name}.") and leaf.endswith(".path")]
        return self.row_group(group, tuple(wanted)).column(name)

    def row_group(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        """Columns of one row group.

        Raises:
            DataError: they cannot be decoded.
        """
        try:
            return self._file.read_row_group(group, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.path}, rows {sum(self.sizes[:group])} to {sum(self.sizes[: group + 1]) - 1} cannot be read "
                f"({str(error).splitlines()[0]}). The file is damaged: fetch it again"
            ) from error

    def read_stored(self, group: int, name: str) -> pa.ChunkedArray:
        """A column with its images."""
        return _image_group(self, group, name)

    def marks(self, group: int, name: str, offset: int, count: int) -> list[Any]:
        """See `marks_of`. Bytes are decoded only where nothing else tells which rows lack an image."""
        type_ = self.schema.field(name).type
        if _has_path(type_):
            found = self._read_paths(group, name)
        elif not is_image_list(type_) and self._is_complete(group, name):
            return [(None,)] * count
        else:
            found = self.read_stored(group, name)
        return [mark for chunk in found.slice(offset, count).chunks for mark in marks_of(chunk)]

    def _is_complete(self, group: int, name: str) -> bool:
        """Whether the file says that every row of the group has bytes."""
        columns = self._metadata.row_group(group)
        for leaf in map(columns.column, range(columns.num_columns)):
            if leaf.path_in_schema in (name, f"{name}.bytes"):
                return bool(leaf.is_stats_set and leaf.statistics.has_null_count and not leaf.statistics.null_count)
        return False


class ArrowGroups:
    """Record batches of a memory-mapped Arrow file: nothing is copied before it is asked for."""

    def __init__(self, path: Path) -> None:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        self._batches = [batch for batch in table.to_batches() if batch.num_rows]
        self.schema: pa.Schema = table.schema
        self.sizes = [batch.num_rows for batch in self._batches]
        self._sound: set[tuple[int, str]] = set()

    def _column(self, group: int, name: str) -> pa.Array:
        """A column of one record batch; at first use its offsets are checked, which in a damaged file lead out of it.

        Raises:
            pyarrow.ArrowInvalid: they do.
        """
        column = self._batches[group].column(name)
        if (group, name) not in self._sound:
            column.validate(full=True)
            self._sound.add((group, name))
        return column

    def read(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        """Columns of one record batch."""
        return pa.table({name: self._column(group, name) for name in columns})

    def read_stored(self, group: int, name: str) -> pa.Array:
        """A column with its images, left in the file."""
        return self._column(group, name)

    def marks(self, group: int, name: str, offset: int, count: int) -> list[Any]:
        """See `marks_of`."""
        return marks_of(self.read_stored(group, name).slice(offset, count))


@lru_cache(maxsize=_HELD_IMAGE_GROUPS)
def _image_group(groups: ParquetGroups, group: int, name: str) -> pa.ChunkedArray:
    """One column of one row group: the least that pyarrow decodes, and large, so few are held."""
    return groups.row_group(group, (name,)).column(name)


def marks_of(array: pa.Array) -> list[Any]:
    """An image column without its bytes: a row's image is (file name,), its images a list, and missing ones None."""
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        ends = array.offsets.to_pylist()
        inner = marks_of(array.values.slice(ends[0], ends[-1] - ends[0]))
        pieces = [inner[start - ends[0] : end - ends[0]] for start, end in pairwise(ends)]
        return [piece if valid else None for piece, valid in zip(pieces, array.is_valid().to_pylist(), strict=True)]
    place = array.type.get_field_index("path") if pa.types.is_struct(array.type) else -1
    paths = array.field(place).to_pylist() if place >= 0 else [None] * len(array)
    return [(path,) if valid else None for path, valid in zip(paths, array.is_valid().to_pylist(), strict=True)]


def is_image(type_: pa.DataType) -> bool:
    """Whether a column holds encoded images: binary, or the hub's struct of `bytes` and `path`."""
    if pa.types.is_struct(type_):
        return any(f.name == "bytes" and _is_bytes(f.type) for f in type_)
    return _is_bytes(type_)


def _is_bytes(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def is_image_list(type_: pa.DataType) -> bool:
    """Whether each row of a column holds a list of encoded images."""
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_)) and is_image(type_.value_type)


def _has_path(type_: pa.DataType) -> bool:
    inner = type_.value_type if pa.types.is_list(type_) or pa.types.is_large_list(type_) else type_
    return bool(pa.types.is_struct(inner)) and any(f.name == "path" for f in inner) and is_image(inner)
