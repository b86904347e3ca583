"""Run the suites of this folder and write what they found to experiments/trust.json, and from it docs/trust.md.

    python -m tests.trust.run                              # all suites, a bounded part of each; also `make trust`
    TRUST=full python -m tests.trust.run                   # all of each; hours
    python -m tests.trust.run --only faults fuzz

A suite that runs replaces its own part of the file; the others stay. Exit code 1 where a test failed, or anything was
lost or wrong in silence.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.trust import page
from tests.trust.summary import SUMMARIES, Fragments, losses
from twn_lightning.environment import describe_environment
from twn_lightning.json_object import write_json

ROOT = Path(__file__).parents[2]
FULL = os.environ.get("TRUST") == "full"
SOAK_MINUTES = 120 if FULL else 30
"""A slope of 1 MB a minute does not show in fewer."""

PYTEST = [sys.executable, "-m", "pytest", "-q"]
ELSEWHERE = [f"--ignore=tests/trust/{name}" for name in ("fuzz", "test_load.py", "test_soak.py")]
SUITES: dict[str, list[str]] = {
    "faults": [*PYTEST, "-m", "not gpu", "tests/trust", *ELSEWHERE],
    "fuzz": [*PYTEST, "tests/trust/fuzz"],
    "load": [*PYTEST, "tests/trust/test_load.py"],
    "soak": [sys.executable, "-m", "tests.trust.soak"],
}


def run_suite(name: str, command: Sequence[str]) -> dict[str, Any]:
    """Run one suite.

    Args:
        name: a key of SUMMARIES.
        command: that runs it, in a process of its own.

    Returns:
        Its part of the file: `how` it was run, and what it found.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="twn-trust-") as folder:
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TRUST_RECORDS": folder}, check=False)
        fragments: Fragments = {path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))}
    environment = describe_environment()
    how = {
        "passed": done.returncode == 0,
        "full": FULL,
        "command": shlex.join([*(["TRUST=full"] if FULL else []), "python", *command[1:]]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "seconds": round(time.monotonic() - began),
        "revision": environment["git"]["revision"],
        "changed_since": environment["git"]["dirty"],
        "versions": environment["versions"],
        "hardware": environment["hardware"],
    }
    return {"how": how, **SUMMARIES[name](fragments)}


def run_suites(commands: Mapping[str, Sequence[str]], out: Path) -> dict[str, Any]:
    """Run suites one after the other, and write the file after each.

    Args:
        commands: by suite.
        out: the file; suites that do not run keep their part of it.

    Returns:
        The file's content: `lost` and `silent` over all suites, and each suite's part under `suites`.
    """
    content: dict[str, Any] = {}
    for name, command in commands.items():
        print(f"== {name}: {' '.join(command)}", flush=True)
        part = run_suite(name, command)
        suites = json.loads(out.read_text(encoding="utf-8"))["suites"] if out.exists() else {}
        suites[name] = part
        content = {**losses(suites), "suites": {suite: suites[suite] for suite in SUMMARIES if suite in suites}}
        write_json(out, content)
    return content


def main(arguments: list[str]) -> int:
    """Run what is asked for.

    Returns:
        1 where a suite failed, or anything was lost or wrong in silence, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(SUITES), metavar="SUITE", help=f"some of: {', '.join(SUITES)}"
    )
    parser.add_argument("--soak-minutes", type=float, default=SOAK_MINUTES, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=page.RESULTS, help="another file; the page is left alone then")
    chosen = parser.parse_args(arguments)
    commands = {name: SUITES[name] for name in chosen.only or SUITES}
    if "soak" in commands:
        commands["soak"] = [*commands["soak"], "--minutes", f"{chosen.soak_minutes:g}"]
    content = run_suites(commands, chosen.out)
    if chosen.out == page.RESULTS:
        page.write()
    failed = [name for name in commands if not content["suites"][name]["how"]["passed"]]
    print(f"lost {content['lost']}, silent {content['silent']}; failed: {', '.join(failed) or 'none'}; {chosen.out}")
    return int(bool(failed or content["lost"] or content["silent"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
