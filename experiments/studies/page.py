"""Write the generated tables of experiments/README.md anew: all claims, and all studies with their questions.

python -m experiments.studies.page
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.studies.study import (
    EXPERIMENTS,
    markdown_table,
    number_of,
    read_results,
    replace_block,
    studies,
)

PAGE = EXPERIMENTS / "README.md"
_QUESTION = re.compile(r"\*\*Question\.\*\* (.+?)(?:\n\n|\Z)", re.DOTALL)


def claims_table() -> str:
    """Claim, verdict, number with interval, size and command, from every study's results.json."""
    rows = [_row(claim) for folder in studies() for claim in read_results(folder)["claims"]]
    header = ["claim", "verdict", "number [95 % interval]", "seeds x queries", "study", "command"]
    return markdown_table(header, rows, text_columns=len(header))


def studies_table() -> str:
    """Every study with its question."""
    rows = [[_link(folder.name), question_of(folder / "README.md")] for folder in studies()]
    return markdown_table(["study", "question"], rows, text_columns=2)


def question_of(readme: Path) -> str:
    """The paragraph that a README opens with **Question.**"""
    match = _QUESTION.search(readme.read_text(encoding="utf-8"))
    return " ".join(match[1].split()) if match else ""


def _row(claim: Mapping[str, Any]) -> list[str]:
    size = f"{claim['n_seeds']} x {claim['n_queries']:,}"
    command = f"`{claim['command']}`"
    return [claim["claim"], claim["verdict"], number_of(claim), size, _link(claim["study"]), command]


def _link(study: str) -> str:
    return f"[{study}]({study}/README.md)"


def main() -> None:
    replace_block(PAGE, "claims", claims_table())
    replace_block(PAGE, "studies", studies_table())


if __name__ == "__main__":
    main()
