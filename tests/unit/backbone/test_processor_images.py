"""Images: equal to Hugging Face's Pillow processor; every file mode decoded; bad files named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from twn_lightning.backbone import media
from twn_lightning.backbone.media import load_image
from twn_lightning.backbone.pixels import PatchSettings, patchify_images
from twn_lightning.errors import DataError
from twn_lightning.types import Media

SETTINGS = PatchSettings(16, 2, 2, 4096, 65_536, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
SIZES = [(32, 32), (64, 96), (50, 75), (20, 300), (700, 500), (8, 8), (10, 1500), (33, 31)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def huggingface(settings: PatchSettings) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels},
        patch_size=settings.patch_size,
        merge_size=settings.merge_size,
        temporal_patch_size=settings.temporal_patch_size,
        image_mean=list(settings.image_mean),
        image_std=list(settings.image_std),
    )


def assert_equal_to_huggingface(images: list[Media], references: list[Image.Image | np.ndarray]) -> None:
    patches = patchify_images([("item", image) for image in images], SETTINGS)
    theirs = huggingface(SETTINGS)(references, return_tensors="pt")
    assert torch.equal(patches.grid_thw, theirs["image_grid_thw"])
    torch.testing.assert_close(patches.values(), theirs["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_hugging_face_at_every_size(size, rng):
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    assert_equal_to_huggingface([Media("image", pixels)], [pixels])


def test_equals_hugging_face_in_a_batch_of_sizes(rng):
    pixels = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in (*SIZES[:4], *SIZES[:2])]
    assert_equal_to_huggingface([Media("image", p) for p in pixels], pixels)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("RGB", "jpg"), ("L", "png"), ("CMYK", "jpg"), ("P", "png"), ("1", "png")]
)
def test_files_of_opaque_modes_equal_hugging_face(mode, suffix, rng, tmp_path):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(rng.integers(0, 256, (50, 75, 3), dtype=np.uint8)).convert(mode).save(path)
    assert_equal_to_huggingface([Media("image", path)], [Image.open(path)])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(mode, tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode).save(path)
    assert (load_image(Media("image", path), "q") == 255).all()


def test_a_transparent_palette_colour_is_laid_on_white(tmp_path):
    Image.new("P", (8, 8), 0).save(tmp_path / "image.png", transparency=0)
    assert (load_image(Media("image", tmp_path / "image.png"), "q") == 255).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)).save(path)
    assert load_image(Media("image", path), "q")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (16, 8), "black")
    picture.paste("white", (0, 0, 8, 8))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    picture.save(tmp_path / "turned.png", exif=exif)
    pixels = load_image(Media("image", tmp_path / "turned.png"), "q")
    assert pixels.shape == (16, 8, 3)
    assert pixels[:8].min() == 255
    assert pixels[8:].max() == 0


def truncated(rng: np.random.Generator, format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, format)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


@pytest.mark.parametrize("content", ["png", "jpeg", "text", "nothing", "folder"])
def test_an_unreadable_file_names_item_and_file(content, rng, tmp_path):
    path = tmp_path / "bad.img"
    if content == "folder":
        path.mkdir()
    elif content in ("png", "jpeg"):
        path.write_bytes(truncated(rng, content))
    else:
        path.write_bytes(b"" if content == "nothing" else b"not an image at all")
    with pytest.raises(DataError, match=r"item 'q7': image .*bad\.img cannot be decoded"):
        load_image(Media("image", path), "q7")


def test_a_missing_file_names_item_and_file():
    with pytest.raises(DataError, match=r"item 'q7': image nowhere\.png does not exist"):
        load_image(Media("image", Path("nowhere.png")), "q7")


@pytest.mark.parametrize("limit", [100, 1_000])
def test_decompression_bombs_are_refused(limit, tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("RGB", (40, 40)).save(path)  # 1,600 pixels: above both limits
    monkeypatch.setattr(media, "MAX_IMAGE_PIXELS", limit)
    if limit == 100:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # Pillow itself refuses above twice its limit
    with pytest.raises(DataError, match=r"item 'q7': image .*bomb\.png is larger than .* decompression bomb"):
        load_image(Media("image", path), "q7")


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), "u1")],
)
def test_arrays_must_be_rgb_bytes(pixels):
    with pytest.raises(DataError, match=r"item 'q7': its image must be a non-empty uint8 array \(height, width, 3\)"):
        load_image(Media("image", pixels), "q7")


def test_extreme_aspect_ratios_are_refused():
    with pytest.raises(DataError, match="item 'q7': 402 x 2 pixels have an aspect ratio above 200"):
        patchify_images([("q7", Media("image", np.zeros((2, 402, 3), np.uint8)))], SETTINGS)


def test_no_images():
    assert patchify_images([], SETTINGS) is None
