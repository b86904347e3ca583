"""The gallery: a bounded, balanced choice of decisions, each with its image, CoT and verdict."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from twn_lightning.reporting.markup import Markup, element, join
from twn_lightning.reporting.page import bounded
from twn_lightning.reporting.read import ReportData
from twn_lightning.reporting.tables import percent
from twn_lightning.reporting.thumbnails import png_address

GALLERY_SIZE = 60
BADGES = {
    "helped": "✓ helped",
    "hurt": "✗ hurt",
    "wasted": "≈ wasted",
    "missed": "! missed",
    "skipped": "→ rightly skipped",
}


@dataclass(frozen=True)
class Example:
    """One decision of the gallery: its verdict, and its row of gate_decisions.parquet."""

    verdict: str
    row: dict[str, Any]


def choose_examples(data: ReportData, limit: int = GALLERY_SIZE) -> list[Example]:
    """Decisions to show: verdicts and numbers of steps take turns, those with an image first.

    Args:
        data: the evaluation.
        limit: the most examples to show.

    Returns:
        At most `limit` examples, by verdict and steps; the same ones for the same data.
    """
    verdicts_N = data.decisions.verdicts()
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row in _varied(data):
        groups[verdicts_N[row], data.decisions.steps_N[row]].append(row)
    # A verdict's groups take turns among themselves first, so that a rare verdict is shown as fully as a common one.
    turns: dict[str, list[int]] = {verdict: [] for verdict in BADGES}
    for depth in range(limit):
        for verdict, steps in sorted(groups):
            turns[verdict] += groups[verdict, steps][depth : depth + 1]
    chosen = [row for turn in range(limit) for rows in turns.values() for row in rows[turn : turn + 1]][:limit]
    order = list(BADGES)
    chosen.sort(key=lambda row: (order.index(str(verdicts_N[row])), data.decisions.steps_N[row], row))
    records = data.table.take(chosen).to_pylist()
    return [Example(str(verdicts_N[row]), record) for row, record in zip(chosen, records, strict=True)]


def _varied(data: ReportData) -> list[int]:
    """Every row in a fixed random order, which mixes the tasks, those with an image first."""
    order_N = np.random.default_rng(0).permutation(len(data.decisions))
    has_image_N = np.asarray(data.table.column("image_png").is_valid())[order_N]
    rows: list[int] = order_N[np.argsort(~has_image_N, kind="stable")].tolist()
    return rows


def gallery(data: ReportData) -> Markup:
    """The gallery with its filters; without scripts every example is shown and the filters are hidden."""
    examples = choose_examples(data)
    totals = Counter(data.decisions.verdicts().tolist())
    shown = Counter(example.verdict for example in examples)
    buttons = [
        element(
            "button",
            element("span", badge, class_=f"badge {verdict}"),
            element("span", f" {totals[verdict]:,}", class_="count"),
            type="button",
            data_verdict=verdict,
            aria_pressed="false",
            title=f"{totals[verdict]:,} queries, {shown[verdict]} of them shown here",
        )
        for verdict, badge in BADGES.items()
    ]
    selects = [_select(label, name, [example.row[name] for example in examples]) for label, name in _SELECTS]
    search = element("label", "Text ", element("input", type="search", name="text", autocomplete="off"))
    filters = element(
        "form",
        element("div", *buttons, role="group", aria_label="Verdict", class_="verdicts"),
        element("div", *selects, search, element("output", aria_live="polite", id="shown"), class_="selects"),
        element("p", _KEYS, class_="keys"),
        id="filters",
        hidden=True,
    )
    cards = element("div", *(_card(example, index) for index, example in enumerate(examples)), class_="cards")
    return join(filters, cards, element("p", "No example fits these filters.", id="none", class_="note", hidden=True))


_KEYS = join(
    "Keys: ", element("kbd", "/"), " to search, ", element("kbd", "j"), " and ", element("kbd", "k"),
    " for the next and the previous example, ", element("kbd", "Enter"), " for its chain of thought.",
)  # fmt: skip
_SELECTS = (("Task", "task"), ("Steps", "steps"))


def _select(label: str, name: str, values: list[Any]) -> Markup:
    known = sorted({value for value in values if value is not None})
    options = [element("option", "all", value="")] + [element("option", value, value=value) for value in known]
    return element("label", f"{label} ", element("select", *options, name=name))


def _card(example: Example, index: int) -> Markup:
    row, verdict = example.row, example.verdict
    heading = f"example-{index}"
    facts = [
        ("gain", f"{row['gain']:+.2f} nat"),
        ("CoT tokens", f"{row['tokens']}" + ("" if row["think"] else " (not spent)")),
        ("steps", "–" if row["steps"] is None else row["steps"]),
        ("task", row["task"]),
    ]
    outcomes = [
        ("Positive", row["positive"], None),
        ("Without CoT", row["top1_discriminative"], row["hit_discriminative"]),
        ("With CoT", row["top1_generative"], row["hit_generative"]),
    ]
    malformed = element("span", "malformed CoT", class_="badge hurt") if row["malformed"] else None
    return element(
        "article",
        element(
            "div",
            _image(row),
            element(
                "div",
                element("p", element("span", BADGES[verdict], class_=f"badge {verdict}"), " ", malformed),
                element("h3", bounded(row["query_text"]) or "(no text)", id=heading),
                class_="words",
            ),
            class_="top",
        ),
        _probability(row["probability"]),
        element("dl", *(_fact(*fact) for fact in facts), class_="facts"),
        element("dl", *(_outcome(*outcome) for outcome in outcomes), class_="outcomes"),
        element(
            "details",
            element("summary", "Chain of thought" if row["think"] else "Chain of thought, had it thought"),
            element("pre", bounded(row["cot"]) or "(empty)"),
        ),
        class_="card",
        data_verdict=verdict,
        data_steps="" if row["steps"] is None else row["steps"],
        data_task=row["task"],
        aria_labelledby=heading,
        tabindex=-1,
    )


def _image(row: dict[str, Any]) -> Markup | None:
    address = png_address(row["image_png"])
    if address is None:
        return None
    return element("img", src=address, alt=f"Image of the query: {bounded(row['query_text'])}", loading="lazy")


def _probability(probability: float) -> Markup:
    text = f"p(think) = {percent(probability)}"
    bar = element("span", style=f"width: {100 * probability:.1f}%")
    return element(
        "div", element("span", text, class_="label"), element("div", bar, class_="bar", aria_hidden="true"), class_="p"
    )


def _fact(name: str, value: object) -> Markup:
    return element("div", element("dt", name), " ", element("dd", value))


def _outcome(name: str, answer: str, quality: float | None) -> Markup:
    """What came first, and whether it was right; a graded task's metric where that lies between."""
    mark = None
    if quality is not None:
        word, kind = {1.0: ("✓ hit", "hit"), 0.0: ("✗ miss", "miss")}.get(quality, (percent(quality, 0), "count"))
        mark = element("span", word, class_=kind)
    return join(element("dt", name), element("dd", bounded(answer) or "–", " ", mark))
