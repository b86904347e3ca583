"""Image and video files that attack the decoder: whole and broken ones, each compared with Pillow's or PyAV's own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.trust.fuzz import broken_files
from tests.trust.fuzz.cases import SECONDS, check, examples, nothing_left
from twn_lightning.backbone.media import Clip, load_image, load_video
from twn_lightning.errors import DataError
from twn_lightning.types import Media

WHOLE = broken_files.whole_images()
UNREADABLE = broken_files.unreadable_images()
TRAPS = broken_files.exif_traps()
EDITS = st.lists(
    st.tuples(st.sampled_from(["cut", "flip", "zero", "repeat"]), st.floats(0, 1), st.integers(1, 255)),
    min_size=1,
    max_size=3,
)
MAX_FRAMES = 8


@pytest.fixture(scope="module", autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left("media"):
        yield


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def clips(folder: Path) -> list[Path]:
    return broken_files.write_whole_clips(folder)


def same_as_pillow(content: bytes, pixels: np.ndarray) -> None:
    """The pixels are Pillow's: upright, transparency on white, 16 bits scaled to 8."""
    with Image.open(io.BytesIO(content)) as image:
        turn = image.getexif().get(0x0112)
        image.load()
        if image.mode.startswith("I"):
            values = np.asarray(image).astype(np.int64)
            shades = values // 257 if values.max() > 255 else values
            expected = np.repeat(np.clip(shades, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)
        else:
            back = Image.new("RGBA", image.size, "white")
            expected = np.asarray(Image.alpha_composite(back, image.convert("RGBA")).convert("RGB"))
            if not image.has_transparency_data:
                expected = np.asarray(image.convert("RGB"))
    turned = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
              6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: np.rot90}  # fmt: skip
    if turn in turned:
        expected = turned[turn](expected)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


def decode(content: bytes, folder: Path, name: str) -> np.ndarray:
    path = folder / name
    path.write_bytes(content)
    return load_image(Media("image", path), f"item of {name}")


@pytest.mark.parametrize("name", WHOLE)
def test_whole_images_are_read_as_pillow_reads_them(name: str, folder: Path) -> None:
    content = WHOLE[name]
    pixels = check(
        "images", name, lambda: decode(content, folder, name), lambda pixels: same_as_pillow(content, pixels)
    )
    assert pixels is not None, "a whole image was refused"


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_images_are_refused(name: str, folder: Path) -> None:
    content = UNREADABLE[name]
    check("images", name, lambda: decode(content, folder, name), None, names=name)


@pytest.mark.parametrize("name", TRAPS)
def test_a_hostile_exif_block_spoils_no_picture(name: str, folder: Path) -> None:
    content = TRAPS[name]
    check("images", name, lambda: decode(content, folder, name), lambda p: same_as_pillow(content, p), names=name)


@examples(80, 1000)
@given(name=st.sampled_from(sorted(WHOLE)), edits=EDITS)
def test_damaged_images(folder: Path, name: str, edits: list[broken_files.Edit]) -> None:
    content = broken_files.damaged(WHOLE[name], edits)
    check(
        "images",
        f"{name} {edits}",
        lambda: decode(content, folder, name),
        lambda p: same_as_pillow(content, p),
        names=name,
    )


BOMB_RUN = """
import json, resource, sys
from pathlib import Path
from twn_lightning.backbone.media import load_image, load_video
from twn_lightning.errors import DataError
from twn_lightning.errors import DataError
from twn_lightning.types import Media

ends = {}
for path in map(Path, sys.argv[1:]):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        is_video = path.suffix == ".mkv"
        load_video(Media("video", path), "q7", 8) if is_video else load_image(Media("image", path), "q7")
        said = "it was taken"
    except DataError as error:
        said = str(error)
    ends[path.name] = said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
print(json.dumps(ends))
"""


def test_bombs_are_refused_before_they_are_decoded(folder: Path) -> None:
    """In a process of their own, whose memory may not grow by 100 MB for any of them."""
    for name, content in broken_files.bombs().items():
        (folder / f"bomb_{name}").write_bytes(content)
    broken_files.write_clip(folder / "bomb_video.mkv", "libx264", (8192, 4400), frames=1)
    paths = sorted(folder.glob("bomb_*"))
    assert sum(path.stat().st_size for path in paths) < 20 << 20
    run = subprocess.run(
        [sys.executable, "-c", BOMB_RUN, *map(str, paths)], capture_output=True, text=True, check=True, timeout=SECONDS
    )
    for name, (said, megabytes) in json.loads(run.stdout).items():

        def refused(said: str = said, megabytes: int = megabytes) -> None:
            assert megabytes < 100
            raise DataError(said)

        check("bombs", name, refused, None, names="item 'q7'")


def frames_of(path: Path) -> np.ndarray:
    """Every frame, decoded in order."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def well_formed(clip: Clip, most: int) -> None:
    assert clip.frames.dtype == np.uint8
    assert clip.frames.ndim == 4
    assert clip.frames.shape[-1] == 3
    assert len(clip.frames) == len(clip.indices) <= most
    assert list(clip.indices) == sorted(set(clip.indices))
    assert np.isfinite(clip.frames_per_second)
    assert clip.frames_per_second > 0


@examples(25, 150)
@given(number=st.integers(0, 7), most=st.integers(1, 20))
def test_chosen_frames_are_those_of_a_full_decode(clips: list[Path], number: int, most: int) -> None:
    path = clips[number]
    every = frames_of(path)
    chosen = np.linspace(0, len(every) - 1, min(most, len(every))).astype(int)

    def right(clip: Clip) -> None:
        well_formed(clip, most)
        assert list(clip.indices) == chosen.tolist()
        np.testing.assert_array_equal(clip.frames, every[chosen])

    clip = check("videos", path.name, lambda: load_video(Media("video", path), "q", most), right)
    assert clip is not None, "a whole video was refused"


def test_unreadable_videos_are_refused(folder: Path) -> None:
    (folder / "unreadable").mkdir(exist_ok=True)
    for path in broken_files.write_unreadable_clips(folder / "unreadable"):
        check("videos", path.name, lambda path=path: load_video(Media("video", path), "q", 20), None, names=path.name)


@examples(40, 400)
@given(number=st.integers(0, 7), edits=EDITS)
def test_damaged_videos(clips: list[Path], number: int, edits: list[broken_files.Edit]) -> None:
    path = clips[number].with_name(f"damaged{clips[number].suffix}")
    path.write_bytes(broken_files.damaged(clips[number].read_bytes(), edits))
    check(
        "videos",
        f"{clips[number].name} {edits}",
        lambda: load_video(Media("video", path), "q", MAX_FRAMES),
        lambda clip: well_formed(clip, MAX_FRAMES),
        names=path.name,
    )


ARRAY_TYPES = ["uint8", "int16", "float32", "float64", "bool", "uint16", "object"]


@examples(40, 200)
@given(shape=st.lists(st.integers(0, 5), max_size=5), kind=st.sampled_from(ARRAY_TYPES), is_video=st.booleans())
def test_arrays(shape: list[int], kind: str, is_video: bool) -> None:
    array = np.ones(shape, np.dtype(kind))
    media = Media("video" if is_video else "image", array)

    def right(found: np.ndarray | Clip) -> None:
        assert kind == "uint8"
        assert array.size
        assert array.shape[-1] == 3
        if isinstance(found, Clip):
            well_formed(found, MAX_FRAMES)
            assert found.frames.shape[1:] == array.shape[1:]
        else:
            np.testing.assert_array_equal(found, array)

    check(
        "media arrays",
        f"{kind} {shape}",
        lambda: load_video(media, "q7", MAX_FRAMES) if is_video else load_image(media, "q7"),
        right,
        names="q7",
    )
