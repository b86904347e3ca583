"""Annotation files that attack their readers: JSON lists, JSON lines, Parquet and Arrow tables."""

from __future__ import annotations

import io
import json
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.fuzz.broken_files import Edit, damaged
from tests.trust.fuzz.cases import check, examples, nothing_left
from tests.trust.fuzz.test_fuzz_media import EDITS
from tests.trust.fuzz.test_fuzz_rows import JSON, TEXTS, release, written
from twn_lightning.data.json_file import JsonFile
from twn_lightning.data.record_files import StoredImage, TableFile
from twn_lightning.errors import DataError

OBJECTS = st.lists(st.dictionaries(TEXTS, JSON, max_size=4), min_size=1, max_size=5)


@pytest.fixture(scope="module", autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left("tables", release):
        yield


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def same_rows(found: list[dict[str, Any]], expected: list[Any]) -> None:
    """Equal values, NaN equal to itself."""
    assert json.dumps(found) == json.dumps(expected)


def plain_json(content: bytes) -> list[Any] | None:
    """What Python's own parser makes of a JSON list of objects; None where it refuses."""
    try:
        rows = json.loads(content.decode("utf-8-sig"))
        json.dumps(rows, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else None


def plain_lines(content: bytes) -> list[Any] | None:
    """The same of one object a line."""
    lines = [line for line in content.split(b"\n") if line.strip()]
    rows = [plain_json(b"[" + line.removeprefix(b"\xef\xbb\xbf") + b"]") for line in lines]
    return None if any(row is None or len(row) != 1 for row in rows) else [row[0] for row in rows if row]


def check_json(path: Path, content: bytes) -> None:
    written(path, content)
    is_list = path.suffix == ".json" and content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{"
    expected = plain_json(content) if is_list else plain_lines(content)

    def right(found: list[dict[str, Any]]) -> None:
        assert expected is not None, "broken JSON was read"
        same_rows(found, expected)
        file = JsonFile(path)
        same_rows([file.row(i) for i in reversed(range(len(file)))], expected[::-1])

    found = check("json", f"{content[:300]!r}", lambda: list(JsonFile(path)), right, names=path.name)
    assert (found is None) == (expected is None), f"whole JSON was refused: {content[:300]!r}"


@examples(60, 500)
@given(rows=OBJECTS, indent=st.sampled_from([None, 1]), ascii_=st.booleans(), edits=st.just([]) | EDITS)
def test_json_lists(folder: Path, rows: list[Any], indent: int | None, ascii_: bool, edits: list[Edit]) -> None:
    content = json.dumps(rows, indent=indent, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
    check_json(folder / "rows.json", damaged(content, edits))


@examples(60, 500)
@given(rows=OBJECTS, ascii_=st.booleans(), end=st.sampled_from(["\n", "\r\n", "\n\n"]), edits=st.just([]) | EDITS)
def test_json_lines(folder: Path, rows: list[Any], ascii_: bool, end: str, edits: list[Edit]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=ascii_) + end for row in rows)
    check_json(folder / "rows.jsonl", damaged(text.encode("utf-8", "surrogatepass"), edits))


HOSTILE_JSON = {
    "deep": b"[" * 100_000,
    "deep_object": b'[{"a":' * 50_000,
    "deep_closed": b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]",
    "half": b'[{"a": 1}, {"b": "hal',
    "no_comma": b'[{"a": 1} {"b": 2}]',
    "two_commas": b'[{"a": 1},, {"b": 2}]',
    "comma_last": b'[{"a": 1},]',
    "two_lists": b'[{"a": 1}] [{"b": 2}]',
    "list_of_numbers": b"[1, 2, 3]",
    "scalar": b'"text"',
    "utf_16": '[{"a": "ä"}]'.encode("utf-16"),
    "latin_1": '[{"a": "ä"}]'.encode("latin-1"),
    "half_a_pair": b'[{"a": "\\ud83d"}]',
    "whole_pair": b'[{"a": "\\ud83d\\ude00"}]',
    "byte_order_mark": b'\xef\xbb\xbf[{"a": 1}]',
    "nul": b'[{"a": "\x00"}]',
    "long_number": b'[{"a": ' + b"9" * 10_000 + b"}]",
    "long_caption": json.dumps([{"a": "caption " * 1_300_000}, {"b": "ü" * 100_000}]).encode(),
    "blank": b"   \n ",
    "empty_list": b"[]",
    "same_key": b'[{"a": 1, "a": 2}]',
    "nan": b'[{"a": NaN, "b": -Infinity}]',
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json(folder: Path, name: str, suffix: str) -> None:
    check_json(folder / f"{name}{suffix}", HOSTILE_JSON[name])


TABLE_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | st.text(max_size=20),
            "number": st.none() | st.integers(-(2**63), 2**63 - 1),
            "options": st.none() | st.lists(st.text(string.ascii_letters, max_size=5), max_size=3),
            "image": st.none() | st.binary(min_size=1, max_size=20),
        }
    ),
    min_size=1,
    max_size=40,
)
TABLE_TYPES = pa.schema(
    [("text", pa.string()), ("number", pa.int64()), ("options", pa.list_(pa.string())), ("image", pa.binary())]
)


def table_bytes(rows: list[dict[str, Any]], suffix: str) -> bytes:
    table = pa.Table.from_pylist(rows, schema=TABLE_TYPES)
    if suffix == ".parquet":
        stream = io.BytesIO()
        pq.write_table(table, stream, row_group_size=7, write_page_checksum=True)
        return stream.getvalue()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue().to_pybytes()


def table_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a table, once in order and once from the last to the first, images read."""

    def whole(row: dict[str, Any]) -> dict[str, Any]:
        return {name: value.read() if isinstance(value, StoredImage) else value for name, value in row.items()}

    file = TableFile(path)
    rows = [whole(row) for row in file]
    assert [whole(file.row(i)) for i in reversed(range(len(file)))] == rows[::-1]
    return rows


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@examples(20, 150)
@given(rows=TABLE_ROWS)
def test_whole_tables(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> None:
    path = written(folder / f"whole{suffix}", table_bytes(rows, suffix))

    def right(found: list[dict[str, Any]]) -> None:
        assert found == rows

    found = check(f"tables {suffix}", f"{rows}", lambda: table_rows(path), right)
    assert found is not None, "a whole table was refused"


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@examples(60, 500)
@given(rows=TABLE_ROWS, edits=EDITS)
def test_damaged_tables(folder: Path, suffix: str, rows: list[dict[str, Any]], edits: list[Edit]) -> None:
    """Parquet pages with checksums never give other values; Arrow files have none, their rows are only well formed."""
    content = table_bytes(rows, suffix)
    path = written(folder / f"damaged{suffix}", damaged(content, edits))
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    only_pages = suffix == ".parquet" and all(
        kind in ("flip", "zero") and share * len(content) + 16 < footer for kind, share, _ in edits
    )

    def right(found: list[dict[str, Any]]) -> None:
        assert all(isinstance(row, dict) for row in found)
        if only_pages:
            assert found == rows

    check(f"tables {suffix}", f"{edits} of {rows}", lambda: table_rows(path), right, names=path.name)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100, b"ARROW1\0\0" * 9, b"no table" * 100, bytes(1000)])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_no_tables(folder: Path, suffix: str, content: bytes) -> None:
    path = written(folder / f"none{suffix}", content)
    check(f"tables {suffix}", f"{content!r:.60}", lambda: table_rows(path), None, names=path.name)


def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path) -> None:
    path = written(folder / "changing.jsonl", b'{"a": 1}\n{"a": 2}\n')
    file = JsonFile(path)
    path.write_bytes(b'{"a": 1}\n{"a": 3}\n{"a": 4}\n')
    check("json", "changed", lambda: file.row(1), None, names="changing.jsonl", errors=(DataError,))
