"""`twn audit`: whether run folders are complete and unchanged."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from twn_lightning.audit import CHECKS, audit
from twn_lightning.commands import parser


def main(arguments: list[str]) -> int:
    """Print the problems of each folder.

    Returns:
        0 where there are none, else 1.
    """
    options = parser(
        "audit",
        "Check that run folders are complete and unchanged: status, settings, log, checkpoints, scores, and the "
        "digests in manifest.json, which is written when a run finishes. Exit code 1 if anything is wrong.",
        """twn audit outputs/sft/nano_sft/RUN
        twn audit outputs/*/*/*
        twn audit RUN --json""",
    )
    options.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    options.add_argument("--json", action="store_true", help="problems by folder, nothing else")
    chosen = options.parse_intermixed_args(arguments)
    found = {str(run): audit(run) for run in chosen.runs}
    if chosen.json:
        print(json.dumps({run: [asdict(p) for p in problems] for run, problems in found.items()}, indent=2))
    else:
        for run, problems in found.items():
            print(f"{run}: {f'problems: {len(problems)}' if problems else f'ok ({len(CHECKS)} checks)'}")
            for problem in problems:
                print(f"  {problem.check}: {problem.message}")
    return int(any(found.values()))
