"""Media by other means than one file: images stored in another file, videos as chosen frames."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twn_lightning.backbone import media
from twn_lightning.backbone.media import ARRAY_FRAMES_PER_SECOND, load_image, load_video
from twn_lightning.backbone.tiny import build_tiny
from twn_lightning.commands.preview import _describe
from twn_lightning.errors import DataError
from twn_lightning.types import Item, Media


@dataclass(frozen=True)
class Stored:
    """An encoded image in some row of some file; counts how often it is read."""

    content: bytes
    name: str = "pages.parquet row 3 column 'image'"
    reads: list[int] = field(default_factory=list)

    def read(self) -> bytes:
        self.reads.append(1)
        return self.content


def picture(seed: int, size: tuple[int, int] = (16, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def frame_files(folder: Path, pictures: list[np.ndarray]) -> tuple[Path, ...]:
    paths = tuple(folder / f"{i}.png" for i in range(len(pictures)))
    for path, pixels in zip(paths, pictures, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_stored_bytes_equal_the_same_bytes_in_a_file(mode, tmp_path):
    if mode == "I;16":
        image = Image.fromarray(np.arange(16 * 24, dtype=np.uint16).reshape(16, 24) * 150)
    else:
        image = Image.fromarray(picture(0)).convert(mode)
    path = tmp_path / "image.png"
    image.save(path)
    stored = Stored(path.read_bytes())
    assert np.array_equal(load_image(Media("image", stored), "q"), load_image(Media("image", path), "q"))
    assert len(stored.reads) == 1


def test_stored_bytes_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Stored(encoded(Image.new("RGB", (8, 4), "red"), "JPEG", exif=exif))
    assert load_image(Media("image", stored), "q").shape == (8, 4, 3)


@pytest.mark.parametrize("content", [b"", b"no image", encoded(Image.fromarray(picture(0)))[:60]])
def test_broken_stored_bytes_name_item_and_place(content):
    with pytest.raises(DataError, match=r"item 'q7': image pages\.parquet row 3 column 'image' cannot be decoded"):
        load_image(Media("image", Stored(content)), "q7")


def test_stored_decompression_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(media, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"row 3 column 'image' is larger than 100 pixels \(24 x 16\)"):
        load_image(Media("image", Stored(encoded(Image.fromarray(picture(0))))), "q")


def test_all_chosen_frames_are_used_in_order(tmp_path):
    pictures = [picture(seed) for seed in range(5)]
    clip = load_video(Media("video", frame_files(tmp_path, pictures)), "q", max_frames=2)
    assert np.array_equal(clip.frames, np.stack(pictures))
    assert clip.frames.dtype == np.uint8
    assert clip.indices == (0, 1, 2, 3, 4)
    assert clip.frames_per_second == ARRAY_FRAMES_PER_SECOND


def test_frames_follow_the_rules_of_images(tmp_path):
    paths = frame_files(tmp_path, [picture(0)] * 2)
    Image.new("RGBA", (24, 16), (0, 0, 0, 0)).save(paths[1])
    clip = load_video(Media("video", paths), "q", 8)
    assert (clip.frames[1] == 255).all()


def test_each_frame_is_decoded_once(tmp_path, monkeypatch):
    paths = frame_files(tmp_path, [picture(seed) for seed in range(3)])
    opened: list[object] = []
    real = Image.open
    monkeypatch.setattr(media.Image, "open", lambda source, **options: opened.append(source) or real(source, **options))
    load_video(Media("video", paths), "q", 8)
    assert opened == list(paths)


def test_frames_of_different_size_are_refused(tmp_path):
    paths = frame_files(tmp_path, [picture(0), picture(1), picture(2, (16, 16))])
    with pytest.raises(DataError, match=r"item 'q': frame .*2\.png is 16 x 16 pixels and .*0\.png is 24 x 16"):
        load_video(Media("video", paths), "q", 8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"item 'q': image .*1\.png does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), r"item 'q': image .*1\.png cannot be decoded"),
    ],
    ids=["missing", "truncated"],
)
def test_a_bad_frame_is_named(damage, message, tmp_path):
    paths = frame_files(tmp_path, [picture(0), picture(1)])
    damage(paths[1])
    with pytest.raises(DataError, match=message):
        load_video(Media("video", paths), "q", 8)


@pytest.mark.parametrize(
    ("load", "content", "message"),
    [
        (load_video, (), "item 'q': its video has no frames"),
        (load_video, Stored(b""), r"item 'q': pages\.parquet .* holds one image"),
        (load_image, (Path("a.png"), Path("b.png")), "item 'q': an image cannot be a tuple of 2 frames"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(load, content, message):
    arguments = (8,) if load is load_video else ()
    with pytest.raises(DataError, match=message):
        load(Media("video", content), "q", *arguments)


def test_prompts_equal_those_of_decoded_pixels(tmp_path):
    _, processor = build_tiny()
    pictures = [picture(seed) for seed in range(4)]
    lazy = Item("a", "Find", "it", (Media("image", Stored(encoded(Image.fromarray(pictures[0])))),))
    frames = Item("b", "Watch", "it", (Media("video", frame_files(tmp_path, pictures)),))
    found = processor([lazy, frames])
    expected = processor(
        [
            Item("a", "Find", "it", (Media("image", pictures[0]),)),
            Item("b", "Watch", "it", (Media("video", np.stack(pictures)),)),
        ]
    )
    assert torch.equal(found.input_ids_BL, expected.input_ids_BL)
    assert torch.equal(found.pixel_values, expected.pixel_values)
    assert torch.equal(found.pixel_values_videos, expected.pixel_values_videos)


def test_preview_describes_every_kind():
    assert _describe(Media("image", Stored(b""))) == "image pages.parquet row 3 column 'image'"
    assert _describe(Media("video", (Path("0.png"), Path("7.png")))) == "video of 2 frames, 0.png to 7.png"
    assert _describe(Media("image", picture(0))) == "image 16x24x3"
