"""`make demo`: the three stages from zero-initialised adapters, every router, and a report, on two CPU cores.

It runs what the printed commands run, one after another in one process, so that importing is paid for once.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from twn_lightning.commands.evaluate import run_evaluation
from twn_lightning.config import load_settings
from twn_lightning.json_object import write_json
from twn_lightning.reporting import print_tables, validate_summary, write_markdown, write_report
from twn_lightning.run import RunFolder
from twn_lightning.train import train

STAGES = ("sft", "rl", "gate")


def run_demo(output: Path, overrides: Sequence[str] = (), console: Console | None = None) -> dict[str, Any]:
    """Train sft, rl and gate, evaluate under every router, write report.html and summary.json.

    Args:
        output: folder of everything; the stages' run folders lie in it.
        overrides: applied to every stage and to the evaluation, such as `seed=1` or `data.test_pairs=1000`.
        console: where progress goes.

    Returns:
        The summary, as written to `output/summary.json` and checked against its schema.
    """
    console = console or Console()
    started = time.monotonic()
    stages: dict[str, dict[str, Any]] = {}
    adapters: str | None = None
    for name in (*STAGES, "evaluate"):  # of an earlier demo
        RunFolder(output / name).discard()
    for number, stage in enumerate(STAGES, 1):
        arguments = [f"experiment=demo_{stage}", f"paths.run_dir={output / stage}"]
        if adapters is not None:
            arguments.append(f"adapters.init_from={adapters}")
        _announce(console, number, f"twn train {shlex.join([*arguments, *overrides])}")
        began = time.monotonic()
        metrics = train(load_settings([*arguments, *overrides]), overrides=[*arguments, *overrides])
        stages[stage] = {**metrics["headline"], "seconds": round(time.monotonic() - began, 1)}
        adapters = str(RunFolder(output / stage).adapters)
    arguments = [f"paths.run_dir={output / 'evaluate'}", f"adapters.init_from={adapters}"]
    _announce(console, 4, f"twn evaluate {shlex.join([*arguments, *overrides])}")
    summary = run_evaluation(
        load_settings([*arguments, *overrides]), [*arguments, *overrides], stages=stages, started=started
    )
    runs = [output / name for name in (*STAGES, "evaluate")]
    _announce(console, 5, f"twn report {shlex.join(map(str, runs))} --output {output / 'report.html'}")
    write_report(runs, output / "report.html")
    write_markdown(runs, output / "report.md")
    summary["seconds"] = time.monotonic() - started
    validate_summary(summary)
    write_json(output / "summary.json", summary)
    print_tables(summary, console)
    console.print(f"\nReport   {output / 'report.html'}\nSummary  {output / 'summary.json'}", markup=False)
    return summary


def _announce(console: Console, number: int, command: str) -> None:
    console.rule(f"[bold]{number} of 5", align="left")
    console.print(f"[dim]$[/dim] {escape(command)}", highlight=False, soft_wrap=True)
