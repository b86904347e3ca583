"""Frames of long videos: decoding only what they need gives, bit for bit, what decoding everything gives."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from twn_lightning.backbone import media, video_frames
from twn_lightning.backbone.media import load_video
from twn_lightning.backbone.video_frames import (
    Packets,
    find_stretches,
    open_video,
    read_frames,
    read_stretches,
    scan_packets,
)
from twn_lightning.types import Media

av = pytest.importorskip("av")


def write_video(path: Path, frames: int, codec: str, **options: str) -> Path:
    """Noise that drifts: every frame differs, and each builds on the one before."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64 + frames, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(24), options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(frames):
            shown = np.ascontiguousarray(noise[:, i : i + 64])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())
    return path


H264 = {"g": "12", "bf": "3", "sc_threshold": "0"}
FILES = {
    "h264.mp4": ("libx264", H264),
    "h264.mkv": ("libx264", H264),
    "open.mp4": ("libx264", H264 | {"x264-params": "open-gop=1"}),
    "mpeg4.mp4": ("mpeg4", {"g": "10"}),
    "vp9.webm": ("libvpx-vp9", {"g": "12", "cpu-used": "8", "lag-in-frames": "0"}),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("indices", [(0, 119), (0, 40, 79, 119), (5, 6, 7, 60), (13,)])
def test_stretches_equal_everything(name, indices, tmp_path):
    codec, options = FILES[name]
    path = write_video(tmp_path / name, 120, codec, **options)
    found = read_stretches(av, path, scan_packets(av, path), indices)
    assert found is not None
    expected, count = read_frames(av, path, indices)
    assert count == 120
    assert len(found) == len(indices)
    assert all(np.array_equal(frame, other) for frame, other in zip(found, expected, strict=True))


def test_a_long_file_is_not_decoded_whole(tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mp4", 120, "libx264", **H264)
    everything, _ = read_frames(av, path, (0, 59, 119))

    def refuse(*args):
        raise AssertionError("all frames are decoded")

    monkeypatch.setattr(media, "read_frames", refuse)
    clip = load_video(Media("video", path), "q", 3)
    assert clip.indices == (0, 59, 119)
    assert clip.frames_per_second == pytest.approx(24, rel=0.01)
    assert np.array_equal(clip.frames, np.stack(everything))


def test_where_nothing_can_be_skipped_everything_is_decoded(tmp_path):
    path = write_video(tmp_path / "short.mp4", 20, "libx264", g="250")
    assert read_stretches(av, path, scan_packets(av, path), (0, 10, 19)) is None
    assert load_video(Media("video", path), "q", 3).indices == (0, 9, 19)


def test_times_that_are_missing_or_equal_tell_nothing():
    for times in ([0, None, 2, 3], [0, 1, 1, 3]):
        assert find_stretches(Packets(24.0, times, [0, 2]), [0]) == []
    assert find_stretches(Packets(24.0, [0, 1, 2, 3], [1]), [0]) == [], "it begins with no keyframe"


def test_a_frame_shown_before_its_keyframe_builds_on_both_sides():
    # Packets in the order of decoding; the third group's keyframe (6) is decoded before frame 5, which is shown first.
    packets = Packets(24.0, [0, 1, 2, 3, 4, 6, 5, 7, 8, 9], [0, 3, 5, 8])
    assert find_stretches(packets, [5]) == [range(3, 7)]
    assert find_stretches(packets, [6]) == [range(5, 6)]
    assert find_stretches(packets, [0, 7, 9]) == [range(1), range(5, 10)]


def test_a_packet_without_a_frame_is_noticed(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 120, "libx264", **H264)
    packets = scan_packets(av, path)
    longer = Packets(packets.frames_per_second, [*packets.times, 10**6], packets.keyframes)
    assert read_stretches(av, path, longer, (0, 120)) is None


class DecoderThreads:
    """Asked in a worker process: how many threads a decoder has there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        with open_video(av, self.path) as (_, stream):
            return stream.codec_context.thread_count


@pytest.mark.parametrize(("ranks", "threads"), [("1", 8), ("4", 2), ("16", 1)])
def test_workers_share_the_cores(ranks, threads, tmp_path, monkeypatch):
    asked = DecoderThreads(write_video(tmp_path / "clip.mp4", 12, "libx264", **H264))
    assert asked[0] == 0  # FFmpeg's own number, here where no other worker is
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setattr(video_frames, "available_cores", lambda: 16)
    found = list(DataLoader(asked, batch_size=None, num_workers=2, multiprocessing_context="fork"))
    assert found == [threads] * 2
