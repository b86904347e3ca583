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
HEADER = ["claim", "verdict", "number [95 % interval]", "seeds x queries"]
_QUESTION = re.compile(r"\*\*Question\.\*\* (.+?)(?:\n\n|\Z)", re.DOTALL)


def claims_table() -> str:
    """Study by study: its command, then claim, verdict, number with interval and size, from its results.json."""
    parts = []
    for folder in studies():
        claims = read_results(folder)["claims"]
        if claims:
            commands = dict.fromkeys(line for claim in claims for line in claim["command"].split(" && "))
            rows = markdown_table(HEADER, map(_row, claims), text_columns=len(HEADER))
            parts.append(f"### {_link(folder.name)}\n\n" + "\n".join(["```", *commands, "```"]) + f"\n\n{rows}")
    return "\n\n".join(parts)


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
    return [claim["claim"], claim["verdict"], number_of(claim), size]


def _link(study: str) -> str:
    return f"[{study}]({study}/README.md)"


def main() -> None:
    replace_block(PAGE, "claims", claims_table())
    replace_block(PAGE, "studies", studies_table())


if __name__ == "__main__":
    main()
