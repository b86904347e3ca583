"""Small pictures as data addresses, so that a page holds its images itself."""

from __future__ import annotations

import base64
import io
import zlib

import numpy as np
from PIL import Image

MAX_PNG_BYTES = 24_000
"""A larger picture, which is a photograph, becomes a JPEG: sixty of them stay within about 2 MB."""
MAX_SIDE = 320
_MAX_PIXELS = 4_000_000
"""Stored thumbnails are far smaller; what claims more is not decoded."""


def png_address(content: bytes | None) -> str | None:
    """A stored PNG as a data address; unchanged where it is small.

    Args:
        content: the file's bytes.

    Returns:
        None for what is no PNG, cannot be decoded or is too large: it is left out rather than guessed at.
    """
    if content is None:
        return None
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.width * image.height > _MAX_PIXELS:
                return None
            image.load()
            if len(content) <= MAX_PNG_BYTES:
                return _address(content, "png")
            return picture_address(np.asarray(image.convert("RGB")), MAX_SIDE)
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError):
        return None


def picture_address(pixels_HWC: np.ndarray, side: int) -> str:
    """Pixels as a data address: a PNG where that is small, else a JPEG.

    Args:
        pixels_HWC: uint8 RGB.
        side: pixels of the longer side, at most.
    """
    picture = Image.fromarray(pixels_HWC)
    picture.thumbnail((side, side))
    content = _encoded(picture, "PNG", optimize=True)
    if len(content) <= MAX_PNG_BYTES:
        return _address(content, "png")
    return _address(_encoded(picture, "JPEG", quality=82), "jpeg")


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
