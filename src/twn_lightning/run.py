"""The run folder: the contract between training, sweeps, notebooks, reports and resume.

    outputs/<stage>/<name>/<time>/
      config.yaml  overrides.txt  env.json  status.json  manifest.json
      metrics.jsonl  metrics.json  gate_decisions.parquet  rollouts.parquet  held_out.parquet
      checkpoints/  adapters/  eval/<suite>/<run_key>/<task>/

Whole files are replaced atomically (temporary file, fsync, rename), so a reader never sees half of one. Of several
processes only the first writes.
"""

from __future__ import annotations

import json
import operator
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch.distributed
import yaml

from twn_lightning.atomic import write_text, writing
from twn_lightning.environment import describe_environment
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.json_object import plain_values, read_json_object, write_json
from twn_lightning.launch import process_rank
from twn_lightning.manifest import write_manifest
from twn_lightning.redaction import redact, redact_command
from twn_lightning.run_lock import only_writer
from twn_lightning.settings import Settings
from twn_lightning.stopping import on_stop_signals
from twn_lightning.validation import read_settings, secret_problems, settings_to_dict

State = Literal["RUNNING", "COMPLETED", "FAILED", "INTERRUPTED"]

_RUN_DIR_VARIABLE = "TWN_RUN_DIR"
"""How the first process tells the ranks it launches where the run folder is: its name holds the time of the start."""


class RunFolder:
    """Paths and files of one run.

    Args:
        path: the folder; created by `create`, and by every write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """The last checkpoint but one, for when the last one turns out to be damaged."""
        return self.checkpoints / "previous.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def adapters(self) -> Path:
        return self.path / "adapters"

    @property
    def gate_decisions(self) -> Path:
        return self.path / "gate_decisions.parquet"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts.parquet"

    @property
    def held_out(self) -> Path:
        return self.path / "held_out.parquet"

    @property
    def metrics_log(self) -> Path:
        return self.path / "metrics.jsonl"

    def eval_dir(self, suite: str, run_key: str, task: str) -> Path:
        """Where the scores and predictions of one task go."""
        return self.path / "eval" / suite / run_key / task

    def create(self, settings: Settings, overrides: Sequence[str] = (), resumed_from: str | None = None) -> RunFolder:
        """Write config, overrides, environment and status. A resumed run keeps its metrics and its overrides.

        Args:
            settings: the resolved settings; written so that the run can be started again from the file alone.
            overrides: what was typed, one override an entry.
            resumed_from: the checkpoint this run continues.

        Raises:
            ConfigError: the settings hold a secret.
        """
        if problems := secret_problems(settings):
            raise ConfigError(problems)
        os.environ[_RUN_DIR_VARIABLE] = str(self.path)
        if not is_first_process():
            return self
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(self.config, yaml.safe_dump(settings_to_dict(settings), sort_keys=False, allow_unicode=True))
        typed = self.path / "overrides.txt"
        earlier = typed.read_text(encoding="utf-8") if resumed_from and typed.exists() else ""
        write_text(typed, earlier + "".join(f"{override}\n" for override in redact_command(overrides)))
        write_json(self.path / "env.json", describe_environment())
        self.status("RUNNING", resumed_from=resumed_from, started=_now())
        return self

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes out for a `with` block: see `only_writer`. The ranks of one run share the first's."""
        return only_writer(self.path) if is_first_process() else nullcontext()

    def require_new(self) -> RunFolder:
        """Refuse to mix a new run with an earlier one's metrics and checkpoints.

        Raises:
            ConfigError: the folder holds a run.
        """
        earlier = self.read_status().get("status") if is_first_process() else None
        if earlier is not None:
            raise ConfigError(
                f"paths.run_dir={self.path} holds an earlier run ({earlier.lower()}): name another folder, delete that "
                f"one, or continue its run with `twn train --resume {self.path}`"
            )
        return self

    def discard(self) -> None:
        """Delete the folder if it holds a run; leave anything else alone."""
        if self.read_status():
            shutil.rmtree(self.path)

    def status(self, state: State, error: str | None = None, **more: Any) -> None:
        """Write status.json: the state, the error where there is one, and the time; earlier entries are kept."""
        shown = None if error is None else redact(error)
        entries = {**self.read_status(), **more, "status": state, "error": shown, "updated": _now()}
        if is_first_process():
            write_json(self.path / "status.json", entries)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. Values that are not finite become null: JSON has no NaN."""
        if is_first_process():
            self.path.mkdir(parents=True, exist_ok=True)
            with writing(self.metrics_log), self.metrics_log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": int(step), **plain_values(values)}) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the logged lines after a step, and a half-written last one, before a resumed run logs them again."""
        if is_first_process() and self.metrics_log.exists():
            kept = [line for line in self.history() if line["step"] <= step]
            write_text(self.metrics_log, "".join(json.dumps(line) + "\n" for line in kept))

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the final metrics.json and the manifest, and mark the run completed."""
        if is_first_process():
            write_json(self.path / "metrics.json", metrics)
            write_manifest(self.path)
        self.status("COMPLETED")

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut off by a crash is left out.

        Raises:
            CheckpointError: another line is broken.
        """
        lines = []
        texts = self.metrics_log.read_bytes().splitlines() if self.metrics_log.exists() else []
        for number, text in enumerate(texts, start=1):
            try:
                line = json.loads(text)
                line["step"] = operator.index(line["step"])
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                if number == len(texts) and isinstance(error, ValueError):
                    break
                raise CheckpointError(
                    f"{self.metrics_log}, line {number}: not one JSON object with a step ({error}). The file is "
                    "damaged: restore it, or delete the line"
                ) from error
            lines.append(line)
        return lines

    def metrics(self) -> dict[str, Any]:
        """The final metrics; empty before the run has finished."""
        return _read_json(self.path / "metrics.json")

    def read_status(self) -> dict[str, Any]:
        """The content of status.json; empty for a folder that is not a run."""
        return _read_json(self.path / "status.json")

    def settings(self) -> Settings:
        """The settings the run was started with.

        Raises:
            CheckpointError: the folder is not a run folder.
        """
        if not self.config.exists():
            raise CheckpointError(f"{self.path} is not a run folder: it has no config.yaml.")
        return read_settings(self.config)


@contextmanager
def recorded(run: RunFolder, continue_with: str | None = None) -> Iterator[None]:
    """Write how the work inside ended, if it did not end well, and let the exception go on.

    The signals that ask a process to end become interrupts here, and so do the exits that Lightning makes of them.

    Args:
        run: where.
        continue_with: the command that goes on after an interrupt; None: `twn train --resume`.

    Raises:
        KeyboardInterrupt: on any of these; `Stopped` says which signal it was.
    """
    try:
        with on_stop_signals():
            yield
    except (KeyboardInterrupt, SystemExit) as interrupt:
        run.status("INTERRUPTED", f"continue with: {continue_with or f'twn train --resume {run.path}'}")
        if isinstance(interrupt, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt from interrupt
    except BaseException as error:
        run.status("FAILED", f"{type(error).__name__}: {error}")
        raise


def run_folder_for(settings: Settings, kind: str | None = None) -> RunFolder:
    """The folder a run with these settings writes to: `paths.run_dir`, else `<kind>/<name>/<time>` under the root.

    Args:
        settings: `paths`, `name` and `stage` decide.
        kind: the first folder; the stage's name by default.

    Raises:
        ConfigError: a process that is not the first cannot know the time in the first one's folder name.
    """
    if settings.paths.run_dir is not None:
        return RunFolder(Path(settings.paths.run_dir).expanduser())
    if not is_first_process():
        inherited = os.environ.get(_RUN_DIR_VARIABLE)
        if inherited is None:
            raise ConfigError(
                "several processes started from outside (torchrun, SLURM) need one run folder: set paths.run_dir"
            )
        return RunFolder(inherited)
    parent = Path(settings.paths.output_root).expanduser() / (kind or settings.stage.name) / settings.name
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    path, attempt = parent / stamp, 1
    while path.exists():
        attempt += 1
        path = parent / f"{stamp}_{attempt}"
    return RunFolder(path)


def is_first_process() -> bool:
    """Whether this process writes files: global rank 0, or the only one there is."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() == 0
    return process_rank() == 0


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    return read_json_object(path, CheckpointError, "restore it from a copy, or start the run again in another folder")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
