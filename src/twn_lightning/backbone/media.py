"""Files to pixels: images through Pillow, videos through PyAV (optional). Every failure names the item and the file."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from twn_lightning.backbone.video_frames import read_frames, read_stretches, scan_packets
from twn_lightning.errors import DataError
from twn_lightning.types import Media

MAX_IMAGE_PIXELS = 89_478_485
"""Pillow's own limit (a quarter of a gibibyte in RGB); larger images are refused, not just warned about."""
ARRAY_FRAMES_PER_SECOND = 2.0
"""Frames without a video file have no clock: they are taken as sampled at two a second, as Qwen's own tools do."""

_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pictures and nothing else: for PostScript, Pillow would start a program."""
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, zlib.error)


@dataclass(frozen=True)
class Clip:
    """Sampled frames of a video."""

    frames: np.ndarray
    """uint8 (frames, height, width, 3)."""
    indices: tuple[int, ...]
    """Position of each frame in the video."""
    frames_per_second: float


def load_image(media: Media, key: str) -> np.ndarray:
    """An image as uint8 RGB (height, width, 3).

    Files are turned upright by their EXIF orientation; transparency is laid on white (as Qwen's tools do); grayscale,
    palette, CMYK and 16-bit images become RGB. Of an animated file the first frame is used.

    Args:
        media: pixels, the path of a file, or an encoded image stored in another file.
        key: the item, for messages.

    Raises:
        DataError: the file is missing, truncated, no image or too large, or the array is not uint8 RGB.
    """
    content = media.content
    if isinstance(content, tuple):
        raise DataError(f"item '{key}': an image cannot be a tuple of {len(content)} frames; make it a video")
    if isinstance(content, np.ndarray):
        return _checked_array(content, 3, key)
    if isinstance(content, Path):
        return _decode_image(content, str(content), key)
    return _decode_image(io.BytesIO(content.read()), content.name, key)


def _decode_image(source: Path | io.BytesIO, name: str, key: str) -> np.ndarray:
    """Decode a file or its bytes; `name` is what messages call it."""
    try:
        with Image.open(source, formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_IMAGE_PIXELS:
                raise DataError(_too_large(key, name, f"{width} x {height}"))
            return image_pixels(image, key, name)
    except FileNotFoundError as error:
        raise DataError(f"item '{key}': image {name} does not exist. Check the media root of its source") from error
    except Image.DecompressionBombError as error:
        raise DataError(_too_large(key, name, str(error))) from error
    except _BROKEN_IMAGE as error:
        raise DataError(_undecodable(key, name, error)) from error


@cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that the installed Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def image_pixels(image: Image.Image, key: str, name: str = "(a Pillow image)") -> np.ndarray:
    """A Pillow image as uint8 RGB (height, width, 3), as `load_image` reads files.

    Args:
        image: of any mode.
        key: the item, for messages.
        name: what messages call the image.

    Raises:
        DataError: floating-point pixels, or an image that is closed, cut short or of a mode that has no colours.
    """
    try:
        return np.asarray(_to_rgb(ImageOps.exif_transpose(image), key, name))
    except _BROKEN_IMAGE as error:
        raise DataError(_undecodable(key, name, error)) from error


def _undecodable(key: str, name: str, error: BaseException) -> str:
    why = type(error).__name__ if isinstance(error, UnidentifiedImageError) else error  # its text is an address
    return (
        f"item '{key}': image {name} cannot be decoded ({why}). It is truncated, corrupt or not an image: fetch it "
        "again or drop the row"
    )


def _too_large(key: str, name: str, found: str) -> str:
    return (
        f"item '{key}': image {name} is larger than {MAX_IMAGE_PIXELS:,} pixels ({found}) and is refused as a possible "
        "decompression bomb. Store it smaller: the model sees at most model.max_pixels of it"
    )


def _to_rgb(image: Image.Image, key: str, name: str) -> Image.Image:
    """Any Pillow mode to RGB, without clipping 16-bit values and without showing what transparency hides."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        depth = 257 if values.max(initial=0) > 255 else 1
        return Image.fromarray((values // depth).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError(f"item '{key}': image {name} has floating-point pixels of unknown range; store it with 8 bits")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return image.convert("RGB")


def load_video(media: Media, key: str, max_frames: int) -> Clip:
    """At most `max_frames` frames of a video, evenly spaced from the first to the last.

    Of image files, which are frames already chosen, all are used, whatever `max_frames`.

    Args:
        media: frames, the path of a video file, or paths of image files.
        key: the item, for messages.
        max_frames: frames to keep.

    Raises:
        DataError: a file is missing, corrupt or without frames, PyAV is not installed, the array is not uint8 RGB, or
            frames differ in size.
    """
    content = media.content
    if isinstance(content, Path):
        return _decode_video(content, key, max_frames)
    if isinstance(content, tuple):
        return _decode_frames(content, key)
    if not isinstance(content, np.ndarray):
        raise DataError(f"item '{key}': {content.name} holds one image; a video is frames, or the path of a file")
    frames = _checked_array(content, 4, key)
    indices = sample_frames(len(frames), max_frames)
    return Clip(frames[list(indices)], indices, ARRAY_FRAMES_PER_SECOND)


def _decode_frames(paths: tuple[Path, ...], key: str) -> Clip:
    """Image files as the frames of a clip, in their order. Resizing one to fit would hide a mix-up of folders."""
    if not paths:
        raise DataError(f"item '{key}': its video has no frames; drop the row")
    first = _decode_image(paths[0], str(paths[0]), key)
    frames = np.empty((len(paths), *first.shape), np.uint8)
    frames[0] = first
    for i, path in enumerate(paths[1:], start=1):
        frame = _decode_image(path, str(path), key)
        if frame.shape != first.shape:
            sizes = [f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in (frame, first)]
            raise DataError(
                f"item '{key}': frame {path} is {sizes[0]} pixels and {paths[0]} is {sizes[1]}: the frames of a video "
                "must be of one size. Extract them again or drop the row"
            )
        frames[i] = frame
    return Clip(frames, tuple(range(len(paths))), ARRAY_FRAMES_PER_SECOND)


def sample_frames(total: int, max_frames: int) -> tuple[int, ...]:
    """Integer parts of `linspace(0, total - 1, max_frames)` (MMEB-V2's rule), or all frames where there are no more."""
    return tuple(np.linspace(0, total - 1, min(total, max_frames)).astype(int).tolist())


def _decode_video(path: Path, key: str, max_frames: int) -> Clip:
    try:
        import av
    except ImportError as error:
        raise DataError(
            f"item '{key}': reading the video {path} needs PyAV: pip install 'twn_lightning[video]'"
        ) from error
    if not path.is_file():
        raise DataError(f"item '{key}': video {path} does not exist. Check the media root of its source")
    try:
        packets = scan_packets(av, path)
        total = len(packets.times)
        indices = sample_frames(total, max_frames) if total else ()
        frames = read_stretches(av, path, packets, indices)
        if frames is None:
            frames, decoded = read_frames(av, path, indices)
            if 0 < decoded < total:  # some containers hold packets that give no frame
                indices = sample_frames(decoded, max_frames)
                frames, _ = read_frames(av, path, indices)
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise DataError(
            f"item '{key}': video {path} cannot be decoded ({error}). It is truncated, corrupt, too large or has no "
            "video stream: fetch it again or drop the row"
        ) from error
    if not frames:
        raise DataError(f"item '{key}': video {path} has no decodable frame; drop the row")
    if len(sizes := {(frame.shape[1], frame.shape[0]) for frame in frames}) > 1:
        found = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise DataError(f"item '{key}': the frames of video {path} change their size ({found}); convert it to one size")
    return Clip(np.stack(frames), indices, packets.frames_per_second)


def _checked_array(content: np.ndarray, dimensions: int, key: str) -> np.ndarray:
    pixels = np.asarray(content)
    if pixels.dtype != np.uint8 or pixels.ndim != dimensions or pixels.shape[-1] != 3 or not pixels.size:
        expected = "(height, width, 3)" if dimensions == 3 else "(frames, height, width, 3)"
        kind = "image" if dimensions == 3 else "video"
        raise DataError(
            f"item '{key}': its {kind} must be a non-empty uint8 array {expected}, got {pixels.dtype} {pixels.shape}"
        )
    return pixels
