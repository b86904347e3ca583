"""Write the tables of docs/trust.md anew, from experiments/trust.json.

python -m tests.trust.page
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.studies.study import markdown_table, replace_block

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "trust.md"
RESULTS = ROOT / "experiments" / "trust.json"
NOT_RUN = "Not run yet; command: `make trust`."

Suites = Mapping[str, Mapping[str, Any]]


def faults_table(suites: Suites) -> str:
    """Injected faults by the work that they disturb and their kind."""
    if "faults" not in suites:
        return NOT_RUN
    rows = [
        [work, kind, *(str(number) for number in (sum(ends.values()), ends["survived"], ends["lost"], ends["silent"]))]
        for work, kinds in suites["faults"]["by_work"].items()
        for kind, ends in kinds.items()
    ]
    return markdown_table(["work", "fault", "injected", "survived", "lost", "silent"], rows, text_columns=2)


def fuzz_table(suites: Suites) -> str:
    """Cases by surface and outcome."""
    if "fuzz" not in suites:
        return NOT_RUN
    names = list(suites["fuzz"]["outcomes"])
    parts = {**suites["fuzz"]["surfaces"], "all": suites["fuzz"]["outcomes"]}
    rows = [[part, *(f"{counts[name]:,}" for name in names)] for part, counts in parts.items()]
    return markdown_table(["surface", *(name.replace("_", " ") for name in names)], rows)


def load_table(suites: Suites) -> str:
    """What clients met that asked at once."""
    if "load" not in suites:
        return NOT_RUN
    names = ["clients", "answered", "told_to_come_back", "lost", "mixed_up", "grew_mb"]
    rows = [[target, *(f"{met[name]:,}" for name in names)] for target, met in suites["load"]["targets"].items()]
    header = ["asked", *(name.replace("_", " ") for name in names[:-1]), "memory grew by [MB]"]
    return markdown_table(header, rows)


def soak_text(suites: Suites) -> str:
    """The slope of memory."""
    memory = suites.get("soak", {}).get("memory")
    if memory is None:
        return NOT_RUN
    low, high = memory["ci95"]
    return (
        f"Over {memory['minutes']:g} minutes, of which {memory['measured_minutes']:.0f} count ({memory['cycles']} "
        f"rounds of the three stages and an evaluation, {memory['samples']} samples), resident memory changed by "
        f"{memory['mb_per_minute']:+.2f} MB a minute, 95 % interval [{low:+.2f}, {high:+.2f}]; the bar is below "
        f"{memory['bar']:g}."
    )


def how_table(suites: Suites) -> str:
    """Command, machine, date and versions of every suite."""
    return markdown_table(
        ["suite", "command", "part", "date", "hardware", "versions"],
        [how_cells(name, suite["how"]) for name, suite in suites.items()],
        text_columns=6,
    )


def how_cells(name: str, how: Mapping[str, Any]) -> list[str]:
    """One suite: how it was run."""
    hardware, versions = how["hardware"], how["versions"]
    where = f"{hardware['processor']}, {hardware['cores']} cores"
    packages = ", ".join(f"{package} {versions[package]}" for package in ("python", "torch", "transformers"))
    return [name, f"`{how['command']}`", "all" if how["full"] else "bounded", how["date"], where, packages]


BLOCKS = {"faults": faults_table, "fuzz": fuzz_table, "load": load_table, "soak": soak_text, "how": how_table}


def contents(results: Path = RESULTS) -> dict[str, str]:
    """What stands in every block of the page."""
    suites = json.loads(results.read_text(encoding="utf-8"))["suites"]
    return {block: text(suites) for block, text in BLOCKS.items()}


def write() -> None:
    """Write every block of the page."""
    for block, content in contents().items():
        replace_block(PAGE, block, content)


if __name__ == "__main__":
    write()
