"""JSON lists and JSON lines as a `RecordFile`: memory holds where the rows begin, never the rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from twn_lightning.data.file_state import check_state, file_state
from twn_lightning.errors import DataError

_SCAN_BYTES = 1 << 22
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escaped surrogate; emoji have two that belong together."""


class JsonFile:
    """A `.json` file with one list of objects, or a `.jsonl` file with one object a line.

    Opening it reads the file once, to find the rows.

    Args:
        path: the file; blank lines are passed over.

    Raises:
        DataError: it cannot be read, or is not such a list.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._state = file_state(path)
            spans = list(_line_spans(path) if path.suffix == ".jsonl" else _list_spans(path))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error.reason} near byte {error.start})") from error
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error})") from error
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with self._opened() as stream:
            for index, (start, end, _) in enumerate(self._spans.tolist()):
                stream.seek(start)
                yield self._parsed(stream.read(end - start), index)

    @property
    def columns(self) -> list[str]:
        return list(self.row(0)) if len(self) else []

    def row(self, index: int) -> dict[str, Any]:
        start, end, _ = self._spans[index]
        with self._opened() as stream:
            stream.seek(int(start))
            return self._parsed(stream.read(int(end - start)), index)

    def place(self, index: int) -> str:
        line = int(self._spans[index, 2])
        return f"{self.path}, line {line}" if line else f"{self.path}, row {index}"

    def column(self, name: str) -> Iterator[Any]:
        return (row.get(name) for row in self)

    def _opened(self) -> BinaryIO:
        try:
            check_state(self.path, self._state)
            return self.path.open("rb")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error})") from error

    def _parsed(self, text: bytes, index: int) -> dict[str, Any]:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.place(index)}: this is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{self.place(index)}: a row must be a JSON object, this is {type(row).__name__}")
        if _HALF_PAIR.search(text) and not _is_unicode(row):
            raise DataError(f"{self.place(index)}: a text holds half of a surrogate pair, which is no Unicode: mend it")
        return row


def _is_unicode(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _line_spans(path: Path) -> Iterator[tuple[int, int, int]]:
    """Byte spans of the lines that are not blank, and their numbers, from 1."""
    position = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield position, position + len(line), number
            position += len(line)


def _list_spans(path: Path) -> Iterator[tuple[int, int, int]]:
    """Byte spans of a JSON list's elements, 0 for the line, read in pieces; one object a line is taken as that."""
    with path.open("rb") as stream:
        first = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if first == b"{":
        yield from _line_spans(path)
        return
    if first != b"[":
        raise DataError(
            f"{path}: expected a JSON list of objects, the file begins with {first.decode(errors='replace')!r}"
        )
    with path.open(encoding="utf-8", newline="") as stream:
        yield from _element_spans(stream, path)


def _element_spans(stream: TextIO, path: Path) -> Iterator[tuple[int, int, int]]:
    """See `_list_spans`; of a stream that begins with the list's bracket."""
    decoder = json.JSONDecoder()
    text = stream.read(_SCAN_BYTES)
    row, cursor = 0, text.index("[") + 1
    position = len(text[:cursor].encode())
    before = "["  # what precedes the cursor: the list's bracket, an element or a comma
    while True:
        start = _skip_blanks(text, cursor)
        sign = text[start : start + 1]
        if sign == "]" and before != ",":
            if text[start + 1 :].strip() or stream.read(_SCAN_BYTES).strip():
                raise DataError(f"{path}: something follows the JSON list of {row} rows; is it several files in one?")
            return
        if sign and before == "element":
            if sign != ",":
                raise DataError(f"{path}, row {row}: the JSON list is broken: expected a comma, found {sign!r}")
            position, cursor, before = position + start + 1 - cursor, start + 1, ","
            continue
        try:
            _, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            # What is wrong long before the end of what was read is broken, not merely cut.
            cut = len(text) - error.pos <= _SCAN_BYTES or error.msg.startswith("Unterminated string")
            more = stream.read(max(_SCAN_BYTES, len(text) - cursor)) if cut else ""
            if not more:
                raise DataError(f"{path}, row {row}: the JSON list is broken or cut short ({error})") from error
            text, cursor = text[cursor:] + more, 0
            continue
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, row {row}: this JSON cannot be read ({error})") from error
        position += start - cursor
        length = len(text[start:end].encode())
        yield position, position + length, 0
        position, cursor, row, before = position + length, end, row + 1, "element"


def _skip_blanks(text: str, cursor: int) -> int:
    while cursor < len(text) and text[cursor] in " \t\r\n":
        cursor += 1
    return cursor
