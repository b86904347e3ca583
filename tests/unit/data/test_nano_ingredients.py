"""The ingredient pack: what it holds, that splits share nothing, and what is drawn from it."""

from __future__ import annotations

import hashlib
import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image, ImageDraw

from twn_lightning.data.nano.build_ingredients import (
    EMOJI,
    FONTS,
    FONTS_PER_SPLIT,
    STYLES,
    WORDS,
    Packages,
    draw_still,
    split_drawings,
    to_icons,
)
from twn_lightning.data.nano.digits import ARROWS, COLOURS, SPLIT_SHARES
from twn_lightning.data.nano.ingredients import (
    heading,
    heading_words,
    icon,
    icon_clip,
    icon_labels,
    load_ingredients,
)
from twn_lightning.data.nano.world import CELLS

ASSETS = Path(str(files("twn_lightning"))) / "assets" / "nano"
HELD_OUT = [split for split in SPLIT_SHARES if split != "train"]


def coarse(icons: np.ndarray) -> np.ndarray:
    """Icons (N, 24, 24, 3) as 3 x 3 mean colours, which a shift by a pixel hardly changes."""
    return icons.reshape(-1, 3, 8, 3, 8, 3).mean(axis=(2, 4))


def test_the_pack_is_what_its_card_says() -> None:
    pack, card = load_ingredients(), (ASSETS / "INGREDIENTS.md").read_text(encoding="utf-8")
    file = (ASSETS / "ingredients.npz").read_bytes()
    digest = hashlib.sha256(file).hexdigest()
    assert len(file) < 1_500_000
    assert f"{round(len(file) / 1000)} kB, sha256 `{digest[:8]}…{digest[-4:]}`" in card
    for name, shape in (("stills", (24, 24, 3)), ("animations", (8, 24, 24, 3)), ("headings", (24, 72))):
        assert pack[name].dtype == np.uint8
        assert pack[name].shape[1:] == shape
        row = next(line for line in card.splitlines() if line.startswith(f"| `{name}`"))
        assert row.endswith(f"| {len(pack[name])} |")
    for style in STYLES:
        assert all(part in card for part in (style.name, *style.package.rsplit("@", 1)))
    assert f"Labels: {', '.join(icon_labels())}." in card
    assert f"Words: {', '.join(heading_words())}." in card


def test_the_pack_was_built_from_these_tables() -> None:
    pack = load_ingredients()
    assert icon_labels() == tuple(EMOJI)
    assert pack["sets"].tolist() == [style.name for style in STYLES]
    assert pack["set_vendor"].tolist() == [style.vendor for style in STYLES]
    assert pack["fonts"].tolist() == list(FONTS)
    assert pack["splits"].tolist() == list(SPLIT_SHARES)
    for kind in ("still", "animation"):
        for emoji, label in zip(pack[f"{kind}_emoji"], pack[f"{kind}_label"], strict=True):
            assert emoji in EMOJI[icon_labels()[label]]
    assert set(pack["still_emoji"]) == {emoji for group in EMOJI.values() for emoji in group}


def test_words_are_short_known_terms_and_none_means_two_things() -> None:
    folder = Path(sklearn.datasets.__file__).parent / "descr"
    for source, words in WORDS.items():
        text = (folder / f"{source}.rst").read_text(encoding="utf-8").lower()
        assert all(word in text for word in words)
    assert heading_words() == tuple(word for words in WORDS.values() for word in words)
    names = [*heading_words(), *icon_labels(), *COLOURS, *ARROWS, *CELLS]
    assert len(set(names)) == len(names)
    assert all(name.isalpha() and name.islower() and len(name) <= 8 for name in names[: 12 + 16])


def test_every_split_has_every_label_and_word() -> None:
    pack = load_ingredients()
    everywhere = {(content, split) for content in range(16) for split in range(len(SPLIT_SHARES))}
    assert set(zip(pack["still_label"], pack["still_split"], strict=True)) == everywhere
    words = set(zip(pack["heading_word"], pack["heading_split"], strict=True))
    assert words == {(word, split) for word in range(12) for split in range(len(SPLIT_SHARES))}


def test_no_drawing_and_no_typeface_is_in_two_splits() -> None:
    pack = load_ingredients()
    vendors = pack["set_vendor"][pack["still_set"]]
    drawings = set(zip(pack["still_emoji"], vendors, pack["still_split"], strict=True))
    animated = zip(pack["animation_emoji"], pack["animation_split"], strict=True)
    drawings |= {(emoji, "microsoft", split) for emoji, split in animated}
    assert len({drawing[:2] for drawing in drawings}) == len(drawings)
    fonts = set(zip(pack["heading_font"], pack["heading_split"], strict=True))
    assert len(fonts) == len(FONTS)
    assert np.bincount([split for _, split in fonts]).tolist() == list(FONTS_PER_SPLIT.values())


def test_no_picture_is_in_two_splits() -> None:
    pack = load_ingredients()
    home: dict[bytes, int] = {}
    frames = pack["animations"].reshape(-1, 24, 24, 3)
    pictures = [*pack["stills"], *frames, *pack["headings"]]
    splits = [*pack["still_split"], *np.repeat(pack["animation_split"], 8), *pack["heading_split"]]
    for picture, split in zip(pictures, splits, strict=True):
        assert home.setdefault(picture.tobytes(), split) == split


@pytest.mark.parametrize("split", HELD_OUT)
def test_held_out_icons_and_headings_are_drawn_unchanged(split: str) -> None:
    pack, place = load_ingredients(), list(SPLIT_SHARES).index(split)
    rng = np.random.default_rng(3)
    for i, label in enumerate(icon_labels()):
        own = pack["stills"][(pack["still_label"] == i) & (pack["still_split"] == place)]
        drawn = {icon(label, split, rng).tobytes() for _ in range(100)}
        assert drawn == {still.tobytes() for still in own}
    for i, word in enumerate(heading_words()):
        own = pack["headings"][(pack["heading_word"] == i) & (pack["heading_split"] == place)]
        drawn = {heading(word, split, rng).tobytes() for _ in range(100)}
        assert drawn == {strip.tobytes() for strip in own}


def test_icons_of_the_train_split_vary_but_stay_near_a_still() -> None:
    pack = load_ingredients()
    rng = np.random.default_rng(0)
    for i, label in enumerate(icon_labels()):
        own = coarse(pack["stills"][(pack["still_label"] == i) & (pack["still_split"] == 0)])
        icons = np.stack([icon(label, "train", rng) for _ in range(20)])
        assert len({drawn.tobytes() for drawn in icons}) == 20
        for drawn in coarse(icons):
            error = np.sqrt(((own - drawn) ** 2).mean(axis=(1, 2, 3)).min())
            assert error < 45, f"{label}: {error:.0f} grey levels from the nearest still"


def test_one_seed_draws_one_icon_and_clip() -> None:
    for draw in (icon, icon_clip):
        first, again = (draw("star", "train", np.random.default_rng(5)) for _ in range(2))
        np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(*(heading("petal", "train", np.random.default_rng(5)) for _ in range(2)))


def test_drawing_does_not_hand_out_the_pack_itself() -> None:
    for split in SPLIT_SHARES:
        icon("bell", split, np.random.default_rng(1))[:] = 0
        icon_clip("bell", split, np.random.default_rng(1))[:] = 0
        heading("sugar", split, np.random.default_rng(1))[:] = 0
    pack = load_ingredients()
    assert min(pack[name].reshape(len(pack[name]), -1).max(1).min() for name in ("stills", "headings")) > 0
    assert pack["animations"].max(axis=(2, 3, 4)).min() > 0


@pytest.mark.parametrize("split", ["val", "test"])
def test_clips_move(split: str) -> None:
    rng = np.random.default_rng(2)
    for label in icon_labels():
        for _ in range(5):
            clip = icon_clip(label, split, rng)
            assert clip.shape == (8, 24, 24, 3)
            assert clip.dtype == np.uint8
            assert len({frame.tobytes() for frame in clip}) >= 4


def test_half_of_the_clips_are_animated_emoji_where_the_split_has_them() -> None:
    pack, place = load_ingredients(), list(SPLIT_SHARES).index("test")
    own = pack["animation_split"] == place
    labels = [icon_labels()[i] for i in sorted(set(pack["animation_label"][own]))]
    assert labels == ["heart", "star", "car", "fish", "clock", "cup", "cat"]
    real = {clip.tobytes() for clip in pack["animations"][own]}
    rng = np.random.default_rng(4)
    drawn = [icon_clip(label, "test", rng).tobytes() in real for label in labels * 40]
    assert abs(np.mean(drawn) - 0.5) < 4 * math.sqrt(0.25 / len(drawn))
    others = [icon_clip(label, "val", rng) for label in labels] + [icon_clip("apple", "test", rng)]
    assert real.isdisjoint(clip.tobytes() for clip in others)


def test_unknown_names_list_what_exists() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"Unknown label 'hart'; the nano world has heart, .*Did you mean 'heart'\?"):
        icon("hart", "train", rng)
    with pytest.raises(ValueError, match=r"Unknown split 'valid'.*Did you mean 'val'\?"):
        icon_clip("heart", "valid", rng)
    with pytest.raises(ValueError, match="Unknown word 'zebra'"):
        heading("zebra", "test", rng)


def test_drawings_are_dealt_to_all_splits_and_the_animated_vendors_to_two() -> None:
    drawings = [
        (emoji, vendor) for emoji in ("a", "b", "c") for vendor in ("microsoft", "google", "mozilla", "openmoji")
    ]
    split_of = split_drawings("heart", drawings)
    assert set(split_of) == set(drawings)
    assert sorted(split_of[emoji, "microsoft"] for emoji in "abc") == ["test", "train", "train"]
    others = sorted(split for (_, vendor), split in split_of.items() if vendor != "microsoft")
    assert others == ["calibration", "gate", "rl", "test", "train", "train", "train", "train", "val"]
    assert split_of == split_drawings("heart", drawings)
    assert split_of != split_drawings("star", drawings)


def test_pictures_are_cropped_together_centred_and_laid_on_white() -> None:
    wide, dot = Image.new("RGBA", (64, 64)), Image.new("RGBA", (64, 64))
    ImageDraw.Draw(wide).rectangle((10, 20, 53, 41), fill=(200, 0, 0, 255))
    ImageDraw.Draw(dot).rectangle((10, 20, 11, 21), fill=(0, 0, 200, 255))
    first, second = to_icons([wide, dot])
    drawn = (first != 255).any(axis=-1)
    assert np.flatnonzero(drawn.any(axis=0)).tolist() == list(range(1, 23))
    assert np.flatnonzero(drawn.any(axis=1)).tolist() == list(range(6, 18))
    assert first[8, 8].tolist() == [200, 0, 0]
    assert np.argwhere((second != 255).any(axis=-1))[0].tolist() == [6, 1]


def test_a_vendor_without_the_emoji_draws_none(tmp_path: Path) -> None:
    style = next(style for style in STYLES if style.name == "fluent-3d")
    assets = tmp_path / "lobehub-fluent-emoji-3d-1.1.0" / "package" / "assets"
    assets.mkdir(parents=True)
    Image.new("RGB", (32, 32), (10, 120, 30)).save(assets / "2764-fe0f.webp", lossless=True)
    packages = Packages(tmp_path)
    still = draw_still(packages, style, "red-heart")
    assert still is not None
    assert still[12, 12].tolist() == [10, 120, 30]
    assert still[0, 0].tolist() == [255, 255, 255]
    assert draw_still(packages, style, "star") is None
