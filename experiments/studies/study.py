"""What every study shares: claims with verdicts, results.json, and the generated table of its README.

A study is a folder `experiments/<study>/` with

- README.md: the question, the command (its first code block), the result between two markers, the verdict;
- collect.py: run folders -> results.json, figures and the README's table; run it from the repository root as
  `python -m experiments.<study>.collect RUN...`. Its `table(results)` renders the table from results.json alone;
- results.json: the study's numbers, and its claims.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.figure import Figure

from twn_lightning.atomic import write_text
from twn_lightning.errors import DataError
from twn_lightning.json_object import write_json
from twn_lightning.metrics import Interval

EXPERIMENTS = Path(__file__).parents[1]

Verdict = Literal["holds", "holds partly", "does not hold here"]
VERDICTS: tuple[Verdict, ...] = ("holds", "holds partly", "does not hold here")

RESULTS_BLOCK = "results"
_CODE_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Claim:
    """A statement that a number with an interval decides.

    Args:
        id: names it within its study.
        claim: the statement, in one sentence that can be false.
        verdict: one of `VERDICTS`.
        estimate: the number.
        ci95: its 95 % interval.
        unit: how the number is shown: `points` (100 times, signed), `percent` (100 times) or `number`.
        n_seeds: training seeds behind it.
        n_queries: queries of each seed behind it.
    """

    id: str
    claim: str
    verdict: Verdict
    estimate: float
    ci95: tuple[float, float]
    unit: Literal["points", "percent", "number"]
    n_seeds: int
    n_queries: int


def judged(
    id: str,
    claim: str,
    interval: Interval,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: Literal["points", "percent", "number"] = "points",
    n_seeds: int,
    n_queries: int,
) -> Claim:
    """A claim whose verdict its interval gives: it holds where the whole interval is on the right side of the bar.

    It holds partly where only the estimate is.

    Args:
        id: as `Claim`.
        claim: as `Claim`.
        interval: the number with its 95 % interval.
        at_least: the bar, or
        at_most: the bar.
        unit: as `Claim`.
        n_seeds: as `Claim`.
        n_queries: as `Claim`.

    Raises:
        ValueError: not exactly one bar is given.
    """
    if (at_least is None) == (at_most is None):
        raise ValueError(f"claim {id} needs one bar, at_least or at_most; got {at_least} and {at_most}.")
    mean, low, high = interval
    if at_least is not None:
        whole, estimate = low >= at_least, mean >= at_least
    else:
        whole, estimate = high <= at_most, mean <= at_most  # type: ignore[operator]
    verdict: Verdict = "holds" if whole else "holds partly" if estimate else "does not hold here"
    return Claim(id, claim, verdict, mean, (low, high), unit, n_seeds, n_queries)


def number_of(claim: Mapping[str, Any]) -> str:
    """A claim's number with its interval, as pages show it: `+0.4 [+0.1, +0.7] points`."""
    values = (claim["estimate"], *claim["ci95"])
    if claim["unit"] == "number":
        mean, low, high = (f"{value:.3f}" for value in values)
        return f"{mean} [{low}, {high}]"
    sign, unit = ("+", "points") if claim["unit"] == "points" else ("", "%")
    mean, low, high = (f"{100 * value:{sign}.1f}" for value in values)
    return f"{mean} [{low}, {high}] {unit}"


def as_dict(interval: Interval) -> dict[str, Any]:
    """An interval as results.json holds it."""
    return {"mean": interval.mean, "ci95": [interval.low, interval.high]}


def show(value: Mapping[str, Any], scale: float = 100, digits: int = 1, sign: str = "") -> str:
    """What `as_dict` gave, as tables show it: `95.7 [95.1, 96.3]`."""
    mean, low, high = (f"{scale * number:{sign}.{digits}f}" for number in (value["mean"], *value["ci95"]))
    return f"{mean} [{low}, {high}]"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """A Markdown table: the first columns hold text and go to the left, the others numbers and go to the right."""
    lines = [header, ["---" if column < text_columns else "---:" for column in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def replace_block(page: Path, block: str, content: str) -> None:
    """Write what stands between `<!-- block -->` and `<!-- /block -->` of a page anew.

    Raises:
        DataError: the page is missing, or has no such markers.
    """
    found = read_block(page, block)
    opening = f"<!-- {block} -->"
    text = page.read_text(encoding="utf-8")
    write_text(page, text.replace(f"{opening}\n{found}", f"{opening}\n{content}\n", 1))


def read_block(page: Path, block: str) -> str:
    """What stands between the two markers of a page, with its last line break.

    Raises:
        DataError: as `replace_block`.
    """
    if not page.is_file():
        raise DataError(f"there is no {page}: write the study's question, command and verdict first.")
    match = re.search(rf"<!-- {block} -->\n(.*?)<!-- /{block} -->", page.read_text(encoding="utf-8"), re.DOTALL)
    if match is None:
        raise DataError(f"{page} has no lines <!-- {block} --> and <!-- /{block} -->, between which numbers would go.")
    return match[1]


def command_of(readme: Path) -> str:
    """The command of a study: the lines of its README's first code block, joined by `&&`.

    Raises:
        DataError: the README has no code block.
    """
    match = _CODE_BLOCK.search(readme.read_text(encoding="utf-8"))
    if match is None:
        raise DataError(f"{readme} has no code block: state the study's command in one.")
    lines = re.sub(r"\s*\\\n\s*", " ", match[1]).splitlines()
    return " && ".join(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def write_study(
    folder: Path, numbers: Mapping[str, Any], claims: Sequence[Claim], table: Callable[[Mapping[str, Any]], str]
) -> None:
    """Write results.json and the table of the README.

    Args:
        folder: the study's; its README.md states the command.
        numbers: what results.json holds beside the claims.
        claims: what the study decides; none is allowed.
        table: results.json as a mapping -> Markdown for the README.

    Raises:
        DataError: the README is missing, or lacks its command or its markers.
    """
    readme = folder / "README.md"
    read_block(readme, RESULTS_BLOCK)
    stated = [{**asdict(claim), "study": folder.name, "command": command_of(readme)} for claim in claims]
    write_json(folder / "results.json", {"claims": stated, **numbers})
    replace_block(readme, RESULTS_BLOCK, table(read_results(folder)))


def read_results(folder: Path) -> dict[str, Any]:
    """The content of a study's results.json."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results


def studies() -> list[Path]:
    """The folders of all studies, those with a README and a collect.py, in alphabetical order."""
    pages = sorted(EXPERIMENTS.glob("*/README.md"))
    return [page.parent for page in pages if page.with_name("collect.py").is_file()]


def save_figure(figure: Figure, path: Path) -> None:
    """Write an SVG that is the same for the same numbers."""
    with rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    text = path.read_text(encoding="utf-8")
    write_text(path, "\n".join(line.rstrip() for line in text.splitlines()) + "\n")
