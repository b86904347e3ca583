"""What MMEB-nano's candidates show: an answer drawn as a picture, a clip, or a page.

An answer is words: a coloured digit (`red 4`), a coloured digit in a shade (`dark red 4`), an icon (`heart`), or on
pages a heading and a total (`petal 4`, `dark petal 4`). Drawings of one answer differ in handwriting, drawing, typeface
and motion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from twn_lightning.data.nano.digits import SHADES, TILE, VARIANTS, digit_rows, ink_variants, load_digits, render_cells
from twn_lightning.data.nano.ingredients import heading, heading_words, icon, icon_clip, icon_labels
from twn_lightning.data.nano.world import COLOUR_NAMES, SHADE_NAMES
from twn_lightning.types import Media

FRAMES = 8
TABLE = (3, 3)
"""Rows and columns of a page's table; its last cell is the total."""
PAPER = {"": 215.0, "dark": 165.0, "light": 255.0}
"""Grey level of a page in each shade."""
INK = 20.0


@dataclass(frozen=True)
class Answer:
    """An answer taken apart."""

    name: str
    """A colour, a heading or an icon."""
    digit: int | None = None
    shade: str = ""

    @classmethod
    def parse(cls, words: str) -> Answer:
        """From its words, such as `dark red 4`."""
        *shade, name, last = words.split() if " " in words else (words, "")
        return cls(name, int(last) if last else None, shade[0] if shade else "")

    def __str__(self) -> str:
        return " ".join(word for word in (self.shade, self.name, "" if self.digit is None else str(self.digit)) if word)

    @property
    def plain(self) -> Answer:
        """Without its shade: what it shares with its near-duplicates."""
        return replace(self, shade="")


@cache
def coloured_digits(*, shaded: bool = False) -> tuple[Answer, ...]:
    """Every coloured digit; with `shaded`, in the shades that have a name."""
    return _with_digits(COLOUR_NAMES, shaded)


@cache
def pages(*, shaded: bool = False) -> tuple[Answer, ...]:
    """Every heading with every total; with `shaded`, on paper of the shades that have a name."""
    return _with_digits(heading_words(), shaded)


@cache
def icons() -> tuple[Answer, ...]:
    """Every icon."""
    return tuple(map(Answer, icon_labels()))


def _with_digits(names: tuple[str, ...], shaded: bool) -> tuple[Answer, ...]:
    shades = [shade for shade in SHADES if bool(shade) == shaded]
    return tuple(Answer(name, digit, shade) for shade in shades for name in names for digit in range(10))


def draw_cell(answer: Answer, split: str, rng: np.random.Generator) -> np.ndarray:
    """A coloured digit without an arrow: uint8 (TILE, TILE, 3)."""
    assert answer.digit is not None
    bank = digit_rows(split)[answer.digit]
    row = np.array([bank[rng.integers(len(bank))]])
    colour, shade = np.array([COLOUR_NAMES.index(answer.name)]), np.array([SHADE_NAMES.index(answer.shade)])
    return render_cells(row, colour, None, _variant(split, rng, 1), shade)[0]


def draw_picture(answer: Answer, split: str, rng: np.random.Generator) -> Media:
    """A coloured digit or an icon as an image."""
    return Media("image", draw_cell(answer, split, rng) if answer.digit is not None else icon(answer.name, split, rng))


def draw_clip(answer: Answer, split: str, rng: np.random.Generator) -> Media:
    """A coloured digit that drifts, or an animated icon: a video of FRAMES frames."""
    if answer.digit is None:
        return Media("video", icon_clip(answer.name, split, rng))
    return Media("video", drift(draw_cell(answer, split, rng)[None], rng))


def drift(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make frames a clip in motion: each is repeated, and its copies are shifted by at most a pixel.

    Args:
        frames: uint8 (F, H, W, 3), where F divides FRAMES.
        rng: of the shifts.

    Returns:
        uint8 (FRAMES, H, W, 3).
    """
    clip = frames.repeat(FRAMES // len(frames), axis=0)
    shifts = rng.integers(-1, 2, (FRAMES, 2))
    return np.stack([np.roll(frame, tuple(shift), (0, 1)) for frame, shift in zip(clip, shifts, strict=True)])


def draw_page(answer: Answer, split: str, rng: np.random.Generator) -> tuple[Media, list[int]]:
    """A page with a heading and a table of handwritten digits, the total in the last cell, framed.

    Returns:
        The page, uint8 ((1 + rows) * TILE, columns * TILE, 3), and the digits of its table, row by row.
    """
    assert answer.digit is not None
    digits = [*rng.integers(0, 10, TABLE[0] * TABLE[1] - 1).tolist(), answer.digit]
    bank = digit_rows(split)
    rows = np.array([bank[d][rng.integers(len(bank[d]))] for d in digits])
    variants = _variant(split, rng, len(rows))
    ink = load_digits()[0][rows] if variants is None else ink_variants()[variants, rows]
    cells = np.zeros((len(rows), TILE, TILE), np.float32)
    cells[:, 4:20, 4:20] = ink
    cells[:, [0, -1], :] = cells[:, :, [0, -1]] = 0.25
    cells[-1, [0, 1, -2, -1], :] = cells[-1][:, [0, 1, -2, -1]] = 1.0
    table = cells.reshape(*TABLE, TILE, TILE).transpose(0, 2, 1, 3).reshape(TABLE[0] * TILE, TABLE[1] * TILE)
    strip = 1.0 - heading(answer.name, split, rng).astype(np.float32) / 255.0
    ink_HW = np.concatenate([strip, table])
    paper = PAPER[answer.shade]
    grey = (paper + ink_HW * (INK - paper)).astype(np.uint8)
    return Media("image", grey[..., None].repeat(3, axis=-1)), digits


def _variant(split: str, rng: np.random.Generator, count: int) -> np.ndarray | None:
    """Which perturbed copies are drawn: only in the train split."""
    return rng.integers(0, VARIANTS, count) if split == "train" else None
