"""Annotations and media of the video tasks, in the exact schema of each parser, with tiny frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.support.mmeb_files import annotation_path, write_frames, write_image, write_jsonl, write_parquet
from twn_lightning.benchmark.parsers.video_classification import class_labels
from twn_lightning.benchmark.parsers.video_qa import MVBENCH_FOLDERS
from twn_lightning.benchmark.registry import BenchmarkTask

Row = dict[str, Any]
SSV2_LABELS = [f"Moving something number {number} away from something" for number in range(173)] + [
    "Déplacer quelque chose"
]
CAPTIONS = (
    "a man slices an onion",
    "ein Hund läuft über die Straße",
    "两只猫在沙发上睡觉",
    'she says "hello", then waves 👋',
    "  a caption with outer blanks\n",
)
JSONL_PARSERS = ("didemo", "moment_retrieval", "momentseeker")
"""Written as .jsonl, the others as .parquet."""
NEGATIVES = 9


def write_video_task(
    task: BenchmarkTask, annotations_root: Path, media_root: Path, queries: int, rng: np.random.Generator
) -> None:
    """Annotations and frames of one video task.

    Args:
        task: a row of the table, of modality video.
        annotations_root: the mirror of annotations.
        media_root: the mirror of media.
        queries: rows to write.
        rng: decides classes and right answers.
    """
    media = media_root / task.media
    if task.parser == "mvbench":
        _write_mvbench(task, annotations_root, media, queries, rng)
        return
    make_row = ROWS[task.parser]
    rows = [make_row(task, media, number, rng) for number in range(queries)]
    if task.parser in JSONL_PARSERS:
        write_jsonl(annotation_path(annotations_root, task, suffix=".jsonl"), rows)
    else:
        write_parquet(annotation_path(annotations_root, task), rows)


def write_video(file: Path, frames: int = 12, size: int = 32) -> Path:
    """A short .mp4 whose pictures get brighter; a folder of frames of that name where PyAV is not installed."""
    if find_spec("av") is None:
        return write_frames(file.with_suffix(""))
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            pixels = np.full((size, size, 3), 20 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file


def _caption(number: int) -> str:
    return f"{CAPTIONS[number % len(CAPTIONS)]} {number}"


def _options(number: int, count: int) -> list[str]:
    return [f"{_caption(number + option)} ({option})" for option in range(count)]


def _video_classification(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    labels = class_labels()[task.name]
    label = labels[int(rng.integers(len(labels)))]
    name = f"v_{number:03d}_{task.name}"
    write_frames(media / name, start=number)
    return {"video_id": name, "pos_text": label}


def _ssv2(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    name = str(74225 + number)
    write_frames(media / name, start=number)
    label = SSV2_LABELS[int(rng.integers(len(SSV2_LABELS)))]
    return {"video_id": name, "pos_text": label, "neg_text": SSV2_LABELS}


def _videomme(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    name = f"fFjv93ACG{number:02d}"
    write_frames(media / name, count=10, start=number)
    return {
        "video_id": f"{number:03d}",
        "duration": "short",
        "domain": "Knowledge",
        "sub_category": "Humanity & History",
        "videoID": name,
        "question_id": f"{number:03d}-1",
        "question": f"What does the person say? {_caption(number)}",
        "options": [f"{letter}. {text}." for letter, text in zip("ABCD", _options(number, 4), strict=True)],
        "answer": "ABCD"[int(rng.integers(4))],
    }


def _nextqa(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    video = 4_740_931_975 + number
    write_frames(media / str(video), start=number)
    options = _options(number, 5)
    if number == 1:
        options[3] = options[1]  # a duplicate candidate string
    row = {"video": video, "question": _caption(number), "answer": int(rng.integers(5)), "qid": number, "type": "CW"}
    return row | {f"a{position}": option for position, option in enumerate(options)}


def _egoschema(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    name = f"0074f737-11cb-497d-8d07-{number:012d}"
    write_frames(media / name, start=number)
    return {
        "question_idx": str(number),
        "question": f"Summarise what c does. {_caption(number)}",
        "video_idx": name,
        "option": [f"{letter}. {text}." for letter, text in zip("ABCDE", _options(number, 5), strict=True)],
        "answer": str(int(rng.integers(5))),
    }


def _activitynetqa(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    name = f"lVr-7ui7l{number:02d}"
    if number == 0:
        write_video(media / f"v_{name}.mp4")
    else:
        write_frames(media / f"v_{name}", start=number)
    return {
        "video_name": name,
        "question": "is the person with a hat wearing trousers",
        "answer": ("yes", "no")[int(rng.integers(2))],
        "question_id": f"{name}_{number}",
        "type": "3",
    }


def _msrvtt(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    name = f"video{7020 + number}"
    write_frames(media / name, start=number)
    return {"video_id": name, "video": f"{name}.mp4", "caption": _caption(number), "source": "MSR-VTT"}


def _msvd(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    name = f"-4wsuPCjDBc_{number}_15"
    write_frames(media / name, start=number)
    return {"video_id": name, "video": f"{name}.avi", "caption": [_caption(number), "another caption"]}


def _didemo(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    name = f"12090392@N02_{number}_78f8"
    write_frames(media / name, start=number)
    return {"video": f"test/{name}.mp4", "caption": _caption(number)}


def _youcook2(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    name = f"xHr8X2Wpmno_{number}"
    write_frames(media / name, start=number)
    return {"id": name, "video_path": f"val/113/{name}.mp4", "sentence": _caption(number), "youtube_id": name[:11]}


def _vatex(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    name = f"2gpXvKHrOaQ_{number:06d}_000010"
    write_frames(media / name, start=number)
    return {"videoID": name, "enCap": [_caption(number), "another"], "chCap": ["一个视频"]}


def _moment_retrieval(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    stem = f"NUsG9BgSes0_{number}.0_210.0"
    write_frames(media / stem / "query", count=12, start=number)
    write_frames(media / stem / "positive_1", count=8, start=number + 3)
    for negative in range(2, NEGATIVES + 2):
        write_frames(media / stem / f"negative_{negative}", count=8, start=number + negative)
    return {"query": _caption(number), "video_path": f"videos/{stem}.mp4"}


def _momentseeker(task: BenchmarkTask, media: Path, number: int, rng: np.random.Generator) -> Row:
    clips = [f"movie101/{number}_{clip}.mp4" for clip in range(NEGATIVES + 2)]
    for position, clip in enumerate(clips):
        write_frames(media / "video_frames" / clip.replace("/", "_").removesuffix(".mp4"), count=8, start=position)
    kind = ("", f"img_{number}.jpg", f"movie101/q{number}.mp4")[number % 3]
    if kind.endswith(".jpg"):
        write_image(media / f"query_{kind}", number)
    elif kind:
        write_frames(media / "video_frames" / kind.replace("/", "_").removesuffix(".mp4"), count=10)
    positives = 2 if number % 2 == 0 else 1
    return {
        "query": _caption(number),
        "input_frames": kind,
        "positive_frames": [{"output_path": clip} for clip in clips[:positives]],
        "negative_frames": [{"output_path": clip} for clip in clips[positives:]],
    }


ROWS: dict[str, Callable[[BenchmarkTask, Path, int, np.random.Generator], Row]] = {
    "video_classification": _video_classification,
    "ssv2": _ssv2,
    "videomme": _videomme,
    "nextqa": _nextqa,
    "egoschema": _egoschema,
    "activitynetqa": _activitynetqa,
    "msrvtt": _msrvtt,
    "msvd": _msvd,
    "didemo": _didemo,
    "youcook2": _youcook2,
    "vatex": _vatex,
    "moment_retrieval": _moment_retrieval,
    "momentseeker": _momentseeker,
}
"""What writes one row and its media, by parser; MVBench, which is several files, has its own function."""


def _write_mvbench(
    task: BenchmarkTask, annotations_root: Path, media: Path, queries: int, rng: np.random.Generator
) -> None:
    """All 20 subsets have their file; the rows go round, so that with few queries some files are empty."""
    types = {"video": pa.string(), "question": pa.string(), "candidates": pa.list_(pa.string()), "answer": pa.string()}
    subsets = list(MVBENCH_FOLDERS)
    for position, subset in enumerate(subsets):
        rows = [_mvbench_row(media / subset, number, rng) for number in _share(position, len(subsets), queries)]
        write_parquet(annotation_path(annotations_root, task, subset=subset), rows, types)


def _mvbench_row(media: Path, number: int, rng: np.random.Generator) -> Row:
    file = f"ZS9XR_{number}.mp4"
    write_frames(media / file, start=number)
    options = _options(number, 3 + number % 3)
    answer = options[int(rng.integers(len(options)))]
    return {"video": file, "question": _caption(number), "candidates": options, "answer": answer}


def _share(position: int, of: int, total: int) -> Iterable[int]:
    return range(position, total, of)
