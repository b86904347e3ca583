"""One task's annotations and media below a temporary folder, for tests that write single rows by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.mmeb_files import annotation_path, write_frames, write_jsonl, write_parquet
from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.benchmark.loading import load_task
from twn_lightning.benchmark.registry import get_task


class Mirror:
    """Writes a task's rows and frames, and loads it.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.annotations, self.media = root / "annotations", root / "media"

    def write(self, name: str, rows: list[dict[str, Any]], subset: str | None = None) -> None:
        """The task's annotations, as Parquet."""
        write_parquet(annotation_path(self.annotations, get_task(name), subset=subset), rows)

    def write_lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        """The same as JSON lines, which can also hold rows that are not alike."""
        write_jsonl(annotation_path(self.annotations, get_task(name), suffix=".jsonl"), rows)

    def frames(self, name: str, folder: str, count: int = 9) -> Path:
        """A video of the task as a folder of frames."""
        return write_frames(self.media / get_task(name).media / folder, count)

    def load(self, name: str, protocol: str = "vlm2vec", **changes: Any) -> EvalTask:
        """The task, whatever its counts."""
        return load_task(name, self.annotations, self.media, protocol, strict_counts=False, **changes)
