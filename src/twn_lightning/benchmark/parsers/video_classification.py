"""Video classification: a video against class names, the task's whole label list or the row's own."""

from __future__ import annotations

from functools import cache
from itertools import islice
from pathlib import Path

import yaml

from twn_lightning.benchmark.context import LoadContext
from twn_lightning.benchmark.parsers.video_files import find_video
from twn_lightning.benchmark.rows import RowBuilder, TaskRows
from twn_lightning.errors import ConfigError, unknown_name

LABELS_FILE = Path(__file__).parents[1] / "video_labels.yaml"
SSV2_ROWS = 1000
"""The benchmark takes the first rows of Something-Something V2 only."""


@cache
def class_labels() -> dict[str, list[str]]:
    """The label list of each task that has one, in the reference's order."""
    labels: dict[str, list[str]] = yaml.safe_load(LABELS_FILE.read_text(encoding="utf-8"))
    return labels


def video_classification(context: LoadContext) -> TaskRows:
    """K700, HMDB51, UCF101, Breakfast: columns `video_id`, `pos_text`; every class of the task is a candidate.

    Raises:
        ConfigError: the task has no label list.
        DataError: a row that cannot be used, such as one whose class is not in the list.
    """
    if context.task.name not in class_labels():
        raise ConfigError(unknown_name("label list of video classification", context.task.name, class_labels()))
    rows = RowBuilder(context)
    for label in class_labels()[context.task.name]:
        rows.candidate(label, label)
    for row in context.rows():
        with rows.row(row) as entry:
            video = find_video(context, row, row.identifier("video_id"))
            entry.query("", labels=[row.text("pos_text")], media=(video,))
    return rows.finish()


def ssv2(context: LoadContext) -> TaskRows:
    """Something-Something V2: columns `video_id`, `pos_text`, `neg_text` (all classes, the right one among them).

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for row in islice(context.rows(), SSV2_ROWS):
        with rows.row(row) as entry:
            video = find_video(context, row, row.identifier("video_id"))
            entry.query("", labels=[row.text("pos_text")], media=(video,))
            for label in row.texts("neg_text"):
                entry.candidate(label, label)
    return rows.finish()
