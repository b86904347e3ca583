"""Videos: sampling, time stamps, decoding with PyAV, and equality with Hugging Face's processor."""

from __future__ import annotations

import builtins
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from twn_lightning.backbone.media import Clip, load_video, sample_frames
from twn_lightning.backbone.pixels import PatchSettings, patchify_images
from twn_lightning.backbone.tiny import build_tiny
from twn_lightning.backbone.videos import patchify_videos, time_stamps
from twn_lightning.errors import DataError
from twn_lightning.types import Item, Media

TORCHVISION_FOLDER = os.environ.get("TWN_TORCHVISION")
"""A folder of its own for torchvision: one that does not fit torch breaks transformers when it is on the path."""
SETTINGS = PatchSettings(4, 2, 2, 64, 4096, (0.5,) * 3, (0.5,) * 3)


def write_video(path: Path, frames: int, rate: int = 10, codec: str = "mpeg4") -> Path:
    """A video whose frames brighten evenly from black to white."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(frames):
            grey = np.full((32, 32, 3), round(255 * i / (frames - 1)), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.skipif(
    not (TORCHVISION_FOLDER or importlib.util.find_spec("torchvision")),
    reason="Hugging Face's video processor needs torchvision, an extra. "
    "`pip install --target DIR --no-deps torchvision` and TWN_TORCHVISION=DIR run this test beside any build of torch",
)
def test_equals_hugging_face():
    script = Path(__file__).with_name("huggingface_parity.py")
    path = os.pathsep.join(filter(None, [TORCHVISION_FOLDER, *sys.path]))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["clips"]["shapes_equal"]
    assert result["clips"]["largest_difference"] < 1e-5
    assert result["prompts"] == {"text": True, "image": True, "video": True, "mixed": True}


@pytest.mark.parametrize(
    ("total", "most", "expected"),
    [(3, 8, (0, 1, 2)), (8, 8, tuple(range(8))), (100, 4, (0, 33, 66, 99)), (10, 4, (0, 3, 6, 9)), (9, 1, (0,))],
)
def test_frames_are_sampled_evenly(total, most, expected):
    assert sample_frames(total, most) == expected


def test_time_stamps_are_means_of_each_pair_of_frames():
    clip = Clip(np.zeros((3, 4, 4, 3), np.uint8), (0, 30, 60), 30.0)
    assert time_stamps(clip, 2) == ["<0.5 seconds>", "<2.0 seconds>"]


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_decodes_a_file(suffix, tmp_path):
    path = write_video(tmp_path / f"clip.{suffix}", frames=21)
    clip = load_video(Media("video", path), "q", 5)
    assert clip.frames.shape == (5, 32, 32, 3)
    assert clip.indices == (0, 5, 10, 15, 20)
    assert clip.frames_per_second == pytest.approx(10, rel=0.01)
    assert clip.frames.mean(axis=(1, 2, 3)) == pytest.approx([0, 64, 128, 191, 255], abs=6)


def test_a_short_file_gives_all_its_frames(tmp_path):
    clip = load_video(Media("video", write_video(tmp_path / "clip.mp4", frames=3)), "q", 8)
    assert clip.indices == (0, 1, 2)


@pytest.mark.parametrize("content", [b"", b"not a video", None])
def test_an_unreadable_file_names_item_and_file(content, tmp_path):
    path = tmp_path / "bad.mp4"
    whole = write_video(tmp_path / "whole.mp4", frames=20).read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=r"item 'q7': video .*bad\.mp4 cannot be decoded"):
        load_video(Media("video", path), "q7", 4)


def test_a_missing_file_names_item_and_file():
    pytest.importorskip("av")
    with pytest.raises(DataError, match=r"item 'q7': video nowhere\.mp4 does not exist"):
        load_video(Media("video", Path("nowhere.mp4")), "q7", 4)


def test_without_pyav_the_extra_is_named(monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match=r"pip install 'twn_lightning\[video\]'"):
        load_video(Media("video", Path("clip.mp4")), "q7", 4)


def test_a_still_video_has_an_images_patches():
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    still = Clip(np.stack([pixels] * 4), (0, 1, 2, 3), 2.0)
    video = patchify_videos([("q", still)], SETTINGS)
    image = patchify_images([("q", Media("image", pixels))], SETTINGS)
    assert video.grid_thw.tolist() == [[2, *image.grid_thw[0, 1:].tolist()]]
    assert torch.equal(video.values(), image.values().repeat(2, 1))


def test_one_frame_fills_a_temporal_patch():
    clip = Clip(np.zeros((1, 16, 16, 3), np.uint8), (0,), 2.0)
    assert patchify_videos([("q", clip)], SETTINGS).grid_thw.tolist() == [[1, 4, 4]]


def test_every_frame_has_a_stamp_and_its_own_pair_inside_an_outer_one():
    _, processor = build_tiny()
    frames = np.zeros((4, 16, 8, 3), np.uint8)
    batch = processor([Item("q", "", "x", (Media("video", frames),))])
    text = processor.tokenizer.decode(batch.input_ids_BL[0])
    pads = "<|video_pad|>" * 2
    assert (
        "<|vision_start|>"
        f"<0.2 seconds><|vision_start|>{pads}<|vision_end|>"
        f"<1.2 seconds><|vision_start|>{pads}<|vision_end|>"
        "<|vision_end|>"
    ) in text


def test_a_video_is_cut_to_the_processors_frames():
    _, processor = build_tiny(max_frames=4)
    batch = processor([Item("q", "", "x", (Media("video", np.zeros((30, 8, 8, 3), np.uint8)),))])
    assert batch.video_grid_thw.tolist() == [[2, 2, 2]]
