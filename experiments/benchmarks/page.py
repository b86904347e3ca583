"""Write the generated tables of experiments/benchmarks/README.md anew, from the results beside it.

python -m experiments.benchmarks.page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.benchmarks.registry import BENCHMARKS, Device
from experiments.benchmarks.table import Row, read_rows
from experiments.benchmarks.think import ADAPTIVE, ALWAYS, DECODING, DISCRIMINATIVE, PASS_E, READING, REENCODE, VISION
from experiments.studies.study import markdown_table, replace_block

FOLDER = Path(__file__).parent
PAGE = FOLDER / "README.md"
HEADER = ["benchmark", "case", "bar", "measured [95 %]", "met"]
BLOCKS = ("cpu", "parts", "gpu", "growth", "plan", "how")


def speed_table(device: Device, folder: Path = FOLDER) -> str:
    """Every row of the table of speed that a device can measure; those without a result say how to get one."""
    lines = []
    for name, benchmark in BENCHMARKS.items():
        if benchmark.arguments(device) is None or name == "growth":
            continue
        rows = read_rows(name, device, folder)
        measured = {row.benchmark for row in rows or []}
        lines += [row_cells(row) for row in rows or []]
        lines += [missing_cells(row, name, device) for row in benchmark.rows or (name,) if row not in measured]
    return markdown_table(HEADER, lines, text_columns=2)


def row_cells(row: Row) -> list[str]:
    """A measured row."""
    return [row.benchmark, row.case, row.bar_text, row.measured, row.verdict]


def missing_cells(row: str, name: str, device: Device) -> list[str]:
    """A row without a number."""
    where = "a GPU" if device == "gpu" else "a CPU"
    return [row, f"not measured on {where} yet; command: `twn bench {device} {name}`", "", "", ""]


def parts_table(folder: Path = FOLDER) -> str:
    """Where adaptive encoding spends its time, and what free decoding would leave it ahead by."""
    path = folder / BENCHMARKS["think"].result("cpu")
    if not path.is_file():
        return "Not measured yet; command: `twn bench cpu think`."
    result = json.loads(path.read_text(encoding="utf-8"))
    lines = []
    for part in (result["nano"], result):
        seconds = {name: timing["median_seconds"] for name, timing in part["timings"].items()}
        peer, reading, first, again = (seconds[name] for name in (ALWAYS, READING, DISCRIMINATIVE, REENCODE))
        cells = [seconds[VISION], reading, first, seconds[DECODING], seconds[ADAPTIVE], peer - again, again]
        free = peer / (reading + first + seconds[PASS_E])
        lines.append([part["model"], *(f"{1000 * value:,.0f} ms" for value in cells), f"{free:.2f} x"])
    header = ["model", VISION, READING, DISCRIMINATIVE, DECODING, "ours, in all", "peer: generate", "peer: read again"]
    return markdown_table([*header, "if decoding were free"], lines, text_columns=1)


def growth_table(folder: Path = FOLDER) -> str:
    """What grows with what, and how fast."""
    rows = read_rows("growth", "cpu", folder) or []
    header = ["grows with", "what", "bar", "exponent [95 %]", "met"]
    return markdown_table(header, map(row_cells, rows), text_columns=2)


def plan_text(folder: Path = FOLDER) -> str:
    """How far the cost model is off."""
    path = folder / "plan.json"
    if not path.is_file():
        return "Not measured yet; command: `python -m experiments.benchmarks.plan`."
    result = json.loads(path.read_text(encoding="utf-8"))
    errors = {name: f"{100 * value:.0f} %" for name, value in result["errors"].items()}
    return (
        f"Over {len(result['cases'])} configurations the median error is {errors['seconds_error_median']} of the time "
        f"({errors['seconds_error_largest']} at most) and {errors['gib_error_median']} of the memory "
        f"({errors['gib_error_largest']} at most): [plan.json]({path.name}), `{result['command']}`, {result['date']}."
    )


def how_table(folder: Path = FOLDER) -> str:
    """Command, machine, date and versions of every result."""
    lines = []
    for benchmark in BENCHMARKS.values():
        for device in ("cpu", "gpu"):
            path = folder / benchmark.result(device)
            if path.is_file():
                lines.append(how_cells(path, json.loads(path.read_text(encoding="utf-8"))))
    return markdown_table(["result", "command", "hardware", "date", "versions"], lines, text_columns=5)


def how_cells(path: Path, result: dict[str, Any]) -> list[str]:
    """One result: how it was made."""
    hardware, versions = result["hardware"], result["versions"]
    threads = f"{hardware['processor']}, {hardware['torch_threads']} of {hardware['cores']} cores"
    where = ", ".join(device["name"] for device in hardware["devices"]) or threads
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft"))
    return [f"[{path.stem}]({path.name})", f"`{result['command']}`", where, result.get("date", ""), packages]


def contents(folder: Path = FOLDER) -> dict[str, str]:
    """What stands in every block of the page."""
    parts = (
        speed_table("cpu", folder),
        parts_table(folder),
        speed_table("gpu", folder),
        growth_table(folder),
        plan_text(folder),
        how_table(folder),
    )
    return dict(zip(BLOCKS, parts, strict=True))


def main() -> None:
    for block, content in contents().items():
        replace_block(PAGE, block, content)


if __name__ == "__main__":
    main()
