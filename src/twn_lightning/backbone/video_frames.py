"""Chosen frames of a video file, through PyAV. Of a long one only the stretches of packets are decoded that they need.

A stretch goes from a keyframe to the packet of a wanted frame, in the order of decoding: later packets are no part of
that frame. Where packets and frames do not match one to one, everything is decoded and the frames are counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from twn_lightning.launch import available_cores

FALLBACK_FRAMES_PER_SECOND = 24.0
"""For a video file that does not state its frame rate, as in Hugging Face's processor."""
MAX_FRAME_PIXELS = 8192 * 4320
"""Of one frame; larger ones are refused before they are decoded: a gigapixel takes some tens of kilobytes in a file."""
_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,ivf,h264,hevc"
"""FFmpeg's names of the formats that are read. Playlists are not among them: they name other files and addresses."""
_WORTH_SKIPPING = 0.2
"""Share of the packets: skipping fewer does not pay for emptying the decoder in between."""


@dataclass(frozen=True)
class Packets:
    """A video stream's packets in the order of decoding; headers are often silent or wrong about their number."""

    frames_per_second: float
    times: list[int | None]
    """When each one's frame is shown."""
    keyframes: list[int]
    """Places of the packets that are decoded without earlier ones."""


@contextmanager
def open_video(av: Any, path: Path) -> Iterator[tuple[Any, Any]]:
    """A video file and its first video stream.

    Args:
        av: PyAV.
        path: the file.

    Raises:
        av.error.FFmpegError: not a video file.
        IndexError: no video stream.
        ValueError: a codec that is not known, or frames above `MAX_FRAME_PIXELS`.
    """
    # Without `file:` a name such as `concat:a.mp4` would be an address.
    with av.open(f"file:{path}", options={"format_whitelist": _CONTAINERS}) as container:
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError("no decoder for its video stream")
        if stream.width * stream.height > MAX_FRAME_PIXELS:
            raise ValueError(
                f"its frames are {stream.width} x {stream.height}, above the limit of {MAX_FRAME_PIXELS:,} pixels"
            )
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = _decoder_threads()
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # where frames outgrow their header
        yield container, stream


def _decoder_threads() -> int:
    """0 lets FFmpeg take all cores; worker processes share them, and would be in each other's way."""
    worker = get_worker_info()
    if worker is None:
        return 0
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, available_cores() // (ranks * worker.num_workers))


def scan_packets(av: Any, path: Path) -> Packets:
    """Read all packets and decode none."""
    times: list[int | None] = []
    keyframes = []
    with open_video(av, path) as (container, stream):
        rate = float(stream.average_rate or FALLBACK_FRAMES_PER_SECOND)
        for packet in container.demux(stream):
            if packet.size:
                if packet.is_keyframe:
                    keyframes.append(len(times))
                times.append(packet.pts)
    return Packets(rate, times, keyframes)


def read_frames(av: Any, path: Path, indices: Sequence[int]) -> tuple[list[np.ndarray], int]:
    """Decode everything.

    Args:
        av: PyAV.
        path: the file.
        indices: of the wanted frames, ascending.

    Returns:
        The frames, uint8 (height, width, 3), and how many the file holds.
    """
    wanted, frames, decoded = set(indices), [], 0
    with open_video(av, path) as (container, stream):
        for frame in container.decode(stream):
            if decoded in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
            decoded += 1
    return frames, decoded


def read_stretches(av: Any, path: Path, packets: Packets, indices: Sequence[int]) -> list[np.ndarray] | None:
    """Decode only what the wanted frames need; they equal those of `read_frames`.

    Args:
        av: PyAV.
        path: the file.
        packets: of the file.
        indices: of the wanted frames, ascending.

    Returns:
        The frames, uint8 (height, width, 3); None where too little can be skipped, or a packet gave no frame.
    """
    stretches = find_stretches(packets, indices)
    if not stretches or sum(map(len, stretches)) > (1 - _WORTH_SKIPPING) * len(packets.times):
        return None
    times: Any = packets.times
    # Packets that are shown before the keyframe of their stretch build on what was skipped.
    missing = {times[place] for part in stretches for place in part if times[place] >= times[part.start]}
    shown = sorted(times)
    frames: dict[int, np.ndarray] = {}
    wanted = [shown[i] for i in indices]
    with open_video(av, path) as (container, stream):
        decoder = stream.codec_context
        for place, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
            if place not in stretches[0]:
                continue
            found = decoder.decode(packet)
            if place == stretches[0][-1]:
                found += decoder.decode(None)
                decoder.flush_buffers()
                stretches.pop(0)
            missing -= {frame.pts for frame in found}
            frames |= {frame.pts: frame.to_ndarray(format="rgb24") for frame in found if frame.pts in wanted}
            if not stretches:
                break
    return None if missing or not frames.keys() >= set(wanted) else [frames[time] for time in wanted]


def find_stretches(packets: Packets, indices: Sequence[int]) -> list[range]:
    """Ranges of packets, from a keyframe on, that hold the wanted frames and all that these build on.

    Args:
        packets: of the file.
        indices: of the wanted frames, ascending.

    Returns:
        Ranges that neither overlap nor touch, ascending; none where it cannot be told.
    """
    times = packets.times
    known = [time for time in times if time is not None]
    if not packets.keyframes or packets.keyframes[0] != 0 or len(set(known)) < len(times):
        return []
    place_of_frame = np.argsort(np.array(known))
    stretches: list[range] = []
    for place in sorted(int(place_of_frame[i]) for i in indices):
        keyframe = int(np.searchsorted(packets.keyframes, place, side="right")) - 1
        if known[place] < known[packets.keyframes[keyframe]]:  # shown before the keyframe: it builds on both sides
            keyframe -= 1
        start = packets.keyframes[max(keyframe, 0)]
        if stretches and start <= stretches[-1].stop:
            start = stretches.pop().start
        stretches.append(range(start, place + 1))
    return stretches
