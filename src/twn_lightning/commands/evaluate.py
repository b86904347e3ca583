"""`twn evaluate`: trained adapters under every router, or an encoder on MMEB-V2 or MMEB-nano."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.progress import Progress, TextColumn, TimeElapsedColumn

from twn_lightning import config
from twn_lightning.benchmark.registry import NANO_SUITE
from twn_lightning.checks import recording
from twn_lightning.commands import parser
from twn_lightning.commands.suite_report import SuiteBars, print_suite
from twn_lightning.evaluate import evaluate, evaluate_nano_tasks, evaluate_tasks
from twn_lightning.evaluation.ranks import joined_processes
from twn_lightning.reporting import print_tables
from twn_lightning.run import RunFolder, is_first_process, recorded, run_folder_for
from twn_lightning.settings import Settings
from twn_lightning.train import device_for


def main(arguments: list[str]) -> None:
    """Evaluate, print the tables, say where the results are."""
    options = parser(
        "evaluate",
        "Score adapters on held-out queries under every router (the packaged nano adapters unless others are named), "
        "or an encoder on tasks of MMEB-V2, or of MMEB-nano, the same in miniature and under every router.",
        """twn evaluate
        twn evaluate adapters.init_from=outputs/gate/nano_gate/RUN/adapters
        twn evaluate data.test_pairs=500 evaluation.routers=[never,always,adaptive]
        twn evaluate task=mmeb_nano/all data.test_pairs=1000
        twn evaluate task=mmeb_v2/image task.annotations_root=ANNOTATIONS task.media_root=MEDIA
        twn evaluate task=mmeb_v2/all task.encoder=vlm2vec task.query_mode=discriminative model.path=CHECKPOINT
        twn evaluate task=mmeb_v2/all task.media_root=MEDIA paths.run_dir=RUN    (goes on where RUN was interrupted)""",
    )
    options.add_argument("overrides", nargs="*", help="group=option and key=value")
    overrides = options.parse_intermixed_args(arguments).overrides
    settings = config.load_settings(overrides, on_this_machine=True)
    run = run_folder_for(settings, kind="evaluate")
    if settings.task.suite != "nano":
        run_tasks(settings, overrides, run=run)
        return
    print_tables(run_evaluation(settings, overrides, run=run))
    print(f"results: {run.path}\nreport:  twn report {run.path}")


def run_evaluation(
    settings: Settings,
    overrides: Sequence[str] = (),
    *,
    run: RunFolder | None = None,
    stages: dict[str, dict[str, Any]] | None = None,
    started: float | None = None,
) -> dict[str, Any]:
    """Evaluate into a run folder, with a progress bar.

    Args:
        settings: the resolved settings.
        overrides: what was typed, for the record.
        run: where the results go; by default where the settings say.
        stages: what training changed, for the summary.
        started: `time.monotonic()` of the start that the summary's seconds count from.

    Returns:
        The summary, as in summary.json.
    """
    run = run or run_folder_for(settings, kind="evaluate")
    columns = [*Progress.get_default_columns()[:-1], TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn()]
    with (
        run.lock(),
        recorded(_evaluation_run(settings, overrides, run), f"the same command with paths.run_dir={run.path}"),
        recording(run),
        Progress(*columns) as progress,
    ):
        bar = progress.add_task("queries", total=settings.data.test_pairs)
        _, summary = evaluate(
            settings,
            run,
            stages=stages,
            started=started,
            device=str(device_for(settings.trainer)),
            progress=lambda done: progress.advance(bar, done),
        )
    return summary


def run_tasks(settings: Settings, overrides: Sequence[str] = (), *, run: RunFolder) -> None:
    """Evaluate on tasks of a suite, with progress bars, and print the scores. A run of the same suite is continued.

    Args:
        settings: the resolved settings.
        overrides: what was typed, for the record.
        run: where the results go.

    Raises:
        ConfigError: the folder holds a run of another kind.
    """
    suite = settings.task.suite
    again = f"the same command with paths.run_dir={run.path}"
    device, summary = str(device_for(settings.trainer)), None
    try:
        with (
            run.lock(),
            recorded(_evaluation_run(settings, overrides, run), again),
            recording(run),
            joined_processes(),
            SuiteBars() as bars,
        ):
            if suite == NANO_SUITE:
                result, means, summary = evaluate_nano_tasks(settings, run, device=device, progress=bars)
            else:
                result, means = evaluate_tasks(settings, run, device=device, progress=bars)
    except KeyboardInterrupt:
        print(f"nothing is lost, continue with: {again}", file=sys.stderr)
        raise
    if is_first_process():
        print_suite(result, means)
    if summary is not None:
        print_tables(summary)
        print(f"summary: {run.path / 'summary.json'}\nreport:  twn report {run.path}")


def _evaluation_run(settings: Settings, overrides: Sequence[str], run: RunFolder) -> RunFolder:
    """The run folder: new, or of the same suite. Under the routers of `nano`, only one whose evaluation has not ended.

    Raises:
        ConfigError: the folder holds another run.
    """
    suite, earlier = settings.task.suite, run.read_status()
    continued = earlier.get("suite") == suite and (suite != "nano" or earlier["status"] != "COMPLETED")
    if not continued:
        run.require_new()
    run.status("RUNNING", suite=suite)  # first, so that a run which ends at once goes on, too
    return run.create(settings, overrides, resumed_from=str(run.path) if continued else None)
