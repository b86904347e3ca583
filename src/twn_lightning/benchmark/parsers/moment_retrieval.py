"""Moments of a video: a query with or without a video of its own against short clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

from twn_lightning.benchmark.context import LoadContext, Row
from twn_lightning.benchmark.parsers.video_files import VIDEO_SUFFIXES, find_video
from twn_lightning.benchmark.rows import RowBuilder, TaskRows
from twn_lightning.data.roots import natural_key
from twn_lightning.errors import DataError
from twn_lightning.types import Media

MOMENTSEEKER_FRAMES = "video_frames"


def moment_retrieval(context: LoadContext) -> TaskRows:
    """QVHighlight, Charades-STA: columns `query`, `video_path`; the rest is the layout of the video's folder.

    `<video stem>/query` is the whole video, `<video stem>/positive*` the right clip, every other folder a wrong one.
    Clips come in natural order, not in the order a file system lists them, and their keys are paths below the task's
    media folder: both are the same on every machine.

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            file = PurePosixPath(row.identifier("video_path"))
            clips = _clips(context, row, file.stem)
            video = find_video(context, row, f"{file.stem}/query", file.name)
            entry.query(row.text("query"), labels=_positives(row, file.stem, clips), media=(video,))
            for clip in clips:
                entry.candidate(clip, media=_finder(context, row, clip))
    return rows.finish()


def momentseeker(context: LoadContext) -> TaskRows:
    """MomentSeeker: columns `query`, `input_frames`, `positive_frames`, `negative_frames` (lists of {output_path}).

    `input_frames` decides the kind of query: a name ending in .mp4 is a video, in .jpg an image, else there is none.
    A query may have several right clips.

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            kind, media = _query_media(context, row)
            positives, negatives = _output_paths(row, "positive_frames"), _output_paths(row, "negative_frames")
            labels = list(dict.fromkeys(_frame_folder(path) for path in positives))
            entry.query(row.text("query"), labels=labels, media=media, instruction=context.query_variant(kind))
            for path in [*positives, *negatives]:
                entry.candidate(_frame_folder(path), media=_finder(context, row, _frame_folder(path), path))
    return rows.finish()


def _clips(context: LoadContext, row: Row, stem: str) -> list[str]:
    """Paths of a video's clips below the task's media folder, without extension where they are raw files."""
    if stem in ("", "."):
        raise DataError(f"{row.where}: column 'video_path' must name a file, got {row.value('video_path')!r}")
    files = context.media.folder(stem, row.where).iterdir()
    raw = [f.stem for f in files if f.suffix.lower() in VIDEO_SUFFIXES and not f.name.startswith(".")]
    names = {*context.media.subfolders(stem, row.where), *raw} - {"query"}
    return [f"{stem}/{name}" for name in sorted(names, key=natural_key)]


def _positives(row: Row, stem: str, clips: list[str]) -> list[str]:
    positives = [clip for clip in clips if clip.startswith(f"{stem}/positive")]
    if not positives:
        raise DataError(f"{row.where}: folder '{stem}' has no clip named positive*; it has {len(clips)} other clips")
    return positives


def _finder(context: LoadContext, row: Row, folder: str, *files: str) -> Callable[[], tuple[Media, ...]]:
    """Finds a clip when it is called: most clips are shared by several queries."""

    def find() -> tuple[Media, ...]:
        return (find_video(context, row, folder, *files),)

    return find


def _query_media(context: LoadContext, row: Row) -> tuple[str, tuple[Media, ...]]:
    """Kind of a MomentSeeker query (text, image, video), and its media."""
    name = "" if row.value("input_frames") is None else row.text("input_frames")
    if name.endswith(".mp4"):
        return "video", (find_video(context, row, _frame_folder(name), name),)
    if name.endswith(".jpg"):
        return "image", (context.media.image(f"query_{name}", row.where),)
    return "text", ()


def _output_paths(row: Row, column: str) -> list[str]:
    entries = row.value(column)
    if not isinstance(entries, list):
        raise DataError(f"{row.where}: column '{column}' must be a list of clips, got {type(entries).__name__}")
    for position, entry in enumerate(entries):
        path = entry.get("output_path") if isinstance(entry, Mapping) else None
        if not isinstance(path, str) or not path:
            raise DataError(f"{row.where}: entry {position} of column '{column}' has no 'output_path', got {entry!r}")
    return [entry["output_path"] for entry in entries]


def _frame_folder(path: str) -> str:
    """Where the frames of a clip are: `movie/7.mp4` in `video_frames/movie_7`."""
    return f"{MOMENTSEEKER_FRAMES}/{path.replace('/', '_').split('.mp4')[0]}"
