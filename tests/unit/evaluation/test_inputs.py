"""What is embedded: folders, files of rows, sources; order, roots, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_images import save_image

from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.inputs import read_inputs, read_source
from twn_lightning.settings import DataSettings
from twn_lightning.types import Side


def test_a_folder_is_read_in_natural_order(folder: Path) -> None:
    inputs = read_inputs(folder, instruction="Find it.", num_frames=4)
    assert inputs.paths == ["clip", "hard.txt", *[f"image{i}.png" for i in range(10)], "unicode.txt"]
    clip = inputs.items[0].media[0]
    assert clip.kind == "video"
    assert [path.name for path in clip.content] == ["frame0.jpg", "frame3.jpg", "frame7.jpg", "frame11.jpg"]
    assert inputs.items[1].text == "a hard question"
    assert {item.instruction for item in inputs.items} == {"Find it."}


def test_sub_folders_may_hold_items(folder: Path) -> None:
    inputs = read_inputs(folder, sub_folders="items")
    assert len(inputs) == 24
    assert inputs.paths[:3] == ["clip/frame0.jpg", "clip/frame1.jpg", "clip/frame2.jpg"]


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_of_a_file(folder: Path, tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl",
        {"key": "a", "text": "one\u2028two", "instruction": "Own."},
        {"key": "b", "image": ["image1.png", "image2.png"], "video": "clip"},
    )
    inputs = read_inputs(rows, root=folder, instruction="Default.", num_frames=3)
    assert [item.instruction for item in inputs.items] == ["Own.", "Default."]
    assert [media.kind for media in inputs.items[1].media] == ["image", "image", "video"]
    assert len(inputs.items[1].media[2].content) == 3
    assert inputs.paths == [None, "image1.png"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"key": "a", "text": "twice"}, "line 2: key 'a' is there twice, first in .*line 1"),
        ({"text": "no key"}, "line 2: field 'key' must be a text"),
        ({"key": "b"}, "line 2: it has no text, image or video"),
        ({"key": "b", "text": 3}, "line 2: field 'text' must be text, found int"),
        ({"key": "b", "image": "missing.png"}, "line 2: image .*missing.png does not exist"),
        ({"key": "b", "image": "../secret.png"}, "line 2: the path '../secret.png' leaves its root"),
        ({"key": "b", "image": "/etc/passwd"}, "line 2: the path '/etc/passwd' leaves its root"),
    ],
)
def test_bad_rows_name_themselves(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", {"key": "a", "text": "fine"}, row)
    with pytest.raises(DataError, match=message):
        read_inputs(rows)
    inputs = read_inputs(rows, on_error="skip")
    assert [item.key for item in inputs.items] == ["a"]
    assert len(inputs.skipped) == 1


def test_bad_inputs_say_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing to embed"):
        read_inputs(tmp_path / "empty")
    with pytest.raises(DataError, match="no such file or folder"):
        read_inputs(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected a folder, or a file of rows"):
        read_inputs(folder / "image1.png")
    (folder / "clip" / "readme.md").write_text("x")
    with pytest.raises(DataError, match=r"1 of its 13 entries are no frames, 'readme\.md'.*--sub-folders items"):
        read_inputs(folder)
    (folder / "out.png").symlink_to(tmp_path / "elsewhere.png")
    save_image(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match=r"leaves its root .* through a symbolic link"):
        read_inputs(folder, sub_folders="items")
    with pytest.raises(ConfigError, match="unknown way to read sub-folders 'frame': did you mean 'frames'"):
        read_inputs(folder, sub_folders="frame")  # type: ignore[arg-type]


def test_sources_give_queries_or_each_candidate_once() -> None:
    queries = read_source(DataSettings(), "test", Side.QUERY, 5)
    assert [item.key for item in queries.items] == [f"nano/test/{i}" for i in range(5)]
    candidates = read_source(DataSettings(), "test", Side.CANDIDATE, 5)
    assert len({item.key for item in candidates.items}) == len(candidates)
    with pytest.raises(DataError, match="did you mean 'test'"):
        read_source(DataSettings(), "tests", Side.QUERY, 5)
