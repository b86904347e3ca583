"""Questions from requests: what is taken, what is refused, and that nothing but the bytes themselves is opened."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twn_lightning.errors import DataError
from twn_lightning.live.limits import Limits, Refused
from twn_lightning.live.question import Question, item_of, read_question

TASKS = ["nano/read", "nano/follow"]
LIMITS = Limits(media_bytes=3000, text_characters=50)
PIXELS = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)


def image_bytes(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format=kind)
    return buffer.getvalue()


def video_bytes(folder: Path, frames: int = 5, size: int = 32) -> bytes:
    import av

    path = folder / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            pixels = np.full((size, size, 3), 40 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode())
    return path.read_bytes()


def body(**asked: Any) -> bytes:
    media = asked.get("media")
    if isinstance(media, bytes):
        asked["media"] = base64.b64encode(media).decode()
    return json.dumps(asked).encode()


def test_text_task_and_image_are_taken() -> None:
    question = read_question(body(text="  start a1 ", task="nano/read", media=image_bytes()), TASKS, LIMITS)
    assert question == Question("start a1", "nano/read", image_bytes(), is_video=False)
    with item_of(question, 8, LIMITS) as item:
        assert item.text == "start a1"
        np.testing.assert_array_equal(item.media[0].content, PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_image_formats(kind: str) -> None:
    question = read_question(body(media=image_bytes(kind)), TASKS, LIMITS)
    with item_of(question, 8, LIMITS) as item:
        assert item.media[0].kind == "image"
        assert np.shape(item.media[0].content) == PIXELS.shape


def test_a_video_is_decoded_from_a_file_of_ours_that_is_gone_afterwards(tmp_path: Path) -> None:
    question = read_question(body(media=video_bytes(tmp_path)), TASKS, Limits())
    with item_of(question, 8, LIMITS) as item:
        (media,) = item.media
        assert media.kind == "video"
        assert isinstance(media.content, Path)
        assert media.content.is_file()
    assert not media.content.parent.exists()


def test_a_video_of_huge_frames_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    question = Question("", None, video_bytes(tmp_path), is_video=True)
    with (
        pytest.raises(DataError, match="32 x 32 pixels, at most 1,000"),
        item_of(question, 8, Limits(frame_pixels=1000)),
    ):
        pass


@pytest.mark.parametrize(
    ("content", "status", "why"),
    [
        (b"", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[1]", 400, "must be a JSON object"),
        (body(), 400, "nothing was asked"),
        (body(text="  "), 400, "nothing was asked"),
        (body(text=5), 400, "'text' must be a text, it is int"),
        (body(text="x" * 51), 413, "51 characters, at most 50"),
        (b'{"text": "\\ud800"}', 400, "not valid Unicode"),
        (body(text="x", task="nano/other"), 400, "no task 'nano/other'; the tasks are: nano/follow, nano/read"),
        (body(media="not base64!"), 400, "'media' is not base64"),
        (body(media=b"\x89PNG\r\n\x1a\n" + bytes(3000)), 413, "3,008 bytes, at most 3,000"),
        (body(media=b"%!PS-Adobe-3.0 EPSF-3.0"), 400, "no image or video of a known format"),
        (body(media=b"#EXTM3U\nfile:///etc/passwd"), 400, "no image or video of a known format"),
        (body(media=b"<svg onload=alert(1)>"), 400, "no image or video of a known format"),
        (body(media={"path": "/etc/passwd"}), 400, "'media' must be a text, it is dict"),
    ],
)
def test_what_is_refused(content: bytes, status: int, why: str) -> None:
    with pytest.raises(Refused, match=why) as refusal:
        read_question(content, TASKS, LIMITS)
    assert refusal.value.status == status


@pytest.mark.parametrize(
    ("media", "is_video", "why"),
    [
        (image_bytes()[:45], False, "cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", False, "cannot be decoded"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(40), True, "cannot be decoded"),
        (b"\x1aE\xdf\xa3" + bytes(40), True, "cannot be decoded"),
    ],
)
def test_broken_media_name_what_is_wrong(media: bytes, is_video: bool, why: str) -> None:
    question = read_question(body(media=media), TASKS, LIMITS)
    assert question.is_video == is_video
    with pytest.raises(DataError, match=why), item_of(question, 8, LIMITS):
        pass
