"""`twn bench`: the benchmarks of speed. They live in the repository, beside their results, and run from there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twn_lightning.errors import ConfigError

RUNNER = Path("experiments") / "benchmarks" / "run_all.py"


def main(arguments: list[str]) -> int:
    """Run the repository's benchmarks in a process of their own.

    Returns:
        Its exit code: 1 where outputs differ or a benchmark failed.

    Raises:
        ConfigError: there is no repository around the package or the working directory.
    """
    command = [sys.executable, "-m", "experiments.benchmarks.run_all", *arguments]
    return subprocess.run(command, cwd=repository(), check=False).returncode


def repository() -> Path:
    """The checkout that this package is installed from, else the one that the working directory is in.

    Raises:
        ConfigError: there is none.
    """
    folders = [*Path(__file__).resolve().parents, Path.cwd(), *Path.cwd().parents]
    for folder in folders:
        if (folder / RUNNER).is_file():
            return folder
    raise ConfigError(
        f"twn bench runs the benchmarks of the repository ({RUNNER.parent}), which an installed package does not hold, "
        f"and {Path.cwd()} is in no checkout: clone the repository, `make setup` there, and run `twn bench` in it"
    )
