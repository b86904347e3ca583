"""Python values as inputs: texts, images, videos, and dictionaries of them.

    ["a red bird", Path("bird.jpg"), PIL.Image.open("bird.jpg"), {"text": "this one?", "image": [first, second]}]

Images are Pillow images, paths, or uint8 arrays (height, width, 3); videos are paths of files or of folders of frames,
uint8 arrays (frames, height, width, 3), or, in a dictionary, lists of frames. Torch tensors have channels first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from twn_lightning.backbone.media import image_pixels, load_image
from twn_lightning.data.roots import MediaRoot
from twn_lightning.errors import DataError, unknown_name
from twn_lightning.evaluation.inputs import VIDEO_TYPES, Inputs, item_of_file
from twn_lightning.types import Item, Media, PixelArray

FIELDS = ("key", "instruction", "text", "image", "video")
"""What a dictionary may hold. Its strings under `image` and `video` are paths; anywhere else a string is text."""


def read_values(values: Sequence[Any], instruction: str = "", num_frames: int = 8) -> Inputs:
    """Values as items, in order; their keys are their positions, unless a dictionary names its own.

    Args:
        values: a list or a tuple.
        instruction: of every item; a dictionary's own goes before it.
        num_frames: frames taken of a folder of frames.

    Raises:
        DataError: no list, nothing in it, a value of a type that is not known, or a key that is there twice.
    """
    if not isinstance(values, (list, tuple)):
        raise DataError(f"inputs come in a list, found {type(values).__name__}: put it in one, as in [value]")
    inputs = Inputs("the inputs")
    seen: set[str] = set()
    for index, value in enumerate(values):
        item, path = _read_value(value, str(index), instruction, num_frames)
        if item.key in seen:
            raise DataError(f"input {index}: key {item.key!r} is there twice")
        seen.add(item.key)
        inputs.add(item, path)
    return inputs.checked()


def _read_value(value: Any, key: str, instruction: str, num_frames: int) -> tuple[Item, str | None]:
    """An item, and the path of its first file."""
    if isinstance(value, str):
        return Item(key, instruction, value), None
    if isinstance(value, Path):
        return replace(_read_file(value, instruction, num_frames), key=key), str(value)
    if isinstance(value, Mapping):
        return _read_fields(value, key, instruction, num_frames)
    return Item(key, instruction, "", (_read_media(value, None, key, num_frames),)), None


def _read_file(path: Path, instruction: str, num_frames: int) -> Item:
    path = path.expanduser()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    return item_of_file(MediaRoot(path.parent), path.name, instruction, num_frames)


def _read_fields(fields: Mapping[str, Any], key: str, instruction: str, num_frames: int) -> tuple[Item, str | None]:
    for name in fields:
        if name not in FIELDS:
            raise DataError(f"input {key}: {unknown_name('field', str(name), FIELDS)}")
    for name in ("key", "instruction", "text"):
        if not isinstance(fields.get(name) or "", str):
            raise DataError(f"input {key}: field '{name}' must be text, found {type(fields[name]).__name__}")
    key = fields.get("key") or key
    image, video = fields.get("image"), fields.get("video")
    images = [] if image is None else list(image) if isinstance(image, (list, tuple)) else [image]
    media = [_read_media(entry, "image", key, num_frames) for entry in images]
    if video is not None:
        media.append(_read_media(video, "video", key, num_frames))
    text = fields.get("text") or ""
    if not media and "text" not in fields:
        raise DataError(f"input {key}: it has no text, image or video; its fields are {', '.join(fields) or 'none'}")
    paths = [entry for entry in (*images, video) if isinstance(entry, (str, Path))]
    item = Item(key, fields.get("instruction") or instruction, text, tuple(media))
    return item, str(paths[0]) if paths else None


def _read_media(value: Any, kind: Literal["image", "video"] | None, key: str, num_frames: int) -> Media:
    """One image or video; where no field says which, the number of an array's dimensions does."""
    if isinstance(value, (str, Path)):
        media = _read_file(Path(value), "", num_frames).media
        if len(media) != 1 or media[0].kind != kind:
            expected = "a video file or a folder of frames" if kind == "video" else "an image file"
            raise DataError(f"input {key}: {value} is not {expected} (videos end in {', '.join(VIDEO_TYPES)})")
        return media[0]
    if kind == "video" and isinstance(value, (list, tuple)):
        return _read_frames(value, key)
    if isinstance(value, Image.Image) and kind != "video":
        return Media("image", image_pixels(value, key))
    pixels = _array(value)
    if pixels is None or pixels.ndim not in (3, 4):
        found = type(value).__name__ if pixels is None else f"an array of shape {pixels.shape}"
        raise DataError(
            f"input {key}: found {found}; expected a text, a pathlib.Path, a Pillow image, an array (height, width, 3) "
            f"or (frames, height, width, 3), or a dictionary with some of {', '.join(FIELDS)}"
        )
    return Media(kind or ("image" if pixels.ndim == 3 else "video"), pixels)


def _read_frames(frames: Sequence[Any], key: str) -> Media:
    """Frames that were chosen already: paths, which are read later, or pixels."""
    if frames and all(isinstance(frame, (str, Path)) for frame in frames):
        return Media("video", tuple(Path(frame).expanduser() for frame in frames))
    pixels = [load_image(_read_media(frame, "image", key, 1), key) for frame in frames]
    sizes = {frame.shape for frame in pixels}
    if len(sizes) != 1:
        raise DataError(f"input {key}: a video needs frames of one size, found {sorted(sizes) or 'no frame'}")
    return Media("video", np.stack(pixels))


def _array(value: Any) -> PixelArray | None:
    """An array with channels last; None for what is no array."""
    if isinstance(value, torch.Tensor):
        pixels = value.detach().cpu()
        pixels = pixels.float() if pixels.dtype is torch.bfloat16 else pixels  # numpy has no such type
        return pixels.movedim(-3, -1).numpy() if pixels.ndim in (3, 4) else pixels.numpy()
    return value if isinstance(value, np.ndarray) else None
