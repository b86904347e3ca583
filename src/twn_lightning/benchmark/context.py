"""What a parser is given: the task, its annotation rows with checked access to their columns, and its media."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from twn_lightning.benchmark.protocol import Protocol
from twn_lightning.benchmark.registry import BenchmarkTask
from twn_lightning.data.records import Records, read_records
from twn_lightning.data.roots import MediaRoot
from twn_lightning.errors import DataError

_log = logging.getLogger(__name__)
OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Row:
    """One annotation row. Its getters say which column of which row of which file is wrong."""

    index: int
    """Position in its file, from 0."""
    where: str
    """Task, file and row, for messages."""
    values: Mapping[str, Any] | DataError
    """The columns; or why the row cannot be read, which the first getter raises."""

    def value(self, column: str) -> Any:
        """A column as it is.

        Raises:
            DataError: the row has no such column, or cannot be read at all.
        """
        if isinstance(self.values, DataError):
            raise self.values
        if column not in self.values:
            raise DataError(
                f"{self.where}: no column '{column}'; there are: {', '.join(sorted(self.values))}. "
                "The file is not in the schema of this task's parser"
            )
        return self.values[column]

    def has(self, column: str) -> bool:
        """Whether the column exists and is not null."""
        return not isinstance(self.values, DataError) and self.values.get(column) is not None

    def text(self, column: str) -> str:
        """A string, possibly empty.

        Raises:
            DataError: missing, null, or no string.
        """
        value = self.value(column)
        if not isinstance(value, str):
            raise DataError(f"{self.where}: column '{column}' must be a string, got {_shown(value)}")
        return value

    def texts(self, column: str) -> list[str]:
        """A list of strings, possibly empty.

        Raises:
            DataError: missing, null, no list, or an element that is no string.
        """
        value = self.value(column)
        if not isinstance(value, list):
            raise DataError(f"{self.where}: column '{column}' must be a list of strings, got {_shown(value)}")
        others = set(map(type, value)) - {str}
        for position, element in enumerate(value if others else ()):
            if not isinstance(element, str):
                raise DataError(
                    f"{self.where}: element {position} of column '{column}' must be a string, got {_shown(element)}"
                )
        return value

    def integer(self, column: str) -> int:
        """A whole number, or a string or float that is one.

        Raises:
            DataError: missing, null, or not a whole number.
        """
        value = self.value(column)
        try:
            number = int(value)
            if isinstance(value, (int, float, str)) and not isinstance(value, bool) and number == float(value):
                return number
        except (TypeError, ValueError, OverflowError):
            pass
        raise DataError(f"{self.where}: column '{column}' must be a whole number, got {_shown(value)}")

    def identifier(self, column: str) -> str:
        """An id as a string: an integer or a non-blank string.

        Raises:
            DataError: missing, null, blank, or of another type.
        """
        value = self.value(column)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip():
            return value
        raise DataError(f"{self.where}: column '{column}' must be an id (integer or string), got {_shown(value)}")


@dataclass(frozen=True)
class LoadContext:
    """Everything a parser needs to turn one task's annotations into items."""

    task: BenchmarkTask
    """Already at the protocol's benchmark version."""
    protocol: Protocol
    annotations_root: Path | None
    """Local mirror of the annotations; None: the hub."""
    media: MediaRoot
    """Rooted at `<media_root>/<task.media>`: paths given to it are relative to the task's own folder."""
    on_error: OnError = "raise"

    @property
    def num_frames(self) -> int | None:
        """Frames to sample from a video: the protocol's number, or None (all) where the task says so."""
        return None if self.task.all_frames else self.protocol.num_frames

    @property
    def query_instruction(self) -> str:
        """The table's query instruction in the protocol's wording, without the `{text}` that stands for the text."""
        own = self.task.qwen3_query_instruction if self.protocol.prompts == "qwen3" else None
        return split_instruction(own or self.task.query_instruction)

    def query_variant(self, kind: str) -> str:
        """As `query_instruction`, for a kind of query that has an instruction of its own."""
        own = self.task.qwen3_query_instruction_variants if self.protocol.prompts == "qwen3" else {}
        variant = own.get(kind) or self.task.query_instruction_variants.get(kind)
        return self.query_instruction if variant is None else split_instruction(variant)

    @property
    def target_instruction(self) -> str:
        """What candidates are told: the table's target instruction, or nothing in the qwen3 protocol."""
        return "" if self.protocol.prompts == "qwen3" else split_instruction(self.task.target_instruction)

    def records(self, *, repo: str | None = None, subset: str | None = None, split: str | None = None) -> Records:
        """Open annotations; what is not given is the task's own.

        Args:
            repo: data set on the hub, as `org/name`.
            subset: its configuration.
            split: its split.

        Raises:
            DataError: no such file in the mirror, or one that cannot be read.
        """
        task = self.task
        return read_records(
            self.annotations_root,
            repo or task.hf_repo,
            subset or task.hf_subset,
            split or task.hf_split,
            revision=task.hf_revision if repo in (None, task.hf_repo) else None,
        )

    def rows(self, records: Records | None = None) -> Iterator[Row]:
        """The rows of `records` (None: the task's own), in order; unreadable ones come too and raise when looked into.

        Raises:
            DataError: the file itself cannot be opened.
        """
        records = self.records() if records is None else records
        for index in range(len(records)):
            where = self.where(records.source(index))
            try:
                yield Row(index, where, records[index])
            except DataError as error:
                yield Row(index, where, DataError(f"task '{self.task.name}': {error}"))

    def where(self, place: str) -> str:
        """A place within this task, for messages."""
        return f"task '{self.task.name}', {place}"

    def warn(self, message: str) -> None:
        """Log something about this task's data that is odd but no error."""
        _log.warning("task '%s': %s", self.task.name, message)


def split_instruction(template: str | None) -> str:
    """An instruction without its trailing `{text}` and the blank before that; None is no instruction."""
    return (template or "").removesuffix(" {text}").removesuffix("{text}")


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
