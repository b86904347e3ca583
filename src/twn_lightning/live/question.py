"""A request's body to a question, and a question to an item: nothing in it is trusted, and no path of it is opened."""

from __future__ import annotations

import base64
import binascii
import json
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twn_lightning.backbone.video_frames import open_video
from twn_lightning.errors import DataError
from twn_lightning.evaluation.encoders.twn import decoded_ahead
from twn_lightning.live.limits import Limits, Refused
from twn_lightning.types import Item, Media

_IMAGES = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "GIF": b"GIF8", "BMP": b"BM"}
_VIDEOS = {"WebM or Matroska": b"\x1aE\xdf\xa3"}
_KNOWN = "PNG, JPEG, GIF, BMP, WebP; MP4, MOV, WebM, Matroska, AVI"
"""Told by their first bytes. Other formats, such as PostScript or playlists, make a decoder run or open more."""


@dataclass(frozen=True)
class Question:
    """What was asked.

    Args:
        text: instruction and question as one text.
        task: the task whose candidates to search; None: all.
        media: an encoded image or video.
        is_video: which of the two.
    """

    text: str
    task: str | None = None
    media: bytes | None = None
    is_video: bool = False


def read_question(body: bytes, tasks: Collection[str], limits: Limits) -> Question:
    """Parse and check the JSON of a question: `{"text", "task", "media"}`, media in base64.

    Args:
        body: as received.
        tasks: the tasks there are.
        limits: of text and media.

    Raises:
        Refused: 400, not such JSON, an unknown task, media of no known format or nothing asked; 413, too much of it.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the question is not JSON") from error
    if not isinstance(asked, dict):
        raise Refused(400, f"the question must be a JSON object of text, task and media, not {type(asked).__name__}")
    text, task, encoded = (_text(asked, name) for name in ("text", "task", "media"))
    text = text.strip()
    if len(text) > limits.text_characters:
        raise Refused(413, f"the text has {len(text):,} characters, at most {limits.text_characters:,} are taken")
    if task and task not in tasks:
        raise Refused(400, f"there is no task {task[:80]!r}; the tasks are: {', '.join(sorted(tasks))}")
    media = _decoded(encoded, limits) if encoded else None
    if not text and media is None:
        raise Refused(400, "nothing was asked: type a text, or add an image or a video")
    return Question(text, task or None, media, media is not None and _is_video(media))


def _text(asked: dict[str, Any], name: str) -> str:
    value = asked.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refused(400, f"'{name}' must be a text, it is {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Refused(400, f"'{name}' is not valid Unicode: it holds half of a surrogate pair") from error
    return value


def _decoded(encoded: str, limits: Limits) -> bytes:
    try:
        media = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, "'media' is not base64") from error
    if len(media) > limits.media_bytes:
        raise Refused(413, f"the file has {len(media):,} bytes, at most {limits.media_bytes:,} are taken")
    return media


def _is_video(media: bytes) -> bool:
    """Whether it is a video or an image, by its first bytes.

    Raises:
        Refused: 400, neither.
    """
    is_riff, riff = media[:4] == b"RIFF", media[8:12]
    if any(media.startswith(start) for start in _IMAGES.values()) or (is_riff and riff == b"WEBP"):
        return False
    if any(media.startswith(start) for start in _VIDEOS.values()) or (is_riff and riff == b"AVI "):
        return True
    if media[4:8] == b"ftyp":
        return True
    raise Refused(400, f"the file is no image or video of a known format ({_KNOWN})")


@dataclass(frozen=True)
class UploadedImage:
    """An encoded image as it came (`types.StoredBytes`)."""

    content: bytes
    name: str = "that was sent"

    def read(self) -> bytes:
        return self.content


@contextmanager
def item_of(question: Question, max_frames: int, limits: Limits) -> Iterator[Item]:
    """The question as an item, decoded as far as the processor allows, as long as the block lasts.

    Args:
        question: from `read_question`.
        max_frames: taken of a video.
        limits: of a video's frames.

    Raises:
        DataError: an image or a video that cannot be decoded.
    """
    if question.media is None:
        yield Item("question", "", question.text)
    elif not question.is_video:
        image = Media("image", UploadedImage(question.media))
        yield decoded_ahead(Item("question", "", question.text, (image,)), max_frames)
    else:
        with tempfile.TemporaryDirectory(prefix="twn-inspect-") as folder:
            path = Path(folder) / "video"
            path.write_bytes(question.media)
            _check_frames(path, limits)
            yield Item("question", "", question.text, (Media("video", path),))


def _check_frames(path: Path, limits: Limits) -> None:
    """Refuse a video whose decoded frames would not fit, before any is decoded."""
    try:
        import av
    except ImportError as error:
        raise DataError("reading a video needs PyAV: pip install 'twn_lightning[video]'") from error
    try:
        with open_video(av, path) as (_, stream):
            width, height = stream.width, stream.height
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise DataError(f"the video cannot be decoded ({error}): it is truncated, corrupt or too large") from error
    if width * height > limits.frame_pixels:
        raise DataError(
            f"the video's frames are {width} x {height} pixels, at most {limits.frame_pixels:,} are taken: scale "
            "it down"
        )
