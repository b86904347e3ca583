"""Real pictures for the nano world: emoji of several vendors, animated emoji, and words set in several typefaces.

They come from `assets/nano/ingredients.npz`, which `python -m twn_lightning.data.nano.build_ingredients` writes;
`INGREDIENTS.md` beside it names every source and licence. A drawing (one vendor's emoji, in all its styles and with its
animation) or a typeface belongs to one split only.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib.resources import as_file, files

import numpy as np
from PIL import Image

from twn_lightning.data.nano.digits import SPLIT_SHARES

ICON = 24
"""Side of an icon in pixels."""
CLIP_FRAMES = 8
HEADING_SIZE = (24, 72)
"""Height and width of a heading in pixels."""
WHITE = 255


@cache
def load_ingredients() -> dict[str, np.ndarray]:
    """All arrays of the pack by name.

    Returns:
        `stills` (N, 24, 24, 3) and `animations` (M, 8, 24, 24, 3), uint8 on white; `headings` (K, 24, 72), uint8, black
        on white. Beside them, `still_label` (N,), `animation_split` (M,), `heading_font` (K,) and so on: indices into
        `labels`, `splits`, `sets` (a vendor's style; `set_vendor` names the vendor), `words` and `fonts`.
        `still_emoji` and `animation_emoji` are names.
    """
    with as_file(files("twn_lightning") / "assets" / "nano" / "ingredients.npz") as path:
        return dict(np.load(path, allow_pickle=False))


@cache
def icon_labels() -> tuple[str, ...]:
    """The 16 things that icons show, one English word each."""
    return tuple(load_ingredients()["labels"].tolist())


@cache
def heading_words() -> tuple[str, ...]:
    """The 12 words that headings spell: column names of the tables that scikit-learn describes."""
    return tuple(load_ingredients()["words"].tolist())


def icon(label: str, split: str, rng: np.random.Generator) -> np.ndarray:
    """One picture of a thing, drawn evenly from the split's stills.

    Args:
        label: one of `icon_labels()`.
        split: one of `SPLIT_SHARES`; the train split also shifts, scales and brightens the picture a little.
        rng: source of randomness.

    Returns:
        uint8 (24, 24, 3) on white.

    Raises:
        ValueError: unknown label or split.
    """
    pack = load_ingredients()
    still = pack["stills"][rng.choice(_rows("still", _index(label, icon_labels(), "label"), split))]
    return _augment(still[None], rng)[0] if split == "train" else still.copy()


def icon_clip(label: str, split: str, rng: np.random.Generator) -> np.ndarray:
    """A moving picture of a thing.

    Where the split has an animated emoji of the label (train of 10 labels, test of 7), half of the clips show one; the
    others show a still of the split that sways, bounces or pulses for one period.

    Args:
        label: one of `icon_labels()`.
        split: one of `SPLIT_SHARES`; the train split also shifts, scales and brightens the clip a little.
        rng: source of randomness.

    Returns:
        uint8 (8, 24, 24, 3) on white.

    Raises:
        ValueError: unknown label or split.
    """
    pack = load_ingredients()
    place = _index(label, icon_labels(), "label")
    animated = _rows("animation", place, split)
    if len(animated) and rng.random() < 0.5:
        clip = pack["animations"][rng.choice(animated)]
    else:
        clip = _move(pack["stills"][rng.choice(_rows("still", place, split))], rng)
    return _augment(clip, rng) if split == "train" else clip.copy()


def heading(word: str, split: str, rng: np.random.Generator) -> np.ndarray:
    """A word as print, drawn evenly from the split's typefaces.

    Args:
        word: one of `heading_words()`.
        split: one of `SPLIT_SHARES`.
        rng: source of randomness.

    Returns:
        uint8 (24, 72), black on white.

    Raises:
        ValueError: unknown word or split.
    """
    rows = _rows("heading", _index(word, heading_words(), "word"), split)
    return load_ingredients()["headings"][rng.choice(rows)].copy()


@cache
def _rows(kind: str, place: int, split: str) -> np.ndarray:
    """Rows of the pack's `kind` arrays that show one label or word and belong to a split."""
    pack = load_ingredients()
    content = pack["heading_word"] if kind == "heading" else pack[f"{kind}_label"]
    chosen = pack[f"{kind}_split"] == _index(split, tuple(SPLIT_SHARES), "split")
    return np.flatnonzero((content == place) & chosen)


def _index(name: str, known: tuple[str, ...], what: str) -> int:
    if name in known:
        return known.index(name)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"Unknown {what} {name!r}; the nano world has {', '.join(known)}.{hint}")


def _move(still: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Let a still (24, 24, 3) sway, bounce or pulse: frames (8, 24, 24, 3) of one period, starting anywhere in it."""
    phase = 2 * np.pi * (np.arange(CLIP_FRAMES) / CLIP_FRAMES + rng.random())
    motion = ("sway", "bounce", "pulse")[rng.integers(3)]
    shift_x = 2.0 * np.sin(phase) if motion == "sway" else np.zeros(CLIP_FRAMES)
    shift_y = -2.0 * np.abs(np.sin(phase / 2)) + 1.0 if motion == "bounce" else np.zeros(CLIP_FRAMES)
    scale = 0.9 + 0.1 * np.sin(phase) if motion == "pulse" else np.ones(CLIP_FRAMES)
    return np.stack([_place(still, x, y, s) for x, y, s in zip(shift_x, shift_y, scale, strict=True)])


def _augment(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift (at most 1 px), scale (0.9 to 1.1) and brightness (0.85 to 1.1), the same for all frames (F, 24, 24, 3)."""
    shift_x, shift_y = rng.uniform(-1.0, 1.0, 2)
    scale, brightness = rng.uniform(0.9, 1.1), rng.uniform(0.85, 1.1)
    placed = np.stack([_place(frame, shift_x, shift_y, scale) for frame in frames])
    return (placed * np.float32(brightness)).clip(0, 255).astype(np.uint8)


def _place(image: np.ndarray, shift_x: float, shift_y: float, scale: float) -> np.ndarray:
    """Scale an icon about its middle, then shift it by pixels; white comes in from outside."""
    middle = ICON / 2
    offset_x, offset_y = (middle - (middle + shift) / scale for shift in (shift_x, shift_y))
    return np.asarray(
        Image.fromarray(image).transform(
            (ICON, ICON),
            Image.Transform.AFFINE,
            (1 / scale, 0, offset_x, 0, 1 / scale, offset_y),
            resample=Image.Resampling.BILINEAR,
            fillcolor=(WHITE, WHITE, WHITE),
        )
    )
