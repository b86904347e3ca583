"""What `task` may not say about the evaluation on MMEB-V2 or MMEB-nano. Split from `rules`, which calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from twn_lightning.settings import TaskSettings

KeysAndMessage = tuple[tuple[str, ...], str]

ENCODER_MODES = {
    "vlm2vec": ("discriminative",),
    "qwen3vl_embedding": ("discriminative",),
    "ume_r1": ("discriminative", "generative"),
}
"""What the peers of `twn` can do, which this layer cannot import; a test compares."""
PROTOCOL_MODES = {"query_mode": "adaptive", "candidate_mode": "discriminative"}
"""What every protocol asks for where `task` does not; a test compares."""


def contradictions(task: TaskSettings) -> Iterator[KeysAndMessage]:
    """The keys a problem rests on, and what is wrong."""
    if task.min_pixels and task.max_pixels and task.max_pixels < task.min_pixels:
        yield (
            ("task.min_pixels", "task.max_pixels"),
            f"task.max_pixels ({task.max_pixels}) is below task.min_pixels ({task.min_pixels}): no image size fits",
        )
    if task.suite in ("mmeb_v2", "mmeb_nano") and not task.names:
        example = "K700" if task.suite == "mmeb_v2" else "NanoVideoQA"
        yield (
            ("task.suite", "task.names"),
            f"task.suite={task.suite} names no task: choose with task={task.suite}/all, or "
            f"task.names=[image,{example}]",
        )
    yield from _modes(task)
    if task.suite == "mmeb_nano":
        for key in ("annotations_root", "media_root"):
            if getattr(task, key) is not None:
                yield (
                    ("task.suite", f"task.{key}"),
                    f"task.{key} is for MMEB-V2: MMEB-nano writes its own files, below paths.output_root",
                )


def _modes(task: TaskSettings) -> Iterator[KeysAndMessage]:
    """An encoder that writes no CoT has no generative embeddings, and one without a gate no adaptive ones."""
    there = ENCODER_MODES.get(task.encoder)
    if there is None:
        return
    if task.suite == "nano":
        yield (
            ("task.suite", "task.encoder"),
            f"task.suite=nano compares the routers of TWN, and task.encoder={task.encoder} has no gate: choose "
            "task=mmeb_nano/all or task=mmeb_v2/all, or set task.encoder=twn",
        )
        return
    for key, usual in PROTOCOL_MODES.items():
        asked = getattr(task, key) or usual
        if asked not in there:
            yield (
                ("task.encoder", f"task.{key}"),
                f"task.{key}={asked}{'' if getattr(task, key) else ' by the protocol'}, but "
                f"task.encoder={task.encoder} has only: {', '.join(there)}. Set task.{key}={there[0]}",
            )


def missing(task: TaskSettings) -> Iterator[KeysAndMessage]:
    """Folders that the evaluation needs and this machine does not have."""
    if task.suite != "mmeb_v2":
        return
    if task.media_root is None:
        yield (
            ("task.media_root",),
            "task.media_root is not set: MMEB-V2 needs its images and frames, in the layout of TIGER-Lab/MMEB-V2",
        )
    for key, folder in (("media_root", task.media_root), ("annotations_root", task.annotations_root)):
        if folder is not None and not Path(folder).expanduser().is_dir():
            yield (f"task.{key}",), f"task.{key}={folder}: there is no such folder"
