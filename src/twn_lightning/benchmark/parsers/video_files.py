"""Where a task's videos are: a folder of saved frames, else the raw file beside it."""

from __future__ import annotations

from twn_lightning.benchmark.context import LoadContext, Row
from twn_lightning.types import Media

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm")


def find_video(context: LoadContext, row: Row, folder: str, *files: str) -> Media:
    """A video: frames sampled from its folder (all of them where the task says so), or its file, decoded later.

    Args:
        context: the task.
        row: the row that names the video, for messages.
        folder: its frames, relative to the task's media folder.
        files: names the raw file may also have there; `folder` with each of VIDEO_SUFFIXES is always tried.

    Raises:
        DataError: there is neither, the folder holds no frame, or a path leaves the media folder.
    """
    candidates = list(dict.fromkeys([*files, *(folder + suffix for suffix in VIDEO_SUFFIXES)]))
    return context.media.video(folder, candidates, row.where, context.num_frames)
