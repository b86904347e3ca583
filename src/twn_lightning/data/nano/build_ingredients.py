"""Build `assets/nano/ingredients.npz` from pinned packages of the npm registry: the same bytes every time.

    pip install resvg-py==0.5.0       # draws SVG; needed here only
    python -m twn_lightning.data.nano.build_ingredients --work outputs/ingredients

Packages are fetched with `npm pack` into the work folder and kept there (about 800 MB, most of it animated emoji).
Sources, licences and what the splits guarantee: `assets/nano/INGREDIENTS.md`.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageSequence

from twn_lightning.data.nano.digits import SPLIT_SHARES
from twn_lightning.data.nano.ingredients import CLIP_FRAMES, HEADING_SIZE, ICON, WHITE

SPLITS = tuple(SPLIT_SHARES)
SEED = 20260514
MARGIN = 1
DRAWN_AT = 96
"""Side in pixels at which SVG emoji are drawn before they are scaled down."""

EMOJI = {
    "heart": {"red-heart": "2764", "growing-heart": "1f497", "two-hearts": "1f495", "heart-with-arrow": "1f498"},
    "star": {"star": "2b50", "glowing-star": "1f31f", "shooting-star": "1f320"},
    "moon": {"crescent-moon": "1f319", "first-quarter-moon-face": "1f31b", "full-moon-face": "1f31d"},
    "apple": {"red-apple": "1f34e", "green-apple": "1f34f"},
    "tree": {"deciduous-tree": "1f333", "evergreen-tree": "1f332", "christmas-tree": "1f384"},
    "car": {"automobile": "1f697", "sport-utility-vehicle": "1f699", "taxi": "1f695"},
    "fish": {"fish": "1f41f", "tropical-fish": "1f420", "blowfish": "1f421"},
    "house": {"house": "1f3e0", "derelict-house": "1f3da", "houses": "1f3d8"},
    "clock": {"alarm-clock": "23f0", "four-oclock": "1f553", "mantelpiece-clock": "1f570", "timer-clock": "23f2"},
    "flower": {"tulip": "1f337", "rose": "1f339", "hibiscus": "1f33a", "cherry-blossom": "1f338"},
    "bell": {"bell": "1f514", "bellhop-bell": "1f6ce"},
    "key": {"key": "1f511", "old-key": "1f5dd"},
    "cup": {"hot-beverage": "2615", "teacup-without-handle": "1f375"},
    "book": {"closed-book": "1f4d5", "open-book": "1f4d6", "notebook": "1f4d3", "ledger": "1f4d2"},
    "cat": {"cat-face": "1f431", "cat": "1f408", "smiling-cat-with-heart-eyes": "1f63b"},
    "umbrella": {"umbrella-with-rain-drops": "2614", "closed-umbrella": "1f302", "umbrella-on-ground": "26f1"},
}
"""What is drawn: label -> the emoji that show it, by Unicode name (as Iconify spells it) and code point."""
CODES = {emoji: code for group in EMOJI.values() for emoji, code in group.items()}
OTHER_NAMES = {
    "star": "whitemediumstar",
    "sport-utility-vehicle": "recreationalvehicle",
    "full-moon-face": "fullmoonwithface",
    "house": "housebuilding",
    "houses": "housebuildings",
    "four-oclock": "clock4oclock",
    "smiling-cat-with-heart-eyes": "smiling-cat-face-with-heart-eyes",
    "hot-beverage": "hot-beverage-1",
}
"""Names that some sets use instead; Firefox OS runs the words together."""


@dataclass(frozen=True)
class Style:
    """One way in which a vendor draws emoji."""

    name: str
    vendor: str
    package: str


STYLES = (
    Style("fluent-3d", "microsoft", "@lobehub/fluent-emoji-3d@1.1.0"),
    Style("fluent-emoji", "microsoft", "@iconify-json/fluent-emoji@1.2.7"),
    Style("fluent-emoji-flat", "microsoft", "@iconify-json/fluent-emoji-flat@1.2.6"),
    Style("noto", "google", "@iconify-json/noto@1.2.9"),
    Style("noto-v1", "google", "@iconify-json/noto-v1@1.2.5"),
    Style("emojione", "emojione", "@iconify-json/emojione@1.2.3"),
    Style("emojione-v1", "emojione", "@iconify-json/emojione-v1@1.2.3"),
    Style("twemoji", "twitter", "@iconify-json/twemoji@1.2.5"),
    Style("openmoji", "openmoji", "@iconify-json/openmoji@1.2.29"),
    Style("fxemoji", "mozilla", "@iconify-json/fxemoji@1.2.2"),
    Style("streamline-emojis", "streamline", "@iconify-json/streamline-emojis@1.2.4"),
)
ANIMATED_VENDOR = "microsoft"
ANIMATED = tuple(f"@lobehub/fluent-emoji-anim-{part}@1.0.0" for part in range(1, 5))

WORDS = {
    "wine_data": ("alcohol", "malic", "proline"),
    "breast_cancer": ("radius", "texture"),
    "iris": ("petal", "width"),
    "california_housing": ("income", "rooms", "latitude"),
    "diabetes": ("pressure", "sugar"),
}
"""Headings: words of scikit-learn's data set descriptions, by the file that has them."""

FONTS = (
    *("cabin", "comfortaa", "courier-prime", "eb-garamond", "fira-mono", "fira-sans", "ibm-plex-serif", "inconsolata"),
    *("lato", "libre-baskerville", "merriweather", "montserrat", "noto-sans", "noto-serif", "nunito", "open-sans"),
    *("pt-sans", "pt-serif", "quicksand", "roboto", "roboto-mono", "roboto-slab", "ubuntu", "vollkorn"),
)
FONT_VERSION = "5.3.0"
FONT_WEIGHTS = (400, 700)
FONTS_PER_SPLIT = {"train": 12, "rl": 2, "gate": 2, "calibration": 2, "val": 2, "test": 4}


class Packages:
    """npm packages, fetched once into a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, package: str, name: str) -> Path:
        """Where the file `name` of a pinned package (`@scope/name@version`) lies; the package may lack the file."""
        stem, _, version = package.removeprefix("@").replace("/", "-").rpartition("@")
        unpacked = self.folder / f"{stem}-{version}"
        if not unpacked.exists():
            subprocess.run(["npm", "pack", "--silent", package], cwd=self.folder, check=True)
            with tarfile.open(self.folder / f"{unpacked.name}.tgz") as archive:
                archive.extractall(unpacked, filter="data")
        return unpacked / "package" / name


def draw_still(packages: Packages, style: Style, emoji: str) -> np.ndarray | None:
    """One emoji in one style as an icon (24, 24, 3) uint8; None where the vendor does not draw it."""
    if style.name == "fluent-3d":
        path = _find_webp(packages, (style.package,), emoji)
        return None if path is None else to_icons([Image.open(path)])[0]
    import resvg_py

    icons = _read_icons(packages.path(style.package, "icons.json"))
    aliases = {name: alias["parent"] for name, alias in icons.get("aliases", {}).items()}
    names = (emoji, emoji.replace("-", ""), OTHER_NAMES.get(emoji, emoji))
    drawn = next((icons["icons"][n] for name in names if (n := aliases.get(name, name)) in icons["icons"]), None)
    if drawn is None:
        return None
    width, height = (drawn.get(side, icons[side]) for side in ("width", "height"))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{drawn["body"]}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=DRAWN_AT, height=DRAWN_AT)
    return to_icons([Image.open(io.BytesIO(bytes(png)))])[0]


@cache
def _read_icons(path: Path) -> dict[str, Any]:
    icons: dict[str, Any] = json.loads(path.read_text())
    return icons


def draw_animation(packages: Packages, emoji: str) -> np.ndarray | None:
    """Eight evenly spaced frames of an animated emoji (8, 24, 24, 3) uint8; None where the vendor's stands still."""
    path = _find_webp(packages, ANIMATED, emoji)
    if path is None:
        return None
    frames = [frame.convert("RGBA") for frame in ImageSequence.Iterator(Image.open(path))]
    if len(frames) < CLIP_FRAMES:
        return None
    return to_icons([frames[place] for place in np.arange(CLIP_FRAMES) * len(frames) // CLIP_FRAMES])


def _find_webp(packages: Packages, sources: tuple[str, ...], emoji: str) -> Path | None:
    names = (f"assets/{CODES[emoji]}.webp", f"assets/{CODES[emoji]}-fe0f.webp")
    paths = (packages.path(source, name) for source in sources for name in names)
    return next((path for path in paths if path.exists()), None)


def to_icons(frames: list[Image.Image]) -> np.ndarray:
    """Crop pictures to what any of them draws, centre it in a square, lay it on white and scale it down.

    Args:
        frames: F pictures of one size, opaque where something is drawn.

    Returns:
        uint8 (F, 24, 24, 3) with a margin of one white pixel.
    """
    rgba = [frame.convert("RGBA") for frame in frames]
    alpha = np.max([np.asarray(frame)[..., 3] for frame in rgba], axis=0)
    (top, bottom), (left, right) = (np.flatnonzero((alpha > 16).any(axis))[[0, -1]] for axis in (1, 0))
    side = max(bottom - top, right - left) + 1
    corner = (int(left + right + 1 - side) // 2, int(top + bottom + 1 - side) // 2)
    icons = np.full((len(frames), ICON, ICON, 3), WHITE, np.uint8)
    inner = ICON - 2 * MARGIN
    for icon, frame in zip(icons, rgba, strict=True):
        square = frame.crop((*corner, corner[0] + int(side), corner[1] + int(side)))
        ground = Image.new("RGBA", square.size, (WHITE,) * 4)
        flat = Image.alpha_composite(ground, square).convert("RGB").resize((inner, inner), Image.Resampling.BOX)
        icon[MARGIN:-MARGIN, MARGIN:-MARGIN] = np.asarray(flat)
    return icons


def draw_heading(word: str, font_path: Path) -> np.ndarray:
    """A word in black on white (24, 72) uint8, as large as fits up to 18 px, centred."""
    height, width = HEADING_SIZE
    for size in range(18, 5, -1):
        font = ImageFont.truetype(str(font_path), size)
        left, top, right, bottom = font.getbbox(word)
        if right - left <= width - 2 and bottom - top <= height - 2:
            break
    strip = Image.new("L", (width, height), WHITE)
    place = (round((width - right - left) / 2), round((height - bottom - top) / 2))
    ImageDraw.Draw(strip).text(place, word, fill=0, font=font)
    return np.asarray(strip)


def split_drawings(label: str, drawings: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Give every drawing of one label to a split, in a fixed random order.

    Of the animated vendor's drawings one goes to test and the others to train. Of the other vendors' one each goes to
    rl, gate, calibration and val, a fifth (at least one) to test, the rest to train.

    Args:
        label: seeds the order.
        drawings: (emoji, vendor) pairs; no two splits share one, so all its styles and its animation stay together.

    Returns:
        The split of each drawing.
    """
    rng = np.random.default_rng([SEED, *label.encode()])
    shuffled = [drawings[i] for i in rng.permutation(len(drawings))]
    animated = [drawing for drawing in shuffled if drawing[1] == ANIMATED_VENDOR]
    others = [drawing for drawing in shuffled if drawing[1] != ANIMATED_VENDOR]
    held_out = ["rl", "gate", "calibration", "val", *["test"] * max(1, len(others) // 5)]
    places = ["test", *["train"] * (len(animated) - 1), *held_out, *["train"] * (len(others) - len(held_out))]
    return dict(zip([*animated, *others], places, strict=True))


def build_icons(packages: Packages) -> dict[str, np.ndarray]:
    """Draw every emoji in every style, and its animation where there is one: the icon arrays of `load_ingredients`."""
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    for place, (label, group) in enumerate(EMOJI.items()):
        stills = {(emoji, style): draw_still(packages, style, emoji) for emoji in group for style in STYLES}
        stills = {key: still for key, still in stills.items() if still is not None}
        split_of = split_drawings(label, list(dict.fromkeys((emoji, style.vendor) for emoji, style in stills)))
        for (emoji, style), still in stills.items():
            columns["stills"].append(still)
            columns["still_label"].append(place)
            columns["still_set"].append(STYLES.index(style))
            columns["still_emoji"].append(emoji)
            columns["still_split"].append(SPLITS.index(split_of[emoji, style.vendor]))
        for emoji in group:
            if (clip := draw_animation(packages, emoji)) is not None:
                columns["animations"].append(clip)
                columns["animation_label"].append(place)
                columns["animation_emoji"].append(emoji)
                columns["animation_split"].append(SPLITS.index(split_of[emoji, ANIMATED_VENDOR]))
    columns["labels"] = list(EMOJI)
    columns["sets"] = [style.name for style in STYLES]
    columns["set_vendor"] = [style.vendor for style in STYLES]
    return {name: np.asarray(values) for name, values in columns.items()}


def build_headings(packages: Packages) -> dict[str, np.ndarray]:
    """Set every word in every typeface: the heading arrays of `load_ingredients`."""
    words = [word for group in WORDS.values() for word in group]
    splits = [split for split, count in FONTS_PER_SPLIT.items() for _ in range(count)]
    order = np.random.default_rng(SEED).permutation(len(FONTS))
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    for split, font in zip(splits, order, strict=True):
        for weight in FONT_WEIGHTS:
            file = f"files/{FONTS[font]}-latin-{weight}-normal.woff"
            path = packages.path(f"@fontsource/{FONTS[font]}@{FONT_VERSION}", file)
            for place, word in enumerate(words):
                columns["headings"].append(draw_heading(word, path))
                columns["heading_word"].append(place)
                columns["heading_font"].append(font)
                columns["heading_split"].append(SPLITS.index(split))
    columns["words"], columns["fonts"] = words, list(FONTS)
    return {name: np.asarray(values) for name, values in columns.items()}


def build(work: Path, output: Path) -> None:
    """Write the pack; packages are kept in the work folder."""
    packages = Packages(work)
    arrays: dict[str, Any] = {**build_icons(packages), **build_headings(packages), "splits": np.asarray(SPLITS)}
    np.savez_compressed(output, **arrays)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the fetched packages")
    target = Path(str(files("twn_lightning"))) / "assets" / "nano" / "ingredients.npz"
    build(parser.parse_args().work, target)
