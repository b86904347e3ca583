"""Run folders as a report reads them: what was run, where, how it ended, and the evaluation's decisions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twn_lightning.errors import DataError
from twn_lightning.json_object import read_json_object
from twn_lightning.reporting.decisions import Decisions, read_decisions
from twn_lightning.reporting.summary import validate_summary

if TYPE_CHECKING:
    import pyarrow as pa

DECISIONS_FILE = "gate_decisions.parquet"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class RunRecord:
    """One run folder: its environment, how it ended, and the command that made it."""

    path: Path
    status: str
    error: str | None
    environment: dict[str, Any]
    command: str | None


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows.

    Args:
        summary: fits summary.schema.json, not necessarily complete.
        table: the gate decisions with their texts and images.
        decisions: the numeric columns of `table`.
        runs: the run folders behind the numbers, in the order that they ran.
    """

    summary: dict[str, Any]
    table: pa.Table
    decisions: Decisions
    runs: list[RunRecord] = field(default_factory=list)

    @classmethod
    def from_table(cls, summary: dict[str, Any], table: pa.Table, runs: Sequence[RunRecord] = ()) -> ReportData:
        """Check a summary and a table of gate decisions against each other and keep both.

        Raises:
            DataError: either is malformed, or they count different numbers of queries.
        """
        validate_summary(summary, complete=False)
        decisions = read_decisions(table)
        if summary["num_queries"] != len(decisions):
            raise DataError(
                f"the summary counts {summary['num_queries']} queries and the gate decisions have {len(decisions)} "
                "rows: they come from different evaluations. Evaluate again so that both are written together."
            )
        return cls(summary, table, decisions, list(runs))


def load_run(folder: Path) -> RunRecord:
    """Read a run folder's env.json and status.json.

    Args:
        folder: a run folder; one still running, or one that failed, is read too.

    Returns:
        Its record; `status` is UNKNOWN and `environment` empty where the file is not there.

    Raises:
        DataError: the folder does not exist, or a file in it is not what it should be.
    """
    if not folder.is_dir():
        raise DataError(f"no run folder at {folder}. Name a folder that `twn train` or `twn evaluate` wrote.")
    environment = _read_object(folder / "env.json")
    status = _read_object(folder / "status.json", {"status": str})
    command = environment.pop("command", None)
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        command = None
    error = status.get("error")
    return RunRecord(
        folder,
        status.get("status", "UNKNOWN"),
        None if error is None else str(error),
        environment,
        _command_line(command),
    )


def _command_line(arguments: list[str] | None) -> str | None:
    """What to type to run it again: `twn` for the installed script and for `python -m twn_lightning` alike."""
    if not arguments:
        return None
    program = Path(arguments[0]).name
    return shlex.join(["twn" if program in ("twn", "__main__.py") else program, *arguments[1:]])


def load_report(folders: Sequence[Path]) -> ReportData:
    """Read run folders; the last that was evaluated gives the numbers, all of them are listed.

    Args:
        folders: run folders, at least one with summary.json and gate_decisions.parquet.

    Returns:
        The data of a report.

    Raises:
        DataError: no folder holds an evaluation, or a file is missing or malformed.
    """
    runs = [load_run(folder) for folder in folders]
    evaluated = [folder for folder in folders if (folder / SUMMARY_FILE).is_file()]
    if not evaluated:
        listed = "".join(f"\n  {folder}" for folder in folders) or " (none given)"
        raise DataError(f"no run folder holds a {SUMMARY_FILE}:{listed}\nWrite one with `twn evaluate`.")
    folder = evaluated[-1]
    return ReportData.from_table(_read_object(folder / SUMMARY_FILE), load_decisions(folder), runs)


def load_decisions(folder: Path) -> pa.Table:
    """Read a run folder's gate_decisions.parquet.

    Args:
        folder: an evaluated run folder.

    Returns:
        One row per query.

    Raises:
        DataError: the file is missing, or is not parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / DECISIONS_FILE
    if not path.is_file():
        raise DataError(f"{folder} has no {DECISIONS_FILE}. Write it with `twn evaluate`.")
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not readable parquet ({error}). Write it again with `twn evaluate`.") from error


def _read_object(path: Path, kinds: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The JSON object in a file, with entries of these types; empty where there is no file."""
    if not path.is_file():
        return {}
    return read_json_object(path, DataError, "the run may have been cut off; run it again", kinds)
