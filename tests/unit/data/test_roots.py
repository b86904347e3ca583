"""Media below a root: natural order, sampling, and nothing outside of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mmeb_files import write_frames
from twn_lightning.data.roots import MediaRoot, natural_key
from twn_lightning.errors import DataError
from twn_lightning.types import Media

WHERE = "source 'x', file.json, row 3"


@pytest.fixture
def root(tmp_path: Path) -> MediaRoot:
    folder = tmp_path / "root"
    for name in (
        "a.png",
        "clip/frame10.JPG",
        "clip/frame2.jpg",
        "clip/frame1.png",
        "clip/.hidden.png",
        "clip/notes.txt",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    for name in ("empty", "clips/clip_10", "clips/clip_9", "clips/.cache"):
        (folder / name).mkdir(parents=True)
    (folder / "clips/file.txt").write_bytes(b"x")
    (folder / "movie.mp4").write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"x")
    return pickle.loads(pickle.dumps(MediaRoot(folder, "data.media_root")))


def names(media: Media) -> list[str]:
    assert isinstance(media.content, tuple)
    return [path.name for path in media.content]


def test_finds_images_frames_and_videos(root: MediaRoot) -> None:
    assert root.image("a.png", WHERE) == MediaRoot(str(root.root)).image("a.png", WHERE)
    assert root.image("a.png", WHERE) == Media("image", root.root / "a.png")  # no image at all: nothing is opened
    assert names(root.frames("clip", WHERE, None)) == ["frame1.png", "frame2.jpg", "frame10.JPG"]
    assert names(root.frames("clip", WHERE, 2)) == ["frame1.png", "frame10.JPG"]
    assert len(names(root.frames("clip", WHERE, 64))) == 3
    assert names(root.video("clip", ["movie.mp4"], WHERE, 8)) == ["frame1.png", "frame2.jpg", "frame10.JPG"]
    assert root.video("gone", ["none.mp4", "movie.mp4"], WHERE, 8) == Media("video", root.root / "movie.mp4")
    assert root.subfolders(".", WHERE) == ["clip", "clips", "empty"]
    assert root.subfolders("clips", WHERE) == ["clip_9", "clip_10"]


def test_many_frames_are_sampled_evenly(root: MediaRoot) -> None:
    write_frames(root.root / "long", 12)
    assert names(root.frames("long", WHERE, 4)) == [f"frame_{n}.jpg" for n in (1, 4, 8, 12)]


def test_names_with_spaces_and_other_letters(root: MediaRoot) -> None:
    (root.root / "a b é.jpg").write_bytes(b"x")
    assert root.image("a b é.jpg", WHERE).content == root.root / "a b é.jpg"


LOOKS: dict[str, Callable[[MediaRoot, str], object]] = {
    "image": lambda root, path: root.image(path, WHERE),
    "folder": lambda root, path: root.folder(path, WHERE),
    "subfolders": lambda root, path: root.subfolders(path, WHERE),
    "frames": lambda root, path: root.frames(path, WHERE, 8),
    "video": lambda root, path: root.video(path, [], WHERE, 8),
    "video file": lambda root, path: root.video("gone", [path], WHERE, 8),
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("path", ["../secret.png", "clip/../../secret.png", "/etc/passwd", "", " ", "a\0b"])
def test_paths_may_not_leave_the_root(root: MediaRoot, path: str, look: str) -> None:
    with pytest.raises(DataError, match=r"source 'x', file\.json, row 3: .*(leaves its root|is not the path)"):
        LOOKS[look](root, path)


@pytest.mark.parametrize("path", ["link.png", "linked/secret.png", "clip/frame3.png"])
def test_links_may_not_leave_the_root(root: MediaRoot, path: str) -> None:
    outside = root.root.parent
    (root.root / "link.png").symlink_to(outside / "secret.png")
    (root.root / "linked").symlink_to(outside)
    (root.root / "clip/frame3.png").symlink_to(outside / "secret.png")
    with pytest.raises(DataError, match=r"row 3: .* leaves its root .* through a symbolic link"):
        root.image(path, WHERE)
    with pytest.raises(DataError, match="symbolic link"):
        root.frames("clip", WHERE, None)


def test_links_inside_and_a_linked_root_are_fine(root: MediaRoot, tmp_path: Path) -> None:
    (root.root / "again").symlink_to(root.root / "clip")
    assert names(root.frames("again", WHERE, 1)) == ["frame1.png"]
    (tmp_path / "alias").symlink_to(root.root)
    assert MediaRoot(tmp_path / "alias").image("a.png", WHERE).content == tmp_path / "alias/a.png"


def test_missing_media_are_named(root: MediaRoot) -> None:
    with pytest.raises(DataError, match=r"row 3: image .*b\.png does not exist. Check data\.media_root"):
        root.image("b.png", WHERE)
    with pytest.raises(DataError, match="is too long for a path"):
        root.image("x" * 300, WHERE)  # longer than file systems allow
    with pytest.raises(DataError, match=r"row 3: folder .*none does not exist"):
        root.frames("none", WHERE, 2)
    with pytest.raises(DataError, match=r"row 3: image .*nowhere/a\.png does not exist. Check media_root"):
        MediaRoot(root.root / "nowhere").image("a.png", WHERE)
    with pytest.raises(DataError, match=r"row 3: folder .*empty holds no frame"):
        root.frames("empty", WHERE, 2)
    with pytest.raises(DataError, match=r"row 3: folder .*empty holds no frame"):
        root.video("empty", ["movie.mp4"], WHERE, 2)
    (root.root / "odd/0.jpg").mkdir(parents=True)
    with pytest.raises(DataError, match=r"row 3: frame .*odd/0\.jpg is no file"):
        root.frames("odd", WHERE, 2)
    with pytest.raises(DataError, match=r"row 3: video .*gone or .*gone\.mp4 does not exist"):
        root.video("gone", ["gone.mp4"], WHERE, 2)


def test_natural_order() -> None:
    shuffled = ["f10", "f9", "b2a", "f01", "f1", "10", "9"]
    assert sorted(shuffled, key=natural_key) == ["9", "10", "b2a", "f01", "f1", "f9", "f10"]
