"""Python values as inputs: every kind of text, image and video, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_images import save_image
from PIL import Image

from twn_lightning.errors import DataError
from twn_lightning.evaluation.value_inputs import read_values

PIXELS = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)


def content_of(value: Any) -> Any:
    """The content of the only media of the only item."""
    (item,) = read_values([value]).items
    (media,) = item.media
    return media.content


def test_texts_and_dictionaries_keep_their_fields() -> None:
    values = ["a text", {"text": "b", "instruction": "own"}, {"key": "named", "text": ""}]
    inputs = read_values(values, instruction="shared")
    assert [(item.key, item.instruction, item.text) for item in inputs.items] == [
        ("0", "shared", "a text"),
        ("1", "own", "b"),
        ("named", "shared", ""),
    ]
    assert inputs.paths == [None, None, None]


@pytest.mark.parametrize(
    "value",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        {"image": PIXELS},
        {"image": [Image.fromarray(PIXELS)]},
    ],
)
def test_an_image_in_memory_is_its_pixels(value: Any) -> None:
    np.testing.assert_array_equal(content_of(value), PIXELS)


def test_a_transparent_image_is_laid_on_white() -> None:
    np.testing.assert_array_equal(content_of(Image.new("RGBA", (2, 2), (9, 9, 9, 0))), np.full((2, 2, 3), 255))


@pytest.mark.parametrize(
    "value",
    [
        np.stack([PIXELS, PIXELS]),
        torch.from_numpy(np.stack([PIXELS, PIXELS])).permute(0, 3, 1, 2),
        {"video": [PIXELS, Image.fromarray(PIXELS)]},
    ],
)
def test_a_video_in_memory_is_its_frames(value: Any) -> None:
    np.testing.assert_array_equal(content_of(value), np.stack([PIXELS, PIXELS]))


def test_a_path_that_ends_as_videos_do_is_a_video(tmp_path: Path) -> None:
    (tmp_path / "clip.MP4").write_bytes(b"decoded later")
    first, second = read_values([tmp_path / "clip.MP4", {"video": str(tmp_path / "clip.MP4")}]).items
    assert [item.media[0].kind for item in (first, second)] == ["video", "video"]
    assert first.media[0].content == second.media[0].content == tmp_path / "clip.MP4"


def test_paths_are_files_and_folders_of_frames(tmp_path: Path) -> None:
    frames = [tmp_path / "clip" / f"frame{i}.png" for i in range(12)]
    for shade, frame in enumerate(frames):
        save_image(frame, shade)
    picture = frames[0]
    (tmp_path / "words.txt").write_text("from a file", encoding="utf-8")
    values = [picture, tmp_path / "clip", tmp_path / "words.txt", {"text": "t", "image": str(picture)}]
    inputs = read_values([*values, {"video": frames[:2]}], num_frames=4)
    image, clip, words, both, chosen = inputs.items
    assert (image.media[0].kind, image.media[0].content) == ("image", picture)
    assert (clip.media[0].kind, len(clip.media[0].content)) == ("video", 4)
    assert (words.key, words.text, words.media) == ("2", "from a file", ())
    assert (both.text, both.media[0].content) == ("t", picture)
    assert chosen.media[0].content == tuple(frames[:2])
    assert inputs.paths == [str(picture), str(tmp_path / "clip"), str(tmp_path / "words.txt"), str(picture), None]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("one text", r"inputs come in a list, found str: put it in one"),
        (PIXELS, r"found ndarray"),
        ([], r"nothing to embed"),
        ([3], r"input 0: found int; expected a text, a pathlib\.Path, a Pillow image"),
        ([np.zeros((4, 4), np.uint8)], r"input 0: found an array of shape \(4, 4\)"),
        ([{"txt": "a"}], r"input 0: unknown field 'txt': did you mean 'text'"),
        ([{"instruction": "a"}], r"input 0: it has no text, image or video; its fields are instruction"),
        ([{"text": 3}], r"field 'text' must be text, found int"),
        ([{"text": "a", "key": "1"}, "b"], r"input 1: key '1' is there twice"),
        ([Path("nowhere.png")], r"nowhere\.png: no such file"),
        ([{"video": []}], r"input 0: a video needs frames of one size, found no frame"),
        ([{"video": [PIXELS, PIXELS[:4]]}], r"frames of one size, found \[\(4, 6, 3\), \(8, 6, 3\)\]"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_values(values)


def test_an_image_file_is_no_video(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", 3)
    with pytest.raises(DataError, match=r"a\.png is not a video file or a folder of frames"):
        read_values([{"video": tmp_path / "a.png"}])
