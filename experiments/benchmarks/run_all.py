"""Run benchmarks one after the other, each in a process of its own, and show what each was asked for and what it did.

Results go to experiments/benchmarks, whose README.md is then written anew; those of one with arguments of its own go to
outputs/bench. --out names another folder. Exit code 1 where outputs of ours and the peer differ, or a benchmark fails
or runs out of time; a missed bar is no failure.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import page
from experiments.benchmarks.registry import BENCHMARKS, CPU_MINUTES, Benchmark, Device
from experiments.benchmarks.table import Row, read_rows
from twn_lightning.commands import parser
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.messages import exit_code

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


@dataclass(frozen=True)
class Outcome:
    """How one benchmark ended."""

    benchmark: Benchmark
    seconds: float
    rows: list[Row]
    problem: str | None = None

    @property
    def wrong(self) -> bool:
        return self.problem is not None or not all(row.agree for row in self.rows)


def run_benchmark(
    benchmark: Benchmark, device: Device, arguments: list[str], folder: Path, minutes: float, log: Path | None
) -> Outcome:
    """One benchmark in a process of its own, which is ended with all of its own when its time is up.

    Args:
        benchmark: which.
        device: `cpu` hides GPUs from it.
        arguments: its own.
        folder: for its result.
        minutes: its time.
        log: gets its output; None: this process's.
    """
    command = [sys.executable, "-m", f"experiments.benchmarks.{benchmark.name}", *arguments]
    environment = {**os.environ, "OUT": str(folder)}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    result = folder / benchmark.result(device)
    before = result.stat().st_mtime_ns if result.is_file() else 0
    began = time.monotonic()
    with open(log, "w", encoding="utf-8") if log else nullcontext() as output:
        problem = _finish(command, environment, output, 60 * minutes)
    seconds = time.monotonic() - began
    if problem is None and (not result.is_file() or result.stat().st_mtime_ns == before):
        problem = f"it wrote no {result.name}"
    if problem is not None:
        return Outcome(benchmark, seconds, [], problem + (f"; see {log}" if log else ""))
    rows = read_rows(benchmark.name, device, folder) or []
    missing = set(benchmark.rows) - {row.benchmark for row in rows}
    return Outcome(benchmark, seconds, rows, f"no number for {', '.join(sorted(missing))}" if missing else None)


def _finish(command: list[str], environment: dict[str, str], output: IO[str] | None, seconds: float) -> str | None:
    """Wait for a process; what went wrong with it, or None."""
    errors = None if output is None else subprocess.STDOUT
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=errors, start_new_session=True)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"it was ended after {seconds / 60:g} minutes"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return None if code == 0 else f"exit code {code}"


def run_all(device: Device, folder: Path, logs: Path, minutes: float | None, console: Console) -> list[Outcome]:
    """Every benchmark of a device, in the order of the registry."""
    chosen = {name: arguments for name, b in BENCHMARKS.items() if (arguments := b.arguments(device)) is not None}
    logs.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for number, (name, arguments) in enumerate(chosen.items(), 1):
        limit = minutes or minutes_of(BENCHMARKS[name], device)
        console.print(f"{number} of {len(chosen)}: {name} {' '.join(arguments)}", highlight=False)
        found = run_benchmark(BENCHMARKS[name], device, list(arguments), folder, limit, logs / f"{name}.log")
        console.print(f"  {found.seconds:.0f} s", *([found.problem] if found.problem else []), highlight=False)
        outcomes.append(found)
    return outcomes


def minutes_of(benchmark: Benchmark, device: Device) -> float:
    """The time that a benchmark has."""
    return CPU_MINUTES if device == "cpu" else benchmark.gpu_minutes


def outcome_table(outcomes: list[Outcome]) -> Table:
    """Bar, measured, met: a line for each row of the table of speed, and one for what failed."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for name in ("Benchmark", "Case", "Bar", "Measured", "Met"):
        table.add_column(name, overflow="fold")
    for outcome in outcomes:
        for row in outcome.rows:
            table.add_row(row.benchmark, row.case, row.bar_text, row.measured, row.verdict)
        if outcome.problem is not None:
            table.add_row(outcome.benchmark.name, outcome.problem, "", "", "failed")
    return table


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What is asked for, and the arguments of the one benchmark.

    Raises:
        ConfigError: an unknown benchmark, or one that the device does not have.
    """
    options = parser(
        "bench",
        __doc__ or "",
        """twn bench cpu                     # all of the CPU's, 9 to 12 minutes on two cores; also `make bench`
        twn bench gpu                     # all of the GPU's, with random weights in Qwen3-VL-4B's shape
        twn bench cpu decode --rows 16    # one; python -m experiments.benchmarks.decode --help lists its arguments""",
    )
    options.add_argument("device", choices=["cpu", "gpu"])
    options.add_argument("name", nargs="?", help=f"one of {', '.join(BENCHMARKS)}; its own arguments follow")
    options.add_argument("--out", type=Path, help="folder of the results")
    options.add_argument("--minutes", type=float, help="time of each benchmark (default: the registry's)")
    chosen, own = options.parse_known_args(arguments)
    if own and chosen.name is None:
        options.error(f"unrecognized arguments: {' '.join(own)}; name the benchmark that they are for")
    if chosen.name is not None:
        if chosen.name not in BENCHMARKS:
            raise ConfigError(unknown_name("benchmark", chosen.name, BENCHMARKS))
        if BENCHMARKS[chosen.name].arguments(chosen.device) is None:
            there = ", ".join(name for name, b in BENCHMARKS.items() if b.arguments(chosen.device) is not None)
            raise ConfigError(f"{chosen.name} does not run on a {chosen.device}. Those that do: {there}")
    if chosen.device == "gpu" and not torch.cuda.is_available():
        raise ConfigError("twn bench gpu needs a CUDA device, and torch sees none: `twn bench cpu` needs none")
    return chosen, own


def main(arguments: list[str]) -> int:
    """Run what is asked for.

    Returns:
        1 where outputs differ or a benchmark failed, else 0.
    """
    chosen, own = parse(arguments)
    logs = ROOT / "outputs" / "bench" / chosen.device
    folder = (chosen.out or (logs if own else FOLDER)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if chosen.name is None:
        outcomes = run_all(chosen.device, folder, logs, chosen.minutes, console)
    else:
        benchmark = BENCHMARKS[chosen.name]
        words = own or list(benchmark.arguments(chosen.device) or ())
        minutes = chosen.minutes or minutes_of(benchmark, chosen.device)
        outcomes = [run_benchmark(benchmark, chosen.device, words, folder, minutes, None)]
    if folder == FOLDER:
        page.main()
    console.print(outcome_table(outcomes), highlight=False)
    console.print(f"results in {folder}; {sum(outcome.seconds for outcome in outcomes):.0f} s", highlight=False)
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(sys.argv[1:])))
