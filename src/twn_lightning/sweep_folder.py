"""The sweep folder: what was asked for, and how each of its jobs stands.

outputs/sweeps/<name>/<time>/
  sweep.yaml    the command, its overrides, the values of each swept key, the number of jobs
  status.json   RUNNING | COMPLETED | FAILED | INTERRUPTED, and how many jobs there are of each state
  0/ 1/ ...     a run folder each, with job.json (overrides, seconds, exit code) and log.txt (what the job printed)
"""

from __future__ import annotations

import fcntl
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from twn_lightning.atomic import write_text
from twn_lightning.errors import DataError
from twn_lightning.json_object import write_json
from twn_lightning.run import RunFolder, State

PLAN_FILE = "sweep.yaml"
_JOB_FILE = "job.json"
_PLAN_COMMENT = "# What this sweep runs. Go on with it, or run what failed again: twn train --resume THIS_FOLDER\n"


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep: a run folder, and what the sweep itself notes beside the run's own files.

    Args:
        number: the folder's name.
        run: the run folder.
        overrides: what the job changes, as Hydra overrides.
        seconds: wall-clock time of all its attempts that count towards its result.
    """

    number: int
    run: RunFolder
    overrides: list[str]
    seconds: float = 0.0

    @property
    def values(self) -> dict[str, str]:
        """The overrides by key."""
        return by_key(self.overrides)

    @property
    def state(self) -> str:
        """The run's status; PENDING before its first start. A run that was killed still says RUNNING."""
        return str(self.run.read_status().get("status", "PENDING"))

    @property
    def error(self) -> str | None:
        """Why the run failed, or how an interrupted one goes on."""
        return self.run.read_status().get("error")

    @property
    def log(self) -> Path:
        """What the job printed."""
        return self.run.path / "log.txt"

    def headline(self) -> tuple[str, float | None] | None:
        """The name of the stage's headline metric and its final value; None before the run has finished."""
        found = self.run.metrics().get("headline")
        return (found["metric"], found["after"]) if found else None

    def write(self, seconds: float, exit_code: int | None) -> None:
        """Note the job's overrides, its time so far, and how its last attempt ended."""
        entries = {"overrides": self.overrides, "seconds": round(seconds, 1), "exit_code": exit_code}
        write_json(self.run.path / _JOB_FILE, entries)

    @contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[int | None]:
        """Hold the job while it runs: a file descriptor that a child can inherit, None if another process holds it.

        The lock lasts until every process that has it is gone, so a job whose sweep was killed still counts as running.

        Args:
            wait: until nobody else holds it.
        """
        path = self.run.path.parent / ".locks" / str(self.number)
        with _opened(path) as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
            else:
                yield descriptor


class SweepFolder:
    """Paths, plan and jobs of one sweep.

    Args:
        path: the folder; created by `plan`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def stop_file(self) -> Path:
        """Asks the jobs to end: holds the name of the signal that each sends to its child."""
        return self.path / ".stop"

    def exists(self) -> bool:
        """Whether the folder holds a sweep."""
        return (self.path / PLAN_FILE).is_file()

    def plan(self, overrides: Sequence[str], axes: Mapping[str, Sequence[str]], jobs: int) -> SweepFolder:
        """Write what the sweep runs.

        Args:
            overrides: as typed.
            axes: the values of each swept key; for a range that a sweeper draws from, its text.
            jobs: how many there are.
        """
        entries = {
            "command": shlex.join(["twn", "train", "--multirun", *overrides]),
            "overrides": list(overrides),
            "axes": {key: list(values) for key, values in axes.items()},
            "jobs": jobs,
        }
        text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=1000)
        write_text(self.path / PLAN_FILE, _PLAN_COMMENT + text)
        self.stop_file.unlink(missing_ok=True)
        self.write_status("RUNNING")
        return self

    def read_plan(self) -> dict[str, Any]:
        """The content of sweep.yaml.

        Raises:
            DataError: the folder is not a sweep folder.
        """
        if not self.exists():
            raise DataError(
                f"{self.path} is not a sweep folder: it has no {PLAN_FILE}. `twn train --multirun` makes one."
            )
        found: dict[str, Any] = yaml.safe_load((self.path / PLAN_FILE).read_text(encoding="utf-8"))
        return found

    def jobs(self) -> list[SweepJob]:
        """The jobs that were started at least once, by number."""
        found = []
        for file in self.path.glob(f"*/{_JOB_FILE}"):
            entries = json.loads(file.read_text(encoding="utf-8"))
            run = RunFolder(file.parent)
            found.append(SweepJob(int(file.parent.name), run, entries["overrides"], entries["seconds"]))
        return sorted(found, key=lambda job: job.number)

    def job(self, overrides: Sequence[str], number: int) -> SweepJob:
        """The job with these overrides, in whatever order they are: an earlier one, else a new one.

        Args:
            overrides: of the job.
            number: a new job's number; where another job has it, as in a sweep that has grown, the next that is free.
        """
        with _opened(self.path / ".locks" / "jobs") as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            jobs = self.jobs()
            for job in jobs:
                if sorted(job.overrides) == sorted(overrides):
                    return job
            taken = {job.number for job in jobs}
            free = number if number not in taken else max(taken) + 1
            new = SweepJob(free, RunFolder(self.path / str(free)), list(overrides))
            new.write(0.0, None)
            return new

    def state(self) -> str:
        """RUNNING, or how the sweep ended last."""
        return str(json.loads((self.path / "status.json").read_text(encoding="utf-8"))["status"])

    def write_status(self, state: State) -> None:
        """Write status.json: the sweep's state and how many jobs have which."""
        counts = Counter(job.state.lower() for job in self.jobs())
        write_json(self.path / "status.json", {"status": state, "planned": self.read_plan()["jobs"], "jobs": counts})

    def finish(self, *, early: bool) -> None:
        """Mark jobs that were killed and write how the sweep ended.

        INTERRUPTED after a request to stop, when the jobs have saved; FAILED where a job has not completed; else
        COMPLETED.

        Args:
            early: not every job was started. A sweeper that draws the same trial twice starts fewer than planned.
        """
        for job in self.jobs():
            with job.lock(wait=self.stop_file.exists()) as held:
                if held is not None and job.state == "RUNNING":
                    job.run.status("INTERRUPTED", "the job was killed")
        complete = not early and all(job.state == "COMPLETED" for job in self.jobs())
        self.write_status("INTERRUPTED" if self.stop_file.exists() else "COMPLETED" if complete else "FAILED")


def by_key(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides as a mapping from key to the text of its value; the last of a key wins."""
    return dict(override.split("=", 1) for override in overrides if "=" in override)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        yield file.fileno()
