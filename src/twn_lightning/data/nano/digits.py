"""Handwritten digits as cell tiles, split so that no digit image appears in two splits.

The bank is scikit-learn's `load_digits` (1,797 images of 8 x 8; UCI optical recognition of handwritten digits, CC BY
4.0), stored beside the nano backbone as `digits.npz`; `python -m twn_lightning.data.nano.digits` rebuilds it.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from PIL import Image

TILE = 24
"""Side of a grid cell in pixels: one merged visual token."""
DIGIT = 16
VARIANTS = 12
COLOURS = {
    "red": (200, 50, 50),
    "green": (40, 140, 80),
    "blue": (50, 100, 200),
    "orange": (225, 130, 30),
    "purple": (130, 70, 170),
    "grey": (110, 110, 115),
}
SHADES = {"": (0, 1.0), "dark": (0, 0.6), "light": (255, 0.5)}
"""What a shade draws a colour's channels to, and how much of the colour it keeps; no name: the colour as it is."""
ARROWS = ("up", "down", "left", "right")
SPLIT_SHARES = {"train": 0.60, "rl": 0.08, "gate": 0.08, "calibration": 0.04, "val": 0.05, "test": 0.15}


@cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Ink masks (1797, 16, 16) float32 in [0, 1], upscaled from 8 x 8, and their labels (1797,)."""
    with as_file(files("twn_lightning") / "assets" / "nano" / "digits.npz") as path:
        bank = np.load(path, allow_pickle=False)
        images, labels = bank["images"], bank["labels"]
    scaled = (images.astype(np.float32) * (255 / 16)).astype(np.uint8)
    upscaled = [np.asarray(Image.fromarray(i).resize((DIGIT, DIGIT), Image.Resampling.BILINEAR)) for i in scaled]
    return np.stack(upscaled).astype(np.float32) / 255.0, labels


@cache
def ink_variants() -> np.ndarray:
    """Ink masks (VARIANTS, 1797, 16, 16) float32: the digit as written, then turned, scaled and shifted copies.

    Only scenes of the train split draw the copies: about a thousand digit images are too few to learn to read from.
    """
    rng = np.random.default_rng(7)
    ink = (load_digits()[0] * 255).astype(np.uint8)
    copies = [load_digits()[0]]
    for _ in range(VARIANTS - 1):
        copies.append(np.stack([_perturb(image, rng) for image in ink]).astype(np.float32) / 255.0)
    return np.stack(copies)


def _perturb(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle, scale = rng.uniform(-0.22, 0.22), rng.uniform(0.88, 1.15)
    shift_x, shift_y = rng.uniform(-1.2, 1.2, 2)
    cos, sin, middle = np.cos(angle) / scale, np.sin(angle) / scale, (DIGIT - 1) / 2
    offset_x = middle - cos * (middle + shift_x) - sin * (middle + shift_y)
    offset_y = middle + sin * (middle + shift_x) - cos * (middle + shift_y)
    coefficients = (cos, sin, offset_x, -sin, cos, offset_y)
    return np.asarray(
        Image.fromarray(image).transform(
            (DIGIT, DIGIT), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR
        )
    )


@cache
def digit_rows(split: str) -> tuple[np.ndarray, ...]:
    """For each digit 0-9, the bank rows that belong to a split; the split is a fixed permutation per digit."""
    _, labels = load_digits()
    rng = np.random.default_rng(20260514)
    bounds = np.cumsum([0.0, *SPLIT_SHARES.values()])
    place = list(SPLIT_SHARES).index(split)
    chosen = []
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        low, high = (round(float(bounds[place + k]) * len(rows)) for k in (0, 1))
        chosen.append(rows[low:high])
    return tuple(chosen)


@cache
def _arrow_masks() -> np.ndarray:
    """(4, TILE, TILE) float32: an arrow head in the lower right corner, in the order of ARROWS."""
    up = np.zeros((7, 7), np.float32)
    for row in range(4):
        up[row, 3 - row : 4 + row] = 1
    up[4:, 2:5] = 1
    masks = np.zeros((4, TILE, TILE), np.float32)
    for i, glyph in enumerate((up, up[::-1], up.T, up.T[:, ::-1])):
        masks[i, -7:, -7:] = glyph
    return masks


def render_cells(
    rows: np.ndarray,
    colours: np.ndarray,
    arrows: np.ndarray | None,
    variants: np.ndarray | None = None,
    shades: np.ndarray | None = None,
) -> np.ndarray:
    """Draw cells: white ink on a coloured ground, and a black arrow head unless arrows is None.

    Args:
        rows: digit bank rows (N,).
        colours: indices into COLOURS (N,).
        arrows: indices into ARROWS (N,), or None.
        variants: which perturbed copy of each digit (N,); None draws the digits as written.
        shades: indices into SHADES (N,); None draws the colours as they are.

    Returns:
        uint8 tiles (N, TILE, TILE, 3).
    """
    ink = np.zeros((len(rows), TILE, TILE, 1), np.float32)
    drawn = load_digits()[0][rows] if variants is None else ink_variants()[variants, rows]
    ink[:, 1 : 1 + DIGIT, 2 : 2 + DIGIT, 0] = drawn
    ground = np.asarray(list(COLOURS.values()), np.float32)[colours][:, None, None, :]
    if shades is not None:
        towards, kept = np.asarray(list(SHADES.values()), np.float32)[shades].T[:, :, None, None, None]
        ground = towards + kept * (ground - towards)
    tiles = ground + ink * (255.0 - ground)
    if arrows is not None:
        tiles *= 1.0 - _arrow_masks()[arrows][..., None]
    return tiles.astype(np.uint8)


def join_cells(tiles: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Lay out rows * columns tiles row-major: uint8 (rows * TILE, columns * TILE, 3)."""
    tiles = tiles.reshape(rows, columns, TILE, TILE, 3)
    return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3, 4)).reshape(rows * TILE, columns * TILE, 3)


def build_bank(output: Path) -> None:
    """Write the digit bank from scikit-learn's packaged copy."""
    from sklearn.datasets import load_digits as sklearn_digits

    bank = sklearn_digits()
    np.savez_compressed(output, images=bank.images.astype(np.uint8), labels=bank.target.astype(np.uint8))


if __name__ == "__main__":
    build_bank(Path(str(files("twn_lightning"))) / "assets" / "nano" / "digits.npz")
