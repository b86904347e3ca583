"""A JSON object is read; anything else in its file is one error of the caller's kind that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twn_lightning.errors import CheckpointError
from twn_lightning.json_object import read_json_object

KINDS = {"name": str, "encoder.dimension": int}
WHOLE = {"schema_version": 1, "name": "a", "encoder": {"dimension": 8}}


def test_a_whole_object_is_read(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps(WHOLE))
    assert read_json_object(path, CheckpointError, "build it again", KINDS, schema_version=1) == WHOLE


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "Expecting value"),
        ('{"name": "a', "Unterminated string"),
        ("[" * 100_000, "recursion"),
        ('{"a": ' + "9" * 5000 + "}", "4300 digits"),
        (b"\xff", "utf-8"),
        ("[1]", "it holds a JSON list, not an object"),
        (json.dumps(WHOLE | {"schema_version": 2}), "schema version 2, this release reads 1"),
        (json.dumps(WHOLE | {"name": 3}), "'name' must be str, it is 3"),
        (json.dumps(WHOLE | {"encoder": {"dimension": True}}), "'encoder.dimension' must be int, it is True"),
        (json.dumps(WHOLE | {"encoder": [8]}), "'encoder.dimension' must be int, it is None"),
    ],
)
def test_anything_else_is_an_error_that_names_the_file(tmp_path: Path, content: str | bytes, why: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=rf"state\.json .*{why}.*: build it again"):
        read_json_object(path, CheckpointError, "build it again", KINDS, schema_version=1)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"state\.json is broken \(.*No such file"):
        read_json_object(tmp_path / "state.json", CheckpointError, "build it again")
