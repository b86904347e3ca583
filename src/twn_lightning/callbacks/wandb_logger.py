"""One run in Weights & Biases: the same run after a resume, kept inside the run folder where it is offline."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from twn_lightning.atomic import write_text
from twn_lightning.errors import ConfigError
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings
from twn_lightning.validation import settings_to_dict

SECTIONS = {
    "lr/": "train/lr/",
    "grad_norm/": "train/grad_norm/",
    "contrastive/": "train/contrastive/",
    "conflict/": "train/conflict/",
    "throughput/": "train/throughput/",
}
"""Prefixes of `metrics.jsonl` and what they are in wandb, which makes one section of each first word."""


def wandb_name(name: str) -> str:
    """What a value of `metrics.jsonl` is called in wandb: `train/`, `val/`, `gate/`, `rl/` or `eval/` comes first."""
    for prefix, section in SECTIONS.items():
        if name.startswith(prefix):
            return section + name.removeprefix(prefix)
    return name


class RunWandbLogger(Logger):
    """Logs to a wandb run whose id is kept in the run folder, so that a resumed run continues its history.

    The run outlives Lightning's fit, for what is measured afterwards: `end` ends it.

    Args:
        settings: `logger` is read; all of it becomes the run's config. It holds no secrets.
        run_folder: gets offline runs, below `wandb/`, for `wandb sync`.
        kind: what ran: a stage's name, or `evaluate`.

    Raises:
        ConfigError: `logger.mode=online` without an account; wandb itself would stop and ask for one.
    """

    def __init__(self, settings: Settings, run_folder: RunFolder, kind: str) -> None:
        super().__init__()
        import wandb

        options = settings.logger
        if options.mode == "online" and not has_account():
            raise ConfigError(
                "logger.mode=online needs an account, and none is set up here: run `wandb login`, or set "
                "logger.mode=offline and upload later with `wandb sync`"
            )
        self.folder = run_folder.path / "wandb"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=options.project,
            group=options.group,
            job_type=kind,
            name=f"{kind}/{settings.name}",
            id=_run_id(self.folder),
            resume="allow",
            mode=options.mode,
            dir=str(run_folder.path),
            config=settings_to_dict(settings) | _origin(settings),
            # A sweep's jobs or a demo's stages may share a process; none may log to another's run.
            settings=wandb.Settings(reinit="create_new", console="off", silent=options.mode != "online"),
        )

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return str(self.run.id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Values of one step make one line of the history; steps that a resumed run repeats are not added again."""
        self.run.log({wandb_name(name): value for name, value in metrics.items()}, step=step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run's config has them from the start."""

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int | None = None) -> None:
        """Log a table; its pictures are staged in the run folder, where `wandb sync` finds them.

        Args:
            name: of the table, such as `gate/decisions`.
            columns: their names.
            rows: values; PIL images become thumbnails.
            step: training batches that are complete; None: the step of what was logged last.
        """
        import wandb
        from PIL.Image import Image

        variable = "WANDB_DATA_DIR"
        before = os.environ.get(variable)
        os.environ[variable] = before or str(self.folder.resolve())
        try:
            cells = [[wandb.Image(cell) if isinstance(cell, Image) else cell for cell in row] for row in rows]
            self.run.log({name: wandb.Table(columns=columns, data=cells, allow_mixed_types=True)}, step=step)
        finally:
            os.environ.pop(variable)
            if before is not None:
                os.environ[variable] = before

    def summarise(self, values: Mapping[str, float]) -> None:
        """Set final values, which wandb shows beside the run's name and compares runs by."""
        self.run.summary.update({wandb_name(name): value for name, value in values.items()})

    def end(self, failed: bool) -> None:
        """End the run; a failed or interrupted one is marked so."""
        self.run.finish(exit_code=int(failed))


def _run_id(folder: Path) -> str:
    """The id that an earlier start has written down, or a new one."""
    path = folder / "run_id.txt"
    if not path.exists():
        write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()


def _origin(settings: Settings) -> dict[str, Any]:
    """For a new run from another's checkpoint: the other's id."""
    resume = settings.trainer.resume
    if resume is None or not resume.endswith(".ckpt"):
        return {}
    path = Path(resume).expanduser().parent.parent / "wandb" / "run_id.txt"
    return {"continues_wandb_run": path.read_text(encoding="utf-8").strip()} if path.exists() else {}


def has_account() -> bool:
    """Whether wandb finds credentials here without asking for them."""
    import wandb
    from requests.utils import get_netrc_auth

    known = wandb.setup().settings
    key = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or known.api_key
    return bool(key or get_netrc_auth(known.base_url))
